//! Images, revisions and tags.

use std::fmt;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::Result;
use super::id_map::IdMap;
use super::{StateDb, now, valid};

/// The id of an image of the environment. Never reused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ImageId(pub i64);

/// The id of a revision of the environment. Never reused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct RevisionId(pub i64);

impl ImageId {
    /// Returns the name of its file in the images directory.
    pub fn file_name(self) -> String {
        format!("{self}.sqfs")
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An image that is about to enter the history. Its file is complete and durable.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// From [`StateDb::reserve_image`].
    pub id: ImageId,
    /// Name of the file in the images directory.
    pub file: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Number of inodes.
    pub inodes: u32,
    /// Block size in bytes.
    pub block_size: u32,
    /// Compression, as written on the command line (`zstd:3`).
    pub compression: String,
    /// Inode number of the root directory.
    pub root_number: u32,
    /// The map from inode numbers to objects.
    pub id_map: IdMap,
    /// BLAKE3 of each MiB of the file, one after another, where known.
    pub digests: Option<Vec<u8>>,
    /// Bytes of the data area that no inode refers to; an upper bound in an amended image.
    pub dead_bytes: u64,
    /// Stored bytes of inodes and listings that amendments appended to those of older images;
    /// `None` if the image must not be amended.
    pub tables_appended: Option<u64>,
}

/// An image of the history, without its large columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    /// The image.
    pub id: ImageId,
    /// Name of the file in the images directory.
    pub file: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Number of inodes.
    pub inodes: u32,
    /// Block size in bytes.
    pub block_size: u32,
    /// Compression, as written on the command line.
    pub compression: String,
    /// Inode number of the root directory.
    pub root_number: u32,
    /// Bytes of the data area that no inode refers to; an upper bound in an amended image.
    pub dead_bytes: u64,
    /// Stored bytes of inodes and listings that amendments appended to those of older images;
    /// `None` if the image must not be amended.
    pub tables_appended: Option<u64>,
    /// Where it begins in its file, if it lies inside another and the reader cannot find it there.
    pub offset: Option<u64>,
}

impl ImageRow {
    /// Returns the image as it is inserted, with parts of the row that are stored elsewhere.
    pub(crate) fn to_new(&self, id_map: IdMap, digests: Option<Vec<u8>>) -> NewImage {
        NewImage {
            id: self.id,
            file: self.file.clone(),
            size: self.size,
            inodes: self.inodes,
            block_size: self.block_size,
            compression: self.compression.clone(),
            root_number: self.root_number,
            id_map,
            digests,
            dead_bytes: self.dead_bytes,
            tables_appended: self.tables_appended,
        }
    }
}

/// The operation that created a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevisionKind {
    /// A directory, archive or image was imported.
    Import,
    /// The environment was created empty.
    Create,
    /// Changes were committed.
    Commit,
    /// An earlier revision was restored.
    Rollback,
}

impl RevisionKind {
    /// Returns the stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            RevisionKind::Import => "import",
            RevisionKind::Create => "create",
            RevisionKind::Commit => "commit",
            RevisionKind::Rollback => "rollback",
        }
    }

    fn from_name(name: &str) -> Option<RevisionKind> {
        Some(match name {
            "import" => RevisionKind::Import,
            "create" => RevisionKind::Create,
            "commit" => RevisionKind::Commit,
            "rollback" => RevisionKind::Rollback,
            _ => return None,
        })
    }
}

/// The author and message of a new revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRevision {
    /// Message, possibly empty.
    pub message: String,
    /// Name of the user.
    pub user: String,
    /// Name of the host.
    pub host: String,
    /// The command line.
    pub command: String,
    /// The changed packages, as JSON, if there are any.
    pub packages: Option<String>,
}

/// One state in the history of the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The revision.
    pub id: RevisionId,
    /// The revision before it, which gc may have removed; None for the first.
    pub parent: Option<RevisionId>,
    /// Its image.
    pub image: ImageId,
    /// The operation that created it.
    pub kind: RevisionKind,
    /// For a rollback, the revision that was restored.
    pub source: Option<RevisionId>,
    /// Message, possibly empty.
    pub message: String,
    /// When, in seconds since 1970.
    pub time: i64,
    /// Name of the user.
    pub user: String,
    /// Name of the host.
    pub host: String,
    /// The command line.
    pub command: String,
    /// The changed packages, as JSON, if there are any and they were recorded.
    pub packages: Option<String>,
}

/// A name for a revision, which gc keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Name.
    pub name: String,
    /// The revision.
    pub revision: RevisionId,
}

const IMAGE_COLUMNS: &str = "id, file, size, inodes, block_size, compression, root_number, dead_bytes, tables_appended, \
     offset";
