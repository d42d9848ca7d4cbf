//! Bytes to structs and back, without I/O. Nothing here panics on hostile bytes, and nothing
//! allocates more than the bytes at hand can fill.

mod block;
mod directory;
mod inode;
mod kind;
mod metadata;
mod source;
mod superblock;
mod table;
mod xattr;

pub use block::{BlockSize, FRAGMENT_ENTRY_SIZE, FragmentEntry};
pub use directory::{
    DIRECTORY_ENTRY_SIZE, DIRECTORY_HEADER_SIZE, DirectoryEntry, DirectoryHeader,
    DirectoryIndexEntry, MAX_ENTRIES_PER_HEADER, check_name,
};
pub use inode::{
    DirectoryBody, FileBody, FragmentRef, Inode, InodeBody, InodeContext, MAX_BLOCKS_PER_FILE,
};
pub use kind::InodeKind;
pub use metadata::{InodeRef, METADATA_HEADER_SIZE, METADATA_SIZE, MetadataHeader};
pub use source::{SliceSource, Source};
pub use superblock::{Flags, SUPERBLOCK_SIZE, Superblock};
pub use table::{LookupTable, encode_index};
pub use xattr::{
    XATTR_ID_SIZE, XATTR_TABLE_HEADER_SIZE, XattrId, XattrKey, XattrPrefix, XattrTableHeader,
    encode_xattr_inline, encode_xattr_out_of_line,
};

/// `hsqs`, the first four bytes of every image.
pub const MAGIC: u32 = 0x7371_7368;
/// Smallest block the format allows: one page.
pub const MIN_BLOCK_SIZE: u32 = 4 << 10;
/// Largest block the format allows.
pub const MAX_BLOCK_SIZE: u32 = 1 << 20;
/// The default of mksquashfs, which fits the kernel's readahead.
pub const DEFAULT_BLOCK_SIZE: u32 = 128 << 10;
/// Position of a table that does not exist.
pub const ABSENT: u64 = u64::MAX;
/// Fragment index of a file without a fragment.
pub const NO_FRAGMENT: u32 = u32::MAX;
/// Xattr index of an inode without xattrs.
pub const NO_XATTR: u32 = u32::MAX;
/// A directory's `file_size` is the size of its listing plus this, for the "." and ".." that are
/// not stored. An empty directory has exactly this size; unsquashfs requires it.
pub const DIRECTORY_SIZE_BIAS: u32 = 3;
/// Longest name: the kernel's limit, not the format's (256).
pub const MAX_NAME: usize = 255;
/// Longest symlink target: the kernel rejects a page or more.
pub const MAX_SYMLINK: usize = 4095;
/// Most ids an image can name: inodes index them by u16.
pub const MAX_IDS: usize = 65_535;
/// Images end on a multiple of this, so that a loop device can map them.
pub const PADDING: u64 = 4096;
