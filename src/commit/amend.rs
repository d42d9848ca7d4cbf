//! Finds the part of a merged view that differs from the old image, so that a commit writes only
//! that.
//!
//! Every object with a row and every directory with rows must be accounted for. Either it is in the
//! new tree, and all directories on its path are written, or it no longer has a name. If that is
//! not certain, there is no amendment, and the commit walks the whole view.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nix::errno::Errno;

use super::error::{CommitError, Result};
use crate::object::{Ino, Kind};
use crate::state::{IdMap, IdRun, InodeRow};
use crate::union::{self, Edits, ImageLayer, Layer, LowerStack};

/// An amendment is not worthwhile if more than one inode in this many has a row,
const ROWS_PART: u64 = 4;
/// unless there are at most this many rows.
const FEW_ROWS: u64 = 64;

/// The part of a view that has to be written.
#[derive(Debug)]
pub(super) struct Amendment {
    /// Directories whose listing or inode differs, and all directories above them.
    dirs: HashSet<Ino>,
    /// Other objects of the old image whose inode differs.
    changed: HashSet<Ino>,
    /// Regular files of the old image that no longer have a name.
    pub(super) removed: Vec<Ino>,
    /// The map of the new image: the inode numbers of the old image, and those of new objects.
    pub(super) ids: IdMap,
}

impl Amendment {
    /// Determines what has to be written. Returns `None` if that is not certain, or too much.
    pub(super) fn find(view: &Arc<LowerStack>, old: &ImageLayer) -> Result<Option<Amendment>> {
        if view.images().len() != 1 {
            return Ok(None);
        }
        let mut rows = 0;
        for layer in view.frozen() {
            rows += layer.delta().rows()?;
        }
        if rows as u64 > (old.ids().len() / ROWS_PART).max(FEW_ROWS) {
            return Ok(None);
        }
        let mut search = Search {
            view,
            old,
            edits: Edits::of(&**view, &view.committed())?,
            dirs: HashSet::from([Ino::ROOT]),
        };
        search.run()
    }

    /// Returns true if an object of the old image is unchanged.
    pub(super) fn is_unchanged(&self, ino: Ino) -> bool {
        !self.dirs.contains(&ino) && !self.changed.contains(&ino)
    }

    /// Returns the directories to be written.
    pub(super) fn into_dirs(self) -> HashSet<Ino> {
        self.dirs
    }
}

struct Search<'a> {
    view: &'a LowerStack,
    old: &'a ImageLayer,
    edits: Edits,
    /// Reachable directories that have to be written. Contains all directories above each.
    dirs: HashSet<Ino>,
}

