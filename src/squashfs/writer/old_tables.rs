//! The tables of an old image that are amended. Its inodes and listings stay where they are, still
//! compressed. New ones follow them, and so do new versions of all directories on the way to the
//! root. What they replace stays in the tables, unreferenced.
//!
//! The format allows inodes that no directory names. Readers start at the root, which is the last
//! inode here as everywhere.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::DataStats;
use super::carry::OldData;
use super::error::{Result, WriteError};
use super::metadata::{Codec, MetadataWriter};
use super::nodes::Tree;
use crate::squashfs::Error;
use crate::squashfs::format::{
    FileBody, FragmentRef, InodeRef, METADATA_SIZE, XattrTableHeader, encode_index,
};
use crate::squashfs::reader::{Image, StoredTable};

/// Bytes of an entry of the export table.
const EXPORT_ENTRY: u32 = 8;
/// Entries of it in a metadata block.
const EXPORTS_PER_BLOCK: u32 = METADATA_SIZE as u32 / EXPORT_ENTRY;

/// A piece of the tables of a new image.
pub(super) enum Part {
    Bytes(Vec<u8>),
    /// A range of the old image.
    Old {
        image: Image,
        at: u64,
        len: u64,
    },
}

impl Part {
    pub(super) fn len(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::Old { len, .. } => *len,
        }
    }
}

/// The tables of an old image that are continued, and how much of its data they no longer name.
#[derive(Debug)]
pub(super) struct OldTables {
    data: OldData,
    inodes: StoredTable,
    listings: StoredTable,
    dead: DeadData,
}

impl OldTables {
    pub(super) fn new(data: OldData) -> Result<OldTables> {
        let why = |error: Error| WriteError::Amend(error.to_string());
        let image = &data.image;
        if image.export_table().is_none() {
            return Err(WriteError::Amend("it has no export table".into()));
        }
        Ok(OldTables {
            inodes: image.stored_inodes().map_err(why)?,
            listings: image.stored_listings().map_err(why)?,
            dead: DeadData::default(),
            data,
        })
    }

    /// Returns an empty tree for the new and changed nodes.
    pub(super) fn tree(&self) -> Tree {
        let image = &self.data.image;
        Tree::amending(image.ids(), image.superblock().inodes)
    }

    /// Counts the data of a file of the old image as dead.
    pub(super) fn mark_dead(&mut self, body: &FileBody) {
        let block_size = self.data.image.superblock().block_size;
        self.dead.add(body, block_size);
    }

    /// Sets the counts that depend on all files of the image, of which most are not pushed.
    pub(super) fn count(&self, stats: &mut DataStats) -> Result<()> {
        let (dead, in_fragments) = self.dead.stored(&self.data)?;
        stats.dead_bytes = dead;
        stats.dead_in_fragments = in_fragments;
        let (start, end) = self.data.data;
        stats.bytes_carried = (end - start).saturating_sub(dead);
        Ok(())
    }

    /// Returns writers that continue the inode table and the directory table.
    pub(super) fn writers(&self) -> (MetadataWriter, MetadataWriter) {
        let of = |table: &StoredTable| MetadataWriter::continuing(table.full, table.rest.clone());
        (of(&self.inodes), of(&self.listings))
    }

    /// The inode table before the blocks that its writer adds.
    pub(super) fn inodes(&self) -> Part {
        self.part(&self.inodes)
    }

    /// The directory table before the blocks that its writer adds.
    pub(super) fn listings(&self) -> Part {
        self.part(&self.listings)
    }

    fn part(&self, table: &StoredTable) -> Part {
        Part::Old {
            image: self.data.image.clone(),
            at: table.at,
            len: table.full,
        }
    }

    /// Builds the export table. Blocks without changes are taken over as stored.
    pub(super) fn export(
        &self,
        inodes: u32,
        changed: &HashMap<u32, InodeRef>,
        codec: &mut Codec,
    ) -> Result<MetadataWriter> {
        let old = self.data.image.superblock().inodes;
        let mut blocks: Vec<u32> = changed
            .keys()
            .map(|n| (n - 1) / EXPORTS_PER_BLOCK)
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        let stored = self
            .data
            .image
            .export_table()
            .map_or(&[][..], |table| table.blocks());
        let mut table = MetadataWriter::default();
        for block in 0..inodes.div_ceil(EXPORTS_PER_BLOCK) {
            let slots = block * EXPORTS_PER_BLOCK..inodes.min((block + 1) * EXPORTS_PER_BLOCK);
            let is_full = old >= slots.end && slots.len() == EXPORTS_PER_BLOCK as usize;
            match stored.get(block as usize) {
                Some(at) if is_full && blocks.binary_search(&block).is_err() => {
                    table.carry(&self.data.image.stored_block("export table", *at)?);
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
                None => self.data.image.export_entry(slot)?,
            };
            table.write(&entry, codec)?;
        }
        Ok(())
    }

    /// Returns the xattr area for position `at`: its blocks, its header and index, and the position
    /// of the header. `None` if the old image has no xattrs.
    pub(super) fn xattrs(&self, at: u64) -> Option<(Part, Vec<u8>, u64)> {
        let stored = self.data.image.stored_xattrs()?;
        let blocks = &stored.blocks;
        let len = blocks.end - blocks.start;
        let header = XattrTableHeader {
            lists: at,
            count: stored.count,
        };
        let mut bytes = header.to_bytes().to_vec();
        // The reader has checked that each position is in the area.
        let moved: Vec<u64> = stored
            .index
            .iter()
            .map(|old| old - blocks.start + at)
            .collect();
        encode_index(&moved, &mut bytes);
        let part = Part::Old {
            image: self.data.image.clone(),
            at: blocks.start,
            len,
        };
        Some((part, bytes, at + len))
    }
}

/// The dead part of the old data area, each piece counted once. Other files that share a piece are
/// not searched for, so this is an upper bound.
#[derive(Debug, Default)]
struct DeadData {
    /// Blocks: position and length.
    runs: HashSet<(u64, u64)>,
    tails: HashSet<FragmentRef>,
    /// Bytes of the tails, by fragment block.
    in_fragments: HashMap<u32, u64>,
}

impl DeadData {
    /// Adds the data of a file of the old image.
    fn add(&mut self, body: &FileBody, block_size: u32) {
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

    /// Returns the stored bytes of all dead data, and of the part that is in fragment blocks. Dead
    /// tails count in proportion to the block.
    fn stored(&self, old: &OldData) -> Result<(u64, u64)> {
        let block_size = old.image.superblock().block_size;
        let mut in_fragments = 0;
        for (index, dead) in &self.in_fragments {
            let Some(entry) = old.fragments.get(*index as usize) else {
                continue;
            };
            // A block whose frame does not have its length is nearly full in most cases.
            let len = old.image.fragment_len(entry)?.unwrap_or(block_size).max(1);
            let len = u64::from(len);
            in_fragments += u64::from(entry.size.stored()) * (*dead).min(len) / len;
        }
        let runs: u64 = self.runs.iter().map(|(_, len)| len).sum();
        Ok((runs + in_fragments, in_fragments))
    }
}
