//! Repairs an upper layer whose rows and files differ: it was not closed cleanly, or was copied, or
//! somebody has changed its files. Rows decide what exists, files are brought to where the rows
//! say, and what no row knows is set aside. Doing it twice changes nothing more.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::delta::Delta;
use super::stack::{LowerStack, chain};
use super::{Error, Invalidation, Lookup, Result, Union};
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, InodeRow, LayerId, RowChange, StateDb};
use crate::upper::{Found, FoundKind, UpperDir};

/// Where a file lies: in `work` or not, and its path there.
type Place = (bool, Vec<Box<[u8]>>);

/// What was found and done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// Files brought to their place: a rename was cut short.
    pub moved: usize,
    /// Files no row knows, moved to the strays directory: a creation or removal was cut short.
    pub set_aside: usize,
    /// Files whose content never reached the disk, by the paths that the rows have for them; they
    /// show again what lies below.
    pub lost: Vec<PathBuf>,
    /// Rows whose file has another host inode number: the store was copied.
    pub renumbered: usize,
    /// What the kernel must forget, where it knows the view.
    pub stale: Vec<Invalidation>,
}

impl Reconciled {
    /// Adds what was found in another layer.
    pub(super) fn add(&mut self, other: Reconciled) {
        self.moved += other.moved;
        self.set_aside += other.set_aside;
        self.renumbered += other.renumbered;
        self.lost.extend(other.lost);
        self.stale.extend(other.stale);
    }

    /// Returns true if rows and files agreed.
    pub fn is_empty(&self) -> bool {
        *self == Reconciled::default()
    }
}

