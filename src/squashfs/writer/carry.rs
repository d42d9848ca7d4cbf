//! What is taken from an old image as it is.

use std::sync::Arc;

use super::error::{Result, WriteError};
use super::{AppendOptions, CarryMode};
use crate::squashfs::CompressorId;
use crate::squashfs::format::{FileBody, FragmentEntry, METADATA_HEADER_SIZE, SUPERBLOCK_SIZE};
use crate::squashfs::reader::Image;

/// The old data area as the ordered stage needs it.
#[derive(Debug, Clone)]
pub(super) struct OldData {
    pub(super) image: Image,
    pub(super) fragments: Arc<[FragmentEntry]>,
    /// Where its data begins and ends.
    pub(super) data: (u64, u64),
    /// Whether only live runs are copied, instead of the whole area.
    pub(super) compacting: bool,
    /// Whether the tables are amended: all fragment blocks stay then, by their indexes.
    pub(super) amending: bool,
    /// When compacting: fragment blocks of which so many percent are dead are taken apart.
    pub(super) repack_percent: u8,
}

impl OldData {
    /// Bytes of the data area that belong to none of the ranges (position, length).
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
}

impl OldData {
    /// What can be carried from an image.
    pub(super) fn new(image: &Image, options: &AppendOptions) -> Result<Self> {
        let superblock = image.superblock();
        let mut fragments = Vec::new();
        for index in 0..image.fragment_count() {
            fragments.push(image.fragment(index)?);
        }
        if superblock.compressor == CompressorId::Xz {
            // Readers provide the dictionary that stands here; fresh blocks use one of a block.
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
            compacting: options.carry == CarryMode::Compact,
            amending: options.amend,
            repack_percent: options.repack_percent,
        };
        if old.amending {
            for entry in old.fragments.iter() {
                check_range(&old, entry.start, u64::from(entry.size.stored()))?;
            }
        }
        Ok(old)
    }
}

/// Where the data area begins: behind the superblock and the compressor options.
pub(super) fn data_start(options: &[u8]) -> u64 {
    let options = if options.is_empty() {
        0
    } else {
        METADATA_HEADER_SIZE + options.len()
    };
    (SUPERBLOCK_SIZE + options) as u64
}

/// Which fragment blocks of the old image live on.
#[derive(Debug, Default)]
pub(super) struct OldFragments {
    entries: Vec<FragmentEntry>,
    live: Vec<bool>,
}

impl OldFragments {
    pub(super) fn new(old: Option<&OldData>) -> Self {
        let entries = old.map_or_else(Vec::new, |old| old.fragments.to_vec());
        OldFragments {
            live: vec![old.is_some_and(|old| old.amending); entries.len()],
            entries,
        }
    }

    /// Marks a fragment block as live; true if it was not so before.
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

    /// The live ones, in their order.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, FragmentEntry)> {
        let all = self.entries.iter().zip(&self.live).enumerate();
        all.filter(|(_, (_, live))| **live)
            .map(|(index, (entry, _))| (index as u32, *entry))
    }

    /// Lets a fragment block go: its tails are elsewhere now.
    pub(super) fn leave(&mut self, index: u32) {
        if let Some(live) = self.live.get_mut(index as usize) {
            *live = false;
        }
    }

    /// Notes the new place of a fragment block; returns its old place and length.
    pub(super) fn place(&mut self, index: u32, at: u64) -> (u64, u64) {
        match self.entries.get_mut(index as usize) {
            Some(entry) => {
                let from = std::mem::replace(&mut entry.start, at);
                (from, u64::from(entry.size.stored()))
            }
            None => (0, 0),
        }
    }

    /// The live entries, the new index of each old one, and the stored bytes of the live ones.
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

/// Refuses a range that is not in the data area of the old image: it would name other bytes in the
/// new one.
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

/// Refuses a file that cannot be carried into an image of this block size.
pub(super) fn check_blocks(layout: &FileBody, block_size: u32, old: &OldData) -> Result<()> {
    let (size, block) = (layout.size, u64::from(block_size));
    let wanted = FileBody::block_count(size, block_size, layout.fragment.is_some());
    let blocks = &layout.blocks;
    if blocks.len() as u64 != wanted || blocks.iter().any(|word| !word.is_valid(block_size)) {
        return Err(WriteError::Carry(format!(
            "{} blocks for {size} bytes in blocks of {block_size}",
            blocks.len()
        )));
    }
    if let Some(fragment) = layout.fragment {
        if size.is_multiple_of(block) {
            // The kernel refuses it.
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
