//! The fourteen kinds of inode: seven kinds of object, each in a basic and an extended form.

use std::sync::Arc;

use super::{
    BlockSize, DIRECTORY_SIZE_BIAS, DirectoryIndexEntry, InodeKind, MAX_SYMLINK, NO_FRAGMENT,
    NO_XATTR, SliceSource, Source,
};
use crate::squashfs::{Error, Result};

/// Most supported blocks in one file: 2 TiB of 128 KiB blocks, 64 MiB of block list. The format
/// allows more; the limit keeps a small hostile image from requiring any amount of memory.
pub const MAX_BLOCKS_PER_FILE: u64 = 1 << 24;
/// Directory indexes have one entry for 8 KiB of listing, of which there are at most 4 GiB.
const MAX_INDEX: u16 = u16::MAX;

/// Values of the superblock that an inode must agree with.
#[derive(Debug, Clone, Copy)]
pub struct InodeContext {
    /// Bytes in a full data block.
    pub block_size: u32,
    /// Highest inode number.
    pub inodes: u32,
    /// Entries in the id table.
    pub ids: u16,
    /// Position of the inode table: where data ends.
    pub data_end: u64,
    /// Entries in the fragment table.
    pub fragments: u32,
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Permission bits, with set-user-id, set-group-id and sticky (12 bits).
    pub mode: u16,
    /// Owner: an index into the id table.
    pub uid_idx: u16,
    /// Group: an index into the id table.
    pub gid_idx: u16,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Its number, from 1.
    pub number: u32,
    /// Hard links (for a directory: subdirectories + 2).
    pub nlink: u32,
    /// An index into the xattr id table.
    pub xattr: Option<u32>,
    /// The fields of this kind.
    pub body: InodeBody,
}

/// The fields of one kind of inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeBody {
    /// A directory.
    Directory(DirectoryBody),
    /// A regular file.
    File(FileBody),
    /// A symbolic link's target.
    Symlink(Vec<u8>),
    /// A block device's number, as the kernel encodes it in 32 bits.
    BlockDevice(u32),
    /// A character device's number, as the kernel encodes it in 32 bits.
    CharDevice(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// The position of a directory's listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryBody {
    /// Metadata block in which the listing begins, relative to the directory table.
    pub block_start: u32,
    /// Offset in that decompressed block.
    pub offset: u16,
    /// Bytes of listing, without the 3 that the stored `file_size` adds.
    pub listing_size: u32,
    /// The parent's inode number (for the root: one more than the highest number).
    pub parent: u32,
    /// Index for lookups in large directories; may be empty.
    pub index: Arc<[DirectoryIndexEntry]>,
}

/// The last part of a file, in a block shared with other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentRef {
    /// Entry in the fragment table.
    pub index: u32,
    /// Offset in the decompressed fragment block.
    pub offset: u32,
}

/// The position of a regular file's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBody {
    /// Position of the first data block in the image.
    pub start: u64,
    /// Bytes in the file.
    pub size: u64,
    /// Bytes of it that are holes.
    pub sparse: u64,
    /// The position of the tail, if it is in a fragment.
    pub fragment: Option<FragmentRef>,
    /// Stored sizes of its blocks, in order; they lie one after another from `start`.
    pub blocks: Arc<[BlockSize]>,
}

impl FileBody {
    /// Returns the number of words in the block list. A tail in a fragment has none.
    pub fn block_count(size: u64, block_size: u32, fragment: Option<FragmentRef>) -> u64 {
        let block_size = u64::from(block_size);
        match fragment {
            Some(_) => size / block_size,
            None => size.div_ceil(block_size),
        }
    }
}

impl Inode {
    /// Returns the kind of the inode.
    pub fn kind(&self) -> InodeKind {
        match self.body {
            InodeBody::Directory(_) => InodeKind::Directory,
            InodeBody::File(_) => InodeKind::File,
            InodeBody::Symlink(_) => InodeKind::Symlink,
            InodeBody::BlockDevice(_) => InodeKind::BlockDevice,
            InodeBody::CharDevice(_) => InodeKind::CharDevice,
            InodeBody::Fifo => InodeKind::Fifo,
            InodeBody::Socket => InodeKind::Socket,
        }
    }

