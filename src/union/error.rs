//! Errors of union operations.

use nix::errno::Errno;

use crate::{squashfs, state};

/// An error of a union operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error that POSIX specifies for the call (`ENOENT`, `EEXIST`, `ENOTEMPTY`, …).
    #[error(transparent)]
    Posix(#[from] Errno),
    /// An image could not be read or is damaged.
    #[error("image: {0}")]
    Image(squashfs::Error),
    /// The state database failed.
    #[error("state: {0}")]
    State(state::StateError),
    /// The upper directory failed.
    #[error("upper directory: {0}")]
    Upper(std::io::Error),
    /// A path cannot be discarded alone: its directory was removed, and another object is at the
    /// path of the directory.
    #[error("{0:?} was in a directory that was removed and replaced; name the directory instead")]
    Replaced(String),
    /// A part of the changes cannot be committed alone.
    #[error("cannot commit {path:?} alone: {why}")]
    NotSeparable {
        /// A path of the part.
        path: String,
        /// The reason.
        why: String,
    },
    /// An image was made from an upper directory of overlayfs with `redirect_dir=on`.
    #[error("{0:?} has the attribute overlay.redirect, which is not supported")]
    Redirected(String),
    /// Rows, files and images do not fit together.
    #[error("inconsistent state: {0}")]
    Inconsistent(String),
}

impl Error {
    /// Returns true if the disk is full or a quota is exhausted.
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            Error::Posix(code) => matches!(code, Errno::ENOSPC | Errno::EDQUOT),
            Error::Upper(error) => matches!(
                error.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            Error::State(error) => error.is_no_space(),
            _ => false,
        }
    }
}

/// Result of a union operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<squashfs::Error> for Error {
    fn from(error: squashfs::Error) -> Error {
        Error::Image(error)
    }
}

impl From<state::StateError> for Error {
    fn from(error: state::StateError) -> Error {
        Error::State(error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::Upper(error)
    }
}
