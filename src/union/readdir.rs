//! Listing directories, with positions that stay valid while the directory changes.
//!
//! Names of the lower layers come first, in byte order and at their position in the merged lower
//! listing, even if the writable layer has replaced their objects. Names that only the writable
//! layer has follow in the order of their creation. So a name that exists throughout a listing is
//! returned exactly once, even if names are created, removed or replaced meanwhile.
//!
//! A change of the stack may change positions. So a position contains the epoch of the stack, and
//! the old order of directories whose order changed is kept for some epochs: a listing in progress
//! continues in it, without names that were removed.
//!
//! New names come after all existing ones, so a program that creates or renames a file for each
//! entry would never reach the end. So a listing ends at the names that existed when it began. The
//! kernel sends no `OPENDIR`, so there is no handle to store this bound in; a position contains the
//! number of a bound that the directory stores ([`Bounds`](super::bounds::Bounds)).
//!
//! A position has 63 bits, from the lowest: 41 for the place in the listing, 10 for the epoch, 12
//! for the bound.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::bounds::BOUNDS;
use super::layer::SharedListing;
use super::loaded::DirDelta;
use super::{Result, State, Union};
use crate::object::{Ino, Kind};

/// The first place of names that no lower layer has.
const UPPER_NAMES: u64 = 1 << 40;
/// The place after `.` and `..`.
const FIRST: u64 = 2;
/// The lowest bit of the epoch in a position.
const EPOCH_SHIFT: u32 = 41;
/// Epochs are compared modulo this number.
const EPOCHS: u64 = 1 << 10;
/// The lowest bit of the number of a bound in a position. Positions must be below 2^63.
const BOUND_SHIFT: u32 = 51;
/// The number of epochs whose order is kept. A commit changes the stack twice.
const OLD_ORDERS_LIMIT: usize = 4;

/// Returns the high bits of a position: its epoch and its bound.
fn mark(epoch: u64, bound: u64) -> u64 {
    (epoch % EPOCHS) << EPOCH_SHIFT | (bound % BOUNDS) << BOUND_SHIFT
}

/// The order of directories before the stack changed, by epoch.
#[derive(Debug, Default)]
pub(super) struct OldOrders(VecDeque<(u64, HashMap<Ino, OldOrder>)>);

#[derive(Debug)]
struct OldOrder {
    lower: SharedListing,
    /// Names that no lower layer has, with their ages.
    upper: Vec<(u64, Box<[u8]>)>,
}

impl OldOrders {
    fn of(&self, epoch: u64, dir: Ino) -> Option<&OldOrder> {
        let (_, orders) = self.0.iter().find(|(kept, _)| kept % EPOCHS == epoch)?;
        orders.get(&dir)
    }
}

impl State {
    /// Ends an epoch before the stack changes. Keeps the order of the directories in which the
    /// writable layer has names, and of `others`, since it may change.
    pub(super) fn end_epoch(&mut self, others: Vec<Ino>) -> Result<()> {
        let mut orders = HashMap::new();
        let own = self.delta.dirs()?.map(|(dir, _)| dir);
        for dir in own.chain(others) {
            let upper = self.delta.dir(dir)?.map_or_else(Vec::new, |edits| {
                let links = edits.links_from(0);
                links.map(|(age, name, _)| (age, Box::from(name))).collect()
            });
            orders.insert(
                dir,
                OldOrder {
                    lower: self.lower.list(dir)?,
                    upper,
                },
            );
        }
        self.old_orders.0.push_back((self.epoch, orders));
        if self.old_orders.0.len() > OLD_ORDERS_LIMIT {
            self.old_orders.0.pop_front();
        }
        self.epoch += 1;
        Ok(())
    }

