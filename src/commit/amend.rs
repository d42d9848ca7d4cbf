//! What of a merged view is not as in the old image: a commit that knows it need not look at the rest.
//!
//! Every object with a row, and every directory with rows, must be accounted for: it is in the new
//! tree, and all directories on the way to it are written anew; or it has no name any more. Where that
//! is not certain, there is no amendment, and the whole view is gone through instead.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nix::errno::Errno;

use super::error::{CommitError, Result};
use crate::object::{Ino, Kind};
use crate::state::{IdMap, IdRun, InodeRow};
use crate::union::{self, Edits, ImageLayer, Layer, LowerStack};

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
    pub(super) fn find(view: &Arc<LowerStack>, old: &ImageLayer) -> Result<Option<Amendment>> {
        if view.images().len() != 1 {
            return Ok(None);
        }
        let mut rows = 0;
        for layer in view.frozen() {
            rows += layer.delta().rows()?;
        }
        if rows as u64 > (old.ids().len() / PART).max(FEW) {
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

    /// Returns true if an object of the old image stays as it is there.
    pub(super) fn stays(&self, ino: Ino) -> bool {
        !self.dirs.contains(&ino) && !self.changed.contains(&ino)
    }

    /// Returns the directories that are written.
    pub(super) fn into_dirs(self) -> HashSet<Ino> {
        self.dirs
    }
}

struct Search<'a> {
    view: &'a LowerStack,
    old: &'a ImageLayer,
    edits: Edits,
    /// Reachable directories that have to be written. With one, all above it are here.
    dirs: HashSet<Ino>,
}

impl Search<'_> {
    fn run(&mut self) -> Result<Option<Amendment>> {
        let mut fresh = BTreeSet::new();
        // Names that objects of the old image have now, as far as the edits tell.
        let mut named: HashMap<Ino, Ino> = HashMap::new();
        let mut moved = Vec::new();
        for ((dir, _), row) in self.edits.rows() {
            let Some(ino) = row.target else { continue };
            named.insert(ino, *dir);
            if self.old.inode_ref(ino)?.is_none() {
                fresh.insert(ino);
            }
            // The inode of a directory names its parent, which is another one here.
            let is_elsewhere = row.target != row.below || self.edits.past_of(*dir).is_some();
            if is_elsewhere && self.kind(ino)? == Some(Kind::Directory) {
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
        let Some(lost) = self.lost()? else {
            return Ok(None);
        };
        // A directory that is nowhere is gone with all that was in it, or the rows are damaged.
        for dir in &listed {
            if self.edits.is_reachable(*dir) {
                self.write_to(*dir)?;
            } else if !lost.contains(dir) && self.old.inode_ref(*dir)?.is_some() {
                return Ok(None);
            }
        }
        let mut changed = HashSet::new();
        for ino in objects {
            let Some(before) = self.old.inode(ino)? else {
                // New: it has a name in a directory with rows, or none.
                continue;
            };
            let is_dir = before.attr.kind == Kind::Directory;
            let links = self.rows(ino)?.first().map_or(0, |row| row.nlink);
            if !is_dir && before.attr.nlink.max(links) > 1 {
                // Its other names could be anywhere.
                return Ok(None);
            }
            if lost.contains(&ino) {
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
        let Some(ids) = self.number(&fresh, &lost)? else {
            return Ok(None);
        };
        let mut files = Vec::new();
        for ino in lost {
            if self.old.is_file(ino)? {
                files.push(ino);
            }
        }
        Ok(Some(Amendment {
            dirs: std::mem::take(&mut self.dirs),
            changed,
            lost: files,
            ids,
        }))
    }

    fn kind(&self, ino: Ino) -> Result<Option<Kind>> {
        Ok(self.view.attr(ino)?.map(|attr| attr.kind))
    }

    /// Notes that a reachable directory is written, and all above it.
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

    /// Finds the directory of an object that is where its row says.
    fn place_of(&self, ino: Ino) -> Result<Option<Ino>> {
        let Some((dir, name)) = self.rows(ino)?.iter().find_map(|row| row.place.clone()) else {
            return Ok(None);
        };
        // Names lead to its directory if the name in it counts: the view is built from the root.
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

    /// The rows of an object, the topmost first.
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

    /// Finds what had a name in the old image, and has none now. `None` if that is not certain.
    fn lost(&self) -> Result<Option<BTreeSet<Ino>>> {
        let mut lost = BTreeSet::new();
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
                lost.insert(ino);
            } else {
                // It has other names, and another count of them.
                return Ok(None);
            }
        }
        Ok(Some(lost))
    }

    /// Numbers the new objects after the old ones, in the order of their identities. What is gone has
    /// inodes in the tables still, but no identity.
    fn number(&self, fresh: &BTreeSet<Ino>, gone: &BTreeSet<Ino>) -> Result<Option<IdMap>> {
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
        let gone: Vec<Ino> = gone.iter().copied().collect();
        let runs = self.old.ids().runs_without(&gone).into_iter().chain(runs);
        let ids = IdMap::from_runs(runs).map_err(|e| CommitError::Check(e.to_string()))?;
        Ok(Some(ids))
    }
}
