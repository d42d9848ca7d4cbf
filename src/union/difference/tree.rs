//! The committed tree with a part of the edits on it.

use std::collections::{BTreeSet, HashMap};

use super::edits::is_committed_dir;
use super::{Edits, Entry, join};
use crate::object::Ino;
use crate::union::{LowerStack, Result};

/// Which edits count in a [`Tree`].
#[derive(Clone, Copy)]
pub(in crate::union) enum Counted<'a> {
    /// All: the tree as it is now.
    All,
    /// None: the tree as it was committed.
    None,
    /// All but these: the tree as it will be.
    AllBut(&'a BTreeSet<Entry>),
}

/// The committed tree with some of the edits on it.
pub(in crate::union) struct Tree<'a> {
    edits: &'a Edits,
    base: &'a LowerStack,
    counted: Counted<'a>,
    /// Paths of directories, `None` for those that are nowhere in this tree.
    paths: HashMap<Ino, Option<Vec<u8>>>,
}

impl<'a> Tree<'a> {
    pub(in crate::union) fn new(
        edits: &'a Edits,
        base: &'a LowerStack,
        counted: Counted<'a>,
    ) -> Tree<'a> {
        Tree {
            edits,
            base,
            counted,
            paths: HashMap::new(),
        }
    }

    fn counts(&self, entry: &Entry) -> bool {
        match self.counted {
            Counted::All => true,
            Counted::None => false,
            Counted::AllBut(gone) => !gone.contains(entry),
        }
    }

    /// Looks a name up.
    pub(in crate::union) fn lookup(&self, entry: &Entry) -> Result<Option<Ino>> {
        match self.edits.row(entry) {
            Some(row) if self.counts(entry) => Ok(row.target),
            Some(row) => Ok(row.below),
            None => self.edits.committed(self.base, entry.0, &entry.1),
        }
    }

    /// Names that an object did not have, in this tree.
    pub(in crate::union) fn links_of(&self, ino: Ino) -> impl Iterator<Item = &'a Entry> {
        let links = self.edits.links_of(ino).iter();
        links.filter(|entry| self.counts(entry))
    }

    /// Returns the directory that stands in the place of a committed one in this tree: itself, or a
    /// new one.
    pub(in crate::union) fn current(&self, dir: Ino) -> Ino {
        match self.edits.heir_of(dir) {
            Some(heir) if self.links_of(heir).next().is_some() => heir,
            _ => dir,
        }
    }

    /// Where a directory is: its parent and its name there.
    pub(in crate::union) fn place(&self, dir: Ino) -> Result<Option<Entry>> {
        if let Some(entry) = self.links_of(dir).next() {
            return Ok(Some(entry.clone()));
        }
        let dir = match self.counted {
            Counted::None => self.edits.past_of(dir).unwrap_or(dir),
            _ => dir,
        };
        let Some((above, name)) = self.base.parent(dir)? else {
            return Ok(None);
        };
        let entry = (self.current(above), name);
        Ok((self.lookup(&entry)? == Some(dir)).then_some(entry))
    }

    /// The path of a directory, `None` if it is nowhere in this tree.
    pub(in crate::union) fn path(&mut self, dir: Ino) -> Result<Option<Vec<u8>>> {
        let mut climbed = Vec::new();
        let mut at = dir;
        let mut path = loop {
            if at == Ino::ROOT {
                break Some(Vec::new());
            }
            if let Some(known) = self.paths.get(&at) {
                break known.clone();
            }
            // A directory that is met again while its path is unknown is above itself.
            self.paths.insert(at, None);
            match self.place(at)? {
                Some((above, name)) => {
                    climbed.push((at, name));
                    at = above;
                }
                None => break None,
            }
        };
        for (ino, name) in climbed.into_iter().rev() {
            path = path.map(|above| join(&above, &name));
            self.paths.insert(ino, path.clone());
        }
        Ok(path)
    }

    /// The path of a name.
    pub(in crate::union) fn path_of(&mut self, (dir, name): &Entry) -> Result<Option<Vec<u8>>> {
        Ok(self.path(*dir)?.map(|above| join(&above, name)))
    }

    /// The path of a name if it leads to an object.
    pub(in crate::union) fn leads(&mut self, entry: &Entry, ino: Ino) -> Result<Option<Vec<u8>>> {
        if self.lookup(entry)? == Some(ino) {
            self.path_of(entry)
        } else {
            Ok(None)
        }
    }

    /// Follows a path as far as its last directory. Where a directory of it is missing, it goes on
    /// as it was committed.
    pub(in crate::union) fn above(
        &self,
        path: &[u8],
        is_dir: impl Fn(Ino) -> Result<bool>,
    ) -> Result<Option<Entry>> {
        let mut components = path.split(|byte| *byte == b'/').peekable();
        let mut at = Ino::ROOT;
        while let Some(name) = components.next() {
            let entry = (at, Box::from(name));
            if components.peek().is_none() {
                return Ok(Some(entry));
            }
            let now = match self.lookup(&entry)? {
                Some(ino) if is_dir(ino)? => Some(ino),
                _ => None,
            };
            let next = match now {
                Some(ino) => Some(ino),
                None => match self.edits.committed(self.base, at, name)? {
                    Some(ino) if is_committed_dir(self.base, ino)? => Some(ino),
                    _ => None,
                },
            };
            match next {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        Ok(None)
    }
}
