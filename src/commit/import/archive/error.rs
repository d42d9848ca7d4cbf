//! What is wrong with an archive.

use std::io;
use std::path::Path;

use crate::commit::error::CommitError;

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub(super) enum Error {
    /// It could not be read or expanded.
    Io(io::Error),
    /// It breaks the format.
    Damaged(String),
    /// It cannot be unpacked in its place.
    Refused(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl Error {
    /// Names the archive.
    pub(super) fn of(self, source: &Path) -> CommitError {
        let why = match self {
            // Only the system's own errors have a number: a full disk is not the archive's fault.
            Error::Io(e) if e.raw_os_error().is_some() => {
                return CommitError::Io {
                    doing: "unpack",
                    path: source.to_owned(),
                    source: e,
                };
            }
            Error::Io(e) => format!("the archive is damaged or cut short: {e}"),
            Error::Damaged(why) => format!("the archive is damaged or cut short: {why}"),
            Error::Refused(why) => why,
        };
        CommitError::Source {
            path: source.to_owned(),
            why,
        }
    }
}
