//! Amending the tables of an old image: its inodes and listings stay where they are in their tables,
//! still compressed; new ones follow, and with them anew all that leads to them, up to the root. What
//! they replace stays in the tables and belongs to nothing.
//!
//! Nothing in the format forbids inodes that no directory names. Readers go from the root, which is
//! the last inode here as everywhere.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::carry::OldData;
use super::error::{Result, WriteError};
use super::metadata::{Codec, MetadataWriter};
use super::nodes::Tree;
use super::tables::Part;
use crate::squashfs::Error;
use crate::squashfs::format::{
    FileBody, FragmentRef, InodeRef, METADATA_SIZE, XattrTableHeader, encode_index,
};
use crate::squashfs::reader::{Image, StoredTable};

/// Bytes of an entry of the export table.
const EXPORT_ENTRY: u32 = 8;
/// Entries of it in a metadata block.
const EXPORTS_PER_BLOCK: u32 = METADATA_SIZE as u32 / EXPORT_ENTRY;

/// The tables of an old image, to go on with.
#[derive(Debug)]
pub(super) struct OldTables {
    image: Image,
    inodes: StoredTable,
    listings: StoredTable,
}

impl OldTables {
    pub(super) fn new(image: &Image) -> Result<OldTables> {
        let why = |error: Error| WriteError::Amend(error.to_string());
        if image.export_table().is_none() {
            return Err(WriteError::Amend("it has no export table".into()));
        }
        Ok(OldTables {
            image: image.clone(),
            inodes: image.stored_inodes().map_err(why)?,
            listings: image.stored_listings().map_err(why)?,
        })
    }

    /// The tree that is pushed.
    pub(super) fn tree(&self) -> Tree {
        Tree::amending(self.image.ids(), self.image.superblock().inodes)
    }

    /// The two tables that inode references lead into, to be written on.
    pub(super) fn writers(&self) -> (MetadataWriter, MetadataWriter) {
        let of = |table: &StoredTable| MetadataWriter::continuing(table.full, table.rest.clone());
        (of(&self.inodes), of(&self.listings))
    }

    /// What comes before what those writers write.
    pub(super) fn inodes(&self) -> Part {
        part(&self.inodes)
    }

    pub(super) fn listings(&self) -> Part {
        part(&self.listings)
    }

    /// The export table: blocks in which nothing changes as they are stored.
    pub(super) fn export(
        &self,
        inodes: u32,
        changed: &HashMap<u32, InodeRef>,
        codec: &mut Codec,
    ) -> Result<MetadataWriter> {
        let old = self.image.superblock().inodes;
        let mut blocks: Vec<u32> = changed
            .keys()
            .map(|n| (n - 1) / EXPORTS_PER_BLOCK)
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        let stored = self
            .image
            .export_table()
            .map_or(&[][..], |table| table.blocks());
        let mut table = MetadataWriter::default();
        for block in 0..inodes.div_ceil(EXPORTS_PER_BLOCK) {
            let slots = block * EXPORTS_PER_BLOCK..inodes.min((block + 1) * EXPORTS_PER_BLOCK);
            let is_full = old >= slots.end && slots.len() == EXPORTS_PER_BLOCK as usize;
            match stored.get(block as usize) {
                Some(at) if is_full && blocks.binary_search(&block).is_err() => {
                    table.carry(&self.image.stored_block("export table", *at)?);
                }
                _ => self.export_block(slots, changed, &mut table, codec)?,
            }
        }
        Ok(table)
    }

    fn export_block(
        &self,
        slots: Range<u32>,
        changed: &HashMap<u32, InodeRef>,
        table: &mut MetadataWriter,
        codec: &mut Codec,
    ) -> Result<()> {
        for slot in slots {
            let entry = match changed.get(&(slot + 1)) {
                Some(place) => place.0.to_le_bytes(),
                None => self.image.export_entry(slot)?,
            };
            table.write(&entry, codec)?;
        }
        Ok(())
    }

    /// The xattr area for position `at`, and where its header lies.
    pub(super) fn xattrs(&self, at: u64) -> Option<(Part, Vec<u8>, u64)> {
        let stored = self.image.stored_xattrs()?;
        let blocks = &stored.blocks;
        let len = blocks.end - blocks.start;
        let header = XattrTableHeader {
            lists: at,
            count: stored.count,
        };
        let mut bytes = header.to_bytes().to_vec();
        // Each position is in the area: the reader has looked.
        let moved: Vec<u64> = stored
            .index
            .iter()
            .map(|old| old - blocks.start + at)
            .collect();
        encode_index(&moved, &mut bytes);
        let part = Part::Old {
            at: blocks.start,
            len,
        };
        Some((part, bytes, at + len))
    }
}

fn part(table: &StoredTable) -> Part {
    Part::Old {
        at: table.at,
        len: table.full,
    }
}

/// What of the old data area belongs to nothing any more, each piece counted once. Nobody looks at all
/// files to see what else uses it: this is an upper bound where files share data.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Blocks: position and length.
    runs: HashSet<(u64, u64)>,
    tails: HashSet<FragmentRef>,
    /// Bytes of the tails, by fragment block.
    in_fragments: HashMap<u32, u64>,
}

impl Left {
    /// Adds the data of a file of the old image.
    pub(super) fn add(&mut self, body: &FileBody, block_size: u32) {
        let len = body
            .blocks
            .iter()
            .map(|block| u64::from(block.stored()))
            .sum();
        if len > 0 {
            self.runs.insert((body.start, len));
        }
        if let Some(tail) = body.fragment
            && self.tails.insert(tail)
        {
            let len = body.size % u64::from(block_size);
            *self.in_fragments.entry(tail.index).or_default() += len;
        }
    }

    /// Stored bytes of it all, and of what is in fragment blocks: there the part in proportion.
    pub(super) fn stored(&self, old: &OldData) -> Result<(u64, u64)> {
        let block_size = old.image.superblock().block_size;
        let mut in_fragments = 0;
        for (index, left) in &self.in_fragments {
            let Some(entry) = old.fragments.get(*index as usize) else {
                continue;
            };
            // Most blocks are nearly full, where their frame does not tell.
            let len = old.image.fragment_len(entry)?.unwrap_or(block_size).max(1);
            let len = u64::from(len);
            in_fragments += u64::from(entry.size.stored()) * (*left).min(len) / len;
        }
        let runs: u64 = self.runs.iter().map(|(_, len)| len).sum();
        Ok((runs + in_fragments, in_fragments))
    }
}
