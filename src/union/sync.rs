//! Making objects durable, wherever in the stack they are.
//!
//! During a commit, and after one that failed, what was changed lies in frozen uppers as well. An
//! object is synced in each of them: its content, the directories that lead to it, and the rows.
//! Nothing but [`sync_all`](Union::sync_all) syncs a whole file system, and only where that works:
//! FUSE and some network file systems do not pass `syncfs` on.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use nix::errno::Errno;

use super::content::has_file;
use super::delta::Delta;
use super::{Error, FrozenLayer, Presence, Result, State, Union};
use crate::object::{Ino, Kind};
use crate::state::{InodeRow, LayerId};
use crate::sys::durable;
use crate::upper::{Chain, UpperDir};

/// What has to be synced of an object in one layer.
#[derive(Debug)]
struct Part {
    layer: LayerId,
    file: Option<Arc<File>>,
    /// The directory that leads to it, or that it is.
    dir: Option<Ino>,
    /// Where its content lies under its identity.
    detached: Option<Arc<UpperDir>>,
}

/// One upper of the stack, writable or frozen.
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

    fn part(&self, ino: Ino, row: &InodeRow) -> Result<Part> {
        let file = match has_file(row) {
            true => Some(self.file(ino, row)?),
            false => None,
        };
        let dir = match row.kind {
            Kind::Directory => Some(ino),
            _ => row.place.as_ref().map(|(dir, _)| *dir),
        };
        let is_detached = file.is_some() && row.place.is_none();
        Ok(Part {
            layer: self.id(),
            file,
            dir,
            detached: is_detached.then(|| self.dir().clone()),
        })
    }
}

impl State {
    /// The uppers of the stack, top first.
    fn uppers(&self) -> impl Iterator<Item = Upper<'_>> {
        let frozen = self.lower.frozen().iter();
        std::iter::once(Upper::Writable(self)).chain(frozen.map(|layer| Upper::Frozen(layer)))
    }

    /// What has to be synced of an object.
    fn parts(&self, ino: Ino) -> Result<Vec<Part>> {
        if let Presence::Orphan(orphan) = self.presence(ino)? {
            return Ok(vec![Part {
                layer: self.layer,
                file: orphan.file.clone(),
                dir: None,
                detached: None,
            }]);
        }
        let mut parts = Vec::new();
        for upper in self.uppers() {
            if let Some(row) = upper.delta().inode(ino)? {
                parts.push(upper.part(ino, row)?);
                if has_file(row) {
                    // What is below was content once, and is none any more.
                    break;
                }
            }
        }
        Ok(parts)
    }
}

/// Which attributes of a file [`Union::sync`] makes durable with its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// The size, as `fdatasync(2)`.
    DataOnly,
    /// All, as `fsync(2)`.
    Full,
}

impl Union {
    /// Makes an object durable: content, name, and the rows that say so.
    pub fn sync(&self, ino: Ino, mode: SyncMode) -> Result<()> {
        let parts = self.read().parts(ino)?;
        for part in &parts {
            match &part.file {
                Some(file) if mode == SyncMode::DataOnly => durable::sync_data(&**file)?,
                Some(file) => durable::sync_file(&**file)?,
                None => {}
            }
            if let Some(upper) = &part.detached {
                upper.sync_dir(upper.work())?;
            }
        }
        for part in parts {
            if let Some(dir) = part.dir {
                self.sync_dirs_to(part.layer, dir)?;
            }
        }
        Ok(self.db.sync()?)
    }

    /// Makes everything durable.
    pub fn sync_all(&self) -> Result<()> {
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

    /// Syncs the physical directories of a layer from the root to `dir` that have changed since
    /// they were synced. Nothing is left to do of a layer that is not in the stack any more: it was
    /// committed, or discarded.
    pub(super) fn sync_dirs_to(&self, layer: LayerId, dir: Ino) -> Result<()> {
        // Who finds nothing left to do must not return before another has done it.
        let _turn = self
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
                // Removed meanwhile, and so without a name to keep.
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

    /// Syncs all files and directories of all uppers that have changed since they were synced, one
    /// by one.
    fn sync_uppers(&self) -> Result<()> {
        let mut all = Vec::new();
        {
            // Content being written is noted first, and is written before it counts as synced.
            let _gate = self.gate_exclusive();
            let state = self.read();
            for upper in state.uppers() {
                let (mut files, mut dirs) = (Vec::new(), HashSet::from([Ino::ROOT]));
                // What was not read was not changed either.
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
                // Removed meanwhile, if it is not there.
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

/// A physical directory, if it is there.
type Found = Result<Option<Arc<OwnedFd>>>;

/// Takes over which directories of a path are to be synced.
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
