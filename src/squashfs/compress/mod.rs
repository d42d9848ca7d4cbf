//! One file per codec, behind two traits. The kernel is stricter than the codecs' own tools; each
//! file documents what its codec must observe.
//!
//! To add a codec: a file here, a variant of [`CompressorId`] and [`Compression`], a line in
//! [`compressor`] and [`decompressor`]. The round-trip tests cover it at once.

mod gzip;
mod lz4;
mod lzma;
#[cfg(feature = "lzo")]
mod lzo;
mod xz;
mod zstd;

use std::{fmt, str::FromStr};

use super::{Error, Result, format::METADATA_SIZE};

/// A codec, by its number in the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CompressorId {
    /// zlib (RFC 1950), despite the name.
    Gzip = 1,
    /// Legacy LZMA. The kernel never supported it; read, not written.
    Lzma = 2,
    /// LZO. Read, not written.
    Lzo = 3,
    /// xz.
    Xz = 4,
    /// LZ4 raw blocks.
    Lz4 = 5,
    /// Zstandard frames.
    Zstd = 6,
}

impl CompressorId {
    /// Returns the codec with this number.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => CompressorId::Gzip,
            2 => CompressorId::Lzma,
            3 => CompressorId::Lzo,
            4 => CompressorId::Xz,
            5 => CompressorId::Lz4,
            6 => CompressorId::Zstd,
            _ => return None,
        })
    }
    /// Returns the name that mksquashfs uses.
    pub fn name(self) -> &'static str {
        match self {
            CompressorId::Gzip => "gzip",
            CompressorId::Lzma => "lzma",
            CompressorId::Lzo => "lzo",
            CompressorId::Xz => "xz",
            CompressorId::Lz4 => "lz4",
            CompressorId::Zstd => "zstd",
        }
    }
}

