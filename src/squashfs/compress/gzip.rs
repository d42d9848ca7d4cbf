//! zlib streams (RFC 1950), which SquashFS calls gzip.

use libdeflater::{CompressionError, CompressionLvl};

use super::{Compressor, Decompressor};
use crate::squashfs::{Error, Result};

const NAME: &str = "gzip";
/// The level that readers assume without options.
const ASSUMED_LEVEL: u32 = 9;
const WINDOW_BITS: u16 = 15;

pub(super) struct Gzip(libdeflater::Compressor);

impl Gzip {
    pub(super) fn new(level: u32) -> Result<Self> {
        let level = i32::try_from(level)
            .ok()
            .and_then(|level| CompressionLvl::new(level).ok())
            .ok_or_else(|| Error::invalid("gzip level", format!("{level} is not in 1..=12")))?;
        Ok(Gzip(libdeflater::Compressor::new(level)))
    }
}

impl Compressor for Gzip {
    fn compress(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        // One byte less than the input: if that does not suffice, compression gains nothing.
        out.resize(input.len().saturating_sub(1), 0);
        match self.0.zlib_compress(input, out) {
            Ok(len) => {
                out.truncate(len);
                Ok(len > 0)
            }
            Err(CompressionError::InsufficientSpace) => Ok(false),
        }
    }
}

pub(super) struct Gunzip(libdeflater::Decompressor);

impl Gunzip {
    pub(super) fn new() -> Self {
        Gunzip(libdeflater::Decompressor::new())
    }
}

impl Decompressor for Gunzip {
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        self.0
            .zlib_decompress(input, out)
            .map_err(|e| Error::Codec {
                codec: NAME,
                detail: e.to_string(),
            })
    }
}

/// Returns u32 level, u16 window, u16 strategies, or `None` for the values that readers assume.
pub(super) fn options(level: u32) -> Option<Vec<u8>> {
    // Readers reject levels above zlib's 9. The level has no effect on reading.
    let level = level.min(9);
    (level != ASSUMED_LEVEL).then(|| {
        let mut out = level.to_le_bytes().to_vec();
        out.extend_from_slice(&WINDOW_BITS.to_le_bytes());
        out.extend_from_slice(&0u16.to_le_bytes());
        out
    })
}
