//! Making objects durable.
//!
//! During a commit, and after a failed one, changes are also in frozen uppers. An object is synced
//! in each upper that has it: its content, the physical directories on its path, and the rows. Only
//! [`sync_all`](Union::sync_all) syncs a whole file system, and only if `syncfs` reaches the disk:
//! FUSE and some network file systems do not forward it.
//!
//! Syncing needs no lock of rows: `state` is held only while the files to sync are found.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use nix::errno::Errno;

use super::delta::{Delta, has_file};
use super::{Error, FrozenLayer, Presence, Result, State, Union};
use crate::object::{Ino, Kind};
use crate::state::{InodeRow, LayerId};
use crate::sys::durable;
use crate::upper::{Chain, UpperDir};

/// The parts of an object in one layer that must be synced.
#[derive(Debug)]
struct SyncTarget {
    layer: LayerId,
    file: Option<Arc<File>>,
    /// The directory that contains it, or the object itself if it is a directory.
    dir: Option<Ino>,
    /// The upper whose `work` contains its content.
    detached: Option<Arc<UpperDir>>,
}

/// An upper of the stack.
enum Upper<'a> {
    Writable(&'a State),
    Frozen(&'a FrozenLayer),
}

impl Upper<'_> {
    fn dir(&self) -> &Arc<UpperDir> {
        match self {
            Upper::Writable(state) => &state.upper,
            Upper::Frozen(layer) => layer.upper(),
        }
    }

    fn delta(&self) -> &Delta {
        match self {
            Upper::Writable(state) => &state.delta,
            Upper::Frozen(layer) => layer.delta(),
        }
    }

    fn id(&self) -> LayerId {
        match self {
            Upper::Writable(state) => state.layer,
            Upper::Frozen(layer) => layer.id,
        }
    }

    fn chain(&self, dir: Ino) -> Result<Vec<(Ino, Box<[u8]>)>> {
        match self {
            Upper::Writable(state) => state.chain(dir),
            Upper::Frozen(layer) => layer.chain(dir),
        }
    }

    fn file(&self, ino: Ino, row: &InodeRow) -> Result<Arc<File>> {
        match self {
            Upper::Writable(state) => state.file(ino, row),
            Upper::Frozen(layer) => layer.file(ino),
        }
    }

    fn sync_target(&self, ino: Ino, row: &InodeRow) -> Result<SyncTarget> {
        let file = match has_file(row) {
            true => Some(self.file(ino, row)?),
            false => None,
        };
        let dir = match row.kind {
            Kind::Directory => Some(ino),
            _ => row.place.as_ref().map(|(dir, _)| *dir),
        };
        let is_detached = file.is_some() && row.place.is_none();
        Ok(SyncTarget {
            layer: self.id(),
            file,
            dir,
            detached: is_detached.then(|| self.dir().clone()),
        })
    }
}

impl State {
    /// Iterates over the uppers of the stack, top first.
    fn uppers(&self) -> impl Iterator<Item = Upper<'_>> {
        let frozen = self.lower.frozen().iter();
        std::iter::once(Upper::Writable(self)).chain(frozen.map(|layer| Upper::Frozen(layer)))
    }

    /// Returns the parts of an object that must be synced, by layer.
    fn sync_targets(&self, ino: Ino) -> Result<Vec<SyncTarget>> {
        if let Presence::Orphan(orphan) = self.presence(ino)? {
            return Ok(vec![SyncTarget {
                layer: self.layer,
                file: orphan.file.clone(),
                dir: None,
                detached: None,
            }]);
        }
        let mut targets = Vec::new();
        for upper in self.uppers() {
            if let Some(row) = upper.delta().inode(ino)? {
                targets.push(upper.sync_target(ino, row)?);
                if has_file(row) {
                    // This content replaces that of the layers below.
                    break;
                }
            }
        }
        Ok(targets)
    }
}

/// A step of making an object durable.
#[derive(Debug)]
pub(crate) enum SyncStep {
    /// Content, and the name of content in `work`.
    Content {
        file: Option<Arc<File>>,
        mode: SyncMode,
        detached: Option<Arc<UpperDir>>,
    },
    /// The physical directories on the paths to these directories.
    Dirs(Vec<(LayerId, Ino)>),
    /// The rows of all objects.
    Rows,
}

/// The attributes that [`Union::sync`] makes durable with the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// The size, as `fdatasync(2)`.
    DataOnly,
    /// All, as `fsync(2)`.
    Full,
}

impl Union {
    /// Makes an object durable: its content, its names and its rows.
    pub fn sync(&self, ino: Ino, mode: SyncMode) -> Result<()> {
        let steps = self.sync_steps(ino, mode)?;
        steps.into_iter().try_for_each(|step| self.run_sync(step))
    }

    /// Returns the steps that make an object durable: its content, its names and its rows. They can
    /// be run in any order, and at the same time: a file system writes once for all that wait for
    /// it. What is durable already needs none.
    pub(crate) fn sync_steps(&self, ino: Ino, mode: SyncMode) -> Result<Vec<SyncStep>> {
        self.removals.note_sync();
        let targets = self.read().sync_targets(ino)?;
        let mut steps = Vec::new();
        let mut dirs = Vec::new();
        for target in targets {
            if target.file.is_some() || target.detached.is_some() {
                steps.push(SyncStep::Content {
                    file: target.file,
                    mode,
                    detached: target.detached,
                });
            }
            if let Some(dir) = target.dir
                && self.has_unsynced_dirs(target.layer)
            {
                dirs.push((target.layer, dir));
            }
        }
        if !dirs.is_empty() {
            steps.push(SyncStep::Dirs(dirs));
        }
        if !self.db.is_synced() {
            steps.push(SyncStep::Rows);
        }
        Ok(steps)
    }

