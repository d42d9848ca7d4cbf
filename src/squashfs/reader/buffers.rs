//! Decompressed blocks and their buffers.
//!
//! A cache whose blocks are replaced all the time fragments the heap: blocks of every length are
//! allocated by one thread and freed by another. The allocator then held twice the size of the
//! cache. So blocks of the usual length use buffers from a pool.

use std::{
    fmt, mem,
    ops::{Deref, Range},
    sync::Arc,
};

use super::idle::Idle;

/// Bytes of idle buffers that are kept.
const IDLE_BYTES: usize = 1 << 20;
/// Limits of the number of idle buffers. More than a few threads rarely decompress at once.
const IDLE: std::ops::RangeInclusive<usize> = 2..=8;

/// A pool of buffers of one length.
pub(super) struct Buffers {
    len: usize,
    idle: Idle<Vec<u8>>,
}

impl Buffers {
    pub(super) fn new(len: usize) -> Arc<Buffers> {
        Arc::new(Buffers {
            len,
            idle: Idle::new((IDLE_BYTES / len.max(1)).clamp(*IDLE.start(), *IDLE.end())),
        })
    }

    /// Takes a buffer with arbitrary content.
    pub(super) fn take(self: &Arc<Self>) -> Buffer {
        Buffer {
            bytes: self.idle.take().unwrap_or_else(|| vec![0; self.len]),
            home: Some(Arc::clone(self)),
        }
    }
}

/// Bytes that return to their pool when dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Option<Arc<Buffers>>,
}

impl Buffer {
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Returns the first `len` bytes as a block. They are copied if they fill at most half of the
    /// buffer, which then returns to the pool.
    pub(super) fn into_block(self, len: usize) -> Block {
        let buffer = if len > self.bytes.len() / 2 {
            self
        } else {
            Buffer {
                bytes: self.bytes[..len].to_vec(),
                home: None,
            }
        };
        Block {
            range: 0..len,
            buffer: Arc::new(buffer),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.idle.put_back(mem::take(&mut self.bytes));
        }
    }
}

/// Decompressed bytes, shared with the cache. Cloning and slicing do not copy them.
#[derive(Clone)]
pub struct Block {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Block {
    /// Returns a block of zeros.
    pub(super) fn zeros(len: usize) -> Block {
        Block {
            buffer: Arc::new(Buffer {
                bytes: vec![0; len],
                home: None,
            }),
            range: 0..len,
        }
    }

    /// Returns a part of the block, limited to its length.
    pub fn slice(&self, range: Range<usize>) -> Block {
        let len = self.range.len();
        let (from, to) = (range.start.min(len), range.end.min(len));
        let start = self.range.start;
        Block {
            buffer: Arc::clone(&self.buffer),
            range: start + from..start + to.max(from),
        }
    }

    /// Returns the bytes of memory that the block holds.
    pub(super) fn held(&self) -> usize {
        self.buffer.bytes.len()
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer.bytes[self.range.clone()]
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_once_all_their_blocks_are_dropped() {
        let buffers = Buffers::new(1000);
        let mut buffer = buffers.take();
        buffer.as_mut_slice().fill(1);
        let block = buffer.into_block(900);
        let part = block.slice(10..20);
        drop(block);
        let mut other = buffers.take();
        other.as_mut_slice().fill(2);
        assert_eq!(*part, [1; 10]);
        let at = part.as_ptr() as usize - 10;
        drop(part);
        assert_eq!(buffers.take().into_block(600).as_ptr() as usize, at);
    }

    #[test]
    fn a_short_block_does_not_hold_a_long_buffer() {
        let buffers = Buffers::new(1000);
        let block = buffers.take().into_block(500);
        assert_eq!((block.len(), block.held()), (500, 500));
        let block = buffers.take().into_block(501);
        assert_eq!((block.len(), block.held()), (501, 1000));
    }

    #[test]
    fn few_idle_buffers_are_kept() {
        let buffers = Buffers::new(10);
        let taken: Vec<Buffer> = (0..100).map(|_| buffers.take()).collect();
        drop(taken);
        assert_eq!(buffers.idle.len(), *IDLE.end());
        let long = Buffers::new(IDLE_BYTES);
        drop((0..100).map(|_| long.take()).collect::<Vec<Buffer>>());
        assert_eq!(long.idle.len(), *IDLE.start());
    }
}
