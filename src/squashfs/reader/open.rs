//! Opens an image: reads the superblock and the tables that are needed to find everything else.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, OnceLock},
};

use super::{
    ReaderOptions, blocks::Blocks, cache::Cache, directory, embedded, file::FileLayout,
    sequential::Streams,
};
use crate::squashfs::{
    Error, Result,
    format::{
        Flags, LookupTable, METADATA_HEADER_SIZE, MetadataHeader, SUPERBLOCK_SIZE, Superblock,
        XATTR_ID_SIZE, XATTR_TABLE_HEADER_SIZE, XattrTableHeader,
    },
};

/// The state of an open image.
pub(super) struct Inner {
    pub(super) superblock: Superblock,
    pub(super) blocks: Blocks,
    pub(super) options: Option<Vec<u8>>,
    pub(super) data_start: u64,
    pub(super) directory_end: u64,
    pub(super) ids: Vec<u32>,
    pub(super) fragments: Option<LookupTable>,
    pub(super) export: Option<LookupTable>,
    pub(super) xattrs: Option<XattrTable>,
    pub(super) directories: Cache<directory::Key, Arc<super::Directory>>,
    pub(super) layouts: Cache<u64, Arc<FileLayout>>,
    pub(super) streams: Streams,
    /// Inode references by number - 1, for images without an export table. The lock prevents two
    /// threads from both building it.
    pub(super) scanned: OnceLock<Vec<u64>>,
    pub(super) scanning: Mutex<()>,
}

pub(super) struct XattrTable {
    /// Positions of the lists' metadata blocks.
    pub(super) lists: Range<u64>,
    pub(super) ids: LookupTable,
}

