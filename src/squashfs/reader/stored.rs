//! Stored tables, for a writer that takes them over without decompressing them.

use std::ops::Range;

use super::Image;
use crate::squashfs::{
    Error, Result,
    format::{InodeBody, LookupTable, METADATA_HEADER_SIZE, METADATA_SIZE, MetadataHeader},
};

/// A table of metadata blocks that is continued: all blocks except the last stay as stored.
#[derive(Debug, Clone)]
pub struct StoredTable {
    /// Position in the image.
    pub at: u64,
    /// Stored bytes of the full blocks.
    pub full: u64,
    /// Decompressed content of the last block if it is not full. Fewer than 8 KiB.
    pub rest: Vec<u8>,
}

/// The xattr area: relocatable except for the positions in its header and index.
#[derive(Debug, Clone)]
pub struct StoredXattrs {
    /// The blocks of lists, then those of the id table.
    pub blocks: Range<u64>,
    /// Positions of the id table's blocks.
    pub index: Vec<u64>,
    /// Entries in the id table.
    pub count: u32,
}

impl Image {
    /// Returns the stored inode table.
    pub fn stored_inodes(&self) -> Result<StoredTable> {
        self.stored_table("inode table", self.inode_table(), self.root().block())
    }

    /// Returns the stored directory table.
    pub fn stored_listings(&self) -> Result<StoredTable> {
        // The last listing is usually that of the root.
        let from = match self.inode(self.root())?.body {
            InodeBody::Directory(body) if body.listing_size > 0 => u64::from(body.block_start),
            _ => 0,
        };
        self.stored_table("directory table", self.directory_table(), from)
    }

    /// Finds the last block of a table by walking the block headers, starting `from` bytes into it.
    fn stored_table(
        &self,
        what: &'static str,
        table: Range<u64>,
        from: u64,
    ) -> Result<StoredTable> {
        let mut stored = StoredTable {
            at: table.start,
            full: 0,
            rest: Vec::new(),
        };
        if table.is_empty() {
            return Ok(stored);
        }
        let mut at = table.start.saturating_add(from);
        loop {
            let next = self.next_block(what, at)?;
            if next >= table.end {
                break;
            }
            at = next;
        }
        let last = self.blocks().load_metadata(what, at, table.end)?;
        if last.next != table.end {
            let detail = format!("ends at {:#x} instead of {:#x}", last.next, table.end);
            return Err(Error::corrupt(what, at, detail));
        }
        if last.bytes.len() < METADATA_SIZE {
            stored.full = at - table.start;
            stored.rest = last.bytes;
        } else {
            stored.full = table.end - table.start;
        }
        Ok(stored)
    }

    fn next_block(&self, what: &'static str, at: u64) -> Result<u64> {
        let mut raw = [0; METADATA_HEADER_SIZE];
        self.read_raw(at, &mut raw)?;
        let header = MetadataHeader::parse(raw)
            .ok_or_else(|| Error::corrupt(what, at, format!("header {raw:02x?}")))?;
        Ok(at + METADATA_HEADER_SIZE as u64 + u64::from(header.stored))
    }

    /// Returns the export table, if there is one.
    pub fn export_table(&self) -> Option<&LookupTable> {
        self.0.export.as_ref()
    }

    /// Returns a stored entry of the export table.
    pub fn export_entry(&self, slot: u32) -> Result<[u8; 8]> {
        self.table_entry("export table", self.export_table(), u64::from(slot))
    }

    /// Returns a stored metadata block with its header.
    pub fn stored_block(&self, what: &'static str, at: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (self.next_block(what, at)? - at) as usize];
        self.read_raw(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Returns the user and group ids, by index.
    pub fn ids(&self) -> &[u32] {
        &self.0.ids
    }

    /// Returns the xattr area, if there is one.
    pub fn stored_xattrs(&self) -> Option<StoredXattrs> {
        let (table, at) = (self.xattr_table()?, self.superblock().xattrs_at()?);
        Some(StoredXattrs {
            blocks: table.lists.start..at,
            index: table.ids.blocks().to_vec(),
            count: u32::try_from(table.ids.count()).ok()?,
        })
    }
}
