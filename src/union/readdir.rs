//! Listing directories, with positions that survive changes made meanwhile.
//!
//! Names that a lower layer has come first, in byte order, at the position they have there, whoever
//! provides them now; names only the writable layer has follow in the order they were made. So a
//! name that is there throughout a listing is met exactly once, whatever is made, removed or
//! replaced around it.
//!
//! A change of the stack may change positions. A position therefore carries the epoch of the stack
//! it was given in, and directories whose order changed are kept in their old order for a while:
//! who was in the middle of one reads it to its end, less what is gone.
//!
//! Names that are made while a listing is under way come after everything that was there, so a
//! program that makes or renames a file for each entry it reads would never reach the end. A
//! listing is therefore bounded by what was there when it began. `OPENDIR` is not asked for, so
//! there is no handle to keep the bound in: a position carries the number of a bound ([`Bounds`])
//! that the directory remembers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::delta::DirDelta;
use super::layer::SharedListing;
use super::{Result, State, Union};
use crate::object::{Ino, Kind};

/// Places of names that no lower layer has.
const MADE: u64 = 1 << 40;
/// Place after `.` and `..`.
const FIRST: u64 = 2;
/// Where the epoch is in a position, above the place.
const EPOCH_SHIFT: u32 = 41;
/// Epochs are compared modulo this.
const EPOCHS: u64 = 1 << 10;
/// Where the number of the bound is in a position. Positions must stay below 2^63.
const BOUND_SHIFT: u32 = 51;
/// Numbers of bounds are compared modulo this.
const BOUNDS: u64 = 1 << 12;
/// Old orders kept: a commit changes the stack twice.
const KEPT: usize = 4;
/// Bounds kept of a directory: as many as their numbers can tell apart.
const BOUNDS_KEPT: usize = BOUNDS as usize - 1;

/// The high bits of a position: in which order it is meant, and where its listing ends.
fn mark(epoch: u64, bound: u64) -> u64 {
    (epoch % EPOCHS) << EPOCH_SHIFT | (bound % BOUNDS) << BOUND_SHIFT
}

/// Where the listings of one directory end that may be under way: at the first name that was made
/// after the listing began. Numbered in the order in which they were set; number 0 excludes all
/// made names and is that of listings that begin before the first of them.
#[derive(Debug, Default)]
pub(super) struct Bounds(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// The number before that of the first in `ends`.
    before: u64,
    /// Ages, increasing.
    ends: VecDeque<u64>,
}

impl Bounds {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Changed in steps that cannot panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a listing; names from age `end` on are not part of it. Returns the number of its
    /// bound.
    pub(super) fn begin(&self, end: u64) -> u64 {
        let mut kept = self.kept();
        if kept.ends.back().copied().unwrap_or(0) != end {
            kept.ends.push_back(end);
            if kept.ends.len() > BOUNDS_KEPT {
                kept.ends.pop_front();
                kept.before += 1;
            }
        }
        kept.before + kept.ends.len() as u64
    }

    /// Returns the age at which a listing ends, by the number of its bound modulo [`BOUNDS`]. A
    /// listing whose bound is kept no longer ends at the oldest that is.
    fn end(&self, number: u64) -> u64 {
        let kept = self.kept();
        let newest = kept.before + kept.ends.len() as u64;
        let back = newest.wrapping_sub(number) % BOUNDS;
        let index = (kept.ends.len() as u64).checked_sub(back + 1);
        let index = index.and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| kept.ends.get(index)) {
            Some(end) => *end,
            None if kept.before == 0 => 0,
            None => kept.ends.front().copied().unwrap_or(0),
        }
    }
}

/// Directories as they were listed before the stack changed.
#[derive(Debug, Default)]
pub(super) struct OldOrders(VecDeque<(u64, HashMap<Ino, OldOrder>)>);

#[derive(Debug)]
struct OldOrder {
    lower: SharedListing,
    made: Vec<(u64, Box<[u8]>)>,
}

impl OldOrders {
    fn of(&self, epoch: u64, dir: Ino) -> Option<&OldOrder> {
        let (_, orders) = self.0.iter().find(|(kept, _)| kept % EPOCHS == epoch)?;
        orders.get(&dir)
    }
}

impl State {
    /// Ends an epoch, before the stack changes: keeps the order of directories that may be listed
    /// in another one then. Those are the ones in which this layer has names, and `others`.
    pub(super) fn end_epoch(&mut self, others: Vec<Ino>) -> Result<()> {
        let mut orders = HashMap::new();
        let own = self.delta.dirs()?.map(|(dir, _)| dir);
        for dir in own.chain(others) {
            let made = self.delta.dir(dir)?.map_or_else(Vec::new, |edits| {
                let links = edits.links_from(0);
                links.map(|(age, name, _)| (age, Box::from(name))).collect()
            });
            orders.insert(
                dir,
                OldOrder {
                    lower: self.lower.list(dir)?,
                    made,
                },
            );
        }
        self.old_orders.0.push_back((self.epoch, orders));
        if self.old_orders.0.len() > KEPT {
            self.old_orders.0.pop_front();
        }
        self.epoch += 1;
        Ok(())
    }

