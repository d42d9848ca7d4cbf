//! Discarding the changes of paths.
//!
//! Names of the writable layer are removed: [`plan`] selects them, as the smallest set that
//! satisfies the rules there. [`rows`] computes the changes of rows, and [`physical`] the changes
//! of files, which are applied after the rows have changed. All of it runs under the exclusive gate
//! and the exclusive `state` lock.

mod physical;
mod plan;
mod rows;

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::difference::{Draft, is_among};
use super::{Change, Error, Invalidation, Result, Union};
pub(super) use physical::Physical;
use plan::Plan;

impl Union {
    /// Discards the changes at and below paths (without a leading slash), which may be current or
    /// committed paths. `docs/semantics.md` describes which further changes are discarded.
    ///
    /// A renamed object returns to its committed path; an object there that is in the way is
    /// discarded. Objects that were moved into a discarded directory return too. Removing a hard
    /// link leaves the other names and the content of the object unchanged. If a path is in a
    /// removed directory, the directory is restored. If the directory was created again, only the
    /// path is restored in the new one.
    ///
    /// Returns the discarded changes, and what the kernel must forget.
    ///
    /// [`Error::Replaced`] if another object has the path of the directory, and
    /// [`Error::CommitUnfinished`] if there are frozen uppers. Nothing changes then.
    pub fn discard_paths(&self, paths: &[Vec<u8>]) -> Result<(Vec<Change>, Vec<Invalidation>)> {
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if state.has_frozen() {
            return Err(Error::CommitUnfinished);
        }
        // Without frozen uppers, the lower layers are the committed view.
        let base = state.lower.clone();
        let mut before = Draft::of(state, &base)?;
        let plan = Plan::of(state, &base, paths)?;
        let touched = plan.touched();
        before.retain(|change| touched.contains(&change.ino) || is_among(&change.path, paths));
        let before = before.resolve(state, &base)?;
        let (changes, physical) = rows::changes_of(&plan, state, &base)?;
        let mut stale: Vec<Invalidation> = plan
            .removed
            .iter()
            .map(|(dir, name)| Invalidation::Entry {
                dir: *dir,
                name: name.clone(),
            })
            .collect();
        stale.extend(touched.into_iter().map(Invalidation::Object));
        self.change(state, &changes)?;
        self.was_discarded.store(true, Ordering::Relaxed);
        // The rows have changed: files that cannot be moved now are repaired by the next open.
        physical.apply(state, |e| {
            self.repair_later("cannot move a file of discarded changes", &e);
        });
        // Orphans that have a committed name again.
        for ino in plan.restored_names.keys() {
            if state.orphans.remove(ino).is_some() {
                self.nodes.revive(*ino);
            }
        }
        // The changes are discarded: a failure from here on only makes the result less exact.
        let discarded = match Draft::of(state, &base) {
            Ok(after) => {
                let after: HashSet<&[u8]> = after.paths().collect();
                let is_discarded = |change: &Change| !after.contains(&change.path[..]);
                before.into_iter().filter(is_discarded).collect()
            }
            Err(e) => {
                tracing::warn!("cannot compare the remaining changes: {e}");
                let was_named = |change: &Change| is_among(&change.path, paths);
                before.into_iter().filter(was_named).collect()
            }
        };
        Ok((discarded, stale))
    }
}
