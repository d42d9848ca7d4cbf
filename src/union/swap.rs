//! Changing the stack while it is mounted: rotation, a new image, and discarding all changes.
//!
//! These operations hold the gate exclusively, so that no content is being written, and the `state`
//! lock exclusively, so that readers see either the old stack or the new one. The stack changes in
//! the database first.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::delta::{Delta, row_from};
use super::difference::Draft;
use super::stack::LowerStack;
use super::{ContentLayer, Error, FrozenLayer, Orphan, Result, SharedListing, State, Union};
use crate::object::{Ino, Kind};
use crate::state::LayerId;
use crate::upper::UpperDir;

/// What [`Union::discard_uppers`] does if there are changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscardMode {
    /// Discard them.
    Always,
    /// Do nothing.
    IfUnchanged,
    /// Do nothing if the writable layer has any row, even if that is no change. Frozen layers do
    /// not count.
    IfEmpty,
}

/// Something that the kernel may have cached and that changed without a request of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalidation {
    /// A name, whether it exists or not.
    Entry {
        /// The directory.
        dir: Ino,
        /// The name.
        name: Box<[u8]>,
    },
    /// The attributes of an object, not its content.
    Attributes(Ino),
    /// The attributes and the content or listing of an object.
    Object(Ino),
}

impl Union {
    /// Returns the current layers below the writable one.
    pub fn lower(&self) -> Arc<LowerStack> {
        self.read().lower.clone()
    }

    /// Freezes the writable layer, unless it is empty, and adds a new one. Returns the frozen
    /// layers, top first.
    ///
    /// Waits for content that is being written. Other requests wait only for one transaction.
    pub fn rotate(&self) -> Result<Vec<LayerId>> {
        self.freeze(None, |frozen, fresh| match fresh {
            Some(fresh) => Ok(self.db.rotate(frozen, fresh)?),
            None => Ok(()),
        })?;
        let lower = self.lower();
        Ok(lower.frozen().iter().map(|layer| layer.id).collect())
    }

    /// Freezes the writable layer, unless it is empty. `publish` does the same in the database: it
    /// receives the layer, and the new one if the layer is not empty.
    ///
    /// Waits for content that is being written, at most for `patience` if that is given. Returns
    /// `None` if it takes longer.
    pub(crate) fn freeze<T>(
        &self,
        patience: Option<Duration>,
        publish: impl FnOnce(LayerId, Option<LayerId>) -> Result<T>,
    ) -> Result<Option<T>> {
        // The rows of a frozen layer may leave the database while the layer is in use, so all are
        // read. Done before the locks are taken, since it may take long.
        self.read().delta.load()?;
        let _gate = match patience {
            None => self.gate_exclusive(),
            Some(patience) => match self.gate_exclusive_within(patience) {
                Some(gate) => gate,
                None => return Ok(None),
            },
        };
        self.freeze_locked(&mut self.write(), publish).map(Some)
    }

    /// Freezes the writable layer, whose rows were read. The caller holds the gate exclusively.
    pub(super) fn freeze_locked<T>(
        &self,
        state: &mut State,
        publish: impl FnOnce(LayerId, Option<LayerId>) -> Result<T>,
    ) -> Result<T> {
        if state.delta.is_empty() {
            return publish(state.layer, None);
        }
        self.removals.note_sync();
        let (fresh, upper) = self.new_upper()?;
        state.end_epoch(Vec::new())?;
        let frozen = state.layer;
        let published = publish(frozen, Some(fresh))?;
        let delta = std::mem::take(&mut state.delta);
        let old_upper = std::mem::replace(&mut state.upper, upper);
        let below = state.lower.clone();
        let top = FrozenLayer::new(frozen, delta, old_upper, below.clone());
        state.layer = fresh;
        state.lower = Arc::new(LowerStack::over(Arc::new(top), below));
        Ok(published)
    }

    /// Undoes a rotation after a failed commit: the topmost frozen layer becomes writable again.
    /// Does nothing if something was changed since; then the next commit includes both layers. Nor
    /// if an operation refers to the frozen layer, as a checkpoint does.
    pub fn unrotate(&self) -> Result<()> {
        let _gate = self.gate_exclusive();
        self.unrotate_locked(&mut self.write())
    }

