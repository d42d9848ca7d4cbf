//! Metadata blocks, and references into tables made of them.

use std::fmt;

/// Decompressed size of a metadata block, except the last of its table.
pub const METADATA_SIZE: usize = 8192;
/// Bytes of header before a metadata block.
pub const METADATA_HEADER_SIZE: usize = 2;

/// The u16 before each metadata block: 15 bits of stored size, and bit 15 for "uncompressed".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataHeader {
    /// Bytes that follow in the file.
    pub stored: u16,
    /// True if they are compressed.
    pub compressed: bool,
}

impl MetadataHeader {
    const UNCOMPRESSED: u16 = 1 << 15;

    /// Reads a header. `None` if the size is not in 1..=8192: the format gives 0 a meaning
    /// (32 KiB) that no table can use.
    pub fn parse(raw: [u8; 2]) -> Option<Self> {
        let word = u16::from_le_bytes(raw);
        let stored = word & !Self::UNCOMPRESSED;
        (1..=METADATA_SIZE as u16)
            .contains(&stored)
            .then_some(MetadataHeader {
                stored,
                compressed: word & Self::UNCOMPRESSED == 0,
            })
    }

    /// Encodes the header.
    pub fn to_bytes(self) -> [u8; 2] {
        let flag = if self.compressed {
            0
        } else {
            Self::UNCOMPRESSED
        };
        (self.stored | flag).to_le_bytes()
    }
}

/// A position in a table of metadata blocks: the block's position relative to the start of the
/// table (in stored bytes) in the upper 48 bits, and an offset in the decompressed block in the
/// lower 16. Inodes are identified by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct InodeRef(pub u64);

impl InodeRef {
    /// Joins a block position and an offset.
    pub fn new(block: u64, offset: u16) -> Self {
        InodeRef(block << 16 | u64::from(offset))
    }
    /// Returns the block's position, relative to the table.
    pub fn block(self) -> u64 {
        self.0 >> 16
    }
    /// Returns the offset in the decompressed block.
    pub fn offset(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

impl fmt::Debug for InodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InodeRef({:#x}+{})", self.block(), self.offset())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_invalid_ones_are_rejected() {
        for (stored, compressed) in [(1, true), (8192, false), (8192, true), (77, false)] {
            let header = MetadataHeader { stored, compressed };
            assert_eq!(MetadataHeader::parse(header.to_bytes()), Some(header));
        }
        assert_eq!(MetadataHeader::parse([0, 0]), None);
        assert_eq!(MetadataHeader::parse([0, 0x80]), None);
        assert_eq!(MetadataHeader::parse(8193u16.to_le_bytes()), None);
    }

    #[test]
    fn reference_splits() {
        let reference = InodeRef::new(0x1234_5678, 0x1fff);
        assert_eq!(
            (reference.block(), reference.offset()),
            (0x1234_5678, 0x1fff)
        );
    }
}
