//! Looking at a database, which changes nothing: neither the database nor what lies beside it.
//!
//! The journal of a transaction that was cut off looks like one that is under way on another host, where
//! SQLite's locks may not reach. While a process holds the environment's lock, its journal is left alone: a
//! look waits until it is gone. Otherwise it is rolled back first, which the first look does.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, ffi};

use super::error::{Result, StateError};
use super::{BUSY_TIMEOUT, JournalMode, Rollback, StateDb, files, migrations, sql_error};

/// How long to wait before the journal is looked for again.
const PAUSE: Duration = Duration::from_millis(20);

impl StateDb {
    /// Opens the database for a look. `is_held` says whether a process holds the environment's lock.
    pub fn open_to_look(path: &Path, is_held: bool) -> Result<StateDb> {
        if is_held {
            return Self::look_only(path, BUSY_TIMEOUT);
        }
        // To be written to: a transaction was cut off and is to be rolled back, or an older envfs made it.
        match Self::look_only(path, Duration::ZERO) {
            Ok(db) if db.is_outdated()? => {
                drop(db);
                Self::open(path).or_else(|_| Self::look_only(path, BUSY_TIMEOUT))
            }
            Err(e) if e.is_read_only() || matches!(e, StateError::Busy { .. }) => Self::open(path),
            looked => looked,
        }
    }

    /// Returns whether an older envfs made the database, or kept a write-ahead log of it.
    fn is_outdated(&self) -> Result<bool> {
        let conn = self.lock();
        let journal: String = conn
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .map_err(|e| self.sql("read the header of the state database", e))?;
        Ok(journal == "wal" || !migrations::can_be_looked_at(&conn, &self.path)?)
    }

    pub(super) fn look_only(path: &Path, patience: Duration) -> Result<StateDb> {
        files::check(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)
            .and_then(|conn| conn.busy_timeout(BUSY_TIMEOUT).map(|()| conn))
            .map_err(|e| sql_error(path, "open the state database", e))?;
        Self::distrust(&conn, path)?;
        let db = StateDb {
            looks_for: Some(patience),
            ..StateDb::of(conn, path, JournalMode::Rollback)
        };
        {
            let conn = db.lock();
            let _reading = db.begin_reading(&conn, "read the header of the state database")?;
            migrations::can_be_looked_at(&conn, path)?;
        }
        Ok(db)
    }

    /// Begins a transaction that only reads.
    pub(super) fn begin_reading<'a>(
        &self,
        conn: &'a Connection,
        doing: &'static str,
    ) -> Result<Rollback<'a>> {
        let began = Instant::now();
        loop {
            self.run(conn, "BEGIN", doing)?;
            let reading = Rollback(conn);
            let Some(patience) = self.looks_for else {
                return Ok(reading);
            };
            // The first read is what meets a journal.
            match conn.query_row("PRAGMA schema_version", [], |_| Ok(())) {
                Ok(()) => return Ok(reading),
                Err(e) if !is_journal(&e) => return Err(self.sql(doing, e)),
                Err(_) if began.elapsed() < patience => {}
                Err(_) => {
                    return Err(StateError::Busy {
                        path: self.path.clone(),
                        doing: "a change is under way on another host or was cut off there; \
                                try again, or unmount it there",
                    });
                }
            }
            drop(reading);
            std::thread::sleep(PAUSE);
        }
    }
}

/// Returns true if there is a journal that only who may write could roll back.
fn is_journal(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(ffi::SQLITE_READONLY_ROLLBACK)
}
