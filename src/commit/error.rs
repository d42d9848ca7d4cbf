//! What can go wrong while an environment is made, committed or brought back.

use std::io;
use std::path::{Path, PathBuf};

use crate::environment::EnvironmentError;
use crate::squashfs::{self, writer::WriteError};
use crate::state::StateError;
use crate::sys::walk;
use crate::union;

/// Shorthand for results of this module.
pub type Result<T, E = CommitError> = std::result::Result<T, E>;

/// Why an operation on a whole environment failed. Whatever it was, the environment is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The new image could not be written.
    #[error("writing the image: {0}")]
    Write(WriteError),
    /// An image could not be read.
    #[error("reading the image: {0}")]
    Image(#[from] squashfs::Error),
    /// The merged view could not be read or changed.
    #[error(transparent)]
    Union(#[from] union::Error),
    /// The state database refused.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store refused.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// A file operation failed.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The new image does not hold what it should; it was thrown away.
    #[error("the new image is not what was to be kept: {0}; nothing was changed")]
    Check(String),
    /// An image's file is not what was written.
    #[error("{0} are not what was written: the disk, or somebody, has changed them")]
    Changed(String),
    /// An image of the stack is not there, or is shorter than it was.
    #[error(
        "{0} is not there, or not whole, and older images may be all that is left: nothing is removed"
    )]
    NotWhole(PathBuf),
    /// What was being imported changed meanwhile.
    #[error(
        "{0} changed while it was imported; nothing was kept, import it again when nothing writes to it"
    )]
    SourceChanged(PathBuf),
    /// The source cannot be imported.
    #[error("{path}: {why}")]
    Source {
        /// The source.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The source is fine, but not for what was asked.
    #[error("{path}: {why}")]
    Unsuitable {
        /// The source.
        path: PathBuf,
        /// What stands against it.
        why: String,
    },
    /// A pattern of `--exclude` cannot be understood.
    #[error("invalid pattern '{pattern}': {reason}")]
    InvalidPattern {
        /// The pattern as given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are uncommitted changes, which this would throw away.
    #[error("there are uncommitted changes")]
    Uncommitted,
    /// There is no such revision.
    #[error("there is no revision {0}")]
    NoRevision(i64),
    /// There is no earlier revision.
    #[error("there is no earlier revision to go back to")]
    NoEarlier,
    /// The user asked to stop.
    #[error("cancelled; everything is as it was")]
    Cancelled,
}

impl From<walk::WalkError> for CommitError {
    fn from(failed: walk::WalkError) -> Self {
        CommitError::Io {
            doing: "read",
            path: failed.path,
            source: failed.source,
        }
    }
}

impl From<WriteError> for CommitError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Cancelled => CommitError::Cancelled,
            WriteError::SourceChanged { label, .. } => CommitError::SourceChanged(label.into()),
            other => CommitError::Write(other),
        }
    }
}

impl CommitError {
    /// Returns true when there was no room on a disk.
    pub fn is_no_space(&self) -> bool {
        fn full(io: &io::Error) -> bool {
            matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        }
        match self {
            CommitError::Write(WriteError::Image(squashfs::Error::Io { source, .. }))
            | CommitError::Image(squashfs::Error::Io { source, .. })
            | CommitError::Io { source, .. }
            | CommitError::Union(union::Error::Upper(source)) => full(source),
            CommitError::State(state) | CommitError::Union(union::Error::State(state)) => {
                state.is_no_space()
            }
            _ => false,
        }
    }
}

/// Adds what was being done, and with what, to an I/O error.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| CommitError::Io {
            doing,
            path: path.to_owned(),
            source,
        })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).context(doing, path)
    }
}
