//! Throwing away the changes of some paths, and looking whether rows and files agree.

mod physical;

use std::collections::{BTreeSet, HashMap, HashSet};

use super::changes::{Comparison, Entry, join};
use super::delta::row_from;
use super::stack::LowerStack;
use super::swap::base_of;
use super::{Change, Error, Invalidation, Result, State, Union, frozen};
use crate::object::{Attr, Ino, Kind};
use crate::state::{DataPlace, InodeRow, RowChange};
use physical::Physical;

impl Union {
    /// Throws away the changes at and below some paths (without a leading slash). A path that was
    /// renamed goes back where it was, whichever of its two paths is named, and what had moved into
    /// something that goes away goes back too. A hard link that goes leaves the object's other names
    /// and its content alone. Returns what was thrown away, and what the kernel must forget.
    pub fn discard_paths(&self, paths: &[Vec<u8>]) -> Result<(Vec<Change>, Vec<Invalidation>)> {
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if state
            .lower
            .layers()
            .iter()
            .any(|layer| layer.as_any().is::<super::FrozenLayer>())
        {
            return Err(Error::CommitUnfinished);
        }
        let base = base_of(&state.lower);
        let before = Comparison::new(state, &base).run()?;
        let plan = Plan::of(state, &base, paths)?;
        let (changes, physical) = plan.carry_out(state, &base)?;
        let mut stale: Vec<Invalidation> = plan
            .gone
            .iter()
            .map(|(dir, name)| Invalidation::Entry {
                dir: *dir,
                name: name.clone(),
            })
            .collect();
        let touched = plan.touched();
        stale.extend(touched.into_iter().map(Invalidation::Object));
        self.change(state, &changes)?;
        // The rows have changed: what cannot be moved now is mended at the next unclean start.
        if let Err(e) = physical.carry_out(state) {
            tracing::warn!("files of discarded changes are left in the upper directory: {e}");
        }
        state.revive_orphans()?;
        let after: HashSet<Vec<u8>> = Comparison::new(state, &base)
            .run()?
            .into_iter()
            .map(|c| c.path)
            .collect();
        let gone = before
            .into_iter()
            .filter(|change| !after.contains(&change.path))
            .collect();
        Ok((gone, stale))
    }

    /// Looks whether every row has its file; returns what is wrong, in words.
    pub fn verify_upper(&self) -> Result<Vec<String>> {
        let state = self.read();
        let mut problems = Vec::new();
        for (ino, row) in &state.delta.inodes {
            if row.data == DataPlace::Upper {
                let found = frozen::with_place(
                    &state.upper,
                    row,
                    |d| state.chain(d),
                    |place| state.upper.stat(*ino, place),
                );
                if let Err(e) = found {
                    let name = row
                        .place
                        .as_ref()
                        .map_or_else(String::new, |p| String::from_utf8_lossy(&p.1).into_owned());
                    problems.push(format!(
                        "the content of changed file {name:?} (object {ino}) is missing: {e}"
                    ));
                }
            }
        }
        problems.sort();
        Ok(problems)
    }
}

/// Which rows go, so that what remains is a tree again.
struct Plan {
    /// Names of the writable layer, links and whiteouts, that go.
    gone: BTreeSet<Entry>,
    /// Objects of the writable layer that lose their last name.
    dead: BTreeSet<Ino>,
    /// Committed objects that get their committed attributes and content back.
    reset: BTreeSet<Ino>,
    /// How many names objects lose, and how many committed ones they get back.
    lost: HashMap<Ino, u32>,
    regained: HashMap<Ino, u32>,
}

/// Finds a [`Plan`].
struct Planner<'a> {
    state: &'a State,
    base: &'a LowerStack,
    comparison: Comparison<'a>,
    plan: Plan,
    /// Links of the writable layer, by object.
    links: HashMap<Ino, Vec<Entry>>,
    /// Committed names that the writable layer hides, by object.
    hidden: HashMap<Ino, Vec<Entry>>,
    pending: Vec<Entry>,
}

