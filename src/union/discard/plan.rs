//! Selects the names of the writable layer to remove when the changes of paths are discarded.
//!
//! A name is a link or a whiteout. The result is the smallest set that satisfies these rules. They
//! are applied repeatedly until none adds a name:
//!
//! 1. All names at or below the paths are removed, whether a name has such a path in the current
//!    tree, in the committed tree or in the resulting one. In a new directory at the path of a
//!    committed one that no longer exists, the committed object gets the name.
//! 2. Both ends of a rename are removed.
//! 3. All names in a new directory that loses its last name are removed.
//! 4. A committed object that would lose its last name gets a committed name back. If that name is
//!    in a removed directory, the directory is restored with all its content.
//! 5. No directory is inside itself.
//!
//! All other names stay. Attributes and content are reset only for committed objects with a name at
//! or below the paths.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::difference::{Counted, Edits, Entry, Tree, View, is_among, is_committed_dir};
use super::super::stack::LowerStack;
use super::super::{Error, Result, State};
use super::{Known, flat_row};
use crate::object::{Ino, Kind};

/// The names to remove, and the effect on objects.
pub(super) struct Plan {
    pub(super) edits: Edits,
    /// Links and whiteouts to remove.
    pub(super) removed: BTreeSet<Entry>,
    /// Those of them that become links to committed objects, in new directories that stay.
    pub(super) relinked: BTreeMap<Entry, Ino>,
    /// New objects that lose their last name.
    pub(super) deleted: BTreeSet<Ino>,
    /// Committed objects whose attributes and content are reset.
    pub(super) reset: BTreeSet<Ino>,
    /// The number of names that objects lose.
    pub(super) lost_names: HashMap<Ino, u32>,
    /// The number of committed names that objects get back.
    pub(super) restored_names: HashMap<Ino, u32>,
}

impl Plan {
    pub(super) fn of(state: &State, base: &LowerStack, paths: &[Vec<u8>]) -> Result<Plan> {
        let edits = Edits::of(state, base)?;
        let mut planner = Planner::new(state, base, &edits, paths);
        planner.select_by_old_paths()?;
        loop {
            planner.remove_pending()?;
            planner.select_by_new_paths()?;
            planner.break_cycles()?;
            if planner.pending.is_empty() {
                planner.restore_parents_of_paths()?;
            }
            if planner.pending.is_empty() {
                break;
            }
        }
        let reset = planner.objects_to_reset()?;
        let removal = planner.finish(reset)?;
        Ok(removal.with(edits))
    }

    /// Returns all objects that change.
    pub(super) fn touched(&self) -> BTreeSet<Ino> {
        let mut all: BTreeSet<Ino> = self.removed.iter().map(|(dir, _)| *dir).collect();
        all.extend(self.lost_names.keys());
        all.extend(self.restored_names.keys());
        all.extend(&self.reset);
        all.extend(&self.deleted);
        all
    }
}

pub(super) struct Planner<'a> {
    pub(super) state: &'a State,
    pub(super) base: &'a LowerStack,
    pub(super) edits: &'a Edits,
    pub(super) current: Tree<'a>,
    pub(super) committed: Tree<'a>,
    /// The paths whose changes are discarded.
    paths: &'a [Vec<u8>],
    pub(super) removed: BTreeSet<Entry>,
    /// Names that are removed because of their paths.
    selected: HashSet<Entry>,
    deleted: BTreeSet<Ino>,
    /// Names to remove that have not been processed.
    pub(super) pending: Vec<Entry>,
}

/// What a planner has found.
pub(super) struct Removal {
    removed: BTreeSet<Entry>,
    relinked: BTreeMap<Entry, Ino>,
    deleted: BTreeSet<Ino>,
    reset: BTreeSet<Ino>,
    lost_names: HashMap<Ino, u32>,
    restored_names: HashMap<Ino, u32>,
}

