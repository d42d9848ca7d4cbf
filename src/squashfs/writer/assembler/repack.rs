//! Fragment blocks of the old image: finds how much of each is still used, and repacks those with
//! much dead data when compacting.

use super::{Assembler, Fragment, Slot};
use crate::squashfs::format::FragmentEntry;
use crate::squashfs::writer::carry::OldData;
use crate::squashfs::writer::error::{Result, WriteError};

/// Blocks that are compressed at a time while old fragment blocks are repacked.
pub(super) const REPACK_AHEAD: usize = 16;

/// A tail in a fragment block of the old image: (offset, length).
pub(super) type Tail = (u32, u32);

/// How much of one fragment block of the old image is still used.
#[derive(Debug)]
pub(super) struct FragmentUse {
    pub(super) index: u32,
    /// Distinct tails, in order.
    pub(super) tails: Vec<Tail>,
    /// Decompressed length of the block.
    pub(super) len: u32,
    /// Bytes of it that belong to a tail.
    pub(super) used: u32,
    /// Stored length of the block.
    pub(super) stored: u32,
}

impl FragmentUse {
    /// Computes how much of a block is used. `tails` are sorted and distinct.
    ///
    /// If the frame of the block does not have its decompressed length, a block of which less than
    /// half seems to be used is decompressed. Any other block is assumed to end with its last tail.
    pub(super) fn of(
        old: &OldData,
        index: u32,
        entry: FragmentEntry,
        tails: Vec<Tail>,
    ) -> Result<FragmentUse> {
        let (mut used, mut end) = (0, 0);
        for (offset, len) in &tails {
            let to = offset.saturating_add(*len);
            used += to.saturating_sub((*offset).max(end));
            end = end.max(to);
        }
        let half = old.image.superblock().block_size / 2;
        let len = match old.image.fragment_len(&entry)? {
            Some(len) => len,
            None if used < half => old.image.fragment_block(index)?.len() as u32,
            None => end,
        };
        Ok(FragmentUse {
            index,
            tails,
            len: len.max(end),
            used,
            stored: entry.size.stored(),
        })
    }

    /// Returns the unused part of the stored bytes.
    pub(super) fn dead(&self) -> u64 {
        let unused = u64::from(self.len.saturating_sub(self.used));
        u64::from(self.stored) * unused / u64::from(self.len.max(1))
    }

    /// Returns true if at least this percentage of the block is unused. A block whose tails overlap
    /// is never repacked, since it might grow.
    pub(super) fn is_worth_repacking(&self, percent: u8) -> bool {
        let unused = u64::from(self.len.saturating_sub(self.used));
        let taken_apart: u64 = self.tails.iter().map(|(_, len)| u64::from(*len)).sum();
        unused > 0
            && unused * 100 >= u64::from(self.len) * u64::from(percent)
            && taken_apart == u64::from(self.used)
    }
}

impl Assembler {
    /// Computes how much of each live fragment block of the old image is used.
    pub(super) fn old_fragment_use(&self) -> Result<Vec<FragmentUse>> {
        let Some(old) = &self.old else {
            return Ok(Vec::new());
        };
        let block_size = self.shared.block_size;
        let mut tails: Vec<(u32, Tail)> = self
            .files
            .iter()
            .filter_map(|file| match file.fragment {
                Fragment::Old(index) => Some((index, (file.offset, file.tail_len(block_size)))),
                _ => None,
            })
            .collect();
        tails.sort_unstable();
        tails.dedup();
        let mut all = Vec::new();
        let mut rest = tails.as_slice();
        for (index, entry) in self.old_fragments.live() {
            let from = rest.partition_point(|(of, _)| *of < index);
            let to = rest.partition_point(|(of, _)| *of <= index);
            let its = rest.get(from..to).unwrap_or_default();
            let its = its.iter().map(|(_, tail)| *tail).collect();
            rest = rest.get(to..).unwrap_or_default();
            all.push(FragmentUse::of(old, index, entry, its)?);
        }
        Ok(all)
    }

    /// When compacting, after the last file: copies the fragment blocks with little dead data, and
    /// queues the others for [`Assembler::repack_next`].
    pub(super) fn sort_old_fragments(&mut self, percent: u8) -> Result<()> {
        for fragment in self.old_fragment_use()? {
            let index = fragment.index;
            if fragment.is_worth_repacking(percent) {
                self.old_fragments.mark_dead(index);
                self.repack.push_back((index, fragment.tails));
            } else {
                self.stats.dead_in_fragments += fragment.dead();
                self.slots.push_back(Slot::OldFragment { index });
            }
        }
        Ok(())
    }

    /// Repacks the live tails of one old fragment block.
    pub(super) fn repack_next(&mut self) -> Result<()> {
        let (Some((index, tails)), Some(old)) = (self.repack.pop_front(), self.old.clone()) else {
            return Ok(());
        };
        let block = old.image.fragment_block(index)?;
        self.stats.fragments_repacked += 1;
        for (offset, len) in tails {
            let from = offset as usize;
            let tail = from
                .checked_add(len as usize)
                .and_then(|to| block.get(from..to));
            let tail = tail.ok_or_else(|| {
                WriteError::Carry(format!(
                    "a tail of {len} bytes at {offset} of fragment block {index}, which has {} bytes",
                    block.len()
                ))
            })?;
            self.stats.repacked_bytes += u64::from(len);
            let place = self.pack_tail(tail)?;
            self.repacked.insert((index, (offset, len)), place);
        }
        if self.repack.is_empty() {
            self.flush_fragment()?;
        }
        Ok(())
    }

    /// Sets the fragments of files whose tails were repacked.
    pub(super) fn place_repacked(&mut self) {
        let block_size = self.shared.block_size;
        for data in &mut self.files {
            let Fragment::Old(index) = data.fragment else {
                continue;
            };
            let tail = (data.offset, data.tail_len(block_size));
            if let Some((index, offset)) = self.repacked.get(&(index, tail)) {
                data.fragment = Fragment::New(*index);
                data.offset = *offset;
            }
        }
    }
}