impl Plan {
    fn of(state: &State, base: &LowerStack, paths: &[Vec<u8>]) -> Result<Plan> {
        let mut planner = Planner {
            state,
            base,
            comparison: Comparison::new(state, base),
            plan: Plan {
                gone: BTreeSet::new(),
                dead: BTreeSet::new(),
                reset: BTreeSet::new(),
                lost: HashMap::new(),
                regained: HashMap::new(),
            },
            links: HashMap::new(),
            hidden: HashMap::new(),
            pending: Vec::new(),
        };
        for (dir, edits) in &state.delta.dirs {
            for (name, target) in edits.iter() {
                let entry = (*dir, Box::from(name));
                let below = committed(base, *dir, name)?;
                if let Some(below) = below
                    && Some(below) != target
                {
                    planner.hidden.entry(below).or_default().push(entry.clone());
                }
                if let Some(target) = target {
                    planner.links.entry(target).or_default().push(entry);
                }
            }
        }
        planner.choose(paths)?;
        loop {
            planner.close()?;
            if !planner.untie()? {
                return Ok(planner.plan);
            }
        }
    }

    fn touched(&self) -> BTreeSet<Ino> {
        let mut all: BTreeSet<Ino> = self.gone.iter().map(|(dir, _)| *dir).collect();
        all.extend(self.lost.keys());
        all.extend(self.regained.keys());
        all.extend(&self.reset);
        all.extend(&self.dead);
        all
    }

    fn has_kept_entries(&self, state: &State, dir: Ino) -> bool {
        state.delta.dirs.get(&dir).is_some_and(|edits| {
            edits
                .iter()
                .any(|(name, _)| !self.gone.contains(&(dir, Box::from(name))))
        })
    }

    /// The changes of rows, and what is to be done to files after them.
    fn carry_out(
        &self,
        state: &State,
        base: &LowerStack,
    ) -> Result<(Vec<RowChange<'static>>, Physical)> {
        let mut changes = Vec::new();
        let mut physical = Physical::default();
        for (dir, name) in &self.gone {
            changes.push(RowChange::drop_entry(*dir, name.to_vec()));
        }
        for ino in self.touched() {
            let row = state.delta.inodes.get(&ino);
            if self.dead.contains(&ino) {
                if let Some(row) = row {
                    physical.remove(state, ino, row)?;
                    changes.push(RowChange::DropInode(ino));
                    changes.push(RowChange::DropXattrs(ino));
                    if row.kind == Kind::Directory {
                        changes.push(RowChange::DropEntriesOf(ino));
                    }
                }
                continue;
            }
            let before = base.attr(ino)?;
            match (row, before) {
                (Some(row), before) if row.kind == Kind::Directory => {
                    self.directory(state, base, ino, row, before, &mut changes, &mut physical)?;
                }
                (None, Some(before)) if before.kind == Kind::Directory => {}
                (row, before) => {
                    self.other(state, base, ino, row, before, &mut changes, &mut physical)?;
                }
            }
        }
        Ok((changes, physical))
    }

