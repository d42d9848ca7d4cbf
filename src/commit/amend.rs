//! What of a merged view is not as in the old image, found from the rows of the frozen layers alone: a
//! commit that knows it need not look at all the rest.
//!
//! Every object with a row, and every directory with rows, must be accounted for: it is in the new
//! tree, and all directories on the way to it are written anew; or it has no name any more. Where that
//! is not certain, there is no amendment, and the whole view is gone through instead.

use std::collections::{HashMap, HashSet};

use super::error::{CommitError, Result};
use crate::object::{Ino, Kind};
use crate::state::{IdMap, IdRun, InodeRow};
use crate::union::{FrozenLayer, ImageLayer, Layer, Lookup, LowerStack};

/// At most this part of the inodes may have rows: with more, tables written whole are better.
const PART: u64 = 4;
/// But so many rows are always few.
const FEW: u64 = 64;

/// The part of a view that has to be written.
#[derive(Debug)]
pub(super) struct Amendment {
    /// Directories with another listing or another inode, and all on the way to them.
    dirs: HashSet<Ino>,
    /// Other objects of the old image with another inode.
    changed: HashSet<Ino>,
    /// Regular files of the old image that are gone.
    pub(super) lost: Vec<Ino>,
    /// The identities of the old image's inodes and of the new ones.
    pub(super) ids: IdMap,
}

impl Amendment {
    /// Finds out what has to be written. `None` if that is not certain, or too much.
    pub(super) fn find(view: &LowerStack, old: &ImageLayer) -> Result<Option<Amendment>> {
        let frozen: Vec<&FrozenLayer> = view.frozen().iter().map(|layer| &**layer).collect();
        if view.images().len() != 1 {
            return Ok(None);
        }
        let rows: usize = frozen.iter().map(|layer| layer.delta().rows()).sum();
        if rows as u64 > (old.ids().len() / PART).max(FEW) {
            return Ok(None);
        }
        let mut search = Search {
            view,
            old,
            frozen,
            reachable: HashMap::from([(Ino::ROOT, true)]),
            dirs: HashSet::from([Ino::ROOT]),
            named: HashSet::new(),
            lost: HashSet::new(),
        };
        search.run()
    }

    /// Returns true if an object of the old image stays as it is there.
    pub(super) fn stays(&self, ino: Ino) -> bool {
        !self.dirs.contains(&ino) && !self.changed.contains(&ino)
    }

    /// Directories that are written.
    pub(super) fn dirs(&self) -> &HashSet<Ino> {
        &self.dirs
    }
}

struct Search<'a> {
    view: &'a LowerStack,
    old: &'a ImageLayer,
    frozen: Vec<&'a FrozenLayer>,
    /// Directories, by whether there is a way to them from the root.
    reachable: HashMap<Ino, bool>,
    /// Reachable directories that have to be written. With one, all above it are here.
    dirs: HashSet<Ino>,
    /// What those of them that have rows name.
    named: HashSet<Ino>,
    /// Objects of the old image whose name there is gone, and that are not `named`.
    lost: HashSet<Ino>,
}

