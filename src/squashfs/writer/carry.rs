//! The data that is carried over from an old image.

use std::sync::Arc;

use super::error::{Result, WriteError};
use crate::squashfs::CompressorId;
use crate::squashfs::format::{FileBody, FragmentEntry, METADATA_HEADER_SIZE, SUPERBLOCK_SIZE};
use crate::squashfs::reader::Image;

/// How an old image is carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carry {
    /// The whole data area stays at its positions. All tables are written.
    Append,
    /// Only live data is copied. Fragment blocks of which at least this percentage is dead are
    /// repacked.
    Compact { repack_percent: u8 },
    /// The whole data area stays at its positions, and the tables are continued.
    Amend,
}

impl Carry {
    /// Returns true if the data area stays at its positions.
    pub(super) fn is_in_place(self) -> bool {
        match self {
            Carry::Append | Carry::Amend => true,
            Carry::Compact { .. } => false,
        }
    }
}

/// The old data area.
#[derive(Debug, Clone)]
pub(super) struct OldData {
    pub(super) image: Image,
    pub(super) fragments: Arc<[FragmentEntry]>,
    /// Where its data begins and ends.
    pub(super) data: (u64, u64),
    pub(super) carry: Carry,
}

impl OldData {
    /// Returns the number of bytes of the data area outside the given ranges (position, length).
    pub(super) fn dead_bytes(&self, live: impl Iterator<Item = (u64, u64)>) -> u64 {
        let mut live: Vec<(u64, u64)> = live.collect();
        live.sort_unstable();
        let (mut at, end) = self.data;
        let mut dead = 0;
        for (start, len) in live {
            dead += start.min(end).saturating_sub(at);
            at = at.max(start.saturating_add(len));
        }
        dead + end.saturating_sub(at)
    }

    /// Reads the fragment table of an image and checks that its data can be carried over.
    pub(super) fn new(image: &Image, carry: Carry) -> Result<Self> {
        if image.offset() != 0 {
            let why = "the old image is inside another file".to_owned();
            return Err(WriteError::Carry(why));
        }
        let superblock = image.superblock();
        let mut fragments = Vec::new();
        for index in 0..image.fragment_count() {
            fragments.push(image.fragment(index)?);
        }
        if superblock.compressor == CompressorId::Xz {
            // Readers allocate the dictionary that is named here; fresh blocks need one of a block.
            let dictionary = image
                .options_bytes()
                .and_then(|options| options.first_chunk());
            let dictionary = dictionary.map(|word| u32::from_le_bytes(*word));
            if let Some(bytes) = dictionary.filter(|bytes| *bytes < superblock.block_size) {
                return Err(WriteError::Carry(format!(
                    "the old image has an xz dictionary of {bytes} bytes, less than a block"
                )));
            }
        }
        let area = image.data_area();
        let old = OldData {
            image: image.clone(),
            fragments: fragments.into(),
            data: (area.start, area.end),
            carry,
        };
        if carry == Carry::Amend {
            for entry in old.fragments.iter() {
                check_range(&old, entry.start, u64::from(entry.size.stored()))?;
            }
        }
        Ok(old)
    }
}

/// Returns where the data area begins: behind the superblock and the compressor options.
pub(super) fn data_start(options: &[u8]) -> u64 {
    let options = if options.is_empty() {
        0
    } else {
        METADATA_HEADER_SIZE + options.len()
    };
    (SUPERBLOCK_SIZE + options) as u64
}

/// The fragment blocks of the old image, and which of them are live.
#[derive(Debug, Default)]
pub(super) struct OldFragments {
    entries: Vec<FragmentEntry>,
    live: Vec<bool>,
}

impl OldFragments {
    pub(super) fn new(old: Option<&OldData>) -> Self {
        let entries = old.map_or_else(Vec::new, |old| old.fragments.to_vec());
        // Inodes that are kept name fragment blocks by their old indexes.
        let all_live = old.is_some_and(|old| old.carry == Carry::Amend);
        OldFragments {
            live: vec![all_live; entries.len()],
            entries,
        }
    }

