//! Computes the changes of rows that restore paths.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::delta::row_from;
use super::super::difference::{Entry, View, is_committed_dir, kept};
use super::super::{Error, ImageLayer, LowerStack, Orphan, Result, State, Union, Xattr};
use super::physical::Physical;
use super::{Restored, Staged};
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::squashfs::reader::Shared;
use crate::state::{DataPlace, InodeRow, RowChange};
use crate::union::Invalidation;

/// The revision that paths are restored from.
#[derive(Clone, Copy)]
pub(super) struct Then<'a> {
    pub(super) union: &'a Union,
    pub(super) source: &'a LowerStack,
    pub(super) image: &'a ImageLayer,
    /// What the image of the view has in common with that of the revision.
    pub(super) shared: Option<Shared>,
}

/// A step of the plan: a name, and the objects that it has now and in the revision.
struct Step {
    dir: Ino,
    name: Box<[u8]>,
    now: Option<Ino>,
    then: Option<Ino>,
}

/// Rows as they will be.
pub(super) struct Rows<'a> {
    then: Then<'a>,
    state: &'a State,
    staged: &'a Staged,
    time: Timestamp,
    pending: Vec<Step>,
    inodes: BTreeMap<Ino, InodeRow>,
    entries: BTreeMap<Entry, Option<Ino>>,
    xattrs: BTreeMap<Ino, Vec<Xattr>>,
    /// Modification times of directories that are as in the revision.
    times: BTreeMap<Ino, Timestamp>,
    /// Objects that lose their last name.
    gone: BTreeMap<Ino, InodeRow>,
    /// Objects of the view by those of the revision, for hard links.
    made: HashMap<Ino, Ino>,
    used: Vec<Ino>,
    physical: Physical,
    restored: Restored,
    /// Files of the revision whose content is needed, and has not been copied.
    pub(super) missing: BTreeSet<Ino>,
}

/// The changes to apply.
pub(super) struct Plan {
    pub(super) changes: Vec<RowChange<'static>>,
    pub(super) physical: Physical,
    pub(super) orphans: Vec<(Ino, Orphan)>,
    pub(super) stale: Vec<Invalidation>,
    pub(super) restored: Restored,
    /// The objects that got content that was copied.
    pub(super) used: Vec<Ino>,
}

