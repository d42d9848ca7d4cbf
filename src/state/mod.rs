//! The state of an environment: one SQLite database, and the only code that names rusqlite.
//!
//! `docs/state.md` explains the rows, and what is durable when. In short:
//!
//! - [`StateDb::apply`] is the hot path: one record of the redo log for each operation of a
//!   program. A checkpoint applies many records to SQLite at once. A record survives the death of
//!   this process at once, and a power failure after [`StateDb::sync`].
//! - Everything else is one transaction and durable when it returns, including those that *publish*
//!   ([`rotate`](StateDb::rotate), [`publish_commit`](StateDb::publish_commit),
//!   [`discard_all`](StateDb::discard_all), [`rollback_to`](StateDb::rollback_to)). An error means
//!   that the transaction was rolled back (`doubt`).
//!
//! Lock order: a [`StateDb`] has one lock around its connection and, taken after it or alone, one
//! around its redo log; both are taken last and held only for one transaction or one record. No
//! callback runs under them.

mod check;
mod checked;
mod checkpoint;
mod counters;
mod doubt;
mod environment;
mod error;
mod files;
mod history;
mod id_map;
mod ids;
mod images;
mod migrations;
mod operations;
mod publish;
mod read_only;
mod redo;
mod reserve;
mod rows;
mod split;
mod stack;
#[cfg(test)]
mod tests;
mod transfer;
mod trial;
mod undo;
mod valid;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::sys::durable;

pub use environment::{FileIds, HomeId, LinksIn, SkippedIds};
pub use error::{Result, StateError};
pub use history::{NewRevision, Revision, RevisionKind, Tag};
pub use id_map::{BadIdMap, IdMap, IdRun};
pub use ids::{ImageId, LayerId, OperationId, RevisionId};
pub use images::{ImageRow, NewImage};
pub use operations::{Operation, OperationKind, RecordedLayer};
pub use publish::{CommitPlace, InitEnvironment, Initialised, PublishCommit, RolledBack};
pub use read_only::LockState;
pub use rows::{DataPlace, InodeRow, LayerRows, RowChange};
pub use stack::{Layer, LayerRole, StackLayer, StackPart};
pub use transfer::{ImportedImage, NewHistory, NewIdentity};
pub(crate) use transfer::{check_origin, check_prefix};
pub use trial::{Trial, TrialEnd};
pub use undo::{NotUndoable, UndoPlan};

/// The page size of new databases, in bytes: a unit that disks write atomically.
pub const PAGE_SIZE: u32 = 4096;

/// How long to wait for a transaction of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// Space that the journal keeps on disk even when it is empty, in bytes: enough for the
/// transactions that discard changes and collect garbage, so that these work on a full disk.
const JOURNAL_ROOM: u64 = 256 << 10;

/// The journal mode of SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JournalMode {
    /// A rollback journal beside the database. Processes share no memory, so this works on network
    /// file systems and cannot cause SIGBUS on a full disk.
    Rollback,
    /// None: a database in memory.
    Memory,
}

/// What a database contains when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Nothing yet.
    New,
    /// The data of an environment.
    Existing,
}

/// The database of one environment. Shared by reference between threads.
#[derive(Debug)]
pub struct StateDb {
    path: PathBuf,
    conn: Mutex<Connection>,
    mode: JournalMode,
    /// With read-only access, how long a read waits for a journal to disappear.
    journal_patience: Option<Duration>,
    /// Whether the redo log could not be synced.
    sync_failed: AtomicBool,
    /// Whether it is unknown if a transaction was committed, so that no other may follow.
    in_doubt: AtomicBool,
    #[cfg(test)]
    failing: Mutex<std::collections::VecDeque<doubt::CommitFault>>,
    /// The redo log that changes of rows go to, once it is open.
    redo: OnceLock<checkpoint::Log>,
    /// Whether an earlier process left a redo log, which a clean close removes.
    has_leftover: AtomicBool,
    /// Rows of layers that have been read.
    rows_read: AtomicU64,
}

