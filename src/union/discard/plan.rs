//! Which rows go when the changes of some paths are thrown away.
//!
//! The rows that go are the smallest set with these properties; each is a reason for more of them,
//! so they are applied until nothing comes of it any more.
//!
//! 1. No row is left about a name at or below the paths: neither as the tree is now, nor as it was
//!    committed, nor as it will be. What comes back to a path by the other rules is committed too.
//!    In a new directory that stands where a committed one was, a name that goes gives way to the
//!    committed object that belongs there.
//! 2. A rename is undone at both ends.
//! 3. What is in a new directory that goes away goes with it.
//! 4. What was committed and loses its last name by this gets a committed one back, for which
//!    directories that were removed come back, with all that was in them.
//! 5. Directories are not inside each other.
//!
//! Names of objects that are not among the paths, and attributes and content of all but what is
//! among them, stay as they are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::difference::{Counted, Edits, Entry, Tree, is_among, is_committed_dir};
use super::super::stack::LowerStack;
use super::super::{Error, Result, State};
use crate::object::{Ino, Kind};

/// What goes, so that what remains is a tree again.
pub(super) struct Plan {
    pub(super) edits: Edits,
    /// Names, links and whiteouts, that go.
    pub(super) gone: BTreeSet<Entry>,
    /// Those of them, in new directories that stay, that lead to committed objects from now on.
    pub(super) restored: BTreeMap<Entry, Ino>,
    /// New objects that lose their last name.
    pub(super) dead: BTreeSet<Ino>,
    /// Committed objects that get their committed attributes and content back.
    pub(super) reset: BTreeSet<Ino>,
    /// How many names objects lose, and how many committed ones they get back.
    pub(super) lost: HashMap<Ino, u32>,
    pub(super) regained: HashMap<Ino, u32>,
}

impl Plan {
    pub(super) fn of(state: &State, base: &LowerStack, paths: &[Vec<u8>]) -> Result<Plan> {
        let edits = Edits::of(state, base)?;
        let mut planner = Planner {
            state,
            base,
            edits: &edits,
            live: Tree::new(&edits, base, Counted::All),
            was: Tree::new(&edits, base, Counted::None),
            paths,
            gone: BTreeSet::new(),
            chosen: HashSet::new(),
            dead: BTreeSet::new(),
            pending: Vec::new(),
        };
        planner.choose_by_old_paths()?;
        loop {
            planner.follow()?;
            planner.choose()?;
            planner.untie()?;
            if planner.pending.is_empty() {
                planner.bring_back_what_holds_paths()?;
            }
            if planner.pending.is_empty() {
                break;
            }
        }
        let reset = planner.reset()?;
        let (lost, regained) = planner.count()?;
        let Planner { gone, dead, .. } = planner;
        let mut restored = BTreeMap::new();
        for entry in &gone {
            if edits.past_of(entry.0).is_some()
                && !dead.contains(&entry.0)
                && let Some(below) = edits.row(entry).and_then(|row| row.below)
            {
                restored.insert(entry.clone(), below);
            }
        }
        Ok(Plan {
            edits,
            gone,
            restored,
            dead,
            reset,
            lost,
            regained,
        })
    }

    /// Every object about which something is different afterwards.
    pub(super) fn touched(&self) -> BTreeSet<Ino> {
        let mut all: BTreeSet<Ino> = self.gone.iter().map(|(dir, _)| *dir).collect();
        all.extend(self.lost.keys());
        all.extend(self.regained.keys());
        all.extend(&self.reset);
        all.extend(&self.dead);
        all
    }
}

struct Planner<'a> {
    state: &'a State,
    base: &'a LowerStack,
    edits: &'a Edits,
    /// The tree as it is, and as it was committed.
    live: Tree<'a>,
    was: Tree<'a>,
    /// Whose changes are thrown away.
    paths: &'a [Vec<u8>],
    gone: BTreeSet<Entry>,
    /// Those that go because of their paths.
    chosen: HashSet<Entry>,
    dead: BTreeSet<Ino>,
    /// Those that are to go.
    pending: Vec<Entry>,
}

