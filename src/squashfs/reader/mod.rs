//! Random access to an image, for many threads at once.
//!
//! [`Image::open`] reads only the superblock and the small tables, however many files there are. An
//! inode is parsed on request, a directory is parsed once and cached, and a block that several
//! threads request is decompressed once. Reads are positional, so no lock is held during I/O.
//!
//! The bytes of an image are not trusted: any input leads to a result or an error, in bounded
//! memory.

mod ahead;
mod blocks;
mod buffers;
mod cache;
mod cursor;
mod directory;
mod embedded;
mod file;
mod growth;
mod idle;
mod open;
mod scan;
mod sections;
mod sequential;
mod shared;
mod shrink;
mod stored;
mod usage;
mod uses;
mod verify;
mod xattrs;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;

use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::{fmt, fs::File, ops::Range, path::Path, sync::Arc};

use nix::libc;

pub use blocks::ReadCounts;
pub use buffers::Block;
pub use cache::Hits;
pub use directory::{DirEntry, Directory};
pub use embedded::may_embed;
pub use file::FileLayout;
use open::{Inner, XattrTable};
pub use sections::Sections;
pub use shared::Shared;
pub use stored::{StoredTable, StoredXattrs};
pub use usage::{Parts, Usage};
pub use uses::{BlockUse, MAX_FILE_USES, MAX_USES};
pub use verify::{VerifyProgress, VerifyReport, verify};

use super::{
    Error, Result,
    format::{Inode, InodeBody, InodeContext, InodeRef, LookupTable, Superblock},
};
use blocks::Blocks;
use cache::Cache;
use cursor::Cursor;

/// Sizes of a reader's caches.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// Bytes of decompressed metadata: half of it for blocks, a quarter each for parsed directories
    /// and for block lists.
    pub metadata_cache_bytes: usize,
    /// Bytes of decompressed data and fragment blocks.
    pub data_cache_bytes: usize,
    /// Returns the bytes to which that cache may grow now. It grows while evicted blocks are needed
    /// again, and shrinks when it is idle. `None` for a cache of fixed size.
    pub data_cache_limit: Option<fn() -> usize>,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        ReaderOptions {
            metadata_cache_bytes: 8 << 20,
            data_cache_bytes: 28 << 20,
            data_cache_limit: None,
        }
    }
}

/// Hits and misses of a reader's caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheHits {
    /// Data and fragment blocks.
    pub data: Hits,
    /// Metadata blocks.
    pub metadata: Hits,
    /// Parsed directories.
    pub directories: Hits,
    /// Layouts of files.
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

/// Opens a regular file or a block device. Opening a FIFO would block until it has a writer.
fn open_device_or_file(path: &Path) -> Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(Error::io("opening an image"))?;
    let kind = file.metadata().map_err(Error::io("opening an image"))?;
    let kind = kind.file_type();
    if kind.is_dir() {
        return Err(Error::NotSquashfs("it is a directory"));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotSquashfs(
            "it is neither a file nor a block device",
        ));
    }
    Ok(file)
}

impl Image {
    /// Opens an image by path. Images inside an AppImage or a SIF container are found.
    pub fn open(path: impl AsRef<Path>, options: ReaderOptions) -> Result<Self> {
        Self::open_file(open_device_or_file(path.as_ref())?, options)
    }

    /// Opens an image in an open file. The file's position is ignored.
    pub fn open_file(file: File, options: ReaderOptions) -> Result<Self> {
        Ok(Image(Arc::new(Inner::open(file, None, &options)?)))
    }

    /// Opens an image that begins at `offset` bytes in a file.
    pub fn open_at(path: impl AsRef<Path>, offset: u64, options: ReaderOptions) -> Result<Self> {
        let file = open_device_or_file(path.as_ref())?;
        Ok(Image(Arc::new(Inner::open(file, Some(offset), &options)?)))
    }

