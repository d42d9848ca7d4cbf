//! Reads the metadata blocks of a table as a continuous stream of bytes.

use std::{ops::Range, sync::Arc};

use super::blocks::{Blocks, MetadataBlock};
use crate::squashfs::{
    Error, Result,
    format::{InodeRef, METADATA_SIZE, Source},
};

pub(super) struct Cursor<'a> {
    blocks: &'a Blocks,
    what: &'static str,
    /// Positions of the table in the image.
    table: Range<u64>,
    position: u64,
    block: Arc<MetadataBlock>,
    offset: usize,
    caching: Caching,
}

/// How a cursor uses the cache of metadata blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caching {
    Use,
    Bypass,
}

impl<'a> Cursor<'a> {
    /// Starts at a position in a table.
    pub(super) fn new(
        blocks: &'a Blocks,
        what: &'static str,
        table: Range<u64>,
        place: InodeRef,
    ) -> Result<Self> {
        Self::open(blocks, what, table, place, Caching::Use)
    }

    /// Starts at the beginning of a table and bypasses the cache, for one pass over the whole
    /// table.
    pub(super) fn scan(blocks: &'a Blocks, what: &'static str, table: Range<u64>) -> Result<Self> {
        Self::open(blocks, what, table, InodeRef::default(), Caching::Bypass)
    }

    fn open(
        blocks: &'a Blocks,
        what: &'static str,
        table: Range<u64>,
        place: InodeRef,
        caching: Caching,
    ) -> Result<Self> {
        let position = table
            .start
            .checked_add(place.block())
            .filter(|position| *position < table.end)
            .ok_or_else(|| Error::corrupt(what, place.0, "a reference beyond its table"))?;
        let block = fetch(blocks, what, position, table.end, caching)?;
        let offset = usize::from(place.offset());
        // An offset past the block must not be subtracted from its length.
        if offset >= block.bytes.len() {
            return Err(Error::corrupt(
                what,
                position,
                format!(
                    "offset {offset} in a metadata block of {}",
                    block.bytes.len()
                ),
            ));
        }
        Ok(Cursor {
            blocks,
            what,
            table,
            position,
            block,
            offset,
            caching,
        })
    }

    /// Moves to the next block at the end of the current one. Returns false at the end of the
    /// table.
    pub(super) fn advance(&mut self) -> Result<bool> {
        while self.offset >= self.block.bytes.len() {
            if self.block.next >= self.table.end {
                return Ok(false);
            }
            if self.block.bytes.len() != METADATA_SIZE {
                return Err(Error::corrupt(
                    self.what,
                    self.position,
                    format!(
                        "{} bytes in a metadata block that is not the last",
                        self.block.bytes.len()
                    ),
                ));
            }
            let next = self.block.next;
            self.block = fetch(self.blocks, self.what, next, self.table.end, self.caching)?;
            self.position = next;
            self.offset = 0;
        }
        Ok(true)
    }

    /// Returns the position of the next byte (after [`Cursor::advance`]).
    pub(super) fn place(&self) -> InodeRef {
        InodeRef::new(self.position - self.table.start, self.offset as u16)
    }

    fn ended(&self) -> Error {
        Error::corrupt(
            self.what,
            self.position,
            "the table ends in the middle of an entry",
        )
    }
}

fn fetch(
    blocks: &Blocks,
    what: &'static str,
    at: u64,
    end: u64,
    caching: Caching,
) -> Result<Arc<MetadataBlock>> {
    match caching {
        Caching::Use => blocks.metadata(what, at, end),
        Caching::Bypass => blocks.load_metadata(what, at, end).map(Arc::new),
    }
}

impl Source for Cursor<'_> {
    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            if !self.advance()? {
                return Err(self.ended());
            }
            let here = &self.block.bytes[self.offset..];
            let len = here.len().min(buffer.len());
            let (now, rest) = buffer.split_at_mut(len);
            now.copy_from_slice(&here[..len]);
            self.offset += len;
            buffer = rest;
        }
        Ok(())
    }
}

/// A source that ends after `left` bytes: a listing within its table.
pub(super) struct Limited<S> {
    source: S,
    pub(super) left: u64,
    what: &'static str,
    at: u64,
}

impl<S: Source> Limited<S> {
    pub(super) fn new(source: S, left: u64, what: &'static str, at: u64) -> Self {
        Limited {
            source,
            left,
            what,
            at,
        }
    }
}

impl<S: Source> Source for Limited<S> {
    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.left = self
            .left
            .checked_sub(buffer.len() as u64)
            .ok_or_else(|| Error::corrupt(self.what, self.at, "an entry reaches beyond the end"))?;
        self.source.read_exact(buffer)
    }
}
