//! A frozen upper as a read-only layer.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::delta::{Delta, row_inode};
use super::layer::{Bytes, Layer, LayerInode, LayerListing, Lookup, Parents, SeekTarget, chain};
use super::{Error, Result, stat_into};
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, InodeRow, LayerId};
use crate::upper::UpperDir;

/// A frozen upper. The view below it determines the paths of its physical directories.
#[derive(Debug)]
pub struct FrozenLayer {
    /// The number of the layer.
    pub id: LayerId,
    delta: Delta,
    upper: Arc<UpperDir>,
    below: Arc<dyn Parents>,
}

impl FrozenLayer {
    /// Returns an upper over `below` as a frozen layer.
    pub(crate) fn new(
        id: LayerId,
        delta: Delta,
        upper: Arc<UpperDir>,
        below: Arc<dyn Parents>,
    ) -> FrozenLayer {
        FrozenLayer {
            id,
            delta,
            upper,
            below,
        }
    }

    /// Returns the rows of the layer.
    pub(crate) fn delta(&self) -> &Delta {
        &self.delta
    }

    /// Returns the directory with its content.
    pub(super) fn upper(&self) -> &Arc<UpperDir> {
        &self.upper
    }

    fn row(&self, ino: Ino) -> Result<&InodeRow> {
        self.delta.inode(ino)?.ok_or(Error::Posix(Errno::ESTALE))
    }

    fn parent_of(&self, dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        match self.delta.place(dir)? {
            Some(place) => Ok(Some(place)),
            None => self.below.parent(dir),
        }
    }

    /// Returns the path of a directory in the view of this layer from the root, outermost first.
    pub(super) fn chain(&self, dir: Ino) -> Result<Vec<(Ino, Box<[u8]>)>> {
        chain(dir, |ino| self.parent_of(ino))
    }

    /// Keeps the content of a file readable after the files of the layer are removed. Called for an
    /// object without a name that is still open.
    pub(crate) fn pin(&self, ino: Ino) -> Result<()> {
        self.upper.pin_file(ino, self.file(ino)?);
        Ok(())
    }

    /// Opens the content of a regular file.
    pub fn file(&self, ino: Ino) -> Result<Arc<File>> {
        if let Some(file) = self.upper.cached_file(ino) {
            return Ok(file);
        }
        let row = self.row(ino)?;
        with_place(
            &self.upper,
            row,
            |dir| self.chain(dir),
            |place| self.upper.open_file(ino, place),
        )
    }
}

/// Calls `f` with the physical directory and the name of an object's content, or with `None` if the
/// content is in `work`.
pub(super) fn with_place<T>(
    upper: &UpperDir,
    row: &InodeRow,
    chain_of: impl Fn(Ino) -> Result<Vec<(Ino, Box<[u8]>)>>,
    f: impl FnOnce(Option<(std::os::fd::BorrowedFd<'_>, &[u8])>) -> std::io::Result<T>,
) -> Result<T> {
    match &row.place {
        None => Ok(f(None)?),
        Some((dir, name)) => {
            let fd = upper
                .find_dir(&chain_of(*dir)?)?
                .ok_or_else(|| Error::Inconsistent(format!("no physical directory for {dir}")))?;
            Ok(f(Some((fd.as_fd(), name)))?)
        }
    }
}

/// Finds the next data or hole in a plain file, or `None` past the end.
pub(super) fn seek_file(file: &File, offset: u64, target: SeekTarget) -> Result<Option<u64>> {
    let whence = match target {
        SeekTarget::Data => Whence::SeekData,
        SeekTarget::Hole => Whence::SeekHole,
    };
    match lseek(
        file,
        i64::try_from(offset).map_err(|_| Errno::EFBIG)?,
        whence,
    ) {
        Ok(at) => Ok(Some(at as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Layer for FrozenLayer {
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Lookup> {
        self.delta.lookup(dir, name)
    }

    fn list(&self, dir: Ino) -> Result<Option<LayerListing>> {
        self.delta.list(dir)
    }

    fn inode(&self, ino: Ino) -> Result<Option<LayerInode>> {
        let Some(row) = self.delta.inode(ino)? else {
            return Ok(None);
        };
        let mut inode = row_inode(row);
        if row.data == DataPlace::Upper && row.kind == Kind::File {
            let stat = match self.upper.cached_file(ino) {
                Some(file) => nix::sys::stat::fstat(&*file)?,
                None => with_place(
                    &self.upper,
                    row,
                    |dir| self.chain(dir),
                    |place| self.upper.stat(ino, place),
                )?,
            };
            stat_into(&mut inode.attr, &stat);
        }
        Ok(Some(inode))
    }

    fn parent(&self, dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        self.delta.place(dir)
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        let file = self.file(ino)?;
        let mut buffer = vec![0; len];
        let got = file.read_at(&mut buffer, offset)?;
        buffer.truncate(got);
        Ok(Box::new(buffer))
    }

    fn is_ready(&self, _ino: Ino, _offset: u64, _len: usize) -> bool {
        true
    }

    fn seek(&self, ino: Ino, offset: u64, target: SeekTarget) -> Result<Option<u64>> {
        seek_file(&*self.file(ino)?, offset, target)
    }

    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        self.row(ino)?
            .target
            .clone()
            .ok_or(Error::Posix(Errno::EINVAL))
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Box<[u8]>, Box<[u8]>)>> {
        let all = self.delta.xattrs(ino)?;
        Ok(all
            .into_iter()
            .flatten()
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect())
    }
}
