//! What two images have in common at the same positions, so that a comparison need not read it.
//!
//! An image that was appended to another has the data of that one at the same positions. If its
//! tables were amended as well, the tables of the other are the first part of its own: an inode at
//! the same position is the same inode, and everything below a directory at the same position is
//! equal. Both are found out by comparing bytes, not assumed. Two images that were made from a
//! third have in common what each has in common with that one.

use std::ops::Range;

use super::{FileLayout, Image, StoredTable};
use crate::squashfs::{
    Result,
    format::{FragmentRef, InodeRef},
};

/// Bytes that are compared at once.
const CHUNK: u64 = 1 << 20;
/// Bytes of data that are read at most, where their equality is not known.
const MOST_READ: u64 = 8 << 20;

/// The common parts of two images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Up to this position, stored data is equal.
    data: u64,
    /// Inodes before this position are equal, with everything below them: it is the end of the
    /// tables of an image whose tables and data are the first part of those of both. Zero if there
    /// is none.
    end: InodeRef,
}

impl Shared {
    /// Finds the common parts. `is_known` tells that a range of both files is equal; ranges for
    /// which it does not are read, as far as the limit for that reaches.
    pub fn of(a: &Image, b: &Image, is_known: impl Fn(Range<u64>) -> bool) -> Result<Shared> {
        let (one, other) = (a.superblock(), b.superblock());
        if (one.block_size, one.compressor) != (other.block_size, other.compressor) {
            return Ok(Shared {
                data: 0,
                end: InodeRef::default(),
            });
        }
        let data = equal_data(a, b, is_known)?;
        let (small, large) = match a.data_area().end <= b.data_area().end {
            true => (a, b),
            false => (b, a),
        };
        let is_nested = data >= small.data_area().end && extends(large, small)?;
        let end = match is_nested {
            true => end_of(&small.stored_inodes()?),
            false => InodeRef::default(),
        };
        Ok(Shared { data, end })
    }

    /// Returns true if one image is the first part of the other.
    pub fn is_nested(&self) -> bool {
        self.end > InodeRef::default()
    }

    /// Adds the common parts of two images and a third one.
    #[must_use]
    pub fn and_through(self, one: Shared, other: Shared) -> Shared {
        Shared {
            data: self.data.max(one.data.min(other.data)),
            end: self.end.max(one.end.min(other.end)),
        }
    }

    /// Returns true if an inode of one image and one of the other are equal, with everything below
    /// them. False if that is not known.
    pub fn is_same(&self, one: InodeRef, other: InodeRef) -> bool {
        one == other && one < self.end
    }

    /// Returns true if two files have the same stored data. False if that is not known.
    pub fn has_same_data(
        &self,
        (a, one): (&Image, &FileLayout),
        (b, other): (&Image, &FileLayout),
    ) -> Result<bool> {
        let blocks = one.size() == other.size() && one.blocks() == other.blocks();
        let is_at = |file: &FileLayout| file.start().saturating_add(file.stored()) <= self.data;
        let is_stored = one.stored() > 0;
        if !blocks || is_stored && (one.start() != other.start() || !is_at(one)) {
            return Ok(false);
        }
        match (one.fragment(), other.fragment()) {
            (None, None) => Ok(true),
            (Some(one), Some(other)) => self.has_same_tail((a, one), (b, other)),
            _ => Ok(false),
        }
    }

    fn has_same_tail(
        &self,
        (a, one): (&Image, FragmentRef),
        (b, other): (&Image, FragmentRef),
    ) -> Result<bool> {
        let (block, same) = (a.fragment(one.index)?, b.fragment(other.index)?);
        let end = block.start.saturating_add(u64::from(block.size.stored()));
        Ok(one.offset == other.offset && block == same && end <= self.data)
    }
}

/// Returns the position after the last inode of a table.
fn end_of(inodes: &StoredTable) -> InodeRef {
    // The rest is less than a block of 8 KiB.
    InodeRef::new(inodes.full, u16::try_from(inodes.rest.len()).unwrap_or(0))
}

/// Returns the position up to which the data areas of two images are equal.
fn equal_data(a: &Image, b: &Image, is_known: impl Fn(Range<u64>) -> bool) -> Result<u64> {
    let (one, other) = (a.data_area(), b.data_area());
    if one.start != other.start {
        return Ok(0);
    }
    let end = one.end.min(other.end);
    let mut at = one.start;
    let mut read = 0;
    while at < end {
        let next = (at / CHUNK + 1) * CHUNK;
        if next > end || !is_known(at / CHUNK * CHUNK..next) {
            let len = next.min(end) - at;
            if read + len > MOST_READ || !is_equal(a, at, b, at, len)? {
                break;
            }
            read += len;
        }
        at = next.min(end);
    }
    Ok(at)
}

/// Returns true if stored bytes of two images are equal.
fn is_equal(a: &Image, mut at: u64, b: &Image, mut other: u64, len: u64) -> Result<bool> {
    let size = len.min(CHUNK) as usize;
    let (mut one, mut two) = (vec![0; size], vec![0; size]);
    let mut left = len;
    while left > 0 {
        let now = left.min(CHUNK) as usize;
        let (one, two) = (&mut one[..now], &mut two[..now]);
        a.read_raw(at, one)?;
        b.read_raw(other, two)?;
        if one != two {
            return Ok(false);
        }
        (at, other, left) = (at + now as u64, other + now as u64, left - now as u64);
    }
    Ok(true)
}

/// Returns true if the tables of `small` are the first part of those of `large`.
fn extends(large: &Image, small: &Image) -> Result<bool> {
    let ids = large.ids().get(..small.ids().len()) == Some(small.ids());
    if !ids || !has_fragments(large, small)? || !has_xattrs(large, small)? {
        return Ok(false);
    }
    let inodes = continues(
        (large, "inode table", large.inode_table()),
        (small, &small.stored_inodes()?),
    )?;
    Ok(inodes
        && continues(
            (large, "directory table", large.directory_table()),
            (small, &small.stored_listings()?),
        )?)
}

/// Returns true if a table of an image begins with that of another.
fn continues(
    (large, what, range): (&Image, &'static str, Range<u64>),
    (small, table): (&Image, &StoredTable),
) -> Result<bool> {
    let len = range.end - range.start;
    if len < table.full || !is_equal(large, range.start, small, table.at, table.full)? {
        return Ok(false);
    }
    if table.rest.is_empty() {
        return Ok(true);
    }
    if len == table.full {
        return Ok(false);
    }
    let at = range.start + table.full;
    let block = large.blocks().load_metadata(what, at, range.end)?;
    Ok(block.bytes.starts_with(&table.rest))
}

fn has_fragments(large: &Image, small: &Image) -> Result<bool> {
    let count = small.fragment_count();
    if count > large.fragment_count() {
        return Ok(false);
    }
    for index in 0..count {
        if large.fragment(index)? != small.fragment(index)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has_xattrs(large: &Image, small: &Image) -> Result<bool> {
    let Some(old) = small.stored_xattrs() else {
        return Ok(true);
    };
    let Some(new) = large.stored_xattrs() else {
        return Ok(false);
    };
    let len = old.blocks.end - old.blocks.start;
    let relative = |index: &[u64], start: u64| -> Vec<u64> {
        index.iter().map(|at| at.wrapping_sub(start)).collect()
    };
    Ok(old.count == new.count
        && new.blocks.end - new.blocks.start == len
        && relative(&old.index, old.blocks.start) == relative(&new.index, new.blocks.start)
        && is_equal(large, new.blocks.start, small, old.blocks.start, len)?)
}
