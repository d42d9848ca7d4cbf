//! The difference of two revisions of different environments. Their objects have the same
//! identities only where one environment continues what it got from the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::revisions::{Difference, between};
use crate::object::Ino;
use crate::squashfs::format::{Inode, InodeKind};
use crate::squashfs::reader::Shared;
use crate::state::{IdMap, IdRun};
use crate::union::{Error, ImageLayer, Result};

/// Compares images of different environments.
///
/// If one image continues the other, with the same identities, this costs as much as between two
/// revisions of one environment. Otherwise the objects of both are paired by their paths, which
/// reads all directories; a renamed file is then one that was removed and one that was added.
pub(crate) fn between_environments(
    old: &Arc<ImageLayer>,
    new: &Arc<ImageLayer>,
    shared: Shared,
) -> Result<Difference> {
    if shared.is_nested() && agree(old.ids(), new.ids()) {
        return between(old, new, shared);
    }
    let ids = paired(old, new)?;
    let renamed = ImageLayer::new(new.image().clone(), ids);
    between(old, &Arc::new(renamed), shared)
}

/// Returns whether every inode number of the smaller map has the same identity in the larger one.
fn agree(one: &IdMap, other: &IdMap) -> bool {
    let (small, large) = match one.len() <= other.len() {
        true => (one, other),
        false => (other, one),
    };
    let is_in_large = |run: &IdRun| {
        let numbers = run.first_number..run.first_number.saturating_add(run.count);
        let mut pairs = numbers.zip(run.first_ino..);
        // Inodes that the larger image no longer refers to are not in its map.
        pairs.all(|(number, ino)| large.ino_of(number).is_none_or(|found| found.0 == ino))
    };
    small.runs().iter().all(is_in_large)
}

/// Gives every object of `new` the identity of the object of the same kind that has its path in
/// `old`, or else one that `old` does not use.
fn paired(old: &ImageLayer, new: &ImageLayer) -> Result<IdMap> {
    let (was, is) = (old.image(), new.image());
    let mut free = old.ids().max_ino().map_or(2, |ino| ino.0.saturating_add(1));
    let (root_before, root) = (was.inode(was.root())?, is.inode(is.root())?);
    let mut identities: HashMap<u32, Ino> = HashMap::from([(root.number, Ino::ROOT)]);
    let mut taken: HashSet<Ino> = HashSet::from([Ino::ROOT]);
    let mut pending: Vec<(Option<Inode>, Inode)> = vec![(Some(root_before), root)];
    while let Some((before, now)) = pending.pop() {
        let earlier = match &before {
            Some(before) => Some(was.read_dir(before)?),
            None => None,
        };
        for (name, entry) in is.read_dir(&now)?.iter() {
            // Further names of an object, and loops in an invalid image.
            if identities.contains_key(&entry.number) {
                continue;
            }
            let found = earlier.as_ref().and_then(|earlier| earlier.find(name));
            let found = found.filter(|found| found.kind == entry.kind);
            let known = match &found {
                Some(found) => Some(old.ino_of(found.number)?),
                None => None,
            };
            let known = known.filter(|ino| taken.insert(*ino));
            let ino = known.unwrap_or_else(|| {
                free = free.saturating_add(1);
                Ino(free - 1)
            });
            identities.insert(entry.number, ino);
            if entry.kind == InodeKind::Directory {
                let before = match found.filter(|_| known.is_some()) {
                    Some(found) => Some(was.entry_inode(&found)?),
                    None => None,
                };
                pending.push((before, is.entry_inode(&entry)?));
            }
        }
    }
    let mut runs: Vec<IdRun> = identities
        .into_iter()
        .map(|(first_number, ino)| IdRun {
            first_number,
            first_ino: ino.0,
            count: 1,
        })
        .collect();
    runs.sort_unstable_by_key(|run| run.first_number);
    IdMap::from_runs(runs).map_err(|error| Error::Inconsistent(error.to_string()))
}
