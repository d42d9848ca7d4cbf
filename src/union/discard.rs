//! Throwing away the changes of some paths.
//!
//! What goes are rows of the writable layer. [`plan`] finds which, as the smallest set that is
//! closed under the rules there; [`rows`] says what becomes of the objects they were about;
//! [`physical`] does to the files what the rows ask for.

mod physical;
mod plan;
mod rows;

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::difference::{Draft, is_among};
use super::{Change, Error, Invalidation, Result, Union};
use plan::Plan;

impl Union {
    /// Throws away the changes at and below some paths (without a leading slash), whether they are
    /// named as they are now or as they were committed.
    ///
    /// A path that was renamed goes back where it was, and what had moved into something that goes
    /// away goes back too; where it lay has to be free for it, so what took that place goes. A hard
    /// link that goes leaves the object's other names and its content alone. A path in a directory
    /// that was removed brings the directory back. If it was made again, the path alone comes back
    /// in the new directory; if something else has its place, nothing is done: [`Error::Replaced`].
    ///
    /// Returns what was thrown away, and what the kernel must forget.
    pub fn discard_paths(&self, paths: &[Vec<u8>]) -> Result<(Vec<Change>, Vec<Invalidation>)> {
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if state.has_frozen() {
            return Err(Error::CommitUnfinished);
        }
        // Without frozen layers, what lies below is what was committed.
        let base = state.lower.clone();
        let mut before = Draft::of(state, &base)?;
        let plan = Plan::of(state, &base, paths)?;
        let touched = plan.touched();
        before.retain(|change| touched.contains(&change.ino) || is_among(&change.path, paths));
        let before = before.resolve(state, &base)?;
        let (changes, physical) = rows::after(&plan, state, &base)?;
        let mut stale: Vec<Invalidation> = plan
            .gone
            .iter()
            .map(|(dir, name)| Invalidation::Entry {
                dir: *dir,
                name: name.clone(),
            })
            .collect();
        stale.extend(touched.into_iter().map(Invalidation::Object));
        self.change(state, &changes)?;
        self.was_discarded.store(true, Ordering::Relaxed);
        // The rows have changed: what cannot be moved now is mended when they are opened next.
        physical.carry_out(state, |e| {
            self.repair_later("a file of discarded changes is not where it belongs", &e);
        });
        // Who held these without a name has them with one again.
        for ino in plan.regained.keys() {
            if state.orphans.remove(ino).is_some() {
                self.nodes.revive(*ino);
            }
        }
        // It has happened, so what fails now only makes the answer less exact.
        let gone = match Draft::of(state, &base) {
            Ok(after) => {
                let after: HashSet<&[u8]> = after.paths().collect();
                let is_gone = |change: &Change| !after.contains(&change.path[..]);
                before.into_iter().filter(is_gone).collect()
            }
            Err(e) => {
                tracing::warn!("what is left of the changes cannot be compared: {e}");
                let was_named = |change: &Change| is_among(&change.path, paths);
                before.into_iter().filter(was_named).collect()
            }
        };
        Ok((gone, stale))
    }
}
