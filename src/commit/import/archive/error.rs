//! Errors of reading an archive.

use std::io;
use std::path::Path;

use crate::commit::error::CommitError;

/// A result whose error is an [`Error`].
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why an archive cannot be imported.
#[derive(Debug)]
pub(super) enum Error {
    /// Reading or decompressing it failed.
    Io(io::Error),
    /// It violates the format.
    Damaged(String),
    /// An entry cannot be unpacked.
    Refused(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl Error {
    /// Adds the path of the archive.
    pub(super) fn of(self, source: &Path) -> CommitError {
        let why = match self {
            // Errors of the system have a number; those of decoders mean a damaged archive.
            Error::Io(e) if e.raw_os_error().is_some() => {
                return CommitError::Io {
                    doing: "unpack",
                    path: source.to_owned(),
                    error: e,
                };
            }
            Error::Io(e) => format!("the archive is damaged or truncated: {e}"),
            Error::Damaged(why) => format!("the archive is damaged or truncated: {why}"),
            Error::Refused(why) => why,
        };
        CommitError::Source {
            path: source.to_owned(),
            why,
        }
    }
}
