//! Decompresses the blocks that were used first the last time, ahead of their use.

use std::ops::Range;
use std::sync::{Arc, Weak};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::blocks::Blocks;
use super::open::Inner;
use super::uses::{BlockUse, Over, Uses};
use crate::squashfs::format::BlockSize;

/// Bytes decompressed and not yet used at most, as a part of the budget of decompressed data: the rest is
/// for what nobody foresaw.
const AHEAD: usize = 3;
/// Blocks that the kernel is asked to read before they are decompressed.
const ADVISED: usize = 64;

/// Waits for the first use of a block, then decompresses the blocks of `order` ahead of their use, as far
/// as the cache has room for what is not used yet. Returns when all are decompressed or used, when the
/// uses are others, or when the image is closed. Blocks that cannot be read are passed over: whoever
/// wants them gets the error.
pub(super) fn decompress_ahead(inner: &Weak<Inner>, uses: &Arc<Uses>, order: &[BlockUse]) {
    if !uses.wait_for_first() {
        return;
    }
    // As long as this runs the image is open; it ends when it is not used.
    let Some(inner) = inner.upgrade() else {
        return;
    };
    let blocks = &inner.blocks;
    let data = inner.data_start..inner.superblock.inode_table;
    let is_within = |block: &BlockUse| {
        block.start >= data.start
            && block
                .start
                .checked_add(block.stored())
                .is_some_and(|end| end <= data.end)
            && block.len <= inner.superblock.block_size
    };
    let order: Vec<BlockUse> = order.iter().copied().filter(is_within).collect();
    let room = blocks.data_budget() / AHEAD;
    for (index, block) in order.iter().enumerate() {
        if index % ADVISED == 0 {
            let soon = order.iter().skip(index).take(2 * ADVISED);
            advise(
                blocks,
                soon.map(|block| block.start..block.start + block.stored()),
            );
        }
        let bytes = match block.len {
            0 => inner.superblock.block_size as usize,
            len => len as usize,
        };
        match uses.take_room(*block, bytes, room) {
            Err(Over) => return,
            Ok(None) => continue,
            Ok(Some(())) => {}
        }
        let size = BlockSize(block.size);
        let decompressed = match block.len {
            0 => blocks.decompress_fragment(block.start, size),
            len => blocks.decompress_data(block.start, size, len as usize),
        };
        if let Err(error) = decompressed {
            tracing::debug!(%error, "a block was not decompressed ahead of use");
        }
    }
}

/// Asks the kernel to read ranges of the image, without waiting for it.
fn advise(blocks: &Blocks, ranges: impl Iterator<Item = Range<u64>>) {
    let mut ranges: Vec<Range<u64>> = ranges.collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    for range in merged {
        let (Ok(at), Ok(len)) = (
            i64::try_from(range.start),
            i64::try_from(range.end - range.start),
        ) else {
            continue;
        };
        let willing = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        if let Err(error) = posix_fadvise(&blocks.file, at, len, willing) {
            tracing::debug!(%error, "the kernel reads nothing ahead");
            return;
        }
    }
}
