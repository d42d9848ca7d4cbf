//! Reads and writes SquashFS 4.0. This module depends on no other module of envfs and could be a
//! crate of its own.
//!
//! An image in file order (little endian, byte-packed, unaligned except for the padding at the
//! end):
//!
//! ```text
//!  0                superblock, 96 bytes: where every table below begins
//!  96               compressor options (optional): one stored metadata block
//!                   ┌────────────────────────────────────────────────────────────────┐
//!  data area        │ file A: block block block │ fragment block (tails of B, C, D)  │ ...
//!                   └────────────────────────────────────────────────────────────────┘
//!  inode table      metadata blocks; an inode is named by (block position << 16 | offset)
//!  directory table  metadata blocks; a directory's inode says where its listing begins
//!  fragment table   16 bytes each: where a fragment block lies    ┐ metadata blocks, followed
//!  export table     8 bytes each: inode number -> inode reference │ by an index of u64 block
//!  id table         4 bytes each: u16 in the inode -> uid or gid  │ positions; the superblock
//!  xattr table      lists of (name, value), and 16 bytes per list ┘ points at the index
//!  padding          to 4 KiB, so that a loop device can map it
//! ```
//!
//! - A **data block** has no header: its stored size is a word in the inode's block list
//!   ([`format::BlockSize`]: bit 24 means "uncompressed", 0 means "a hole").
//! - A **metadata block** has a 2 byte header and decompresses to at most 8 KiB
//!   ([`format::MetadataHeader`]).
//! - A file is its full blocks, one after another in the data area, plus perhaps a tail inside
//!   a **fragment** block shared with other files.
//! - A directory listing is sorted by bytes and holds neither "." nor "..".
//!
//! Modules: [`format`](mod@format) converts between bytes and structs, without I/O; [`compress`]
//! has one file per codec; [`reader`] provides random access for many threads; [`writer`] builds
//! images.

pub mod compress;
mod error;
pub mod format;
pub mod reader;
pub mod writer;

pub use compress::{Compression, CompressorId};
pub use error::{Error, Result};
pub use reader::{Image, ReaderOptions, may_embed};
