//! Content that has lost its last name, and stays in `work` until its removal is durable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use super::files::work_name;
use super::{UpperDir, rename};
use crate::object::Ino;

/// Numbers of removed files. The identity of an object does not name one: an object of an image
/// can be changed and removed again after a discard.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A removed file in `work`, which other processes do not know: the next one that opens the layer
/// removes it, or moves it back to its row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Removed(u64);

impl Removed {
    fn new() -> Removed {
        Removed(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn name(self) -> String {
        format!("removed-{}", self.0)
    }
}

impl UpperDir {
    /// Moves a placed file to `work`, to be removed later.
    pub(crate) fn take_out(&self, dir: BorrowedFd<'_>, component: &[u8]) -> Result<Removed, Errno> {
        let removed = Removed::new();
        let to = removed.name();
        rename(dir, component, self.work.as_fd(), to.as_bytes())?;
        Ok(removed)
    }

    /// Like [`take_out`](Self::take_out), for a file that is in `work` already.
    pub(crate) fn take_out_detached(&self, ino: Ino) -> Result<Removed, Errno> {
        self.take_out(self.work.as_fd(), work_name(ino).as_bytes())
    }

    /// Undoes [`take_out`](Self::take_out).
    pub(crate) fn bring_back(
        &self,
        removed: Removed,
        dir: BorrowedFd<'_>,
        component: &[u8],
    ) -> io::Result<()> {
        let from = removed.name();
        Ok(rename(self.work.as_fd(), from.as_bytes(), dir, component)?)
    }

    /// Returns the bytes that a removed file occupies; 0 if it does not exist.
    pub(crate) fn removed_bytes(&self, removed: Removed) -> u64 {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        fstatat(&self.work, removed.name().as_str(), flags)
            .map_or(0, |stat| stat.st_blocks.unsigned_abs() * 512)
    }

    /// Removes a removed file for good, if it exists.
    pub(crate) fn remove_removed(&self, removed: Removed) -> io::Result<()> {
        self.remove(self.work.as_fd(), removed.name().as_bytes())
    }
}
