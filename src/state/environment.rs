//! The facts of the environment as a whole: the one row of the table `environment`, and the link
//! counts that differ from those in the images.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use super::error::Result;
use super::{ImageId, StateDb, valid};
use crate::object::Ino;

const TABLE: &str = "environment";
const READ: &str = "read a fact of the environment";
const STORE: &str = "store a fact of the environment";

/// The next id of an image and of a layer. Both name files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIds {
    /// Of an image.
    pub images: i64,
    /// Of a layer.
    pub layers: i64,
}

/// Ids that this database has not assigned, although files use them: it was restored from an older
/// copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkippedIds {
    /// Of images.
    pub images: Range<i64>,
    /// Of layers.
    pub layers: Range<i64>,
}

/// Identifies the directory that an environment lives in. A copy of the directory has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeId {
    /// Inode number of the directory.
    pub ino: u64,
    /// Time of birth in nanoseconds since 1970; 0 where the file system does not keep it.
    pub born: i64,
}

/// Where the objects of a set of link counts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinksIn {
    /// In several images, one over another, as a whole.
    Stack,
    /// In one image.
    Image(ImageId),
}

impl LinksIn {
    fn image(self) -> i64 {
        match self {
            LinksIn::Stack => 0,
            LinksIn::Image(id) => id.0,
        }
    }
}

impl StateDb {
    /// Returns the path where the environment is mounted; None before it is initialised.
    pub fn prefix(&self) -> Result<Option<PathBuf>> {
        self.read(READ, |conn| self.prefix_in(conn, READ))
    }

