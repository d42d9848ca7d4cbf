//! Space reserved for a full disk, so that changes can be discarded and garbage collected although
//! the database cannot grow.
//!
//! - The journal keeps [`JOURNAL_ROOM`] bytes even when it is empty.
//! - The row of the table `reserve` occupies some pages of the database. A transaction that must
//!   not fail on a full disk deletes it and uses these pages.
//!
//! Both are restored when there is space again.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use rusqlite::Connection;

use super::error::Result;
use super::{JOURNAL_ROOM, JournalMode, StateDb, beside};
use crate::sys::durable::sync_name;
use crate::sys::regular;

impl StateDb {
    /// Frees the space that is reserved in the database for the current transaction.
    pub(super) fn free_reserve_in(&self, conn: &Connection, doing: &'static str) -> Result<()> {
        conn.execute("DELETE FROM reserve", [])
            .map(drop)
            .map_err(|e| self.sql(doing, e))
    }

    /// Restores the reserved space where the disk has room for it.
    pub fn restore_reserve(&self) {
        const DOING: &str = "reserve space in the database";
        if self.mode == JournalMode::Memory {
            return;
        }
        if let Err(e) = self.reserve_journal() {
            tracing::debug!("no space reserved for the journal: {e}");
        }
        let is_there = self.read(DOING, |conn| {
            conn.query_row("SELECT EXISTS (SELECT 1 FROM reserve)", [], |row| {
                row.get(0)
            })
            .map_err(|e| self.sql(DOING, e))
        });
        if matches!(is_there, Ok(false)) {
            let restored = self.write(DOING, |conn| {
                conn.execute("INSERT INTO reserve VALUES (zeroblob(65536))", [])
                    .map_err(|e| self.sql(DOING, e))
            });
            if let Err(e) = restored {
                tracing::debug!("no space reserved in the database: {e}");
            }
        }
    }

    fn reserve_journal(&self) -> io::Result<()> {
        let path = beside(&self.path, "-journal");
        let conn = self.lock();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let file = regular::open_with(&path, &options)?;
        let len = file.metadata()?.len();
        if len >= JOURNAL_ROOM {
            return Ok(());
        }
        // SQLite ignores zeros after a journal, and an empty header means no journal.
        match fallocate(
            &file,
            FallocateFlags::empty(),
            len as i64,
            (JOURNAL_ROOM - len) as i64,
        ) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                file.write_all_at(&vec![0; (JOURNAL_ROOM - len) as usize], len)?;
            }
            done => done?,
        }
        drop(conn);
        sync_name(&path)
    }
}