    /// Marks a fragment block as live. Returns true if it was not live before.
    pub(super) fn keep(&mut self, index: u32, old: &OldData) -> Result<bool> {
        let at = index as usize;
        let (Some(live), Some(entry)) = (self.live.get_mut(at), self.entries.get(at)) else {
            return Err(WriteError::Carry(format!(
                "there is no fragment block {index}"
            )));
        };
        if *live {
            return Ok(false);
        }
        check_range(old, entry.start, u64::from(entry.size.stored()))?;
        *live = true;
        Ok(true)
    }

    /// Returns the live blocks with their indexes, in order.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, FragmentEntry)> {
        let all = self.entries.iter().zip(&self.live).enumerate();
        all.filter(|(_, (_, live))| **live)
            .map(|(index, (entry, _))| (index as u32, *entry))
    }

    /// Marks a fragment block as dead: its tails are repacked.
    pub(super) fn mark_dead(&mut self, index: u32) {
        if let Some(live) = self.live.get_mut(index as usize) {
            *live = false;
        }
    }

    /// Sets the new position of a fragment block. Returns its old position and length.
    pub(super) fn place(&mut self, index: u32, at: u64) -> (u64, u64) {
        match self.entries.get_mut(index as usize) {
            Some(entry) => {
                let from = std::mem::replace(&mut entry.start, at);
                (from, u64::from(entry.size.stored()))
            }
            None => (0, 0),
        }
    }

    /// Returns the live entries, the new index of each old one, and the stored bytes of the live
    /// ones.
    pub(super) fn into_table(self) -> (Vec<FragmentEntry>, Vec<Option<u32>>, u64) {
        let mut table = Vec::new();
        let mut bytes = 0;
        let index = self
            .entries
            .iter()
            .zip(&self.live)
            .map(|(entry, live)| {
                live.then(|| {
                    table.push(*entry);
                    bytes += u64::from(entry.size.stored());
                    table.len() as u32 - 1
                })
            })
            .collect();
        (table, index, bytes)
    }
}

/// Returns an error for a range outside the data area of the old image: in the new image, it would
/// name other bytes.
pub(super) fn check_range(old: &OldData, start: u64, len: u64) -> Result<()> {
    let inside = start >= SUPERBLOCK_SIZE as u64
        && start.checked_add(len).is_some_and(|end| end <= old.data.1);
    if inside {
        Ok(())
    } else {
        Err(WriteError::Carry(format!(
            "{len} bytes at {start:#x} are not in the data area, which ends at {:#x}",
            old.data.1
        )))
    }
}

/// Returns an error for a file that cannot be carried into an image of this block size.
pub(super) fn check_blocks(layout: &FileBody, block_size: u32, old: &OldData) -> Result<()> {
    let (size, block) = (layout.size, u64::from(block_size));
    let wanted = FileBody::block_count(size, block_size, layout.fragment);
    let blocks = &layout.blocks;
    if blocks.len() as u64 != wanted || blocks.iter().any(|word| !word.is_valid(block_size)) {
        return Err(WriteError::Carry(format!(
            "{} blocks for {size} bytes in blocks of {block_size}",
            blocks.len()
        )));
    }
    if let Some(fragment) = layout.fragment {
        if size.is_multiple_of(block) {
            // The kernel rejects such an inode.
            return Err(WriteError::Carry(format!(
                "a fragment for a file of {size} bytes"
            )));
        }
        if fragment.index as usize >= old.fragments.len() {
            return Err(WriteError::Carry(format!(
                "there is no fragment block {}",
                fragment.index
            )));
        }
    }
    match blocks.iter().map(|word| u64::from(word.stored())).sum() {
        0 => Ok(()),
        stored => check_range(old, layout.start, stored),
    }
}
