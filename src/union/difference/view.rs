//! The views that can be compared with a committed one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use super::Entry;
use crate::object::{Attr, Ino, Kind};
use crate::state::{DataPlace, InodeRow};
use crate::union::delta::{Delta, has_file};
use crate::union::frozen::seek_file;
use crate::union::{Bytes, Error, LowerStack, Presence, Result, SeekTarget, State, Union, Xattr};

/// Where the content of files can be read.
pub(crate) trait Content {
    /// Reads content at `offset`: at most `len` bytes, possibly fewer before the end of the file.
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>>;

    /// Returns the start of the first data at or after `offset`; `None` if there is none.
    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>>;
}

/// The names and objects in which a view may differ from a committed one.
#[derive(Debug, Default)]
pub(crate) struct Mentioned {
    /// Names, by directory. New directories are mentioned even if they are empty.
    pub(in crate::union) names: BTreeMap<Ino, BTreeSet<Box<[u8]>>>,
    /// Objects.
    pub(in crate::union) objects: BTreeSet<Ino>,
}

impl Mentioned {
    /// What upper layers have rows for.
    fn in_rows(deltas: &[&Delta]) -> Result<Mentioned> {
        let mut mentioned = Mentioned::default();
        for delta in deltas {
            for (dir, entries) in delta.dirs()? {
                let names = mentioned.names.entry(dir).or_default();
                names.extend(entries.iter().map(|(name, _)| Box::from(name)));
            }
            for (ino, row) in delta.inodes()? {
                mentioned.objects.insert(ino);
                if row.kind == Kind::Directory {
                    mentioned.names.entry(ino).or_default();
                }
            }
        }
        Ok(mentioned)
    }
}

/// A merged view that is compared with a committed one.
pub(crate) trait View: Content {
    /// Returns the rows of upper layers, the topmost first.
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

    /// Returns the names and objects that may differ from the committed ones.
    fn mentioned(&self) -> Result<Mentioned> {
        Mentioned::in_rows(&self.deltas())
    }

    /// Returns false if a file is known to have the content of a committed one of the same size.
    fn may_have_other_content(&self, ino: Ino, committed: Ino) -> Result<bool> {
        let deltas = self.deltas();
        let mut rows = rows_of(&deltas, ino)?.into_iter();
        let decides = rows.find(|row| row.data != DataPlace::Lower);
        Ok(ino != committed || decides.is_some_and(has_file))
    }

    /// Returns false if an object is known to have the extended attributes of a committed one.
    fn may_have_other_xattrs(&self, ino: Ino, committed: Ino) -> Result<bool> {
        Ok(ino != committed
            || rows_of(&self.deltas(), ino)?
                .iter()
                .any(|row| row.owns_xattrs))
    }

    /// Returns a name that an object has or had, if one is known.
    fn place(&self, ino: Ino) -> Result<Option<Entry>> {
        let mut rows = rows_of(&self.deltas(), ino)?.into_iter();
        Ok(rows.find_map(|row| row.place.clone()))
    }
}

/// Returns the rows of an object in upper layers, the topmost first.
pub(in crate::union) fn rows_of<'a>(deltas: &[&'a Delta], ino: Ino) -> Result<Vec<&'a InodeRow>> {
    let rows = deltas.iter().map(|delta| delta.inode(ino));
    rows.filter_map(Result::transpose).collect()
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
            Presence::Row(row) => self.below(row).read(ino, offset, len),
            Presence::Orphan(_) | Presence::Lower => self.lower.read(ino, offset, len),
        }
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        match self.presence(ino)? {
            Presence::Row(row) if row.data == DataPlace::Upper => {
                seek_file(&*self.file(ino, row)?, offset, SeekTarget::Data)
            }
            Presence::Row(row) => self.below(row).seek(ino, offset, SeekTarget::Data),
            Presence::Orphan(_) | Presence::Lower => self.lower.seek(ino, offset, SeekTarget::Data),
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

/// A view that is compared with the layers below its writable one, frozen ones included.
#[derive(Debug, Clone, Copy)]
pub(in crate::union) struct TopLayer<'a>(pub(in crate::union) &'a State);

impl Content for TopLayer<'_> {
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        self.0.read(ino, offset, len)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        self.0.next_data(ino, offset)
    }
}

impl View for TopLayer<'_> {
    fn deltas(&self) -> Vec<&Delta> {
        vec![&self.0.delta]
    }

    fn lower(&self) -> &LowerStack {
        &self.0.lower
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        State::lookup(self.0, dir, name)
    }

    fn parent(&self, dir: Ino) -> Result<Option<Entry>> {
        State::parent(self.0, dir)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        State::attr(self.0, ino)
    }

    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        View::read_link(self.0, ino)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        View::xattrs(self.0, ino)
    }

    fn place(&self, ino: Ino) -> Result<Option<Entry>> {
        View::place(self.0, ino)
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