impl Planner<'_> {
    /// Rule 1, by the paths as they are and as they were.
    fn choose_by_old_paths(&mut self) -> Result<()> {
        for (entry, _) in self.edits.rows() {
            for tree in [&mut self.live, &mut self.was] {
                if let Some(path) = tree.path_of(entry)?
                    && is_among(&path, self.paths)
                {
                    self.pending.push(entry.clone());
                    self.chosen.insert(entry.clone());
                    break;
                }
            }
        }
        Ok(())
    }

    /// Rule 1, by the paths as they will be.
    fn choose(&mut self) -> Result<()> {
        let mut after = Tree::new(self.edits, self.base, Counted::AllBut(&self.gone));
        for (entry, _) in self.edits.rows() {
            if !self.gone.contains(entry)
                && let Some(path) = after.path_of(entry)?
                && is_among(&path, self.paths)
            {
                self.pending.push(entry.clone());
                self.chosen.insert(entry.clone());
            }
        }
        Ok(())
    }

    /// What is at a path may be gone with its directory.
    fn bring_back_what_holds_paths(&mut self) -> Result<()> {
        for path in self.paths {
            let mut after = Tree::new(self.edits, self.base, Counted::AllBut(&self.gone));
            for above in [
                self.was.above(path, |ino| self.is_dir(ino))?,
                after.above(path, |ino| self.is_dir(ino))?,
            ] {
                let Some((dir, name)) = above else { continue };
                let dir = after.current(dir);
                if self.edits.committed(self.base, dir, &name)?.is_none()
                    || after.path(dir)?.is_some()
                {
                    continue;
                }
                if let Some(hiding) = hides(&mut self.live, self.base, self.edits, dir)? {
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

    /// Rules 2 to 4: what each name that goes brings with it.
    fn follow(&mut self) -> Result<()> {
        while let Some(entry) = self.pending.pop() {
            let Some(row) = self.edits.row(&entry) else {
                continue;
            };
            if !self.gone.insert(entry.clone()) || row.target == row.below {
                continue;
            }
            let from = self.edits.renamed_from(&entry);
            self.pending.extend(from.cloned());
            let to = self.edits.renamed_to(&entry);
            self.pending.extend(to.cloned());
            if let Some(target) = row.target {
                self.loses(target)?;
            }
            if let Some(below) = row.below {
                self.regains(below)?;
            }
        }
        Ok(())
    }

    /// An object loses a name that it did not have when it was committed.
    fn loses(&mut self, ino: Ino) -> Result<()> {
        let links = self.edits.links_of(ino);
        if links.iter().any(|entry| !self.gone.contains(entry)) {
            return Ok(());
        }
        let Some(before) = self.base.attr(ino)? else {
            self.dead.insert(ino);
            let all = self.edits.within(ino).map(|(entry, _)| entry.clone());
            self.pending.extend(all);
            return Ok(());
        };
        let names = self.state.delta.inode(ino)?.map_or(0, |row| row.nlink);
        if before.kind != Kind::Directory && names as usize > links.len() {
            return Ok(());
        }
        // A name that it has lost in a directory that is there comes back as the other end of the
        // rename. Else the directory has to come back.
        let mut from = links
            .iter()
            .filter_map(|entry| self.edits.renamed_from(entry));
        if let Some((dir, _)) = from.find(|(dir, _)| self.edits.is_gone(*dir)) {
            let hiding = hides(&mut self.live, self.base, self.edits, *dir)?;
            self.pending.extend(hiding);
        }
        Ok(())
    }

    /// A committed name leads to its object again.
    fn regains(&mut self, ino: Ino) -> Result<()> {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            let links = self.edits.links_of(ino);
            if !is_committed_dir(self.base, ino)? {
                continue;
            }
            if !links.is_empty() {
                self.pending.extend(links.iter().cloned());
            } else if self.edits.is_gone(ino) {
                // It was gone with all that was in it. What had moved out goes back.
                for (name, child, _) in self.base.list(ino)?.iter() {
                    let moved_to = self.edits.renamed_to(&(ino, Box::from(name)));
                    self.pending.extend(moved_to.cloned());
                    pending.push(child);
                }
            }
        }
        Ok(())
    }

    /// Counts the names that objects lose, and the committed ones that they get back.
    fn count(&self) -> Result<(HashMap<Ino, u32>, HashMap<Ino, u32>)> {
        let mut lost: HashMap<Ino, u32> = HashMap::new();
        let mut regained: HashMap<Ino, u32> = HashMap::new();
        let mut pending = Vec::new();
        for entry in &self.gone {
            let Some(row) = self.edits.row(entry) else {
                continue;
            };
            // With a new directory goes each name in it, and the committed directory in whose place
            // it stood comes back with its names.
            let is_dead = self.dead.contains(&entry.0);
            let is_other = row.target != row.below;
            if let Some(target) = row.target
                && (is_other || is_dead)
            {
                *lost.entry(target).or_default() += 1;
            }
            if is_other && !is_dead {
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

    /// Rule 5: directories that go back may close a ring with committed ones that were to stay
    /// where they are; these go back too.
    fn untie(&mut self) -> Result<()> {
        let after = Tree::new(self.edits, self.base, Counted::AllBut(&self.gone));
        for start in self.edits.linked() {
            if !is_committed_dir(self.base, start)? || after.links_of(start).next().is_none() {
                continue;
            }
            let mut ring = BTreeSet::new();
            let mut at = start;
            let is_closed = loop {
                if at == Ino::ROOT {
                    break false;
                }
                if !ring.insert(at) {
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
            for ino in ring {
                if is_committed_dir(self.base, ino)? {
                    self.pending.extend(after.links_of(ino).cloned());
                }
            }
        }
        Ok(())
    }

    /// The committed objects whose attributes and content are among what is thrown away: those with
    /// a name at or below the paths, as it is, as it was committed, or as it will be.
    fn reset(&mut self) -> Result<BTreeSet<Ino>> {
        let mut after = Tree::new(self.edits, self.base, Counted::AllBut(&self.gone));
        let mut reset = BTreeSet::new();
        // Files of which not all names are known.
        let mut unknown = HashSet::new();
        for (ino, row) in self.state.delta.inodes()? {
            let Some(before) = self.base.attr(ino)? else {
                continue;
            };
            let mut is_held = false;
            let holds = |path: Vec<u8>| is_among(&path, self.paths);
            if before.kind == Kind::Directory {
                is_held = self.live.path(ino)?.is_some_and(holds)
                    || self.was.path(ino)?.is_some_and(holds)
                    || after.path(ino)?.is_some_and(holds);
            } else {
                let mut names: BTreeSet<Entry> =
                    self.edits.missing_of(ino).iter().cloned().collect();
                if let Some(place) = &row.place
                    && self.was.lookup(place)? == Some(ino)
                {
                    names.insert(place.clone());
                }
                for name in &names {
                    is_held = is_held
                        || self.live.leads(name, ino)?.is_some_and(holds)
                        || self.was.leads(name, ino)?.is_some_and(holds)
                        || after.leads(name, ino)?.is_some_and(holds);
                }
                // A name that was merely added is thrown away without the object.
                is_held |= self.edits.links_of(ino).iter().any(|entry| {
                    self.chosen.contains(entry) && self.edits.renamed_from(entry).is_some()
                });
                if !is_held && names.len() < before.nlink as usize {
                    unknown.insert(ino);
                }
            }
            if is_held {
                reset.insert(ino);
            }
        }
        if !unknown.is_empty() {
            self.find_below_paths(&unknown, &mut reset)?;
        }
        Ok(reset)
    }

    /// Looks for names of some files at and below the paths. Cost follows what is committed there.
    fn find_below_paths(&self, wanted: &HashSet<Ino>, found: &mut BTreeSet<Ino>) -> Result<()> {
        let after = Tree::new(self.edits, self.base, Counted::AllBut(&self.gone));
        // As it was and as it will be all is there that was committed; as it is, what was left
        // there.
        let mut pending = Vec::new();
        for path in self.paths {
            for (tree, as_it_is) in [(&self.was, false), (&after, false), (&self.live, true)] {
                if path.is_empty() {
                    pending.push((Ino::ROOT, as_it_is));
                } else if let Some(entry) = tree.above(path, |ino| self.is_dir(ino))?
                    && let Some(ino) = tree.lookup(&entry)?
                    && (is_committed_dir(self.base, ino)? || self.was.lookup(&entry)? == Some(ino))
                {
                    pending.push((ino, as_it_is));
                }
            }
        }
        for entry in &self.chosen {
            let target = self.edits.row(entry).and_then(|row| row.target);
            if let Some(target) = target
                && is_committed_dir(self.base, target)?
            {
                pending.push((target, true));
            }
        }
        while let Some((ino, as_it_is)) = pending.pop() {
            if wanted.contains(&ino) {
                found.insert(ino);
            }
            if !is_committed_dir(self.base, ino)? {
                continue;
            }
            for (name, child, _) in self.base.list(ino)?.iter() {
                if !as_it_is || self.live.lookup(&(ino, Box::from(name)))? == Some(child) {
                    pending.push((child, as_it_is));
                }
            }
        }
        Ok(())
    }
}

/// The name whose row keeps a committed directory out of the tree.
fn hides(live: &mut Tree<'_>, base: &LowerStack, edits: &Edits, dir: Ino) -> Result<Option<Entry>> {
    let mut at = dir;
    while at != Ino::ROOT && live.path(at)?.is_none() {
        let Some((above, name)) = base.parent(at)? else {
            return Ok(None);
        };
        let place = (live.current(above), name);
        if edits.row(&place).is_some() {
            return Ok(Some(place));
        }
        at = place.0;
    }
    Ok(None)
}
