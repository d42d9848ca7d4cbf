//! Random access to an image, for many threads at once.
//!
//! [`Image::open`] reads the superblock and the small tables, however many files there are. An
//! inode is parsed when asked for, a directory is parsed once and kept, a block is decompressed once
//! however many threads want it. Reads are positional: there is no lock around I/O.
//!
//! The image's bytes are hostile: whatever they say, the answer is an error or bounded memory.

mod ahead;
mod blocks;
mod buffers;
mod cache;
mod cursor;
mod directory;
mod embedded;
mod file;
mod idle;
mod open;
mod scan;
mod stored;
mod uses;
mod verify;
mod xattrs;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;

use std::{fmt, fs::File, ops::Range, path::Path, sync::Arc};

pub use blocks::ReadCounts;
pub use buffers::Block;
pub use cache::Hits;
pub use directory::{DirEntry, Directory};
pub use file::FileLayout;
use open::{Inner, XattrTable};
pub use stored::{StoredTable, StoredXattrs};
pub use uses::{BlockUse, MAX_USES};
pub use verify::{VerifyProgress, VerifyReport, verify};

use super::{
    Error, Result,
    format::{Inode, InodeBody, InodeContext, InodeRef, LookupTable, Superblock},
};
use blocks::Blocks;
use cache::Cache;
use cursor::Cursor;

/// How much memory a reader may keep.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// Bytes of decompressed metadata: half of it for blocks, a quarter each for parsed directories
    /// and for block lists.
    pub metadata_cache_bytes: usize,
    /// Bytes of decompressed data and fragment blocks.
    pub data_cache_bytes: usize,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        ReaderOptions {
            metadata_cache_bytes: 8 << 20,
            data_cache_bytes: 28 << 20,
        }
    }
}

/// How often the caches of a reader had what was asked of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheHits {
    /// Data and fragment blocks.
    pub data: Hits,
    /// Metadata blocks.
    pub metadata: Hits,
    /// Parsed directories.
    pub directories: Hits,
    /// Places of files' data.
    pub layouts: Hits,
}

