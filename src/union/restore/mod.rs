//! Restoring paths as they were in an earlier revision.
//!
//! Objects of the revision become new objects of the view, ordinary uncommitted changes. Their
//! content is copied to `work` first, without a lock on the view, and is durable before a row
//! refers to it. Then one transaction changes all names: readers, and a crash, see either the old
//! or the restored paths. The uppers are frozen before that: they are the state to which an undo
//! returns.
//!
//! Directories that exist in both are kept and merged name by name. An object that is known to be
//! the same is kept as well, so the cost follows the difference below the paths.

mod physical;
mod rows;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::content::copy_content;
use super::{Change, ChangeKind, Invalidation, LowerStack, Result, Tally, Union, time_spec};
use crate::fault;
use crate::object::Ino;
use crate::squashfs::reader::Shared;
use crate::state::{LayerId, RowChange};
use crate::sys::durable;
use crate::union::ImageLayer;
use rows::{Rows, Then};

/// The number of attempts to copy content without locking the view. After these, because the view
/// keeps changing, content is copied under the lock.
const ATTEMPTS: usize = 4;

/// What was restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Entries that were created.
    pub added: Tally,
    /// Entries that were changed back.
    pub changed: Tally,
    /// Entries that were removed, as the revision does not have them.
    pub removed: Tally,
    /// Paths that exist neither now nor in the revision.
    pub unknown: u64,
}

impl Restored {
    /// Returns whether the paths were the same as in the revision.
    pub fn is_empty(&self) -> bool {
        [self.added, self.changed, self.removed]
            .iter()
            .all(|tally| tally.entries == 0)
    }

    /// What was restored by discarding changes.
    pub(crate) fn by_discarding(changes: &[Change]) -> Restored {
        let mut restored = Restored::default();
        for change in changes {
            let tally = match change.what {
                ChangeKind::Added => &mut restored.removed,
                ChangeKind::Removed => &mut restored.added,
                ChangeKind::Modified { .. } | ChangeKind::Renamed { .. } => &mut restored.changed,
            };
            tally.add(change.size);
        }
        restored
    }
}

/// The revision that paths are restored from.
pub(crate) struct Source<'a> {
    /// Its image.
    pub(crate) image: &'a Arc<ImageLayer>,
    /// Determines what it has in common with the image of the view, if possible.
    pub(crate) shared: &'a dyn Fn(&ImageLayer) -> Option<Shared>,
}

/// Content of the revision that has been copied to `work`, by object of the revision.
type Staged = HashMap<Ino, Copied>;

/// A copy of the content of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied {
    /// The object that gets the content.
    pub(super) ino: Ino,
    /// The identity of the host file.
    pub(super) backing: u64,
}

impl Union {
    /// Restores paths (without a leading slash; the empty path is the root), with everything below
    /// them. The stack must not change meanwhile. Returns what was restored, and what the kernel
    /// must forget. `record` changes rows of the writable layer in the database, together with what
    /// else belongs to the operation. It is not called if nothing has to change.
    ///
    /// [`Error::Replaced`](super::Error::Replaced) if a path would be in something that is no
    /// directory. Nothing changes then.
    pub(crate) fn restore_paths(
        &self,
        source: &Source<'_>,
        paths: &[Vec<u8>],
        record: impl FnOnce(LayerId, &[RowChange<'_>]) -> Result<()>,
    ) -> Result<(Restored, Vec<Invalidation>)> {
        // What it was before, to which an undo returns.
        self.rotate()?;
        fault::point("restore.frozen");
        let stack = LowerStack::new(vec![source.image.clone()]);
        let mut staged = Staged::new();
        let done = self.restore_staged(source, &stack, paths, &mut staged, record);
        let used = done
            .as_ref()
            .map_or(&[][..], |(_, _, used)| used.as_slice());
        let upper = self.read().upper.clone();
        for copy in staged.values().filter(|copy| !used.contains(&copy.ino)) {
            if let Err(error) = upper.unstage(copy.ino) {
                tracing::warn!(%error, "cannot remove a copy from work; the next open does");
            }
        }
        if done.as_ref().is_err() || done.as_ref().is_ok_and(|(_, stale, _)| stale.is_empty()) {
            self.unrotate()?;
        }
        done.map(|(restored, stale, _)| (restored, stale))
    }

    fn restore_staged(
        &self,
        source: &Source<'_>,
        stack: &LowerStack,
        paths: &[Vec<u8>],
        staged: &mut Staged,
        record: impl FnOnce(LayerId, &[RowChange<'_>]) -> Result<()>,
    ) -> Result<(Restored, Vec<Invalidation>, Vec<Ino>)> {
        let current = self.lower();
        let shared = match current.images() {
            [image] => (source.shared)(image),
            _ => None,
        };
        let then = Then {
            union: self,
            source: stack,
            image: source.image,
            shared,
        };
        for _ in 0..ATTEMPTS {
            let wanted = Rows::plan(then, &self.read(), paths, staged)?.missing;
            if wanted.is_empty() {
                break;
            }
            for ino in wanted {
                let copied = self.stage_copy(stack, ino)?;
                staged.insert(ino, copied);
            }
        }
        fault::point("restore.staged");
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        let plan = loop {
            let rows = Rows::plan(then, state, paths, staged)?;
            if rows.missing.is_empty() {
                break rows.finish()?;
            }
            for ino in rows.missing {
                let copied = stage(&state.upper.clone(), stack, ino, self.new_ino()?)?;
                staged.insert(ino, copied);
            }
        };
        let (restored, used) = (plan.restored, plan.used);
        if plan.changes.is_empty() {
            return Ok((restored, Vec::new(), used));
        }
        let layer = state.layer;
        let changes = &plan.changes;
        state.delta.change(changes, || record(layer, changes))?;
        fault::point("restore.flipped");
        self.was_discarded.store(true, Ordering::Relaxed);
        state.orphans.extend(plan.orphans);
        // The rows have changed: files that cannot be moved now are repaired by the next open.
        plan.physical.apply(state, |e| {
            self.repair_later("cannot move a file that was replaced", &e);
        });
        Ok((restored, plan.stale, used))
    }

    fn stage_copy(&self, source: &LowerStack, ino: Ino) -> Result<Copied> {
        let upper = self.read().upper.clone();
        stage(&upper, source, ino, self.new_ino()?)
    }
}

/// Copies content to `work`, durably, for the object `to`.
fn stage(upper: &crate::upper::UpperDir, source: &LowerStack, ino: Ino, to: Ino) -> Result<Copied> {
    let attr = source.attr(ino)?.ok_or(nix::errno::Errno::ESTALE)?;
    let file = upper.stage(to)?;
    let copied = copy_content(source, ino, &file, attr.size)
        .and_then(|()| {
            let (atime, mtime) = (time_spec(attr.atime), time_spec(attr.mtime));
            Ok(nix::sys::stat::futimens(&*file, &atime, &mtime)?)
        })
        .and_then(|()| Ok(durable::sync_data(&*file)?))
        .and_then(|()| Ok(upper.backing_ino_of(&file)?));
    match copied {
        Ok(backing) => {
            let mode = crate::upper::backing_mode(attr.mode);
            if let Err(e) = nix::sys::stat::fchmod(&*file, mode) {
                tracing::debug!("cannot set the mode of a backing file: {e}");
            }
            Ok(Copied { ino: to, backing })
        }
        Err(e) => {
            upper.unstage(to)?;
            Err(e)
        }
    }
}
