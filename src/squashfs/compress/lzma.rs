//! Legacy LZMA (`.lzma`), read only: the kernel never supported it, and it has neither a checksum
//! nor a limit. Each block begins with 5 bytes of properties and 8 of the decompressed length.

use liblzma::stream::Stream;

use super::{Decompressor, xz};
use crate::squashfs::{Error, Result};

/// Memory that a stream may require: mksquashfs gives every block the preset's dictionary of 8 MiB.
const DECODER_MEMORY: u64 = 32 << 20;
const NAME: &str = "lzma";
/// The length field of a stream that ends with a marker instead.
const UNKNOWN: [u8; 8] = [0xff; 8];

pub(super) struct Unlzma;

impl Decompressor for Unlzma {
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let failed = |detail: &str| Error::Codec {
            codec: NAME,
            detail: detail.into(),
        };
        let header = input
            .split_first_chunk::<5>()
            .and_then(|(properties, rest)| Some((properties, rest.split_first_chunk::<8>()?)));
        let Some((properties, (declared, payload))) = header else {
            return Err(failed("the block is shorter than its header"));
        };
        let declared = match *declared {
            UNKNOWN => None,
            bytes => Some(u64::from_le_bytes(bytes)),
        };
        // mksquashfs writes an end marker after a known length, which liblzma rejects before 5.2.6.
        // So the stream is decoded as one of unknown length, which may have an end marker. Without
        // one, it ends at the declared length.
        let stream = Stream::new_lzma_decoder(DECODER_MEMORY);
        let stream = stream.map_err(|e| xz::failed(NAME, e))?;
        let input = [properties.as_slice(), &UNKNOWN, payload].concat();
        let length = declared.map(usize::try_from).transpose();
        let length = length.map_err(|_| failed("the block is too long"))?;
        let produced = xz::decompress(NAME, stream, &input, out, length)?;
        match length {
            Some(length) if length != produced => {
                Err(failed("the stream does not have the length it declares"))
            }
            _ => Ok(produced),
        }
    }
}
