//! Facts of the environment, counters, the clean flag, and the check of it all.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, params};

use super::error::Result;
use super::{ImageId, LayerId, StateDb, migrations, valid};

const PREFIX: &str = "prefix";
const CLEAN: &str = "clean";
/// Which ids of images and layers were not given here, though something has them: first and end of the
/// images, first and end of the layers, as decimal text.
const SKIPPED: &str = "skipped";

/// An id of images and one of layers: what has names on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIds {
    /// Of images.
    pub images: i64,
    /// Of layers.
    pub layers: i64,
}

/// Ids that somebody else has given, who had this environment in a later state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkippedIds {
    /// Of images.
    pub images: Range<i64>,
    /// Of layers.
    pub layers: Range<i64>,
}

impl StateDb {
    /// Returns a fact by its key.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        const DOING: &str = "read a fact of the environment";
        self.read(DOING, |conn| self.meta_in(conn, key, DOING))
    }

    pub(super) fn meta_in(
        &self,
        conn: &Connection,
        key: &str,
        doing: &'static str,
    ) -> Result<Option<Vec<u8>>> {
        conn.prepare_cached("SELECT value FROM meta WHERE key = ?1")
            .and_then(|mut s| s.query_row([key], |row| row.get(0)).optional())
            .map_err(|e| self.sql(doing, e))
    }

    /// Stores a fact; durable when this returns.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<()> {
        const DOING: &str = "store a fact of the environment";
        self.write_without_room(DOING, |conn| self.set_meta_in(conn, key, value, DOING))
    }

    pub(super) fn set_meta_in(
        &self,
        conn: &Connection,
        key: &str,
        value: &[u8],
        doing: &'static str,
    ) -> Result<()> {
        conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(params![key, value]))
            .map_err(|e| self.sql(doing, e))?;
        Ok(())
    }

    /// Returns the path where the environment is mounted.
    pub fn prefix(&self) -> Result<Option<PathBuf>> {
        let Some(bytes) = self.meta(PREFIX)? else {
            return Ok(None);
        };
        let path = PathBuf::from(OsStr::from_bytes(&bytes));
        valid::prefix(&path).map_err(|what| self.bad_row("meta", what))?;
        Ok(Some(path))
    }

    /// Returns the identity of the environment, which a rename does not change.
    pub fn uuid(&self) -> Result<Option<String>> {
        let Some(bytes) = self.meta("uuid")? else {
            return Ok(None);
        };
        valid::uuid(&bytes).map_err(|what| self.bad_row("meta", what))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Says that rows and the upper directory may differ from now on; durable when this returns.
    /// To be called before the first write after an open.
    ///
    /// A redo log that is there says so already.
    pub fn mark_unclean(&self) -> Result<()> {
        if self.redo.get().is_some() {
            return Ok(());
        }
        self.set_meta(CLEAN, b"0")
    }

    /// Says that rows and the upper directory agree and are both durable, at the end: nothing can be
    /// changed after this. The caller has synced the upper directory.
    pub fn end_clean(&self) -> Result<()> {
        // Not before the rows are in the database: what the log still has belongs to it.
        self.settle()?;
        if self.meta(CLEAN)?.is_none_or(|value| value != b"1") {
            self.set_meta(CLEAN, b"1")?;
        }
        self.remove_redo_log()
    }

    /// Says that rows and the upper directory are known to differ, at the end.
    pub fn end_unclean(&self) -> Result<()> {
        self.settle()?;
        self.set_meta(CLEAN, b"0")?;
        self.remove_redo_log()
    }

    /// Returns whether the last writer ended in order. If not, rows and upper directory must be
    /// reconciled.
    pub fn was_clean(&self) -> Result<bool> {
        let is_clean = self.meta(CLEAN)?.is_none_or(|value| value == b"1");
        Ok(is_clean && !self.has_left_over())
    }

    /// Takes `count` new object ids, never given before and never again.
    ///
    /// Ids that were taken and not used are lost, which does no harm. The counter is older in
    /// the log than every row that uses an id, so it is durable before them.
    pub fn reserve_inos(&self, count: u64) -> Result<Range<u64>> {
        self.write("reserve object ids", |conn| {
            self.take(conn, "ino", count, "reserve object ids")
        })
    }

    /// Returns the id that the next new object may have, at the least.
    pub fn next_ino(&self) -> Result<u64> {
        const DOING: &str = "read the counter of object ids";
        self.read_rows(DOING, |conn| {
            let next = counter(conn, "ino").map_err(|e| self.sql(DOING, e))?;
            Ok(next.unwrap_or(FIRST_INO))
        })
    }

    /// Returns the ids that the next image and the next layer will have.
    pub fn next_ids(&self) -> Result<FileIds> {
        const DOING: &str = "read the counters of images and layers";
        self.read(DOING, |conn| self.next_ids_in(conn, DOING))
    }

    fn next_ids_in(&self, conn: &Connection, doing: &'static str) -> Result<FileIds> {
        let next = |name| match counter(conn, name) {
            Ok(next) => Ok(next.map_or(1, |next| next as i64)),
            Err(e) => Err(self.sql(doing, e)),
        };
        Ok(FileIds {
            images: next("image")?,
            layers: next("layer")?,
        })
    }

    /// Returns the ids that [`skip_ids`](Self::skip_ids) has passed over.
    pub fn skipped_ids(&self) -> Result<SkippedIds> {
        let Some(value) = self.meta(SKIPPED)? else {
            return Ok(SkippedIds::default());
        };
        let text = String::from_utf8_lossy(&value);
        let numbers: Vec<i64> = text.split(' ').flat_map(str::parse::<i64>).collect();
        match numbers[..] {
            [first, end, first_layer, end_of_layers] => Ok(SkippedIds {
                images: first..end,
                layers: first_layer..end_of_layers,
            }),
            _ => Err(self.bad_row("meta", format!("value of {SKIPPED}"))),
        }
    }

    /// Sees to it that no id below `until` is given, and remembers which of them were not: something has
    /// them that is newer than this database. Durable when this returns.
    pub fn skip_ids(&self, until: FileIds) -> Result<()> {
        const DOING: &str = "skip ids that are in use";
        let before = self.skipped_ids()?;
        self.write_without_room(DOING, |conn| {
            let next = self.next_ids_in(conn, DOING)?;
            let and = |before: &Range<i64>, next: i64, until: i64| {
                if next >= until {
                    before.clone()
                } else if before.is_empty() {
                    next..until
                } else {
                    before.start..until
                }
            };
            let images = and(&before.images, next.images, until.images);
            let layers = and(&before.layers, next.layers, until.layers);
            self.raise(conn, "image", until.images.unsigned_abs(), DOING)?;
            self.raise(conn, "layer", until.layers.unsigned_abs(), DOING)?;
            let value = format!(
                "{} {} {} {}",
                images.start, images.end, layers.start, layers.end
            );
            self.set_meta_in(conn, SKIPPED, value.as_bytes(), DOING)
        })
    }

    /// Takes the id of an image that is about to be written. Durable: no two files have it.
    pub fn reserve_image(&self) -> Result<ImageId> {
        const DOING: &str = "reserve the id of an image";
        self.write(DOING, |conn| {
            Ok(ImageId(self.take(conn, "image", 1, DOING)?.start as i64))
        })
    }

    /// Takes the id of an upper layer that is about to be made: first its directory, then the
    /// transaction that puts it on the stack. Durable: no two directories have it.
    pub fn reserve_layer(&self) -> Result<LayerId> {
        const DOING: &str = "reserve the id of a layer";
        self.write_without_room(DOING, |conn| self.take_layer(conn, DOING))
    }

    pub(super) fn take_layer(&self, conn: &Connection, doing: &'static str) -> Result<LayerId> {
        Ok(LayerId(self.take(conn, "layer", 1, doing)?.start as i64))
    }

    fn take(
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

    /// Checks the database page by page and its tables against each other. Returns what is
    /// wrong, in words; nothing when all is well.
    pub fn integrity_check(&self) -> Result<Vec<String>> {
        const DOING: &str = "check the state database";
        /// Each returns a line for each thing that is wrong.
        const CHECKS: &[&str] = &[
            "SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
            "SELECT 'a row of ' || \"table\" || ' refers to a missing row of ' || parent \
             FROM pragma_foreign_key_check",
            "SELECT 'rows of inodes belong to unknown layer ' || layer FROM inode \
             WHERE layer NOT IN (SELECT id FROM layer WHERE kind = 'upper') GROUP BY layer",
            "SELECT 'rows of names belong to unknown layer ' || layer FROM dentry \
             WHERE layer NOT IN (SELECT id FROM layer WHERE kind = 'upper') GROUP BY layer",
            "SELECT 'rows of xattrs belong to unknown layer ' || layer FROM xattr \
             WHERE layer NOT IN (SELECT id FROM layer WHERE kind = 'upper') GROUP BY layer",
            "SELECT 'an environment with a revision has no writable layer on top' \
             WHERE EXISTS (SELECT 1 FROM head) AND NOT EXISTS \
             (SELECT 1 FROM layer WHERE role = 'writable' AND position = 0)",
            "SELECT 'the image of the current revision is not in the stack' \
             FROM head JOIN revision ON revision.id = head.revision \
             WHERE NOT EXISTS \
             (SELECT 1 FROM layer WHERE layer.image = revision.image AND position IS NOT NULL)",
            "SELECT 'object id ' || max(ino) || ' is in use, but not below the counter' \
             FROM inode HAVING max(ino) >= \
             coalesce((SELECT next FROM counter WHERE name = 'ino'), 2) AND max(ino) > 1",
        ];
        let mut wrong = self.read_rows(DOING, |conn| {
            let mut wrong = Vec::new();
            for sql in CHECKS {
                let mut statement = conn.prepare(sql).map_err(|e| self.sql(DOING, e))?;
                let lines = statement
                    .query_map([], |row| row.get::<_, String>(0))
                    .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
                    .map_err(|e| self.sql(DOING, e))?;
                wrong.extend(lines);
            }
            wrong.extend(migrations::foreign(conn).map_err(|e| self.sql(DOING, e))?);
            Ok(wrong)
        })?;
        wrong.extend(self.check_rows());
        Ok(wrong)
    }

    /// Reads everything as whoever uses it does; returns what is refused.
    fn check_rows(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut note = |read: Result<()>| wrong.extend(read.err().map(|e| e.to_string()));
        note(self.uuid().map(drop));
        note(self.prefix().map(drop));
        note(self.skipped_ids().map(drop));
        note(self.next_ids().map(drop));
        note(self.revisions().map(drop));
        note(self.tags().map(drop));
        note(self.stack().map(drop));
        match self.images() {
            Ok(images) => images
                .iter()
                .for_each(|image| note(self.id_map(image.id).map(drop))),
            Err(e) => note(Err(e)),
        }
        match self.layers() {
            Ok(layers) => layers
                .iter()
                .filter(|layer| layer.image.is_none())
                .for_each(|layer| note(self.load_layer(layer.id).map(drop))),
            Err(e) => note(Err(e)),
        }
        wrong.dedup();
        wrong
    }
}

/// Id 0 is nobody and id 1 is the root.
const FIRST_INO: u64 = 2;

fn counter(conn: &Connection, name: &str) -> rusqlite::Result<Option<u64>> {
    conn.prepare_cached("SELECT next FROM counter WHERE name = ?1")?
        .query_row([name], |row| row.get::<_, i64>(0).map(|next| next as u64))
        .optional()
}

fn set_counter(conn: &Connection, name: &str, next: u64) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR REPLACE INTO counter (name, next) VALUES (?1, ?2)")?
        .execute(params![name, next as i64])?;
    Ok(())
}
