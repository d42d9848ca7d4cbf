//! Finds out which files are read sequentially, and which blocks their readers need next.
//!
//! The kernel asks for the next part of a file while a program works on the last, but for one part
//! at a time, so that only one processor decompresses. If the blocks after it are known, several
//! processors can decompress them at once.
//!
//! A read continues a stream if it begins where the last read of that file ended. Small files that
//! are read in the order of the image move from one fragment block to the next. Other reads have
//! no effect: mapped files are read in parts of the same size, but in any order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file::FileLayout;
use super::{BlockUse, Image};
use crate::squashfs::format::BlockSize;

/// The number of files whose reads are followed.
const STREAMS: usize = 8;
/// Blocks that are decompressed ahead of a reader.
const WINDOW: u64 = 4;
/// The blocks of all streams are at most this part of the data cache.
const SHARE: usize = 4;
/// Reads shorter than this are not followed: the kernel makes longer ones when it reads ahead.
const SHORTEST: usize = 32 << 10;

/// The sequential readers of an image.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The last used first.
    files: VecDeque<Stream>,
    /// The fragment block that was used last.
    fragment: Option<u32>,
    /// The first fragment block that was not returned.
    next_fragment: u32,
}

#[derive(Debug)]
struct Stream {
    file: u32,
    /// The end of the last read.
    end: u64,
    /// The first block that was not returned.
    next: u64,
    window: u64,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Only hints: a state left by a panicking thread does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a read of a file with several blocks. Returns the blocks that are needed soon and were
    /// not returned before.
    fn note(&self, file: u32, read: Range<u64>, block: u64, window: u64) -> Range<u64> {
        let mut state = self.lock();
        let known = state.files.iter().position(|stream| stream.file == file);
        let mut stream = known
            .and_then(|at| state.files.remove(at))
            .filter(|stream| (stream.end..stream.end.saturating_add(block)).contains(&read.start))
            .unwrap_or(Stream {
                file,
                end: 0,
                next: 0,
                window: 0,
            });
        // A read of a whole block from the start of the file will be continued.
        let is_sequential = read.start == stream.end && read.end >= block || stream.end > 0;
        stream.end = read.end;
        let mut soon = 0..0;
        if is_sequential {
            stream.window = (stream.window * 2).clamp(2, WINDOW).min(window);
            let after = read.end.div_ceil(block);
            soon = stream.next.max(after)..after + stream.window;
            stream.next = stream.next.max(soon.end);
        }
        state.files.push_front(stream);
        state.files.truncate(STREAMS);
        soon
    }

    /// Notes the use of a fragment block, and returns those that are needed soon.
    fn note_fragment(&self, index: u32, window: u64) -> Range<u32> {
        let mut state = self.lock();
        let last = state.fragment.replace(index);
        if last == Some(index) {
            return 0..0;
        }
        if last.is_none_or(|last| last.checked_add(1) != Some(index)) {
            state.next_fragment = 0;
            return 0..0;
        }
        let after = index.saturating_add(1);
        let end = after.saturating_add(window as u32 / 2);
        let soon = state.next_fragment.max(after)..end;
        state.next_fragment = state.next_fragment.max(end);
        soon
    }
}

impl Image {
    /// Returns the blocks that should be decompressed now because a program reads sequentially and
    /// will soon need them. To be called for every read.
    pub fn soon_after(&self, file: &FileLayout, offset: u64, len: usize) -> Vec<BlockUse> {
        let block = u64::from(self.superblock().block_size).max(1);
        let window = (self.blocks().data_budget() / SHARE / STREAMS) as u64 / block;
        let streams = &self.0.streams;
        let end = offset.saturating_add(len as u64).min(file.size());
        if window == 0 || end <= offset {
            return Vec::new();
        }
        let soon: Vec<BlockUse> = match file.fragment() {
            Some(fragment) if file.blocks().is_empty() => {
                let soon = streams.note_fragment(fragment.index, window.min(WINDOW));
                let soon = soon.take_while(|index| *index < self.fragment_count());
                soon.filter_map(|index| self.fragment_use(index)).collect()
            }
            _ if file.block_count() > 1 && len >= SHORTEST => {
                let soon = streams.note(file.number(), offset..end, block, window);
                let soon = soon.take_while(|index| *index < file.block_count());
                soon.filter_map(|index| self.block_use(file, index))
                    .collect()
            }
            _ => Vec::new(),
        };
        let blocks = self.blocks();
        let is_missing =
            |block: &BlockUse| !blocks.is_decompressed(block.start, BlockSize(block.size));
        soon.into_iter().filter(is_missing).collect()
    }

    fn block_use(&self, file: &FileLayout, index: u64) -> Option<BlockUse> {
        match (file.position(index), file.fragment()) {
            (Some((start, size)), _) => Some(BlockUse::new(start, size, file.block_len(index))),
            (None, Some(fragment)) => self.fragment_use(fragment.index),
            (None, None) => None,
        }
    }

    fn fragment_use(&self, index: u32) -> Option<BlockUse> {
        let entry = self.fragment(index).ok()?;
        Some(BlockUse::new(entry.start, entry.size, 0))
    }

    /// Decompresses a block into the cache. An error is for the reader that needs the block.
    pub fn decompress(&self, block: BlockUse) {
        if let Err(error) = self.blocks().decompress_use(block) {
            tracing::debug!(%error, "a block was not decompressed ahead of use");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 100;

    #[test]
    fn reads_that_follow_each_other_have_blocks_decompressed_once() {
        let streams = Streams::default();
        let read = |blocks: Range<u64>| {
            let read = blocks.start * BLOCK..blocks.end * BLOCK;
            streams.note(1, read, BLOCK, WINDOW)
        };
        assert_eq!(read(0..1), 1..3);
        assert_eq!(read(1..2), 3..6);
        assert_eq!(read(2..4), 6..8);
        // Another place in the file begins another stream, and nothing is known of it.
        assert_eq!(read(20..21), 0..0);
        assert_eq!(read(21..22), 22..24);
    }

    #[test]
    fn reads_in_any_order_cause_nothing() {
        let streams = Streams::default();
        for at in [7, 3, 5, 1, 9, 2] {
            assert!(
                streams
                    .note(1, at * BLOCK..(at + 1) * BLOCK, BLOCK, WINDOW)
                    .is_empty()
            );
        }
        // A header is read first, then other parts.
        assert!(streams.note(2, 0..BLOCK / 2, BLOCK, WINDOW).is_empty());
    }

    #[test]
    fn many_files_are_followed_at_once_but_not_any_number() {
        let streams = Streams::default();
        let read =
            |file: u32, at: u64| streams.note(file, at * BLOCK..(at + 1) * BLOCK, BLOCK, WINDOW);
        for file in 0..STREAMS as u32 {
            assert_eq!(read(file, 0), 1..3);
        }
        for file in 0..STREAMS as u32 {
            assert_eq!(read(file, 1), 3..6);
        }
        for file in 100..200 {
            read(file, 0);
        }
        assert_eq!(streams.lock().files.len(), STREAMS);
        assert!(read(0, 2).is_empty());
    }

    #[test]
    fn fragments_in_ascending_order_are_decompressed_ahead() {
        let streams = Streams::default();
        let used = |index| streams.note_fragment(index, WINDOW);
        assert!(used(5).is_empty());
        assert_eq!(used(6), 7..9);
        assert!(used(6).is_empty());
        assert_eq!(used(7), 9..10);
        for index in [1, 9, 3] {
            assert!(used(index).is_empty());
        }
        assert!(used(u32::MAX).is_empty());
    }
}