    /// Continues a listing that began before the stack changed.
    fn continue_old(
        &self,
        old: &OldOrder,
        dir: Ino,
        from: u64,
        mark: u64,
        limit: usize,
        items: &mut Vec<DirItem>,
    ) -> Result<()> {
        let start = usize::try_from(from.saturating_sub(FIRST)).unwrap_or(usize::MAX);
        let lower = (start..old.lower.len())
            .filter(|_| from < UPPER_NAMES)
            .filter_map(|position| {
                let (name, _, _) = old.lower.get(position)?;
                Some((name, FIRST + position as u64 + 1))
            });
        let upper = old.upper.iter().filter(|(age, name)| {
            *age >= from.saturating_sub(UPPER_NAMES) && old.lower.find(name).is_none()
        });
        for (name, next) in lower.chain(upper.map(|(age, name)| (&**name, UPPER_NAMES + age + 1))) {
            if items.len() >= limit {
                break;
            }
            if let Some(ino) = self.lookup(dir, name)? {
                let kind = self.kind(ino)?;
                items.push(DirItem {
                    ino,
                    kind,
                    name: Box::from(name),
                    next: next | mark,
                });
            }
        }
        Ok(())
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The object.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Box<[u8]>,
    /// The position after this entry.
    pub next: u64,
}

impl Union {
    /// Lists at most `limit` entries of a directory, including `.` and `..`, from a position on (0
    /// is the start). Fewer entries mean the end.
    pub fn read_dir(&self, dir: Ino, position: u64, limit: usize) -> Result<Vec<DirItem>> {
        let from = position & ((1 << EPOCH_SHIFT) - 1);
        let epoch = (position >> EPOCH_SHIFT) % EPOCHS;
        let mut items = Vec::with_capacity(limit.min(1024));
        if from < FIRST {
            // Outside the lock: this may read an image.
            self.lower().parent(dir)?;
        }
        let (lower, bound) = {
            let state = self.read();
            let edits = state.delta.dir(dir)?;
            let bound = if from < FIRST || epoch != state.epoch % EPOCHS {
                edits.map_or(0, DirDelta::begin_listing)
            } else {
                (position >> BOUND_SHIFT) % BOUNDS
            };
            if from < FIRST {
                let parent = match state.parent(dir) {
                    Ok(Some((parent, _))) => parent,
                    _ => dir,
                };
                let dots = [(dir, &b"."[..]), (parent, &b".."[..])];
                let mark = mark(state.epoch, bound);
                for (n, (ino, name)) in dots.into_iter().enumerate().skip(from as usize) {
                    let next = n as u64 + 1;
                    items.push(DirItem {
                        ino,
                        kind: Kind::Directory,
                        name: Box::from(name),
                        // The names after it are in the order of this epoch.
                        next: if next < FIRST { next } else { next | mark },
                    });
                }
            }
            if state.orphans.contains_key(&dir) {
                return Ok(items);
            }
            if from >= FIRST
                && let Some(old) = state.old_orders.of(epoch, dir)
            {
                let mark = position - from;
                state.continue_old(old, dir, from, mark, limit, &mut items)?;
                return Ok(items);
            }
            (state.lower.clone(), bound)
        };
        // Outside the lock: this may read an image.
        let listing = lower.list(dir)?;
        let state = self.read();
        if !Arc::ptr_eq(&state.lower, &lower) {
            // The stack changed meanwhile, so names may have moved between rows and lower layers.
            drop(state);
            return self.read_dir(dir, position, limit);
        }
        let mark = mark(state.epoch, bound);
        let edits = state.delta.dir(dir)?;
        let kind_of = |ino: Ino, below: Kind| -> Result<Kind> {
            Ok(state.delta.inode(ino)?.map_or(below, |row| row.kind))
        };
        if from < UPPER_NAMES {
            let start = usize::try_from(from.saturating_sub(FIRST)).unwrap_or(usize::MAX);
            for position in start..listing.len() {
                if items.len() >= limit {
                    return Ok(items);
                }
                let Some((name, below, kind)) = listing.get(position) else {
                    break;
                };
                let ino = match edits.and_then(|edits| edits.get(name)) {
                    None => below,
                    Some(Some(ino)) => ino,
                    Some(None) => continue,
                };
                items.push(DirItem {
                    ino,
                    kind: kind_of(ino, kind)?,
                    name: Box::from(name),
                    next: (FIRST + position as u64 + 1) | mark,
                });
            }
        }
        let Some(edits) = edits else { return Ok(items) };
        let end = edits.bounds.end(bound);
        for (age, name, ino) in edits.links_from(from.saturating_sub(UPPER_NAMES)) {
            if age >= end || items.len() >= limit {
                break;
            }
            if listing.find(name).is_none() {
                items.push(DirItem {
                    ino,
                    kind: kind_of(ino, Kind::File)?,
                    name: Box::from(name),
                    next: (UPPER_NAMES + age + 1) | mark,
                });
            }
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_not_negative() {
        let highest = mark(EPOCHS - 1, BOUNDS - 1) | UPPER_NAMES | (UPPER_NAMES - 1);
        assert_eq!(highest, i64::MAX as u64);
    }
}