    /// Runs a step of making an object durable.
    pub(crate) fn run_sync(&self, step: SyncStep) -> Result<()> {
        match step {
            SyncStep::Content {
                file,
                mode,
                detached,
            } => {
                match &file {
                    Some(file) if mode == SyncMode::DataOnly => durable::sync_data(&**file)?,
                    Some(file) => durable::sync_file(&**file)?,
                    None => {}
                }
                if let Some(upper) = detached {
                    upper.sync_dir(upper.work())?;
                }
                Ok(())
            }
            SyncStep::Dirs(dirs) => dirs
                .into_iter()
                .try_for_each(|(layer, dir)| self.sync_dirs_to(layer, dir)),
            SyncStep::Rows => Ok(self.db.sync()?),
        }
    }

    /// Returns whether a layer may have directories that are not durable. Never waits.
    fn has_unsynced_dirs(&self, layer: LayerId) -> bool {
        // While another thread syncs them, they are not durable.
        let Ok(_only_this_sync) = self.syncing_dirs.try_lock() else {
            return true;
        };
        let state = self.read();
        let mut uppers = state.uppers();
        let upper = uppers.find(|upper| upper.id() == layer);
        upper.is_some_and(|upper| !upper.dir().unsynced().has_no_dirs())
    }

    /// Makes everything durable.
    pub fn sync_all(&self) -> Result<()> {
        self.removals.note_sync();
        if self.syncs_singly {
            self.sync_uppers().inspect_err(|_| {
                let state = self.read();
                let uppers = state.uppers();
                uppers.for_each(|upper| upper.dir().unsynced().note_everything());
            })?;
        } else {
            let upper = self.read().upper.clone();
            durable::sync_file_system(upper.root())?;
        }
        Ok(self.db.sync()?)
    }

    /// Syncs the changed physical directories of a layer on the path from the root to `dir`. Does
    /// nothing if the layer is no longer in the stack, because it was committed or discarded.
    pub(super) fn sync_dirs_to(&self, layer: LayerId, dir: Ino) -> Result<()> {
        // A thread that finds nothing to sync must not return before the thread that syncs it.
        let _syncing = self
            .syncing_dirs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (upper, changed) = {
            let state = self.read();
            let Some(upper) = state.uppers().find(|upper| upper.id() == layer) else {
                return Ok(());
            };
            if upper.dir().unsynced().has_no_dirs() {
                return Ok(());
            }
            let chain = match upper.chain(dir) {
                // Removed meanwhile.
                Err(Error::Posix(Errno::ESTALE)) => return Ok(()),
                chain => chain?,
            };
            (upper.dir().clone(), unsynced_of(upper.dir(), &chain))
        };
        let all: Vec<Ino> = changed.iter().map(|(at, _)| *at).collect();
        sync_dirs(changed).inspect_err(|_| {
            all.iter().for_each(|at| upper.unsynced().note_dir(*at));
        })
    }

    /// Syncs all changed files and directories of all uppers, one by one.
    fn sync_uppers(&self) -> Result<()> {
        let mut all = Vec::new();
        {
            // A writer marks a file before it writes, under the shared gate. With the exclusive
            // gate no marked file is still being written.
            let _gate = self.gate_exclusive();
            let state = self.read();
            for upper in state.uppers() {
                let (mut files, mut dirs) = (Vec::new(), HashSet::from([Ino::ROOT]));
                // Rows that were not read have not changed.
                for (ino, row) in upper.delta().loaded_inodes() {
                    if has_file(row) {
                        files.push(ino);
                    }
                    match (&row.place, row.kind) {
                        (_, Kind::Directory) => dirs.insert(ino),
                        (Some((dir, _)), _) => dirs.insert(*dir),
                        (None, _) => false,
                    };
                }
                let files = upper.dir().unsynced().take_files(files);
                all.push((upper.id(), upper.dir().clone(), files, dirs));
            }
        }
        for (layer, upper, files, dirs) in all {
            for ino in files {
                let file = {
                    let state = self.read();
                    let there = state.uppers().find(|upper| upper.id() == layer);
                    match there {
                        Some(upper) => {
                            let row = upper.delta().inode(ino)?.filter(|row| has_file(row));
                            row.map(|row| upper.file(ino, row)).transpose()?
                        }
                        None => None,
                    }
                };
                // `None` if it was removed meanwhile.
                if let Some(file) = file {
                    durable::sync_file(&*file)?;
                }
            }
            durable::sync_file(upper.work())?;
            for dir in dirs {
                self.sync_dirs_to(layer, dir)?;
            }
        }
        Ok(())
    }
}

/// A physical directory, if it exists.
type Found = Result<Option<Arc<OwnedFd>>>;

/// Takes the directories of a path that must be synced.
fn unsynced_of(upper: &UpperDir, chain: &Chain) -> Vec<(Ino, Found)> {
    let mut changed = Vec::new();
    for depth in 0..=chain.len() {
        let path = chain.get(..depth).unwrap_or_default();
        let at = path.last().map_or(Ino::ROOT, |(ino, _)| *ino);
        if upper.unsynced().take_dir(at) {
            changed.push((at, upper.find_dir(path).map_err(Error::from)));
        }
    }
    changed
}

fn sync_dirs(changed: Vec<(Ino, Found)>) -> Result<()> {
    changed.into_iter().try_for_each(|(_, fd)| match fd? {
        Some(fd) => Ok(durable::sync_file(&*fd)?),
        None => Ok(()),
    })
}
