//! What is taken from an old image as it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::error::{Result, WriteError};
use crate::squashfs::CompressorId;
use crate::squashfs::format::{
    FileBody, Flags, FragmentEntry, METADATA_HEADER_SIZE, MetadataHeader, SUPERBLOCK_SIZE,
    Superblock,
};

/// An image whose data is carried over.
#[derive(Debug, Clone)]
pub struct OldImage {
    /// The image file, open for reading.
    pub file: Arc<File>,
    /// Its superblock.
    pub superblock: Superblock,
    /// Its fragment table.
    pub fragments: Vec<FragmentEntry>,
}

/// The old data area as the ordered stage needs it.
#[derive(Debug, Clone)]
pub(super) struct OldData {
    pub(super) file: Arc<File>,
    pub(super) fragments: Arc<[FragmentEntry]>,
    /// Where its data begins and ends.
    pub(super) data: (u64, u64),
    /// Whether only live runs are copied, instead of the whole area.
    pub(super) compacting: bool,
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

impl OldImage {
    /// The payload of the compressor options, empty if there are none.
    pub(super) fn codec_options(&self) -> Result<Vec<u8>> {
        if !self.superblock.flags.has(Flags::COMPRESSOR_OPTIONS) {
            return Ok(Vec::new());
        }
        let read = |at: u64, bytes: &mut [u8]| {
            self.file
                .read_exact_at(bytes, at)
                .map_err(WriteError::io("reading the old image"))
        };
        let at = SUPERBLOCK_SIZE as u64;
        let mut header = [0; METADATA_HEADER_SIZE];
        read(at, &mut header)?;
        let header = MetadataHeader::parse(header)
            .filter(|header| !header.compressed)
            .ok_or_else(|| WriteError::Carry("damaged compressor options".into()))?;
        let mut options = vec![0; usize::from(header.stored)];
        read(at + METADATA_HEADER_SIZE as u64, &mut options)?;
        if self.superblock.compressor == CompressorId::Xz {
            // Readers provide the dictionary that stands here; fresh blocks use one of a block.
            let dictionary = options
                .first_chunk()
                .map_or(0, |word| u32::from_le_bytes(*word));
            if dictionary < self.superblock.block_size {
                return Err(WriteError::Carry(format!(
                    "the old image has an xz dictionary of {dictionary} bytes, less than a block"
                )));
            }
        }
        Ok(options)
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
            live: vec![false; entries.len()],
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

/// The stored bytes of a file's blocks, if they can be carried into an image of this block size.
pub(super) fn check_blocks(layout: &FileBody, block_size: u32) -> Result<u64> {
    let (size, block) = (layout.size, u64::from(block_size));
    let fragment = layout.fragment.is_some();
    let wanted = FileBody::block_count(size, block_size, fragment);
    let blocks = &layout.blocks;
    if blocks.len() as u64 != wanted || blocks.iter().any(|word| !word.is_valid(block_size)) {
        return Err(WriteError::Carry(format!(
            "{} blocks for {size} bytes in blocks of {block_size}",
            blocks.len()
        )));
    }
    if fragment && size.is_multiple_of(block) {
        // The kernel refuses it.
        return Err(WriteError::Carry(format!(
            "a fragment for a file of {size} bytes"
        )));
    }
    Ok(blocks.iter().map(|word| u64::from(word.stored())).sum())
}