    /// Returns the value for `st_size`.
    pub fn size(&self) -> u64 {
        match &self.body {
            InodeBody::Directory(d) => u64::from(d.listing_size) + u64::from(DIRECTORY_SIZE_BIAS),
            InodeBody::File(f) => f.size,
            InodeBody::Symlink(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// Reads an inode from bytes in memory.
    pub fn parse(bytes: &[u8], context: &InodeContext) -> Result<Self> {
        Self::read(&mut SliceSource::new(bytes, "inode"), 0, context)
    }

    /// Reads an inode. `at` names it in errors.
    pub fn read(source: &mut impl Source, at: u64, context: &InodeContext) -> Result<Self> {
        let bad = |detail: String| Error::corrupt("inode", at, detail);
        let kind = source.u16()?;
        let mode = source.u16()?;
        let (uid_idx, gid_idx) = (source.u16()?, source.u16()?);
        let mtime = source.u32()?;
        let number = source.u32()?;
        if number == 0 || number > context.inodes {
            return Err(bad(format!("number {number} of {}", context.inodes)));
        }
        if uid_idx >= context.ids || gid_idx >= context.ids {
            return Err(bad(format!("ids {uid_idx}, {gid_idx} of {}", context.ids)));
        }
        let form = match kind {
            ..=7 => Form::Basic,
            _ => Form::Extended,
        };
        let Rest { body, nlink, xattr } = match kind {
            1 => Rest::directory(source, at)?,
            8 => Rest::extended_directory(source, at)?,
            2 => Rest::file(source, at, context)?,
            9 => Rest::extended_file(source, at, context)?,
            3 | 10 => Rest::symlink(source, at, form)?,
            4 | 11 => Rest::device(source, InodeBody::BlockDevice, form)?,
            5 | 12 => Rest::device(source, InodeBody::CharDevice, form)?,
            6 | 13 => Rest::plain(source, InodeBody::Fifo, form)?,
            7 | 14 => Rest::plain(source, InodeBody::Socket, form)?,
            _ => return Err(bad(format!("type {kind}"))),
        };
        if nlink == 0 {
            return Err(bad("no links".into()));
        }
        Ok(Inode {
            mode: mode & 0o7777,
            uid_idx,
            gid_idx,
            mtime,
            number,
            nlink,
            xattr: (xattr != NO_XATTR).then_some(xattr),
            body,
        })
    }

    /// Appends the inode, in its basic form if that can hold all fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let xattr = self.xattr.unwrap_or(NO_XATTR);
        let extended = self.xattr.is_some()
            || match &self.body {
                InodeBody::Directory(d) => {
                    !d.index.is_empty() || stored_size(d.listing_size) > u32::from(u16::MAX)
                }
                InodeBody::File(f) => {
                    self.nlink > 1
                        || f.size > u64::from(u32::MAX)
                        || f.start > u64::from(u32::MAX)
                        || f.sparse > 0
                }
                _ => false,
            };
        let kind = self.kind() as u16 + if extended { 7 } else { 0 };
        for word in [kind, self.mode & 0o7777, self.uid_idx, self.gid_idx] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let mut put = |words: &[u32]| {
            for word in words {
                out.extend_from_slice(&word.to_le_bytes());
            }
        };
        put(&[self.mtime, self.number]);
        match &self.body {
            InodeBody::Directory(d) if extended => {
                let index = &d.index[..d.index.len().min(usize::from(MAX_INDEX))];
                put(&[
                    self.nlink,
                    stored_size(d.listing_size),
                    d.block_start,
                    d.parent,
                ]);
                put(&[index.len() as u32 | u32::from(d.offset) << 16, xattr]);
                for entry in index {
                    entry.encode(out);
                }
            }
            InodeBody::Directory(d) => {
                put(&[d.block_start, self.nlink]);
                put(&[
                    stored_size(d.listing_size) | u32::from(d.offset) << 16,
                    d.parent,
                ]);
            }
            InodeBody::File(f) => {
                let (fragment, offset) = f.fragment.map_or((NO_FRAGMENT, 0), |fragment| {
                    (fragment.index, fragment.offset)
                });
                if extended {
                    for long in [f.start, f.size, f.sparse] {
                        put(&[long as u32, (long >> 32) as u32]);
                    }
                    put(&[self.nlink, fragment, offset, xattr]);
                } else {
                    put(&[f.start as u32, fragment, offset, f.size as u32]);
                }
                for block in f.blocks.iter() {
                    put(&[block.0]);
                }
            }
            InodeBody::Symlink(target) => {
                put(&[self.nlink, target.len() as u32]);
                out.extend_from_slice(target);
                if extended {
                    out.extend_from_slice(&xattr.to_le_bytes());
                }
            }
            InodeBody::BlockDevice(device) | InodeBody::CharDevice(device) => {
                put(&[self.nlink, *device]);
                if extended {
                    put(&[xattr]);
                }
            }
            InodeBody::Fifo | InodeBody::Socket => {
                put(&[self.nlink]);
                if extended {
                    put(&[xattr]);
                }
            }
        }
    }
}

/// The form of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Basic,
    Extended,
}

/// The part of an inode after the header that all kinds share.
struct Rest {
    body: InodeBody,
    nlink: u32,
    xattr: u32,
}

impl Rest {
    fn directory(source: &mut impl Source, at: u64) -> Result<Rest> {
        let block_start = source.u32()?;
        let nlink = source.u32()?;
        let size = u32::from(source.u16()?);
        let offset = source.u16()?;
        let parent = source.u32()?;
        let body = InodeBody::Directory(DirectoryBody {
            block_start,
            offset,
            listing_size: listing_size(size, at)?,
            parent,
            index: Arc::from([]),
        });
        Ok(Rest {
            body,
            nlink,
            xattr: NO_XATTR,
        })
    }

