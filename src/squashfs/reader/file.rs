//! The contents of files: the position of each block, and reading.

use std::sync::Arc;

use super::{Block, Image};
use crate::squashfs::{
    Error, Result,
    compress::{FRAME_HEADER, decompressed_len},
    format::{BlockSize, FragmentEntry, FragmentRef, Inode, InodeBody, InodeRef},
};

/// Positions are stored for every 32nd block; those between are computed on request.
const STRIDE: usize = 32;

/// The positions of a file's data: enough to read it, and to carry it over to another image without
/// decompressing it.
#[derive(Debug)]
pub struct FileLayout {
    /// The inode number of the file.
    number: u32,
    start: u64,
    size: u64,
    sparse: u64,
    block_size: u32,
    fragment: Option<FragmentRef>,
    blocks: Arc<[BlockSize]>,
    /// Positions of blocks 0, 32, 64, ...
    positions: Box<[u64]>,
    stored: u64,
}

/// A part of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Region {
    Data,
    Hole,
}

impl FileLayout {
    /// Returns the inode number of the file.
    pub(super) fn number(&self) -> u32 {
        self.number
    }
    /// Returns the position of the first data block in the image. The others follow without gaps.
    pub fn start(&self) -> u64 {
        self.start
    }
    /// Returns the size of the file.
    pub fn size(&self) -> u64 {
        self.size
    }
    /// Returns the bytes of holes that the inode declares.
    pub fn sparse(&self) -> u64 {
        self.sparse
    }
    /// Returns the stored sizes of the data blocks.
    pub fn blocks(&self) -> &Arc<[BlockSize]> {
        &self.blocks
    }
    /// Returns the position of the tail, if it is in a fragment.
    pub fn fragment(&self) -> Option<FragmentRef> {
        self.fragment
    }
    /// Returns the stored bytes of all data blocks.
    pub fn stored(&self) -> u64 {
        self.stored
    }
    /// Returns the number of blocks for [`Image::block`]: the data blocks, and one for a tail in a
    /// fragment.
    pub fn block_count(&self) -> u64 {
        self.blocks.len() as u64 + u64::from(self.fragment.is_some())
    }
    /// Returns the decompressed length of a block.
    pub fn block_len(&self, index: u64) -> usize {
        let block_size = u64::from(self.block_size);
        let before = index.saturating_mul(block_size);
        self.size.saturating_sub(before).min(block_size) as usize
    }
    /// Returns the position and stored size of a data block. `None` past the last.
    pub fn position(&self, index: u64) -> Option<(u64, BlockSize)> {
        let index = usize::try_from(index).ok()?;
        let size = *self.blocks.get(index)?;
        let from = index / STRIDE;
        let known = *self.positions.get(from)?;
        let between: u64 = self
            .blocks
            .get(from * STRIDE..index)?
            .iter()
            .map(|b| u64::from(b.stored()))
            .sum();
        Some((known + between, size))
    }

    /// Returns the first byte at or after `offset` that is not in a hole, or `None`.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        self.next(offset, Region::Data)
            .filter(|found| *found < self.size)
    }
    /// Returns the first byte at or after `offset` that is in a hole; the end of the file counts as
    /// one. `None` past the end.
    pub fn next_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.size {
            None
        } else {
            Some(self.next(offset, Region::Hole).unwrap_or(self.size))
        }
    }
    fn next(&self, offset: u64, region: Region) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let block_size = u64::from(self.block_size);
        let first = offset / block_size;
        (first..self.block_count()).find_map(|index| {
            let is_hole = usize::try_from(index)
                .ok()
                .and_then(|index| self.blocks.get(index))
                .is_some_and(|block| block.is_hole());
            (is_hole == (region == Region::Hole)).then(|| (index * block_size).max(offset))
        })
    }

    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.blocks) + size_of_val(&*self.positions)
    }
}

impl Image {
    /// Returns the layout of a file. The cost grows with the number of blocks: keep it while
    /// reading, or use [`Image::file`].
    pub fn file_layout(&self, file: &Inode) -> Result<FileLayout> {
        let InodeBody::File(body) = &file.body else {
            let detail = format!("inode {} is not one", file.number);
            return Err(Error::invalid("reading a regular file", detail));
        };
        let mut positions = Vec::with_capacity(body.blocks.len().div_ceil(STRIDE));
        let mut next = body.start;
        for run in body.blocks.chunks(STRIDE) {
            positions.push(next);
            let stored: u64 = run.iter().map(|block| u64::from(block.stored())).sum();
            next = next.checked_add(stored).ok_or_else(|| {
                Error::corrupt(
                    "inode",
                    u64::from(file.number),
                    "blocks beyond position 2^64",
                )
            })?;
        }
        // Parsing has checked the upper end. A file that is all holes has no position.
        let data = self.data_area();
        if next > body.start && (body.start < data.start || next > data.end) {
            let detail = format!("data at {:#x}..{next:#x}, outside {data:#x?}", body.start);
            return Err(Error::corrupt("inode", u64::from(file.number), detail));
        }
        Ok(FileLayout {
            number: file.number,
            start: body.start,
            size: body.size,
            sparse: body.sparse,
            block_size: self.superblock().block_size,
            fragment: body.fragment,
            blocks: Arc::clone(&body.blocks),
            positions: positions.into(),
            stored: next - body.start,
        })
    }

