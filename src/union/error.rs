//! What can go wrong in the union: mostly what POSIX says should, sometimes the world below.

use nix::errno::Errno;

use crate::{squashfs, state};

/// An error of a union operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The answer that POSIX gives to this call (`ENOENT`, `EEXIST`, `ENOTEMPTY`, …).
    #[error("{0}")]
    Posix(#[from] Errno),
    /// An image could not be read, or is damaged.
    #[error("image: {0}")]
    Image(#[from] squashfs::Error),
    /// The state database refused.
    #[error("state: {0}")]
    State(#[from] state::StateError),
    /// The upper directory refused.
    #[error("upper directory: {0}")]
    Upper(#[from] std::io::Error),
    /// A commit did not end, so changes are spread over several layers.
    #[error("a commit is under way or was interrupted; commit again, or discard everything")]
    CommitUnfinished,
    /// A path cannot be discarded by itself: the directory that had it was removed, and something else
    /// has its place, which would be thrown away too.
    #[error("{0:?} was in a directory that was removed and replaced; discard the directory")]
    Replaced(String),
    /// An image was made from a directory of overlayfs in which a directory is elsewhere than its content.
    #[error("{0:?} has the attribute overlay.redirect: its content is to be looked for elsewhere")]
    Redirected(String),
    /// Rows and files disagree.
    #[error("inconsistent state: {0}")]
    Inconsistent(String),
}

/// Result of a union operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
