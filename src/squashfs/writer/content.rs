//! Sources of the content of files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use nix::unistd::{Whence, lseek};

/// The content of one file, from its beginning on.
pub trait Content: Read + Send {
    /// Returns the number of bytes from the current position on that are known to be a hole, or 0.
    /// This only saves reading them: blocks of zeros that are read become holes as well.
    fn hole_ahead(&mut self) -> io::Result<u64> {
        Ok(0)
    }

    /// Moves `bytes` forward.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut Read::take(&mut *self, bytes), &mut io::sink())?;
        if skipped < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Content for File {
    fn hole_ahead(&mut self) -> io::Result<u64> {
        let at = self.stream_position()?;
        let Ok(offset) = i64::try_from(at) else {
            return Ok(0);
        };
        let data = match lseek(&*self, offset, Whence::SeekData) {
            Ok(data) => data.max(offset) as u64,
            // No data until the end of the file.
            Err(nix::errno::Errno::ENXIO) => self.metadata()?.len().max(at),
            // The file system does not support it.
            Err(_) => at,
        };
        self.seek(SeekFrom::Start(at))?;
        Ok(data - at)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes =
            i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.seek(SeekFrom::Current(bytes)).map(drop)
    }
}

impl<T: AsRef<[u8]> + Send> Content for io::Cursor<T> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.set_position(self.position().saturating_add(bytes));
        Ok(())
    }
}

/// The source of a file's content. A thread of the writer opens it at most twice (the second time
/// if a large file may be a duplicate).
pub trait Source: Send {
    /// Opens the content at its beginning.
    fn open(&self) -> io::Result<Box<dyn Content>>;
    /// Returns the name of the file for errors.
    fn label(&self) -> String;
    /// Returns false if the content can be opened only once, while the file is added. It is then
    /// not compared with other files to find duplicates.
    fn can_reopen(&self) -> bool {
        true
    }
}

/// A file by its path.
impl Source for PathBuf {
    fn open(&self) -> io::Result<Box<dyn Content>> {
        Ok(Box::new(File::open(self)?))
    }
    fn label(&self) -> String {
        self.display().to_string()
    }
}

/// Bytes in memory.
impl Source for Vec<u8> {
    fn open(&self) -> io::Result<Box<dyn Content>> {
        Ok(Box::new(io::Cursor::new(self.clone())))
    }
    fn label(&self) -> String {
        format!("{} bytes in memory", self.len())
    }
}

/// A label and a function that opens the content.
pub struct OpenWith<F> {
    /// The name of the file for errors.
    pub label: String,
    /// Opens the content at its beginning.
    pub open: F,
}

impl<F> std::fmt::Debug for OpenWith<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenWith")
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl<F: Fn() -> io::Result<Box<dyn Content>> + Send> Source for OpenWith<F> {
    fn open(&self) -> io::Result<Box<dyn Content>> {
        (self.open)()
    }
    fn label(&self) -> String {
        self.label.clone()
    }
}