/// An open image. Clones share everything.
#[derive(Clone)]
pub struct Image(Arc<Inner>);

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("superblock", self.superblock())
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens an image by path. One inside an AppImage or a SIF container is found.
    pub fn open(path: impl AsRef<Path>, options: ReaderOptions) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("opening an image"))?;
        Self::open_file(file, options)
    }

    /// Opens an image in an open file, whose own position is of no account.
    pub fn open_file(file: File, options: ReaderOptions) -> Result<Self> {
        Ok(Image(Arc::new(Inner::open(file, None, &options)?)))
    }

    /// Opens an image that begins at some byte of a file.
    pub fn open_at(path: impl AsRef<Path>, offset: u64, options: ReaderOptions) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("opening an image"))?;
        Ok(Image(Arc::new(Inner::open(file, Some(offset), &options)?)))
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.0.superblock
    }
    /// The root directory's inode.
    pub fn root(&self) -> InodeRef {
        self.0.superblock.root
    }
    /// Where the image begins in its file: not at 0 only if it is inside another.
    pub fn offset(&self) -> u64 {
        self.0.blocks.base
    }
    /// The file the image lies in: to copy ranges from, or to share extents with.
    pub fn as_file(&self) -> &File {
        &self.0.blocks.file
    }
    /// The compressor options as stored (the payload of their block), if there are any.
    pub fn options_bytes(&self) -> Option<&[u8]> {
        self.0.options.as_deref()
    }
    /// Where data and fragment blocks lie: from after the compressor options up to the inode
    /// table.
    pub fn data_area(&self) -> Range<u64> {
        self.0.data_start..self.0.superblock.inode_table
    }
    /// How much has been read and decompressed so far, by all clones together.
    pub fn counts(&self) -> ReadCounts {
        self.0.blocks.counts()
    }
    /// How often the caches had what was asked for so far, for all clones together.
    pub fn cache_hits(&self) -> CacheHits {
        let (metadata, data) = self.0.blocks.hits();
        CacheHits {
            data,
            metadata,
            directories: self.0.directories.hits(),
            layouts: self.0.layouts.hits(),
        }
    }
    /// Notes from now on which blocks are used, in order: the first [`MAX_USES`], and for two minutes
    /// from the first on.
    pub fn note_uses(&self) {
        self.0.blocks.uses.begin();
    }
    /// The blocks that were used since [`Image::note_uses`], in the order of their first use.
    pub fn uses(&self) -> Vec<BlockUse> {
        self.0.blocks.uses.order()
    }
    /// Returns what, run on a thread of its own, waits for the first use of a block and then decompresses
    /// the blocks of `order` ahead of their use. It ends when the image is closed, if not before;
    /// waiting, it does not keep the image open. [`Image::note_uses`] comes first.
    pub fn decompress_ahead(&self, order: Vec<BlockUse>) -> impl FnOnce() + Send + use<> {
        let (inner, uses) = (Arc::downgrade(&self.0), self.0.blocks.uses.clone());
        move || ahead::decompress_ahead(&inner, &uses, &order)
    }
    /// Reads stored bytes as they are. Fails beyond the image's end.
    pub fn read_raw(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.0.superblock.bytes_used) {
            let detail = format!("{} bytes at {offset:#x}, beyond the image", buffer.len());
            return Err(Error::invalid("reading stored bytes", detail));
        }
        self.0.blocks.read(offset, buffer, "reading stored bytes")
    }

    /// An inode.
    pub fn inode(&self, inode: InodeRef) -> Result<Inode> {
        let mut cursor = Cursor::new(self.blocks(), "inode", self.inode_table(), inode)?;
        Inode::read(&mut cursor, inode.0, &self.inode_context())
    }

    /// The inode of a directory entry, which must be what the entry says.
    pub fn entry_inode(&self, entry: &DirEntry) -> Result<Inode> {
        let inode = self.inode(entry.inode)?;
        if inode.number != entry.number || inode.kind() != entry.kind {
            let detail = format!(
                "number {}, {:?}; its directory says number {}, {:?}",
                inode.number,
                inode.kind(),
                entry.number,
                entry.kind
            );
            return Err(Error::corrupt("inode", entry.inode.0, detail));
        }
        Ok(inode)
    }

    /// Where the inode of a number is: by the export table, or else by an index made from one
    /// pass over the inode table when this is first called.
    pub fn inode_ref(&self, number: u32) -> Result<InodeRef> {
        let slot = number
            .checked_sub(1)
            .filter(|_| number <= self.0.superblock.inodes)
            .ok_or_else(|| Error::invalid("inode", format!("number {number}")))?;
        match &self.0.export {
            Some(table) => {
                let raw: [u8; 8] =
                    self.table_entry("export table", Some(table), u64::from(slot))?;
                let inode = InodeRef(u64::from_le_bytes(raw));
                let table = self.inode_table();
                if inode.block() >= table.end - table.start {
                    let detail = format!("inode number {number} at {inode:?}, beyond its table");
                    return Err(Error::corrupt(
                        "export table",
                        self.0.superblock.export_table,
                        detail,
                    ));
                }
                Ok(inode)
            }
            None => self.scanned_ref(slot),
        }
    }

    /// The inode of a number.
    pub fn inode_by_number(&self, number: u32) -> Result<Inode> {
        let place = self.inode_ref(number)?;
        let inode = self.inode(place)?;
        if inode.number != number {
            let detail = format!("number {} where {number} belongs", inode.number);
            return Err(Error::corrupt("export table", place.0, detail));
        }
        Ok(inode)
    }

    /// The owner's id.
    pub fn uid(&self, inode: &Inode) -> Result<u32> {
        self.id(inode.uid_idx)
    }
    /// The group's id.
    pub fn gid(&self, inode: &Inode) -> Result<u32> {
        self.id(inode.gid_idx)
    }
    /// An entry of the id table.
    pub fn id(&self, index: u16) -> Result<u32> {
        self.0.ids.get(usize::from(index)).copied().ok_or_else(|| {
            let detail = format!("id {index} of {}", self.0.ids.len());
            Error::corrupt("id table", self.0.superblock.id_table, detail)
        })
    }

    /// A symbolic link's target.
    pub fn read_link<'a>(&self, link: &'a Inode) -> Result<&'a [u8]> {
        match &link.body {
            InodeBody::Symlink(target) => Ok(target),
            _ => {
                let detail = format!("inode {} is none", link.number);
                Err(Error::invalid("reading a symbolic link", detail))
            }
        }
    }

    fn blocks(&self) -> &Blocks {
        &self.0.blocks
    }
    fn inode_table(&self) -> Range<u64> {
        self.0.superblock.inode_table..self.0.superblock.directory_table
    }
    fn directory_table(&self) -> Range<u64> {
        self.0.superblock.directory_table..self.0.directory_end
    }
    fn fragment_table(&self) -> Option<&LookupTable> {
        self.0.fragments.as_ref()
    }
    fn xattr_table(&self) -> Option<&XattrTable> {
        self.0.xattrs.as_ref()
    }
    fn directories(&self) -> &Cache<directory::Key, Arc<Directory>> {
        &self.0.directories
    }
    fn layouts(&self) -> &Cache<u64, Arc<FileLayout>> {
        &self.0.layouts
    }
    fn inode_context(&self) -> InodeContext {
        InodeContext {
            block_size: self.0.superblock.block_size,
            inodes: self.0.superblock.inodes,
            ids: self.0.superblock.ids,
            data_end: self.0.superblock.inode_table,
            fragments: self.fragment_count(),
        }
    }

    /// An entry of a lookup table, by way of the metadata cache.
    fn table_entry<const N: usize>(
        &self,
        what: &'static str,
        table: Option<&LookupTable>,
        index: u64,
    ) -> Result<[u8; N]> {
        let count = table.map_or(0, LookupTable::count);
        let missing = || Error::corrupt(what, index, format!("entry {index} of {count}"));
        let (at, offset) = table
            .and_then(|table| table.locate(index))
            .ok_or_else(missing)?;
        let block = self
            .blocks()
            .metadata(what, at, self.0.superblock.bytes_used)?;
        let found = block
            .bytes
            .get(offset..)
            .and_then(|bytes| bytes.first_chunk());
        found.copied().ok_or_else(missing)
    }
}
