//! The union: a writable directory tree that merges one writable upper with read-only layers.
//!
//! Layers are merged by identity, not by path: a directory's entries are looked up under its
//! [`Ino`] in each layer. A new directory has a new identity, under which lower layers have no
//! entries, so it needs no opaque mark. A renamed lower directory is one whiteout and one link to
//! the same identity, whatever it contains. Two names of one identity are a hard link.
//!
//! # Invariants
//!
//! - Rows decide which objects exist, and hold their names and attributes. The upper directory
//!   holds only content.
//! - Rows are in the database and, once they were needed, in memory (`Delta`). They change in
//!   both under the exclusive `state` lock.
//! - A directory has one name, and every place leads to the root.
//! - An object without a name exists only in memory, and only while the kernel holds it.
//!
//! # Order of the steps of a change
//!
//! 1. Create files that the merged view does not show yet, and move files if that destroys nothing.
//!    If this or the next step fails, it is undone.
//! 2. Change the rows in one SQLite transaction, which makes the change visible.
//! 3. Remove or replace files, which cannot be undone. A failure here is repaired by the next open.
//!
//! A crash between 1 and 2 leaves files without rows, or at another path than their rows; a crash
//! between 2 and 3 leaves files to which no row refers. [`Union::open`] repairs both: rows decide
//! which objects exist, and host inode numbers identify their files.
//!
//! # Lock order
//!
//! `gate` → `copy_ups[…]` → `state` → (`nodes`, the caches of `UpperDir`, the database), and
//! `syncing_dirs` → `state`. The lists of `removals` are locked last. Each may be skipped.
//! `docs/architecture.md` lists the locks of the whole daemon.
//!
//! - `gate`: shared while content of the upper changes, exclusive while the stack changes.
//! - `copy_ups[ino]`: held while the content of the object is copied up.
//! - `state`: shared while rows are read, exclusive while they change, in memory and in the
//!   database. Not held while data is synced or an image is read for the first time: a change first
//!   reads what it needs from the lower layers without the lock (`preload_name` and similar), and
//!   then finds it in their caches. Rows of a large layer may be read from the database under it
//!   (`stored.rs`). Exceptions are operations on the whole environment (discarding,
//!   changing the stack, listing changes) and listings that began before the stack changed.

mod attributes;
mod bounds;
mod checked;
mod content;
mod delta;
mod difference;
mod dir_check;
mod discard;
mod error;
mod file_check;
mod frozen;
mod handles;
mod image_layer;
mod layer;
mod limit;
mod loaded;
mod namespace;
mod node;
mod open;
mod overlay;
mod overlay_marks;
mod paths;
mod privileges;
mod readdir;
mod reconcile;
mod recorded;
mod removals;
mod remove;
mod rename;
mod restore;
mod split;
mod stack;
mod stored;
mod swap;
mod sync;
#[cfg(test)]
mod tests;
mod xattrs;

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::FileStat;
use nix::sys::time::TimeSpec;

use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::state::{DataPlace, InodeRow, LayerId, RowChange, StateDb};
use crate::upper::UpperDir;
use delta::{row_attr, row_from};

// Also used by the tests, which have no kernel in front of the union.
pub use attributes::{SetAttr, SetTime};
pub use content::AllocateMode;
pub use difference::{Aspect, Change, ChangeKind, Difference, Summary, Tally};
pub use error::{Error, Result};
pub use layer::SeekTarget;
pub use limit::SpaceLimit;
pub use namespace::{Creator, NewObject};
pub use node::Nodes;
pub use overlay::identify;
pub use privileges::SetIdBits;
pub use readdir::DirItem;
pub use reconcile::Reconciled;
pub use rename::RenameMode;
pub use restore::Restored;
pub use stack::LowerStack;
pub use swap::{DiscardMode, Invalidation};
pub use sync::SyncMode;
pub use xattrs::XattrMode;

