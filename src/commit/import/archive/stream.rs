//! The decompressed bytes of an archive, entry by entry.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use super::error::{Error, Result};
use super::header::BLOCK;

/// Maximum size of extended headers and long names, in bytes.
const MAX_EXTENDED: u64 = 16 << 20;
/// The decompressed bytes of an archive.
pub(super) struct Stream {
    pub(super) input: Input,
    /// Bytes of data of the current entry that have not been read.
    pub(super) data: u64,
    /// Bytes of padding after the data.
    pub(super) padding: u64,
}

pub(super) enum Input {
    /// The archive, the position in it, and its length.
    Plain(Arc<File>, u64, u64),
    Compressed(Box<dyn Read + Send>),
}

impl Stream {
    /// Reads a block. Returns `None` at the end of the archive.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => filled += read,
            }
        }
        Ok(Some(block))
    }

    /// Reads data of the current entry.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.data).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(len);
        let read = self
            .input
            .read(buffer.get_mut(..wanted).unwrap_or_default())?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        Ok(read)
    }

    /// Skips data of the current entry.
    pub(super) fn skip_data(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = bytes.min(self.data);
        self.input.skip(bytes)?;
        self.data -= bytes;
        Ok(())
    }

    /// Skips the rest of the current entry.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.input.skip(self.data.saturating_add(self.padding))?;
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// Begins the data of an entry, `size` bytes. Fails if the archive is too short for it.
    pub(super) fn begin(&mut self, size: u64) -> Result<()> {
        let rest = size % BLOCK as u64;
        self.data = size;
        self.padding = if rest == 0 { 0 } else { BLOCK as u64 - rest };
        match self.input {
            Input::Plain(_, at, len) if len.saturating_sub(at) < size => {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            }
            _ => Ok(()),
        }
    }

    /// Reads the data of an extended header or a long name.
    pub(super) fn read_extended(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENDED {
            let why = format!("an extended header of {size} bytes, more than {MAX_EXTENDED}");
            return Err(Error::Damaged(why));
        }
        self.begin(size)?;
        let mut bytes = Vec::new();
        let mut part = [0; 8192];
        while self.data > 0 {
            let read = self.read_data(&mut part)?;
            bytes.extend_from_slice(part.get(..read).unwrap_or_default());
        }
        self.finish()?;
        Ok(bytes)
    }
}

impl Input {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = match self {
            Input::Plain(_, at, len) => {
                let skipped = bytes.min(len.saturating_sub(*at));
                *at += skipped;
                skipped
            }
            Input::Compressed(reader) => io::copy(&mut reader.take(bytes), &mut io::sink())?,
        };
        match skipped == bytes {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::Plain(file, at, _) => {
                let read = std::os::unix::fs::FileExt::read_at(&**file, buffer, *at)?;
                *at += read as u64;
                Ok(read)
            }
            Input::Compressed(reader) => loop {
                match reader.read(buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => return other,
                }
            },
        }
    }
}
