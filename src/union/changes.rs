//! What differs between the merged view and the images it is built on: the view's uncommitted changes.
//!
//! Cost follows the changes: only names and objects that an upper layer mentions are looked at, and
//! what lies below removed directories.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::delta::Delta;
use super::stack::LowerStack;
use super::{Result, State, Union};
use crate::object::{Attr, Ino, Kind};

/// What happened to a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It was there with other content or attributes.
    Modified {
        /// Whether content may differ; otherwise only attributes do.
        content: bool,
    },
    /// It is not there any more.
    Deleted,
    /// It was elsewhere.
    Renamed {
        /// Its committed path.
        from: Vec<u8>,
    },
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path below the root, without a leading slash. Any bytes.
    pub path: Vec<u8>,
    /// What happened.
    pub what: ChangeKind,
    /// What it is, or was.
    pub kind: Kind,
    /// Size in bytes now (before, where it is deleted).
    pub size: u64,
    /// The object.
    pub ino: Ino,
}

/// Counts and sizes of changes. Directories count as entries but have no size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Paths that are new.
    pub added: u64,
    /// Their size in bytes.
    pub added_bytes: u64,
    /// Paths with other content or attributes.
    pub modified: u64,
    /// Their size in bytes.
    pub modified_bytes: u64,
    /// Paths that are gone.
    pub deleted: u64,
    /// The size they had, in bytes.
    pub deleted_bytes: u64,
    /// Paths that moved; what lies below a moved directory is not counted.
    pub renamed: u64,
}

impl Totals {
    /// Sums changes up.
    pub fn of(changes: &[Change]) -> Totals {
        let mut totals = Totals::default();
        for change in changes {
            let size = if change.kind == Kind::File {
                change.size
            } else {
                0
            };
            let (count, bytes) = match change.what {
                ChangeKind::Added => (&mut totals.added, &mut totals.added_bytes),
                ChangeKind::Modified { .. } => (&mut totals.modified, &mut totals.modified_bytes),
                ChangeKind::Deleted => (&mut totals.deleted, &mut totals.deleted_bytes),
                ChangeKind::Renamed { .. } => {
                    totals.renamed += 1;
                    continue;
                }
            };
            *count += 1;
            *bytes += size;
        }
        totals
    }
}

impl Union {
    /// Lists the uncommitted changes, ordered by path.
    pub fn changes(&self) -> Result<Vec<Change>> {
        self.read().changes()
    }
}

impl State {
    pub(super) fn changes(&self) -> Result<Vec<Change>> {
        let base = self.lower.committed();
        Comparison::new(self, &base).run()
    }
}

/// A name in a directory.
pub(super) type Entry = (Ino, Box<[u8]>);