impl Inner {
    /// Opens an image that begins at `base` in a file. With `None`, the position is detected.
    pub(super) fn open(mut file: File, base: Option<u64>, options: &ReaderOptions) -> Result<Self> {
        // The length in the metadata is 0 for a block device.
        let file_len = file
            .seek(SeekFrom::End(0))
            .map_err(Error::io("measuring an image"))?;
        let base = match base {
            Some(base) => base,
            None => embedded::find(&file)?,
        };
        let file_len = file_len.saturating_sub(base);
        if file_len < SUPERBLOCK_SIZE as u64 {
            return Err(Error::NotSquashfs("shorter than a superblock"));
        }
        let mut raw = [0; SUPERBLOCK_SIZE];
        file.read_exact_at(&mut raw, base)
            .map_err(Error::io("reading the superblock"))?;
        let superblock = Superblock::parse(&raw)?;
        superblock.validate(file_len)?;
        let blocks = Blocks::new(
            (file, base),
            superblock.compressor,
            superblock.block_size,
            options.metadata_cache_bytes / 2,
            (options.data_cache_bytes, options.data_cache_limit),
        )?;
        let (compressor_options, data_start) = read_options(&blocks, &superblock)?;

        let after = superblock.directory_table;
        let fragments = match superblock.fragments_at() {
            Some(at) => {
                let count = u64::from(superblock.fragments);
                Some(read_table(
                    &blocks,
                    "fragment table",
                    at,
                    at,
                    count,
                    16,
                    after,
                )?)
            }
            None => None,
        };
        let export = match superblock.export_at() {
            Some(at) => {
                let count = u64::from(superblock.inodes);
                Some(read_table(
                    &blocks,
                    "export table",
                    at,
                    at,
                    count,
                    8,
                    after,
                )?)
            }
            None => None,
        };
        let id_table = {
            let (at, count) = (superblock.id_table, u64::from(superblock.ids));
            read_table(&blocks, "id table", at, at, count, 4, after)?
        };
        let ids = read_ids(&blocks, &superblock, &id_table)?;
        let xattrs = match superblock.xattrs_at() {
            Some(at) => read_xattrs(&blocks, &superblock, at)?,
            None => None,
        };
        // The directory table ends where the first block of the next table begins.
        let directory_end = [fragments.as_ref(), export.as_ref(), Some(&id_table)]
            .into_iter()
            .flatten()
            .filter_map(|table| table.blocks().first().copied())
            .fold(superblock.directory_end(), u64::min);
        Ok(Inner {
            blocks,
            options: compressor_options,
            data_start,
            directory_end,
            ids,
            fragments,
            export,
            xattrs,
            directories: Cache::new(options.metadata_cache_bytes / 4),
            layouts: Cache::new(options.metadata_cache_bytes / 4),
            streams: Streams::default(),
            scanned: OnceLock::new(),
            scanning: Mutex::new(()),
            superblock,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.blocks.uses.close();
    }
}

/// Reads the compressor options, and returns them with the position where data begins.
fn read_options(blocks: &Blocks, superblock: &Superblock) -> Result<(Option<Vec<u8>>, u64)> {
    const AT: u64 = SUPERBLOCK_SIZE as u64;
    if !superblock.flags.has(Flags::COMPRESSOR_OPTIONS) {
        return Ok((None, AT));
    }
    let what = "compressor options";
    let mut raw = [0; METADATA_HEADER_SIZE];
    blocks.read(AT, &mut raw, "reading the compressor options")?;
    let header = MetadataHeader::parse(raw)
        .filter(|header| !header.compressed)
        .ok_or_else(|| Error::corrupt(what, AT, format!("header {raw:02x?}")))?;
    let start = AT + METADATA_HEADER_SIZE as u64;
    let end = start + u64::from(header.stored);
    if end > superblock.inode_table {
        return Err(Error::corrupt(what, AT, format!("{} bytes", header.stored)));
    }
    let mut payload = vec![0; usize::from(header.stored)];
    blocks.read(start, &mut payload, "reading the compressor options")?;
    Ok((Some(payload), end))
}

/// Reads the index of a lookup table at `index_at`. The table's blocks must end at `end` and lie
/// after the start of the directory table. Validation of the superblock ensures that the index is
/// in the file.
fn read_table(
    blocks: &Blocks,
    what: &'static str,
    index_at: u64,
    end: u64,
    count: u64,
    entry_size: usize,
    from: u64,
) -> Result<LookupTable> {
    let len = LookupTable::block_count(count, entry_size).saturating_mul(8);
    let len = usize::try_from(len)
        .map_err(|_| Error::corrupt(what, index_at, format!("{count} entries")))?;
    let mut index = vec![0; len];
    blocks.read(index_at, &mut index, "reading a table's index")?;
    LookupTable::parse(what, &index, count, entry_size, from, end)
}

fn read_ids(blocks: &Blocks, superblock: &Superblock, table: &LookupTable) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for &at in table.blocks() {
        let block = blocks.load_metadata("id table", at, superblock.id_table)?;
        ids.extend(
            block
                .bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|id| u32::from_le_bytes(*id)),
        );
    }
    let wanted = usize::from(superblock.ids);
    if ids.len() < wanted {
        let detail = format!("{} ids of {wanted}", ids.len());
        return Err(Error::corrupt("id table", superblock.id_table, detail));
    }
    ids.truncate(wanted);
    Ok(ids)
}

fn read_xattrs(blocks: &Blocks, superblock: &Superblock, at: u64) -> Result<Option<XattrTable>> {
    let what = "xattr table";
    let mut raw = [0; XATTR_TABLE_HEADER_SIZE];
    blocks.read(at, &mut raw, "reading the xattr table")?;
    let header = XattrTableHeader::parse(&raw)?;
    if header.count == 0 {
        return Ok(None);
    }
    let index_at = at + XATTR_TABLE_HEADER_SIZE as u64;
    let room = superblock.bytes_used - index_at;
    let needed = LookupTable::block_count(u64::from(header.count), XATTR_ID_SIZE).saturating_mul(8);
    if needed > room || header.lists >= at || header.lists < superblock.id_table {
        let detail = format!("{} lists at {:#x}", header.count, header.lists);
        return Err(Error::corrupt(what, at, detail));
    }
    let count = u64::from(header.count);
    let ids = read_table(
        blocks,
        what,
        index_at,
        at,
        count,
        XATTR_ID_SIZE,
        header.lists,
    )?;
    let end = ids.blocks().first().copied().unwrap_or(at);
    Ok(Some(XattrTable {
        lists: header.lists..end,
        ids,
    }))
}
