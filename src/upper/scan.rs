//! Finds the files of a layer directory, for repair and verification.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::UpperDir;
use super::files::identity;
use crate::object::Ino;
use crate::sys::walk::{self, CurrentDir, Subdirs, Visitor};

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundKind {
    /// A regular file, which can be the content of an object.
    File,
    /// A symbolic link, which can be the copy of a row.
    Symlink,
    /// A device, FIFO or socket, which envfs never creates.
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

/// A part of a layer directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// `upper`, with content at its path in the merged view.
    Upper,
    /// `work`, with content that has no name there.
    Work,
}

/// The path of a file in a layer directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LayerPath {
    /// The part in which the file is.
    pub(crate) part: Part,
    /// The components of the path below the part.
    pub(crate) names: Vec<Box<[u8]>>,
}

/// A file or symbolic link of a layer directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its path.
    pub(crate) path: LayerPath,
    /// The identity of the host file, from its inode number and its time of birth.
    pub(crate) backing_ino: u64,
    /// Its kind.
    pub(crate) kind: FoundKind,
}

/// Kinds of files by path.
pub(crate) type Names = HashMap<PathBuf, FoundKind>;

impl UpperDir {
    /// Returns all files and symbolic links of the layer, without directories.
    pub(crate) fn scan(&self) -> io::Result<Vec<Found>> {
        let mut scan = Scan {
            found: Vec::new(),
            part: Part::Upper,
        };
        for (part, sub, root) in [
            (Part::Upper, "upper", self.root()),
            (Part::Work, "work", self.work()),
        ] {
            scan.part = part;
            let root = root.try_clone_to_owned()?;
            walk::walk_from(root, &self.path.join(sub), (), &mut scan)?;
        }
        Ok(scan.found)
    }

    /// Returns the kinds of all files in `upper` and in `work`, without directories. Reads only
    /// directories, not the attributes of files.
    pub(crate) fn names(&self) -> io::Result<(Names, Names)> {
        let of = |root: BorrowedFd<'_>, sub: &str| {
            let mut named = Named(Names::new());
            let root = root.try_clone_to_owned()?;
            walk::walk_from(root, &self.path.join(sub), (), &mut named)?;
            Ok::<_, io::Error>(named.0)
        };
        Ok((of(self.root(), "upper")?, of(self.work(), "work")?))
    }

    /// Moves a file to the strays directory.
    pub(crate) fn set_found_aside(&self, found: &Found) -> io::Result<()> {
        let Some((dir, last)) = self.open_parent(found)? else {
            return Ok(());
        };
        Ok(self.set_aside(dir.as_fd(), last)?)
    }

    /// Moves a file to `work`, as the detached content of `ino`.
    pub(crate) fn take_to_work(&self, found: &Found, ino: Ino) -> io::Result<()> {
        match self.open_parent(found)? {
            Some((dir, last)) => Ok(self.detach(dir.as_fd(), last, ino)?),
            None => Ok(()),
        }
    }

    /// Removes a file.
    pub(crate) fn remove_found(&self, found: &Found) -> io::Result<()> {
        match self.open_parent(found)? {
            Some((dir, last)) => self.remove(dir.as_fd(), last),
            None => Ok(()),
        }
    }

    fn open_parent<'a>(&self, found: &'a Found) -> io::Result<Option<(OwnedFd, &'a [u8])>> {
        let Some((last, parents)) = found.path.names.split_last() else {
            return Ok(None);
        };
        let root = match found.path.part {
            Part::Upper => self.root(),
            Part::Work => self.work(),
        };
        let dir = walk::descend(root, parents.iter().map(|name| &**name))?;
        Ok(Some((dir, last)))
    }
}

struct Scan {
    found: Vec<Found>,
    part: Part,
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
            let above = here.names().iter().map(|name| Box::from(name.as_slice()));
            self.found.push(Found {
                path: LayerPath {
                    part: self.part,
                    names: above.chain([Box::from(name.as_bytes())]).collect(),
                },
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
