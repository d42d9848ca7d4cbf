//! The counters that assign the ids of objects, images and layers.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, params};

use super::error::Result;
use super::{FileIds, ImageId, LayerId, StateDb};

/// The first id of a new object: 0 is not an object, and 1 is the root.
const FIRST_INO: u64 = 2;

impl StateDb {
    /// Reserves `count` object ids that were never used before.
    ///
    /// Reserved ids that are not used are skipped. The counter is committed before any row that
    /// uses an id, so it is durable before them.
    pub fn reserve_inos(&self, count: u64) -> Result<Range<u64>> {
        const DOING: &str = "reserve object ids";
        self.write(DOING, |conn| {
            let taken = self.take(conn, "ino", count, DOING)?;
            match self.end_of_trial_in(conn, DOING)? {
                Some(end) if taken.end > end => {
                    Err(self.conflict(DOING, "the trial has used all of its ids"))
                }
                _ => Ok(taken),
            }
        })
    }

    /// Returns the lowest id that the next new object can have.
    pub fn next_ino(&self) -> Result<u64> {
        const DOING: &str = "read the counter of object ids";
        self.read_rows(DOING, |conn| {
            let next = counter(conn, "ino").map_err(|e| self.sql(DOING, e))?;
            Ok(next.unwrap_or(FIRST_INO))
        })
    }

    /// Returns the ids of the next image and the next layer.
    pub fn next_ids(&self) -> Result<FileIds> {
        const DOING: &str = "read the counters of images and layers";
        self.read(DOING, |conn| self.next_ids_in(conn, DOING))
    }

    pub(super) fn next_ids_in(&self, conn: &Connection, doing: &'static str) -> Result<FileIds> {
        let next = |name| match counter(conn, name) {
            Ok(next) => Ok(next.map_or(1, |next| next as i64)),
            Err(e) => Err(self.sql(doing, e)),
        };
        Ok(FileIds {
            images: next("image")?,
            layers: next("layer")?,
        })
    }

    /// Reserves the id of an image before it is written. Durable: no two files have the same id.
    pub fn reserve_image(&self) -> Result<ImageId> {
        const DOING: &str = "reserve the id of an image";
        self.write(DOING, |conn| {
            Ok(ImageId(self.take(conn, "image", 1, DOING)?.start as i64))
        })
    }

    /// Reserves the id of an upper layer. Its directory is created next, and then the transaction
    /// that puts it on the stack. Durable: no two directories have the same id.
    pub fn reserve_layer(&self) -> Result<LayerId> {
        const DOING: &str = "reserve the id of a layer";
        self.write_without_room(DOING, |conn| self.take_layer(conn, DOING))
    }

    pub(super) fn take_layer(&self, conn: &Connection, doing: &'static str) -> Result<LayerId> {
        Ok(LayerId(self.take(conn, "layer", 1, doing)?.start as i64))
    }

    pub(super) fn take(
        &self,
        conn: &Connection,
        name: &'static str,
        count: u64,
        doing: &'static str,
    ) -> Result<Range<u64>> {
        let next = counter(conn, name).map_err(|e| self.sql(doing, e))?;
        let start = next.unwrap_or(if name == "ino" { FIRST_INO } else { 1 });
        let end = start
            .checked_add(count)
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or_else(|| self.conflict(doing, "the counter is exhausted"))?;
        set_counter(conn, name, end).map_err(|e| self.sql(doing, e))?;
        Ok(start..end)
    }

    pub(super) fn raise(
        &self,
        conn: &Connection,
        name: &'static str,
        at_least: u64,
        doing: &'static str,
    ) -> Result<()> {
        if at_least > i64::MAX as u64 {
            return Err(self.conflict(doing, "ids beyond 63 bits"));
        }
        let next = counter(conn, name).map_err(|e| self.sql(doing, e))?;
        let floor = if name == "ino" { FIRST_INO } else { 1 };
        let wanted = at_least.max(next.unwrap_or(floor));
        if next != Some(wanted) {
            set_counter(conn, name, wanted).map_err(|e| self.sql(doing, e))?;
        }
        Ok(())
    }
}

fn counter(conn: &Connection, name: &str) -> rusqlite::Result<Option<u64>> {
    conn.prepare_cached("SELECT next FROM counter WHERE name = ?1")?
        .query_row([name], |row| row.get::<_, i64>(0).map(|next| next as u64))
        .optional()
}

pub(super) fn set_counter(conn: &Connection, name: &str, next: u64) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR REPLACE INTO counter (name, next) VALUES (?1, ?2)")?
        .execute(params![name, next as i64])?;
    Ok(())
}
