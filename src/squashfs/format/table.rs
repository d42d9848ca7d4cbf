//! Lookup tables: fixed-size entries in metadata blocks, followed by an index of the blocks'
//! absolute positions. The superblock points at the index.

use super::{METADATA_HEADER_SIZE, METADATA_SIZE};
use crate::squashfs::{Error, Result};

/// The geometry of a lookup table whose index has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupTable {
    entry_size: usize,
    count: u64,
    blocks: Vec<u64>,
}

impl LookupTable {
    /// Returns the number of blocks of a table. The index has 8 bytes for each.
    pub fn block_count(count: u64, entry_size: usize) -> u64 {
        count
            .saturating_mul(entry_size as u64)
            .div_ceil(METADATA_SIZE as u64)
    }

    /// Reads an index. Its entries must ascend, starting at `from` or later, by no more than the
    /// size of a block, and the last block must end at `end` (the position of the index itself).
    pub fn parse(
        what: &'static str,
        index: &[u8],
        count: u64,
        entry_size: usize,
        from: u64,
        end: u64,
    ) -> Result<Self> {
        const STEP: u64 = (METADATA_SIZE + METADATA_HEADER_SIZE) as u64;
        let wanted = Self::block_count(count, entry_size);
        if index.len() as u64 != wanted.saturating_mul(8) {
            return Err(Error::corrupt(
                what,
                end,
                format!("index of {} bytes for {count} entries", index.len()),
            ));
        }
        let (words, _) = index.as_chunks::<8>();
        let blocks: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        for (i, &start) in blocks.iter().enumerate() {
            let next = blocks.get(i + 1).copied().unwrap_or(end);
            let fits = start >= from && start < next && next - start <= STEP;
            if !fits {
                return Err(Error::corrupt(
                    what,
                    end,
                    format!("block {i} of the index at {start:#x}, the next at {next:#x}"),
                ));
            }
        }
        Ok(LookupTable {
            entry_size,
            count,
            blocks,
        })
    }

    /// Returns the number of entries.
    pub fn count(&self) -> u64 {
        self.count
    }
    /// Returns the positions of the metadata blocks in the image.
    pub fn blocks(&self) -> &[u64] {
        &self.blocks
    }
    /// Returns the metadata block of an entry and the offset in it. `None` past the end.
    pub fn locate(&self, entry: u64) -> Option<(u64, usize)> {
        if entry >= self.count {
            return None;
        }
        // Entry sizes divide 8192, so no entry spans two blocks.
        let byte = entry * self.entry_size as u64;
        let block = usize::try_from(byte / METADATA_SIZE as u64).ok()?;
        Some((
            *self.blocks.get(block)?,
            (byte % METADATA_SIZE as u64) as usize,
        ))
    }
}

/// Appends the bytes of an index.
pub fn encode_index(blocks: &[u64], out: &mut Vec<u8>) {
    for block in blocks {
        out.extend_from_slice(&block.to_le_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn parse(blocks: &[u64], count: u64) -> Result<LookupTable> {
        let mut index = Vec::new();
        encode_index(blocks, &mut index);
        LookupTable::parse("test", &index, count, 4, 100, 9000)
    }

    #[test]
    fn entries_are_located() {
        let table = parse(&[100, 8000], 2049).unwrap();
        assert_eq!(table.locate(0), Some((100, 0)));
        assert_eq!(table.locate(2047), Some((100, 8188)));
        assert_eq!(table.locate(2048), Some((8000, 0)));
        assert_eq!(table.locate(2049), None);
    }

    #[test]
    fn invalid_indexes_are_refused() {
        assert!(parse(&[100], 2049).is_err(), "too short");
        assert!(parse(&[8000, 8000], 2049).is_err(), "not rising");
        assert!(parse(&[99, 8000], 2049).is_err(), "before its region");
        assert!(parse(&[100], 5).is_err(), "step too long");
        assert!(parse(&[9000], 5).is_err(), "at its own index");
        assert!(parse(&[], u64::MAX).is_err());
    }
}
