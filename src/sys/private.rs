//! Directories that only their owner can use, whatever the umask; that of a daemon is 0.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::process;

/// Creates a directory with mode 0700, and missing parents. If it exists and belongs to the caller,
/// removes the permissions of others, which earlier versions granted.
pub fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let meta = fs::metadata(path)?;
    if meta.uid() == process::user_id() && meta.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o7700))?;
    }
    Ok(())
}
