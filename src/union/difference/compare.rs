//! From edits of names to changes of paths.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::content::{self, Found};
use super::edits::is_committed_dir;
use super::view::{Content, Mentioned, View};
use super::{Aspect, Change, ChangeKind, Counted, Edits, Entry, Tree, join};
use crate::object::{Attr, Ino, Kind};
use crate::union::{LowerStack, Result};

/// Changes, of which some are certain only once content has been compared.
#[derive(Debug, Default)]
pub(in crate::union) struct Draft {
    found: BTreeMap<Vec<u8>, Item>,
}

#[derive(Debug)]
struct Item {
    change: Change,
    /// What has to be compared, if anything has.
    open: Option<Open>,
}

/// A file with the content of which a committed one has to be compared.
#[derive(Debug, Clone, Copy)]
struct Open {
    committed: Ino,
    size: u64,
    /// In what they differ otherwise.
    aspect: Option<Aspect>,
}

impl Draft {
    /// Finds what may differ, without reading content.
    pub(in crate::union) fn of(view: &dyn View, base: &LowerStack) -> Result<Draft> {
        let Mentioned { names, objects } = view.mentioned()?;
        let edits = Edits::new(view, base, names)?;
        let mut comparison = Comparison {
            view,
            base,
            edits: &edits,
            live: Tree::new(&edits, base, Counted::All),
            draft: Draft::default(),
            gone_places: HashMap::new(),
        };
        comparison.names()?;
        comparison.gone()?;
        comparison.objects(objects)?;
        Ok(comparison.draft)
    }

    /// Compares content where that is needed, and returns the changes, ordered by path.
    pub(in crate::union) fn resolve(
        self,
        content: &dyn Content,
        base: &LowerStack,
    ) -> Result<Vec<Change>> {
        let mut changes = Vec::with_capacity(self.found.len());
        for item in self.found.into_values() {
            changes.extend(item.resolve(content, base)?);
        }
        Ok(changes)
    }

    /// Returns true if there is any change. Content is read only if nothing else differs.
    pub(in crate::union) fn has_any(
        &self,
        content: &dyn Content,
        base: &LowerStack,
    ) -> Result<bool> {
        let is_certain = |item: &Item| item.open.is_none_or(|open| open.aspect.is_some());
        if self.found.values().any(is_certain) {
            return Ok(true);
        }
        for item in self.found.values() {
            if item.differs(content, base)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Drops all but some of the possible changes.
    pub(in crate::union) fn retain(&mut self, keep: impl Fn(&Change) -> bool) {
        self.found.retain(|_, item| keep(&item.change));
    }

    /// The paths that may have changed.
    pub(in crate::union) fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.found.keys().map(Vec::as_slice)
    }
}

impl Item {
    /// Returns true if the content differs, or need not be compared.
    fn differs(&self, content: &dyn Content, base: &LowerStack) -> Result<bool> {
        Ok(match self.open {
            Some(open) => {
                !content::is_same(content, self.change.ino, base, open.committed, open.size)?
            }
            None => true,
        })
    }

    fn resolve(mut self, content: &dyn Content, base: &LowerStack) -> Result<Option<Change>> {
        if self.differs(content, base)? {
            return Ok(Some(self.change));
        }
        let Some(aspect) = self.open.and_then(|open| open.aspect) else {
            return Ok(None);
        };
        self.change.what = ChangeKind::Modified { aspect };
        Ok(Some(self.change))
    }
}

struct Comparison<'a> {
    view: &'a dyn View,
    base: &'a LowerStack,
    edits: &'a Edits,
    live: Tree<'a>,
    draft: Draft,
    /// The places of committed directories that are gone.
    gone_places: HashMap<Ino, GonePlace>,
}

/// Where a committed directory was that is gone.
struct GonePlace {
    path: Vec<u8>,
    /// The directory that is there now: one that was moved there.
    now: Option<Ino>,
}

