//! LZMA alone (`.lzma`), read only: the kernel never read it, and it has neither a check nor a limit of
//! its own. Each block begins with 5 bytes of properties and 8 of the expanded length.

use xz2::stream::Stream;

use super::{Decompressor, xz};
use crate::squashfs::Result;

/// Memory a stream may ask of its decoder: mksquashfs gives every block the preset's dictionary of
/// 8 MiB.
const DECODER_MEMORY: u64 = 32 << 20;
const NAME: &str = "lzma";

pub(super) struct Unlzma;

impl Decompressor for Unlzma {
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let stream = Stream::new_lzma_decoder(DECODER_MEMORY);
        let stream = stream.map_err(|e| xz::failed(NAME, e))?;
        xz::expand(NAME, stream, input, out)
    }
}
