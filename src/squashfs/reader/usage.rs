//! Which bytes of an image belong to which file, and what the others are for.
//!
//! Every byte counts once, so that the parts add up to the size of the file:
//!
//! - Data blocks that several files share belong to the file that was added first.
//! - A fragment block holds the tails of several files. Each gets a share of its stored bytes in
//!   proportion to its length; bytes of the block that no tail needs are unused.
//! - What no file needs in the data area is unused. Most of it is the content of files that were
//!   changed or removed by commits that carried the data area over; a writer may also find out that
//!   a file is a duplicate after it has stored the file's tail.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{FileLayout, Image};
use crate::squashfs::{Error, Result, format::FragmentRef};

/// The bytes of an image's file by purpose. They add up to the size of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Parts {
    /// Content of files, as stored.
    pub content: u64,
    /// In the area of content, but part of no file.
    pub unused: u64,
    /// The inode table.
    pub inodes: u64,
    /// The names of files.
    pub directories: u64,
    /// The tables of fragments, owners, extended attributes and inode numbers.
    pub tables: u64,
    /// The superblock, and what is before the image in its file.
    pub header: u64,
    /// What follows the image in its file.
    pub padding: u64,
}

impl Parts {
    /// Returns the size of the file.
    pub fn total(&self) -> u64 {
        self.content + self.unused + self.metadata() + self.header + self.padding
    }

    /// Returns the bytes of all tables.
    pub fn metadata(&self) -> u64 {
        self.inodes + self.directories + self.tables
    }
}

/// Distributes the bytes of an image to its files.
#[derive(Debug)]
pub struct Usage {
    image: Image,
    /// The data that belongs to a file.
    taken: Ranges,
    /// The stored bytes of each file that was added.
    files: Vec<u64>,
    fragments: BTreeMap<u32, Fragment>,
}

/// The use of a fragment block.
#[derive(Debug, Default)]
struct Fragment {
    taken: Ranges,
    /// Files, and the bytes of the block that only they and later files need.
    tails: Vec<(usize, u64)>,
}

impl Usage {
    /// Starts without files.
    pub fn of(image: &Image) -> Usage {
        Usage {
            image: image.clone(),
            taken: Ranges::default(),
            files: Vec::new(),
            fragments: BTreeMap::new(),
        }
    }

    /// Adds a file. A file with several names must be added once.
    pub fn add(&mut self, file: &FileLayout) {
        let at = self.files.len();
        let end = file.start().saturating_add(file.stored());
        let own = self.taken.take(file.start()..end);
        self.files.push(own);
        if let Some(FragmentRef { index, offset }) = file.fragment() {
            let tail = file.block_len(file.blocks().len() as u64) as u64;
            let start = u64::from(offset);
            let fragment = self.fragments.entry(index).or_default();
            let own = fragment.taken.take(start..start + tail);
            if own > 0 {
                fragment.tails.push((at, own));
            }
        }
    }

    /// Returns the parts of the image, and the bytes of each file in the order in which they were
    /// added.
    pub fn finish(mut self) -> Result<(Parts, Vec<u64>)> {
        for (index, fragment) in std::mem::take(&mut self.fragments) {
            let entry = self.image.fragment(index)?;
            let stored = u64::from(entry.size.stored());
            let own = self.taken.take(entry.start..entry.start + stored);
            // Without a length in its header, a block counts up to the last tail.
            let len = self.image.fragment_len(&entry)?.map_or(0, u64::from);
            let len = len.max(fragment.taken.end()).max(1);
            let share = |bytes: u64| (u128::from(own) * u128::from(bytes) / u128::from(len)) as u64;
            let mut before = 0;
            for (file, bytes) in fragment.tails {
                if let Some(sum) = self.files.get_mut(file) {
                    *sum += share(before + bytes) - share(before);
                }
                before += bytes;
            }
        }
        let image = &self.image;
        let file = image.as_file().metadata();
        let file = file.map_err(Error::io("measuring an image"))?.len();
        let (superblock, data) = (image.superblock(), image.data_area());
        let content = self.files.iter().sum();
        let end = image.offset().saturating_add(superblock.bytes_used);
        let parts = Parts {
            content,
            unused: (data.end - data.start).saturating_sub(content),
            inodes: superblock.directory_table - superblock.inode_table,
            directories: image.directory_table().end - superblock.directory_table,
            tables: superblock.bytes_used - image.directory_table().end,
            header: image.offset() + data.start,
            padding: file.saturating_sub(end),
        };
        Ok((parts, self.files))
    }
}

/// A set of positions, as ranges that neither overlap nor touch: start and end of each.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range. Returns how many of its positions were not in the set.
    fn take(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut new = end - start;
        // Those that overlap it or touch it, the last one first.
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            let overlap = to.min(range.end).saturating_sub(from.max(range.start));
            new -= overlap;
            start = start.min(from);
            end = end.max(to);
            self.0.remove(&from);
        }
        self.0.insert(start, end);
        new
    }

    /// Returns the end of the last range.
    fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, end)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_position_counts_once() {
        let mut ranges = Ranges::default();
        for (range, new) in [
            (10..20, 10),
            (10..20, 0),
            (30..40, 10),
            (20..30, 10),
            (5..45, 10),
            (0..3, 3),
            (2..6, 2),
            (7..7, 0),
            (100..101, 1),
            (44..200, 154),
        ] {
            assert_eq!(ranges.take(range.clone()), new, "{range:?}");
        }
        assert_eq!(ranges.0.into_iter().collect::<Vec<_>>(), [(0, 200)]);
    }
}
