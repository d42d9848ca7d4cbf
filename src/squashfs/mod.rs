//! SquashFS 4.0, read and written natively. This module knows nothing else of ours and
//! could be lifted out as a crate.
//!
//! An image in file order (little endian, byte-packed, no alignment but the padding at the end):
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
//!   ([`format::BlockSize`]: bit 24 says "stored as it is", 0 says "a hole").
//! - A **metadata block** has a 2 byte header and decompresses to at most 8 KiB
//!   ([`format::MetadataHeader`]).
//! - A file is its full blocks, one after another in the data area, plus perhaps a tail inside
//!   a **fragment** block shared with other files.
//! - A directory listing is sorted by bytes and holds neither "." nor "..".
//!
//! The rooms: [`format`](mod@format) turns bytes into structs and back, without I/O; [`compress`] has one
//! file per codec; [`reader`] serves random access to many threads; [`writer`] builds images.

pub mod compress;
mod error;
pub mod format;
pub mod reader;
pub mod writer;

pub use compress::{Compression, CompressorId};
pub use error::{Error, Result};
pub use reader::{Image, ReaderOptions};