const REVISION_COLUMNS: &str =
    "id, parent, image, kind, source, message, time, user, host, command, packages";

impl StateDb {
    /// Returns all images, oldest first.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        self.select(
            "read the images",
            &format!("SELECT {IMAGE_COLUMNS} FROM image ORDER BY id"),
            image_of,
        )?
        .into_iter()
        .map(|row| self.checked_image(row))
        .collect()
    }

    /// Returns an image, None if there is no such image.
    pub fn image(&self, id: ImageId) -> Result<Option<ImageRow>> {
        const DOING: &str = "read an image";
        self.read(DOING, |conn| {
            conn.prepare_cached(&format!("SELECT {IMAGE_COLUMNS} FROM image WHERE id = ?1"))
                .and_then(|mut s| s.query_row([id.0], image_of).optional())
                .map_err(|e| self.sql(DOING, e))?
                .map(|row| self.checked_image(row))
                .transpose()
        })
    }

    /// Returns the map of an image's inode numbers, None if there is no such image.
    pub fn id_map(&self, id: ImageId) -> Result<Option<IdMap>> {
        let bytes = self.image_blob("SELECT id_map FROM image WHERE id = ?1", id)?;
        bytes
            .map(|bytes| {
                IdMap::from_bytes(&bytes)
                    .map_err(|e| self.bad_row("image", format!("id_map of image {id}: {e}")))
            })
            .transpose()
    }

    /// Returns the content hashes of an image, if it has any.
    pub fn image_digests(&self, id: ImageId) -> Result<Option<Vec<u8>>> {
        self.image_blob("SELECT digests FROM image WHERE id = ?1", id)
    }

    fn image_blob(&self, sql: &str, id: ImageId) -> Result<Option<Vec<u8>>> {
        const DOING: &str = "read an image";
        self.read(DOING, |conn| {
            conn.prepare_cached(sql)
                .and_then(|mut s| s.query_row([id.0], |row| row.get(0)).optional())
                .map(Option::flatten)
                .map_err(|e| self.sql(DOING, e))
        })
    }

    /// Stores where an image begins in its file; None where the reader finds it. Durable when this
    /// returns.
    pub fn set_image_offset(&self, id: ImageId, offset: Option<u64>) -> Result<()> {
        const DOING: &str = "store the offset of an image";
        self.write_without_room(DOING, |conn| {
            let offset = offset
                .map(i64::try_from)
                .transpose()
                .map_err(|_| self.conflict(DOING, "it is beyond 63 bits"))?;
            let rows = conn
                .execute(
                    "UPDATE image SET offset = ?2 WHERE id = ?1",
                    params![id.0, offset],
                )
                .map_err(|e| self.sql(DOING, e))?;
            match rows {
                1 => Ok(()),
                _ => Err(self.conflict(DOING, format!("there is no image {id}"))),
            }
        })
    }

    /// Deletes an image that no revision and no layer of the stack uses. The caller removes its
    /// file after this.
    pub fn forget_image(&self, id: ImageId) -> Result<()> {
        const DOING: &str = "forget an image";
        self.write_without_room(DOING, |conn| self.delete_image(conn, id, DOING))
    }

    fn delete_image(&self, conn: &Connection, id: ImageId, doing: &'static str) -> Result<()> {
        let users: i64 = conn
            .query_row(
                "SELECT (SELECT count(*) FROM revision WHERE image = ?1) \
                      + (SELECT count(*) FROM layer WHERE image = ?1)",
                [id.0],
                |row| row.get(0),
            )
            .map_err(|e| self.sql(doing, e))?;
        if users > 0 {
            return Err(self.conflict(doing, format!("image {id} is in use")));
        }
        conn.execute("DELETE FROM link_count WHERE image = ?1", [id.0])
            .and_then(|_| conn.execute("DELETE FROM image WHERE id = ?1", [id.0]))
            .map_err(|e| self.sql(doing, e))?;
        Ok(())
    }

    /// Returns all revisions, oldest first.
    pub fn revisions(&self) -> Result<Vec<Revision>> {
        self.select(
            "read the revisions",
            &format!("SELECT {REVISION_COLUMNS} FROM revision ORDER BY id"),
            revision_of,
        )?
        .into_iter()
        .map(|row| self.checked(row))
        .collect()
    }

    /// Returns a revision.
    pub fn revision(&self, id: RevisionId) -> Result<Option<Revision>> {
        const DOING: &str = "read a revision";
        self.read(DOING, |conn| self.revision_in(conn, id, DOING))
    }

    pub(super) fn revision_in(
        &self,
        conn: &Connection,
        id: RevisionId,
        doing: &'static str,
    ) -> Result<Option<Revision>> {
        conn.prepare_cached(&format!(
            "SELECT {REVISION_COLUMNS} FROM revision WHERE id = ?1"
        ))
        .and_then(|mut s| s.query_row([id.0], revision_of).optional())
        .map_err(|e| self.sql(doing, e))?
        .map(|row| self.checked(row))
        .transpose()
    }

    /// Returns the current revision; None only before the environment is initialised.
    pub fn current_revision(&self) -> Result<Option<Revision>> {
        const DOING: &str = "read the current revision";
        self.read(DOING, |conn| match self.head_in(conn, DOING)? {
            Some(id) => self.revision_in(conn, id, DOING),
            None => Ok(None),
        })
    }

    pub(super) fn head_in(
        &self,
        conn: &Connection,
        doing: &'static str,
    ) -> Result<Option<RevisionId>> {
        conn.prepare_cached("SELECT revision FROM head")
            .and_then(|mut s| s.query_row([], |row| row.get(0).map(RevisionId)).optional())
            .map_err(|e| self.sql(doing, e))
    }

    /// Deletes a revision that is neither current nor tagged.
    pub fn forget_revision(&self, id: RevisionId) -> Result<()> {
        const DOING: &str = "forget a revision";
        self.write_without_room(DOING, |conn| {
            if self.head_in(conn, DOING)? == Some(id) {
                return Err(self.conflict(DOING, format!("revision {id} is the current one")));
            }
            let tag: Option<String> = conn
                .query_row("SELECT name FROM tag WHERE revision = ?1", [id.0], |row| {
                    row.get(0)
                })
                .optional()
                .map_err(|e| self.sql(DOING, e))?;
            if let Some(tag) = tag {
                return Err(self.conflict(DOING, format!("revision {id} is tagged {tag}")));
            }
            conn.execute("DELETE FROM revision WHERE id = ?1", [id.0])
                .map_err(|e| self.sql(DOING, e))?;
            Ok(())
        })
    }

    /// Changes the message of the current revision. Returns the revision as it was.
    pub fn amend_message(&self, message: &str) -> Result<Revision> {
        const DOING: &str = "change the message of the revision";
        self.write(DOING, |conn| {
            let head = match self.head_in(conn, DOING)? {
                Some(head) => self.revision_in(conn, head, DOING)?,
                None => None,
            };
            let Some(head) = head else {
                return Err(self.conflict(DOING, "there is no revision"));
            };
            conn.execute(
                "UPDATE revision SET message = ?2 WHERE id = ?1",
                params![head.id.0, message],
            )
            .map_err(|e| self.sql(DOING, e))?;
            Ok(head)
        })
    }

    /// Tags a revision, moving the tag if it exists.
    pub fn set_tag(&self, name: &str, revision: RevisionId) -> Result<()> {
        const DOING: &str = "tag a revision";
        self.write(DOING, |conn| {
            if self.revision_in(conn, revision, DOING)?.is_none() {
                return Err(self.conflict(DOING, format!("there is no revision {revision}")));
            }
            conn.execute(
                "INSERT OR REPLACE INTO tag (name, revision) VALUES (?1, ?2)",
                params![name, revision.0],
            )
            .map_err(|e| self.sql(DOING, e))?;
            Ok(())
        })
    }

    /// Removes a tag; returns false if there was none.
    pub fn remove_tag(&self, name: &str) -> Result<bool> {
        const DOING: &str = "remove a tag";
        self.write(DOING, |conn| {
            conn.execute("DELETE FROM tag WHERE name = ?1", [name])
                .map(|count| count > 0)
                .map_err(|e| self.sql(DOING, e))
        })
    }

    /// Returns all tags, by name.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        self.select(
            "read the tags",
            "SELECT name, revision FROM tag ORDER BY name",
            |row| {
                Ok(Tag {
                    name: row.get(0)?,
                    revision: RevisionId(row.get(1)?),
                })
            },
        )
    }

    pub(super) fn insert_image(
        &self,
        conn: &Connection,
        image: &NewImage,
        doing: &'static str,
    ) -> Result<()> {
        let (known, inodes) = (image.id_map.len(), u64::from(image.inodes));
        // The unreferenced inodes of an amended image are not objects.
        let is_amended = image.tables_appended.is_some_and(|bytes| bytes > 0);
        if known > inodes || known < inodes && !is_amended {
            let detail = format!(
                "image {} has {inodes} inodes, but its map {known}",
                image.id
            );
            return Err(self.conflict(doing, detail));
        }
        conn.execute(
            "INSERT INTO image (id, file, size, inodes, block_size, compression, \
             root_number, id_map, digests, dead_bytes, tables_appended) \
             VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
            params![
                image.id.0,
                image.file,
                image.size as i64,
                image.inodes,
                image.block_size,
                image.compression,
                image.root_number,
                image.id_map.to_bytes(),
                image.digests,
                image.dead_bytes as i64,
                image.tables_appended.map(|bytes| bytes as i64),
            ],
        )
        .map_err(|e| self.sql(doing, e))?;
        Ok(())
    }

    /// Adds a revision after the current one and makes it current.
    pub(super) fn append_revision(
        &self,
        conn: &Connection,
        kind: RevisionKind,
        image: ImageId,
        source: Option<RevisionId>,
        new: &NewRevision,
        doing: &'static str,
    ) -> Result<RevisionId> {
        let parent = self.head_in(conn, doing)?;
        conn.execute(
            "INSERT INTO revision (parent, image, kind, source, message, time, user, host, \
             command, packages) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
            params![
                parent.map(|id| id.0),
                image.0,
                kind.as_str(),
                source.map(|id| id.0),
                new.message,
                now(),
                new.user,
                new.host,
                new.command,
                new.packages,
            ],
        )
        .map_err(|e| self.sql(doing, e))?;
        let id = RevisionId(conn.last_insert_rowid());
        conn.execute(
            "INSERT OR REPLACE INTO head (one, revision) VALUES (1, ?1)",
            [id.0],
        )
        .map_err(|e| self.sql(doing, e))?;
        Ok(id)
    }

    /// Returns whether the history has one revision.
    pub(super) fn is_only_revision(&self, conn: &Connection, doing: &'static str) -> Result<bool> {
        let count: i64 = conn
            .query_row("SELECT count(*) FROM revision", [], |row| row.get(0))
            .map_err(|e| self.sql(doing, e))?;
        Ok(count == 1)
    }

    /// Gives a revision another image, author and message, and deletes the row of its image, which
    /// no layer may use any more.
    pub(super) fn replace_revision(
        &self,
        conn: &Connection,
        old: &Revision,
        image: ImageId,
        new: &NewRevision,
        doing: &'static str,
    ) -> Result<()> {
        conn.execute(
            "UPDATE revision SET image = ?2, message = ?3, time = ?4, user = ?5, host = ?6, \
             command = ?7, packages = ?8 WHERE id = ?1",
            params![
                old.id.0,
                image.0,
                new.message,
                now(),
                new.user,
                new.host,
                new.command,
                new.packages,
            ],
        )
        .map_err(|e| self.sql(doing, e))?;
        self.delete_image(conn, old.image, doing)
    }

    /// Reads all rows of a query without parameters.
    pub(super) fn select<T>(
        &self,
        doing: &'static str,
        sql: &str,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.read(doing, |conn| {
            let mut statement = conn.prepare_cached(sql).map_err(|e| self.sql(doing, e))?;
            let rows = statement
                .query_map([], map)
                .and_then(Iterator::collect)
                .map_err(|e| self.sql(doing, e))?;
            Ok(rows)
        })
    }

    fn checked_image(&self, row: ImageRow) -> Result<ImageRow> {
        match valid::image_file(row.id, &row.file) {
            Ok(()) => Ok(row),
            Err(what) => Err(self.bad_row("image", what)),
        }
    }

    fn checked(&self, row: Result<Revision, String>) -> Result<Revision> {
        row.map_err(|what| self.bad_row("revision", what))
    }
}