pub(super) struct Comparison<'a> {
    now: &'a State,
    base: &'a LowerStack,
    /// Merged paths of directories, `None` for those that are not reachable any more.
    paths: HashMap<Ino, Option<Vec<u8>>>,
    found: BTreeMap<Vec<u8>, Change>,
    /// Names that an upper layer mentions and that lead to an object now, by object.
    linked: HashMap<Ino, Vec<Entry>>,
    /// Committed names that an upper layer mentions and that do not lead to their object any more.
    left: HashMap<Ino, Vec<Entry>>,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(now: &'a State, base: &'a LowerStack) -> Self {
        Comparison {
            now,
            base,
            paths: HashMap::new(),
            found: BTreeMap::new(),
            linked: HashMap::new(),
            left: HashMap::new(),
        }
    }

    fn deltas(&self) -> Vec<&'a Delta> {
        let mut all = vec![&self.now.delta];
        all.extend(self.now.lower.frozen().iter().map(|layer| layer.delta()));
        all
    }

    pub(super) fn run(mut self) -> Result<Vec<Change>> {
        let mut names: BTreeSet<(Ino, &[u8])> = BTreeSet::new();
        let mut objects: BTreeSet<Ino> = BTreeSet::new();
        for delta in self.deltas() {
            for (dir, entries) in &delta.dirs {
                names.extend(entries.iter().map(|(name, _)| (*dir, name)));
            }
            objects.extend(delta.inodes.keys());
        }
        for &(dir, name) in &names {
            let (before, after) = (self.committed(dir, name)?, self.live_lookup(dir, name)?);
            if let Some(ino) = after {
                let linked = self.linked.entry(ino).or_default();
                linked.push((dir, Box::from(name)));
            }
            if let Some(ino) = before
                && after != before
            {
                let left = self.left.entry(ino).or_default();
                left.push((dir, Box::from(name)));
            }
        }
        // Names that are new to an object: each stands for one that it has left, as far as they go.
        let mut made = Vec::new();
        for (ino, names) in &self.linked {
            let mut new = Vec::new();
            for (dir, name) in names {
                if self.committed(*dir, name)? != Some(*ino) {
                    new.push((*dir, name.clone()));
                }
            }
            made.push((*ino, new));
        }
        for (ino, names) in made {
            let mut left = self.left.remove(&ino).unwrap_or_default();
            if left.is_empty()
                && let Some(place) = self.committed_place(ino)?
            {
                left.push(place);
            }
            let mut left = left.into_iter();
            for (dir, name) in names {
                let from = left.next();
                self.new_name(ino, dir, &name, from)?;
            }
            self.left.insert(ino, left.collect());
        }
        let gone: Vec<_> = std::mem::take(&mut self.left).into_iter().collect();
        for (ino, names) in gone {
            for (dir, name) in names {
                // Below something deleted it is reported from above.
                if let Some(above) = self.path_of(dir)? {
                    self.deleted(join(&above, &name), ino)?;
                }
            }
        }
        let mut nameless = HashSet::new();
        for ino in objects {
            if !self.compare_object(ino)? {
                nameless.insert(ino);
            }
        }
        if !nameless.is_empty() {
            self.search(nameless)?;
        }
        Ok(self.found.into_values().collect())
    }

    /// What a name led to when it was committed.
    fn committed(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        match self.base.attr(dir)? {
            Some(attr) if attr.kind == Kind::Directory => self.base.lookup(dir, name),
            _ => Ok(None),
        }
    }

    /// Where a directory was, if that is not where it is now. This finds what left a directory that
    /// was then removed, whose rows are gone.
    fn committed_place(&mut self, ino: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        match self.base.parent(ino)? {
            Some((dir, name)) if self.live_lookup(dir, &name)? != Some(ino) => {
                Ok(Some((dir, name)))
            }
            _ => Ok(None),
        }
    }

    fn live_lookup(&mut self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        match self.path_of(dir)? {
            Some(_) => self.now.lookup(dir, name),
            None => Ok(None),
        }
    }

    /// The merged path of a directory, if it is still reachable.
    pub(super) fn path_of(&mut self, dir: Ino) -> Result<Option<Vec<u8>>> {
        if dir == Ino::ROOT {
            return Ok(Some(Vec::new()));
        }
        if let Some(known) = self.paths.get(&dir) {
            return Ok(known.clone());
        }
        // Guards against a loop in damaged rows: a directory being resolved is not reachable by itself.
        self.paths.insert(dir, None);
        let path = match self.now.parent(dir)? {
            Some((parent, name)) if self.now.lookup(parent, &name)? == Some(dir) => {
                self.path_of(parent)?.map(|above| join(&above, &name))
            }
            _ => None,
        };
        self.paths.insert(dir, path.clone());
        Ok(path)
    }

    /// The committed path of a name: where its directory was.
    pub(super) fn base_path(&self, dir: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let mut path = Vec::new();
        for (_, component) in self.base.chain(dir)? {
            path = join(&path, &component);
        }
        Ok(join(&path, name))
    }

    fn put(&mut self, path: Vec<u8>, what: ChangeKind, attr: &Attr, ino: Ino) {
        let change = Change {
            path: path.clone(),
            what,
            kind: attr.kind,
            size: attr.size,
            ino,
        };
        self.found.insert(path, change);
    }

    /// Reports a name that an object did not have.
    fn new_name(
        &mut self,
        ino: Ino,
        dir: Ino,
        name: &[u8],
        from: Option<(Ino, Box<[u8]>)>,
    ) -> Result<()> {
        let Some(above) = self.path_of(dir)? else {
            return Ok(());
        };
        let path = join(&above, name);
        let attr = self.now.attr(ino)?;
        let replaced = match self.committed(dir, name)? {
            Some(old) => self.base.attr(old)?.map(|attr| attr.kind),
            None => None,
        };
        let what = match from {
            Some((from_dir, from)) => ChangeKind::Renamed {
                from: self.base_path(from_dir, &from)?,
            },
            None if self.base.attr(ino)?.is_none()
                && replaced == Some(attr.kind)
                && attr.kind != Kind::Directory =>
            {
                ChangeKind::Modified { content: true }
            }
            None => ChangeKind::Added,
        };
        self.put(path, what, &attr, ino);
        Ok(())
    }

    /// Reports a committed object and what lay below it as gone, but for what moved elsewhere.
    fn deleted(&mut self, path: Vec<u8>, ino: Ino) -> Result<()> {
        let mut pending = vec![(path, ino)];
        while let Some((path, ino)) = pending.pop() {
            let Some(attr) = self.base.attr(ino)? else {
                continue;
            };
            if attr.kind == Kind::Directory {
                for (name, child, _) in self.base.list(ino)?.iter() {
                    if !self.linked.contains_key(&child) {
                        pending.push((join(&path, name), child));
                    }
                }
            }
            // Something new may have the name now: that is what is reported then.
            if !self.found.contains_key(&path) {
                self.put(path, ChangeKind::Deleted, &attr, ino);
            }
        }
        Ok(())
    }

    /// Whether a committed object that an upper layer has a row for is different; `None` if it is not
    /// or was not there.
    fn difference(&self, ino: Ino) -> Result<Option<(ChangeKind, Attr)>> {
        let Some(before) = self.base.attr(ino)? else {
            return Ok(None);
        };
        let after = self.now.attr(ino)?;
        let content = self.now.content_changed(ino);
        let attributes = (before.mode, before.uid, before.gid)
            != (after.mode, after.uid, after.gid)
            || (before.kind != Kind::Directory && before.mtime != after.mtime)
            || self.now.xattrs_changed(ino);
        let different = content || attributes;
        Ok(different.then_some((ChangeKind::Modified { content }, after)))
    }

    /// Reports an object if it is different. Returns false if it is but no name of it is known.
    fn compare_object(&mut self, ino: Ino) -> Result<bool> {
        let Some((what, attr)) = self.difference(ino)? else {
            return Ok(true);
        };
        let deltas = self.deltas();
        let row = deltas.iter().find_map(|delta| delta.inodes.get(&ino));
        let mut names: Vec<(Ino, Box<[u8]>)> = Vec::new();
        names.extend(row.and_then(|row| row.place.clone()));
        names.extend(self.linked.get(&ino).into_iter().flatten().cloned());
        if ino == Ino::ROOT {
            self.put(Vec::new(), what, &attr, ino);
            return Ok(true);
        }
        for (dir, name) in names {
            if self.live_lookup(dir, &name)? == Some(ino)
                && let Some(above) = self.path_of(dir)?
            {
                let path = join(&above, &name);
                if !self.found.contains_key(&path) {
                    self.put(path, what, &attr, ino);
                }
                return Ok(true);
            }
        }
        // A directory without a place in the upper layers is where it was; if it is not there, it is
        // not anywhere.
        Ok(attr.kind == Kind::Directory)
    }

    /// Looks for names of changed objects in the whole view: a file may have been changed through a
    /// name that is gone while others remain, which nothing but the image knows.
    fn search(&mut self, mut wanted: HashSet<Ino>) -> Result<()> {
        let mut pending = vec![(Vec::new(), Ino::ROOT)];
        // Directories that moved are not found by way of what lies below.
        let moved: Vec<Ino> = self.linked.keys().copied().collect();
        for ino in moved {
            if self.now.kind(ino)? == Kind::Directory
                && let Some(path) = self.path_of(ino)?
            {
                pending.push((path, ino));
            }
        }
        while let Some((above, dir)) = pending.pop() {
            for (name, ino, kind) in self.now.lower.list(dir)?.iter() {
                if self.now.lookup(dir, name)? != Some(ino) {
                    continue;
                }
                let path = join(&above, name);
                if kind == Kind::Directory {
                    pending.push((path, ino));
                } else if wanted.remove(&ino)
                    && let Some((what, attr)) = self.difference(ino)?
                    && !self.found.contains_key(&path)
                {
                    self.put(path, what, &attr, ino);
                }
            }
            if wanted.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

impl State {
    fn rows_of(&self, ino: Ino) -> impl Iterator<Item = &crate::state::InodeRow> {
        let frozen = self.lower.frozen().iter();
        std::iter::once(&self.delta)
            .chain(frozen.map(|layer| layer.delta()))
            .filter_map(move |delta| delta.inodes.get(&ino))
    }

    fn content_changed(&self, ino: Ino) -> bool {
        self.rows_of(ino).any(super::content::has_file)
    }

    fn xattrs_changed(&self, ino: Ino) -> bool {
        self.rows_of(ino).any(|row| row.owns_xattrs)
    }
}

/// Returns true if a path is one of `paths`, or below one. The empty path is the root.
pub fn is_among(path: &[u8], paths: &[Vec<u8>]) -> bool {
    paths.iter().any(|p| {
        p.is_empty() || path == &p[..] || (path.starts_with(p) && path.get(p.len()) == Some(&b'/'))
    })
}

pub(super) fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(above.len() + 1 + name.len());
    if !above.is_empty() {
        path.extend_from_slice(above);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