/// Compares the rows of a layer with the files of its directory and mends the difference. In a copy
/// of the store host inode numbers say nothing: only places do.
pub(super) fn reconcile(
    db: &StateDb,
    layer: LayerId,
    delta: &mut Delta,
    upper: &UpperDir,
    lower: &LowerStack,
    is_copy: bool,
) -> Result<Reconciled> {
    let mut done = Reconciled::default();
    let mut unclaimed: HashMap<Place, Found> = HashMap::new();
    let mut by_backing: HashMap<u64, Place> = HashMap::new();
    for found in upper.scan()? {
        let key = (found.in_work, found.path.clone());
        by_backing.insert(found.backing_ino, key.clone());
        unclaimed.insert(key, found);
    }
    let parent = |delta: &Delta, dir: Ino| parent_of(delta, lower, dir);
    let mut misplaced: HashMap<Place, Misplaced> = HashMap::new();
    let mut pictures = Vec::new();
    let mut changes = Vec::new();

    // First what lies where it belongs, so that nobody else takes it.
    let mut searched = Vec::new();
    for (ino, row) in delta.inodes()? {
        if row.data != DataPlace::Upper {
            continue;
        }
        let way = match &row.place {
            None => None,
            Some((dir, name)) => match chain(*dir, |d| parent(delta, d)) {
                // The directory is gone: what lies there has no name of this layer any more.
                Err(Error::Posix(Errno::ESTALE)) => None,
                way => Some((way?, name)),
            },
        };
        let mut row = row.clone();
        let expected = match way {
            Some((way, name)) => {
                let mut path: Vec<Box<[u8]>> = way.into_iter().map(|(_, name)| name).collect();
                path.push(name.clone());
                (false, path)
            }
            None => {
                if row.place.take().is_some() {
                    changes.push(RowChange::put_inode(ino, row.clone()));
                }
                (true, vec![Box::from(ino.to_string().as_bytes())])
            }
        };
        match unclaimed.get(&expected) {
            Some(found) if found.backing_ino == row.backing_ino && is_fit(row.kind, found.kind) => {
                unclaimed.remove(&expected);
            }
            _ => searched.push((ino, row, expected)),
        }
    }
    // Then what lies elsewhere: its host inode number tells, if it is still the same file.
    let mut missing = Vec::new();
    for (ino, row, expected) in searched {
        let key = by_backing.get(&row.backing_ino).filter(|key| {
            let found = unclaimed.get(*key);
            !is_copy && found.is_some_and(|found| is_fit(row.kind, found.kind))
        });
        match key.and_then(|key| unclaimed.remove_entry(key)) {
            Some((key, found)) => {
                misplaced.insert(key, Misplaced { ino, row, found });
            }
            None => missing.push((ino, row, expected)),
        }
    }
    for (ino, mut row, expected) in missing {
        let is_there = unclaimed
            .get(&expected)
            .is_some_and(|found| is_fit(row.kind, found.kind));
        if let Some(found) = is_there.then(|| unclaimed.remove(&expected)).flatten() {
            row.backing_ino = found.backing_ino;
            done.renumbered += 1;
            changes.push(RowChange::put_inode(ino, row));
        } else if let Some(renaming) = cut_short(delta, lower, ino, &row, misplaced.get(&expected))?
        {
            misplaced.remove(&expected);
            done.moved += 1;
            changes.extend(renaming);
        } else if row.kind == Kind::Symlink {
            // The row is what counts; the link in the upper is a picture of it.
            pictures.push((ino, row));
        } else {
            done.lost.push(path_of(delta, lower, ino, &expected));
            if row.kind == Kind::File && lower.attr(ino)?.is_some() {
                row.data = DataPlace::Lower;
                changes.push(RowChange::put_inode(ino, row));
                continue;
            }
            for (dir, entries) in delta.dirs()? {
                for (name, target) in entries.iter() {
                    if target == Some(ino) {
                        let uncovered = uncovers(delta, lower, dir, name)?;
                        changes.push(if uncovered {
                            RowChange::drop_entry(dir, name.to_vec())
                        } else {
                            RowChange::put_entry(dir, name.to_vec(), None)
                        });
                    }
                }
            }
            changes.push(RowChange::DropInode(ino));
            changes.push(RowChange::DropXattrs(ino));
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
    for Misplaced { ino, found, .. } in misplaced.values() {
        upper.take_to_work(found, *ino)?;
    }
    for Misplaced { ino, row, .. } in misplaced.values() {
        if let Some((dir, name)) = &row.place {
            let fd = upper.create_dir(&chain(*dir, |d| parent(delta, d))?)?;
            upper.place(*ino, fd.as_fd(), name)?;
        }
        done.moved += 1;
    }
    for (ino, mut row) in pictures {
        if let (Some((dir, name)), Some(target)) = (row.place.clone(), row.target.clone()) {
            let fd = upper.create_dir(&chain(dir, |d| parent(delta, d))?)?;
            upper.create_symlink(fd.as_fd(), &name, &target)?;
            row.backing_ino = upper.backing_ino(fd.as_fd(), &name)?;
        } else {
            row.data = DataPlace::Lower;
        }
        done.renumbered += 1;
        changes.push(RowChange::put_inode(ino, row));
    }
    if !changes.is_empty() {
        delta.change(&changes, || Ok(db.apply(layer, &changes)?))?;
    }
    done.stale = changes.iter().filter_map(invalidation).collect();
    done.lost.sort_unstable();
    Ok(done)
}

fn invalidation(change: &RowChange<'_>) -> Option<Invalidation> {
    match change {
        RowChange::PutInode(ino, _) | RowChange::DropInode(ino) => Some(Invalidation::Object(*ino)),
        RowChange::PutEntry { dir, name, .. } | RowChange::DropEntry { dir, name } => {
            Some(Invalidation::Entry {
                dir: *dir,
                name: Box::from(&**name),
            })
        }
        _ => None,
    }
}

/// Returns true if a file can be what a row says.
fn is_fit(row: Kind, found: FoundKind) -> bool {
    match row {
        Kind::Symlink => found == FoundKind::Symlink,
        _ => found == FoundKind::File,
    }
}

/// What is wrong with the files of a layer, by path.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// Content of rows that is not there, or something else in its place.
    pub missing: Vec<(PathBuf, Option<FoundKind>)>,
    /// Files that no row knows.
    pub unknown: Vec<PathBuf>,
}

impl Differences {
    /// Returns true if there is a file for each row and none besides.
    pub(super) fn is_none(&self) -> bool {
        self.missing.is_empty() && self.unknown.is_empty()
    }
}

/// Compares the rows of a layer with the names in its directory, and reads nothing but directories.
pub(super) fn differences(
    delta: &Delta,
    upper: &UpperDir,
    lower: &LowerStack,
) -> Result<Differences> {
    let (mut names, mut work) = upper.names()?;
    let mut dirs: HashMap<Ino, Option<PathBuf>> = HashMap::new();
    let mut wrong = Differences::default();
    let rows = delta.inodes()?;
    let mut rows: Vec<_> = rows
        .filter(|(_, row)| row.data == DataPlace::Upper)
        .collect();
    // Images number neighbours one after another, and looking up one parent finds its neighbours'.
    rows.sort_unstable_by_key(|(ino, row)| (row.place.as_ref().map(|(dir, _)| *dir), *ino));
    for (ino, row) in rows {
        let way = match &row.place {
            None => None,
            Some((dir, name)) => {
                if !dirs.contains_key(dir) {
                    let way = match chain(*dir, |d| parent_of(delta, lower, d)) {
                        Err(Error::Posix(Errno::ESTALE)) => None,
                        way => Some(
                            way?.iter()
                                .map(|(_, name)| OsStr::from_bytes(name))
                                .collect(),
                        ),
                    };
                    dirs.insert(*dir, way);
                }
                let above: Option<&PathBuf> = dirs.get(dir).and_then(Option::as_ref);
                above.map(|above| above.join(OsStr::from_bytes(name)))
            }
        };
        let found = match &way {
            Some(path) => names.remove(path),
            None => work.remove(Path::new(&ino.to_string())),
        };
        if !found.is_some_and(|found| is_fit(row.kind, found)) {
            let detached = || PathBuf::from(format!("(object {ino})"));
            wrong.missing.push((way.unwrap_or_else(detached), found));
        }
    }
    wrong.unknown = names.into_keys().collect();
    wrong.missing.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    wrong.unknown.sort_unstable();
    Ok(wrong)
}

fn parent_of(delta: &Delta, lower: &LowerStack, dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
    match delta.place(dir)? {
        Some(place) => Ok(Some(place)),
        None => lower.parent(dir),
    }
}

/// A path by which the rows know an object whose content should be at a place.
fn path_of(delta: &Delta, lower: &LowerStack, ino: Ino, expected: &Place) -> PathBuf {
    let (is_in_work, way) = expected;
    let mut way = way.clone();
    if *is_in_work {
        // Without a place, but perhaps not without a name.
        let mut names = delta.loaded_dirs().flat_map(|(dir, entries)| {
            let named = entries.iter().filter(|(_, target)| *target == Some(ino));
            named.map(move |(name, _)| (dir, Box::from(name)))
        });
        way = names
            .find_map(|(dir, name)| {
                let above = chain(dir, |d| parent_of(delta, lower, d)).ok()?;
                let above = above.into_iter().map(|(_, name)| name);
                Some(above.chain([name]).collect())
            })
            .unwrap_or_else(|| vec![Box::from(format!("(object {ino})").as_bytes())]);
    }
    PathBuf::from(OsString::from_vec(way.join(&b'/')))
}

/// A row whose file lies elsewhere than it says.
struct Misplaced {
    ino: Ino,
    row: InodeRow,
    found: Found,
}

/// One object took the place of another, whose content is gone, and a power cut took back the rows
/// that said so: returns the changes that say it again. `ino` is the one that is missing, `there`
/// what lies in its place. Otherwise the name would be lost, which a file system never loses in a
/// rename.
fn cut_short(
    delta: &Delta,
    lower: &LowerStack,
    ino: Ino,
    row: &InodeRow,
    there: Option<&Misplaced>,
) -> Result<Option<Vec<RowChange<'static>>>> {
    let Some((there, (dir, name))) = there.zip(row.place.as_ref()) else {
        return Ok(None);
    };
    let Some((old_dir, old_name)) = &there.row.place else {
        return Ok(None);
    };
    let below = lower.lookup(*old_dir, old_name)?;
    let is = |said, below, ino| match said {
        Lookup::Found(named) => named == ino,
        Lookup::Unknown => below == Some(ino),
        Lookup::Whiteout => false,
    };
    if !is(delta.lookup(*dir, name)?, lower.lookup(*dir, name)?, ino)
        || !is(delta.lookup(*old_dir, old_name)?, below, there.ino)
    {
        return Ok(None);
    }
    let mut moved = there.row.clone();
    moved.place = Some((*dir, name.clone()));
    let hidden = old_name.to_vec();
    Ok(Some(vec![
        RowChange::put_entry(*dir, name.to_vec(), Some(there.ino)),
        RowChange::put_inode(there.ino, moved),
        match below {
            Some(_) => RowChange::put_entry(*old_dir, hidden, None),
            None => RowChange::drop_entry(*old_dir, hidden),
        },
        RowChange::DropInode(ino),
        RowChange::DropXattrs(ino),
    ]))
}

