//! Sources of bytes: a slice, or (in the reader) a run of metadata blocks.

use crate::squashfs::{Error, Result};

/// A forward-only source of little-endian values.
pub trait Source {
    /// Fills `buffer`, or fails if the source ends first.
    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()>;

    /// Reads a little-endian u16.
    fn u16(&mut self) -> Result<u16> {
        let mut b = [0; 2];
        self.read_exact(&mut b)?;
        Ok(u16::from_le_bytes(b))
    }
    /// Reads a little-endian i16.
    fn i16(&mut self) -> Result<i16> {
        let mut b = [0; 2];
        self.read_exact(&mut b)?;
        Ok(i16::from_le_bytes(b))
    }
    /// Reads a little-endian u32.
    fn u32(&mut self) -> Result<u32> {
        let mut b = [0; 4];
        self.read_exact(&mut b)?;
        Ok(u32::from_le_bytes(b))
    }
    /// Reads a little-endian u64.
    fn u64(&mut self) -> Result<u64> {
        let mut b = [0; 8];
        self.read_exact(&mut b)?;
        Ok(u64::from_le_bytes(b))
    }
    /// Reads the next `len` bytes. Memory grows with the bytes that are really there, not with
    /// `len`.
    fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        const STEP: usize = 16 << 10;
        let mut out = Vec::new();
        while out.len() < len {
            let from = out.len();
            out.resize(from + STEP.min(len - from), 0);
            self.read_exact(&mut out[from..])?;
        }
        Ok(out)
    }
}

/// A [`Source`] over bytes in memory.
#[derive(Debug, Clone)]
pub struct SliceSource<'a> {
    bytes: &'a [u8],
    position: usize,
    what: &'static str,
}

impl<'a> SliceSource<'a> {
    /// Reads `bytes` from the beginning; `what` names them in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        SliceSource {
            bytes,
            position: 0,
            what,
        }
    }
    /// Returns the number of bytes consumed.
    pub fn position(&self) -> usize {
        self.position
    }
    /// Returns the number of bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }
}

impl Source for SliceSource<'_> {
    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        let found = self
            .position
            .checked_add(buffer.len())
            .and_then(|end| self.bytes.get(self.position..end));
        let Some(found) = found else {
            return Err(Error::corrupt(
                self.what,
                self.position as u64,
                format!("{} bytes needed, {} left", buffer.len(), self.remaining()),
            ));
        };
        buffer.copy_from_slice(found);
        self.position += buffer.len();
        Ok(())
    }
}