    fn extended_directory(source: &mut impl Source, at: u64) -> Result<Rest> {
        let nlink = source.u32()?;
        let size = source.u32()?;
        let block_start = source.u32()?;
        let parent = source.u32()?;
        let count = source.u16()?;
        let offset = source.u16()?;
        let xattr = source.u32()?;
        let listing_size = listing_size(size, at)?;
        let mut index = Vec::new();
        for _ in 0..count {
            index.push(DirectoryIndexEntry::read(source, at)?);
        }
        let body = InodeBody::Directory(DirectoryBody {
            block_start,
            offset,
            listing_size,
            parent,
            index: index.into(),
        });
        Ok(Rest { body, nlink, xattr })
    }

    fn file(source: &mut impl Source, at: u64, context: &InodeContext) -> Result<Rest> {
        let start = u64::from(source.u32()?);
        let (fragment, offset) = (source.u32()?, source.u32()?);
        let size = u64::from(source.u32()?);
        let fragment = fragment_ref(fragment, offset);
        let file = read_file(source, at, context, start, size, 0, fragment)?;
        Ok(Rest {
            body: InodeBody::File(file),
            nlink: 1,
            xattr: NO_XATTR,
        })
    }

    fn extended_file(source: &mut impl Source, at: u64, context: &InodeContext) -> Result<Rest> {
        let start = source.u64()?;
        let size = source.u64()?;
        let sparse = source.u64()?;
        let nlink = source.u32()?;
        let (fragment, offset) = (source.u32()?, source.u32()?);
        let xattr = source.u32()?;
        let fragment = fragment_ref(fragment, offset);
        let file = read_file(source, at, context, start, size, sparse, fragment)?;
        Ok(Rest {
            body: InodeBody::File(file),
            nlink,
            xattr,
        })
    }

    fn symlink(source: &mut impl Source, at: u64, form: Form) -> Result<Rest> {
        let bad = |detail: String| Error::corrupt("inode", at, detail);
        let nlink = source.u32()?;
        let len = source.u32()? as usize;
        if len == 0 || len > MAX_SYMLINK {
            return Err(bad(format!("symlink of {len} bytes")));
        }
        let target = source.bytes(len)?;
        if target.contains(&0) {
            return Err(bad("symlink with a NUL in its target".into()));
        }
        Ok(Rest {
            body: InodeBody::Symlink(target),
            nlink,
            xattr: read_xattr(source, form)?,
        })
    }