impl<'a> Rows<'a> {
    /// Determines the rows after paths were restored. If content is missing, they are incomplete.
    pub(super) fn plan(
        then: Then<'a>,
        state: &'a State,
        paths: &[Vec<u8>],
        staged: &'a Staged,
    ) -> Result<Rows<'a>> {
        let mut rows = Rows {
            then,
            state,
            staged,
            time: Timestamp::now(),
            pending: Vec::new(),
            inodes: BTreeMap::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            times: BTreeMap::new(),
            gone: BTreeMap::new(),
            made: HashMap::new(),
            used: Vec::new(),
            physical: Physical::default(),
            restored: Restored::default(),
            missing: BTreeSet::new(),
        };
        let mut paths: Vec<&[u8]> = paths.iter().map(Vec::as_slice).collect();
        paths.sort_unstable();
        let mut above: Vec<Vec<u8>> = Vec::new();
        for path in paths {
            // A path below another one is restored with it.
            if !super::super::is_among(path, &above) {
                rows.path(path)?;
                above.push(path.to_vec());
            }
        }
        // Files that stay are found first, since restored names may be links to them.
        let steps = std::mem::take(&mut rows.pending);
        rows.find_kept(&steps)?;
        rows.pending = steps;
        while let Some(step) = rows.pending.pop() {
            rows.step(step)?;
        }
        Ok(rows)
    }

    /// Adds the steps of a path. Directories above it that are missing are created as they were.
    fn path(&mut self, path: &[u8]) -> Result<()> {
        let (mut now, mut then) = (Some(Ino::ROOT), Some(Ino::ROOT));
        let mut parts = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty());
        let Some(mut name) = parts.next() else {
            return self.merge(Ino::ROOT, Ino::ROOT);
        };
        loop {
            let dir = now.unwrap_or(Ino::ROOT);
            let next = parts.next();
            let is_dir = |ino| Ok::<bool, Error>(self.state.kind(ino)? == Kind::Directory);
            let below = match now {
                Some(dir) => self.state.lookup(dir, name)?,
                None => None,
            };
            let before = match then {
                Some(dir) if is_committed_dir(self.then.source, dir)? => {
                    self.then.source.lookup(dir, name)?
                }
                _ => None,
            };
            let Some(next) = next else {
                match (below, before) {
                    (None, None) => self.restored.unknown += 1,
                    (now, then) => self.pending.push(Step {
                        dir,
                        name: Box::from(name),
                        now,
                        then,
                    }),
                }
                return Ok(());
            };
            match (below, before) {
                (Some(ino), _) if is_dir(ino)? => now = Some(ino),
                (Some(_), Some(_)) => {
                    let path = String::from_utf8_lossy(path).into_owned();
                    return Err(Error::Replaced(path));
                }
                (Some(_), None) | (None, None) => {
                    self.restored.unknown += 1;
                    return Ok(());
                }
                (None, Some(ino)) => {
                    // The directory is created, unless another path has done so.
                    let made = self.made.get(&ino).copied();
                    let new = match made {
                        Some(new) => new,
                        None => {
                            let new = self.add_object(dir, name, ino)?;
                            self.made.insert(ino, new);
                            new
                        }
                    };
                    return self.below_new(new, ino, path, next, parts);
                }
            }
            then = before;
            name = next;
        }
    }

    /// Continues with a path below a directory that is created.
    fn below_new<'p>(
        &mut self,
        mut dir: Ino,
        mut then: Ino,
        path: &[u8],
        mut name: &'p [u8],
        parts: impl Iterator<Item = &'p [u8]>,
    ) -> Result<()> {
        let mut parts = parts;
        loop {
            if !is_committed_dir(self.then.source, then)? {
                return Err(Error::Replaced(String::from_utf8_lossy(path).into_owned()));
            }
            let Some(before) = self.then.source.lookup(then, name)? else {
                self.restored.unknown += 1;
                return Ok(());
            };
            let Some(next) = parts.next() else {
                self.pending.push(Step {
                    dir,
                    name: Box::from(name),
                    now: None,
                    then: Some(before),
                });
                return Ok(());
            };
            dir = match self.made.get(&before).copied() {
                Some(new) => new,
                None => {
                    let new = self.add_object(dir, name, before)?;
                    self.made.insert(before, new);
                    new
                }
            };
            then = before;
            name = next;
        }
    }

    /// Finds files with several names that stay as they are.
    fn find_kept(&mut self, steps: &[Step]) -> Result<()> {
        let mut pending: Vec<(Ino, Ino)> = steps
            .iter()
            .filter_map(|step| Some((step.now?, step.then?)))
            .collect();
        while let Some((now, then)) = pending.pop() {
            let both = (
                self.state.kind(now)?,
                self.then.source.attr(then)?.map(|attr| attr.kind),
            );
            if both != (Kind::Directory, Some(Kind::Directory)) {
                if self.is_same(now, then)? {
                    self.made.insert(then, now);
                }
                continue;
            }
            for (name, then, _) in self.then.source.list(then)?.iter() {
                if let Some(now) = self.state.lookup(now, name)? {
                    pending.push((now, then));
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<()> {
        let Step {
            dir,
            name,
            now,
            then,
        } = step;
        match (now, then) {
            (None, None) => Ok(()),
            (Some(now), None) => {
                let counted = self.remove(dir, &name, now)?;
                self.restored.removed.add(counted);
                Ok(())
            }
            (None, Some(then)) => {
                let size = self.source_attr(then)?;
                self.restored.added.add(file_size(&size));
                self.add(dir, &name, then)
            }
            (Some(now), Some(then)) => {
                let before = self.source_attr(then)?;
                let is_dir = self.state.kind(now)? == Kind::Directory;
                if is_dir && before.kind == Kind::Directory {
                    return self.merge(now, then);
                }
                if self.made.get(&then) == Some(&now) {
                    return Ok(());
                }
                self.remove(dir, &name, now)?;
                self.restored.changed.add(file_size(&before));
                self.add(dir, &name, then)
            }
        }
    }

    /// Gives a directory of both the attributes and the names of the revision.
    fn merge(&mut self, now: Ino, then: Ino) -> Result<()> {
        let before = self.source_attr(then)?;
        self.times.insert(now, before.mtime);
        let attr = self.state.attr(now)?;
        let xattrs = sorted(self.then.source.xattrs(then)?);
        let has_xattrs = sorted(View::xattrs(self.state, now)?) == xattrs;
        let key = |attr: &Attr| (attr.mode, attr.uid, attr.gid);
        if key(&attr) != key(&before) || !has_xattrs {
            let time = self.time;
            let row = self.dir_row(now)?;
            (row.mode, row.uid, row.gid) = key(&before);
            row.ctime = time;
            if !has_xattrs {
                row.owns_xattrs = true;
                self.xattrs.insert(now, xattrs);
            }
            self.restored.changed.add(0);
        }
        let listing = self.then.source.list(then)?;
        for (name, ino, _) in listing.iter() {
            self.pending.push(Step {
                dir: now,
                name: Box::from(name),
                now: self.state.lookup(now, name)?,
                then: Some(ino),
            });
        }
        for (name, ino) in self.names(now)? {
            if listing.find(&name).is_none() {
                self.pending.push(Step {
                    dir: now,
                    name,
                    now: Some(ino),
                    then: None,
                });
            }
        }
        Ok(())
    }

    /// Returns the names in a directory of the view.
    fn names(&self, dir: Ino) -> Result<Vec<(Box<[u8]>, Ino)>> {
        let state = self.state;
        let mut names = BTreeMap::new();
        for (name, ino, _) in state.lower.list(dir)?.iter() {
            names.insert(Box::from(name), Some(ino));
        }
        for (name, target) in state.delta.dir(dir)?.iter().flat_map(|own| own.iter()) {
            names.insert(Box::from(name), target);
        }
        let names = names.into_iter();
        Ok(names
            .filter_map(|(name, target)| Some((name, target?)))
            .collect())
    }

    /// Gives a name to an object of the revision.
    fn add(&mut self, dir: Ino, name: &[u8], then: Ino) -> Result<()> {
        let before = self.source_attr(then)?;
        if before.kind == Kind::Directory {
            let new = self.add_object(dir, name, then)?;
            for (name, ino, _) in self.then.source.list(then)?.iter() {
                self.pending.push(Step {
                    dir: new,
                    name: Box::from(name),
                    now: None,
                    then: Some(ino),
                });
            }
            return Ok(());
        }
        if let Some(made) = self.made.get(&then).copied() {
            self.touch(dir)?;
            let row = self.row(made)?;
            row.nlink += 1;
            self.entries.insert((dir, Box::from(name)), Some(made));
            return Ok(());
        }
        if before.kind == Kind::File && !self.staged.contains_key(&then) {
            self.missing.insert(then);
            return Ok(());
        }
        let new = self.add_object(dir, name, then)?;
        self.made.insert(then, new);
        Ok(())
    }

    /// Creates an object as it is in the revision, without names in it.
    fn add_object(&mut self, dir: Ino, name: &[u8], then: Ino) -> Result<Ino> {
        let before = self.source_attr(then)?;
        let target = match before.kind {
            Kind::Symlink => Some(self.then.source.read_link(then)?),
            _ => None,
        };
        let place = match before.kind {
            // Its content is in `work`.
            Kind::File => None,
            _ => Some((dir, Box::from(name))),
        };
        let mut row = row_from(&before, target, place);
        row.owns_xattrs = true;
        row.ctime = self.time;
        let new = match self.staged.get(&then) {
            Some(copied) if before.kind == Kind::File => {
                row.data = DataPlace::Upper;
                row.backing_ino = copied.backing;
                self.used.push(copied.ino);
                copied.ino
            }
            _ => self.then.union.new_ino()?,
        };
        let parent = self.touch(dir)?;
        if before.kind == Kind::Directory {
            row.nlink = 2;
            parent.nlink += 1;
            self.times.insert(new, before.mtime);
        } else {
            row.nlink = 1;
        }
        self.inodes.insert(new, row);
        self.xattrs.insert(new, self.then.source.xattrs(then)?);
        self.entries.insert((dir, Box::from(name)), Some(new));
        Ok(new)
    }

    /// Removes a name and everything below it. Returns the size of a file.
    fn remove(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<u64> {
        let size = file_size(&self.state.attr(ino)?);
        let mut pending: Vec<Entry> = vec![(dir, Box::from(name))];
        while let Some((dir, name)) = pending.pop() {
            let Some(ino) = self.state.lookup(dir, &name)? else {
                continue;
            };
            if !self.gone.contains_key(&dir) {
                self.entries.insert((dir, name.clone()), None);
            }
            if self.state.kind(ino)? == Kind::Directory {
                if !self.gone.contains_key(&dir) {
                    let parent = self.touch(dir)?;
                    parent.nlink = parent.nlink.saturating_sub(1);
                }
                let mut row = self.dir_row(ino)?.clone();
                row.nlink = 0;
                self.inodes.remove(&ino);
                self.gone.insert(ino, row);
                pending.extend(self.names(ino)?.into_iter().map(|(name, _)| (ino, name)));
                continue;
            }
            if !self.gone.contains_key(&dir) {
                self.touch(dir)?;
            }
            let time = self.time;
            let row = self.row(ino)?;
            row.nlink = row.nlink.saturating_sub(1);
            row.ctime = time;
            if row.nlink == 0 {
                let row = row.clone();
                self.inodes.remove(&ino);
                self.gone.insert(ino, row);
            } else if row.is_placed_at(dir, &name) {
                row.place = None;
            }
        }
        Ok(size)
    }

    /// Returns true if an object is known to be the same as in the revision.
    fn is_same(&self, now: Ino, then: Ino) -> Result<bool> {
        let state = self.state;
        let Then {
            source,
            image,
            shared,
            ..
        } = self.then;
        let (Some(shared), [current]) = (shared, state.lower.images()) else {
            return Ok(false);
        };
        if now != then || View::may_have_other_content(state, now, now)? {
            return Ok(false);
        }
        let (attr, before) = (state.attr(now)?, self.source_attr(then)?);
        let key = |attr: &Attr| (attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev);
        if key(&attr) != key(&before)
            || kept(attr.mtime) != kept(before.mtime)
            || sorted(View::xattrs(state, now)?) != sorted(source.xattrs(then)?)
        {
            return Ok(false);
        }
        if attr.kind != Kind::File {
            return Ok(true);
        }
        let (one, other) = (current.layout(now)?, image.layout(then)?);
        Ok(shared.has_same_data((current.image(), &one), (image.image(), &other))?)
    }

    fn source_attr(&self, ino: Ino) -> Result<Attr> {
        View::attr(self.then.source, ino)
    }

    /// Returns the row of an object other than a directory, to be changed.
    fn row(&mut self, ino: Ino) -> Result<&mut InodeRow> {
        let state = self.state;
        match self.inodes.entry(ino) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(new) => {
                Ok(new.insert(state.row(ino, || None)?))
            }
        }
    }

    /// Returns the row of a directory, to be changed.
    fn dir_row(&mut self, ino: Ino) -> Result<&mut InodeRow> {
        let state = self.state;
        match self.inodes.entry(ino) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(new) => Ok(new.insert(state.dir_row(ino)?)),
        }
    }

    /// Returns the row of a directory in which a name changes.
    fn touch(&mut self, dir: Ino) -> Result<&mut InodeRow> {
        let time = self.time;
        let row = self.dir_row(dir)?;
        super::super::namespace::touch(row, time);
        Ok(row)
    }

    /// Returns the changes to apply.
    pub(super) fn finish(mut self) -> Result<Plan> {
        let (union, state) = (self.then.union, self.state);
        let mut changes = Vec::new();
        let mut orphans = Vec::new();
        for (ino, row) in &mut self.gone {
            if let Some(own) = state.delta.inode(*ino)? {
                row.place.clone_from(&own.place);
            }
            if let Some(orphan) = union.orphan_of(state, *ino, row)? {
                orphans.push((*ino, orphan));
            }
            self.physical.remove(state, *ino, row)?;
            if state.delta.inode(*ino)?.is_some() {
                changes.push(RowChange::DropInode(*ino));
                changes.push(RowChange::DropXattrs(*ino));
            }
            if row.kind == Kind::Directory && state.delta.dir(*ino)?.is_some() {
                changes.push(RowChange::DropEntriesOf(*ino));
            }
        }
        for (ino, row) in &self.inodes {
            if let Some(own) = state.delta.inode(*ino)?
                && row.place.is_none()
            {
                self.physical.detach(state, *ino, own)?;
            }
        }
        let mut stale = Vec::new();
        for ((dir, name), target) in self.entries {
            if self.gone.contains_key(&dir) {
                continue;
            }
            let below = state.lower.lookup(dir, &name)?;
            changes.push(match target {
                Some(ino) if below == Some(ino) => RowChange::drop_entry(dir, name.to_vec()),
                Some(ino) => RowChange::put_entry(dir, name.to_vec(), Some(ino)),
                None if below.is_some() => RowChange::put_entry(dir, name.to_vec(), None),
                None => RowChange::drop_entry(dir, name.to_vec()),
            });
            stale.push(Invalidation::Entry { dir, name });
        }
        stale.extend(self.gone.keys().copied().map(Invalidation::Object));
        stale.extend(self.inodes.keys().copied().map(Invalidation::Object));
        for (ino, mut row) in self.inodes {
            row.mtime = self.times.get(&ino).copied().unwrap_or(row.mtime);
            changes.push(RowChange::put_inode(ino, row));
            for (name, value) in match self.xattrs.remove(&ino) {
                Some(all) => {
                    changes.push(RowChange::DropXattrs(ino));
                    all
                }
                None => Vec::new(),
            } {
                changes.push(RowChange::PutXattr {
                    ino,
                    name: name.into_vec().into(),
                    value: value.into_vec().into(),
                });
            }
        }
        Ok(Plan {
            changes,
            physical: self.physical,
            orphans,
            stale,
            restored: self.restored,
            used: self.used,
        })
    }
}

fn file_size(attr: &Attr) -> u64 {
    match attr.kind {
        Kind::File => attr.size,
        _ => 0,
    }
}

fn sorted(mut all: Vec<Xattr>) -> Vec<Xattr> {
    all.sort_unstable();
    all
}
