//! What the writable layer says of names, beside what was committed; and trees made of a part of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::changes::{Entry, join};
use super::super::stack::LowerStack;
use super::super::{Result, State};
use crate::object::{Ino, Kind};

/// What a name leads to by the writable layer (`None`: a whiteout), and what it led to before.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) target: Option<Ino>,
    pub(super) below: Option<Ino>,
}

/// The rows of names.
pub(super) struct Edits {
    pub(super) rows: BTreeMap<Entry, Row>,
    /// Names that objects were given, in order.
    pub(super) links: HashMap<Ino, Vec<Entry>>,
    /// Committed names that objects have not any more, in order.
    pub(super) hidden: HashMap<Ino, Vec<Entry>>,
    /// A name that was given to an object stands for one that it has not any more, as far as they go
    /// (`changes()` tells of the same pairs as renames), and the other way round.
    pub(super) renamed_from: HashMap<Entry, Entry>,
    pub(super) renamed_to: HashMap<Entry, Entry>,
}

impl Edits {
    pub(super) fn of(state: &State, base: &LowerStack) -> Result<Edits> {
        let mut edits = Edits {
            rows: BTreeMap::new(),
            links: HashMap::new(),
            hidden: HashMap::new(),
            renamed_from: HashMap::new(),
            renamed_to: HashMap::new(),
        };
        for (dir, names) in &state.delta.dirs {
            for (name, target) in names.iter() {
                let below = committed(base, *dir, name)?;
                let row = Row { target, below };
                edits.rows.insert((*dir, Box::from(name)), row);
            }
        }
        for (entry, row) in &edits.rows {
            if row.target == row.below {
                continue;
            }
            if let Some(target) = row.target {
                edits.links.entry(target).or_default().push(entry.clone());
            }
            if let Some(below) = row.below {
                edits.hidden.entry(below).or_default().push(entry.clone());
            }
        }
        for (ino, links) in &edits.links {
            let hidden = edits.hidden.get(ino).into_iter().flatten();
            for (to, from) in links.iter().zip(hidden) {
                edits.renamed_from.insert(to.clone(), from.clone());
                edits.renamed_to.insert(from.clone(), to.clone());
            }
        }
        Ok(edits)
    }

    /// The names that are edited in a directory.
    pub(super) fn within(&self, dir: Ino) -> impl Iterator<Item = (&Entry, &Row)> {
        let first = (dir, Box::from(&b""[..]));
        self.rows
            .range(first..)
            .take_while(move |((at, _), _)| *at == dir)
    }

    /// Names that an object was given.
    pub(super) fn links_of(&self, ino: Ino) -> &[Entry] {
        self.links.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// Committed names that an object has not any more.
    pub(super) fn hidden_of(&self, ino: Ino) -> &[Entry] {
        self.hidden.get(&ino).map_or(&[], Vec::as_slice)
    }
}

/// Which rows count in a [`Tree`].
#[derive(Clone, Copy)]
pub(super) enum Counted<'a> {
    /// All: the tree as it is now.
    All,
    /// None: the tree as it was committed.
    None,
    /// All but these: the tree as it will be.
    AllBut(&'a BTreeSet<Entry>),
}

/// The committed tree with some of the rows on it.
pub(super) struct Tree<'a> {
    edits: &'a Edits,
    base: &'a LowerStack,
    counted: Counted<'a>,
    /// Paths of directories, `None` for those that are nowhere in this tree.
    paths: HashMap<Ino, Option<Vec<u8>>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(edits: &'a Edits, base: &'a LowerStack, counted: Counted<'a>) -> Tree<'a> {
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
    pub(super) fn lookup(&self, entry: &Entry) -> Result<Option<Ino>> {
        match self.edits.rows.get(entry) {
            Some(row) if self.counts(entry) => Ok(row.target),
            Some(row) => Ok(row.below),
            None => committed(self.base, entry.0, &entry.1),
        }
    }

    /// Names given to an object, in this tree.
    pub(super) fn links_of(&self, ino: Ino) -> impl Iterator<Item = &'a Entry> {
        let links = self.edits.links_of(ino).iter();
        links.filter(|entry| self.counts(entry))
    }

    /// Where a directory is: its parent and its name there.
    pub(super) fn place(&self, dir: Ino) -> Result<Option<Entry>> {
        if let Some(entry) = self.links_of(dir).next() {
            return Ok(Some(entry.clone()));
        }
        match self.base.parent(dir)? {
            Some(entry) if self.lookup(&entry)? == Some(dir) => Ok(Some(entry)),
            _ => Ok(None),
        }
    }

    /// The path of a directory, `None` if it is nowhere in this tree.
    pub(super) fn path(&mut self, dir: Ino) -> Result<Option<Vec<u8>>> {
        let mut climbed = Vec::new();
        let mut at = dir;
        let mut path = loop {
            if at == Ino::ROOT {
                break Some(Vec::new());
            }
            if let Some(known) = self.paths.get(&at) {
                break known.clone();
            }
            // Who comes by here again while this is not known runs in a ring.
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
    pub(super) fn path_of(&mut self, (dir, name): &Entry) -> Result<Option<Vec<u8>>> {
        Ok(self.path(*dir)?.map(|above| join(&above, name)))
    }

    /// The path of a name if it leads to an object.
    pub(super) fn leads(&mut self, entry: &Entry, ino: Ino) -> Result<Option<Vec<u8>>> {
        if self.lookup(entry)? == Some(ino) {
            self.path_of(entry)
        } else {
            Ok(None)
        }
    }

    /// Follows a path as far as its last directory. Where the way is not there any more, it goes on as
    /// it was committed.
    pub(super) fn above(&self, path: &[u8], state: &State) -> Result<Option<Entry>> {
        let mut components = path.split(|byte| *byte == b'/').peekable();
        let mut at = Ino::ROOT;
        while let Some(name) = components.next() {
            let entry = (at, Box::from(name));
            if components.peek().is_none() {
                return Ok(Some(entry));
            }
            let is_dir =
                |ino: Ino| Ok::<_, super::super::Error>(state.kind(ino)? == Kind::Directory);
            let now = match self.lookup(&entry)? {
                Some(ino) if is_dir(ino)? => Some(ino),
                _ => None,
            };
            let next = match now {
                Some(ino) => Some(ino),
                None => committed_dir(self.base, at, name)?,
            };
            match next {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// What a name led to when it was committed.
pub(super) fn committed(base: &LowerStack, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
    if is_committed_dir(base, dir)? {
        base.lookup(dir, name)
    } else {
        Ok(None)
    }
}

fn committed_dir(base: &LowerStack, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
    match committed(base, dir, name)? {
        Some(ino) if is_committed_dir(base, ino)? => Ok(Some(ino)),
        _ => Ok(None),
    }
}

pub(super) fn is_committed_dir(base: &LowerStack, ino: Ino) -> Result<bool> {
    let attr = base.attr(ino)?;
    Ok(attr.is_some_and(|attr| attr.kind == Kind::Directory))
}
