//! Reading and writing the rows of upper layers.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::Ordering;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};

use super::{DataPlace, InodeRow, LayerRows, RowChange};
use crate::object::{Ino, Kind, Timestamp};
use crate::state::error::Result;
use crate::state::{LayerId, StateDb, valid};

const PUT_INODE: &str = "INSERT OR REPLACE INTO inode VALUES \
    (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20)";
const SELECT_INODES: &str = "SELECT ino, kind, mode, uid, gid, rdev, nlink, atime, atime_ns, \
    mtime, mtime_ns, ctime, ctime_ns, data, target, place_dir, place_name, backing_ino, \
    owns_xattrs FROM inode WHERE layer = ?1 AND ino BETWEEN ?2 AND ?3 ORDER BY ino";
const SELECT_ENTRIES: &str = "SELECT dir, name, ino FROM dentry \
    WHERE layer = ?1 AND dir BETWEEN ?2 AND ?3 ORDER BY dir, name";
const SELECT_XATTRS: &str = "SELECT ino, name, value FROM xattr \
    WHERE layer = ?1 AND ino BETWEEN ?2 AND ?3 ORDER BY ino, name";
/// All ids, possible or not: every row is validated.
const ALL_IDS: RangeInclusive<i64> = i64::MIN..=i64::MAX;

const READ: &str = "read the rows of a layer";

impl StateDb {
    /// Applies `changes` to the rows of `layer`, all or none.
    ///
    /// When this returns, they survive the death of this process, and after [`sync`](Self::sync)
    /// also a power failure, but never in part: a crash leaves the changes up to some point in the
    /// order in which they were applied. The caller ensures that the layer is the writable one, or
    /// one under repair: rows of a layer that has left the stack are soon deleted.
    ///
    /// With a redo log (see [`keep_redo_log`](Self::keep_redo_log)) this appends one record to it;
    /// otherwise it is one transaction.
    pub fn apply(&self, layer: LayerId, changes: &[RowChange<'_>]) -> Result<()> {
        const DOING: &str = "write rows of a layer";
        if changes.is_empty() || self.log(layer, changes)? {
            return Ok(());
        }
        self.write(DOING, |conn| self.apply_in(conn, layer, changes, DOING))
    }

    pub(in crate::state) fn apply_in(
        &self,
        conn: &Connection,
        layer: LayerId,
        changes: &[RowChange<'_>],
        doing: &'static str,
    ) -> Result<()> {
        changes
            .iter()
            .try_for_each(|change| apply_one(conn, layer, change))
            .map_err(|e| self.sql(doing, e))
    }

    /// Reads all rows of a layer. Measured: 0.14 s for 100,000 inodes with their names.
    pub fn load_layer(&self, layer: LayerId) -> Result<LayerRows> {
        self.read_rows(READ, |conn| {
            let mut rows = LayerRows::default();
            self.objects_in(conn, layer, &ALL_IDS, &mut rows)?;
            self.entries_in(conn, layer, &ALL_IDS, &mut rows)?;
            Ok(rows)
        })
    }

    /// Reads the rows of objects of a layer, and of their extended attributes, by ids of objects.
    ///
    /// Unlike [`load_layer`](Self::load_layer) this may miss changes that only the redo log has.
    pub fn load_objects(&self, layer: LayerId, ids: Range<u64>) -> Result<LayerRows> {
        self.read(READ, |conn| {
            let mut rows = LayerRows::default();
            self.objects_in(conn, layer, &stored(&ids), &mut rows)?;
            Ok(rows)
        })
    }

    /// Reads the names in directories of a layer, by ids of directories; otherwise as
    /// [`load_objects`](Self::load_objects).
    pub fn load_entries(&self, layer: LayerId, dirs: Range<u64>) -> Result<LayerRows> {
        self.read(READ, |conn| {
            let mut rows = LayerRows::default();
            self.entries_in(conn, layer, &stored(&dirs), &mut rows)?;
            Ok(rows)
        })
    }

    /// Returns the highest id of an object or directory with rows in a layer.
    pub fn highest_id(&self, layer: LayerId) -> Result<Option<u64>> {
        const TABLES: [&str; 3] = [
            "SELECT max(ino) FROM inode WHERE layer = ?1",
            "SELECT max(dir) FROM dentry WHERE layer = ?1",
            "SELECT max(ino) FROM xattr WHERE layer = ?1",
        ];
        self.read_rows(READ, |conn| {
            let mut highest = None;
            for sql in TABLES {
                let id: Option<i64> = conn
                    .prepare_cached(sql)
                    .and_then(|mut statement| statement.query_row([layer.0], |row| row.get(0)))
                    .map_err(|e| self.sql(READ, e))?;
                highest = highest.max(id);
            }
            Ok(highest.and_then(|id| u64::try_from(id).ok()))
        })
    }

    /// Returns how many rows of layers have been read.
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Ordering::Relaxed)
    }