    /// Goes on with a listing that began before the stack changed.
    fn rest_of(
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
            .filter(|_| from < MADE)
            .filter_map(|position| {
                let (name, _, _) = old.lower.get(position)?;
                Some((name, FIRST + position as u64 + 1))
            });
        let made = old.made.iter().filter(|(age, name)| {
            *age >= from.saturating_sub(MADE) && old.lower.find(name).is_none()
        });
        for (name, next) in lower.chain(made.map(|(age, name)| (&**name, MADE + age + 1))) {
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
    /// Where to go on after this entry.
    pub next: u64,
}

impl Union {
    /// Lists a directory from a position on (0 is the start), `.` and `..` included, at most
    /// `limit` entries. Fewer than `limit` mean the end.
    pub fn read_dir(&self, dir: Ino, position: u64, limit: usize) -> Result<Vec<DirItem>> {
        let from = position & ((1 << EPOCH_SHIFT) - 1);
        let given_in = (position >> EPOCH_SHIFT) % EPOCHS;
        let mut items = Vec::with_capacity(limit.min(1024));
        if from < FIRST {
            // Outside the lock: this may read an image.
            self.lower().parent(dir)?;
        }
        let (lower, bound) = {
            let state = self.read();
            let edits = state.delta.dir(dir)?;
            let bound = if from < FIRST || given_in != state.epoch % EPOCHS {
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
                        // What follows is in the order of this epoch.
                        next: if next < FIRST { next } else { next | mark },
                    });
                }
            }
            if state.orphans.contains_key(&dir) {
                return Ok(items);
            }
            if from >= FIRST
                && let Some(old) = state.old_orders.of(given_in, dir)
            {
                let mark = position - from;
                state.rest_of(old, dir, from, mark, limit, &mut items)?;
                return Ok(items);
            }
            (state.lower.clone(), bound)
        };
        // Outside the lock: this may read an image.
        let listing = lower.list(dir)?;
        let state = self.read();
        if !Arc::ptr_eq(&state.lower, &lower) {
            // The stack changed meanwhile: names may have moved between the rows and the layers
            // below.
            drop(state);
            return self.read_dir(dir, position, limit);
        }
        let mark = mark(state.epoch, bound);
        let edits = state.delta.dir(dir)?;
        let kind_of = |ino: Ino, below: Kind| -> Result<Kind> {
            Ok(state.delta.inode(ino)?.map_or(below, |row| row.kind))
        };
        if from < MADE {
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
        for (age, name, ino) in edits.links_from(from.saturating_sub(MADE)) {
            if age >= end || items.len() >= limit {
                break;
            }
            if listing.find(name).is_none() {
                items.push(DirItem {
                    ino,
                    kind: kind_of(ino, Kind::File)?,
                    name: Box::from(name),
                    next: (MADE + age + 1) | mark,
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
    fn a_listing_ends_where_it_began_to() {
        let bounds = Bounds::default();
        assert_eq!(bounds.end(0), 0, "nothing was made yet");
        assert_eq!(bounds.begin(0), 0);
        let first = bounds.begin(5);
        assert_eq!(
            bounds.begin(5),
            first,
            "nothing was made between the two listings"
        );
        let second = bounds.begin(9);
        assert_eq!(
            [bounds.end(0), bounds.end(first), bounds.end(second)],
            [0, 5, 9]
        );
    }

    #[test]
    fn the_numbers_of_bounds_wrap_and_old_ones_still_end() {
        let bounds = Bounds::default();
        let numbers: Vec<u64> = (1..=3 * BOUNDS).map(|age| bounds.begin(age)).collect();
        assert_eq!(bounds.kept().ends.len(), BOUNDS_KEPT);
        for (age, number) in (1..).zip(&numbers).skip(2 * BOUNDS as usize + 1) {
            assert_eq!(bounds.end(number % BOUNDS), age);
        }
        // The one before the oldest that is kept.
        let oldest = 2 * BOUNDS + 2;
        assert_eq!(bounds.end(numbers[2 * BOUNDS as usize] % BOUNDS), oldest);
    }

    #[test]
    fn positions_are_not_negative() {
        let highest = mark(EPOCHS - 1, BOUNDS - 1) | MADE | (MADE - 1);
        assert_eq!(highest, i64::MAX as u64);
    }
}
