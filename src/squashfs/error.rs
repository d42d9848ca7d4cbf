//! What can go wrong with an image: which table, at which position, with which value.

use std::io;

/// Shorthand for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on the image file.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file does not begin as a SquashFS image does.
    #[error("not a SquashFS image: {0}")]
    NotSquashfs(&'static str),
    /// A valid image, perhaps, but it uses something that is not supported here.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The image contradicts itself or the format.
    #[error("damaged image: {what} at {at:#x}: {detail}")]
    Corrupt {
        /// Which structure.
        what: &'static str,
        /// Where: a byte position in the image for blocks and tables; an inode reference for
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
        /// What it said.
        detail: String,
    },
    /// The caller asked for something the format cannot express (a name too long, too many
    /// ids, an xattr outside the user, trusted and security namespaces...).
    #[error("{what}: {detail}")]
    Invalid {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be.
        detail: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// An [`Error::Corrupt`].
    pub fn corrupt(what: &'static str, at: u64, detail: impl Into<String>) -> Self {
        Error::Corrupt {
            what,
            at,
            detail: detail.into(),
        }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(what: &'static str, detail: impl Into<String>) -> Self {
        Error::Invalid {
            what,
            detail: detail.into(),
        }
    }

    /// Turns an [`io::Error`] into an [`Error::Io`] that says what was being done:
    /// `.map_err(Error::io("reading a block"))`.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, source }
    }

    /// True when the image's bytes are to blame.
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            Error::Corrupt { .. } | Error::Codec { .. } | Error::NotSquashfs(_)
        )
    }
}
