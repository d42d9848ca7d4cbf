//! Writes the image file sequentially, in large pieces.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::error::{Result, WriteError};
use crate::squashfs::reader::Image;

/// Bytes that are buffered before they are written.
const BUFFER: usize = 1 << 20;
/// Ranges up to this long are copied through the buffer, longer ones by the kernel.
const COPY_THROUGH_BUFFER: u64 = 256 << 10;
/// Most bytes of one copy call, so that cancellation takes effect.
const COPY_STEP: u64 = 64 << 20;

/// A cursor over the file being written.
#[derive(Debug)]
pub(super) struct Output {
    file: Arc<File>,
    old: Option<Image>,
    /// Where the buffer begins in the file.
    start: u64,
    buffer: Vec<u8>,
    /// A range of the old image that comes after the buffer: (position, length).
    copy: Option<(u64, u64)>,
}

impl Output {
    pub(super) fn new(file: Arc<File>, old: Option<Image>, start: u64) -> Self {
        Output {
            file,
            old,
            start,
            buffer: Vec::with_capacity(BUFFER),
            copy: None,
        }
    }

    /// Returns the position of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64 + self.copy.map_or(0, |(_, len)| len)
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.flush_copy()?;
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush_buffer()?;
        }
        if bytes.len() >= BUFFER {
            self.file
                .write_all_at(bytes, self.start)
                .map_err(WriteError::io("writing the image"))?;
            self.start += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Appends a range of the old image. Adjacent ranges become one.
    pub(super) fn copy(&mut self, from: u64, len: u64) -> Result<()> {
        match &mut self.copy {
            Some((start, so_far)) if *start + *so_far == from => *so_far += len,
            _ => {
                self.flush_copy()?;
                self.copy = Some((from, len));
            }
        }
        Ok(())
    }

    fn flush_buffer(&mut self) -> Result<()> {
        self.file
            .write_all_at(&self.buffer, self.start)
            .map_err(WriteError::io("writing the image"))?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn flush_copy(&mut self) -> Result<()> {
        let Some((from, len)) = self.copy.take() else {
            return Ok(());
        };
        let Some(old) = self.old.clone() else {
            return Err(WriteError::Carry("there is no old image".into()));
        };
        if len <= COPY_THROUGH_BUFFER {
            let len = len as usize;
            if self.buffer.len() + len > BUFFER {
                self.flush_buffer()?;
            }
            let at = self.buffer.len();
            self.buffer.resize(at + len, 0);
            return old
                .as_file()
                .read_exact_at(&mut self.buffer[at..], from)
                .map_err(WriteError::io("reading the old image"));
        }
        self.flush_buffer()?;
        copy_range(
            old.as_file(),
            from,
            &self.file,
            self.start,
            len,
            &mut || Ok(()),
        )?;
        self.start += len;
        Ok(())
    }

    /// Writes all buffered data and returns the final position.
    pub(super) fn flush(&mut self) -> Result<u64> {
        self.flush_copy()?;
        self.flush_buffer()?;
        Ok(self.start)
    }
}

/// Copies a range between files, in the kernel if possible (which shares the extents of aligned
/// ranges on XFS and Btrfs). `check` is called between steps.
pub(super) fn copy_range(
    from: &File,
    mut from_at: u64,
    to: &File,
    mut to_at: u64,
    len: u64,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let failed = || WriteError::io("copying from the old image");
    let mut left = len;
    let mut own = own_positions(from, to);
    let mut buffer = Vec::new();
    while left > 0 {
        check()?;
        let step = left.min(COPY_STEP);
        let done = match &mut own {
            // The standard library's copy between files is copy_file_range(2), with fallbacks.
            Some((source, target)) => {
                source.seek(SeekFrom::Start(from_at)).map_err(failed())?;
                target.seek(SeekFrom::Start(to_at)).map_err(failed())?;
                io::copy(&mut source.take(step), target).map_err(failed())?
            }
            None => {
                buffer.resize(step.min(BUFFER as u64) as usize, 0);
                from.read_exact_at(&mut buffer, from_at).map_err(failed())?;
                to.write_all_at(&buffer, to_at).map_err(failed())?;
                buffer.len() as u64
            }
        };
        if done == 0 {
            return Err(failed()(io::ErrorKind::UnexpectedEof.into()));
        }
        from_at += done;
        to_at += done;
        left -= done;
    }
    Ok(())
}

/// Opens both files again, since other threads may use the positions of the given ones. Returns
/// `None` without `/proc`.
fn own_positions(from: &File, to: &File) -> Option<(File, File)> {
    let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let source = File::open(path(from)).ok()?;
    let target = OpenOptions::new().write(true).open(path(to)).ok()?;
    Some((source, target))
}