    fn objects_in(
        &self,
        conn: &Connection,
        layer: LayerId,
        ids: &RangeInclusive<i64>,
        rows: &mut LayerRows,
    ) -> Result<()> {
        let fail = |e| self.sql(READ, e);
        let bounds = [layer.0, *ids.start(), *ids.end()];
        let mut statement = conn.prepare_cached(SELECT_INODES).map_err(fail)?;
        let mut cursor = statement.query(bounds).map_err(fail)?;
        while let Some(row) = cursor.next().map_err(fail)? {
            let (ino, inode) = inode_of(row).map_err(fail)?;
            let inode = inode.and_then(|row| valid::inode(ino, &row).map(|()| row));
            let inode = inode.map_err(|what| {
                let object = ino.0 as i64;
                let what = format!("{what} for object {object} of layer {layer}");
                self.bad_row("inode", what)
            })?;
            rows.inodes.push((ino, inode));
        }
        drop(cursor);

        let mut statement = conn.prepare_cached(SELECT_XATTRS).map_err(fail)?;
        let mut cursor = statement.query(bounds).map_err(fail)?;
        while let Some(row) = cursor.next().map_err(fail)? {
            let ino = ino_at(row, 0).map_err(fail)?;
            let name = bytes_at(row, 1).map_err(fail)?;
            valid::object(ino)
                .and_then(|()| valid::xattr(&name))
                .map_err(|what| {
                    let object = ino.0 as i64;
                    let what = format!("{what} of object {object} of layer {layer}");
                    self.bad_row("xattr", what)
                })?;
            rows.xattrs
                .push((ino, name, bytes_at(row, 2).map_err(fail)?));
        }
        let read = rows.inodes.len() + rows.xattrs.len();
        self.rows_read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(())
    }

    fn entries_in(
        &self,
        conn: &Connection,
        layer: LayerId,
        dirs: &RangeInclusive<i64>,
        rows: &mut LayerRows,
    ) -> Result<()> {
        let fail = |e| self.sql(READ, e);
        let bounds = [layer.0, *dirs.start(), *dirs.end()];
        let mut statement = conn.prepare_cached(SELECT_ENTRIES).map_err(fail)?;
        let mut cursor = statement.query(bounds).map_err(fail)?;
        while let Some(row) = cursor.next().map_err(fail)? {
            let target: Option<i64> = row.get(2).map_err(fail)?;
            let target = target.map(|ino| Ino(ino as u64));
            let dir = ino_at(row, 0).map_err(fail)?;
            let name = bytes_at(row, 1).map_err(fail)?;
            valid::entry(dir, &name, target).map_err(|what| {
                let dir = dir.0 as i64;
                let what = format!("{what} in directory {dir} of layer {layer}");
                self.bad_row("dentry", what)
            })?;
            rows.entries.push((dir, name, target));
        }
        let read = rows.entries.len() as u64;
        self.rows_read.fetch_add(read, Ordering::Relaxed);
        Ok(())
    }

    /// Returns true if the layer has no rows.
    pub(in crate::state) fn layer_is_empty_in(
        &self,
        conn: &Connection,
        layer: LayerId,
        doing: &'static str,
    ) -> Result<bool> {
        conn.prepare_cached(
            "SELECT NOT EXISTS (SELECT 1 FROM inode WHERE layer = ?1) \
             AND NOT EXISTS (SELECT 1 FROM dentry WHERE layer = ?1) \
             AND NOT EXISTS (SELECT 1 FROM xattr WHERE layer = ?1)",
        )
        .and_then(|mut statement| statement.query_row([layer.0], |row| row.get(0)))
        .map_err(|e| self.sql(doing, e))
    }

    /// Deletes at most `limit` rows of a layer, and returns how many were deleted.
    pub(in crate::state) fn drop_rows_in(
        &self,
        conn: &Connection,
        layer: LayerId,
        limit: i64,
        doing: &'static str,
    ) -> Result<i64> {
        const TABLES: [&str; 3] = [
            "DELETE FROM inode WHERE layer = ?1 AND ino IN \
             (SELECT ino FROM inode WHERE layer = ?1 LIMIT ?2)",
            "DELETE FROM dentry WHERE layer = ?1 AND (dir, name) IN \
             (SELECT dir, name FROM dentry WHERE layer = ?1 LIMIT ?2)",
            "DELETE FROM xattr WHERE layer = ?1 AND (ino, name) IN \
             (SELECT ino, name FROM xattr WHERE layer = ?1 LIMIT ?2)",
        ];
        let mut deleted = 0;
        for sql in TABLES {
            let limit = limit.saturating_sub(deleted);
            deleted += conn
                .prepare_cached(sql)
                .and_then(|mut s| s.execute(params![layer.0, limit]))
                .map_err(|e| self.sql(doing, e))? as i64;
        }
        Ok(deleted)
    }
}

