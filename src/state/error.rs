//! The errors of the database of an environment.

use std::io;
use std::path::PathBuf;

use nix::unistd::{AccessFlags, access};

use crate::sys::medium;

/// A result whose error is a [`StateError`].
pub type Result<T, E = StateError> = std::result::Result<T, E>;

/// Why the state of an environment could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// There is no database at the path.
    #[error("{path}: there is no state database")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Something is already there.
    #[error("{path}: a file is already there")]
    Exists {
        /// Where the database should have been created.
        path: PathBuf,
    },
    /// The file is not a SQLite database, or an empty one.
    #[error("{path}: not a state database of envfs ({detail})")]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        detail: String,
    },
    /// A newer envfs made or upgraded the database.
    #[error(
        "{path}: made by a newer envfs (schema {found}, this envfs knows up to {supported}); \
         upgrade envfs to use this environment"
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest schema version known here.
        supported: u32,
    },
    /// The database is damaged.
    #[error("{path}: the state database is damaged: {detail}")]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// A row holds an invalid value.
    #[error("{path}: table {table} holds an impossible {what}")]
    BadRow {
        /// The database.
        path: PathBuf,
        /// The table.
        table: &'static str,
        /// Describes the value.
        what: String,
    },
    /// Another process kept the database locked for too long.
    #[error("{path}: the state database is busy in another process ({doing})")]
    Busy {
        /// The database.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
    },
    /// The change does not fit the current state, because of another change or because it names
    /// something that does not exist. Nothing was changed.
    #[error("{path}: cannot {doing}: {detail}")]
    Conflict {
        /// The database.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// Why it does not fit.
        detail: String,
    },
    /// An earlier sync failed, so no later one can guarantee durability.
    #[error("{path}: an earlier sync of the state database failed; reopen the environment")]
    SyncFailed {
        /// The database.
        path: PathBuf,
    },
    /// It is unknown whether a transaction was committed, so that no other may follow.
    #[error(
        "{path}: it is not known whether a change of the state database has happened; \
         reopen the environment, which then knows"
    )]
    InDoubt {
        /// The database.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{path}: cannot {doing}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// SQLite refused, for any other reason.
    #[error("{path}: cannot {doing}: {error}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        error: rusqlite::Error,
    },
}

impl StateError {
    /// Returns true when there was no room: disk full or over quota.
    pub fn is_no_space(&self) -> bool {
        match self {
            StateError::Sql { path, error, .. } => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
                    || (is_about_own_files(error) && medium::is_full(path))
            }
            StateError::Io { error, .. } => matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }

    /// Returns true when the database or its file system may only be read.
    pub fn is_read_only(&self) -> bool {
        match self {
            StateError::Sql { path, error, .. } => match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::ReadOnly) => true,
                // SQLite keeps files beside the database also to read it.
                Some(rusqlite::ErrorCode::CannotOpen) => path
                    .parent()
                    .is_some_and(|dir| access(dir, AccessFlags::W_OK).is_err()),
                _ => false,
            },
            StateError::Io { error, .. } => error.kind() == io::ErrorKind::ReadOnlyFilesystem,
            _ => false,
        }
    }
}

/// Returns true if SQLite could not create or extend its journal, an error whose cause it does not
/// report.
fn is_about_own_files(error: &rusqlite::Error) -> bool {
    let rusqlite::Error::SqliteFailure(error, _) = error else {
        return false;
    };
    error.code == rusqlite::ErrorCode::CannotOpen
        || error.extended_code == rusqlite::ffi::SQLITE_IOERR_WRITE
}