impl Removal {
    /// Returns the plan.
    pub(super) fn with(self, edits: Edits) -> Plan {
        Plan {
            edits,
            removed: self.removed,
            relinked: self.relinked,
            deleted: self.deleted,
            reset: self.reset,
            lost_names: self.lost_names,
            restored_names: self.restored_names,
        }
    }
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        state: &'a State,
        base: &'a LowerStack,
        edits: &'a Edits,
        paths: &'a [Vec<u8>],
    ) -> Planner<'a> {
        Planner {
            state,
            base,
            edits,
            current: Tree::new(edits, base, Counted::All),
            committed: Tree::new(edits, base, Counted::None),
            paths,
            removed: BTreeSet::new(),
            selected: HashSet::new(),
            deleted: BTreeSet::new(),
            pending: Vec::new(),
        }
    }

    /// Ends the search. These objects are reset.
    pub(super) fn finish(self, reset: BTreeSet<Ino>) -> Result<Removal> {
        let (lost_names, restored_names) = self.count_names()?;
        let mut relinked = BTreeMap::new();
        for entry in &self.removed {
            if self.edits.past_of(entry.0).is_some()
                && !self.deleted.contains(&entry.0)
                && let Some(below) = self.edits.row(entry).and_then(|row| row.below)
            {
                relinked.insert(entry.clone(), below);
            }
        }
        Ok(Removal {
            removed: self.removed,
            relinked,
            deleted: self.deleted,
            reset,
            lost_names,
            restored_names,
        })
    }
}

