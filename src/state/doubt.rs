//! Transactions whose COMMIT fails.
//!
//! An error of COMMIT does not mean that the transaction was rolled back: it is committed once the
//! header of the journal is empty, even if that could not be made durable. A caller that assumed a
//! rollback would remove files that the database refers to.
//!
//! So every transaction increments a serial number, and when its COMMIT fails, another transaction
//! reads that number. It begins after the first has ended, so a later crash cannot contradict what
//! it read. If it fails as well, nothing more is written until the database is reopened, which
//! settles the question.

use std::sync::atomic::Ordering;

use rusqlite::Connection;
#[cfg(test)]
use rusqlite::ffi;

use super::error::{Result, StateError};
use super::{Rollback, StateDb};

/// How a test makes a COMMIT fail.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommitFault {
    /// Before it is committed.
    Before,
    /// Before it is committed, with a full disk.
    Full,
    /// After it is committed.
    After,
}

impl StateDb {
    /// Returns an error if an earlier transaction is in doubt.
    pub(super) fn refuse_in_doubt(&self) -> Result<()> {
        match self.in_doubt.load(Ordering::Acquire) {
            true => Err(StateError::InDoubt {
                path: self.path.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Runs `change` as a transaction. It is committed if this returns a value, and rolled back if
    /// this returns an error other than [`StateError::InDoubt`].
    pub(super) fn verified_transaction<T>(
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
                Err(e) if has_certainly_failed(&e) => return Err(e),
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
                tracing::warn!("the transaction is committed in spite of an error: {error}");
                Ok(value)
            }
            Ok(_) => Err(error),
            Err(e) => {
                tracing::error!(
                    "cannot tell whether a transaction is committed; writing no more: {error}; {e}"
                );
                self.in_doubt.store(true, Ordering::Release);
                self.refuse_in_doubt().and(Err(error))
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
            if fails == CommitFault::After {
                self.run(conn, "COMMIT", doing)?;
            }
            let error = ffi::Error::new(match fails {
                CommitFault::Full => ffi::SQLITE_FULL,
                CommitFault::Before | CommitFault::After => ffi::SQLITE_IOERR_FSYNC,
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

/// Returns true if a COMMIT that failed in this way is certainly rolled back: the disk was full
/// before the last step, or the COMMIT never began to write.
fn has_certainly_failed(error: &StateError) -> bool {
    matches!(error, StateError::Busy { .. }) || error.is_no_space() || error.is_read_only()
}
