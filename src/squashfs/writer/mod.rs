//! Builds images: new ones, or from an old image whose data is carried over compressed.
//!
//! Nodes are pushed in any order, but content is packed in the order in which files are pushed, so
//! files that are used together should be pushed one after another. The bytes of the image depend
//! only on the pushed nodes, their order and the options, and not on the number of threads.
//!
//! ```text
//!  push ─► read, hash, compress (N threads) ─► one ordered writer ─► data area
//!  finish ─► inode table, directory table, fragments, export, ids, xattrs ─► superblock
//! ```
//!
//! `pipeline.rs` has the threads; `feed.rs` numbers the pushed content; `assembler.rs` places data;
//! `tables.rs` writes everything else; `carry.rs` handles the data of an old image, and
//! `old_tables.rs` its tables. Memory: about `(threads + 2) * 4 MiB` of content in flight (or 8
//! blocks for each if that is more), and some 150 bytes for each node with its name.
//!
//! Carrying data over (see [`CarryMode`]) does not decompress it. A fragment block stays whole as
//! long as one of its files is live. Tails of dead files in it count as dead
//! ([`DataStats::dead_in_fragments`]). Compacting repacks the live tails of such blocks.

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
pub use content::{Content, OpenWith, Source};
pub use error::{Found, Result, WriteError};
pub use nodes::{Meta, NodeId};
pub use push::ImageWriter;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::compress::Compression;
use super::format::DEFAULT_BLOCK_SIZE;

/// How to build a new image.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Codec and level.
    pub compression: Compression,
    /// Bytes in a full data block: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Threads that compress.
    pub threads: NonZeroUsize,
    /// Creation time in the superblock, in seconds since 1970.
    pub mkfs_time: u32,
    /// True to pack files smaller than a block together.
    pub fragments: bool,
    /// Receives progress reports and may cancel.
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
            monitor: Arc::new(NoMonitor),
        }
    }
}

/// How to build an image from an old one.
#[derive(Debug, Clone)]
pub struct AppendOptions {
    /// How the old data area is carried over.
    pub carry: CarryMode,
    /// When compacting: fragment blocks of which at least this percentage is dead are decompressed,
    /// and their live tails are repacked.
    pub repack_percent: u8,
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

impl Default for AppendOptions {
    fn default() -> Self {
        AppendOptions {
            carry: CarryMode::Append,
            repack_percent: 25,
            compression: None,
            threads: default_threads(),
            mkfs_time: 0,
            monitor: Arc::new(NoMonitor),
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
            monitor: Arc::new(NoMonitor),
        }
    }
}

/// How the data area of an old image is carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CarryMode {
    /// The whole area, at the same positions (sharing extents if the file system supports it).
    /// Fresh data follows. Fast, but unused data stays as dead space.
    Append,
    /// Only live data, still compressed. Fragment blocks with much dead data are repacked.
    Compact,
}

fn default_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Receives progress reports. Called from several threads, so calls should be short.
pub trait Monitor: Send + Sync + std::fmt::Debug {
    /// Reports that more files and bytes of content have been packed.
    fn advance(&self, files: u64, bytes: u64);

    /// Returns true when writing should stop with [`WriteError::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A monitor that ignores all reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMonitor;

impl Monitor for NoMonitor {
    fn advance(&self, _files: u64, _bytes: u64) {}
}

/// Counts of the data area of a written image.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct DataStats {
    /// Data and fragment blocks that were compressed.
    pub blocks_compressed: u64,
    /// Data and fragment blocks stored uncompressed, since compression gained nothing.
    pub blocks_stored_raw: u64,
    /// Data blocks carried over from the old image still compressed. When amending: only those of
    /// pushed files.
    pub blocks_carried: u64,
    /// Fragment blocks carried over from the old image still compressed.
    pub fragments_carried: u64,
    /// Stored bytes of both (when amending, of all data that is not dead).
    pub bytes_carried: u64,
    /// Content that was read and stored, in bytes before compression, without duplicates.
    pub fresh_bytes: u64,
    /// Stored bytes of the data area that are unreferenced. Of a fragment block that is partly
    /// used, the part in proportion. When amending: the data that was [marked
    /// dead](ImageAmender::mark_dead), which is an upper bound if files share data.
    pub dead_bytes: u64,
    /// The part of those bytes in fragment blocks that are partly used.
    pub dead_in_fragments: u64,
    /// Fragment blocks of the old image that were decompressed and repacked.
    pub fragments_repacked: u64,
    /// Their live tails, in bytes before compression.
    pub repacked_bytes: u64,
    /// Files that share the data of an equal file.
    pub duplicates: u64,
    /// Fragment blocks in the image.
    pub fragments: u64,
    /// Stored bytes that were written or copied, behind any data carried over in place.
    pub data_written: u64,
}

/// Counts and times of a written image.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct WriteStats {
    /// Counts of the data area.
    pub data: DataStats,
    /// Bytes written to the file, without those carried over.
    pub bytes_written: u64,
    /// Stored bytes of tables that were carried over unchanged.
    pub tables_carried: u64,
    /// When amending: stored bytes of inodes and listings that follow the old ones.
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
