//! Selects the names to remove so that only a part of the changes stays: those that a commit of
//! paths, or one with ignored patterns, records.
//!
//! The names outside of the part are removed by the rules of [`plan`](super::plan). If these
//! require that a name of the part is removed too, the part cannot be recorded alone: it is
//! refused, with the reason.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::delta::{Delta, row_attr};
use super::super::difference::{Counted, Edits, Entry, Tree, is_among, is_committed_dir};
use super::super::stack::LowerStack;
use super::super::{Error, Result, State};
use super::plan::{Plan, Planner};
use crate::object::{Ino, Kind};
use crate::state::DataPlace;

/// The part of the changes that is kept.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Paths, each with everything below it. None for all.
    pub(crate) paths: &'a [Vec<u8>],
    /// Whether a path is ignored. Paths that are committed never are.
    pub(crate) is_ignored: &'a dyn Fn(&[u8]) -> bool,
}

impl std::fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// Whether a path has a committed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracked {
    /// It has.
    Committed,
    /// It has none.
    New,
}

impl Part<'_> {
    /// Returns true if a path belongs to the part.
    pub(crate) fn contains(&self, path: &[u8], known: Tracked) -> bool {
        let is_chosen = self.paths.is_empty() || is_among(path, self.paths);
        is_chosen && (known == Tracked::Committed || !self.leaves_out(path))
    }

    /// Returns true if a path is ignored. What was named itself is not.
    fn leaves_out(&self, path: &[u8]) -> bool {
        (self.is_ignored)(path)
            && !self.paths.iter().any(|named| {
                is_among(path, std::slice::from_ref(named)) && (self.is_ignored)(named)
            })
    }
}

impl Plan {
    /// Selects the names to remove so that only a part of the changes stays.
    ///
    /// [`Error::NotSeparable`] if that is impossible.
    pub(super) fn keeping(
        state: &State,
        own: &Delta,
        base: &LowerStack,
        part: Part<'_>,
    ) -> Result<Plan> {
        let edits = Edits::of(state, base)?;
        let mut planner = Planner::new(state, base, &edits, &[]);
        let kept = planner.names_of(part)?;
        let outside = edits.rows().map(|(entry, _)| entry);
        planner.pending = outside
            .filter(|entry| !kept.contains(*entry))
            .cloned()
            .collect();
        while !planner.pending.is_empty() {
            planner.remove_pending()?;
            planner.break_cycles()?;
        }
        planner.refuse_removed(&kept)?;
        planner.refuse_moved(&kept, part)?;
        let reset = planner.objects_outside(own, part)?;
        let removal = planner.finish(reset)?;
        Ok(removal.with(edits))
    }

    /// Returns true if the plan removes nothing.
    pub(super) fn is_empty(&self) -> bool {
        let differs = |entry: &Entry| {
            let row = self.edits.row(entry);
            row.is_some_and(|row| row.target != row.below)
        };
        self.reset.is_empty() && !self.removed.iter().any(differs)
    }
}