impl Search<'_> {
    fn run(&mut self) -> Result<Option<Amendment>> {
        let listed: HashSet<Ino> = self
            .frozen
            .iter()
            .flat_map(|layer| layer.delta().dirs.keys().copied())
            .collect();
        for dir in &listed {
            self.reach(*dir)?;
        }
        let objects: HashSet<Ino> = self
            .frozen
            .iter()
            .flat_map(|layer| layer.delta().inodes.keys().copied())
            .collect();
        let mut fresh = Vec::new();
        self.name(&listed, &mut fresh)?;
        self.lose(&listed)?;

        let mut changed = HashSet::new();
        for ino in objects {
            let Some(before) = self.old.inode(ino)? else {
                // New: it has a name in a directory with rows, or none.
                continue;
            };
            let is_dir = before.attr.kind == Kind::Directory;
            let links = self.rows(ino).next().map_or(0, |row| row.nlink);
            if !is_dir && before.attr.nlink.max(links) > 1 {
                // Its other names could be anywhere.
                return Ok(None);
            }
            if self.lost.contains(&ino) {
                continue;
            }
            if is_dir {
                if !self.reach(ino)? {
                    return Ok(None);
                }
                continue;
            }
            if !self.named.contains(&ino) && !self.reach_place(ino)? {
                return Ok(None);
            }
            changed.insert(ino);
        }
        // Directories that are nowhere: gone with all that was in them, or a riddle.
        for dir in &listed {
            let is_gone = self.lost.contains(dir) || self.old.inode_ref(*dir)?.is_none();
            if self.named.contains(dir) && !self.dirs.contains(dir)
                || !self.dirs.contains(dir) && !is_gone
            {
                return Ok(None);
            }
        }
        let mut gone: Vec<Ino> = self.lost.drain().collect();
        gone.sort_unstable();
        let Some(ids) = self.number(fresh, &gone)? else {
            return Ok(None);
        };
        let mut lost = Vec::new();
        for ino in gone {
            if self.old.is_file(ino)? {
                lost.push(ino);
            }
        }
        Ok(Some(Amendment {
            dirs: std::mem::take(&mut self.dirs),
            changed,
            lost,
            ids,
        }))
    }

    /// Returns true if there is a way from the root to a directory. Then all on it are to be written.
    fn reach(&mut self, dir: Ino) -> Result<bool> {
        let mut path = HashSet::new();
        let mut at = dir;
        let reached = loop {
            if let Some(known) = self.reachable.get(&at) {
                break *known;
            }
            let Some((parent, name)) = self.view.parent(at)? else {
                break false;
            };
            if self.view.lookup(parent, &name)? != Some(at) || !path.insert(at) {
                break false;
            }
            at = parent;
        };
        self.reachable.insert(dir, reached);
        for ino in path {
            self.reachable.insert(ino, reached);
        }
        if reached {
            let mut at = dir;
            while self.dirs.insert(at) {
                match self.view.parent(at)? {
                    Some((parent, _)) => at = parent,
                    None => break,
                }
            }
        }
        Ok(reached)
    }

    /// Finds the directory of an object that is nowhere else but where its row says.
    fn reach_place(&mut self, ino: Ino) -> Result<bool> {
        let Some((dir, name)) = self.rows(ino).find_map(|row| row.place.clone()) else {
            return Ok(false);
        };
        Ok(self.view.lookup(dir, &name)? == Some(ino) && self.reach(dir)?)
    }

    /// The rows of an object, the topmost first.
    fn rows(&self, ino: Ino) -> impl Iterator<Item = &InodeRow> {
        let frozen = self.frozen.iter();
        frozen.filter_map(move |layer| layer.delta().inodes.get(&ino))
    }

    /// Goes through the directories with rows: what has a name there, and what of it is new.
    fn name(&mut self, listed: &HashSet<Ino>, fresh: &mut Vec<Ino>) -> Result<()> {
        let mut pending: Vec<Ino> = listed.iter().copied().collect();
        pending.retain(|dir| self.dirs.contains(dir));
        let mut met: HashSet<Ino> = pending.iter().copied().collect();
        while let Some(dir) = pending.pop() {
            for (name, ino, kind) in self.view.list(dir)?.iter() {
                self.named.insert(ino);
                let is_new = self.old.inode_ref(ino)?.is_none();
                if is_new {
                    fresh.push(ino);
                }
                // New directories without rows are empty; old ones may have come from elsewhere, and
                // an inode of a directory names the parent.
                let came =
                    |layer: &&FrozenLayer| layer.delta().lookup(dir, name) == Lookup::Is(ino);
                if kind == Kind::Directory && (is_new || self.frozen.iter().any(came)) {
                    self.reachable.insert(ino, true);
                    self.dirs.insert(ino);
                    if is_new && met.insert(ino) {
                        pending.push(ino);
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds what had a name in the old image, and has none now.
    fn lose(&mut self, listed: &HashSet<Ino>) -> Result<()> {
        let mut pending = Vec::new();
        for dir in listed {
            for layer in &self.frozen {
                let Some(rows) = layer.delta().dirs.get(dir) else {
                    continue;
                };
                for (name, _) in rows.iter() {
                    if let Lookup::Is(before) = self.old.lookup(*dir, name)?
                        && !self.named.contains(&before)
                    {
                        pending.push(before);
                    }
                }
            }
        }
        while let Some(ino) = pending.pop() {
            let before = self.old.inode(ino)?;
            let is_dir = before.is_some_and(|before| before.attr.kind == Kind::Directory);
            if !self.lost.insert(ino) || !is_dir {
                continue;
            }
            for (_, target) in self.old.list(ino)?.unwrap_or_default() {
                if let Some((below, _)) = target
                    && !self.named.contains(&below)
                {
                    pending.push(below);
                }
            }
        }
        Ok(())
    }

    /// Numbers the new objects after the old ones, in the order of their identities. What is gone has
    /// inodes in the tables still, but is nobody any more; it is sorted.
    fn number(&self, mut fresh: Vec<Ino>, gone: &[Ino]) -> Result<Option<IdMap>> {
        fresh.sort_unstable();
        fresh.dedup();
        let first = self.old.image().superblock().inodes;
        let fits = u32::try_from(fresh.len())
            .ok()
            .and_then(|new| first.checked_add(new))
            .is_some_and(|last| last < u32::MAX - 2);
        if !fits {
            return Ok(None);
        }
        let runs = fresh.iter().zip(first + 1..).map(|(ino, number)| IdRun {
            first_number: number,
            first_ino: ino.0,
            count: 1,
        });
        let runs = self.old.ids().runs_without(gone).into_iter().chain(runs);
        let ids = IdMap::from_runs(runs).map_err(|e| CommitError::Check(e.to_string()))?;
        Ok(Some(ids))
    }
}
