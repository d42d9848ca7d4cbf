//! Data blocks and fragments.

use super::{Source, source::SliceSource};
use crate::squashfs::{Error, Result};

/// A word in a file's block list: 24 bits of stored size, and bit 24 for "uncompressed". Zero is a
/// hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockSize(pub u32);

impl BlockSize {
    const UNCOMPRESSED: u32 = 1 << 24;
    /// A block of zeros that is not stored.
    pub const HOLE: BlockSize = BlockSize(0);

    /// Returns the word for `stored` compressed bytes in the file (at most 1 MiB).
    pub fn compressed(stored: u32) -> Self {
        BlockSize(stored)
    }
    /// Returns the word for `stored` uncompressed bytes in the file (at most 1 MiB).
    pub fn uncompressed(stored: u32) -> Self {
        BlockSize(stored | Self::UNCOMPRESSED)
    }
    /// Returns the number of bytes in the file.
    pub fn stored(self) -> u32 {
        self.0 & (Self::UNCOMPRESSED - 1)
    }
    /// Returns true if those bytes are compressed.
    pub fn is_compressed(self) -> bool {
        self.0 & Self::UNCOMPRESSED == 0
    }
    /// Returns true if nothing is stored.
    pub fn is_hole(self) -> bool {
        self.stored() == 0
    }
    /// Returns true if the word is valid in an image of this block size. Stored bytes must not
    /// exceed the block: the kernel rejects them.
    pub fn is_valid(self, block_size: u32) -> bool {
        self.0 >> 25 == 0 && self.stored() <= block_size
    }
}

/// Bytes of a [`FragmentEntry`].
pub const FRAGMENT_ENTRY_SIZE: usize = 16;

/// The position of a fragment block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentEntry {
    /// Position in the image.
    pub start: u64,
    /// Its stored size.
    pub size: BlockSize,
}

impl FragmentEntry {
    /// Reads an entry.
    pub fn parse(raw: &[u8; FRAGMENT_ENTRY_SIZE]) -> Result<Self> {
        let mut source = SliceSource::new(raw, "fragment entry");
        let start = source.u64()?;
        let size = BlockSize(source.u32()?);
        if size.0 >> 25 != 0 || size.is_hole() {
            return Err(Error::corrupt(
                "fragment entry",
                start,
                format!("size {:#x}", size.0),
            ));
        }
        Ok(FragmentEntry { start, size })
    }
    /// Encodes the entry.
    pub fn to_bytes(self) -> [u8; FRAGMENT_ENTRY_SIZE] {
        let mut out = [0; FRAGMENT_ENTRY_SIZE];
        out[..8].copy_from_slice(&self.start.to_le_bytes());
        out[8..12].copy_from_slice(&self.size.0.to_le_bytes());
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_round_trip() {
        let block = BlockSize::uncompressed(4096);
        assert_eq!(
            (block.stored(), block.is_compressed(), block.is_hole()),
            (4096, false, false)
        );
        assert!(block.is_valid(4096) && !BlockSize::compressed(4097).is_valid(4096));
        assert!(!BlockSize(1 << 25).is_valid(1 << 20) && BlockSize::HOLE.is_hole());
    }

    #[test]
    fn fragment_round_trips() {
        let entry = FragmentEntry {
            start: 1 << 40,
            size: BlockSize::compressed(9),
        };
        assert_eq!(FragmentEntry::parse(&entry.to_bytes()).unwrap(), entry);
    }
}