pub(in crate::state) fn apply_one(
    conn: &Connection,
    layer: LayerId,
    change: &RowChange<'_>,
) -> rusqlite::Result<()> {
    let layer = layer.0;
    match change {
        RowChange::PutInode(ino, row) => {
            let place = row.place.as_ref();
            conn.prepare_cached(PUT_INODE)?.execute(params![
                layer,
                ino.0 as i64,
                row.kind as u8,
                row.mode,
                row.uid,
                row.gid,
                row.rdev as i64,
                row.nlink,
                row.atime.secs,
                row.atime.nanos,
                row.mtime.secs,
                row.mtime.nanos,
                row.ctime.secs,
                row.ctime.nanos,
                row.data as u8,
                row.target.as_deref(),
                place.map(|(dir, _)| dir.0 as i64),
                place.map(|(_, name)| &**name),
                row.backing_ino as i64,
                row.owns_xattrs,
            ])?;
        }
        RowChange::DropInode(ino) => {
            conn.prepare_cached("DELETE FROM inode WHERE layer = ?1 AND ino = ?2")?
                .execute(params![layer, ino.0 as i64])?;
        }
        RowChange::PutEntry { dir, name, target } => {
            conn.prepare_cached("INSERT OR REPLACE INTO dentry VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![
                    layer,
                    dir.0 as i64,
                    &**name,
                    target.map(|ino| ino.0 as i64)
                ])?;
        }
        RowChange::DropEntry { dir, name } => {
            conn.prepare_cached("DELETE FROM dentry WHERE layer = ?1 AND dir = ?2 AND name = ?3")?
                .execute(params![layer, dir.0 as i64, &**name])?;
        }
        RowChange::DropEntriesOf(dir) => {
            conn.prepare_cached("DELETE FROM dentry WHERE layer = ?1 AND dir = ?2")?
                .execute(params![layer, dir.0 as i64])?;
        }
        RowChange::PutXattr { ino, name, value } => {
            conn.prepare_cached("INSERT OR REPLACE INTO xattr VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![layer, ino.0 as i64, &**name, &**value])?;
        }
        RowChange::DropXattr { ino, name } => {
            conn.prepare_cached("DELETE FROM xattr WHERE layer = ?1 AND ino = ?2 AND name = ?3")?
                .execute(params![layer, ino.0 as i64, &**name])?;
        }
        RowChange::DropXattrs(ino) => {
            conn.prepare_cached("DELETE FROM xattr WHERE layer = ?1 AND ino = ?2")?
                .execute(params![layer, ino.0 as i64])?;
        }
    }
    Ok(())
}

/// Returns ids as SQLite stores them.
fn stored(ids: &Range<u64>) -> RangeInclusive<i64> {
    let stored = |id: u64| i64::try_from(id).unwrap_or(i64::MAX);
    stored(ids.start)..=stored(ids.end).saturating_sub(1)
}

fn ino_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Ino> {
    Ok(Ino(row.get::<_, i64>(column)? as u64))
}

fn bytes_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Box<[u8]>> {
    Ok(row.get_ref(column)?.as_blob()?.into())
}

fn optional_bytes_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Box<[u8]>>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        value => Some(value.as_blob()?.into()),
    })
}

/// Reads a row of [`SELECT_INODES`]; the inner error describes a bad value.
fn inode_of(row: &Row<'_>) -> rusqlite::Result<(Ino, Result<InodeRow, String>)> {
    let ino = ino_at(row, 0)?;
    let time = |column: usize| -> rusqlite::Result<Timestamp> {
        Ok(Timestamp {
            secs: row.get(column)?,
            nanos: row.get(column + 1)?,
        })
    };
    let kind: i64 = row.get(1)?;
    let mode: i64 = row.get(2)?;
    let (atime, mtime, ctime) = (time(7)?, time(9)?, time(11)?);
    let data: i64 = row.get(13)?;
    let place_dir: Option<i64> = row.get(15)?;
    let place_name = optional_bytes_at(row, 16)?;

    let Some(kind) = u8::try_from(kind).ok().and_then(Kind::from_number) else {
        return Ok((ino, Err(format!("kind {kind}"))));
    };
    let Ok(mode) = u16::try_from(mode) else {
        return Ok((ino, Err(format!("mode {mode:#o}"))));
    };
    let data = match data {
        0 => DataPlace::Lower,
        1 => DataPlace::Upper,
        2 => DataPlace::Committed,
        other => return Ok((ino, Err(format!("place of data {other}")))),
    };
    let place = match (place_dir, place_name) {
        (Some(dir), Some(name)) => Some((Ino(dir as u64), name)),
        (None, None) => None,
        _ => return Ok((ino, Err("place without a name or a directory".to_owned()))),
    };
    let inode = InodeRow {
        kind,
        mode,
        uid: row.get(3)?,
        gid: row.get(4)?,
        rdev: row.get::<_, i64>(5)? as u64,
        nlink: row.get(6)?,
        atime,
        mtime,
        ctime,
        data,
        target: optional_bytes_at(row, 14)?,
        place,
        backing_ino: row.get::<_, i64>(17)? as u64,
        owns_xattrs: row.get(18)?,
    };
    Ok((ino, Ok(inode)))
}
