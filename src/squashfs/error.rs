//! Errors of images: which table, at which position, with which value.

use std::io;

/// Shorthand for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation on the image file failed.
    #[error("{what}: {error}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The file does not begin with a SquashFS superblock.
    #[error("not a SquashFS image: {0}")]
    NotSquashfs(&'static str),
    /// The image uses something that is not supported here.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The image contradicts itself or the format.
    #[error("damaged image: {what} at {at:#x}: {detail}")]
    Corrupt {
        /// The structure.
        what: &'static str,
        /// Its position: a byte position in the image for blocks and tables; an inode reference for
        /// inodes; a position in the buffer for structures parsed from memory.
        at: u64,
        /// The value found and what it should have been.
        detail: String,
    },
    /// A codec failed on a block.
    #[error("{codec}: {detail}")]
    Codec {
        /// The codec's name.
        codec: &'static str,
        /// The codec's message.
        detail: String,
    },
    /// The request cannot be expressed in the format (a name too long, too many ids, an xattr
    /// outside the user, trusted and security namespaces...).
    #[error("{what}: {detail}")]
    Invalid {
        /// The request.
        what: &'static str,
        /// The reason.
        detail: String,
    },
    /// The caller cancelled the operation.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Returns an [`Error::Corrupt`].
    pub fn corrupt(what: &'static str, at: u64, detail: impl Into<String>) -> Self {
        Error::Corrupt {
            what,
            at,
            detail: detail.into(),
        }
    }

    /// Returns an [`Error::Invalid`].
    pub fn invalid(what: &'static str, detail: impl Into<String>) -> Self {
        Error::Invalid {
            what,
            detail: detail.into(),
        }
    }

    /// Turns an [`io::Error`] into an [`Error::Io`] that names the operation:
    /// `.map_err(Error::io("reading a block"))`.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::Io { what, error }
    }

    /// Returns true if the bytes of the image are the cause.
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            Error::Corrupt { .. } | Error::Codec { .. } | Error::NotSquashfs(_)
        )
    }
}
