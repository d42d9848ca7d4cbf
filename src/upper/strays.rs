//! The strays directory, to which files are moved instead of being deleted: files without a row,
//! and content that the user discarded.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};

use super::files::work_name;
use super::{UpperDir, name};
use crate::object::{Ino, Timestamp};
use crate::sys::private::create_dir;

impl UpperDir {
    /// Moves discarded content below the strays directory, where the user can remove it.
    pub(crate) fn keep_aside(&self, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<()> {
        self.move_aside(dir, component)?;
        Ok(())
    }

    /// Moves discarded content from `work` below the strays directory.
    pub(crate) fn keep_detached_aside(&self, ino: Ino) -> io::Result<()> {
        self.keep_aside(self.work(), work_name(ino).as_bytes())
    }

    /// Moves a file without a row out of the way.
    pub(super) fn set_aside(&self, dir: BorrowedFd<'_>, component: &[u8]) -> Result<(), Errno> {
        if let Some(to) = self.move_aside(dir, component)? {
            tracing::warn!(moved_to = %to.display(), "content without a row was in the way");
        }
        Ok(())
    }

    /// Moves a file below the strays directory, under a name made of the time and its old name.
    /// Returns the new path, or `None` if the file does not exist.
    fn move_aside(&self, dir: BorrowedFd<'_>, component: &[u8]) -> Result<Option<PathBuf>, Errno> {
        create_dir(&self.strays).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(5)))?;
        // The time is prepended, and the result must fit into a name.
        let shown: String = String::from_utf8_lossy(component)
            .chars()
            .take(50)
            .collect();
        // The clock is fine enough that two calls rarely get the same time, so one attempt is
        // usually enough, however many strays there are.
        for _ in 0..100 {
            let now = Timestamp::from(SystemTime::now());
            let to = format!("{}.{:09}-{shown}", now.secs, now.nanos);
            let to = self.strays.join(to);
            match renameat2(
                dir,
                name(component),
                nix::fcntl::AT_FDCWD,
                &to,
                RenameFlags::RENAME_NOREPLACE,
            ) {
                Ok(()) => return Ok(Some(to)),
                Err(Errno::EEXIST) => {}
                Err(Errno::ENOENT) => return Ok(None),
                // File systems without RENAME_NOREPLACE. No other process creates names there.
                Err(Errno::EINVAL) if to.symlink_metadata().is_err() => {
                    let strays = nix::fcntl::AT_FDCWD;
                    return match nix::fcntl::renameat(dir, name(component), strays, &to) {
                        Ok(()) => Ok(Some(to)),
                        Err(Errno::ENOENT) => Ok(None),
                        Err(e) => Err(e),
                    };
                }
                Err(Errno::EINVAL) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::EEXIST)
    }
}

/// Moves an object below the strays directory.
pub(super) fn set_path_aside(path: &Path, strays: &Path) -> io::Result<()> {
    create_dir(strays)?;
    let now = Timestamp::from(SystemTime::now());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let to = strays.join(format!("{}.{:09}-{name}", now.secs, now.nanos));
    fs::rename(path, &to)?;
    tracing::warn!(moved_to = %to.display(), "{} was not a directory", path.display());
    Ok(())
}