pub(crate) use content::Soon;
pub(crate) use delta::Delta;
pub(crate) use difference::{Edits, between, between_environments, frozen_changes, is_among};
pub(crate) use discard::{Part, Tracked};
pub(crate) use frozen::FrozenLayer;
pub(crate) use handles::FoundObject;
pub(crate) use image_layer::ImageLayer;
pub(crate) use layer::{Bytes, Layer, Lookup, SharedListing, Xattr};
pub(crate) use open::{OpenOptions, open_image, set_offset, verify_uppers};
pub(crate) use overlay::count_links;
pub(crate) use paths::Paths;
pub(crate) use restore::Source;
pub(crate) use split::Split;
pub(crate) use stack::ContentLayer;

/// The number of identities that are reserved in the database at once.
const INO_BATCH: u64 = 4096;

/// A writable merged view. It can be used from many threads, and without a FUSE mount.
#[derive(Debug)]
pub struct Union {
    db: Arc<StateDb>,
    paths: Paths,
    gate: RwLock<()>,
    copy_ups: [Mutex<()>; 64],
    state: RwLock<State>,
    nodes: Nodes,
    inos: Mutex<Range<u64>>,
    /// Held while directories are synced.
    syncing_dirs: Mutex<()>,
    removals: removals::Removals,
    /// The limit of the space for changes, if there is one.
    space: Option<limit::Space>,
    /// Whether files are synced one by one, because `syncfs` may not reach the disk (FUSE, network
    /// file systems).
    syncs_singly: bool,
    /// The directories in which files of the lower layers have names, once a file handle needed
    /// them.
    lower_names: handles::LowerNames,
    /// Whether rows and files are known to differ, so that the next open must repair them.
    needs_repair: AtomicBool,
    /// Whether changes were discarded, so that file sizes in the kernel may be stale. Set under the
    /// exclusive gate.
    was_discarded: AtomicBool,
}

/// Everything that the `state` lock protects.
#[derive(Debug)]
struct State {
    layer: LayerId,
    delta: Delta,
    upper: Arc<UpperDir>,
    lower: Arc<LowerStack>,
    /// Objects without a name that the kernel still holds.
    orphans: HashMap<Ino, Orphan>,
    /// The number of changes of the stack; part of directory positions.
    epoch: u64,
    /// The order of directories in earlier epochs, for listings in progress.
    old_orders: readdir::OldOrders,
}

/// An object that lost its last name while it was open. It exists only in memory.
#[derive(Debug)]
struct Orphan {
    row: InodeRow,
    file: Option<Arc<File>>,
    lower: Arc<LowerStack>,
    xattrs: std::collections::BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// An object without a name that the kernel has released. Dropping it closes its file.
#[derive(Debug)]
pub struct Released(#[expect(dead_code, reason = "held to be dropped")] Orphan);

/// Where the attributes of an object are.
enum Presence<'a> {
    /// In a row of the writable layer.
    Row(&'a InodeRow),
    /// In memory: it has lost its last name.
    Orphan(&'a Orphan),
    /// In a layer below, if the object exists.
    Lower,
}

impl Union {
    /// Returns the database that holds the rows.
    pub fn db(&self) -> &Arc<StateDb> {
        &self.db
    }

    /// Returns the objects that the kernel holds.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // State changes only after the database, in steps that do not panic. So it is consistent
        // even if the lock is poisoned.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| {
            // To be safe, the next open compares rows and files.
            self.needs_repair.store(true, Ordering::Relaxed);
            poisoned.into_inner()
        })
    }

