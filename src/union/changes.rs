//! What differs between the merged view and the images it is built on: the view's uncommitted changes.
//!
//! Cost follows the changes: only names and objects that an upper layer mentions are looked at, and
//! what lies below removed directories.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::delta::Delta;
use super::stack::LowerStack;
use super::{FrozenLayer, Result, State, Union};
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
        let state = self.read();
        let base = state.base();
        Comparison::new(&state, &base).run()
    }
}

pub(super) struct Comparison<'a> {
    now: &'a State,
    base: &'a LowerStack,
    /// Merged paths of directories, `None` for those that are not reachable any more.
    paths: HashMap<Ino, Option<Vec<u8>>>,
    found: BTreeMap<Vec<u8>, Change>,
    /// Base objects that have a link in an upper layer: they may have moved.
    linked: HashMap<Ino, Vec<(Ino, Box<[u8]>)>>,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(now: &'a State, base: &'a LowerStack) -> Self {
        Comparison {
            now,
            base,
            paths: HashMap::new(),
            found: BTreeMap::new(),
            linked: HashMap::new(),
        }
    }

    fn deltas(&self) -> Vec<&'a Delta> {
        let mut all = vec![&self.now.delta];
        for layer in self.now.lower.layers() {
            if let Some(frozen) = layer.as_any().downcast_ref::<FrozenLayer>() {
                all.push(frozen.delta());
            }
        }
        all
    }

    pub(super) fn run(mut self) -> Result<Vec<Change>> {
        let mut names: HashSet<(Ino, &[u8])> = HashSet::new();
        let mut objects: HashSet<Ino> = HashSet::new();
        for delta in self.deltas() {
            for (dir, entries) in &delta.dirs {
                names.extend(entries.iter().map(|(name, _)| (*dir, name)));
            }
            objects.extend(delta.inodes.keys());
        }
        for (dir, name) in &names {
            if let Some(ino) = self.live_lookup(*dir, name)? {
                self.linked
                    .entry(ino)
                    .or_default()
                    .push((*dir, Box::from(*name)));
            }
        }
        for (dir, name) in &names {
            self.compare_name(*dir, name)?;
        }
        for ino in objects {
            self.compare_object(ino)?;
        }
        Ok(self.found.into_values().collect())
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

    fn compare_name(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        let in_base = self.base.attr(dir)?.is_some();
        let before = if in_base {
            self.base.lookup(dir, name)?
        } else {
            None
        };
        let after = self.live_lookup(dir, name)?;
        let Some(dir_path) = self.path_of(dir)? else {
            return Ok(()); // Below something deleted, which is reported from above.
        };
        let path = join(&dir_path, name);
        if before == after {
            return Ok(());
        }
        if let Some(old) = before
            && !self.linked.contains_key(&old)
        {
            self.deleted(path.clone(), old)?;
        }
        let Some(new) = after else { return Ok(()) };
        let attr = self.now.attr(new)?;
        let old_kind = match before {
            Some(old) => self.base.attr(old)?.map(|attr| attr.kind),
            None => None,
        };
        let what = if self.base.attr(new)?.is_some() {
            match self.base_name(new)? {
                Some((from_dir, from)) if self.still_there(from_dir, &from, new)? => {
                    ChangeKind::Added
                }
                Some((from_dir, from)) => ChangeKind::Renamed {
                    from: self.base_path(from_dir, &from)?,
                },
                None => ChangeKind::Added,
            }
        } else if old_kind == Some(attr.kind) && attr.kind != Kind::Directory {
            ChangeKind::Modified { content: true }
        } else {
            ChangeKind::Added
        };
        self.put(path, what, &attr, new);
        Ok(())
    }

    /// A committed name of an object: for a directory its place, for others a whiteout that hides it.
    fn base_name(&self, ino: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        if let Some(place) = self.base.parent(ino)? {
            return Ok(Some(place));
        }
        for delta in self.deltas() {
            for (dir, entries) in &delta.dirs {
                for (name, target) in entries.iter() {
                    if target != Some(ino) && self.base.lookup(*dir, name)? == Some(ino) {
                        return Ok(Some((*dir, Box::from(name))));
                    }
                }
            }
        }
        Ok(None)
    }

    fn still_there(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<bool> {
        Ok(self.live_lookup(dir, name)? == Some(ino))
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

    fn compare_object(&mut self, ino: Ino) -> Result<()> {
        let Some(before) = self.base.attr(ino)? else {
            return Ok(());
        };
        let place = match self
            .deltas()
            .into_iter()
            .find_map(|delta| delta.inodes.get(&ino))
        {
            Some(row) => row.place.clone(),
            None => None,
        };
        let path = match place {
            _ if ino == Ino::ROOT => Some(Vec::new()),
            Some((dir, name)) if self.live_lookup(dir, &name)? == Some(ino) => {
                self.path_of(dir)?.map(|above| join(&above, &name))
            }
            _ => None,
        };
        let path = match path {
            Some(path) => path,
            None => match self
                .linked
                .get(&ino)
                .and_then(|names| names.first())
                .cloned()
            {
                Some((dir, name)) => match self.path_of(dir)? {
                    Some(above) => join(&above, &name),
                    None => return Ok(()),
                },
                None => return Ok(()),
            },
        };
        let after = self.now.attr(ino)?;
        let content = self.now.content_changed(ino);
        let attributes = (before.mode, before.uid, before.gid)
            != (after.mode, after.uid, after.gid)
            || (before.kind != Kind::Directory && before.mtime != after.mtime)
            || self.now.xattrs_changed(ino);
        if (content || attributes) && !self.found.contains_key(&path) {
            self.put(path, ChangeKind::Modified { content }, &after, ino);
        }
        Ok(())
    }
}

impl State {
    fn rows_of(&self, ino: Ino) -> impl Iterator<Item = &crate::state::InodeRow> {
        let frozen = self
            .lower
            .layers()
            .iter()
            .filter_map(|layer| layer.as_any().downcast_ref::<FrozenLayer>());
        std::iter::once(&self.delta)
            .chain(frozen.map(FrozenLayer::delta))
            .filter_map(move |delta| delta.inodes.get(&ino))
    }

    fn content_changed(&self, ino: Ino) -> bool {
        self.rows_of(ino).any(super::content::has_file)
    }

    fn xattrs_changed(&self, ino: Ino) -> bool {
        self.rows_of(ino).any(|row| row.owns_xattrs)
    }
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