fn image_of(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    Ok(ImageRow {
        id: ImageId(row.get(0)?),
        file: row.get(1)?,
        size: unsigned(row, 2)?,
        inodes: row.get(3)?,
        block_size: row.get(4)?,
        compression: row.get(5)?,
        root_number: row.get(6)?,
        dead_bytes: unsigned(row, 7)?,
        tables_appended: match row.get::<_, Option<i64>>(8)? {
            Some(_) => Some(unsigned(row, 8)?),
            None => None,
        },
        offset: match row.get::<_, Option<i64>>(9)? {
            Some(_) => Some(unsigned(row, 9)?),
            None => None,
        },
    })
}

/// Reads a column that is never negative.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// Reads a row of [`REVISION_COLUMNS`]; the inner error describes a bad value.
fn revision_of(row: &Row<'_>) -> rusqlite::Result<Result<Revision, String>> {
    let kind: String = row.get(3)?;
    let Some(kind) = RevisionKind::from_name(&kind) else {
        return Ok(Err(format!("kind {kind:?}")));
    };
    Ok(Ok(Revision {
        id: RevisionId(row.get(0)?),
        parent: row.get::<_, Option<i64>>(1)?.map(RevisionId),
        image: ImageId(row.get(2)?),
        kind,
        source: row.get::<_, Option<i64>>(4)?.map(RevisionId),
        message: row.get(5)?,
        time: row.get(6)?,
        user: row.get(7)?,
        host: row.get(8)?,
        command: row.get(9)?,
        packages: row.get(10)?,
    }))
}
