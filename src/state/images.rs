//! Images of the history and their rows.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::Result;
use super::id_map::IdMap;
use super::ids::ImageId;
use super::{StateDb, valid};

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

const IMAGE_COLUMNS: &str = "id, file, size, inodes, block_size, compression, root_number, dead_bytes, tables_appended, \
     offset";

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

    pub(super) fn delete_image(
        &self,
        conn: &Connection,
        id: ImageId,
        doing: &'static str,
    ) -> Result<()> {
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

    fn checked_image(&self, row: ImageRow) -> Result<ImageRow> {
        match valid::image_file(row.id, &row.file) {
            Ok(()) => Ok(row),
            Err(what) => Err(self.bad_row("image", what)),
        }
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
