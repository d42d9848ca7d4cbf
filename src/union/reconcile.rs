//! Mends an upper layer that was not closed cleanly: rows decide what exists, files are brought to
//! where the rows say, and what no row knows is set aside. Doing it twice changes nothing more.

use std::collections::HashMap;
use std::os::fd::AsFd;

use super::delta::Delta;
use super::stack::{LowerStack, chain};
use super::{Error, Result, Union, frozen};
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, LayerId, RowChange, StateDb};
use crate::upper::{Found, UpperDir};

/// Where a file lies: in `work` or not, and its path there.
type Place = (bool, Vec<Box<[u8]>>);

/// What was found and done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// Files brought to their place: a rename was cut short.
    pub moved: usize,
    /// Files no row knows, moved to the strays directory: a creation or removal was cut short.
    pub set_aside: usize,
    /// Objects whose content never reached the disk; their names show again what lies below.
    pub lost: Vec<Ino>,
    /// Rows whose file has another host inode number: the store was copied.
    pub renumbered: usize,
}

impl Reconciled {
    /// Adds what was found in another layer.
    pub(super) fn add(&mut self, other: Reconciled) {
        self.moved += other.moved;
        self.set_aside += other.set_aside;
        self.renumbered += other.renumbered;
        self.lost.extend(other.lost);
    }

    /// Returns true if rows and files agreed.
    pub fn is_nothing(&self) -> bool {
        *self == Reconciled::default()
    }
}

/// Compares the rows of a layer with the files of its directory and mends the difference.
pub(super) fn reconcile(
    db: &StateDb,
    layer: LayerId,
    delta: &mut Delta,
    upper: &UpperDir,
    lower: &LowerStack,
) -> Result<Reconciled> {
    let mut done = Reconciled::default();
    let mut unclaimed: HashMap<Place, Found> = HashMap::new();
    let mut by_backing: HashMap<u64, Place> = HashMap::new();
    for found in upper.scan()? {
        let key = (found.in_work, found.path.clone());
        by_backing.insert(found.backing_ino, key.clone());
        unclaimed.insert(key, found);
    }
    let parent = |delta: &Delta, dir: Ino| match delta.place(dir) {
        Some(place) => Ok(Some(place)),
        None => lower.parent(dir),
    };
    let mut misplaced = Vec::new();
    let mut pictures = Vec::new();
    let mut changes = Vec::new();
    for (&ino, row) in &delta.inodes {
        if row.data != DataPlace::Upper {
            continue;
        }
        let expected = match &row.place {
            None => (true, vec![Box::from(ino.to_string().as_bytes())]),
            Some((dir, name)) => {
                let mut path: Vec<Box<[u8]>> = chain(*dir, |d| parent(delta, d))?
                    .into_iter()
                    .map(|(_, name)| name)
                    .collect();
                path.push(name.clone());
                (false, path)
            }
        };
        let here = unclaimed.get(&expected).map(|found| found.backing_ino);
        let elsewhere = by_backing
            .get(&row.backing_ino)
            .filter(|key| unclaimed.contains_key(*key))
            .cloned();
        match (here, elsewhere) {
            (Some(backing), _) if backing == row.backing_ino => drop(unclaimed.remove(&expected)),
            (_, Some(key)) => {
                if let Some(found) = unclaimed.remove(&key) {
                    misplaced.push((ino, row.place.clone(), found));
                }
            }
            (Some(backing), None) => {
                unclaimed.remove(&expected);
                let mut row = row.clone();
                row.backing_ino = backing;
                done.renumbered += 1;
                changes.push(RowChange::put_inode(ino, row));
            }
            // The row is what counts; the link in the upper is a picture of it.
            (None, None) if row.kind == Kind::Symlink => pictures.push((ino, row.clone())),
            (None, None) => {
                done.lost.push(ino);
                if row.kind == Kind::File && lower.attr(ino)?.is_some() {
                    let mut row = row.clone();
                    row.data = DataPlace::Lower;
                    changes.push(RowChange::put_inode(ino, row));
                } else {
                    for (dir, entries) in &delta.dirs {
                        for (name, target) in entries.iter() {
                            if target == Some(ino) {
                                let uncovered = uncovers(delta, lower, *dir, name)?;
                                changes.push(if uncovered {
                                    RowChange::drop_entry(*dir, name.to_vec())
                                } else {
                                    RowChange::put_entry(*dir, name.to_vec(), None)
                                });
                            }
                        }
                    }
                    changes.push(RowChange::DropInode(ino));
                    changes.push(RowChange::DropXattrs(ino));
                }
            }
        }
    }
    for found in unclaimed.values() {
        if found.in_work {
            // A copy that was not finished, or content of a name that was removed.
            upper.remove_found(found)?;
        } else {
            upper.set_found_aside(found)?;
            done.set_aside += 1;
        }
    }
    // Misplaced files go through `work`, so that two that changed places do not meet.
    for (ino, _, found) in &misplaced {
        upper.take_to_work(found, *ino)?;
    }
    for (ino, place, _) in &misplaced {
        if let Some((dir, name)) = place {
            let fd = upper.make_dir(&chain(*dir, |d| parent(delta, d))?)?;
            upper.place(*ino, fd.as_fd(), name)?;
        }
        done.moved += 1;
    }
    for (ino, mut row) in pictures {
        if let (Some((dir, name)), Some(target)) = (row.place.clone(), row.target.clone()) {
            let fd = upper.make_dir(&chain(dir, |d| parent(delta, d))?)?;
            upper.create_symlink(fd.as_fd(), &name, &target)?;
            row.backing_ino = upper.backing_ino(fd.as_fd(), &name)?;
        } else {
            row.data = DataPlace::Lower;
        }
        done.renumbered += 1;
        changes.push(RowChange::put_inode(ino, row));
    }
    if !changes.is_empty() {
        db.apply(layer, &changes).map_err(Error::from)?;
        for change in &changes {
            delta.apply(change);
        }
    }
    Ok(done)
}

/// Returns true if a name may show again what lies below: a file that is nowhere else.
fn uncovers(delta: &Delta, lower: &LowerStack, dir: Ino, name: &[u8]) -> Result<bool> {
    let Some(below) = lower.lookup(dir, name)? else {
        return Ok(true);
    };
    let is_file = lower
        .attr(below)?
        .is_some_and(|attr| attr.kind != Kind::Directory);
    Ok(is_file && !delta.inodes.contains_key(&below))
}

impl Union {
    /// Looks whether every row has its file; returns what is wrong, in words.
    pub fn verify_upper(&self) -> Result<Vec<String>> {
        let state = self.read();
        let mut problems = Vec::new();
        for (ino, row) in &state.delta.inodes {
            if row.data == DataPlace::Upper {
                let found = frozen::with_place(
                    &state.upper,
                    row,
                    |d| state.chain(d),
                    |place| state.upper.stat(*ino, place),
                );
                if let Err(e) = found {
                    let name = row
                        .place
                        .as_ref()
                        .map_or_else(String::new, |p| String::from_utf8_lossy(&p.1).into_owned());
                    problems.push(format!(
                        "the content of changed file {name:?} (object {ino}) is missing: {e}"
                    ));
                }
            }
        }
        problems.sort();
        Ok(problems)
    }
}
