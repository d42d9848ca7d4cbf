//! Changing the stack under a live view: rotation, a new image, and throwing changes away.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::delta::Delta;
use super::difference::Draft;
use super::stack::LowerStack;
use super::{Error, FrozenLayer, Result, State, Union};
use crate::object::Ino;
use crate::state::LayerId;
use crate::upper::UpperDir;

/// What [`Union::discard_uppers`] does if there are changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscardMode {
    /// Discard them.
    Always,
    /// Do nothing.
    IfUnchanged,
}

/// Something that the kernel may have cached and that changed without a request of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalidation {
    /// What it knows of a name, present or absent.
    Entry {
        /// The directory.
        dir: Ino,
        /// The name.
        name: Box<[u8]>,
    },
    /// Attributes, not content.
    Attributes(Ino),
    /// Attributes and content (or listing).
    Object(Ino),
}

impl Union {
    /// Everything below the writable layer, as it is now.
    pub fn lower(&self) -> Arc<LowerStack> {
        self.read().lower.clone()
    }

    /// Freezes the writable layer and gives the view a fresh one. Returns the frozen layers, top
    /// first; an empty writable layer is left alone.
    ///
    /// Waits for content being written; nobody waits for the disk but on the one transaction.
    pub fn rotate(&self) -> Result<Vec<LayerId>> {
        // The rows of a frozen layer may leave the database while the layer is still in use. Read
        // before the locks, which only what has changed since waits for.
        self.read().delta.load()?;
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if !state.delta.is_empty() {
            let (fresh, upper) = self.fresh_upper()?;
            state.end_epoch(Vec::new())?;
            let frozen = state.layer;
            self.db.rotate(frozen, fresh)?;
            let delta = std::mem::take(&mut state.delta);
            let old_upper = std::mem::replace(&mut state.upper, upper);
            let below = state.lower.clone();
            let top = FrozenLayer::new(frozen, delta, old_upper, below.clone());
            let mut layers = vec![Arc::new(top)];
            layers.extend_from_slice(below.frozen());
            state.layer = fresh;
            state.lower = Arc::new(LowerStack::new(layers, below.images().to_vec()));
        }
        let frozen = state.lower.frozen().iter();
        Ok(frozen.map(|layer| layer.id).collect())
    }

    /// Takes a rotation back after a commit that failed, so that the stack is as it was before.
    /// Does nothing when something was changed since: then the stack stays one layer taller and the
    /// next commit takes both.
    pub fn unrotate(&self) -> Result<()> {
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        let frozen = state.lower.frozen().first();
        let Some(frozen) = frozen.filter(|_| state.delta.is_empty()) else {
            return Ok(());
        };
        let (upper, below) = (frozen.upper().clone(), frozen.below().clone());
        let rows = self.db.load_layer(frozen.id)?;
        let frozen = state.frozen_dirs();
        state.end_epoch(frozen)?;
        state.layer = self.db.unrotate(state.layer)?;
        state.delta = Delta::from_rows(rows);
        state.upper = upper;
        state.lower = below;
        Ok(())
    }

    /// Makes the directory of a new writable layer, durably, before any row names it.
    fn fresh_upper(&self) -> Result<(LayerId, Arc<UpperDir>)> {
        let fresh = self.db.reserve_layer()?;
        let path = self.paths.layer(fresh);
        if path.symlink_metadata().is_ok() {
            let what = "is there already, though no layer has had its number: \
                        is the state database older than its files?";
            return Err(Error::Inconsistent(format!("{} {what}", path.display())));
        }
        let upper = match UpperDir::create(&path, &self.paths.strays) {
            Err(e) if is_no_room(&e) => self.spare_upper(&path).map_err(|_| e)?,
            made => made?,
        };
        Ok((fresh, Arc::new(upper)))
    }

