//! Listing directories, with positions that survive changes made meanwhile.
//!
//! Names that a lower layer has come first, in byte order, at the position they have there, whoever
//! provides them now; names only the writable layer has follow in the order they were made. So a
//! name that is there throughout a listing is met exactly once, whatever is made, removed or
//! replaced around it.
//!
//! A change of the stack may change positions. A position therefore carries the epoch of the stack it
//! was given in, and directories whose order changed are kept in their old order for a while: who
//! was in the middle of one reads it to its end, less what is gone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::layer::SharedListing;
use super::{Result, State, Union};
use crate::object::{Ino, Kind};

/// Positions of names that no lower layer has.
const MADE: u64 = 1 << 48;
/// Position after `.` and `..`.
const FIRST: u64 = 2;
/// Where the epoch is in a position.
const EPOCH_SHIFT: u32 = 49;
/// Positions must stay below 2^63; epochs are compared modulo this.
const EPOCHS: u64 = 1 << 13;
/// Old orders kept: a commit changes the stack twice.
const KEPT: usize = 4;

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
    /// Ends an epoch, before the stack changes: keeps the order of directories that may be listed in
    /// another one then. Those are the ones in which this layer has names, and `others`.
    pub(super) fn end_epoch(&mut self, others: Vec<Ino>) -> Result<()> {
        let mut orders = HashMap::new();
        for dir in self.delta.dirs.keys().copied().chain(others) {
            let made = self.delta.dirs.get(&dir).map_or_else(Vec::new, |edits| {
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
        epoch: u64,
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
                    next: next | epoch << EPOCH_SHIFT,
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
    /// Lists a directory from a position on (0 is the start), `.` and `..` included, at most `limit`
    /// entries. Fewer than `limit` mean the end.
    pub fn read_dir(&self, dir: Ino, position: u64, limit: usize) -> Result<Vec<DirItem>> {
        let (given_in, from) = (position >> EPOCH_SHIFT, position & ((1 << EPOCH_SHIFT) - 1));
        let mut items = Vec::with_capacity(limit.min(1024));
        if from < FIRST {
            // Outside the lock: this may read an image.
            self.lower().parent(dir)?;
        }
        let lower = {
            let state = self.read();
            if from < FIRST {
                let parent = match state.parent(dir) {
                    Ok(Some((parent, _))) => parent,
                    _ => dir,
                };
                let dots = [(dir, &b"."[..]), (parent, &b".."[..])];
                let mark = (state.epoch % EPOCHS) << EPOCH_SHIFT;
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
                state.rest_of(old, dir, from, given_in, limit, &mut items)?;
                return Ok(items);
            }
            state.lower.clone()
        };
        // Outside the lock: this may read an image.
        let listing = lower.list(dir)?;
        let state = self.read();
        if !Arc::ptr_eq(&state.lower, &lower) {
            // The stack changed meanwhile: names may have moved between the rows and the layers below.
            drop(state);
            return self.read_dir(dir, position, limit);
        }
        let mark = (state.epoch % EPOCHS) << EPOCH_SHIFT;
        let edits = state.delta.dirs.get(&dir);
        let kind_of =
            |ino: Ino, below: Kind| state.delta.inodes.get(&ino).map_or(below, |row| row.kind);
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
                    kind: kind_of(ino, kind),
                    name: Box::from(name),
                    next: (FIRST + position as u64 + 1) | mark,
                });
            }
        }
        let Some(edits) = edits else { return Ok(items) };
        for (age, name, ino) in edits.links_from(from.saturating_sub(MADE)) {
            if items.len() >= limit {
                break;
            }
            if listing.find(name).is_none() {
                items.push(DirItem {
                    ino,
                    kind: kind_of(ino, Kind::File),
                    name: Box::from(name),
                    next: (MADE + age + 1) | mark,
                });
            }
        }
        Ok(items)
    }
}
