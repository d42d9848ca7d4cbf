//! Zstandard. The kernel sizes its workspace to the block size, so a frame must not require a
//! larger window. Frames of a streaming encoder (content size unknown, window by level) can be read
//! elsewhere, but give EIO in the kernel. The bulk API knows the size and limits the window to it.

use zstd::{bulk, zstd_safe::CParameter};

use super::{Compressor, Decompressor};
use crate::squashfs::{Error, Result};

const NAME: &str = "zstd";
/// The level that readers assume without options.
const ASSUMED_LEVEL: i32 = 15;

fn failed(error: std::io::Error) -> Error {
    Error::Codec {
        codec: NAME,
        detail: error.to_string(),
    }
}

pub(super) struct Zstd(bulk::Compressor<'static>);

impl Zstd {
    pub(super) fn new(level: i32) -> Result<Self> {
        let mut context = bulk::Compressor::new(level).map_err(failed)?;
        context
            .set_parameter(CParameter::ChecksumFlag(false))
            .map_err(failed)?;
        context
            .set_parameter(CParameter::ContentSizeFlag(true))
            .map_err(failed)?;
        Ok(Zstd(context))
    }
}

impl Compressor for Zstd {
    fn compress(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        // The full bound, not one byte less than the input: after a failed call the context needs a
        // reset, and too small a buffer makes zstd use a slower path.
        out.clear();
        out.reserve(zstd::zstd_safe::compress_bound(input.len()));
        let len = self.0.compress_to_buffer(input, out).map_err(failed)?;
        Ok(len < input.len())
    }
}

pub(super) struct Unzstd(bulk::Decompressor<'static>);

impl Unzstd {
    pub(super) fn new() -> Result<Self> {
        Ok(Unzstd(bulk::Decompressor::new().map_err(failed)?))
    }
}

impl Decompressor for Unzstd {
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        self.0.decompress_to_buffer(input, out).map_err(failed)
    }
}

/// u32 level; left out when it is what readers assume.
pub(super) fn options(level: i32) -> Option<Vec<u8>> {
    (level != ASSUMED_LEVEL).then(|| level.to_le_bytes().to_vec())
}
