//! Discarding the changes of paths.
//!
//! The uppers are frozen first: they are the state before, to which an undo returns. Then rows of
//! the new writable layer say again what was committed. [`plan`] selects the names, as the smallest
//! set that satisfies the rules there, and [`rows`] computes the rows. All of it runs under the
//! exclusive gate and the exclusive `state` lock.

mod objects;
mod part;
mod part_rows;
mod plan;
mod rows;

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::delta::{Delta, row_from};
use super::difference::{Draft, Edits, View, is_among, rows_of};
use super::{Change, Invalidation, LowerStack, Result, State, Union};
use crate::fault;
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, InodeRow, LayerId, RowChange};
pub(crate) use part::{Part, Tracked};
use plan::Plan;

/// What the uppers say of an object.
enum Known {
    /// Nothing: it is as committed.
    Committed,
    /// It has no name, whatever rows of frozen layers say.
    Nameless,
    /// This, as if they were one layer. Content that is in any of them is [`DataPlace::Upper`].
    Row(InodeRow),
}

/// Returns what the uppers say of an object.
fn flat_row(state: &State, base: &LowerStack, edits: &Edits, ino: Ino) -> Result<Known> {
    let rows = state.rows_of(ino)?;
    let Some(top) = rows.first() else {
        return Ok(match edits.is_gone(ino) || edits.heir_of(ino).is_some() {
            true => Known::Nameless,
            false => Known::Committed,
        });
    };
    let is_nameless = match top.kind {
        Kind::Directory => !edits.is_reachable(ino),
        _ => {
            let committed = base.attr(ino)?.map_or(0, |attr| attr.nlink as usize);
            edits.links_of(ino).is_empty() && edits.missing_of(ino).len() >= committed
        }
    };
    if is_nameless {
        return Ok(Known::Nameless);
    }
    let content = rows.iter().find(|row| row.data != DataPlace::Lower);
    let place = rows.iter().find_map(|row| row.place.clone());
    let attr = state.lower.attr(ino)?.ok_or(nix::errno::Errno::ESTALE)?;
    let mut row = row_from(&attr, top.target.clone(), place);
    row.owns_xattrs = rows.iter().any(|row| row.owns_xattrs);
    if let Some(content) = content {
        row.data = content.data;
    }
    Ok(Known::Row(row))
}

/// Returns the changes of the rows `own`, those of all uppers as one layer, that leave only a part
/// of its differences from `base`; `None` if all belong to the part.
pub(super) fn part_of(
    state: &State,
    own: &Delta,
    base: &LowerStack,
    part: Part<'_>,
) -> Result<Option<Vec<RowChange<'static>>>> {
    let plan = Plan::keeping(state, own, base, part)?;
    match plan.is_empty() {
        true => Ok(None),
        false => Ok(Some(part_rows::changes_of(&plan, own, state, base)?)),
    }
}

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
    /// `record` changes rows of the writable layer in the database, together with what else belongs
    /// to the operation. It is not called if nothing has to change.
    ///
    /// Returns the discarded changes, and what the kernel must forget.
    ///
    /// [`Error::Replaced`](super::Error::Replaced) if another object has the path of the directory.
    /// Nothing changes then.
    pub fn discard_paths(
        &self,
        paths: &[Vec<u8>],
        record: impl FnOnce(LayerId, &[RowChange<'_>]) -> Result<()>,
    ) -> Result<(Vec<Change>, Vec<Invalidation>)> {
        self.load_rows()?;
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        let base = state.lower.committed();
        let mut before = Draft::of(state, &base)?;
        let plan = Plan::of(state, &base, paths)?;
        let touched = plan.touched();
        if touched.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        before.retain(|change| touched.contains(&change.ino) || is_among(&change.path, paths));
        let before = before.resolve(state, &base)?;
        self.freeze_locked(state, |frozen, fresh| match fresh {
            Some(fresh) => Ok(self.db.rotate(frozen, fresh)?),
            None => Ok(()),
        })?;
        fault::point("discard-paths.frozen");
        let stale = match self.say_committed(state, &base, &plan, record) {
            Ok(stale) if !stale.is_empty() => stale,
            done => {
                self.unrotate_locked(state)?;
                done?;
                return Ok((Vec::new(), Vec::new()));
            }
        };
        self.was_discarded.store(true, Ordering::Relaxed);
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

    /// Changes the rows of the empty writable layer. Returns what the kernel must forget; nothing
    /// if there was nothing to change.
    fn say_committed(
        &self,
        state: &mut State,
        base: &LowerStack,
        plan: &Plan,
        record: impl FnOnce(LayerId, &[RowChange<'_>]) -> Result<()>,
    ) -> Result<Vec<Invalidation>> {
        let changes = rows::changes_of(plan, state, base)?;
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        // Objects that programs have open lose their names, and stay readable.
        let mut orphans = Vec::new();
        for ino in &plan.deleted {
            let mut row = state.row(*ino, || None)?;
            row.nlink = 0;
            orphans.extend(
                self.orphan_of(state, *ino, &row)?
                    .map(|found| (*ino, found)),
            );
        }
        let layer = state.layer;
        state.delta.change(&changes, || record(layer, &changes))?;
        fault::point("discard-paths.flipped");
        state.orphans.extend(orphans);
        let mut stale: Vec<Invalidation> = plan
            .removed
            .iter()
            .map(|(dir, name)| Invalidation::Entry {
                dir: *dir,
                name: name.clone(),
            })
            .collect();
        let names = changes.iter().filter_map(|change| match change {
            RowChange::PutEntry { dir, name, .. } => Some(Invalidation::Entry {
                dir: *dir,
                name: Box::from(&name[..]),
            }),
            _ => None,
        });
        stale.extend(names);
        stale.extend(plan.touched().into_iter().map(Invalidation::Object));
        Ok(stale)
    }
}

impl State {
    /// Returns the rows of an object in the uppers, the topmost first.
    fn rows_of(&self, ino: Ino) -> Result<Vec<&InodeRow>> {
        rows_of(&self.deltas(), ino)
    }
}