impl Planner<'_> {
    /// Rule 1, for current and committed paths.
    fn select_by_old_paths(&mut self) -> Result<()> {
        for (entry, _) in self.edits.rows() {
            for tree in [&mut self.current, &mut self.committed] {
                if let Some(path) = tree.path_of(entry)?
                    && is_among(&path, self.paths)
                {
                    self.pending.push(entry.clone());
                    self.selected.insert(entry.clone());
                    break;
                }
            }
        }
        Ok(())
    }

    /// Rule 1, for resulting paths.
    fn select_by_new_paths(&mut self) -> Result<()> {
        let mut after = Tree::new(self.edits, self.base, Counted::AllBut(&self.removed));
        for (entry, _) in self.edits.rows() {
            if !self.removed.contains(entry)
                && let Some(path) = after.path_of(entry)?
                && is_among(&path, self.paths)
            {
                self.pending.push(entry.clone());
                self.selected.insert(entry.clone());
            }
        }
        Ok(())
    }

    /// Restores removed directories that contain a path.
    fn restore_parents_of_paths(&mut self) -> Result<()> {
        for path in self.paths {
            let mut after = Tree::new(self.edits, self.base, Counted::AllBut(&self.removed));
            for above in [
                self.committed.above(path, |ino| self.is_dir(ino))?,
                after.above(path, |ino| self.is_dir(ino))?,
            ] {
                let Some((dir, name)) = above else { continue };
                let dir = after.current(dir);
                if self.edits.committed(self.base, dir, &name)?.is_none()
                    || after.path(dir)?.is_some()
                {
                    continue;
                }
                if let Some(hiding) = hiding_name(&mut self.current, self.base, self.edits, dir)? {
                    let row = self.edits.row(&hiding);
                    if row.is_some_and(|row| row.target.is_some()) {
                        return Err(Error::Replaced(String::from_utf8_lossy(path).into_owned()));
                    }
                    self.pending.push(hiding);
                }
            }
        }
        Ok(())
    }

    fn is_dir(&self, ino: Ino) -> Result<bool> {
        Ok(self.state.kind(ino)? == Kind::Directory)
    }

    /// Removes pending names, and those that follow from them by rules 2 to 4.
    pub(super) fn remove_pending(&mut self) -> Result<()> {
        while let Some(entry) = self.pending.pop() {
            let Some(row) = self.edits.row(&entry) else {
                continue;
            };
            if !self.removed.insert(entry.clone()) || row.target == row.below {
                continue;
            }
            let from = self.edits.renamed_from(&entry);
            self.pending.extend(from.cloned());
            let to = self.edits.renamed_to(&entry);
            self.pending.extend(to.cloned());
            if let Some(target) = row.target {
                self.lose_name(target)?;
            }
            if let Some(below) = row.below {
                self.restore_name(below)?;
            }
        }
        Ok(())
    }

    /// Rules 3 and 4, for an object that loses a name that it does not have in the committed tree.
    fn lose_name(&mut self, ino: Ino) -> Result<()> {
        let links = self.edits.links_of(ino);
        if links.iter().any(|entry| !self.removed.contains(entry)) {
            return Ok(());
        }
        let Some(before) = self.base.attr(ino)? else {
            self.deleted.insert(ino);
            let all = self.edits.within(ino).map(|(entry, _)| entry.clone());
            self.pending.extend(all);
            return Ok(());
        };
        let names = match flat_row(self.state, self.base, self.edits, ino)? {
            Known::Row(row) => row.nlink,
            Known::Nameless | Known::Committed => 0,
        };
        if before.kind != Kind::Directory && names as usize > links.len() {
            return Ok(());
        }
        // Rule 2 restores its committed name if the directory of that name exists. Otherwise the
        // directory is restored.
        let mut from = links
            .iter()
            .filter_map(|entry| self.edits.renamed_from(entry));
        if let Some((dir, _)) = from.find(|(dir, _)| self.edits.is_gone(*dir)) {
            let hiding = hiding_name(&mut self.current, self.base, self.edits, *dir)?;
            self.pending.extend(hiding);
        }
        Ok(())
    }

    /// Rule 4, for an object that gets a committed name back.
    fn restore_name(&mut self, ino: Ino) -> Result<()> {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            let links = self.edits.links_of(ino);
            if !is_committed_dir(self.base, ino)? {
                continue;
            }
            if !links.is_empty() {
                self.pending.extend(links.iter().cloned());
            } else if self.edits.is_gone(ino) {
                // It was removed with all its content. Objects that were moved out of it return.
                for (name, child, _) in self.base.list(ino)?.iter() {
                    let moved_to = self.edits.renamed_to(&(ino, Box::from(name)));
                    self.pending.extend(moved_to.cloned());
                    pending.push(child);
                }
            }
        }
        Ok(())
    }

    /// Counts the names that objects lose, and the committed names that they get back.
    fn count_names(&self) -> Result<(HashMap<Ino, u32>, HashMap<Ino, u32>)> {
        let mut lost: HashMap<Ino, u32> = HashMap::new();
        let mut regained: HashMap<Ino, u32> = HashMap::new();
        let mut pending = Vec::new();
        for entry in &self.removed {
            let Some(row) = self.edits.row(entry) else {
                continue;
            };
            // A deleted directory loses all its names, and the committed directory at its path is
            // restored with its own.
            let is_deleted = self.deleted.contains(&entry.0);
            let is_other = row.target != row.below;
            if let Some(target) = row.target
                && (is_other || is_deleted)
            {
                *lost.entry(target).or_default() += 1;
            }
            if is_other && !is_deleted {
                pending.extend(row.below);
            }
        }
        while let Some(ino) = pending.pop() {
            *regained.entry(ino).or_default() += 1;
            if self.edits.is_gone(ino) || self.edits.heir_of(ino).is_some() {
                let listing = self.base.list(ino)?;
                pending.extend(listing.iter().map(|(_, child, _)| child));
            }
        }
        Ok((lost, regained))
    }

    /// Rule 5: if directories that return form a cycle with moved ones that would stay, these
    /// return too.
    pub(super) fn break_cycles(&mut self) -> Result<()> {
        let after = Tree::new(self.edits, self.base, Counted::AllBut(&self.removed));
        for start in self.edits.linked() {
            if !is_committed_dir(self.base, start)? || after.links_of(start).next().is_none() {
                continue;
            }
            let mut cycle = BTreeSet::new();
            let mut at = start;
            let is_closed = loop {
                if at == Ino::ROOT {
                    break false;
                }
                if !cycle.insert(at) {
                    break at == start;
                }
                match after.place(at)? {
                    Some((above, _)) => at = above,
                    None => break false,
                }
            };
            if !is_closed {
                continue;
            }
            for ino in cycle {
                if is_committed_dir(self.base, ino)? {
                    self.pending.extend(after.links_of(ino).cloned());
                }
            }
        }
        Ok(())
    }

    /// Returns the committed objects to reset: those with a name at or below the paths, in the
    /// current tree, in the committed tree or in the resulting one.
    fn objects_to_reset(&mut self) -> Result<BTreeSet<Ino>> {
        let mut after = Tree::new(self.edits, self.base, Counted::AllBut(&self.removed));
        let mut reset = BTreeSet::new();
        // Files of which not all names are known yet.
        let mut unknown = HashSet::new();
        let mut objects = BTreeSet::new();
        for delta in self.state.deltas() {
            objects.extend(delta.inodes()?.map(|(ino, _)| ino));
        }
        for ino in objects {
            let Some(before) = self.base.attr(ino)? else {
                continue;
            };
            let Known::Row(row) = flat_row(self.state, self.base, self.edits, ino)? else {
                continue;
            };
            let mut is_selected = false;
            let is_at_paths = |path: Vec<u8>| is_among(&path, self.paths);
            if before.kind == Kind::Directory {
                is_selected = self.current.path(ino)?.is_some_and(is_at_paths)
                    || self.committed.path(ino)?.is_some_and(is_at_paths)
                    || after.path(ino)?.is_some_and(is_at_paths);
            } else {
                let mut names: BTreeSet<Entry> =
                    self.edits.missing_of(ino).iter().cloned().collect();
                if let Some(place) = &row.place
                    && self.committed.lookup(place)? == Some(ino)
                {
                    names.insert(place.clone());
                }
                for name in &names {
                    is_selected = is_selected
                        || self.current.leads(name, ino)?.is_some_and(is_at_paths)
                        || self.committed.leads(name, ino)?.is_some_and(is_at_paths)
                        || after.leads(name, ino)?.is_some_and(is_at_paths);
                }
                // A removed name that was added resets the object only if the object was moved
                // there.
                is_selected |= self.edits.links_of(ino).iter().any(|entry| {
                    self.selected.contains(entry) && self.edits.renamed_from(entry).is_some()
                });
                if !is_selected && names.len() < before.nlink as usize {
                    unknown.insert(ino);
                }
            }
            if is_selected {
                reset.insert(ino);
            }
        }
        if !unknown.is_empty() {
            self.find_below_paths(&unknown, &mut reset)?;
        }
        Ok(reset)
    }

    /// Searches for names of files at and below the paths, in the committed objects there.
    fn find_below_paths(&self, wanted: &HashSet<Ino>, found: &mut BTreeSet<Ino>) -> Result<()> {
        let after = Tree::new(self.edits, self.base, Counted::AllBut(&self.removed));
        // The committed and the resulting tree contain all committed objects there; the current
        // tree only those that were not moved away.
        let mut pending = Vec::new();
        for path in self.paths {
            for (tree, in_current) in [
                (&self.committed, false),
                (&after, false),
                (&self.current, true),
            ] {
                if path.is_empty() {
                    pending.push((Ino::ROOT, in_current));
                } else if let Some(entry) = tree.above(path, |ino| self.is_dir(ino))?
                    && let Some(ino) = tree.lookup(&entry)?
                    && (is_committed_dir(self.base, ino)?
                        || self.committed.lookup(&entry)? == Some(ino))
                {
                    pending.push((ino, in_current));
                }
            }
        }
        for entry in &self.selected {
            let target = self.edits.row(entry).and_then(|row| row.target);
            if let Some(target) = target
                && is_committed_dir(self.base, target)?
            {
                pending.push((target, true));
            }
        }
        while let Some((ino, in_current)) = pending.pop() {
            if wanted.contains(&ino) {
                found.insert(ino);
            }
            if !is_committed_dir(self.base, ino)? {
                continue;
            }
            for (name, child, _) in self.base.list(ino)?.iter() {
                if !in_current || self.current.lookup(&(ino, Box::from(name)))? == Some(child) {
                    pending.push((child, in_current));
                }
            }
        }
        Ok(())
    }
}

/// Returns the name that hides a committed directory.
fn hiding_name(
    current: &mut Tree<'_>,
    base: &LowerStack,
    edits: &Edits,
    dir: Ino,
) -> Result<Option<Entry>> {
    let mut at = dir;
    while at != Ino::ROOT && current.path(at)?.is_none() {
        let Some((above, name)) = base.parent(at)? else {
            return Ok(None);
        };
        let place = (current.current(above), name);
        if edits.row(&place).is_some() {
            return Ok(Some(place));
        }
        at = place.0;
    }
    Ok(None)
}