impl Planner<'_> {
    /// Returns the names of a part: those at and below its paths, and those of new directories
    /// above them.
    fn names_of(&mut self, part: Part<'_>) -> Result<HashSet<Entry>> {
        let edits = self.edits;
        let mut kept = HashSet::new();
        for (entry, row) in edits.rows() {
            let known = match row.below {
                Some(_) => Tracked::Committed,
                None => Tracked::New,
            };
            let mut belongs = false;
            for tree in [&mut self.current, &mut self.committed] {
                if let Some(path) = tree.path_of(entry)? {
                    belongs |= part.contains(&path, known);
                }
            }
            // A committed object that was moved to an ignored name: both of its names go together.
            if let Some(path) = self.current.path_of(entry)?
                && edits.renamed_from(entry).is_some()
            {
                belongs |= part.contains(&path, Tracked::Committed);
            }
            if belongs {
                kept.insert(entry.clone());
            }
        }
        let mut pending: Vec<Entry> = kept.iter().cloned().collect();
        while let Some((dir, _)) = pending.pop() {
            if dir == Ino::ROOT || is_committed_dir(self.base, dir)? {
                continue;
            }
            for entry in edits.links_of(dir) {
                if kept.insert(entry.clone()) {
                    pending.push(entry.clone());
                }
            }
        }
        Ok(kept)
    }

    /// Fails if a name of the part would be removed, because of the other end of a rename or for
    /// the sake of the tree.
    fn refuse_removed(&mut self, kept: &HashSet<Entry>) -> Result<()> {
        let edits = self.edits;
        let lost = self.removed.iter().filter(|entry| kept.contains(*entry));
        let lost: Vec<Entry> = lost.cloned().collect();
        for entry in &lost {
            let Some(row) = edits.row(entry).filter(|row| row.target != row.below) else {
                continue;
            };
            let path = self.shown(entry)?;
            let other = edits
                .renamed_from(entry)
                .or_else(|| edits.renamed_to(entry));
            let why = match other {
                Some(other) => {
                    let other = self.shown(other)?;
                    let verb = if row.target.is_some() { "from" } else { "to" };
                    format!("it was renamed {verb} {other:?}; name both")
                }
                None => "a directory above it was moved or replaced; name that one".to_owned(),
            };
            return Err(Error::NotSeparable { path, why });
        }
        Ok(())
    }

    /// Fails if something of the part would have another path than it has now.
    fn refuse_moved(&mut self, kept: &HashSet<Entry>, part: Part<'_>) -> Result<()> {
        let removed = self.removed.clone();
        let mut after = Tree::new(self.edits, self.base, Counted::AllBut(&removed));
        let moved = |path: Vec<u8>| {
            let why = "a directory above it was moved or replaced; name that one".to_owned();
            let path = String::from_utf8_lossy(&path).into_owned();
            Err(Error::NotSeparable { path, why })
        };
        for entry in kept {
            let row = self.edits.row(entry);
            if row.is_none_or(|row| row.target == row.below) {
                continue;
            }
            if let Some(path) = self.current.path_of(entry)?
                && after.path_of(entry)?.as_ref() != Some(&path)
            {
                return moved(path);
            }
        }
        for path in part.paths {
            if self.find(&after, path)? != self.find(&self.current, path)? {
                return moved(path.clone());
            }
        }
        Ok(())
    }

    /// Follows a path in a tree.
    fn find(&self, tree: &Tree<'_>, path: &[u8]) -> Result<Option<Ino>> {
        let mut at = Ino::ROOT;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            if self.state.kind(at)? != Kind::Directory {
                return Ok(None);
            }
            match tree.lookup(&(at, Box::from(name)))? {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn shown(&mut self, entry: &Entry) -> Result<String> {
        let path = match self.current.path_of(entry)? {
            Some(path) => Some(path),
            None => self.committed.path_of(entry)?,
        };
        Ok(String::from_utf8_lossy(&path.unwrap_or_default()).into_owned())
    }

    /// Returns the committed objects whose attributes and content are not in the part.
    fn objects_outside(&mut self, own: &Delta, part: Part<'_>) -> Result<BTreeSet<Ino>> {
        let mut reset = BTreeSet::new();
        if part.paths.is_empty() {
            return Ok(reset);
        }
        let belongs = |path: &[u8]| part.contains(path, Tracked::Committed);
        let mut files: HashMap<Ino, BTreeSet<Entry>> = HashMap::new();
        let mut unknown = HashSet::new();
        for (ino, row) in own.inodes()? {
            let Some(before) = self.base.attr(ino)? else {
                continue;
            };
            if before.kind == Kind::Directory {
                let path = self.current.path(ino)?;
                if !path.is_some_and(|path| belongs(&path)) {
                    reset.insert(ino);
                }
                continue;
            }
            let mut names: BTreeSet<Entry> = self.edits.missing_of(ino).iter().cloned().collect();
            if let Some(place) = &row.place
                && self.committed.lookup(place)? == Some(ino)
            {
                names.insert(place.clone());
            }
            if names.len() < before.nlink as usize {
                unknown.insert(ino);
            }
            names.extend(self.edits.links_of(ino).iter().cloned());
            files.insert(ino, names);
        }
        if !unknown.is_empty() {
            self.find_names(&unknown, &mut files)?;
        }
        for (ino, names) in files {
            let (mut inside, mut outside) = (None, None);
            for name in &names {
                let path = match self.current.leads(name, ino)? {
                    Some(path) => Some(path),
                    None => self.committed.leads(name, ino)?,
                };
                let Some(path) = path else { continue };
                match belongs(&path) {
                    true => inside = Some(path),
                    false => outside = Some(path),
                }
            }
            match (inside, outside) {
                (None, _) => drop(reset.insert(ino)),
                (Some(_), None) => {}
                (Some(inside), Some(outside)) if self.has_own_row(own, ino)? => {
                    let outside = String::from_utf8_lossy(&outside).into_owned();
                    return Err(Error::NotSeparable {
                        path: String::from_utf8_lossy(&inside).into_owned(),
                        why: format!("{outside:?} is the same file, a hard link; name all links"),
                    });
                }
                (Some(_), Some(_)) => {}
            }
        }
        Ok(reset)
    }

    /// Returns true if more than the link count of a committed object changed.
    fn has_own_row(&self, own: &Delta, ino: Ino) -> Result<bool> {
        let (row, before) = (own.inode(ino)?, self.base.attr(ino)?);
        let (Some(row), Some(before)) = (row, before) else {
            return Ok(true);
        };
        let now = row_attr(row);
        Ok(row.data == DataPlace::Upper
            || row.owns_xattrs
            || (now.mode, now.uid, now.gid, now.mtime)
                != (before.mode, before.uid, before.gid, before.mtime))
    }

    /// Finds the committed names of files.
    fn find_names(
        &self,
        wanted: &HashSet<Ino>,
        found: &mut HashMap<Ino, BTreeSet<Entry>>,
    ) -> Result<()> {
        let mut pending = vec![Ino::ROOT];
        while let Some(dir) = pending.pop() {
            for (name, ino, kind) in self.base.list(dir)?.iter() {
                if kind == Kind::Directory {
                    pending.push(ino);
                } else if wanted.contains(&ino) {
                    let names = found.entry(ino).or_default();
                    names.insert((dir, Box::from(name)));
                }
            }
        }
        Ok(())
    }
}