impl Comparison<'_> {
    /// Names that lead to another object than was committed there.
    fn names(&mut self) -> Result<()> {
        let edits = self.edits;
        for (entry, row) in edits.rows() {
            if row.target == row.below {
                continue;
            }
            let Some(path) = self.live.path_of(entry)? else {
                continue;
            };
            if let Some(below) = row.below
                && edits.is_gone(below)
            {
                let place = self.gone_place(path.clone(), row.target)?;
                self.gone_places.insert(below, place);
            }
            match (row.target, row.below) {
                (Some(target), below) => self.name(path, entry, target, below)?,
                (None, Some(below)) if edits.renamed_to(entry).is_none() => {
                    self.deleted(path, entry, below)?;
                }
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// What lay below directories that are gone.
    fn gone(&mut self) -> Result<()> {
        let edits = self.edits;
        for (entry, ino) in edits.gone() {
            let Some(above) = self.gone_places.get(&entry.0) else {
                continue;
            };
            let path = join(&above.path, &entry.1);
            let now = match above.now {
                Some(dir) => self.view.lookup(dir, &entry.1)?,
                None => None,
            };
            if edits.is_gone(*ino) {
                let place = self.gone_place(path.clone(), now)?;
                self.gone_places.insert(*ino, place);
            }
            // What came with a directory that was moved here is reported with that directory.
            if now.is_none() && edits.renamed_to(entry).is_none() {
                self.deleted(path, entry, *ino)?;
            }
        }
        Ok(())
    }

    fn gone_place(&self, path: Vec<u8>, now: Option<Ino>) -> Result<GonePlace> {
        let now = match now {
            Some(ino) if self.view.attr(ino)?.kind == Kind::Directory => Some(ino),
            _ => None,
        };
        Ok(GonePlace { path, now })
    }

    fn deleted(&mut self, path: Vec<u8>, entry: &Entry, ino: Ino) -> Result<()> {
        // What has been renamed to the path is reported there.
        if !self.draft.found.contains_key(&path)
            && let Some(attr) = self.base.attr(ino)?
        {
            let committed = self.committed_path(entry)?;
            self.put(path, ChangeKind::Removed, &attr, ino, Some(committed));
        }
        Ok(())
    }

    /// A name that leads to an object which was not there.
    fn name(&mut self, path: Vec<u8>, entry: &Entry, ino: Ino, below: Option<Ino>) -> Result<()> {
        let now = self.view.attr(ino)?;
        if let Some(from) = self.edits.renamed_from(entry)
            && (now.kind == Kind::Directory || !self.is_replaced(from)?)
        {
            let from = self.committed_path(from)?;
            let what = ChangeKind::Renamed { from: from.clone() };
            self.put(path, what, &now, ino, Some(from));
            return Ok(());
        }
        let before = match below {
            Some(below) => self.base.attr(below)?.map(|attr| (below, attr)),
            None => None,
        };
        match before {
            // It is reported where it is now.
            Some((below, before))
                if before.kind == Kind::Directory
                    && !self.edits.is_gone(below)
                    && self.edits.past_of(ino) != Some(below) =>
            {
                self.put(path, ChangeKind::Added, &now, ino, None);
            }
            Some((_, before)) if before.kind != now.kind => {
                let what = ChangeKind::Modified {
                    aspect: Aspect::Content,
                };
                let committed = self.committed_path(entry)?;
                self.put(path, what, &now, ino, Some(committed));
            }
            Some((below, before)) => {
                let mut found =
                    content::compare(self.view, self.base, (ino, &now), (below, &before))?;
                if now.kind != Kind::Directory && self.is_joined(ino, now.kind)? {
                    found.aspect = found.aspect.max(Some(Aspect::Attributes));
                }
                let names = (path, Some(self.committed_path(entry)?));
                self.modified(names, found, (ino, &now), (below, &before));
            }
            None => self.put(path, ChangeKind::Added, &now, ino, None),
        }
        Ok(())
    }

    /// Returns true if a new object that is no directory has taken a name: it is compared with what
    /// was committed there.
    fn is_replaced(&self, entry: &Entry) -> Result<bool> {
        match self.edits.row(entry).and_then(|row| row.target) {
            Some(target) => Ok(self.base.attr(target)?.is_none()
                && self.view.attr(target)?.kind != Kind::Directory),
            None => Ok(false),
        }
    }

    /// Returns true if an object that is no directory has names of several committed ones of its
    /// kind.
    fn is_joined(&self, ino: Ino, kind: Kind) -> Result<bool> {
        if self.base.attr(ino)?.is_some() {
            return Ok(true);
        }
        self.has_names_of_several(ino, kind)
    }

    /// Returns true if the new names of an object are those of several committed ones of its kind,
    /// of which the object itself is one if it was committed.
    fn has_names_of_several(&self, ino: Ino, kind: Kind) -> Result<bool> {
        let mut known = self.base.attr(ino)?.map(|_| ino);
        for entry in self.edits.links_of(ino) {
            // A name to which it was renamed is compared with the one that it had.
            if let Some(from) = self.edits.renamed_from(entry)
                && !self.is_replaced(from)?
            {
                continue;
            }
            if let Some(below) = self.edits.row(entry).and_then(|row| row.below)
                && self.base.attr(below)?.is_some_and(|attr| attr.kind == kind)
                && *known.get_or_insert(below) != below
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The committed path of a name.
    fn committed_path(&self, (dir, name): &Entry) -> Result<Vec<u8>> {
        let dir = self.edits.past_of(*dir).unwrap_or(*dir);
        let mut path = Vec::new();
        for (_, component) in self.base.chain(dir)? {
            path = join(&path, &component);
        }
        Ok(join(&path, name))
    }

    fn put(
        &mut self,
        path: Vec<u8>,
        what: ChangeKind,
        attr: &Attr,
        ino: Ino,
        committed: Option<Vec<u8>>,
    ) {
        let change = Change {
            path: path.clone(),
            what,
            kind: attr.kind,
            size: if attr.kind == Kind::File {
                attr.size
            } else {
                0
            },
            ino,
            committed,
        };
        let item = Item { change, open: None };
        self.draft.found.insert(path, item);
    }

    fn modified(
        &mut self,
        (path, committed_path): (Vec<u8>, Option<Vec<u8>>),
        found: Found,
        (ino, now): (Ino, &Attr),
        (committed, before): (Ino, &Attr),
    ) {
        let aspect = match (found.is_open, found.aspect) {
            (true, _) => Aspect::Content,
            (false, Some(aspect)) => aspect,
            (false, None) => return,
        };
        let what = ChangeKind::Modified { aspect };
        self.put(path.clone(), what, now, ino, committed_path);
        if found.is_open
            && let Some(item) = self.draft.found.get_mut(&path)
        {
            item.open = Some(Open {
                committed,
                size: before.size,
                aspect: found.aspect,
            });
        }
    }

    /// Committed objects that may differ.
    fn objects(&mut self, objects: BTreeSet<Ino>) -> Result<()> {
        let mut stayed: HashMap<Ino, Vec<&Entry>> = HashMap::new();
        for (entry, row) in self.edits.rows() {
            if row.target == row.below
                && let Some(ino) = row.target
            {
                stayed.entry(ino).or_default().push(entry);
            }
        }
        let mut nameless = HashMap::new();
        for ino in objects {
            let Some(before) = self.base.attr(ino)? else {
                continue;
            };
            let now = self.view.attr(ino)?;
            let found = content::compare(self.view, self.base, (ino, &now), (ino, &before))?;
            if found.aspect.is_none() && !found.is_open {
                continue;
            }
            if now.kind == Kind::Directory {
                if let Some(path) = self.live.path(ino)?
                    && !self.draft.found.contains_key(&path)
                {
                    let mut committed = Vec::new();
                    if let Some(place) = self.base.parent(ino)? {
                        committed = self.committed_path(&place)?;
                    }
                    let names = (path, Some(committed));
                    self.modified(names, found, (ino, &now), (ino, &before));
                }
                continue;
            }
            let links = self.edits.links_of(ino);
            let mut names: Vec<Entry> = Vec::new();
            names.extend(self.view.place(ino)?);
            names.extend(stayed.get(&ino).into_iter().flatten().copied().cloned());
            names.extend_from_slice(links);
            let (mut path, mut committed) = (None, None);
            for name in &names {
                if path.is_none() && self.view.lookup(name.0, &name.1)? == Some(ino) {
                    path = self.live.path_of(name)?;
                    let before = self.edits.committed(self.base, name.0, &name.1)?;
                    if before == Some(ino) {
                        committed = Some(self.committed_path(name)?);
                    }
                }
            }
            let lost = self.edits.missing_of(ino).len();
            match path {
                Some(path) if self.draft.found.contains_key(&path) => {}
                Some(path) => {
                    let mut found = found;
                    if self.has_names_of_several(ino, now.kind)? {
                        found.aspect = found.aspect.max(Some(Aspect::Attributes));
                    }
                    self.modified((path, committed), found, (ino, &now), (ino, &before));
                }
                None if links.is_empty() && lost >= before.nlink as usize => {}
                None => {
                    nameless.insert(ino, (found, now, before));
                }
            }
        }
        if !nameless.is_empty() {
            self.search(nameless)?;
        }
        Ok(())
    }

    /// Looks for names of changed objects in the whole view: a file may have been changed through a
    /// name that is gone while others remain, and only the image knows those.
    fn search(&mut self, mut wanted: HashMap<Ino, (Found, Attr, Attr)>) -> Result<()> {
        let mut pending = vec![(Vec::new(), Ino::ROOT)];
        // Directories at new names are not found by way of what lies below.
        let targets: HashSet<Ino> = self
            .edits
            .rows()
            .filter_map(|(_, row)| row.target)
            .collect();
        for ino in targets {
            if is_committed_dir(self.base, ino)?
                && let Some(path) = self.live.path(ino)?
            {
                pending.push((path, ino));
            }
        }
        let view = self.view;
        while let Some((above, dir)) = pending.pop() {
            for (name, ino, kind) in view.lower().list(dir)?.iter() {
                if view.lookup(dir, name)? != Some(ino) {
                    continue;
                }
                let path = join(&above, name);
                if kind == Kind::Directory {
                    pending.push((path, ino));
                } else if let Some((found, now, before)) = wanted.remove(&ino)
                    && !self.draft.found.contains_key(&path)
                {
                    let committed = self.committed_path(&(dir, Box::from(name)))?;
                    let names = (path, Some(committed));
                    self.modified(names, found, (ino, &now), (ino, &before));
                }
            }
            if wanted.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
