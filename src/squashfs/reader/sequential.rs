//! Finds out which files are read sequentially, and which blocks their readers need next.
//!
//! The kernel asks for the next part of a file while a program works on the last, but for one part
//! at a time, so that only one processor decompresses. If the blocks after it are known, several
//! processors can decompress them at once.
//!
//! A read continues a stream if it begins where the last read of that file ended. Small files that
//! are read in the order of the image move from one fragment block to the next. A program that
//! reads file after file in the order of their inode numbers, as `tar` and `cp -r` do, will need
//! the files with the next numbers. Other reads have no effect: mapped files are read in parts of
//! the same size, but in any order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file::FileLayout;
use super::{BlockUse, Image};
use crate::squashfs::format::{BlockSize, InodeBody};

/// The number of files whose reads are followed.
const STREAMS: usize = 8;
/// Blocks that are decompressed ahead of a reader.
const WINDOW: u64 = 4;
/// The blocks of all streams are at most this part of the data cache.
const SHARE: usize = 4;
/// Reads shorter than this are not followed: the kernel makes longer ones when it reads ahead.
const SHORTEST: usize = 32 << 10;

/// Inode numbers at most this far apart are near: directories, links and files of subdirectories
/// lie between the files that a program reads one after the other.
const NEAR: u32 = 32;
/// The points from which on files are taken to be read in the order of their numbers.
const WALKING: u32 = 4;
/// Points are not counted beyond this.
const MOST_POINTS: u32 = 16;
/// The inode numbers that are looked at ahead of such a reader.
const FILES: u32 = 8;

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
    walk: Walk,
}

/// A reader of one file after the other.
#[derive(Debug, Default)]
struct Walk {
    /// The file that was begun last.
    file: u32,
    /// Files that were begun in the order of their numbers, less those that were not.
    points: u32,
    /// The numbers that were returned last.
    returned: Range<u32>,
}

impl Walk {
    fn is_going(&self) -> bool {
        self.points >= WALKING
    }

    /// Notes that a file is read from its start. Returns the numbers of the inodes to look at.
    fn begin(&mut self, file: u32) -> Range<u32> {
        let last = std::mem::replace(&mut self.file, file);
        if file == last {
            return 0..0;
        }
        self.points = match (file > last, file.abs_diff(last) <= NEAR) {
            (true, true) => (self.points + 1).min(MOST_POINTS),
            // From a directory back to the files beside it.
            (false, true) => self.points / 2,
            (_, false) => self.points / 4,
        };
        if !self.is_going() {
            return 0..0;
        }
        let from = file.saturating_add(1);
        let wanted = from..from.saturating_add(FILES);
        let soon = match self.returned.contains(&wanted.start) {
            true => self.returned.end.max(wanted.start)..wanted.end,
            false => wanted.clone(),
        };
        self.returned = wanted;
        soon
    }
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
        // A read of a whole block from the start of the file will be continued, and so is any read
        // of a program that reads file after file.
        let is_whole = read.end >= block || state.walk.is_going();
        let is_sequential = read.start == stream.end && is_whole || stream.end > 0;
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

    /// Notes a read of a file. Returns the numbers of the inodes to look at, and whether files are
    /// read one after the other.
    fn note_file(&self, file: u32, offset: u64) -> (Range<u32>, bool) {
        let walk = &mut self.lock().walk;
        let soon = match offset {
            0 => walk.begin(file),
            _ => 0..0,
        };
        (soon, walk.is_going())
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
        let (next_files, is_walking) = streams.note_file(file.number(), offset);
        let is_long = len >= SHORTEST || is_walking;
        let mut soon: Vec<BlockUse> = match file.fragment() {
            Some(fragment) if file.blocks().is_empty() => {
                let soon = streams.note_fragment(fragment.index, window.min(WINDOW));
                let soon = soon.take_while(|index| *index < self.fragment_count());
                soon.filter_map(|index| self.fragment_use(index)).collect()
            }
            _ if file.block_count() > 1 && is_long => {
                let soon = streams.note(file.number(), offset..end, block, window);
                let soon = soon.take_while(|index| *index < file.block_count());
                soon.filter_map(|index| self.block_use(file, index))
                    .collect()
            }
            _ => Vec::new(),
        };
        soon.extend(next_files.filter_map(|number| self.first_block(number)));
        let blocks = self.blocks();
        let is_missing =
            |block: &BlockUse| !blocks.is_decompressed(block.start, BlockSize(block.size));
        soon.into_iter().filter(is_missing).collect()
    }

    /// Returns the first block of a file that has blocks of its own. Without an export table, the
    /// inode is not searched for.
    fn first_block(&self, number: u32) -> Option<BlockUse> {
        self.0.export.as_ref()?;
        let inode = self.inode_by_number(number).ok()?;
        let InodeBody::File(body) = &inode.body else {
            return None;
        };
        let size = *body.blocks.first().filter(|size| size.is_compressed())?;
        let block = u64::from(self.superblock().block_size);
        Some(BlockUse::new(
            body.start,
            size,
            body.size.min(block) as usize,
        ))
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
    fn files_read_in_the_order_of_their_numbers_are_begun_ahead() {
        let mut walk = Walk::default();
        for file in 1..4 {
            assert!(walk.begin(file).is_empty());
        }
        assert_eq!(walk.begin(4), 5..13);
        // A part of a file that was begun, a subdirectory between, and a step.
        assert!(walk.begin(4).is_empty());
        assert_eq!(walk.begin(7), 13..16);
        assert_eq!(walk.begin(8), 16..17);
        // A place far away, and the walk goes on there after some more files.
        walk.begin(1000);
        assert!(!walk.is_going());
        for file in 1001..1010 {
            walk.begin(file);
        }
        assert_eq!(walk.begin(1010), 1018..1019);
        for file in [900, 20, 4000, 3, u32::MAX] {
            assert!(walk.begin(file).is_empty(), "{file}");
        }
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