impl fmt::Display for CompressorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to compress a new image. Written as `zstd:3`, `xz`, `gzip:9`, `lz4`, `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Compression {
    /// Store all blocks as they are.
    None,
    /// zlib, levels 1 to 12 (of libdeflate; 10 to 12 are slow).
    Gzip {
        /// The level.
        level: u32,
    },
    /// xz, presets 0 to 9.
    Xz {
        /// The preset.
        level: u32,
    },
    /// Zstandard, levels 1 to 22.
    Zstd {
        /// The level.
        level: i32,
    },
    /// LZ4, fast.
    Lz4,
}

/// zstd 3: fast enough for an interactive commit.
impl Default for Compression {
    fn default() -> Self {
        Compression::Zstd { level: 3 }
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> String {
        compression.to_string()
    }
}

impl TryFrom<String> for Compression {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl Compression {
    const GZIP_DEFAULT: u32 = 9;
    const XZ_DEFAULT: u32 = 6;

    /// Converts a level of conda-pack: 0 stores, 1 to 8 are zstd from 2 to 20, 9 is xz.
    pub fn from_conda_pack_level(level: u8) -> Option<Self> {
        Some(match level {
            0 => Compression::None,
            1..=8 => Compression::Zstd {
                level: i32::from(level) * 20 / 8,
            },
            9 => Compression::Xz {
                level: Self::XZ_DEFAULT,
            },
            _ => return None,
        })
    }

    /// Returns the codec for the superblock. An image that stores everything must still name a
    /// codec; it names the one that every reader supports.
    pub fn id(&self) -> CompressorId {
        match self {
            Compression::None | Compression::Gzip { .. } => CompressorId::Gzip,
            Compression::Xz { .. } => CompressorId::Xz,
            Compression::Zstd { .. } => CompressorId::Zstd,
            Compression::Lz4 => CompressorId::Lz4,
        }
    }

    /// Returns how to write blocks for an image that already has this codec, at its default level.
    /// `None` if the codec is only read.
    pub fn for_id(id: CompressorId) -> Option<Self> {
        Some(match id {
            CompressorId::Gzip => Compression::Gzip {
                level: Self::GZIP_DEFAULT,
            },
            CompressorId::Xz => Compression::Xz {
                level: Self::XZ_DEFAULT,
            },
            CompressorId::Zstd => Compression::default(),
            CompressorId::Lz4 => Compression::Lz4,
            CompressorId::Lzma | CompressorId::Lzo => return None,
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Gzip { level } => write!(f, "gzip:{level}"),
            Compression::Xz { level } => write!(f, "xz:{level}"),
            Compression::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(
                "compression",
                format!("{text:?} is not one of none, lz4, zstd[:1-22], gzip[:1-12], xz[:0-9]"),
            )
        };
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<u32>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let level_in = |default: u32, range: std::ops::RangeInclusive<u32>| {
            let level = level.unwrap_or(default);
            if range.contains(&level) {
                Ok(level)
            } else {
                Err(bad())
            }
        };
        match name {
            "none" if level.is_none() => Ok(Compression::None),
            "lz4" if level.is_none() => Ok(Compression::Lz4),
            "gzip" | "zlib" => Ok(Compression::Gzip {
                level: level_in(Self::GZIP_DEFAULT, 1..=12)?,
            }),
            "xz" => Ok(Compression::Xz {
                level: level_in(Self::XZ_DEFAULT, 0..=9)?,
            }),
            "zstd" => Ok(Compression::Zstd {
                level: level_in(3, 1..=22)? as i32,
            }),
            _ => Err(bad()),
        }
    }
}

/// Compresses blocks, one at a time. One per thread; contexts are kept between blocks.
pub trait Compressor: Send {
    /// Compresses `input` into `out` (cleared first). Returns false when the result would not
    /// be smaller: store the block as it is.
    fn compress(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool>;
}

/// Decompresses blocks, one at a time. One per thread; contexts are kept between blocks.
pub trait Decompressor: Send {
    /// Decompresses `input` into `out` and returns the length. Fails if `out` is too short.
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize>;
}

/// Returns a compressor, or `None` if blocks are to be stored as they are. `block_size` is that of
/// the image.
pub fn compressor(
    compression: &Compression,
    block_size: u32,
) -> Result<Option<Box<dyn Compressor>>> {
    Ok(match *compression {
        Compression::None => None,
        Compression::Gzip { level } => Some(Box::new(gzip::Gzip::new(level)?)),
        Compression::Xz { level } => Some(Box::new(xz::Xz::new(level, block_size)?)),
        Compression::Zstd { level } => Some(Box::new(zstd::Zstd::new(level)?)),
        Compression::Lz4 => Some(Box::new(lz4::Lz4::default())),
    })
}

/// Returns a decompressor for an image.
pub fn decompressor(id: CompressorId) -> Result<Box<dyn Decompressor>> {
    Ok(match id {
        CompressorId::Gzip => Box::new(gzip::Gunzip::new()),
        CompressorId::Xz => Box::new(xz::Unxz),
        CompressorId::Zstd => Box::new(zstd::Unzstd::new()?),
        CompressorId::Lz4 => Box::new(lz4::Unlz4),
        CompressorId::Lzma => Box::new(lzma::Unlzma),
        #[cfg(feature = "lzo")]
        CompressorId::Lzo => Box::new(lzo::Unlzo),
        #[cfg(not(feature = "lzo"))]
        CompressorId::Lzo => {
            return Err(Error::Unsupported(
                "LZO compression (this envfs was built without the feature \"lzo\")".to_owned(),
            ));
        }
    })
}

/// Bytes at the beginning of a block that [`decompressed_len`] needs (fewer for a short block).
pub const FRAME_HEADER: usize = 18;

/// Returns the decompressed length of a block if its first bytes declare it, which only zstd's do.
/// The declared length is not trusted.
pub fn decompressed_len(id: CompressorId, head: &[u8]) -> Option<u64> {
    match id {
        CompressorId::Zstd => ::zstd::zstd_safe::get_frame_content_size(head).ok()?,
        _ => None,
    }
}

/// Returns the payload of the compressor options block after the superblock, if one is needed (then
/// [`Flags::COMPRESSOR_OPTIONS`](super::format::Flags::COMPRESSOR_OPTIONS) must be set). It is
/// stored as one uncompressed metadata block.
pub fn options_block(compression: &Compression, block_size: u32) -> Option<Vec<u8>> {
    match *compression {
        Compression::None => None,
        Compression::Gzip { level } => gzip::options(level),
        Compression::Xz { .. } => xz::options(block_size),
        Compression::Zstd { level } => zstd::options(level),
        Compression::Lz4 => Some(lz4::options()),
    }
}

/// Returns the dictionary size for xz: never more than readers allocate for this block size.
fn dictionary_size(block_size: u32) -> u32 {
    block_size.max(METADATA_SIZE as u32)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