    /// Returns the superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.0.superblock
    }
    /// Returns the reference of the root directory's inode.
    pub fn root(&self) -> InodeRef {
        self.0.superblock.root
    }
    /// Returns where the image begins in its file: at 0, unless it is inside another file.
    pub fn offset(&self) -> u64 {
        self.0.blocks.base
    }
    /// Returns the file of the image, to copy ranges from or to share extents with.
    pub fn as_file(&self) -> &File {
        &self.0.blocks.file
    }
    /// Returns the stored compressor options (the payload of their block), if there are any.
    pub fn options_bytes(&self) -> Option<&[u8]> {
        self.0.options.as_deref()
    }
    /// Returns the range of data and fragment blocks: from the compressor options to the inode
    /// table.
    pub fn data_area(&self) -> Range<u64> {
        self.0.data_start..self.0.superblock.inode_table
    }
    /// Returns how much all clones have read and decompressed so far.
    pub fn counts(&self) -> ReadCounts {
        self.0.blocks.counts()
    }
    /// Returns the cache hits of all clones so far.
    pub fn cache_hits(&self) -> CacheHits {
        let (metadata, data) = self.0.blocks.hits();
        CacheHits {
            data,
            metadata,
            directories: self.0.directories.hits(),
            layouts: self.0.layouts.hits(),
        }
    }
    /// Starts to record which blocks and files are used, in order: at most [`MAX_USES`] and
    /// [`MAX_FILE_USES`], for two minutes from the first use on.
    pub fn record_uses(&self) {
        self.0.blocks.uses.begin();
    }
    /// Returns the blocks used since [`Image::record_uses`], in the order of their first use.
    pub fn uses(&self) -> Vec<BlockUse> {
        self.0.blocks.uses.order()
    }
    /// Returns the inode numbers of the files used since [`Image::record_uses`], in the order of
    /// their first use.
    pub fn file_uses(&self) -> Vec<u32> {
        self.0.blocks.uses.files()
    }
    /// Returns a function for a thread that waits for the first use of a block, then decompresses
    /// the blocks of `order` ahead of their use. It ends at the latest when the image is closed;
    /// while it waits, it does not keep the image open. Call [`Image::record_uses`] first.
    pub fn decompress_ahead(&self, order: Vec<BlockUse>) -> impl FnOnce() + Send + use<> {
        let (inner, uses) = (Arc::downgrade(&self.0), self.0.blocks.uses.clone());
        move || ahead::decompress_ahead(&inner, &uses, &order)
    }
    /// Reads stored bytes. Fails beyond the image's end.
    pub fn read_raw(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.0.superblock.bytes_used) {
            let detail = format!("{} bytes at {offset:#x}, beyond the image", buffer.len());
            return Err(Error::invalid("reading stored bytes", detail));
        }
        self.0.blocks.read(offset, buffer, "reading stored bytes")
    }

    /// Reads an inode.
    pub fn inode(&self, inode: InodeRef) -> Result<Inode> {
        let mut cursor = Cursor::new(self.blocks(), "inode", self.inode_table(), inode)?;
        Inode::read(&mut cursor, inode.0, &self.inode_context())
    }

    /// Reads the inode of a directory entry, and checks that it agrees with the entry.
    pub fn entry_inode(&self, entry: &DirEntry) -> Result<Inode> {
        let inode = self.inode(entry.inode)?;
        if inode.number != entry.number || inode.kind() != entry.kind {
            let detail = format!(
                "number {}, {:?}; its directory has number {}, {:?}",
                inode.number,
                inode.kind(),
                entry.number,
                entry.kind
            );
            return Err(Error::corrupt("inode", entry.inode.0, detail));
        }
        Ok(inode)
    }

    /// Finds the inode with a number in the export table. Without an export table, the first call
    /// builds an index in one pass over the inode table.
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

    /// Reads the inode with a number.
    pub fn inode_by_number(&self, number: u32) -> Result<Inode> {
        let place = self.inode_ref(number)?;
        let inode = self.inode(place)?;
        if inode.number != number {
            let detail = format!("number {} instead of {number}", inode.number);
            return Err(Error::corrupt("export table", place.0, detail));
        }
        Ok(inode)
    }

    /// Returns the owner's user id.
    pub fn uid(&self, inode: &Inode) -> Result<u32> {
        self.id(inode.uid_idx)
    }
    /// Returns the group id.
    pub fn gid(&self, inode: &Inode) -> Result<u32> {
        self.id(inode.gid_idx)
    }
    /// Returns an entry of the id table.
    pub fn id(&self, index: u16) -> Result<u32> {
        self.0.ids.get(usize::from(index)).copied().ok_or_else(|| {
            let detail = format!("id {index} of {}", self.0.ids.len());
            Error::corrupt("id table", self.0.superblock.id_table, detail)
        })
    }

    /// Returns the target of a symbolic link.
    pub fn read_link<'a>(&self, link: &'a Inode) -> Result<&'a [u8]> {
        match &link.body {
            InodeBody::Symlink(target) => Ok(target),
            _ => {
                let detail = format!("inode {} is not one", link.number);
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

    /// Reads an entry of a lookup table through the metadata cache.
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
