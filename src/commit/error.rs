//! Errors of operations on whole environments.

use std::io;
use std::path::{Path, PathBuf};

use crate::environment::EnvironmentError;
use crate::relocate::{self, Impossible};
use crate::squashfs::{self, writer::WriteError};
use crate::state::StateError;
use crate::sys::walk;
use crate::union;

/// A result whose error is a [`CommitError`].
pub type Result<T, E = CommitError> = std::result::Result<T, E>;

/// The reason why an operation on a whole environment failed. The environment is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The new image could not be written.
    #[error("cannot write the image: {0}")]
    Write(WriteError),
    /// An image could not be read.
    #[error("cannot read the image: {0}")]
    Image(squashfs::Error),
    /// The merged view could not be read or changed.
    #[error(transparent)]
    Union(#[from] union::Error),
    /// The state database could not be read or changed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store could not be read or changed.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// A file operation failed.
    #[error("cannot {doing} {path}: {error}")]
    Io {
        /// The operation, as in "cannot open /x".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The new image differs from the view or source that it was made from, and was removed.
    #[error("verification of the new image failed: {0}; nothing was changed")]
    Check(String),
    /// An image file differs from what was written, as its size or digests show.
    #[error("{0}: the file has changed since it was written")]
    Changed(String),
    /// An image of the stack is missing or truncated.
    #[error(
        "{0} is missing or truncated, and older images may be the only copy: nothing is removed"
    )]
    ImageLost(PathBuf),
    /// The source changed during the import.
    #[error(
        "{0} changed while it was imported; nothing was created, import it again when no program \
         writes to it"
    )]
    SourceChanged(PathBuf),
    /// The source cannot be imported.
    #[error("{path}: {why}")]
    Source {
        /// The source.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The source is valid, but not with the given options.
    #[error("{path}: {why}")]
    Unsuitable {
        /// The source.
        path: PathBuf,
        /// The conflict.
        why: String,
    },
    /// A pattern of `--exclude` is invalid.
    #[error("invalid pattern '{pattern}': {reason}")]
    InvalidPattern {
        /// The pattern as given.
        pattern: String,
        /// The problem.
        reason: String,
    },
    /// There are uncommitted changes, which the operation would discard.
    #[error("there are uncommitted changes")]
    Uncommitted,
    /// The revision does not exist.
    #[error("there is no revision {0}")]
    NoRevision(i64),
    /// There is no operation to undo.
    #[error("there is nothing to undo")]
    NothingToUndo,
    /// There is no such operation.
    #[error("there is no operation {0}")]
    NoOperation(i64),
    /// An operation cannot be undone.
    #[error("operation {operation} ({kind}) cannot be undone: {why}")]
    NotUndoable {
        /// The operation.
        operation: i64,
        /// What it did.
        kind: &'static str,
        /// The reason.
        why: String,
        /// What to do instead.
        hint: String,
    },
    /// A trial has ended, or was removed because its command had ended.
    #[error("the trial has ended already")]
    NoTrial,
    /// A trial uses the environment as it is.
    #[error("a try of this environment is in progress")]
    Tried,
    /// The current revision has no parent.
    #[error("there is no earlier revision")]
    NoEarlier,
    /// Files contain the old prefix and cannot contain the new one.
    #[error("{}", describe_impossible(.0))]
    CannotRelocate(Vec<Impossible>),
    /// An environment could not be searched for its prefix.
    #[error(transparent)]
    Relocate(relocate::Error),
    /// The user cancelled the operation.
    #[error("cancelled; nothing was changed")]
    Cancelled,
}

impl From<squashfs::Error> for CommitError {
    fn from(error: squashfs::Error) -> CommitError {
        CommitError::Image(error)
    }
}

impl From<relocate::Error> for CommitError {
    fn from(error: relocate::Error) -> CommitError {
        match error {
            relocate::Error::Cancelled => CommitError::Cancelled,
            other => CommitError::Relocate(other),
        }
    }
}

/// Names the files that cannot be rewritten.
fn describe_impossible(files: &[Impossible]) -> String {
    const SHOWN: usize = 10;
    let mut text = format!("files that cannot be rewritten: {}", files.len());
    for file in files.iter().take(SHOWN) {
        text.push_str(&format!("\n  {file}"));
    }
    if files.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", files.len() - SHOWN));
    }
    text
}

impl From<walk::WalkError> for CommitError {
    fn from(failed: walk::WalkError) -> Self {
        CommitError::Io {
            doing: "read",
            path: failed.path,
            error: failed.error,
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
    /// Returns true if a disk or quota is full.
    pub fn is_no_space(&self) -> bool {
        fn full(io: &io::Error) -> bool {
            matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        }
        match self {
            CommitError::Write(WriteError::Image(squashfs::Error::Io { error, .. }))
            | CommitError::Image(squashfs::Error::Io { error, .. })
            | CommitError::Io { error, .. }
            | CommitError::Union(union::Error::Upper(error)) => full(error),
            CommitError::State(state) | CommitError::Union(union::Error::State(state)) => {
                state.is_no_space()
            }
            _ => false,
        }
    }
}

/// Adds the operation and the file to an I/O error.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| CommitError::Io {
            doing,
            path: path.to_owned(),
            error,
        })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).context(doing, path)
    }
}
