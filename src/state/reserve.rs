//! Room that is kept for a full disk, so that one can get out of it: changes can be discarded and garbage
//! collected although the database could not grow.
//!
//! - The journal keeps [`JOURNAL_ROOM`] bytes also when it is empty.
//! - The one row of the table `reserve` takes some pages of the database. A transaction that must not fail
//!   for want of room removes it, and has these pages for itself.
//!
//! Both are restored when there is room again.

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
    /// Lets a transaction have the room that is kept in the database.
    pub(super) fn give_up_reserve_in(&self, conn: &Connection, doing: &'static str) -> Result<()> {
        conn.execute("DELETE FROM reserve", [])
            .map(drop)
            .map_err(|e| self.sql(doing, e))
    }

    /// Restores what is missing of the room that is kept. Where there is none, it stays away.
    pub fn restore_reserve(&self) {
        const DOING: &str = "keep room in the database";
        if self.mode == JournalMode::Memory {
            return;
        }
        if let Err(e) = self.reserve_journal() {
            tracing::debug!("no room is kept for the journal: {e}");
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
                tracing::debug!("no room is kept in the database: {e}");
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
        // Zeros behind a journal are none of it, and an empty header says that there is none.
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