    fn gate_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate_exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the gate exclusively, unless it is in use for longer than `patience`.
    fn gate_exclusive_within(&self, patience: Duration) -> Option<RwLockWriteGuard<'_, ()>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.gate.try_write() {
                Ok(gate) => return Some(gate),
                Err(TryLockError::Poisoned(gate)) => return Some(gate.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    fn copy_up_lock(&self, ino: Ino) -> MutexGuard<'_, ()> {
        let shard = (ino.0 as usize) % self.copy_ups.len();
        self.copy_ups[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn new_ino(&self) -> Result<Ino> {
        let mut inos = self.inos.lock().unwrap_or_else(PoisonError::into_inner);
        if inos.is_empty() {
            *inos = self.db.reserve_inos(INO_BATCH)?;
        }
        inos.next().map(Ino).ok_or_else(|| Errno::ENOSPC.into())
    }

    /// Looks up a name and returns the object with its attributes, or `None` if it does not exist.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<(Ino, Attr)>> {
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let (lower, found) = {
            let state = self.read();
            if state.orphans.contains_key(&dir) {
                return Ok(None);
            }
            (state.lower.clone(), state.delta.lookup(dir, name)?)
        };
        let ino = match found {
            Lookup::Found(ino) => Some(ino),
            Lookup::Whiteout => None,
            Lookup::Unknown => lower.lookup(dir, name)?,
        };
        let Some(ino) = ino else { return Ok(None) };
        match self.attr(ino) {
            Ok(attr) => Ok(Some((ino, attr))),
            // Unlinked after the lookup above.
            Err(Error::Posix(Errno::ESTALE)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the names on the path of a directory from the root.
    pub(crate) fn path_of_dir(&self, dir: Ino) -> Result<Vec<Box<[u8]>>> {
        let chain = self.read().chain(dir)?;
        Ok(chain.into_iter().map(|(_, name)| name).collect())
    }

    /// Returns the attributes of an object.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        let (own, lower) = {
            let state = self.read();
            match state.presence(ino)? {
                Presence::Lower => (None, state.lower.clone()),
                Presence::Row(row) if row.kind == Kind::File && row.data != DataPlace::Upper => {
                    (Some(row_attr(row)), state.below(row))
                }
                Presence::Row(row) => return state.row_attr(ino, row),
                Presence::Orphan(orphan) if orphan.row.kind == Kind::File => match &orphan.file {
                    Some(_) => return orphan.attr(ino),
                    None => (Some(row_attr(&orphan.row)), orphan.lower.clone()),
                },
                Presence::Orphan(orphan) => return orphan.attr(ino),
            }
        };
        let below = lower.attr(ino)?.ok_or(Error::Posix(Errno::ESTALE))?;
        Ok(match own {
            None => below,
            Some(attr) => attr.with_content_of(&below),
        })
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        let state = self.read();
        let row = match state.presence(ino)? {
            Presence::Row(row) => Some(row),
            Presence::Orphan(orphan) => Some(&orphan.row),
            Presence::Lower => None,
        };
        match row {
            Some(row) => row.target.clone().ok_or(Error::Posix(Errno::EINVAL)),
            None => {
                let lower = state.lower.clone();
                drop(state);
                lower.read_link(ino)
            }
        }
    }

    /// Subtracts `count` from the lookup count of an object, as FUSE's `FORGET`. An orphan ends
    /// when its count becomes 0.
    ///
    /// The orphan is returned for the caller to drop: closing the last descriptor of a removed file
    /// frees its space, which may take long.
    pub fn forget(&self, ino: Ino, count: u64) -> Option<Released> {
        if self.nodes.forget(ino, count) && self.read().orphans.contains_key(&ino) {
            return self.write().orphans.remove(&ino).map(Released);
        }
        None
    }

    /// Applies changes to the database, and then to memory if that succeeded.
    fn change(&self, state: &mut State, changes: &[RowChange<'_>]) -> Result<()> {
        let layer = state.layer;
        let store = || Ok(self.db.apply(layer, changes)?);
        state.delta.change(changes, store)
    }

    /// Returns the `statvfs` of the file system that stores the changes.
    pub(crate) fn statvfs(&self) -> Result<nix::sys::statvfs::Statvfs> {
        Ok(nix::sys::statvfs::fstatvfs(self.read().upper.root())?)
    }

    /// Records that a file is not where its row says, so that the next open repairs it.
    fn repair_later(&self, what: &str, error: &dyn std::fmt::Display) {
        tracing::warn!("{what}; the next mount repairs this: {error}");
        self.needs_repair.store(true, Ordering::Relaxed);
    }
}

impl State {
    fn presence(&self, ino: Ino) -> Result<Presence<'_>> {
        if let Some(row) = self.delta.inode(ino)? {
            return Ok(Presence::Row(row));
        }
        Ok(match self.orphans.get(&ino) {
            Some(orphan) => Presence::Orphan(orphan),
            None => Presence::Lower,
        })
    }

    /// Returns the layers that have the content of an object which is not in the writable layer.
    fn below(&self, row: &InodeRow) -> Arc<LowerStack> {
        match row.data {
            DataPlace::Committed => self.lower.committed(),
            DataPlace::Lower | DataPlace::Upper => self.lower.clone(),
        }
    }

    fn row_attr(&self, ino: Ino, row: &InodeRow) -> Result<Attr> {
        let mut attr = row_attr(row);
        if row.kind == Kind::File {
            match row.data {
                DataPlace::Upper => {
                    if let Some(file) = self.upper.cached_file(ino) {
                        stat_into(&mut attr, &nix::sys::stat::fstat(&*file)?);
                        return Ok(attr);
                    }
                    let stat = frozen::with_place(
                        &self.upper,
                        row,
                        |d| self.chain(d),
                        |place| self.upper.stat(ino, place),
                    )?;
                    stat_into(&mut attr, &stat);
                }
                DataPlace::Lower | DataPlace::Committed => {
                    let below = self.below(row).attr(ino)?;
                    let below = below.ok_or(Error::Posix(Errno::ESTALE))?;
                    attr = attr.with_content_of(&below);
                }
            }
        }
        Ok(attr)
    }

    /// Returns the attributes of an object.
    fn attr(&self, ino: Ino) -> Result<Attr> {
        match self.presence(ino)? {
            Presence::Row(row) => self.row_attr(ino, row),
            Presence::Orphan(orphan) => orphan.attr(ino),
            Presence::Lower => self.lower.attr(ino)?.ok_or(Error::Posix(Errno::ESTALE)),
        }
    }

    fn kind(&self, ino: Ino) -> Result<Kind> {
        match self.presence(ino)? {
            Presence::Row(row) => Ok(row.kind),
            Presence::Orphan(orphan) => Ok(orphan.row.kind),
            Presence::Lower => Ok(self
                .lower
                .attr(ino)?
                .ok_or(Error::Posix(Errno::ESTALE))?
                .kind),
        }
    }

    /// Looks up a name in the writable layer and those below.
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        // The whiteouts in it were removed together with the directory.
        if self.orphans.contains_key(&dir) {
            return Ok(None);
        }
        match self.delta.lookup(dir, name)? {
            Lookup::Found(ino) => Ok(Some(ino)),
            Lookup::Whiteout => Ok(None),
            Lookup::Unknown => self.lower.lookup(dir, name),
        }
    }

    /// Returns the row of an object, or a new one with its attributes in the layers below.
    fn row(&self, ino: Ino, place: impl FnOnce() -> Option<(Ino, Box<[u8]>)>) -> Result<InodeRow> {
        match self.presence(ino)? {
            Presence::Row(row) => Ok(row.clone()),
            Presence::Orphan(orphan) => Ok(orphan.row.clone()),
            Presence::Lower => {
                let attr = self.lower.attr(ino)?.ok_or(Error::Posix(Errno::ESTALE))?;
                let target = match attr.kind {
                    Kind::Symlink => Some(self.lower.read_link(ino)?),
                    _ => None,
                };
                Ok(row_from(&attr, target, place()))
            }
        }
    }

    /// Returns the row of a directory, or a new one with its attributes and place in the layers
    /// below.
    fn dir_row(&self, dir: Ino) -> Result<InodeRow> {
        let place = if dir == Ino::ROOT {
            None
        } else {
            self.parent(dir)?
        };
        let row = self.row(dir, || place)?;
        if row.kind != Kind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        Ok(row)
    }

    fn parent(&self, dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        match self.delta.place(dir)? {
            Some(place) => Ok(Some(place)),
            None => self.lower.parent(dir),
        }
    }

    /// Returns the path of a directory from the root, outermost first.
    fn chain(&self, dir: Ino) -> Result<Vec<(Ino, Box<[u8]>)>> {
        layer::chain(dir, |ino| self.parent(ino))
    }

    /// Returns true if a directory can be reached from the root by names.
    fn is_reachable(&self, dir: Ino) -> Result<bool> {
        let chain = match self.chain(dir) {
            Err(Error::Posix(Errno::ESTALE)) => return Ok(false),
            chain => chain?,
        };
        let mut above = Ino::ROOT;
        for (ino, name) in chain {
            if self.lookup(above, &name)? != Some(ino) {
                return Ok(false);
            }
            above = ino;
        }
        Ok(true)
    }

    /// Returns the physical directory of a directory, after creating it if it does not exist.
    fn create_dir(&self, dir: Ino) -> Result<Arc<OwnedFd>> {
        let chain = self.chain(dir)?;
        if let Some(fd) = self.upper.find_dir(&chain)? {
            return Ok(fd);
        }
        self.note_unsynced(Ino::ROOT);
        chain
            .iter()
            .for_each(|(above, _)| self.note_unsynced(*above));
        Ok(self.upper.create_dir(&chain)?)
    }

    fn note_unsynced(&self, dir: Ino) {
        self.upper.unsynced().note_dir(dir);
    }

    /// Returns true if there are frozen uppers: during a commit, and after a failed one.
    fn has_frozen(&self) -> bool {
        !self.lower.frozen().is_empty()
    }

    /// Returns the physical directory of a directory, if it exists.
    fn find_dir(&self, dir: Ino) -> Result<Option<Arc<OwnedFd>>> {
        Ok(self.upper.find_dir(&self.chain(dir)?)?)
    }

    /// Opens the content of a file whose row says that it is in the writable layer.
    fn file(&self, ino: Ino, row: &InodeRow) -> Result<Arc<File>> {
        if let Some(file) = self.upper.cached_file(ino) {
            return Ok(file);
        }
        frozen::with_place(
            &self.upper,
            row,
            |d| self.chain(d),
            |place| self.upper.open_file(ino, place),
        )
    }
}

impl Orphan {
    fn attr(&self, ino: Ino) -> Result<Attr> {
        let mut attr = row_attr(&self.row);
        if self.row.kind == Kind::File {
            match &self.file {
                Some(file) => stat_into(&mut attr, &nix::sys::stat::fstat(&**file)?),
                None => {
                    let below = self.lower.attr(ino)?.ok_or(Error::Posix(Errno::ESTALE))?;
                    attr = attr.with_content_of(&below);
                }
            }
        }
        Ok(attr)
    }
}

/// Takes size, blocks and times from the backing file. The change time is the later one of the row
/// (attributes changed) and the file (content changed).
pub(crate) fn stat_into(attr: &mut Attr, stat: &FileStat) {
    let time = |secs: i64, nanos: i64| Timestamp {
        secs,
        nanos: nanos as u32,
    };
    attr.size = stat.st_size as u64;
    attr.blocks = stat.st_blocks as u64;
    attr.atime = time(stat.st_atime, stat.st_atime_nsec);
    attr.mtime = time(stat.st_mtime, stat.st_mtime_nsec);
    attr.ctime = attr.ctime.max(time(stat.st_ctime, stat.st_ctime_nsec));
}

/// Takes what [`stat_into`] does from a backing file that was just created.
fn created_into(attr: &mut Attr, metadata: &Metadata) {
    let time = |secs: i64, nanos: i64| Timestamp {
        secs,
        nanos: nanos as u32,
    };
    attr.size = metadata.size();
    attr.blocks = metadata.blocks();
    attr.atime = time(metadata.atime(), metadata.atime_nsec());
    attr.mtime = time(metadata.mtime(), metadata.mtime_nsec());
    let ctime = time(metadata.ctime(), metadata.ctime_nsec());
    attr.ctime = attr.ctime.max(ctime);
}

fn time_spec(time: Timestamp) -> TimeSpec {
    TimeSpec::new(time.secs, i64::from(time.nanos))
}
