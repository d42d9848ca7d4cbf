//! LZO1X blocks, read only: the licence of the reference library does not allow linking it, and new
//! images should not use LZO.

use super::Decompressor;
use crate::squashfs::{Error, Result};

pub(super) struct Unlzo;

impl Decompressor for Unlzo {
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        lzo::decompress_into(input, out).map_err(|e| Error::Codec {
            codec: "lzo",
            detail: e.to_string(),
        })
    }
}