    #[allow(clippy::too_many_arguments, reason = "two results")]
    fn directory(
        &self,
        state: &State,
        base: &LowerStack,
        ino: Ino,
        row: &InodeRow,
        before: Option<Attr>,
        changes: &mut Vec<RowChange<'static>>,
        physical: &mut Physical,
    ) -> Result<()> {
        let mut new = row.clone();
        let of_this = (ino, Box::from(&b""[..]));
        for (dir, name) in self.gone.range(of_this..) {
            if *dir != ino {
                break;
            }
            let edits = state.delta.dirs.get(dir);
            if let Some(Some(target)) = edits.and_then(|edits| edits.get(name))
                && state.kind(target)? == Kind::Directory
            {
                new.nlink = new.nlink.saturating_sub(1);
            }
            if let Some(below) = base.lookup(*dir, name)?
                && base.attr(below)?.is_some_and(|a| a.kind == Kind::Directory)
            {
                new.nlink += 1;
            }
        }
        let Some(before) = before else {
            changes.push(RowChange::put_inode(ino, new));
            return Ok(());
        };
        let place = base.parent(ino)?;
        if self.lost.contains_key(&ino) {
            if let (Some(from), Some(to)) = (&row.place, &place) {
                physical.move_back(state, ino, from, to)?;
            }
            new.place = place.clone();
        }
        let has_kept = self.has_kept_entries(state, ino);
        if self.reset.contains(&ino) {
            (new.mode, new.uid, new.gid) = (before.mode, before.uid, before.gid);
            new.owns_xattrs = false;
            changes.push(RowChange::DropXattrs(ino));
            if !has_kept {
                (new.atime, new.mtime, new.ctime) = (before.atime, before.mtime, before.ctime);
            }
        }
        let same = (new.mode, new.uid, new.gid) == (before.mode, before.uid, before.gid);
        if !has_kept && same && !new.owns_xattrs && (new.place == place || ino == Ino::ROOT) {
            changes.push(RowChange::DropInode(ino));
        } else {
            changes.push(RowChange::put_inode(ino, new));
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "two results")]
    fn other(
        &self,
        state: &State,
        base: &LowerStack,
        ino: Ino,
        row: Option<&InodeRow>,
        before: Option<Attr>,
        changes: &mut Vec<RowChange<'static>>,
        physical: &mut Physical,
    ) -> Result<()> {
        let count = |names: &HashMap<Ino, u32>| names.get(&ino).copied().unwrap_or(0);
        // Without a row it had no name left, since its names change now.
        let nlink = (row.map_or(0, |row| row.nlink) + count(&self.regained))
            .saturating_sub(count(&self.lost));
        let place_goes = |row: &InodeRow| {
            let place = row.place.as_ref();
            place.is_some_and(|place| self.gone.contains(place))
        };
        match (row, before) {
            (Some(row), before) if before.is_none() || !self.reset.contains(&ino) => {
                let mut new = row.clone();
                new.nlink = nlink;
                if place_goes(row) {
                    physical.detach(state, ino, row)?;
                    new.place = None;
                }
                let pristine = before.is_some_and(|before| {
                    let now = super::delta::row_attr(row);
                    row.data == DataPlace::Lower
                        && !row.owns_xattrs
                        && nlink == before.nlink
                        && (now.mode, now.uid, now.gid, now.mtime)
                            == (before.mode, before.uid, before.gid, before.mtime)
                });
                changes.push(if pristine {
                    RowChange::DropInode(ino)
                } else {
                    RowChange::put_inode(ino, new)
                });
            }
            (row, Some(before)) => {
                if let Some(row) = row {
                    physical.remove(state, ino, row)?;
                    changes.push(RowChange::DropXattrs(ino));
                    changes.push(RowChange::DropInode(ino));
                }
                if nlink != before.nlink {
                    let target = match before.kind {
                        Kind::Symlink => Some(base.read_link(ino)?),
                        _ => None,
                    };
                    let mut new = row_from(&before, target, None);
                    new.nlink = nlink;
                    changes.push(RowChange::put_inode(ino, new));
                }
            }
            (_, None) => {}
        }
        Ok(())
    }
}