/// Returns true if a name may show again what lies below: a file that is nowhere else.
fn uncovers(delta: &Delta, lower: &LowerStack, dir: Ino, name: &[u8]) -> Result<bool> {
    let Some(below) = lower.lookup(dir, name)? else {
        return Ok(true);
    };
    let is_file = lower
        .attr(below)?
        .is_some_and(|attr| attr.kind != Kind::Directory);
    Ok(is_file && delta.inode(below)?.is_none())
}

impl Union {
    /// Returns what is missing of the content of the writable layer, in words.
    pub fn verify_upper(&self) -> Result<Vec<String>> {
        let state = self.read();
        let wrong = differences(&state.delta, &state.upper, &state.lower)?;
        let missing = wrong.missing.into_iter();
        Ok(missing
            .map(|(path, _)| format!("{}: its content is not there", path.display()))
            .collect())
    }

    /// Compares rows and files while the view is in use, after something could not be read, and
    /// repairs what differs. Returns what was found and done; nothing while changes lie in frozen
    /// layers.
    pub fn repair(&self) -> Result<Reconciled> {
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if state.has_frozen() || differences(&state.delta, &state.upper, &state.lower)?.is_none() {
            return Ok(Reconciled::default());
        }
        let (upper, lower) = (state.upper.clone(), state.lower.clone());
        let done = reconcile(
            &self.db,
            state.layer,
            &mut state.delta,
            &upper,
            &lower,
            false,
        )?;
        for stale in &done.stale {
            if let Invalidation::Object(ino) = stale {
                upper.forget_file(*ino);
            }
        }
        Ok(done)
    }
}