impl StateDb {
    /// Creates the database at `path`, which must not exist, with an empty schema.
    ///
    /// The directory entry is not made durable here: an environment is built in a temporary
    /// directory that is synced as a whole before it is renamed into place.
    pub fn create(path: &Path) -> Result<StateDb> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => StateError::Exists {
                    path: path.to_owned(),
                },
                _ => StateError::Io {
                    path: path.to_owned(),
                    doing: "create the state database",
                    error,
                },
            })?;
        let conn = Self::connect(path)?;
        let db = Self::configure(conn, path, JournalMode::Rollback, Content::New)?;
        migrations::create(&db.lock(), path, migrations::MIGRATIONS)?;
        Ok(db)
    }

    /// Opens the database at `path`, upgrading an older schema.
    pub fn open(path: &Path) -> Result<StateDb> {
        Self::open_with(path, migrations::MIGRATIONS)
    }

    fn open_with(path: &Path, migrations: &[&str]) -> Result<StateDb> {
        files::check(path)?;
        let conn = Self::connect(path)?;
        let fail = |e| sql_error(path, "open the state database", e);
        conn.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
        // The database may have a write-ahead log. In exclusive mode SQLite reads it without shared
        // memory in a file.
        conn.pragma_update(None, "locking_mode", "exclusive")
            .map_err(fail)?;
        // Before anything is written: it may be another application's database, or a newer schema.
        migrations::upgrade(&conn, path, migrations)?;
        let had: String = conn
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .map_err(fail)?;
        let db = Self::configure(conn, path, JournalMode::Rollback, Content::Existing)?;
        if had == "wal" {
            // The shared memory of an earlier process is obsolete.
            std::fs::remove_file(beside(path, "-shm")).unwrap_or_default();
        }
        {
            let conn = db.lock();
            conn.pragma_update(None, "locking_mode", "normal")
                .map_err(fail)?;
            // SQLite releases the exclusive lock at the next read.
            conn.query_row("PRAGMA schema_version", [], |_| Ok(()))
                .map_err(fail)?;
        }
        Ok(db)
    }

    /// Creates a database in memory, for tests and for a union that is never stored.
    pub fn in_memory() -> Result<StateDb> {
        let path = Path::new(":memory:");
        let conn = Connection::open_in_memory()
            .map_err(|e| sql_error(path, "open a database in memory", e))?;
        let db = Self::configure(conn, path, JournalMode::Memory, Content::New)?;
        migrations::create(&db.lock(), path, migrations::MIGRATIONS)?;
        Ok(db)
    }

    /// Returns the path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all changes that were applied so far durable: they survive a power failure.
    ///
    /// Costs nothing if nothing was applied since the last call.
    pub fn sync(&self) -> Result<()> {
        self.unless_failed(|| self.sync_log())
    }

    /// Makes all further syncs fail.
    #[cfg(test)]
    pub(crate) fn fail_syncs(&self) {
        self.sync_failed.store(true, Ordering::Release);
    }

    /// Returns whether [`sync`](Self::sync) has nothing to do.
    pub(crate) fn is_synced(&self) -> bool {
        !self.sync_failed.load(Ordering::Acquire) && self.log_is_synced()
    }

    /// Syncs, unless a sync has failed before. A failure is final: the kernel drops the pages that
    /// it could not write, so a later success would prove nothing.
    fn unless_failed(&self, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(StateError::SyncFailed {
                path: self.path.clone(),
            });
        }
        let outcome = sync();
        if outcome.is_err() {
            self.sync_failed.store(true, Ordering::Release);
        }
        outcome
    }

    /// Closes the database and returns the errors that `drop` would ignore.
    pub fn close(self) -> Result<()> {
        self.checkpoint()?;
        let conn = self
            .conn
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        conn.close()
            .map_err(|(_, e)| sql_error(&self.path, "close the state database", e))
    }

    fn connect(path: &Path) -> Result<Connection> {
        // The mutex of StateDb serializes all use of the connection.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)
            .map_err(|e| sql_error(path, "open the state database", e))?;
        Self::distrust(&conn, path)?;
        Ok(conn)
    }

    /// Prevents SQLite from running code from the schema, which may not be written by envfs.
    fn distrust(conn: &Connection, path: &Path) -> Result<()> {
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
            .and_then(|_| conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true))
            .and_then(|_| conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false))
            .map(drop)
            .map_err(|e| sql_error(path, "configure the state database", e))
    }

    /// Sets the options of the connection.
    fn configure(
        conn: Connection,
        path: &Path,
        mode: JournalMode,
        content: Content,
    ) -> Result<StateDb> {
        let fail = |e| sql_error(path, "configure the state database", e);
        conn.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
        conn.set_prepared_statement_cache_capacity(64);
        if content == Content::New {
            conn.pragma_update(None, "page_size", PAGE_SIZE)
                .map_err(fail)?;
        }
        let (journal, synchronous) = match mode {
            // The journal file stays, with an empty header and its space on disk.
            JournalMode::Rollback => ("persist", "FULL"),
            JournalMode::Memory => ("memory", "OFF"),
        };
        let got: String = conn
            .pragma_update_and_check(None, "journal_mode", journal, |row| row.get(0))
            .map_err(fail)?;
        if !got.eq_ignore_ascii_case(journal) {
            return Err(StateError::Conflict {
                path: path.to_owned(),
                doing: "configure the state database",
                detail: format!("SQLite uses journal mode {got} instead of {journal}"),
            });
        }
        let synchronous = if durable::is_disabled() {
            "OFF"
        } else {
            synchronous
        };
        conn.pragma_update(None, "synchronous", synchronous)
            .map_err(fail)?;
        conn.pragma_update(None, "foreign_keys", true)
            .map_err(fail)?;
        // A journal that grew larger is truncated.
        conn.pragma_update(None, "journal_size_limit", JOURNAL_ROOM as i64)
            .map_err(fail)?;
        // Temporary tables need no disk space.
        conn.pragma_update(None, "temp_store", "memory")
            .map_err(fail)?;
        Ok(StateDb::of(conn, path, mode))
    }

    fn of(conn: Connection, path: &Path, mode: JournalMode) -> StateDb {
        StateDb {
            path: path.to_owned(),
            conn: Mutex::new(conn),
            mode,
            journal_patience: None,
            sync_failed: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            #[cfg(test)]
            failing: Mutex::default(),
            redo: OnceLock::new(),
            has_leftover: AtomicBool::new(false),
            rows_read: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction has rolled it back (see `Rollback`), so the connection is
        // usable.
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` as one transaction, which survives a power failure when this returns. After an
    /// error it is rolled back, unless the error is [`StateError::InDoubt`].
    fn write<T>(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let conn = self.lock();
        self.refuse_in_doubt()?;
        self.checkpoint_in(&conn)?;
        self.verified_transaction(&conn, doing, change)
    }

    /// Runs a transaction that must succeed on a full disk, for example because it frees space. It
    /// runs even if the redo log cannot be applied for lack of space, and uses the reserved space
    /// if needed. The change must not depend on rows that the redo log may change.
    fn write_without_room<T>(
        &self,
        doing: &'static str,
        change: impl Fn(&Connection) -> Result<T>,
    ) -> Result<T> {
        let conn = self.lock();
        self.refuse_in_doubt()?;
        match self.checkpoint_in(&conn) {
            Err(e) if !e.is_no_space() => return Err(e),
            _ => {}
        }
        match self.verified_transaction(&conn, doing, &change) {
            Err(e) if e.is_no_space() => self.verified_transaction(&conn, doing, |conn| {
                self.free_reserve_in(conn, doing)?;
                change(conn)
            }),
            done => done,
        }
    }

    fn transaction<T>(
        &self,
        conn: &Connection,
        doing: &'static str,
        change: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        self.begin(conn, doing)?;
        let _rollback = Rollback(conn);
        let value = change(conn)?;
        self.commit(conn, doing)?;
        Ok(value)
    }

    /// Runs `read` in a read transaction on the rows of layers, after a checkpoint.
    fn read_rows<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let conn = self.lock();
        self.checkpoint_in(&conn)?;
        let _rollback = self.begin_reading(&conn, doing)?;
        read(&conn)
    }

    /// Runs `read` in a read transaction on the other tables, which the redo log never changes.
    fn read<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let conn = self.lock();
        let _rollback = self.begin_reading(&conn, doing)?;
        read(&conn)
    }

    fn sql(&self, doing: &'static str, error: rusqlite::Error) -> StateError {
        sql_error(&self.path, doing, error)
    }

    fn conflict(&self, doing: &'static str, detail: impl Into<String>) -> StateError {
        StateError::Conflict {
            path: self.path.clone(),
            doing,
            detail: detail.into(),
        }
    }

    fn bad_row(&self, table: &'static str, what: impl Into<String>) -> StateError {
        StateError::BadRow {
            path: self.path.clone(),
            table,
            what: what.into(),
        }
    }
}

/// Returns the path of a file beside the database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// Rolls back a transaction that was not committed, also on a panic.
struct Rollback<'a>(&'a Connection);

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        // After some errors SQLite has already rolled back and is in autocommit mode.
        if !self.0.is_autocommit()
            && let Err(e) = self.0.execute_batch("ROLLBACK")
        {
            tracing::error!(error = %e, "cannot roll back a transaction");
        }
    }
}

/// Converts an error of SQLite.
fn sql_error(path: &Path, doing: &'static str, error: rusqlite::Error) -> StateError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StateError::NotADatabase {
            path,
            detail: "the file is not a SQLite database".to_owned(),
        },
        Some(ErrorCode::DatabaseCorrupt) => StateError::Corrupt {
            path,
            detail: format!("{error} ({doing})"),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StateError::Busy { path, doing }
        }
        _ if is_of_value(&error) => StateError::Corrupt {
            path,
            detail: format!("{error} ({doing})"),
        },
        _ => StateError::Sql { path, doing, error },
    }
}

/// Returns true if a row holds a value of the wrong type or range for its column.
fn is_of_value(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error,
    };
    matches!(
        error,
        FromSqlConversionFailure(..)
            | IntegralValueOutOfRange(..)
            | InvalidColumnType(..)
            | Utf8Error(..)
    )
}

/// Returns the seconds since 1970 by the system clock.
fn now() -> i64 {
    crate::object::Timestamp::now().secs
}