impl Search<'_> {
    fn run(&mut self) -> Result<Option<Amendment>> {
        let mut fresh = BTreeSet::new();
        // The directory of each object with an edited name.
        let mut named: HashMap<Ino, Ino> = HashMap::new();
        let mut moved = Vec::new();
        for ((dir, _), row) in self.edits.rows() {
            let Some(ino) = row.target else { continue };
            named.insert(ino, *dir);
            if self.old.inode_ref(ino)?.is_none() {
                fresh.insert(ino);
            }
            // The inode of a directory contains its parent, which has changed here.
            let has_moved = row.target != row.below || self.edits.past_of(*dir).is_some();
            if has_moved && self.kind(ino)? == Some(Kind::Directory) {
                moved.push(ino);
            }
        }
        for dir in moved {
            self.write_to(dir)?;
        }
        let (mut listed, mut objects) = (HashSet::new(), HashSet::new());
        for layer in self.view.frozen() {
            listed.extend(layer.delta().dirs()?.map(|(dir, _)| dir));
            objects.extend(layer.delta().inodes()?.map(|(ino, _)| ino));
        }
        let Some(removed) = self.removed()? else {
            return Ok(None);
        };
        // A directory without a path was removed with its entries, or the rows are damaged.
        for dir in &listed {
            if self.edits.is_reachable(*dir) {
                self.write_to(*dir)?;
            } else if !removed.contains(dir) && self.old.inode_ref(*dir)?.is_some() {
                return Ok(None);
            }
        }
        let mut changed = HashSet::new();
        for ino in objects {
            let Some(before) = self.old.inode(ino)? else {
                // New: it has a name in a directory with rows, or no name.
                continue;
            };
            let is_dir = before.attr.kind == Kind::Directory;
            let links = self.rows(ino)?.first().map_or(0, |row| row.nlink);
            if !is_dir && before.attr.nlink.max(links) > 1 {
                // Its other names may be in any directory.
                return Ok(None);
            }
            if removed.contains(&ino) {
                continue;
            }
            let above = match named.get(&ino) {
                Some(above) => Some(*above),
                None if is_dir => self.edits.is_reachable(ino).then_some(ino),
                None => self.place_of(ino)?,
            };
            let Some(above) = above else {
                return Ok(None);
            };
            self.write_to(if is_dir { ino } else { above })?;
            if !is_dir {
                changed.insert(ino);
            }
        }
        let Some(ids) = self.number(&fresh, &removed)? else {
            return Ok(None);
        };
        let mut files = Vec::new();
        for ino in removed {
            if self.old.is_file(ino)? {
                files.push(ino);
            }
        }
        Ok(Some(Amendment {
            dirs: std::mem::take(&mut self.dirs),
            changed,
            removed: files,
            ids,
        }))
    }

    fn kind(&self, ino: Ino) -> Result<Option<Kind>> {
        Ok(self.view.attr(ino)?.map(|attr| attr.kind))
    }

    /// Adds a reachable directory and all directories above it to those that are written.
    fn write_to(&mut self, dir: Ino) -> Result<()> {
        let mut at = dir;
        while self.dirs.insert(at) {
            match self.view.parent(at)? {
                Some((above, _)) => at = above,
                None => break,
            }
        }
        Ok(())
    }

    /// Returns the directory of an object if the object is at the place in its row.
    fn place_of(&self, ino: Ino) -> Result<Option<Ino>> {
        let Some((dir, name)) = self.rows(ino)?.iter().find_map(|row| row.place.clone()) else {
            return Ok(None);
        };
        // The name must exist, and so must the path of its directory from the root.
        let is_there = self.view.lookup(dir, &name)? == Some(ino) && self.is_reachable(dir)?;
        Ok(is_there.then_some(dir))
    }

    fn is_reachable(&self, dir: Ino) -> Result<bool> {
        let mut above = Ino::ROOT;
        let chain = match self.view.chain(dir) {
            Err(union::Error::Posix(Errno::ESTALE)) => return Ok(false),
            chain => chain?,
        };
        for (ino, name) in chain {
            if self.view.lookup(above, &name)? != Some(ino) {
                return Ok(false);
            }
            above = ino;
        }
        Ok(true)
    }

    /// Returns the rows of an object, topmost layer first.
    fn rows(&self, ino: Ino) -> Result<Vec<&InodeRow>> {
        let rows = self
            .view
            .frozen()
            .iter()
            .map(|layer| layer.delta().inode(ino));
        Ok(rows
            .filter_map(union::Result::transpose)
            .collect::<union::Result<_>>()?)
    }

    /// Returns the objects of the old image that no longer have a name. `None` if that is not
    /// certain.
    fn removed(&self) -> Result<Option<BTreeSet<Ino>>> {
        let mut removed = BTreeSet::new();
        for ino in self.edits.lost() {
            if !self.edits.links_of(ino).is_empty() {
                continue;
            }
            let Some(before) = self.old.inode(ino)? else {
                continue;
            };
            let is_dir = before.attr.kind == Kind::Directory;
            let missing = self.edits.missing_of(ino).len();
            if is_dir || missing >= before.attr.nlink as usize {
                removed.insert(ino);
            } else {
                // It keeps other names, so its link count changes.
                return Ok(None);
            }
        }
        Ok(Some(removed))
    }

    /// Numbers the new objects after the old ones, in the order of their identities. The inodes of
    /// removed objects stay in the tables, but are removed from the map.
    fn number(&self, fresh: &BTreeSet<Ino>, removed: &BTreeSet<Ino>) -> Result<Option<IdMap>> {
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
        let removed: Vec<Ino> = removed.iter().copied().collect();
        let runs = self
            .old
            .ids()
            .runs_without(&removed)
            .into_iter()
            .chain(runs);
        let ids = IdMap::from_runs(runs).map_err(|e| CommitError::Check(e.to_string()))?;
        Ok(Some(ids))
    }
}