    pub(super) fn prefix_in(
        &self,
        conn: &Connection,
        doing: &'static str,
    ) -> Result<Option<PathBuf>> {
        let bytes: Option<Vec<u8>> = self.facts_in(conn, "prefix", |row| row.get(0), doing)?;
        let path = bytes.map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes)));
        if let Some(path) = &path {
            valid::prefix(path).map_err(|what| self.bad_row(TABLE, what))?;
        }
        Ok(path)
    }

    /// Returns the identity of the environment, which a rename does not change; None before it is
    /// initialised.
    pub fn uuid(&self) -> Result<Option<String>> {
        let Some(uuid) = self.fact::<Option<String>>("uuid")? else {
            return Ok(None);
        };
        valid::uuid(uuid.as_bytes()).map_err(|what| self.bad_row(TABLE, what))?;
        Ok(Some(uuid))
    }

    /// Returns the identity of the history: that of the first environment that had it. Copies keep
    /// it; None before the environment is initialised.
    pub fn origin(&self) -> Result<Option<String>> {
        let Some(origin) = self.fact::<Option<String>>("origin")? else {
            return Ok(None);
        };
        valid::uuid(origin.as_bytes()).map_err(|_| self.bad_row(TABLE, "value of origin"))?;
        Ok(Some(origin))
    }

    pub(super) fn set_identity_in(
        &self,
        conn: &Connection,
        uuid: &str,
        origin: Option<&str>,
        prefix: &Path,
        doing: &'static str,
    ) -> Result<()> {
        let prefix = prefix.as_os_str().as_bytes();
        self.set_facts_in(
            conn,
            "uuid = ?1, origin = ?2, prefix = ?3, clean = 1",
            params![uuid, origin.unwrap_or(uuid), prefix],
            doing,
        )
    }

    /// Changes the path and ends a relocation. Returns the old path if it was another one.
    pub(super) fn replace_prefix_in(
        &self,
        conn: &Connection,
        prefix: &Path,
        doing: &'static str,
    ) -> Result<Option<PathBuf>> {
        let old = self.prefix_in(conn, doing)?;
        let bytes = prefix.as_os_str().as_bytes();
        self.set_facts_in(conn, "prefix = ?1, relocating = 0", [bytes], doing)?;
        Ok(old.filter(|old| old != prefix))
    }

    /// Returns whether a relocation has begun. Then all uncommitted changes are its own.
    pub fn is_relocating(&self) -> Result<bool> {
        self.fact("relocating")
    }

    /// Notes that a relocation begins; durable when this returns. There are no uncommitted changes.
    pub fn begin_relocation(&self) -> Result<()> {
        self.set_facts("relocating = 1", [])
    }

    /// Returns the identity of the directory that the rows are about, as last stored.
    pub fn home_id(&self) -> Result<Option<HomeId>> {
        let (ino, born) = self.facts("home_ino, home_born", |row| {
            Ok((row.get::<_, Option<i64>>(0)?, row.get(1)?))
        })?;
        Ok(ino.zip(born).map(|(ino, born)| HomeId {
            ino: ino as u64,
            born,
        }))
    }

    /// Stores the identity of the directory that the rows are about; durable when this returns.
    pub fn set_home_id(&self, home: HomeId) -> Result<()> {
        let HomeId { ino, born } = home;
        self.set_facts("home_ino = ?1, home_born = ?2", params![ino as i64, born])
    }

    /// Returns the user and the group that own the root of the image that the environment adopted.
    pub fn image_owner(&self) -> Result<Option<(u32, u32)>> {
        let (uid, gid) = self.facts("image_uid, image_gid", |row| {
            Ok((row.get::<_, Option<u32>>(0)?, row.get(1)?))
        })?;
        Ok(uid.zip(gid))
    }

    /// Stores who owns the root of an adopted image; durable when this returns.
    pub fn set_image_owner(&self, uid: u32, gid: u32) -> Result<()> {
        self.set_facts("image_uid = ?1, image_gid = ?2", [uid, gid])
    }

    /// Returns the fingerprint of the images that a mount without a store belongs to.
    pub fn image_fingerprint(&self) -> Result<Option<Vec<u8>>> {
        self.fact("image_fingerprint")
    }

    /// Stores the fingerprint of the images that a mount without a store belongs to.
    pub fn set_image_fingerprint(&self, fingerprint: &[u8]) -> Result<()> {
        self.set_facts("image_fingerprint = ?1", [fingerprint])
    }

    /// Marks the rows and the upper directory as possibly different; durable when this returns.
    /// Call this before the first write after an open.
    ///
    /// An existing redo log has the same meaning.
    pub fn mark_unclean(&self) -> Result<()> {
        match self.redo.get() {
            Some(_) => Ok(()),
            None => self.set_facts("clean = ?1", [false]),
        }
    }

    /// Marks the rows and the upper directory as equal and durable, at the end: nothing can be
    /// changed after this. The caller has synced the upper directory.
    pub fn end_clean(&self) -> Result<()> {
        // The rows first: those that only the log has would be lost with it.
        self.checkpoint()?;
        if !self.fact::<bool>("clean")? {
            self.set_facts("clean = ?1", [true])?;
        }
        self.remove_redo_log()
    }

    /// Marks the rows and the upper directory as known to differ, at the end.
    pub fn end_unclean(&self) -> Result<()> {
        self.checkpoint()?;
        self.set_facts("clean = ?1", [false])?;
        self.remove_redo_log()
    }

    /// Returns true if the last writer closed the environment in order. If not, rows and upper
    /// directory must be reconciled.
    pub fn was_clean(&self) -> Result<bool> {
        Ok(self.fact::<bool>("clean")? && !self.has_leftover_log())
    }

    /// Returns the ids that [`skip_ids`](Self::skip_ids) has skipped.
    pub fn skipped_ids(&self) -> Result<SkippedIds> {
        self.facts(
            "skipped_image, skipped_image_end, skipped_layer, skipped_layer_end",
            |row| {
                Ok(SkippedIds {
                    images: row.get(0)?..row.get(1)?,
                    layers: row.get(2)?..row.get(3)?,
                })
            },
        )
    }

    /// Ensures that no id below `until` is assigned, and records those that were skipped: files
    /// that are newer than this database use them. Durable when this returns.
    pub fn skip_ids(&self, until: FileIds) -> Result<()> {
        const DOING: &str = "skip ids that are in use";
        let before = self.skipped_ids()?;
        self.write_without_room(DOING, |conn| {
            let next = self.next_ids_in(conn, DOING)?;
            let extend = |before: &Range<i64>, next: i64, until: i64| {
                if next >= until {
                    before.clone()
                } else if before.is_empty() {
                    next..until
                } else {
                    before.start..until
                }
            };
            let images = extend(&before.images, next.images, until.images);
            let layers = extend(&before.layers, next.layers, until.layers);
            self.raise(conn, "image", until.images.unsigned_abs(), DOING)?;
            self.raise(conn, "layer", until.layers.unsigned_abs(), DOING)?;
            self.set_facts_in(
                conn,
                "skipped_image = ?1, skipped_image_end = ?2, \
                 skipped_layer = ?3, skipped_layer_end = ?4",
                [images.start, images.end, layers.start, layers.end],
                DOING,
            )
        })
    }

    /// Returns the number of the last record of the redo log that the rows include.
    pub(super) fn last_redo(&self) -> Result<u64> {
        let number = self.fact::<i64>("redo")?;
        u64::try_from(number).map_err(|_| self.bad_row(TABLE, "value of redo"))
    }

    pub(super) fn set_last_redo_in(
        &self,
        conn: &Connection,
        number: u64,
        doing: &'static str,
    ) -> Result<()> {
        self.set_facts_in(conn, "redo = ?1", [number as i64], doing)
    }

    /// Returns the number of the last transaction. Two more can follow.
    pub(super) fn serial_in(&self, conn: &Connection, doing: &'static str) -> Result<i64> {
        let serial = self.facts_in(conn, "serial", |row| row.get(0), doing)?;
        match (0..i64::MAX - 2).contains(&serial) {
            true => Ok(serial),
            false => Err(self.bad_row(TABLE, "value of serial")),
        }
    }

    pub(super) fn set_serial_in(
        &self,
        conn: &Connection,
        serial: i64,
        doing: &'static str,
    ) -> Result<()> {
        self.set_facts_in(conn, "serial = ?1", [serial], doing)
    }

    /// Returns the link counts that differ from those in the images.
    pub fn link_counts(&self, links: LinksIn) -> Result<BTreeMap<Ino, u32>> {
        const DOING: &str = "read the link counts of an image";
        let counts = self.read(DOING, |conn| {
            conn.prepare_cached("SELECT ino, nlink FROM link_count WHERE image = ?1")
                .and_then(|mut statement| {
                    statement
                        .query_map([links.image()], |row| {
                            Ok((Ino(row.get::<_, i64>(0)? as u64), row.get(1)?))
                        })?
                        .collect::<rusqlite::Result<BTreeMap<Ino, u32>>>()
                })
                .map_err(|e| self.sql(DOING, e))
        })?;
        counts
            .keys()
            .try_for_each(|ino| valid::object(*ino))
            .map_err(|what| self.bad_row("link_count", what))?;
        Ok(counts)
    }

    /// Stores the link counts that differ from those in the images; durable when this returns.
    pub fn set_link_counts(&self, links: LinksIn, counts: &BTreeMap<Ino, u32>) -> Result<()> {
        const DOING: &str = "store the link counts of an image";
        self.write_without_room(DOING, |conn| {
            self.set_link_counts_in(conn, links, counts, DOING)
        })
    }

    pub(super) fn set_link_counts_in(
        &self,
        conn: &Connection,
        links: LinksIn,
        counts: &BTreeMap<Ino, u32>,
        doing: &'static str,
    ) -> Result<()> {
        let fail = |e| self.sql(doing, e);
        let image = links.image();
        conn.execute("DELETE FROM link_count WHERE image = ?1", [image])
            .map_err(fail)?;
        let mut statement = conn
            .prepare_cached("INSERT INTO link_count (image, ino, nlink) VALUES (?1, ?2, ?3)")
            .map_err(fail)?;
        for (ino, nlink) in counts {
            statement
                .execute(params![image, ino.0 as i64, nlink])
                .map_err(fail)?;
        }
        Ok(())
    }

    fn fact<T: FromSql>(&self, column: &'static str) -> Result<T> {
        self.facts(column, |row| row.get(0))
    }

    fn facts<T>(
        &self,
        columns: &'static str,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.read(READ, |conn| self.facts_in(conn, columns, map, READ))
    }

    fn facts_in<T>(
        &self,
        conn: &Connection,
        columns: &'static str,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
        doing: &'static str,
    ) -> Result<T> {
        conn.prepare_cached(&format!("SELECT {columns} FROM environment"))
            .and_then(|mut statement| statement.query_row([], map).optional())
            .map_err(|e| self.sql(doing, e))?
            .ok_or_else(|| self.no_row())
    }

    fn set_facts(&self, assignments: &'static str, values: impl Params + Clone) -> Result<()> {
        self.write_without_room(STORE, |conn| {
            self.set_facts_in(conn, assignments, values.clone(), STORE)
        })
    }

    pub(super) fn set_facts_in(
        &self,
        conn: &Connection,
        assignments: &'static str,
        values: impl Params,
        doing: &'static str,
    ) -> Result<()> {
        let rows = conn
            .prepare_cached(&format!("UPDATE environment SET {assignments}"))
            .and_then(|mut statement| statement.execute(values))
            .map_err(|e| self.sql(doing, e))?;
        match rows {
            1 => Ok(()),
            _ => Err(self.no_row()),
        }
    }

    fn no_row(&self) -> super::StateError {
        self.bad_row(TABLE, "number of rows: it must be one")
    }
}
