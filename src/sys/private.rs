//! Directories for one user alone, whatever the umask is: a daemon has none.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::process;

/// Makes a directory that nobody else may enter, with its parents where missing. One that is there is
/// closed to others if it is ours: it may be of a version that left it open.
pub fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let meta = fs::metadata(path)?;
    if meta.uid() == process::user_id() && meta.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o7700))?;
    }
    Ok(())
}
