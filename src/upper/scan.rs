//! Looks over everything that lies in an upper directory, for repair and for reports.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{UpperDir, identity};
use crate::object::Ino;
use crate::sys::walk::{self, CurrentDir, Subdirs, Visitor};

/// What lies under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file, as the content of files is.
    File,
    /// A symbolic link.
    Symlink,
    /// A device, FIFO or socket, which nothing of ours is.
    Other,
}

impl FoundKind {
    fn of(kind: std::fs::FileType) -> FoundKind {
        if kind.is_file() {
            FoundKind::File
        } else if kind.is_symlink() {
            FoundKind::Symlink
        } else {
            FoundKind::Other
        }
    }
}

/// One file or link found in a layer directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Components below `upper`, or the single name below `work`.
    pub path: Vec<Box<[u8]>>,
    /// Whether it lies in `work`.
    pub in_work: bool,
    /// Which file it is on the host, by its inode number and when it was made.
    pub backing_ino: u64,
    /// What it is.
    pub kind: FoundKind,
}

/// What lies under names, by path.
pub type Names = HashMap<PathBuf, FoundKind>;

impl UpperDir {
    /// Lists every file and link (not directories) of the layer. Cost follows the layer's size.
    pub fn scan(&self) -> io::Result<Vec<Found>> {
        let mut scan = Scan {
            found: Vec::new(),
            in_work: false,
        };
        for (sub, root) in [("upper", self.root()), ("work", self.work())] {
            let root = root.try_clone_to_owned()?;
            walk::walk_from(root, &self.path.join(sub), (), &mut scan)?;
            scan.in_work = true;
        }
        Ok(scan.found)
    }

    /// Returns what lies under each name: of files of the layer by their path below `upper`, and by
    /// their name in `work`. Directories are left out. Nothing but directories is read.
    pub fn names(&self) -> io::Result<(Names, Names)> {
        let of = |root: BorrowedFd<'_>, sub: &str| {
            let mut named = Named(Names::new());
            let root = root.try_clone_to_owned()?;
            walk::walk_from(root, &self.path.join(sub), (), &mut named)?;
            Ok::<_, io::Error>(named.0)
        };
        Ok((of(self.root(), "upper")?, of(self.work(), "work")?))
    }

    /// Moves something found by [`UpperDir::scan`] below the strays directory.
    pub fn set_found_aside(&self, found: &Found) -> io::Result<()> {
        let Some((dir, last)) = self.open_parent(found)? else {
            return Ok(());
        };
        Ok(self.set_aside(dir.as_fd(), last)?)
    }

    /// Moves something found to `work`, as the detached content of `ino`.
    pub fn take_to_work(&self, found: &Found, ino: Ino) -> io::Result<()> {
        match self.open_parent(found)? {
            Some((dir, last)) => self.detach(dir.as_fd(), last, ino),
            None => Ok(()),
        }
    }

    /// Removes something found.
    pub fn remove_found(&self, found: &Found) -> io::Result<()> {
        match self.open_parent(found)? {
            Some((dir, last)) => self.remove(dir.as_fd(), last),
            None => Ok(()),
        }
    }

    fn open_parent<'a>(&self, found: &'a Found) -> io::Result<Option<(OwnedFd, &'a [u8])>> {
        let Some((last, parents)) = found.path.split_last() else {
            return Ok(None);
        };
        let root = if found.in_work {
            self.work()
        } else {
            self.root()
        };
        let dir = walk::descend(root, parents.iter().map(|name| &**name))?;
        Ok(Some((dir, last)))
    }
}

struct Scan {
    found: Vec<Found>,
    in_work: bool,
}

impl Visitor for Scan {
    type Tag = ();
    type Error = io::Error;

    fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> io::Result<Vec<(Vec<u8>, ())>> {
        let mut below = Vec::new();
        for entry in std::fs::read_dir(here.path())? {
            let entry = entry?;
            let name = entry.file_name();
            let meta = entry.metadata()?;
            if meta.is_dir() {
                below.push((name.as_bytes().to_vec(), ()));
                continue;
            }
            let path = here.names().iter().map(|name| Box::from(name.as_slice()));
            self.found.push(Found {
                path: path.chain([Box::from(name.as_bytes())]).collect(),
                in_work: self.in_work,
                backing_ino: identity(&meta),
                kind: FoundKind::of(meta.file_type()),
            });
        }
        Ok(below)
    }
}

struct Named(Names);

impl Visitor for Named {
    type Tag = ();
    type Error = io::Error;

    fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> io::Result<Subdirs<()>> {
        let mut below = Vec::new();
        for entry in std::fs::read_dir(here.path())? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            if kind.is_dir() {
                below.push((name.as_bytes().to_vec(), ()));
            } else {
                self.0
                    .insert(here.below(name.as_bytes()), FoundKind::of(kind));
            }
        }
        Ok(below)
    }
}
