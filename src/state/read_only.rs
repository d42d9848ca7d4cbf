//! Read-only access, which changes neither the database nor the files beside it.
//!
//! The journal of an interrupted transaction looks like that of one in progress on another host,
//! where SQLite's locks may not reach. While a process holds the environment's lock, a reader
//! leaves its journal alone and waits for the transaction to end. Otherwise the first reader rolls
//! it back.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, ffi};

use super::error::{Result, StateError};
use super::{BUSY_TIMEOUT, JournalMode, Rollback, StateDb, files, migrations, sql_error};

/// How long to wait before checking for the journal again.
const PAUSE: Duration = Duration::from_millis(20);

/// The state of the environment's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// A process holds it, and may have the database open.
    Held,
    /// No process holds it.
    Free,
}

impl StateDb {
    /// Opens the database for reading. If no process holds the environment's lock, an interrupted
    /// transaction is rolled back and an older schema is upgraded first.
    pub fn open_read_only(path: &Path, lock: LockState) -> Result<StateDb> {
        if lock == LockState::Held {
            return Self::open_file_read_only(path, BUSY_TIMEOUT);
        }
        match Self::open_file_read_only(path, Duration::ZERO) {
            Ok(db) if db.is_outdated()? => {
                drop(db);
                Self::open(path).or_else(|_| Self::open_file_read_only(path, BUSY_TIMEOUT))
            }
            Err(e) if e.is_read_only() || matches!(e, StateError::Busy { .. }) => Self::open(path),
            opened => opened,
        }
    }

    /// Returns true if the schema is too old to be read, or the database has a write-ahead log.
    fn is_outdated(&self) -> Result<bool> {
        let conn = self.lock();
        let journal: String = conn
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .map_err(|e| self.sql("read the header of the state database", e))?;
        Ok(journal == "wal" || !migrations::is_readable(&conn, &self.path)?)
    }

    pub(super) fn open_file_read_only(path: &Path, patience: Duration) -> Result<StateDb> {
        files::check(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)
            .and_then(|conn| conn.busy_timeout(BUSY_TIMEOUT).map(|()| conn))
            .map_err(|e| sql_error(path, "open the state database", e))?;
        Self::distrust(&conn, path)?;
        let db = StateDb {
            journal_patience: Some(patience),
            ..StateDb::of(conn, path, JournalMode::Rollback)
        };
        {
            let conn = db.lock();
            let _reading = db.begin_reading(&conn, "read the header of the state database")?;
            migrations::is_readable(&conn, path)?;
        }
        Ok(db)
    }

    /// Begins a read transaction. With read-only access, waits while a journal blocks it.
    pub(super) fn begin_reading<'a>(
        &self,
        conn: &'a Connection,
        doing: &'static str,
    ) -> Result<Rollback<'a>> {
        let began = Instant::now();
        loop {
            self.run(conn, "BEGIN", doing)?;
            let reading = Rollback(conn);
            let Some(patience) = self.journal_patience else {
                return Ok(reading);
            };
            // SQLite checks for a journal at the first read.
            match conn.query_row("PRAGMA schema_version", [], |_| Ok(())) {
                Ok(()) => return Ok(reading),
                Err(e) if !is_journal(&e) => return Err(self.sql(doing, e)),
                Err(_) if began.elapsed() < patience => {}
                Err(_) => {
                    return Err(StateError::Busy {
                        path: self.path.clone(),
                        doing: "a change is in progress on another host or was interrupted there; \
                                try again, or unmount it there",
                    });
                }
            }
            drop(reading);
            std::thread::sleep(PAUSE);
        }
    }
}

/// Returns true if there is a journal that only a writer could roll back.
fn is_journal(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(ffi::SQLITE_READONLY_ROLLBACK)
}
