//! xz streams. The kernel's decoder supports no check but CRC32, and allocates a dictionary of the
//! block size (at least 8 KiB). A stream that requires more can be read elsewhere, but gives EIO in
//! the kernel. So the encoder's defaults (CRC64, 8 MiB) must not be used.

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

use super::{Compressor, Decompressor, dictionary_size};
use crate::squashfs::{Error, Result};

const NAME: &str = "xz";
/// Memory that a stream may require. Blocks are at most 1 MiB, and so are the dictionaries of most
/// writers; some use the preset's 8 MiB, which unsquashfs reads.
const DECODER_MEMORY: u64 = 32 << 20;

pub(super) fn failed(codec: &'static str, error: liblzma::stream::Error) -> Error {
    Error::Codec {
        codec,
        detail: error.to_string(),
    }
}

/// The filter chain holds raw pointers and must not move between threads, so it is created for each
/// block. Compared to compressing the block, that costs nothing.
pub(super) struct Xz {
    preset: u32,
    dictionary: u32,
}

impl Xz {
    pub(super) fn new(preset: u32, block_size: u32) -> Result<Self> {
        let xz = Xz {
            preset,
            dictionary: dictionary_size(block_size),
        };
        xz.filters()?;
        Ok(xz)
    }

    fn filters(&self) -> Result<Filters> {
        let mut options = LzmaOptions::new_preset(self.preset)
            .map_err(|_| Error::invalid("xz level", format!("{} is not in 0..=9", self.preset)))?;
        options.dict_size(self.dictionary);
        let mut filters = Filters::new();
        filters.lzma2(&options);
        Ok(filters)
    }
}

impl Compressor for Xz {
    fn compress(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let filters = self.filters()?;
        let mut stream =
            Stream::new_stream_encoder(&filters, Check::Crc32).map_err(|e| failed(NAME, e))?;
        out.clear();
        // One byte less than the input: if that does not suffice, compression gains nothing.
        out.resize(input.len().saturating_sub(1), 0);
        loop {
            let (consumed, produced) = (stream.total_in() as usize, stream.total_out() as usize);
            let (Some(rest), Some(room)) = (input.get(consumed..), out.get_mut(produced..)) else {
                return Ok(false);
            };
            if room.is_empty() {
                return Ok(false);
            }
            let status = stream.process(rest, room, Action::Finish);
            match status.map_err(|e| failed(NAME, e))? {
                Status::StreamEnd => {
                    out.truncate(stream.total_out() as usize);
                    return Ok(true);
                }
                Status::Ok | Status::GetCheck => {}
                Status::MemNeeded => return Ok(false),
            }
        }
    }
}

pub(super) struct Unxz;

impl Decompressor for Unxz {
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let stream = Stream::new_stream_decoder(DECODER_MEMORY, 0);
        decompress(NAME, stream.map_err(|e| failed(NAME, e))?, input, out, None)
    }
}

/// Decompresses one whole stream and returns its length. A stream without an end marker may end
/// with its input if it then has the given length.
pub(super) fn decompress(
    codec: &'static str,
    mut stream: Stream,
    input: &[u8],
    out: &mut [u8],
    length: Option<usize>,
) -> Result<usize> {
    loop {
        let (consumed, produced) = (stream.total_in() as usize, stream.total_out() as usize);
        let rest = input.get(consumed..).unwrap_or_default();
        let room = out.get_mut(produced..).unwrap_or_default();
        let status = stream.process(rest, room, Action::Finish);
        match status.map_err(|e| failed(codec, e))? {
            Status::StreamEnd => return Ok(stream.total_out() as usize),
            Status::Ok | Status::GetCheck
                if stream.total_in() as usize > consumed
                    || stream.total_out() as usize > produced => {}
            _ if rest.is_empty() && length == Some(produced) => return Ok(produced),
            _ => {
                return Err(Error::Codec {
                    codec,
                    detail: "the stream is truncated, or longer than its block".into(),
                });
            }
        }
    }
}

/// Returns u32 dictionary size and u32 filters. Always `None`, since the values are those that
/// readers assume: a dictionary of the block size, and no filters.
pub(super) fn options(_block_size: u32) -> Option<Vec<u8>> {
    None
}
