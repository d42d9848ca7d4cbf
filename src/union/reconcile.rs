//! Repairs an upper layer whose rows and files differ: after a crash, in a copy of the store, or
//! after files were changed by hand.
//!
//! Rows decide which objects exist. Files are moved to the places of their rows, and a file without
//! a row is moved to the strays directory, or removed if it is in `work`. Repairing again changes
//! nothing more.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;

use super::delta::Delta;
use super::dir_check::parent;
use super::file_check::{compare_files, is_kind_of};
use super::layer::chain;
use super::stack::LowerStack;
use super::{Error, Invalidation, Lookup, Result, Union};
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, InodeRow, LayerId, RowChange, StateDb};
use crate::upper::{Found, LayerPath, Part, UpperDir};

/// What was repaired.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// The number of files that were moved to their places, after an interrupted rename.
    pub moved: usize,
    /// The number of files without a row that were moved to the strays directory, after an
    /// interrupted creation or removal.
    pub set_aside: usize,
    /// Files whose content never reached the disk, by their paths in the rows. The lower layers are
    /// visible at these paths again.
    pub lost: Vec<PathBuf>,
    /// The number of rows whose file has another host inode number, because the store was copied.
    pub renumbered: usize,
    /// What the kernel must forget, if the view is mounted.
    pub stale: Vec<Invalidation>,
}

impl Reconciled {
    /// Adds the repairs of another layer.
    pub(super) fn add(&mut self, other: Reconciled) {
        self.moved += other.moved;
        self.set_aside += other.set_aside;
        self.renumbered += other.renumbered;
        self.lost.extend(other.lost);
        self.stale.extend(other.stale);
    }

    /// Returns true if nothing had to be repaired.
    pub fn is_empty(&self) -> bool {
        *self == Reconciled::default()
    }
}

/// Whether host inode numbers identify the files of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostInodes {
    /// They do.
    Valid,
    /// The store was copied, so the files have other numbers. Only paths identify them.
    Copied,
}

/// Compares the rows of a layer with the files of its directory and repairs the differences.
pub(super) fn reconcile(
    db: &StateDb,
    layer: LayerId,
    delta: &mut Delta,
    upper: &UpperDir,
    lower: &LowerStack,
    host_inodes: HostInodes,
) -> Result<Reconciled> {
    let mut repair = Repair::new(delta, upper, lower)?;
    // Files at their places first, so that no other row takes one of them.
    let elsewhere = repair.claim_by_path()?;
    let missing = match host_inodes {
        HostInodes::Valid => repair.claim_by_inode(elsewhere),
        HostInodes::Copied => elsewhere,
    };
    for object in missing {
        repair.repair_missing(object)?;
    }
    repair.remove_unclaimed()?;
    repair.move_misplaced()?;
    repair.restore_symlinks()?;
    let Repair {
        mut done, changes, ..
    } = repair;
    if !changes.is_empty() {
        delta.change(&changes, || Ok(db.apply(layer, &changes)?))?;
    }
    done.stale = changes.iter().filter_map(invalidation).collect();
    done.lost.sort_unstable();
    Ok(done)
}

/// An object whose content is not at its place, with the path of that place.
struct Missing {
    ino: Ino,
    row: InodeRow,
    path: LayerPath,
}

/// An object whose content is at another path.
struct Misplaced {
    ino: Ino,
    row: InodeRow,
    found: Found,
}

/// A repair in progress. The rows are changed at its end, in one transaction.
struct Repair<'a> {
    delta: &'a Delta,
    upper: &'a UpperDir,
    lower: &'a LowerStack,
    /// Files to which no row refers yet.
    unclaimed: HashMap<LayerPath, Found>,
    by_backing: HashMap<u64, LayerPath>,
    /// Files that must be moved, by their current path.
    misplaced: HashMap<LayerPath, Misplaced>,
    /// Symbolic links that must be created: each is only a copy of its row.
    symlinks: Vec<(Ino, InodeRow)>,
    changes: Vec<RowChange<'static>>,
    done: Reconciled,
}