    /// Returns the layout of a file through the cache.
    pub fn file(&self, inode: InodeRef) -> Result<Arc<FileLayout>> {
        self.layouts().get(inode.0, || {
            let layout = self.file_layout(&self.inode(inode)?)?;
            let bytes = layout.memory();
            Ok((Arc::new(layout), bytes))
        })
    }

    /// Returns a decompressed block of a file, shared with the cache. Blocks are numbered from 0;
    /// the tail in a fragment is the last.
    pub fn block(&self, file: &FileLayout, index: u64) -> Result<Block> {
        self.blocks().uses.record_file(file.number);
        if let Some((start, size)) = file.position(index) {
            return self.blocks().data(start, size, file.block_len(index));
        }
        match file.fragment {
            Some(fragment) if index == file.blocks.len() as u64 => {
                self.tail(fragment, file.block_len(index))
            }
            _ => Err(Error::invalid(
                "reading a block",
                format!("block {index} of {}", file.block_count()),
            )),
        }
    }

    /// Returns true if a block of a file can be returned without reading and decompressing it. Also
    /// true past the end of the file.
    pub fn is_decompressed(&self, file: &FileLayout, index: u64) -> bool {
        match (file.position(index), file.fragment) {
            (Some((start, size)), _) => self.blocks().is_decompressed(start, size),
            (None, Some(fragment)) => match self.fragment(fragment.index) {
                Ok(entry) => self.blocks().is_decompressed(entry.start, entry.size),
                Err(_) => true,
            },
            (None, None) => true,
        }
    }

    fn tail(&self, fragment: FragmentRef, len: usize) -> Result<Block> {
        let entry = self.fragment(fragment.index)?;
        let block = self.blocks().fragment(entry.start, entry.size)?;
        let from = fragment.offset as usize;
        match from.checked_add(len) {
            Some(to) if to <= block.len() => Ok(block.slice(from..to)),
            _ => Err(Error::corrupt(
                "fragment block",
                entry.start,
                format!("{len} bytes at {from} of {}", block.len()),
            )),
        }
    }

    /// Reads from a file at an offset. Reads less than the length of the buffer only at the end.
    pub fn read_at(&self, file: &FileLayout, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let wanted = file.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let block_size = u64::from(file.block_size);
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let index = at / block_size;
            let within = (at % block_size) as usize;
            let len = (wanted - done).min(file.block_len(index).saturating_sub(within));
            let Some(out) = buffer
                .get_mut(done..done + len)
                .filter(|out| !out.is_empty())
            else {
                return Err(Error::invalid("reading a file", format!("nothing at {at}")));
            };
            match file.position(index) {
                Some((_, size)) if size.is_hole() => out.fill(0),
                // Stored uncompressed: no need to read or cache the whole block.
                Some((start, size))
                    if !size.is_compressed() && size.stored() as usize == file.block_len(index) =>
                {
                    self.blocks()
                        .read(start + within as u64, out, "reading a block")?;
                }
                _ => {
                    let block = self.block(file, index)?;
                    let Some(found) = block.get(within..within + len) else {
                        return Err(Error::invalid("reading a file", format!("nothing at {at}")));
                    };
                    out.copy_from_slice(found);
                }
            }
            done += len;
        }
        Ok(done)
    }

    /// Reads an entry of the fragment table.
    pub fn fragment(&self, index: u32) -> Result<FragmentEntry> {
        let raw: [u8; 16] =
            self.table_entry("fragment table", self.fragment_table(), u64::from(index))?;
        let entry = FragmentEntry::parse(&raw)?;
        let data = self.data_area();
        let end = entry.start.checked_add(u64::from(entry.size.stored()));
        if entry.start < data.start
            || end.is_none_or(|end| end > data.end)
            || !entry.size.is_valid(self.superblock().block_size)
        {
            return Err(Error::corrupt(
                "fragment table",
                entry.start,
                format!(
                    "fragment {index} of size {:#x}, data ends at {:#x}",
                    entry.size.0, data.end
                ),
            ));
        }
        Ok(entry)
    }

    /// Returns a whole decompressed fragment block through the cache.
    pub fn fragment_block(&self, index: u32) -> Result<Block> {
        let entry = self.fragment(index)?;
        self.blocks().fragment(entry.start, entry.size)
    }

    /// Returns the decompressed length of a fragment block if it is known without decompressing it.
    pub fn fragment_len(&self, entry: &FragmentEntry) -> Result<Option<u32>> {
        if !entry.size.is_compressed() {
            return Ok(Some(entry.size.stored()));
        }
        let mut head = [0; FRAME_HEADER];
        let len = head.len().min(entry.size.stored() as usize);
        let head = &mut head[..len];
        self.blocks().read(entry.start, head, "reading a block")?;
        let block_size = u64::from(self.superblock().block_size);
        let len = decompressed_len(self.superblock().compressor, head);
        Ok(len.filter(|len| *len <= block_size).map(|len| len as u32))
    }

    /// Returns the number of entries in the fragment table.
    pub fn fragment_count(&self) -> u32 {
        self.fragment_table()
            .map_or(0, |table| table.count() as u32)
    }
}
