//! Making names durable: a file that is synced may still be without its name after power loss.

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes the name at the end of a path durable: syncs the directory that it is in.
pub fn sync_name(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