impl Planner<'_> {
    /// The names that are chosen by their paths, now or when they were committed.
    fn choose(&mut self, paths: &[Vec<u8>]) -> Result<()> {
        let within = |path: &[u8]| {
            paths.iter().any(|p| {
                p.is_empty()
                    || path == &p[..]
                    || (path.starts_with(p) && path.get(p.len()) == Some(&b'/'))
            })
        };
        let (state, base) = (self.state, self.base);
        for (dir, edits) in &state.delta.dirs {
            let Some(above) = self.comparison.path_of(*dir)? else {
                continue;
            };
            let was_above = self.committed_path(*dir)?;
            for (name, target) in edits.iter() {
                let is_chosen = within(&join(&above, name))
                    || was_above
                        .as_ref()
                        .is_some_and(|was| within(&join(was, name)));
                if !is_chosen {
                    continue;
                }
                self.pending.push((*dir, Box::from(name)));
                self.plan.reset.extend(committed(base, *dir, name)?);
                if let Some(target) = target
                    && (self.hidden.contains_key(&target) || base.parent(target)?.is_some())
                {
                    self.plan.reset.insert(target);
                }
            }
        }
        for (ino, row) in &state.delta.inodes {
            if base.attr(*ino)?.is_none() {
                continue;
            }
            let is_chosen = if row.kind == Kind::Directory {
                let now = self.comparison.path_of(*ino)?;
                let was = self.committed_path(*ino)?;
                now.is_some_and(|path| within(&path)) || was.is_some_and(|path| within(&path))
            } else if let Some((dir, name)) = &row.place {
                let is_committed = committed(base, *dir, name)? == Some(*ino);
                let now = self.comparison.path_of(*dir)?;
                let was = self.committed_path(*dir)?;
                is_committed
                    && (now.is_some_and(|above| within(&join(&above, name)))
                        || was.is_some_and(|above| within(&join(&above, name))))
            } else {
                false
            };
            if is_chosen {
                self.plan.reset.insert(*ino);
            }
        }
        // A file may have been changed by another of its names than the chosen one.
        let mut linked = HashSet::new();
        for (ino, row) in &state.delta.inodes {
            if row.kind != Kind::Directory
                && !self.plan.reset.contains(ino)
                && base.attr(*ino)?.is_some_and(|attr| attr.nlink > 1)
            {
                linked.insert(*ino);
            }
        }
        if !linked.is_empty() {
            for path in paths {
                self.reset_below(path, &linked)?;
            }
        }
        Ok(())
    }

    /// Resets those of some objects that have a committed name at or below a path.
    fn reset_below(&mut self, path: &[u8], wanted: &HashSet<Ino>) -> Result<()> {
        let (state, base) = (self.state, self.base);
        let mut pending = Vec::new();
        for live in [false, true] {
            let mut at = Some(Ino::ROOT);
            for name in path
                .split(|byte| *byte == b'/')
                .filter(|name| !name.is_empty())
            {
                let Some(dir) = at else { break };
                let was = committed(base, dir, name)?;
                at = if live { state.lookup(dir, name)? } else { was };
                if at.is_some() && at == was {
                    continue;
                }
                if live
                    && let Some(ino) = at
                    && state.kind(ino)? == Kind::Directory
                {
                    continue;
                }
                at = None;
            }
            pending.extend(at);
        }
        while let Some(ino) = pending.pop() {
            if wanted.contains(&ino) {
                self.plan.reset.insert(ino);
            }
            if base
                .attr(ino)?
                .is_some_and(|attr| attr.kind == Kind::Directory)
            {
                pending.extend(base.list(ino)?.iter().map(|(_, child, _)| child));
            }
        }
        Ok(())
    }

    fn committed_path(&self, dir: Ino) -> Result<Option<Vec<u8>>> {
        match self.base.attr(dir)? {
            Some(attr) if attr.kind == Kind::Directory => {
                let chain = self.base.chain(dir)?;
                let path = chain
                    .iter()
                    .fold(Vec::new(), |path, (_, name)| join(&path, name));
                Ok(Some(path))
            }
            _ => Ok(None),
        }
    }

    /// Follows what each name that goes brings with it.
    fn close(&mut self) -> Result<()> {
        while let Some(entry) = self.pending.pop() {
            if !self.plan.gone.insert(entry.clone()) {
                continue;
            }
            let (dir, name) = &entry;
            let edits = self.state.delta.dirs.get(dir);
            let target = edits.and_then(|edits| edits.get(name)).flatten();
            let below = committed(self.base, *dir, name)?;
            if target == below {
                continue;
            }
            if let Some(target) = target {
                self.loses(target)?;
            }
            if let Some(below) = below {
                self.regains(below)?;
            }
        }
        Ok(())
    }

    fn loses(&mut self, ino: Ino) -> Result<()> {
        *self.plan.lost.entry(ino).or_default() += 1;
        let links = self.links.get(&ino);
        let is_last = links.is_none_or(|all| all.iter().all(|e| self.plan.gone.contains(e)));
        let Some(before) = self.base.attr(ino)? else {
            if is_last {
                self.plan.dead.insert(ino);
                if let Some(edits) = self.state.delta.dirs.get(&ino) {
                    let all = edits.iter().map(|(name, _)| (ino, Box::from(name)));
                    self.pending.extend(all);
                }
            }
            return Ok(());
        };
        if let Some(hidden) = self.hidden.get(&ino) {
            self.pending.extend(hidden.iter().cloned());
            return Ok(());
        }
        if before.kind == Kind::Directory {
            if let Some((dir, _)) = self.base.parent(ino)? {
                self.bring_back(dir)?;
            }
            return Ok(());
        }
        let made = links.map_or(0, Vec::len);
        let nlink = self.state.delta.inodes.get(&ino).map_or(0, |row| row.nlink);
        if is_last && nlink as usize <= made {
            // Its committed names were in directories that are gone.
            if let Some(dir) = self.search(ino)? {
                self.bring_back(dir)?;
            }
        }
        Ok(())
    }

    /// A committed name leads to the object again.
    fn regains(&mut self, ino: Ino) -> Result<()> {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            *self.plan.regained.entry(ino).or_default() += 1;
            if let Some(links) = self.links.get(&ino) {
                self.pending.extend(links.iter().cloned());
                continue;
            }
            let is_dir = self
                .base
                .attr(ino)?
                .is_some_and(|attr| attr.kind == Kind::Directory);
            if is_dir && self.comparison.path_of(ino)?.is_none() {
                // It was gone with all that was in it.
                for (_, child, _) in self.base.list(ino)?.iter() {
                    pending.push(child);
                }
            }
        }
        Ok(())
    }

    /// Sees to it that a committed directory is there.
    fn bring_back(&mut self, dir: Ino) -> Result<()> {
        let mut at = dir;
        while at != Ino::ROOT && self.comparison.path_of(at)?.is_none() {
            let Some((above, name)) = self.base.parent(at)? else {
                return Ok(());
            };
            let edits = self.state.delta.dirs.get(&above);
            if edits.is_some_and(|edits| edits.get(&name).is_some()) {
                self.pending.push((above, name));
                return Ok(());
            }
            at = above;
        }
        Ok(())
    }

    /// Looks for a committed directory with a name of the object. Cost follows the image, but this is
    /// asked only for files that had moved out of a directory that was then removed.
    fn search(&self, ino: Ino) -> Result<Option<Ino>> {
        let mut pending = vec![Ino::ROOT];
        while let Some(dir) = pending.pop() {
            for (_, child, kind) in self.base.list(dir)?.iter() {
                if child == ino {
                    return Ok(Some(dir));
                }
                if kind == Kind::Directory {
                    pending.push(child);
                }
            }
        }
        Ok(None)
    }

    /// Directories that go back may close a ring with directories that were to stay where they are:
    /// these go back too. Returns true if there is more to close.
    fn untie(&mut self) -> Result<bool> {
        let links_gone = |plan: &Plan, ino: Ino, links: &HashMap<Ino, Vec<Entry>>| {
            links
                .get(&ino)
                .is_none_or(|all| all.iter().all(|e| plan.gone.contains(e)))
        };
        let mut starts: Vec<Ino> = self.plan.regained.keys().copied().collect();
        starts.sort_unstable();
        for start in starts {
            let mut seen = BTreeSet::new();
            let mut at = start;
            while at != Ino::ROOT && seen.insert(at) {
                let goes_back = links_gone(&self.plan, at, &self.links);
                let up = if goes_back && self.base.attr(at)?.is_some() {
                    self.base.parent(at)?
                } else {
                    self.state.parent(at)?
                };
                match up {
                    Some((above, _)) => at = above,
                    None => break,
                }
            }
            if at == Ino::ROOT || !seen.contains(&at) {
                continue;
            }
            for ino in seen {
                let kept = self.links.get(&ino).into_iter().flatten();
                let kept = kept.filter(|e| !self.plan.gone.contains(*e)).cloned();
                self.pending.extend(kept);
            }
            if !self.pending.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What a name led to when it was committed.
fn committed(base: &LowerStack, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
    match base.attr(dir)? {
        Some(attr) if attr.kind == Kind::Directory => base.lookup(dir, name),
        _ => Ok(None),
    }
}
