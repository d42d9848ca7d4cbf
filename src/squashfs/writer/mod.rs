//! Builds images: from nothing, or from an old image whose data is carried over compressed.
//!
//! Nodes are pushed in any order, but content is packed in the order in which files are pushed, so
//! files that are used together should be pushed one after another. The bytes of the image depend on
//! what is pushed, in which order, and on the options; never on the number of threads.
//!
//! ```text
//!  push ─► read, hash, compress (N threads) ─► one ordered writer ─► data area
//!  finish ─► inode table, directory table, fragments, export, ids, xattrs ─► superblock
//! ```
//!
//! `pipeline.rs` draws the threads; `feed.rs` numbers what is pushed; `assembler.rs` decides where
//! data lies; `tables.rs` writes all the rest; `carry.rs` says what is taken from an old image.
//! Memory: about `(threads + 2) * 4 MiB` of content in flight (or 8 blocks for each if that is
//! more), besides some 150 bytes for each node with its name.
//!
//! Carrying data over (see [`CarryMode`]) does not decompress it. A fragment block stays whole as long as
//! one of its files lives, so tails of dead files ride along, and count as dead
//! ([`DataStats::dead_in_fragments`]); compacting packs what is left of such blocks anew.

mod amend;
mod assembler;
mod blocks;
mod carry;
mod content;
mod error;
mod feed;
mod metadata;
mod nodes;
mod old_tables;
mod output;
mod pipeline;
mod push;
mod tables;
mod xattrs;

#[cfg(test)]
mod tests;

pub use amend::ImageAmender;
pub use content::{Content, OpenWith, Source, Stream};
pub use error::{Found, Result, WriteError};
pub use nodes::{Meta, NodeId};
pub use push::ImageWriter;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::compress::Compression;
use super::format::DEFAULT_BLOCK_SIZE;

/// How to build an image from nothing.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Codec and level.
    pub compression: Compression,
    /// Bytes in a full data block: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Threads that compress.
    pub threads: NonZeroUsize,
    /// When the image was made, as the superblock says, seconds since 1970.
    pub mkfs_time: u32,
    /// Whether files smaller than a block are packed together.
    pub fragments: bool,
    /// Hears of progress, and may cancel.
    pub monitor: Arc<dyn Monitor>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        WriterOptions {
            compression: Compression::default(),
            block_size: DEFAULT_BLOCK_SIZE,
            threads: default_threads(),
            mkfs_time: 0,
            fragments: true,
            monitor: Arc::new(Unheard),
        }
    }
}

/// How to build an image from an old one.
#[derive(Debug, Clone)]
pub struct AppendOptions {
    /// What becomes of the old data area.
    pub carry: CarryMode,
    /// When compacting: fragment blocks of which so many percent belong to nothing are decompressed, and
    /// what is left in them is packed anew.
    pub repack_percent: u8,
    /// Level for fresh data; `None` for the codec's usual one. The codec must be that of the
    /// old image (or none).
    pub compression: Option<Compression>,
    /// Threads that compress.
    pub threads: NonZeroUsize,
    /// When the image was made, as the superblock says, seconds since 1970.
    pub mkfs_time: u32,
    /// Hears of progress, and may cancel.
    pub monitor: Arc<dyn Monitor>,
}

impl Default for AppendOptions {
    fn default() -> Self {
        AppendOptions {
            carry: CarryMode::Append,
            repack_percent: 25,
            compression: None,
            threads: default_threads(),
            mkfs_time: 0,
            monitor: Arc::new(Unheard),
        }
    }
}

/// How to amend an old image.
#[derive(Debug, Clone)]
pub struct AmendOptions {
    /// Level for fresh data, or `None` for the default level. The codec must be that of the old
    /// image, or `Compression::None`.
    pub compression: Option<Compression>,
    /// Threads that compress.
    pub threads: NonZeroUsize,
    /// Creation time in the superblock, in seconds since 1970.
    pub mkfs_time: u32,
    /// Receives progress reports and may cancel.
    pub monitor: Arc<dyn Monitor>,
}

impl Default for AmendOptions {
    fn default() -> Self {
        AmendOptions {
            compression: None,
            threads: default_threads(),
            mkfs_time: 0,
            monitor: Arc::new(Unheard),
        }
    }
}

/// What becomes of the data area of the old image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CarryMode {
    /// It is carried over whole, at the same positions (sharing extents where the file system
    /// can), and fresh data follows. Costs little; what is unused stays as dead space.
    Append,
    /// Only what is used is copied, still compressed; but fragment blocks that are used by few of
    /// the files they were made for are packed anew.
    Compact,
}

fn default_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Hears of progress. Called from several threads: be quick.
pub trait Monitor: Send + Sync + std::fmt::Debug {
    /// So many more files and bytes of content have been packed.
    fn advance(&self, files: u64, bytes: u64);

    /// Returns true when writing should stop with [`WriteError::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A monitor that does not listen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unheard;

impl Monitor for Unheard {
    fn advance(&self, _files: u64, _bytes: u64) {}
}

/// What has been done to the data area.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct DataStats {
    /// Data and fragment blocks that were compressed now and stored compressed.
    pub blocks_compressed: u64,
    /// Data and fragment blocks stored as they were, since compression gained nothing.
    pub blocks_stored_raw: u64,
    /// Data blocks taken from the old image still compressed. When tables are amended: those of
    /// files that were pushed; nobody looks at the others.
    pub blocks_carried: u64,
    /// Fragment blocks taken from the old image still compressed.
    pub fragments_carried: u64,
    /// Stored bytes of both (when tables are amended, of all that is not dead).
    pub bytes_carried: u64,
    /// Content that was read and stored, in bytes before compression; without duplicates.
    pub fresh_bytes: u64,
    /// Stored bytes of the data area that belong to nothing; of a fragment block that is partly
    /// used, the part in proportion. When tables are amended: what has been
    /// [marked dead](ImageAmender::mark_dead), which may be too much where files share data.
    pub dead_bytes: u64,
    /// What of them is in fragment blocks that are partly used.
    pub dead_in_fragments: u64,
    /// Fragment blocks of the old image that were decompressed and packed anew.
    pub fragments_repacked: u64,
    /// What was left in them, in bytes before compression.
    pub repacked_bytes: u64,
    /// Files that share the data of an equal file.
    pub duplicates: u64,
    /// Fragment blocks in the image.
    pub fragments: u64,
    /// Stored bytes that were written or copied behind what was carried over in place.
    pub data_written: u64,
}

/// What an image writer has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct WriteStats {
    /// What became of the data.
    pub data: DataStats,
    /// Bytes written to the file, besides those carried over.
    pub bytes_written: u64,
    /// Stored bytes of tables that were taken over as they are.
    pub tables_carried: u64,
    /// When tables were amended: stored bytes of inodes and listings that follow the old ones.
    pub tables_appended: u64,
    /// Size of the file, with padding.
    pub image_size: u64,
    /// Inodes in the image.
    pub inodes: u64,
    /// From the creation of the writer until all data was written.
    #[serde(skip)]
    pub data_time: Duration,
    /// Spent on the tables.
    #[serde(skip)]
    pub table_time: Duration,
}