    /// Undoes a rotation. The caller holds the gate exclusively.
    pub(super) fn unrotate_locked(&self, state: &mut State) -> Result<()> {
        let top = state.lower.top();
        let Some((frozen, below)) = top.filter(|_| state.delta.is_empty()) else {
            return Ok(());
        };
        if self.db.is_recorded(frozen.id)? {
            return Ok(());
        }
        let (upper, below) = (frozen.upper().clone(), below.clone());
        let rows = self.db.load_layer(frozen.id)?;
        state.end_epoch(state.frozen_dirs())?;
        state.layer = self.db.unrotate(state.layer)?;
        state.delta = Delta::from_rows(rows);
        state.upper = upper;
        state.lower = below;
        Ok(())
    }

    /// Creates the directory of a new writable layer, durably, before a row refers to it.
    fn new_upper(&self) -> Result<(LayerId, Arc<UpperDir>)> {
        let fresh = self.db.reserve_layer()?;
        let path = self.paths.layer(fresh);
        if path.symlink_metadata().is_ok() {
            let why = "exists already, but no layer has had this number: \
                       is the state database older than its files?";
            return Err(Error::Inconsistent(format!("{} {why}", path.display())));
        }
        let upper = match UpperDir::create(&path, &self.paths.strays) {
            Err(e) if is_disk_full(&e) => self.spare_upper(&path).map_err(|_| e)?,
            created => created?,
        };
        Ok((fresh, Arc::new(upper)))
    }

    /// Uses the spare directory as that of a new layer, because the disk is full.
    fn spare_upper(&self, path: &Path) -> std::io::Result<UpperDir> {
        // Parts of it may have been created.
        std::fs::remove_dir_all(path).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })?;
        std::fs::rename(self.paths.spare(), path)?;
        UpperDir::create(path, &self.paths.strays)
    }

    /// Creates the spare directory of a layer, so that a discard works on a full disk or without
    /// free inodes. Does nothing if there is no space for it.
    pub(crate) fn create_spare_upper(&self) {
        let spare = self.paths.spare();
        if spare.symlink_metadata().is_err()
            && let Err(e) = UpperDir::create(&spare, &self.paths.strays)
        {
            tracing::debug!("cannot create a spare upper for a full disk: {e}");
            // An incomplete one is useless.
            std::fs::remove_dir_all(&spare).unwrap_or_default();
        }
    }

    /// Replaces the layers below the writable one by `lower`. `publish` does the same in the
    /// database; if it fails, nothing changes. Both show the same. Returns what `publish` returned
    /// and what the kernel must forget: the attributes of objects in the frozen layers, because an
    /// image stores them less precisely.
    pub(crate) fn replace_lower<T>(
        &self,
        lower: Arc<LowerStack>,
        publish: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<Invalidation>)> {
        let _gate = self.gate_exclusive();
        let mut state = self.write();
        let published = publish()?;
        let mut stale = Vec::new();
        for frozen in state.lower.frozen().iter().chain(lower.frozen()) {
            let objects = frozen.delta().inodes()?;
            stale.extend(objects.map(|(ino, _)| Invalidation::Attributes(ino)));
        }
        // The new layers have the same names in the same order, so positions stay valid.
        state.lower = lower;
        Ok((published, stale))
    }

    /// Discards all changes: the writable upper and the frozen ones, for those of `lower`, which
    /// has none unless changes are restored. `publish` does the same in the database and receives
    /// the new writable layer. Returns what `publish` returned and what the kernel must forget,
    /// without the differences between the images.
    ///
    /// Returns `None` if there are changes and the mode does not allow that. This check includes
    /// changes that were made after an earlier check by the caller.
    pub fn discard_uppers<T>(
        &self,
        lower: Arc<LowerStack>,
        mode: DiscardMode,
        publish: impl FnOnce(LayerId) -> Result<T>,
    ) -> Result<Option<(T, Vec<Invalidation>)>> {
        let named = named(&lower);
        let is_named = |ino: Ino| named.as_ref().is_none_or(|named| named.contains(&ino));
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if mode == DiscardMode::IfUnchanged {
            let base = state.lower.committed();
            if Draft::of(&*state, &base)?.has_any(&*state, &base)? {
                return Ok(None);
            }
        }
        if mode == DiscardMode::IfEmpty && !state.delta.is_empty() {
            return Ok(None);
        }
        let (fresh, upper) = self.new_upper()?;
        let mut others = state.frozen_dirs();
        others.extend(frozen_dirs(&lower));
        state.end_epoch(others)?;
        let mut stale = delta_invalidations(&state.delta)?;
        let is_in = |layer: &FrozenLayer, stack: &LowerStack| {
            stack.frozen().iter().any(|other| other.id == layer.id)
        };
        let old = state.lower.frozen().iter();
        let gone = old.filter(|layer| !is_in(layer, &lower));
        let new = lower.frozen().iter();
        for frozen in gone.chain(new.filter(|layer| !is_in(layer, &state.lower))) {
            stale.extend(delta_invalidations(frozen.delta())?);
        }
        let published = publish(fresh)?;
        // The changes are discarded: a failure from here on must not be reported as a failed
        // discard.
        self.was_discarded.store(true, Ordering::Relaxed);
        state.delta = Delta::default();
        state.upper = upper;
        state.layer = fresh;
        state.lower = lower;
        // Orphans that the discarded changes had unlinked have their names again.
        let held = std::mem::take(&mut state.orphans);
        for (ino, orphan) in held {
            let is_back = state.lower.attr(ino).map(|attr| attr.is_some());
            let is_back = is_back.map(|is_back| is_back && is_named(ino));
            if is_back.unwrap_or_else(|e| {
                tracing::warn!(%ino, "keeping it as an object without a name: {e}");
                false
            }) {
                self.nodes.revive(ino);
                stale.push(Invalidation::Object(ino));
            } else {
                state.orphans.insert(ino, orphan);
            }
        }
        // Objects of the images that the restored changes have removed.
        for ino in self.nodes.held() {
            if !is_named(ino) && !state.orphans.contains_key(&ino) {
                match state.lower_orphan(ino) {
                    Ok(Some(orphan)) => drop(state.orphans.insert(ino, orphan)),
                    Ok(None) => {}
                    Err(e) => tracing::warn!(%ino, "it has no name, but can still be used: {e}"),
                }
            }
        }
        Ok(Some((published, stale)))
    }
}