    fn device(
        source: &mut impl Source,
        body: impl FnOnce(u32) -> InodeBody,
        form: Form,
    ) -> Result<Rest> {
        let nlink = source.u32()?;
        let device = source.u32()?;
        Ok(Rest {
            body: body(device),
            nlink,
            xattr: read_xattr(source, form)?,
        })
    }

    fn plain(source: &mut impl Source, body: InodeBody, form: Form) -> Result<Rest> {
        let nlink = source.u32()?;
        Ok(Rest {
            body,
            nlink,
            xattr: read_xattr(source, form)?,
        })
    }
}

/// Reads the xattr index that ends an extended inode.
fn read_xattr(source: &mut impl Source, form: Form) -> Result<u32> {
    match form {
        Form::Extended => source.u32(),
        Form::Basic => Ok(NO_XATTR),
    }
}

fn stored_size(listing_size: u32) -> u32 {
    listing_size.saturating_add(DIRECTORY_SIZE_BIAS)
}

/// Returns the bytes of a listing. Some writers store 0 for an empty directory, which the kernel
/// accepts; 1 and 2 are invalid.
fn listing_size(stored: u32, at: u64) -> Result<u32> {
    if stored == 0 {
        return Ok(0);
    }
    stored
        .checked_sub(DIRECTORY_SIZE_BIAS)
        .ok_or_else(|| Error::corrupt("inode", at, format!("size {stored}")))
}

fn fragment_ref(index: u32, offset: u32) -> Option<FragmentRef> {
    (index != NO_FRAGMENT).then_some(FragmentRef { index, offset })
}

fn read_file(
    source: &mut impl Source,
    at: u64,
    context: &InodeContext,
    start: u64,
    size: u64,
    sparse: u64,
    fragment: Option<FragmentRef>,
) -> Result<FileBody> {
    let bad = |detail: String| Err(Error::corrupt("inode", at, detail));
    if i64::try_from(size).is_err() {
        return bad(format!("file of {size} bytes"));
    }
    if let Some(fragment) = fragment {
        let tail = size % u64::from(context.block_size);
        if tail == 0 {
            return bad(format!("a fragment, and no tail in {size} bytes"));
        }
        if fragment.index >= context.fragments {
            return bad(format!(
                "fragment {} of {}",
                fragment.index, context.fragments
            ));
        }
        if u64::from(fragment.offset) + tail > u64::from(context.block_size) {
            return bad(format!("{tail} bytes at {} of a fragment", fragment.offset));
        }
    }
    let count = FileBody::block_count(size, context.block_size, fragment);
    if count > MAX_BLOCKS_PER_FILE {
        return Err(Error::Unsupported(format!("a file of {count} blocks")));
    }
    // Read in steps: memory grows with the bytes that are really there, not with the declared size.
    const STEP: u64 = 256;
    let mut blocks = Vec::new();
    let mut stored: u64 = 0;
    let mut buffer = [0; STEP as usize * 4];
    while (blocks.len() as u64) < count {
        let now = STEP.min(count - blocks.len() as u64) as usize;
        source.read_exact(&mut buffer[..now * 4])?;
        for word in buffer[..now * 4].as_chunks::<4>().0 {
            let block = BlockSize(u32::from_le_bytes(*word));
            if !block.is_valid(context.block_size) {
                return bad(format!("block {} has size {:#x}", blocks.len(), block.0));
            }
            // No overflow: at most 2^24 blocks of 2^20 bytes.
            stored += u64::from(block.stored());
            blocks.push(block);
        }
    }
    if stored > 0
        && start
            .checked_add(stored)
            .is_none_or(|end| end > context.data_end)
    {
        return bad(format!(
            "{stored} bytes of blocks at {start:#x}, data ends at {:#x}",
            context.data_end
        ));
    }
    Ok(FileBody {
        start,
        size,
        sparse,
        fragment,
        blocks: blocks.into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
