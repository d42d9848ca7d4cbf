//! The state of an environment: one SQLite database, and the only code that names rusqlite.
//!
//! What the rows mean, and what is durable when, is told in `docs/state.md`. In short:
//!
//! - [`StateDb::apply`] is the hot path: one record of the redo log for each operation of a
//!   program, which SQLite gets later with many others. It survives the death of this process at once, and power loss after [`StateDb::sync`].
//! - Whatever *publishes* ([`rotate`](StateDb::rotate), [`publish_commit`](StateDb::publish_commit),
//!   [`discard_all`](StateDb::discard_all), [`rollback_to`](StateDb::rollback_to) and the
//!   clean flag) is one transaction, and durable when it returns. An error means that it has not happened
//!   (`doubt`).
//!
//! Lock order: a [`StateDb`] has one lock around its connection and, taken after it or alone, one
//! around its redo log; both are taken last and held only for one transaction or one record. No
//! callback runs under them.

mod doubt;
mod error;
mod history;
mod id_map;
mod look;
mod meta;
mod migrations;
mod redo;
mod rows;
mod settle;
mod stack;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::sys::durable::{self, sync_data, sync_name};
use crate::sys::medium::network_file_system;

pub use error::{Result, StateError};
pub use history::{
    ImageId, ImageRow, NewImage, NewRevision, Revision, RevisionId, RevisionKind, Tag,
};
pub use id_map::{BadIdMap, IdMap, IdRun};
pub use meta::{FileIds, SkippedIds};
pub use rows::{DataPlace, InodeRow, LayerRows, RowChange};
pub use stack::{
    InitEnvironment, Initialised, Layer, LayerId, LayerRole, PublishCommit, RolledBack, StackLayer,
    StackPart,
};

/// The page size of new databases, in bytes: what disks write whole.
pub const PAGE_SIZE: u32 = 4096;

/// How long we wait for another process that is in the middle of a transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// Pages in the log after which SQLite moves them into the database (16 MiB): each time costs
/// two syncs on the hot path, so not too often.
const CHECKPOINT_PAGES: u32 = 4096;

/// How SQLite keeps its journal here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JournalMode {
    /// Write-ahead log, for local file systems.
    Wal,
    /// Rollback journal with a sync in each transaction, for network file systems.
    Rollback,
    /// None: a database in memory.
    Memory,
}

/// What must hold when a transaction returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    /// It survives the death of this process; power loss only after the next sync.
    Process,
    /// It survives power loss, with everything before it.
    Power,
}

/// The database of one environment. Shared by reference between threads.
#[derive(Debug)]
pub struct StateDb {
    path: PathBuf,
    conn: Mutex<Connection>,
    mode: JournalMode,
    /// How long a read waits for a journal to go, where nothing may be written.
    looks_for: Option<Duration>,
    /// Our own descriptor of the log, for `sync`. The log is only removed by the last
    /// connection that closes, so it stays the right file as long as we are open. (A descriptor
    /// of the database itself must never be opened: closing it would drop SQLite's locks.)
    wal: OnceLock<File>,
    /// Count of committed transactions that wrote.
    written: AtomicU64,
    /// The count up to which all is known to be durable.
    synced: AtomicU64,
    sync_failed: AtomicBool,
    /// Whether it is not known if a durable transaction has happened, so that nothing may come after it.
    in_doubt: AtomicBool,
    #[cfg(test)]
    failing: Mutex<std::collections::VecDeque<doubt::Fails>>,
    /// Changes of rows go through it, once it is kept.
    redo: OnceLock<settle::Log>,
}

