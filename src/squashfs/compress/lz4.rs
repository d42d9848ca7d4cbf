//! LZ4 raw blocks.

use super::{Compressor, Decompressor};
use crate::squashfs::{Error, Result};

const NAME: &str = "lz4";

#[derive(Default)]
pub(super) struct Lz4 {
    table: lz4_flex::block::CompressTable,
}

impl Compressor for Lz4 {
    fn compress(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        out.resize(lz4_flex::block::get_maximum_output_size(input.len()), 0);
        let len = lz4_flex::block::compress_into_with_table(input, out, &mut self.table).map_err(
            |e| Error::Codec {
                codec: NAME,
                detail: e.to_string(),
            },
        )?;
        out.truncate(len);
        Ok(len < input.len())
    }
}

pub(super) struct Unlz4;

impl Decompressor for Unlz4 {
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        lz4_flex::block::decompress_into(input, out).map_err(|e| Error::Codec {
            codec: NAME,
            detail: e.to_string(),
        })
    }
}

/// Returns u32 version (1) and u32 flags (none: not written by the high-compression encoder).
/// Mandatory: the kernel rejects an lz4 image without it.
pub(super) fn options() -> Vec<u8> {
    [1u32.to_le_bytes(), 0u32.to_le_bytes()].concat()
}
