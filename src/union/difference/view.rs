//! The views that can be compared with the committed one.

use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use super::Entry;
use crate::object::{Attr, Ino};
use crate::state::{DataPlace, InodeRow};
use crate::union::delta::Delta;
use crate::union::frozen::seek_file;
use crate::union::{Bytes, Error, LowerStack, Presence, Result, SeekTarget, State, Union, Xattr};

/// Where the content of files can be read.
pub(crate) trait Content {
    /// Reads content at `offset`: at most `len` bytes, possibly fewer before the end of the file.
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>>;

    /// Returns the start of the first data at or after `offset`; `None` if there is none.
    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>>;
}

/// A merged view: upper layers over the committed images.
pub(crate) trait View: Content {
    /// The rows of the upper layers, top first.
    fn deltas(&self) -> Vec<&Delta>;

    /// Everything below the writable layer.
    fn lower(&self) -> &LowerStack;

    /// Looks a name up.
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>>;

    /// Returns the parent of a directory and its name there. The name may be one that it has left.
    fn parent(&self, dir: Ino) -> Result<Option<Entry>>;

    /// Returns the attributes of an object.
    fn attr(&self, ino: Ino) -> Result<Attr>;

    /// Returns the target of a symbolic link.
    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>>;

    /// Returns all extended attributes of an object.
    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>>;
}

impl<'a> dyn View + 'a {
    /// The rows of an object, the topmost first.
    pub(in crate::union) fn rows_of(&self, ino: Ino) -> Result<Vec<&InodeRow>> {
        let rows = self.deltas().into_iter().map(|delta| delta.inode(ino));
        rows.filter_map(Result::transpose).collect()
    }
}

impl Content for State {
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        match self.presence(ino)? {
            Presence::Row(row) if row.data == DataPlace::Upper => {
                let mut buffer = vec![0; len];
                let got = self.file(ino, row)?.read_at(&mut buffer, offset)?;
                buffer.truncate(got);
                Ok(Box::new(buffer))
            }
            _ => self.lower.read(ino, offset, len),
        }
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        match self.presence(ino)? {
            Presence::Row(row) if row.data == DataPlace::Upper => {
                seek_file(&*self.file(ino, row)?, offset, SeekTarget::Data)
            }
            _ => self.lower.seek(ino, offset, SeekTarget::Data),
        }
    }
}

impl View for State {
    fn deltas(&self) -> Vec<&Delta> {
        let frozen = self.lower.frozen().iter().map(|layer| layer.delta());
        std::iter::once(&self.delta).chain(frozen).collect()
    }

    fn lower(&self) -> &LowerStack {
        &self.lower
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        State::lookup(self, dir, name)
    }

    fn parent(&self, dir: Ino) -> Result<Option<Entry>> {
        State::parent(self, dir)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        State::attr(self, ino)
    }

    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        match self.presence(ino)? {
            Presence::Row(row) => row.target.clone().ok_or(Error::Posix(Errno::EINVAL)),
            _ => self.lower.read_link(ino),
        }
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        match self.presence(ino)? {
            Presence::Row(row) if row.owns_xattrs => {
                let own = self.delta.xattrs(ino)?.into_iter().flatten();
                Ok(own
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect())
            }
            _ => self.lower.xattrs(ino),
        }
    }
}

impl Content for LowerStack {
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        LowerStack::read(self, ino, offset, len)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        self.seek(ino, offset, SeekTarget::Data)
    }
}

impl View for LowerStack {
    fn deltas(&self) -> Vec<&Delta> {
        self.frozen().iter().map(|layer| layer.delta()).collect()
    }

    fn lower(&self) -> &LowerStack {
        self
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        LowerStack::lookup(self, dir, name)
    }

    fn parent(&self, dir: Ino) -> Result<Option<Entry>> {
        LowerStack::parent(self, dir)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        LowerStack::attr(self, ino)?.ok_or(Error::Posix(Errno::ESTALE))
    }

    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        LowerStack::read_link(self, ino)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        LowerStack::xattrs(self, ino)
    }
}

impl Content for Union {
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        self.read_at(ino, offset, len)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        match self.seek(ino, offset, SeekTarget::Data) {
            Ok(data) => Ok(Some(data)),
            Err(Error::Posix(Errno::ENXIO)) => Ok(None),
            Err(e) => Err(e),
        }
    }
}
