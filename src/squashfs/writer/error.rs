//! Errors of writing an image.

use std::io;

use crate::squashfs;

/// Shorthand for results of this module.
pub type Result<T, E = WriteError> = std::result::Result<T, E>;

/// The reason why an image could not be written. The unfinished file is always removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The image file could not be written, or the old image could not be read.
    #[error(transparent)]
    Image(#[from] squashfs::Error),
    /// A file's content could not be read.
    #[error("cannot read {label}: {error}")]
    Source {
        /// The source's own name for itself.
        label: String,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A file changed: it had another length when it was read than when it was pushed.
    #[error("{label} changed while it was read: expected {expected} bytes, found {found}")]
    SourceChanged {
        /// The source's own name for itself.
        label: String,
        /// The size that was announced, in bytes.
        expected: u64,
        /// The content found instead.
        found: Found,
    },
    /// The pushed nodes do not form a tree that SquashFS can hold.
    #[error("{what}: {detail}")]
    Tree {
        /// The violated rule.
        what: &'static str,
        /// The value that violates it.
        detail: String,
    },
    /// Data cannot be carried over: there is no old image, or it does not fit.
    #[error("cannot carry data over: {0}")]
    Carry(String),
    /// The tables of the old image cannot be amended, so all tables have to be written.
    #[error("the tables of the old image cannot be amended: {0}")]
    Amend(String),
    /// The caller cancelled the operation.
    #[error("cancelled")]
    Cancelled,
    /// An earlier call on this writer failed; that call returned the reason.
    #[error("the image writer has failed before")]
    Failed,
    /// A thread of the writer could not be started, or died.
    #[error("a thread of the image writer {0}")]
    Thread(String),
}

/// How much content was found where another amount was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Content ended after this many bytes.
    Only(u64),
    /// Content went on after the expected end.
    More,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Only(bytes) => write!(f, "{bytes}"),
            Found::More => f.write_str("more"),
        }
    }
}

impl WriteError {
    /// Returns a [`WriteError::Tree`].
    pub(super) fn tree(what: &'static str, detail: impl Into<String>) -> Self {
        WriteError::Tree {
            what,
            detail: detail.into(),
        }
    }

    /// Turns an I/O error on the image file into a [`WriteError::Image`]:
    /// `.map_err(WriteError::io("writing blocks"))`.
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> WriteError {
        move |error| WriteError::Image(squashfs::Error::Io { what, error })
    }
}