impl<'a> Repair<'a> {
    fn new(delta: &'a Delta, upper: &'a UpperDir, lower: &'a LowerStack) -> Result<Repair<'a>> {
        let mut unclaimed = HashMap::new();
        let mut by_backing = HashMap::new();
        for found in upper.scan()? {
            by_backing.insert(found.backing_ino, found.path.clone());
            unclaimed.insert(found.path.clone(), found);
        }
        Ok(Repair {
            delta,
            upper,
            lower,
            unclaimed,
            by_backing,
            misplaced: HashMap::new(),
            symlinks: Vec::new(),
            changes: Vec::new(),
            done: Reconciled::default(),
        })
    }

    fn chain(&self, dir: Ino) -> Result<Vec<(Ino, Box<[u8]>)>> {
        chain(dir, |dir| parent(self.delta, self.lower, dir))
    }

    /// Claims the files at the places of their rows. Returns the other objects with content.
    fn claim_by_path(&mut self) -> Result<Vec<Missing>> {
        let mut elsewhere = Vec::new();
        let delta = self.delta;
        for (ino, row) in delta.inodes()? {
            if row.data != DataPlace::Upper {
                continue;
            }
            let mut row = row.clone();
            let path = match self.path_of_place(&row)? {
                Some(path) => path,
                None => {
                    if row.place.take().is_some() {
                        self.changes.push(RowChange::put_inode(ino, row.clone()));
                    }
                    LayerPath {
                        part: Part::Work,
                        names: vec![Box::from(ino.to_string().as_bytes())],
                    }
                }
            };
            match self.unclaimed.get(&path) {
                Some(found)
                    if found.backing_ino == row.backing_ino && is_kind_of(row.kind, found.kind) =>
                {
                    self.unclaimed.remove(&path);
                }
                _ => elsewhere.push(Missing { ino, row, path }),
            }
        }
        Ok(elsewhere)
    }

    /// Returns the path of an object's place, or `None` if it has none or if the directory was
    /// removed.
    fn path_of_place(&self, row: &InodeRow) -> Result<Option<LayerPath>> {
        let Some((dir, name)) = &row.place else {
            return Ok(None);
        };
        let chain = match self.chain(*dir) {
            Err(Error::Posix(Errno::ESTALE)) => return Ok(None),
            chain => chain?,
        };
        let above = chain.into_iter().map(|(_, name)| name);
        Ok(Some(LayerPath {
            part: Part::Upper,
            names: above.chain([name.clone()]).collect(),
        }))
    }

    /// Claims files at other paths that have the host inode numbers of rows. Returns the objects
    /// whose file is missing.
    fn claim_by_inode(&mut self, elsewhere: Vec<Missing>) -> Vec<Missing> {
        let mut missing = Vec::new();
        for object in elsewhere {
            let path = self.by_backing.get(&object.row.backing_ino).filter(|path| {
                let found = self.unclaimed.get(*path);
                found.is_some_and(|found| is_kind_of(object.row.kind, found.kind))
            });
            match path.and_then(|path| self.unclaimed.remove_entry(path)) {
                Some((path, found)) => {
                    let Missing { ino, row, .. } = object;
                    self.misplaced.insert(path, Misplaced { ino, row, found });
                }
                None => missing.push(object),
            }
        }
        missing
    }

    fn repair_missing(&mut self, object: Missing) -> Result<()> {
        let Missing { ino, mut row, path } = object;
        let (delta, lower) = (self.delta, self.lower);
        let is_there = self
            .unclaimed
            .get(&path)
            .is_some_and(|found| is_kind_of(row.kind, found.kind));
        if let Some(found) = is_there.then(|| self.unclaimed.remove(&path)).flatten() {
            row.backing_ino = found.backing_ino;
            self.done.renumbered += 1;
            self.changes.push(RowChange::put_inode(ino, row));
            return Ok(());
        }
        let there = self.misplaced.get(&path);
        if let Some(renaming) = interrupted_rename(delta, lower, ino, &row, there)? {
            self.misplaced.remove(&path);
            self.done.moved += 1;
            self.changes.extend(renaming);
            return Ok(());
        }
        if row.kind == Kind::Symlink {
            self.symlinks.push((ino, row));
            return Ok(());
        }
        self.done.lost.push(self.shown_path(ino, &path));
        if row.kind == Kind::File && lower.attr(ino)?.is_some() {
            row.data = DataPlace::Lower;
            self.changes.push(RowChange::put_inode(ino, row));
            return Ok(());
        }
        for (dir, entries) in delta.dirs()? {
            for (name, _) in entries.iter().filter(|(_, target)| *target == Some(ino)) {
                let change = match reveals_file(delta, lower, dir, name)? {
                    true => RowChange::drop_entry(dir, name.to_vec()),
                    false => RowChange::put_entry(dir, name.to_vec(), None),
                };
                self.changes.push(change);
            }
        }
        self.changes.push(RowChange::DropInode(ino));
        self.changes.push(RowChange::DropXattrs(ino));
        Ok(())
    }

    /// Removes files without a row.
    fn remove_unclaimed(&mut self) -> Result<()> {
        for found in self.unclaimed.values() {
            match found.path.part {
                // An incomplete copy, or the content of a removed name.
                Part::Work => self.upper.remove_found(found)?,
                Part::Upper => {
                    self.upper.set_found_aside(found)?;
                    self.done.set_aside += 1;
                }
            }
        }
        Ok(())
    }

    /// Moves files to their places, through `work`, because two of them may have exchanged theirs.
    fn move_misplaced(&mut self) -> Result<()> {
        for Misplaced { ino, found, .. } in self.misplaced.values() {
            self.upper.take_to_work(found, *ino)?;
        }
        for Misplaced { ino, row, .. } in self.misplaced.values() {
            if let Some((dir, name)) = &row.place {
                let fd = self.upper.create_dir(&self.chain(*dir)?)?;
                self.upper.place(*ino, fd.as_fd(), name)?;
            }
            self.done.moved += 1;
        }
        Ok(())
    }

    fn restore_symlinks(&mut self) -> Result<()> {
        for (ino, mut row) in std::mem::take(&mut self.symlinks) {
            if let (Some((dir, name)), Some(target)) = (row.place.clone(), row.target.clone()) {
                let fd = self.upper.create_dir(&self.chain(dir)?)?;
                self.upper.create_symlink(fd.as_fd(), &name, &target)?;
                row.backing_ino = self.upper.backing_ino(fd.as_fd(), &name)?;
            } else {
                row.data = DataPlace::Lower;
            }
            self.done.renumbered += 1;
            self.changes.push(RowChange::put_inode(ino, row));
        }
        Ok(())
    }

    /// Returns a path of an object in the merged view, for a message. `path` is that of its
    /// content.
    fn shown_path(&self, ino: Ino, path: &LayerPath) -> PathBuf {
        let mut names = path.names.clone();
        if path.part == Part::Work {
            // It has no place, but may have names.
            let mut entries = self.delta.loaded_dirs().flat_map(|(dir, entries)| {
                let named = entries.iter().filter(|(_, target)| *target == Some(ino));
                named.map(move |(name, _)| (dir, Box::from(name)))
            });
            names = entries
                .find_map(|(dir, name)| {
                    let above = self.chain(dir).ok()?.into_iter().map(|(_, name)| name);
                    Some(above.chain([name]).collect())
                })
                .unwrap_or_else(|| vec![Box::from(format!("(object {ino})").as_bytes())]);
        }
        PathBuf::from(OsString::from_vec(names.join(&b'/')))
    }
}

fn invalidation(change: &RowChange<'_>) -> Option<Invalidation> {
    match change {
        RowChange::PutInode(ino, _) | RowChange::DropInode(ino) => Some(Invalidation::Object(*ino)),
        RowChange::PutEntry { dir, name, .. } | RowChange::DropEntry { dir, name } => {
            Some(Invalidation::Entry {
                dir: *dir,
                name: Box::from(&**name),
            })
        }
        _ => None,
    }
}

/// Returns the changes of rows of a rename whose files were moved, but whose rows a power failure
/// undid: the object `there` has replaced the object `ino`, whose content no longer exists. Without
/// them the name would be lost, which no file system does in a rename.
fn interrupted_rename(
    delta: &Delta,
    lower: &LowerStack,
    ino: Ino,
    row: &InodeRow,
    there: Option<&Misplaced>,
) -> Result<Option<Vec<RowChange<'static>>>> {
    let Some((there, (dir, name))) = there.zip(row.place.as_ref()) else {
        return Ok(None);
    };
    let Some((old_dir, old_name)) = &there.row.place else {
        return Ok(None);
    };
    let below = lower.lookup(*old_dir, old_name)?;
    let is = |in_rows, below, ino| match in_rows {
        Lookup::Found(named) => named == ino,
        Lookup::Unknown => below == Some(ino),
        Lookup::Whiteout => false,
    };
    if !is(delta.lookup(*dir, name)?, lower.lookup(*dir, name)?, ino)
        || !is(delta.lookup(*old_dir, old_name)?, below, there.ino)
    {
        return Ok(None);
    }
    let mut moved = there.row.clone();
    moved.place = Some((*dir, name.clone()));
    let hidden = old_name.to_vec();
    Ok(Some(vec![
        RowChange::put_entry(*dir, name.to_vec(), Some(there.ino)),
        RowChange::put_inode(there.ino, moved),
        match below {
            Some(_) => RowChange::put_entry(*old_dir, hidden, None),
            None => RowChange::drop_entry(*old_dir, hidden),
        },
        RowChange::DropInode(ino),
        RowChange::DropXattrs(ino),
    ]))
}