impl StateDb {
    /// Creates the database at `path`, which must not exist, with an empty schema.
    ///
    /// The directory entry is not made durable here: an environment is built in a temporary
    /// directory that is synced as a whole before it gets its name.
    pub fn create(path: &Path) -> Result<StateDb> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => StateError::Exists {
                    path: path.to_owned(),
                },
                _ => StateError::Io {
                    path: path.to_owned(),
                    doing: "create the state database",
                    source,
                },
            })?;
        let mode = Self::choose_mode(path)?;
        let conn = Self::connect(path)?;
        let db = Self::configure(conn, path, mode, true)?;
        migrations::create(&db.lock(), path, migrations::MIGRATIONS)?;
        Ok(db)
    }

    /// Opens the database at `path`, upgrading an older schema.
    pub fn open(path: &Path) -> Result<StateDb> {
        Self::open_with(path, migrations::MIGRATIONS)
    }

    /// Opens the database as [`StateDb::open`] does, for a look: closing it leaves SQLite's log as it
    /// is, for whoever opens it next. Emptying it would cost the three syncs that most commands need
    /// not wait for.
    pub fn open_to_look(path: &Path) -> Result<StateDb> {
        let db = Self::open(path)?;
        db.lock()
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(|e| sql_error(path, "configure the state database", e))?;
        Ok(db)
    }

    fn open_with(path: &Path, migrations: &[&str]) -> Result<StateDb> {
        match std::fs::metadata(path) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Missing {
                    path: path.to_owned(),
                });
            }
            Err(source) => {
                return Err(StateError::Io {
                    path: path.to_owned(),
                    doing: "open the state database",
                    source,
                });
            }
        }
        let mode = Self::choose_mode(path)?;
        let conn = Self::connect(path)?;
        conn.busy_timeout(BUSY_TIMEOUT)
            .map_err(|e| sql_error(path, "open the state database", e))?;
        // Before anything is written to it: it may not be ours, or newer than we are.
        migrations::upgrade(&conn, path, migrations)?;
        Self::configure(conn, path, mode, false)
    }

    /// Makes a database in memory, for tests and for a union that is never to be kept.
    pub fn in_memory() -> Result<StateDb> {
        let path = Path::new(":memory:");
        let conn = Connection::open_in_memory()
            .map_err(|e| sql_error(path, "open a database in memory", e))?;
        let db = Self::configure(conn, path, JournalMode::Memory, true)?;
        migrations::create(&db.lock(), path, migrations::MIGRATIONS)?;
        Ok(db)
    }

    /// Returns the path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all that was applied so far durable: it survives power loss when this returns.
    ///
    /// Free when nothing was applied since the last time.
    pub fn sync(&self) -> Result<()> {
        self.unless_failed(|| {
            self.sync_log()?;
            self.sync_database()
        })
    }

    /// Syncs, unless that has failed before. A failure is final: the kernel forgets what it could
    /// not write, so a later success would prove nothing.
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

    /// Makes what SQLite has durable. On a network file system every transaction is by itself.
    fn sync_database(&self) -> Result<()> {
        let written = self.written.load(Ordering::Acquire);
        if self.mode != JournalMode::Wal || self.synced.load(Ordering::Acquire) >= written {
            return Ok(());
        }
        // Frames that a checkpoint has meanwhile moved into the database were synced there by
        // SQLite before it let the log be overwritten, so the log is all that needs a sync.
        let outcome = self.wal_file().and_then(sync_data);
        outcome.map_err(|source| StateError::Io {
            path: self.path.clone(),
            doing: "sync the log of the state database",
            source,
        })?;
        self.synced.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }

    /// Closes the database, reporting what `drop` would swallow.
    pub fn close(self) -> Result<()> {
        self.settle()?;
        let conn = self
            .conn
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        conn.close()
            .map_err(|(_, e)| sql_error(&self.path, "close the state database", e))
    }

    fn choose_mode(path: &Path) -> Result<JournalMode> {
        let network = network_file_system(path).map_err(|source| StateError::Io {
            path: path.to_owned(),
            doing: "ask for the file system of the state database",
            source,
        })?;
        Ok(match network {
            Some(_) => JournalMode::Rollback,
            None => JournalMode::Wal,
        })
    }

    fn connect(path: &Path) -> Result<Connection> {
        // The mutex of StateDb serialises all use, so SQLite need not.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(path, flags)
            .map_err(|e| sql_error(path, "open the state database", e))
    }

    /// Sets everything that belongs to the connection rather than to the database.
    fn configure(conn: Connection, path: &Path, mode: JournalMode, new: bool) -> Result<StateDb> {
        let fail = |e| sql_error(path, "configure the state database", e);
        conn.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
        conn.set_prepared_statement_cache_capacity(64);
        if new {
            conn.pragma_update(None, "page_size", PAGE_SIZE)
                .map_err(fail)?;
        }
        let (journal, synchronous) = match mode {
            JournalMode::Wal => ("wal", "NORMAL"),
            // EXTRA also syncs the directory when the journal is removed: without, the journal
            // may be back after power loss and undo a transaction that was over.
            JournalMode::Rollback => ("delete", "EXTRA"),
            JournalMode::Memory => ("memory", "OFF"),
        };
        let got: String = conn
            .pragma_update_and_check(None, "journal_mode", journal, |row| row.get(0))
            .map_err(fail)?;
        if !got.eq_ignore_ascii_case(journal) {
            return Err(StateError::Conflict {
                path: path.to_owned(),
                doing: "configure the state database",
                detail: format!("SQLite keeps journal mode {got} where {journal} is needed"),
            });
        }
        let synchronous = if durable::is_off() {
            "OFF"
        } else {
            synchronous
        };
        conn.pragma_update(None, "synchronous", synchronous)
            .map_err(fail)?;
        conn.pragma_update(None, "foreign_keys", true)
            .map_err(fail)?;
        conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
            .map_err(fail)?;
        // A log that once grew large is cut back when it is emptied.
        conn.pragma_update(
            None,
            "journal_size_limit",
            2 * i64::from(CHECKPOINT_PAGES) * i64::from(PAGE_SIZE),
        )
        .map_err(fail)?;
        // Values in the database are nobody's code: no function or view may run from a schema
        // that somebody else wrote.
        conn.pragma_update(None, "trusted_schema", false)
            .map_err(fail)?;
        Ok(StateDb::of(conn, path, mode))
    }

    fn of(conn: Connection, path: &Path, mode: JournalMode) -> StateDb {
        StateDb {
            path: path.to_owned(),
            conn: Mutex::new(conn),
            mode,
            looks_for: None,
            wal: OnceLock::new(),
            // What an earlier process wrote may still be in the page cache alone.
            written: AtomicU64::new(1),
            synced: AtomicU64::new(0),
            sync_failed: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            #[cfg(test)]
            failing: Mutex::default(),
            redo: OnceLock::new(),
        }
    }

    fn wal_file(&self) -> io::Result<&File> {
        if let Some(file) = self.wal.get() {
            return Ok(file);
        }
        let mut name = OsString::from(&self.path);
        name.push("-wal");
        let file = File::open(PathBuf::from(name))?;
        // The log may be new: its name must be durable too. SQLite does this at its own first
        // sync, which may come later than ours.
        sync_name(&self.path)?;
        Ok(self.wal.get_or_init(|| file))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction has rolled it back on the way (see `Rollback`), so the
        // connection is sound.
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` as one transaction that happens whole or not at all. Of one that is to survive power
    /// loss it is certain whether it has happened, unless the error is [`StateError::InDoubt`].
    fn write<T>(
        &self,
        durability: Durability,
        doing: &'static str,
        change: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let conn = self.lock();
        self.unless_in_doubt()?;
        self.settle_in(&conn)?;
        let raise =
            durability == Durability::Power && self.mode == JournalMode::Wal && !durable::is_off();
        if raise {
            // SQLite makes the name of the log durable only if it made the log itself; it may
            // be from a process that was killed before its first sync.
            match self.wal_file() {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::Io {
                        path: self.path.clone(),
                        doing: "open the log of the state database",
                        source,
                    });
                }
                _ => {}
            }
            // With FULL, the commit syncs the whole log: this transaction and all before it.
            conn.pragma_update(None, "synchronous", "FULL")
                .map_err(|e| self.sql(doing, e))?;
        }
        let outcome = match durability {
            Durability::Process => self.transaction(&conn, doing, change),
            Durability::Power => self.certain_transaction(&conn, doing, change),
        };
        if raise {
            let lowered = conn.pragma_update(None, "synchronous", "NORMAL");
            if let Err(e) = lowered {
                // Harmless but slow: every later transaction syncs.
                tracing::warn!(path = %self.path.display(), error = %e, "synchronous stays FULL");
            }
        }
        if outcome.is_ok() {
            let written = self.written.fetch_add(1, Ordering::AcqRel) + 1;
            if raise && !self.sync_failed.load(Ordering::Acquire) {
                self.synced.fetch_max(written, Ordering::AcqRel);
            }
        }
        outcome
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

    /// Runs `read` on one unchanging view of the database.
    fn read<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let conn = self.lock();
        self.settle_in(&conn)?;
        let _rollback = self.begin_reading(&conn, doing)?;
        read(&conn)
    }

    fn sql(&self, doing: &'static str, source: rusqlite::Error) -> StateError {
        sql_error(&self.path, doing, source)
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

/// Ends a transaction that was not committed, on every way out.
struct Rollback<'a>(&'a Connection);

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        // SQLite has rolled back by itself after some errors; then it is in autocommit again.
        if !self.0.is_autocommit()
            && let Err(e) = self.0.execute_batch("ROLLBACK")
        {
            tracing::error!(error = %e, "a transaction could not be rolled back");
        }
    }
}

/// Sorts an error of SQLite into ours.
fn sql_error(path: &Path, doing: &'static str, source: rusqlite::Error) -> StateError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StateError::NotADatabase {
            path,
            detail: "the file is no SQLite database".to_owned(),
        },
        Some(ErrorCode::DatabaseCorrupt) => StateError::Corrupt {
            path,
            detail: format!("{source} ({doing})"),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StateError::Busy { path, doing }
        }
        _ => StateError::Sql {
            path,
            doing,
            source,
        },
    }
}

/// Seconds since 1970 by the system clock.
fn now() -> i64 {
    crate::object::Timestamp::now().secs
}
