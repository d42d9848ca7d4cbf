//! Transactions whose COMMIT fails.
//!
//! An error of COMMIT does not say that nothing has happened: the transaction has happened once the header of
//! the journal is empty, even if that could not be made durable. A caller that takes it for undone would
//! remove files that the database names.
//!
//! So every transaction counts up a number, and when its COMMIT fails another transaction looks which number
//! is there. It begins after the first is over, so a crash shows what it saw. If that fails as well, nothing
//! more is written until the database is opened anew, which sees what is true.

use std::sync::atomic::Ordering;

use rusqlite::Connection;
#[cfg(test)]
use rusqlite::ffi;

use super::error::{Result, StateError};
use super::{Rollback, StateDb};

/// What a test lets a COMMIT come to, which then fails.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fails {
    /// Nothing has happened.
    Before,
    /// Nothing has happened, for want of room.
    Full,
    /// It has happened.
    After,
}

impl StateDb {
    /// Refuses while it is not known what the database holds.
    pub(super) fn unless_in_doubt(&self) -> Result<()> {
        match self.in_doubt.load(Ordering::Acquire) {
            true => Err(StateError::InDoubt {
                path: self.path.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Runs `change` as a transaction that has happened if this returns its value, and has not if it
    /// returns an error other than [`StateError::InDoubt`].
    pub(super) fn certain_transaction<T>(
        &self,
        conn: &Connection,
        doing: &'static str,
        change: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let (value, serial, error) = {
            self.begin(conn, doing)?;
            let _rollback = Rollback(conn);
            let value = change(conn)?;
            let serial = self.serial_in(conn, doing)? + 1;
            self.set_serial_in(conn, serial, doing)?;
            match self.commit(conn, doing) {
                Ok(()) => return Ok(value),
                Err(e) if has_surely_failed(&e) => return Err(e),
                Err(e) => (value, serial, e),
            }
        };
        let found = self.transaction(conn, doing, |conn| {
            let found = self.serial_in(conn, doing)?;
            self.set_serial_in(conn, serial + 1, doing)?;
            Ok(found)
        });
        match found {
            Ok(found) if found == serial => {
                tracing::warn!("has happened all the same: {error}");
                Ok(value)
            }
            Ok(_) => Err(error),
            Err(e) => {
                tracing::error!("nothing more is written, after {error}: {e}");
                self.in_doubt.store(true, Ordering::Release);
                self.unless_in_doubt().and(Err(error))
            }
        }
    }

    pub(super) fn begin(&self, conn: &Connection, doing: &'static str) -> Result<()> {
        self.run(conn, "BEGIN IMMEDIATE", doing)
    }

    pub(super) fn commit(&self, conn: &Connection, doing: &'static str) -> Result<()> {
        #[cfg(test)]
        if let Some(fails) = self
            .failing
            .lock()
            .ok()
            .and_then(|mut next| next.pop_front())
        {
            if fails == Fails::After {
                self.run(conn, "COMMIT", doing)?;
            }
            let error = ffi::Error::new(match fails {
                Fails::Full => ffi::SQLITE_FULL,
                Fails::Before | Fails::After => ffi::SQLITE_IOERR_FSYNC,
            });
            return Err(self.sql(doing, rusqlite::Error::SqliteFailure(error, None)));
        }
        self.run(conn, "COMMIT", doing)
    }

    pub(super) fn run(&self, conn: &Connection, sql: &str, doing: &'static str) -> Result<()> {
        conn.prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .map_err(|e| self.sql(doing, e))
    }
}

/// Returns true if a COMMIT that failed in this way has not happened and never will have: there was no
/// room for what says that it is whole, which is written last, or it never began to write.
fn has_surely_failed(error: &StateError) -> bool {
    matches!(error, StateError::Busy { .. }) || error.is_no_space() || error.is_read_only()
}
