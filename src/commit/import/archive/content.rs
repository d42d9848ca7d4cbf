//! The content of the files of an archive, including holes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::sparse::{Map, Run};
use super::stream::Stream;
use crate::squashfs::writer::{Content, Source};

/// The source of the data of an entry.
#[derive(Clone)]
pub(super) enum Data {
    /// A file (the archive or a copy of the data) and the position of the data in it.
    File(Arc<File>, u64),
    Memory(Arc<[u8]>),
    /// The archive, being decompressed. The data can be read once, in order.
    Stream(Arc<Mutex<Stream>>),
}

/// A file of an archive as content for an image writer.
pub(super) struct FileSource {
    pub(super) label: String,
    pub(super) map: Arc<Map>,
    pub(super) data: Data,
}

impl FileSource {
    /// Returns the content, at its beginning.
    pub(super) fn content(&self) -> FileContent {
        FileContent {
            map: self.map.clone(),
            data: self.data.clone(),
            at: 0,
            consumed: 0,
        }
    }
}

impl Source for FileSource {
    fn open(&self) -> io::Result<Box<dyn Content>> {
        Ok(Box::new(self.content()))
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn can_reopen(&self) -> bool {
        !matches!(self.data, Data::Stream(_))
    }
}

/// The content of a file, and a position in it.
pub(super) struct FileContent {
    map: Arc<Map>,
    data: Data,
    at: u64,
    /// The number of bytes read from a stream.
    consumed: u64,
}

impl FileContent {
    /// Returns the run that contains the position, or the next one.
    fn run(&self) -> Option<Run> {
        let runs = &self.map.runs;
        let next = runs.partition_point(|run| run.at + run.len <= self.at);
        runs.get(next).copied()
    }

    /// Reads data at a position in the stored data of the entry.
    fn read_data(&mut self, stored: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.data {
            Data::File(file, base) => file.read_at(buffer, base.saturating_add(stored)),
            Data::Memory(bytes) => {
                let from = usize::try_from(stored).unwrap_or(usize::MAX);
                let bytes = bytes.get(from..).unwrap_or_default();
                let len = bytes.len().min(buffer.len());
                let (to, _) = buffer.split_at_mut(len);
                to.copy_from_slice(bytes.get(..len).unwrap_or_default());
                Ok(len)
            }
            Data::Stream(stream) => {
                let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
                let skipped = stored.checked_sub(self.consumed);
                let skipped =
                    skipped.ok_or_else(|| io::Error::other("a stream cannot be read backwards"))?;
                stream.skip_data(skipped)?;
                self.consumed = stored;
                let read = stream.read_data(buffer)?;
                self.consumed += read as u64;
                Ok(read)
            }
        }
    }
}

impl Read for FileContent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.map.size.saturating_sub(self.at);
        let limit = usize::try_from(left).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(limit);
        let Some(buffer) = buffer.get_mut(..wanted).filter(|some| !some.is_empty()) else {
            return Ok(0);
        };
        let read = match self.run() {
            Some(run) if run.at <= self.at => {
                let within = self.at - run.at;
                let len = usize::try_from(run.len - within).unwrap_or(usize::MAX);
                let (buffer, _) = buffer.split_at_mut(len.min(wanted));
                match self.read_data(run.stored + within, buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                }
            }
            next => {
                let hole = next.map_or(left, |run| run.at - self.at);
                let len = usize::try_from(hole).unwrap_or(usize::MAX).min(wanted);
                let (zeros, _) = buffer.split_at_mut(len);
                zeros.fill(0);
                len
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

impl Content for FileContent {
    fn hole_ahead(&mut self) -> io::Result<u64> {
        Ok(match self.run() {
            Some(run) => run.at.saturating_sub(self.at),
            None => self.map.size.saturating_sub(self.at),
        })
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.at = self.at.saturating_add(bytes);
        Ok(())
    }
}