impl State {
    /// Returns the directories in which frozen layers have names.
    fn frozen_dirs(&self) -> Vec<Ino> {
        frozen_dirs(&self.lower)
    }

    /// Returns an object of the layers below as one without a name, if it exists.
    fn lower_orphan(&self, ino: Ino) -> Result<Option<Orphan>> {
        let Some(attr) = self.lower.attr(ino)? else {
            return Ok(None);
        };
        let target = match attr.kind {
            Kind::Symlink => Some(self.lower.read_link(ino)?),
            _ => None,
        };
        if attr.kind == Kind::File
            && let ContentLayer::Frozen(frozen) = self.lower.content(ino)?
        {
            // Its layer may be removed while the object is open.
            frozen.pin(ino)?;
        }
        let mut row = row_from(&attr, target, None);
        row.nlink = 0;
        Ok(Some(Orphan {
            row,
            file: None,
            lower: self.lower.clone(),
            xattrs: self.lower.xattrs(ino)?.into_iter().collect(),
        }))
    }
}

fn frozen_dirs(lower: &LowerStack) -> Vec<Ino> {
    let frozen = lower.frozen().iter();
    frozen
        .flat_map(|layer| layer.delta().loaded_dirs().map(|(dir, _)| dir))
        .collect()
}

/// Returns the objects that have a name in a stack; `None` for all. A directory that cannot be read
/// counts as empty, since an image may be damaged.
fn named(lower: &LowerStack) -> Option<HashSet<Ino>> {
    if lower.frozen().is_empty() {
        return None;
    }
    let mut named = HashSet::from([Ino::ROOT]);
    let mut pending = vec![Ino::ROOT];
    while let Some(dir) = pending.pop() {
        let listing = lower.list(dir).unwrap_or_else(|e| {
            tracing::warn!(%dir, "open files in it may count as removed: {e}");
            SharedListing::default()
        });
        for (_, ino, kind) in listing.iter() {
            if named.insert(ino) && kind == Kind::Directory {
                pending.push(ino);
            }
        }
    }
    Some(named)
}

fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Returns what the kernel must forget when a layer is removed: everything that has rows in it.
fn delta_invalidations(delta: &Delta) -> Result<Vec<Invalidation>> {
    let mut stale = Vec::new();
    for (dir, entries) in delta.dirs()? {
        for (name, _) in entries.iter() {
            stale.push(Invalidation::Entry {
                dir,
                name: Box::from(name),
            });
        }
        stale.push(Invalidation::Object(dir));
    }
    stale.extend(delta.inodes()?.map(|(ino, _)| Invalidation::Object(ino)));
    Ok(stale)
}
