//! Listing directories, with positions that survive changes made meanwhile.
//!
//! Names that a lower layer has come first, in byte order, at the position they have there, whoever
//! provides them now; names only the writable layer has follow in the order they were made. So a
//! name that is there throughout a listing is met exactly once, whatever is made, removed or
//! replaced around it.

use super::{Result, Union};
use crate::object::{Ino, Kind};

/// Positions of names that no lower layer has.
const MADE: u64 = 1 << 48;
/// Position after `.` and `..`.
const FIRST: u64 = 2;

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
    pub fn read_dir(&self, dir: Ino, from: u64, limit: usize) -> Result<Vec<DirItem>> {
        let mut items = Vec::with_capacity(limit.min(1024));
        let lower = {
            let state = self.read();
            if from < FIRST {
                let parent = match state.parent(dir) {
                    Ok(Some((parent, _))) => parent,
                    _ => dir,
                };
                let dots = [(dir, &b"."[..]), (parent, &b".."[..])];
                for (n, (ino, name)) in dots.into_iter().enumerate().skip(from as usize) {
                    items.push(DirItem {
                        ino,
                        kind: Kind::Directory,
                        name: Box::from(name),
                        next: n as u64 + 1,
                    });
                }
            }
            if state.orphans.contains_key(&dir) {
                return Ok(items);
            }
            state.lower.clone()
        };
        // Outside the lock: this may read an image.
        let listing = lower.list(dir)?;
        let state = self.read();
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
                    next: FIRST + position as u64 + 1,
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
                    next: MADE + age + 1,
                });
            }
        }
        Ok(items)
    }
}
