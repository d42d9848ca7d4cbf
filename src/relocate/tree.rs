//! The read-only trees that are searched: the merged view of an environment, or a directory.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::object::{Ino, Kind};

/// An object in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its path from the root, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    /// What identifies it: two names with the same number are a hard link.
    pub id: u64,
}

impl Node {
    /// Returns the root of a tree.
    pub fn root() -> Node {
        Node {
            path: Vec::new(),
            id: Ino::ROOT.0,
        }
    }

    /// Returns an entry of this directory.
    pub fn child(&self, name: &[u8], id: u64) -> Node {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Node { path, id }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// What identifies the object.
    pub id: u64,
    /// Its type.
    pub kind: Kind,
    /// The size of a regular file in bytes.
    pub size: u64,
}

/// A tree that can be read. Symbolic links are never followed.
pub trait Tree {
    /// Lists a directory in the order of the names.
    fn list(&self, dir: &Node) -> io::Result<Vec<Entry>>;

    /// Reads up to `len` bytes of a regular file; fewer only at its end.
    fn read(&self, file: &Node, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Returns the target of a symbolic link.
    fn read_link(&self, link: &Node) -> io::Result<Vec<u8>>;
}

/// A directory of the system.
#[derive(Debug)]
pub struct DirTree {
    root: PathBuf,
}

impl DirTree {
    /// Returns the tree below a directory.
    pub fn new(root: &Path) -> DirTree {
        DirTree {
            root: root.to_owned(),
        }
    }

    fn path(&self, node: &Node) -> PathBuf {
        match node.path.is_empty() {
            true => self.root.clone(),
            false => self.root.join(OsStr::from_bytes(&node.path)),
        }
    }
}

impl Tree for DirTree {
    fn list(&self, dir: &Node) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(dir))? {
            let entry = entry?;
            let meta = match entry.path().symlink_metadata() {
                Ok(meta) => meta,
                // Removed since it was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let Some(kind) = Kind::from_mode(meta.mode()) else {
                continue;
            };
            entries.push(Entry {
                name: entry.file_name().as_bytes().to_vec(),
                id: meta.ino(),
                kind,
                size: meta.len(),
            });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn read(&self, file: &Node, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let opened = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path(file))?;
        let mut data = vec![0; len];
        let mut done = 0;
        while let Some(room) = data.get_mut(done..).filter(|room| !room.is_empty()) {
            match opened.read_at(room, offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        data.truncate(done);
        Ok(data)
    }

    fn read_link(&self, link: &Node) -> io::Result<Vec<u8>> {
        let target = fs::read_link(self.path(link))?;
        Ok(target.as_os_str().as_bytes().to_vec())
    }
}
