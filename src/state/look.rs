//! Looking at a database that somebody else has open.
//!
//! On a network file system SQLite's locks may not reach another host. There the journal of a transaction
//! that is under way looks like one that a crash has left, and whoever may write rolls it back, under the
//! writer's feet. So whoever only looks may not write there; he waits until the journal is gone.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, ffi};

use super::error::{Result, StateError};
use super::{BUSY_TIMEOUT, JournalMode, Rollback, StateDb, migrations, sql_error};

/// How long to wait before the journal is looked for again.
const PAUSE: Duration = Duration::from_millis(20);

impl StateDb {
    /// Opens the database for a look while somebody holds the environment's lock, who has upgraded it.
    pub fn open_beside(path: &std::path::Path) -> Result<StateDb> {
        match path.exists() && Self::choose_mode(path)? == JournalMode::Rollback {
            true => Self::look_only(path, BUSY_TIMEOUT),
            false => Self::open_to_look(path),
        }
    }

    pub(super) fn look_only(path: &std::path::Path, patience: Duration) -> Result<StateDb> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)
            .and_then(|conn| conn.busy_timeout(patience).map(|()| conn))
            .map_err(|e| sql_error(path, "open the state database", e))?;
        let db = StateDb {
            looks_for: Some(patience),
            ..StateDb::of(conn, path, JournalMode::Rollback)
        };
        {
            let conn = db.lock();
            let _reading = db.begin_reading(&conn, "read the header of the state database")?;
            migrations::upgrade(&conn, path, migrations::MIGRATIONS)?;
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
