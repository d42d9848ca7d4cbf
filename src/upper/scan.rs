//! Looks over everything that lies in an upper directory, for repair and for reports.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{UpperDir, identity};
use crate::object::Ino;

/// What lies under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file, as the content of files is.
    File,
    /// A symbolic link.
    Symlink,
    /// A device, FIFO or socket, which nothing of ours is.
    Odd,
}

impl FoundKind {
    fn of(kind: std::fs::FileType) -> FoundKind {
        if kind.is_file() {
            FoundKind::File
        } else if kind.is_symlink() {
            FoundKind::Symlink
        } else {
            FoundKind::Odd
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
        let mut found = Vec::new();
        for (sub, in_work) in [("upper", false), ("work", true)] {
            let base = self.path.join(sub);
            let mut pending = vec![PathBuf::new()];
            while let Some(relative) = pending.pop() {
                for entry in std::fs::read_dir(base.join(&relative))? {
                    let entry = entry?;
                    let path = relative.join(entry.file_name());
                    let meta = entry.metadata()?;
                    if meta.is_dir() {
                        pending.push(path);
                        continue;
                    }
                    found.push(Found {
                        path: path.iter().map(|c| Box::from(c.as_bytes())).collect(),
                        in_work,
                        backing_ino: identity(&meta),
                        kind: FoundKind::of(meta.file_type()),
                    });
                }
            }
        }
        Ok(found)
    }

    /// Returns what lies under each name: of files of the layer by their path below `upper`, and by their name
    /// in `work`. Directories are left out. Nothing but directories is read.
    pub fn names(&self) -> io::Result<(Names, Names)> {
        let (mut upper, mut work) = (Names::new(), Names::new());
        for (sub, names) in [("upper", &mut upper), ("work", &mut work)] {
            let base = self.path.join(sub);
            let mut pending = vec![PathBuf::new()];
            while let Some(relative) = pending.pop() {
                for entry in std::fs::read_dir(base.join(&relative))? {
                    let entry = entry?;
                    let path = relative.join(entry.file_name());
                    let kind = entry.file_type()?;
                    if kind.is_dir() {
                        pending.push(path);
                    } else {
                        names.insert(path, FoundKind::of(kind));
                    }
                }
            }
        }
        Ok((upper, work))
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

    fn open_parent<'a>(&self, found: &'a Found) -> io::Result<Option<(File, &'a [u8])>> {
        let Some((last, parents)) = found.path.split_last() else {
            return Ok(None);
        };
        let mut path = self.path.join(if found.in_work { "work" } else { "upper" });
        path.extend(parents.iter().map(|c| OsStr::from_bytes(c)));
        Ok(Some((File::open(path)?, last)))
    }
}
