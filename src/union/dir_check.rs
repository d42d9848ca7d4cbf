//! Checks that the directories of an upper layer form a tree, when its rows are loaded.
//!
//! A directory has one name. If rows gave it two names, or placed it below itself, a walk of the
//! merged view would not end. envfs never writes such rows, but a damaged or forged store may
//! contain them.

use std::collections::HashSet;

use nix::errno::Errno;

use super::delta::Delta;
use super::layer::chain;
use super::stack::LowerStack;
use super::{Error, Lookup, Result};
use crate::object::{Ino, Kind};

/// Checks the rows of one layer, all of which must be in memory, over the layers below it.
///
/// If this succeeds, each name of a directory in the merged view is the place of that directory,
/// and all places lead to the root. So a walk from the root visits each directory once.
pub(super) fn check(delta: &Delta, lower: &LowerStack) -> Result<()> {
    for (dir, entries) in delta.loaded_dirs() {
        for (name, target) in entries.iter() {
            let Some(ino) = target else { continue };
            if is_directory(delta, lower, ino)? {
                let is_its_place = parent(delta, lower, ino)?
                    .is_some_and(|(above, own)| above == dir && *own == *name);
                if !is_its_place {
                    return Err(two_names(ino, dir, name));
                }
            }
        }
    }
    let mut climbed = HashSet::new();
    let rows = delta.loaded_inodes();
    let mut directories: Vec<_> = rows
        .filter(|(_, row)| row.kind == Kind::Directory)
        .collect();
    // Neighbours have consecutive identities, and looking up the parent of one caches those of the
    // others.
    directories.sort_unstable_by_key(|(ino, _)| *ino);
    for (ino, row) in directories {
        climb(delta, lower, ino, &mut climbed)?;
        let Some(now) = &row.place else { continue };
        // Most directories are at their place in the layers below. Looking up the name is cheap;
        // finding the parent may read a whole directory.
        if delta.lookup(now.0, &now.1)? == Lookup::Unknown
            && lower.lookup(now.0, &now.1)? == Some(ino)
        {
            continue;
        }
        // Its name in the layers below must be hidden.
        if let Some((dir, name)) = lower.parent(ino)?
            && (dir, &name) != (now.0, &now.1)
            && delta.lookup(dir, &name)? == Lookup::Unknown
            && !is_removed(delta, lower, dir)?
        {
            return Err(two_names(ino, dir, &name));
        }
    }
    Ok(())
}

/// Follows the parents of a directory to the root, to a directory in `climbed`, or to a removed
/// one. Adds the visited directories to `climbed`, so that each is visited once, whatever the depth
/// of the tree.
fn climb(delta: &Delta, lower: &LowerStack, from: Ino, climbed: &mut HashSet<Ino>) -> Result<()> {
    let mut way = HashSet::new();
    let mut at = from;
    while at != Ino::ROOT && !climbed.contains(&at) {
        if !way.insert(at) {
            return Err(Error::Inconsistent(format!(
                "directory {at} is its own ancestor"
            )));
        }
        match parent(delta, lower, at)? {
            Some((above, _)) => at = above,
            None => break,
        }
    }
    climbed.extend(way);
    Ok(())
}

/// Returns the parent of a directory, and its name there, in the view of an upper layer.
pub(super) fn parent(
    delta: &Delta,
    lower: &LowerStack,
    dir: Ino,
) -> Result<Option<(Ino, Box<[u8]>)>> {
    match delta.place(dir)? {
        Some(place) => Ok(Some(place)),
        None => lower.parent(dir),
    }
}

fn is_directory(delta: &Delta, lower: &LowerStack, ino: Ino) -> Result<bool> {
    match delta.inode(ino)? {
        Some(row) => Ok(row.kind == Kind::Directory),
        None => Ok(lower
            .attr(ino)?
            .is_some_and(|attr| attr.kind == Kind::Directory)),
    }
}

/// Returns true if a directory cannot be reached from the root by names.
fn is_removed(delta: &Delta, lower: &LowerStack, dir: Ino) -> Result<bool> {
    let chain = match chain(dir, |ino| parent(delta, lower, ino)) {
        Err(Error::Posix(Errno::ESTALE)) => return Ok(true),
        chain => chain?,
    };
    let mut above = Ino::ROOT;
    for (ino, name) in chain {
        let found = match delta.lookup(above, &name)? {
            Lookup::Found(found) => Some(found),
            Lookup::Whiteout => None,
            Lookup::Unknown => lower.lookup(above, &name)?,
        };
        if found != Some(ino) {
            return Ok(true);
        }
        above = ino;
    }
    Ok(false)
}

fn two_names(ino: Ino, dir: Ino, name: &[u8]) -> Error {
    Error::Inconsistent(format!(
        "directory {ino} has a second name, \"{}\" in directory {dir}",
        name.escape_ascii()
    ))
}