/// Returns true if the row of a name can be removed: the lower layers have nothing there, or an
/// unchanged object that is not a directory.
fn reveals_file(delta: &Delta, lower: &LowerStack, dir: Ino, name: &[u8]) -> Result<bool> {
    let Some(below) = lower.lookup(dir, name)? else {
        return Ok(true);
    };
    let is_file = lower
        .attr(below)?
        .is_some_and(|attr| attr.kind != Kind::Directory);
    Ok(is_file && delta.inode(below)?.is_none())
}

impl Union {
    /// Compares rows and files while the view is in use, and repairs the differences. Called after
    /// content could not be read. Does nothing while there are frozen uppers.
    pub(crate) fn repair(&self) -> Result<Reconciled> {
        // Otherwise content of removed names would be removed before that is durable.
        self.finish_removals()?;
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if state.has_frozen() || compare_files(&state.delta, &state.upper, &state.lower)?.is_empty()
        {
            return Ok(Reconciled::default());
        }
        let (upper, lower) = (state.upper.clone(), state.lower.clone());
        let done = reconcile(
            &self.db,
            state.layer,
            &mut state.delta,
            &upper,
            &lower,
            HostInodes::Valid,
        )?;
        for stale in &done.stale {
            if let Invalidation::Object(ino) = stale {
                upper.forget_file(*ino);
            }
        }
        Ok(done)
    }
}
