//! Writes tables of metadata blocks, which are compressed when full.

use super::error::Result;
use crate::squashfs::compress::Compressor;
use crate::squashfs::format::{
    InodeRef, METADATA_HEADER_SIZE, METADATA_SIZE, MetadataHeader, encode_index,
};

/// Writes one table. Every block except the last holds exactly 8 KiB.
///
/// Two tables are written at the same time with one compressor, so each call that may need it takes
/// it as an argument.
#[derive(Debug, Default)]
pub(super) struct MetadataWriter {
    /// Stored bytes of the table before `out`.
    before: u64,
    block: Vec<u8>,
    scratch: Vec<u8>,
    out: Vec<u8>,
    /// The start of each block in the table.
    starts: Vec<u64>,
}

/// The codec of an image, `None` to store everything.
pub(super) type Codec = Option<Box<dyn Compressor>>;

impl MetadataWriter {
    /// Continues a table that already has `before` stored bytes of full blocks. The next block
    /// begins with `block` (fewer than 8 KiB).
    pub(super) fn continuing(before: u64, block: Vec<u8>) -> Self {
        MetadataWriter {
            before,
            block,
            ..MetadataWriter::default()
        }
    }

    /// Returns the position of the next byte.
    pub(super) fn position(&self) -> InodeRef {
        // Blocks are flushed when full, so the offset is below 8192.
        InodeRef::new(self.before + self.out.len() as u64, self.block.len() as u16)
    }

    /// Appends a stored full block with its header. The block before it must be full.
    pub(super) fn carry(&mut self, stored: &[u8]) {
        self.starts.push(self.before + self.out.len() as u64);
        self.out.extend_from_slice(stored);
    }

    pub(super) fn write(&mut self, mut bytes: &[u8], codec: &mut Codec) -> Result<()> {
        while !bytes.is_empty() {
            let room = METADATA_SIZE - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == METADATA_SIZE {
                self.flush(codec)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, codec: &mut Codec) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.starts.push(self.before + self.out.len() as u64);
        let compressed = match codec {
            Some(codec) => codec.compress(&self.block, &mut self.scratch)?,
            None => false,
        };
        let stored = if compressed {
            &self.scratch
        } else {
            &self.block
        };
        // At most 8192, or the block would have been stored uncompressed.
        let header = MetadataHeader {
            stored: stored.len() as u16,
            compressed,
        };
        self.out.reserve(METADATA_HEADER_SIZE + stored.len());
        self.out.extend_from_slice(&header.to_bytes());
        self.out.extend_from_slice(stored);
        self.block.clear();
        Ok(())
    }

    /// Ends a plain table and returns its bytes.
    pub(super) fn finish(mut self, codec: &mut Codec) -> Result<Vec<u8>> {
        self.flush(codec)?;
        Ok(self.out)
    }

    /// Ends a lookup table that begins at `at` in the image: returns its bytes with `header` and
    /// the index behind them, and the position of `header` (or of the index).
    pub(super) fn finish_lookup(
        mut self,
        at: u64,
        header: &[u8],
        codec: &mut Codec,
    ) -> Result<(Vec<u8>, u64)> {
        self.flush(codec)?;
        let index_at = at + self.out.len() as u64;
        let positions: Vec<u64> = self.starts.iter().map(|start| at + start).collect();
        self.out.extend_from_slice(header);
        encode_index(&positions, &mut self.out);
        Ok((self.out, index_at))
    }
}