    /// Lets the directory that is kept for a full disk be that of a layer.
    fn spare_upper(&self, path: &Path) -> std::io::Result<UpperDir> {
        // What could be made of it.
        std::fs::remove_dir_all(path).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })?;
        std::fs::rename(self.paths.spare(), path)?;
        UpperDir::create(path, &self.paths.strays)
    }

    /// Keeps the directories of a layer for a disk that has no room for more, or for no more files.
    /// Where there is no room, there is none.
    pub fn keep_spare(&self) {
        let spare = self.paths.spare();
        if spare.symlink_metadata().is_err()
            && let Err(e) = UpperDir::create(&spare, &self.paths.strays)
        {
            tracing::debug!("no directory is kept for a full disk: {e}");
            // Half of one is of no use.
            std::fs::remove_dir_all(&spare).unwrap_or_default();
        }
    }

    /// Puts `lower` in the place of everything below the writable layer, in the same breath as
    /// `publish` makes it so in the database. Returns what the kernel must forget: the attributes
    /// of what the frozen layers held, which an image keeps less precisely.
    pub fn replace_lower<T>(
        &self,
        lower: Arc<LowerStack>,
        publish: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<Invalidation>)> {
        let _gate = self.gate_exclusive();
        let mut state = self.write();
        let published = publish()?;
        let mut stale = Vec::new();
        for frozen in state.lower.frozen() {
            let objects = frozen.delta().inodes()?;
            stale.extend(objects.map(|(ino, _)| Invalidation::Attributes(ino)));
        }
        // The same names in the same order, so positions stay as they are.
        state.lower = lower;
        Ok((published, stale))
    }

    /// Discards all changes: the writable upper and the frozen ones. `publish` does the same in the
    /// database and receives the new writable layer. Returns what `publish` returned and what the
    /// kernel must forget.
    ///
    /// Returns `None` if there are changes and the mode is [`DiscardMode::IfUnchanged`]. This check
    /// includes changes that were made after an earlier check by the caller.
    pub fn discard_uppers<T>(
        &self,
        lower: Arc<LowerStack>,
        mode: DiscardMode,
        publish: impl FnOnce(LayerId) -> Result<T>,
    ) -> Result<Option<(T, Vec<Invalidation>)>> {
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if mode == DiscardMode::IfUnchanged {
            let base = state.lower.committed();
            if Draft::of(&*state, &base)?.has_any(&*state, &base)? {
                return Ok(None);
            }
        }
        let (fresh, upper) = self.fresh_upper()?;
        let frozen = state.frozen_dirs();
        state.end_epoch(frozen)?;
        let mut stale = delta_invalidations(&state.delta)?;
        for frozen in state.lower.frozen() {
            stale.extend(delta_invalidations(frozen.delta())?);
        }
        let published = publish(fresh)?;
        // It has happened: what fails from here on must not look as if it had not.
        self.was_discarded.store(true, Ordering::Relaxed);
        state.delta = Delta::default();
        state.upper = upper;
        state.layer = fresh;
        state.lower = lower;
        // What had lost its last name by a change has it back.
        let held = std::mem::take(&mut state.orphans);
        for (ino, orphan) in held {
            let is_back = state.lower.attr(ino).map(|attr| attr.is_some());
            if is_back.unwrap_or_else(|e| {
                tracing::warn!(%ino, "kept as an object without a name: {e}");
                false
            }) {
                self.nodes.revive(ino);
                stale.push(Invalidation::Object(ino));
            } else {
                state.orphans.insert(ino, orphan);
            }
        }
        Ok(Some((published, stale)))
    }
}

impl State {
    /// The directories in which frozen layers have names.
    fn frozen_dirs(&self) -> Vec<Ino> {
        let frozen = self.lower.frozen().iter();
        frozen
            .flat_map(|layer| layer.delta().loaded_dirs().map(|(dir, _)| dir))
            .collect()
    }
}

fn is_no_room(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Everything that a layer's rows make different: without the layer, it is different again.
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
