//! Reading files of a view by path.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::union::{self, LowerStack, Union};

/// How much is read at a time.
const CHUNK: usize = 128 << 10;
/// The longest path that is looked up, as in the kernel.
const LONGEST: usize = 4096;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
}

/// A directory tree at one moment. Paths are relative to its root, and links are not followed.
///
/// What cannot be read counts as absent: package metadata explain changes, and a damaged file must
/// not make the changes invisible.
pub(crate) trait Tree {
    /// Returns what is at a path.
    fn stat(&self, path: &[u8]) -> Option<Stat>;

    /// Passes the content of a regular file on, from the start, until `take` breaks. Returns
    /// whether it reached the end.
    fn each_chunk(&self, path: &[u8], take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> bool;

    /// Returns the names in a directory.
    fn names(&self, dir: &[u8]) -> Vec<Box<[u8]>>;

    /// Returns the target of a symbolic link.
    fn target(&self, path: &[u8]) -> Option<Box<[u8]>>;
}

impl dyn Tree + '_ {
    /// Reads a regular file, unless it is larger than `limit`.
    pub(crate) fn read(&self, path: &[u8], limit: usize) -> Option<Vec<u8>> {
        let stat = self.stat(path).filter(|stat| stat.kind == Kind::File)?;
        if stat.size > limit as u64 {
            tracing::debug!(path = %path.escape_ascii(), "too large for the metadata of a package");
            return None;
        }
        let mut content = Vec::with_capacity(stat.size as usize);
        let is_whole = self.each_chunk(path, &mut |chunk| {
            content.extend_from_slice(chunk);
            match content.len() > limit {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        is_whole.then_some(content)
    }

    /// Reads the start of a regular file.
    pub(crate) fn head(&self, path: &[u8], len: usize) -> Option<Vec<u8>> {
        self.stat(path).filter(|stat| stat.kind == Kind::File)?;
        let mut content = Vec::new();
        self.each_chunk(path, &mut |chunk| {
            content.extend_from_slice(chunk);
            match content.len() >= len {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        content.truncate(len);
        Some(content)
    }

    /// Returns the SHA-256 of a regular file.
    pub(crate) fn sha256(&self, path: &[u8]) -> Option<[u8; 32]> {
        let mut hash = Sha256::new();
        let is_whole = self.each_chunk(path, &mut |chunk| {
            hash.update(chunk);
            ControlFlow::Continue(())
        });
        is_whole.then(|| hash.finalize().into())
    }
}

/// A view whose objects are addressed by identity.
pub(crate) trait Objects {
    fn lookup(&self, dir: Ino, name: &[u8]) -> union::Result<Option<Ino>>;
    fn attr(&self, ino: Ino) -> union::Result<Option<Attr>>;
    fn read(&self, ino: Ino, offset: u64, take: &mut dyn FnMut(&[u8])) -> union::Result<usize>;
    fn names(&self, dir: Ino) -> union::Result<Vec<Box<[u8]>>>;
    fn target(&self, ino: Ino) -> union::Result<Box<[u8]>>;
}

impl Objects for LowerStack {
    fn lookup(&self, dir: Ino, name: &[u8]) -> union::Result<Option<Ino>> {
        LowerStack::lookup(self, dir, name)
    }

    fn attr(&self, ino: Ino) -> union::Result<Option<Attr>> {
        LowerStack::attr(self, ino)
    }

    fn read(&self, ino: Ino, offset: u64, take: &mut dyn FnMut(&[u8])) -> union::Result<usize> {
        let bytes = LowerStack::read(self, ino, offset, CHUNK)?;
        let bytes = (*bytes).as_ref();
        take(bytes);
        Ok(bytes.len())
    }

    fn names(&self, dir: Ino) -> union::Result<Vec<Box<[u8]>>> {
        let listing = self.list(dir)?;
        Ok(listing.iter().map(|(name, _, _)| Box::from(name)).collect())
    }

    fn target(&self, ino: Ino) -> union::Result<Box<[u8]>> {
        self.read_link(ino)
    }
}

impl Objects for Union {
    fn lookup(&self, dir: Ino, name: &[u8]) -> union::Result<Option<Ino>> {
        Ok(Union::lookup(self, dir, name)?.map(|(ino, _)| ino))
    }

    fn attr(&self, ino: Ino) -> union::Result<Option<Attr>> {
        Union::attr(self, ino).map(Some)
    }

    fn read(&self, ino: Ino, offset: u64, take: &mut dyn FnMut(&[u8])) -> union::Result<usize> {
        let bytes = self.read_at(ino, offset, CHUNK)?;
        let bytes = (*bytes).as_ref();
        take(bytes);
        Ok(bytes.len())
    }

    fn names(&self, dir: Ino) -> union::Result<Vec<Box<[u8]>>> {
        let (mut names, mut position) = (Vec::new(), 0);
        loop {
            let items = self.read_dir(dir, position, 4096)?;
            let Some(last) = items.last() else {
                return Ok(names);
            };
            position = last.next;
            let is_name = |name: &[u8]| name != b"." && name != b"..";
            names.extend(
                items
                    .into_iter()
                    .map(|item| item.name)
                    .filter(|name| is_name(name)),
            );
        }
    }

    fn target(&self, ino: Ino) -> union::Result<Box<[u8]>> {
        self.read_link(ino)
    }
}

/// The files of a view by path. Remembers the directories that it has found, so it must not outlive
/// one look at the view.
pub(crate) struct Files<'a> {
    objects: &'a dyn Objects,
    dirs: RefCell<HashMap<Vec<u8>, Option<Ino>>>,
}

impl<'a> Files<'a> {
    pub(crate) fn of(objects: &'a dyn Objects) -> Files<'a> {
        Files {
            objects,
            dirs: RefCell::default(),
        }
    }

    /// Returns whether anything is at a path.
    pub(crate) fn has(&self, path: &[u8]) -> bool {
        self.find(path).is_some()
    }

    fn find(&self, path: &[u8]) -> Option<(Ino, Attr)> {
        let ino = self.ino(path)?;
        let attr = known(path, self.objects.attr(ino))??;
        Some((ino, attr))
    }

    fn ino(&self, path: &[u8]) -> Option<Ino> {
        if path.len() > LONGEST {
            return None;
        }
        if path.is_empty() {
            return Some(Ino::ROOT);
        }
        let (above, name) = super::split(path);
        known(path, self.objects.lookup(self.dir(above)?, name))?
    }

    /// Returns the directory at a path.
    fn dir(&self, path: &[u8]) -> Option<Ino> {
        if path.is_empty() {
            return Some(Ino::ROOT);
        }
        if let Some(known) = self.dirs.borrow().get(path) {
            return *known;
        }
        let mut at = Some(Ino::ROOT);
        let mut end = 0;
        for name in path.split(|byte| *byte == b'/') {
            end += name.len();
            let so_far = path.get(..end).unwrap_or(path);
            let known_one = self.dirs.borrow().get(so_far).copied();
            at = match known_one {
                Some(ino) => ino,
                None => {
                    let found = at.and_then(|dir| known(path, self.objects.lookup(dir, name))?);
                    let found = found.filter(|ino| {
                        let attr = known(path, self.objects.attr(*ino)).flatten();
                        attr.is_some_and(|attr| attr.kind == Kind::Directory)
                    });
                    self.dirs.borrow_mut().insert(so_far.to_vec(), found);
                    found
                }
            };
            // The slash.
            end += 1;
        }
        at
    }
}

/// Returns the result of a read; an error is logged and counts as nothing.
fn known<T>(path: &[u8], result: union::Result<T>) -> Option<T> {
    result
        .inspect_err(|error| tracing::debug!(path = %path.escape_ascii(), %error, "not read"))
        .ok()
}

impl Tree for Files<'_> {
    fn stat(&self, path: &[u8]) -> Option<Stat> {
        let (_, attr) = self.find(path)?;
        Some(Stat {
            kind: attr.kind,
            size: attr.size,
            mtime: attr.mtime,
        })
    }

    fn each_chunk(&self, path: &[u8], take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> bool {
        let Some((ino, attr)) = self.find(path) else {
            return false;
        };
        if attr.kind != Kind::File {
            return false;
        }
        let mut at = 0;
        while at < attr.size {
            let mut flow = ControlFlow::Continue(());
            let read = self.objects.read(ino, at, &mut |bytes| flow = take(bytes));
            match known(path, read) {
                // It was truncated meanwhile.
                None | Some(0) => return false,
                Some(count) => at += count as u64,
            }
            if flow.is_break() {
                return false;
            }
        }
        true
    }

    fn names(&self, dir: &[u8]) -> Vec<Box<[u8]>> {
        let names = self.dir(dir).map(|dir| self.objects.names(dir));
        names
            .and_then(|names| known(dir, names))
            .unwrap_or_default()
    }

    fn target(&self, path: &[u8]) -> Option<Box<[u8]>> {
        let (ino, attr) = self.find(path)?;
        if attr.kind != Kind::Symlink {
            return None;
        }
        known(path, self.objects.target(ino))
    }
}
