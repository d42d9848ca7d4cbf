//! Reads the fresh content of a file block by block.

use super::content::{Content, Source};
use super::error::{Result, WriteError};
use super::pipeline::{Shared, check_end, is_zero, read_up_to};

/// A fresh block.
pub(super) enum Fresh {
    Bytes(Vec<u8>),
    /// This many zeros.
    Hole(usize),
}

impl Fresh {
    pub(super) fn len(&self) -> usize {
        match self {
            Fresh::Bytes(bytes) => bytes.len(),
            Fresh::Hole(len) => *len,
        }
    }
}

/// The content of one file, block by block.
pub(super) struct Blocks<'s> {
    source: &'s dyn Source,
    content: Box<dyn Content>,
    size: u64,
    at: u64,
    block_size: usize,
    /// Bytes from `at` on that are known to be a hole.
    hole: u64,
    /// True to look for a hole next: at the beginning, and after zeros.
    probe_hole: bool,
}

impl<'s> Blocks<'s> {
    pub(super) fn open(source: &'s dyn Source, size: u64, block_size: usize) -> Result<Self> {
        let content = source.open().map_err(|error| WriteError::Source {
            label: source.label(),
            error,
        })?;
        Ok(Blocks {
            source,
            content,
            size,
            at: 0,
            block_size,
            hole: 0,
            probe_hole: true,
        })
    }

    /// Returns the length of the next block, or 0 at the end.
    pub(super) fn next_len(&self) -> usize {
        (self.size - self.at).min(self.block_size as u64) as usize
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> WriteError + use<> {
        let label = self.source.label();
        move |error| WriteError::Source {
            label: label.clone(),
            error,
        }
    }

    pub(super) fn next(&mut self, shared: &Shared) -> Result<Fresh> {
        let len = self.next_len();
        if self.probe_hole && self.hole == 0 {
            self.hole = self.content.hole_ahead().map_err(self.failed())?;
            self.probe_hole = false;
        }
        if self.hole >= len as u64 {
            self.probe_hole = true;
            self.skip()?;
            return Ok(Fresh::Hole(len));
        }
        let mut bytes = shared.buffer();
        read_up_to(&mut self.content, &mut bytes, len).map_err(self.failed())?;
        self.at += bytes.len() as u64;
        self.hole = 0;
        if bytes.len() < len {
            // Fails, since the content is shorter than announced.
            check_end(&mut self.content, self.source, self.size, self.at)?;
        }
        if is_zero(&bytes) {
            self.probe_hole = true;
            shared.recycle(bytes);
            return Ok(Fresh::Hole(len));
        }
        Ok(Fresh::Bytes(bytes))
    }

    /// Skips the next block.
    pub(super) fn skip(&mut self) -> Result<()> {
        let len = self.next_len() as u64;
        self.content.skip(len).map_err(self.failed())?;
        self.at += len;
        self.hole = self.hole.saturating_sub(len);
        Ok(())
    }

    pub(super) fn check_end(&mut self) -> Result<()> {
        check_end(&mut self.content, self.source, self.size, self.at)
    }
}
