//! Decompresses the blocks that were used at the last mount ahead of their use.
//!
//! At each start, a program reads the same blocks in the same order, one after the other. Each time
//! it waits for the disk and for decompression while other processors are idle. A reader that knows
//! the order can decompress the blocks in advance.

use std::ops::Range;
use std::sync::{Arc, Weak};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::blocks::Blocks;
use super::open::Inner;
use super::uses::{BlockUse, Over, Uses};

/// Most bytes that are decompressed and not yet used: this part of the budget of the data cache.
/// The rest is for blocks that are not in the recorded order.
const AHEAD: usize = 3;
/// Blocks that the kernel is advised to read before they are decompressed.
const ADVISED: usize = 64;

/// Waits for the first use of a block, then decompresses the blocks of `order` ahead of their use,
/// as far as the cache has room for unused blocks. Returns when all blocks are decompressed or
/// used, when other blocks are used instead, or when the image is closed. Blocks that cannot be
/// read are skipped: the thread that uses them gets the error.
pub(super) fn decompress_ahead(inner: &Weak<Inner>, uses: &Arc<Uses>, order: &[BlockUse]) {
    if !uses.wait_for_first() {
        return;
    }
    // This keeps the image open, but ends if the image is not used.
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
        if let Err(error) = blocks.decompress_use(*block) {
            tracing::debug!(%error, "a block was not decompressed ahead of use");
        }
    }
}

/// Advises the kernel to read ranges of the image, without waiting for it.
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
            tracing::debug!(%error, "the kernel does not read ahead");
            return;
        }
    }
}
