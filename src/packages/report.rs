//! Assigns changed files to packages, and determines which packages changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::metadata::Recorded;
use super::owners::Owners;
use super::touched::{Touched, is_bytecode, units};
use super::tree::Tree;
use super::unit::{Root, Unit};
use super::{Differences, Edited, OwnedChange, Owner, Package, PackageChanges, split};
use crate::object::Kind;
use crate::union::{Aspect, Change, ChangeKind};

/// Files above this size are not read to compare their hash.
const MAX_HASHED: u64 = 64 << 20;

/// Returns the changes of packages that changes of files amount to. `before` is the committed tree,
/// `after` the changed one.
pub(crate) fn differences(
    changes: Vec<Change>,
    before: &dyn Tree,
    after: &dyn Tree,
) -> Differences {
    let mut packages = PackageChanges::default();
    let units = units(&changes, Root::of(&[before, after]));
    let touched = Touched::of(&units, before, after, &mut packages);
    let mut sorting = Sorting {
        touched: &touched,
        after,
        owners: Vec::with_capacity(changes.len()),
        edits: BTreeMap::new(),
    };
    sorting.files(&changes, before);
    sorting.directories(&changes);
    let Sorting { owners, edits, .. } = sorting;
    packages.edited = edits.into_values().collect();
    let changes: Vec<OwnedChange> = changes
        .into_iter()
        .zip(owners)
        .map(|(change, owner)| OwnedChange { change, owner })
        .collect();
    packages.count_rest(&changes);
    for list in [&mut packages.installed, &mut packages.removed] {
        list.sort();
    }
    packages.upgraded.sort();
    packages.reinstalled.sort();
    Differences { packages, changes }
}

struct Sorting<'a> {
    touched: &'a Touched,
    after: &'a dyn Tree,
    /// The owner of each change, in their order.
    owners: Vec<Owner>,
    edits: BTreeMap<Package, Edited>,
}

impl Sorting<'_> {
    /// Finds the owner of everything except directories.
    fn files(&mut self, changes: &[Change], before: &dyn Tree) {
        let mut open: Vec<(usize, &Change, &[u8])> = Vec::new();
        for (at, change) in changes.iter().enumerate() {
            let owner = self.owner(change);
            if owner == Owner::Other
                && let Some(committed) = may_be_edit(change)
            {
                open.push((at, change, committed));
            }
            self.owners.push(owner);
        }
        if open.is_empty() {
            return;
        }
        let touched = self.touched;
        let is_touched = |unit: &Unit| touched.units.contains_key(&unit.path);
        let paths: BTreeSet<Vec<u8>> = open.iter().map(|(_, _, path)| path.to_vec()).collect();
        let found = Owners::new(before, &is_touched).find(paths);
        for (at, change, committed) in open {
            let Some(owned) = found.get(committed) else {
                continue;
            };
            if let Some(owner) = self.owners.get_mut(at) {
                *owner = Owner::Package(owned.package.name.clone());
            }
            let is_there = !matches!(
                change.what,
                ChangeKind::Removed | ChangeKind::Renamed { .. }
            );
            let is_as_recorded = is_there && self.is_as_recorded(change, &owned.recorded);
            let edit = self.edit(&owned.package);
            match (is_there, is_as_recorded) {
                (false, _) => edit.removed += 1,
                (true, false) => edit.edited += 1,
                (true, true) => edit.restored += 1,
            }
        }
    }

    fn edit(&mut self, package: &Package) -> &mut Edited {
        self.edits.entry(package.clone()).or_insert_with(|| Edited {
            package: package.clone(),
            edited: 0,
            removed: 0,
            restored: 0,
        })
    }

    /// Returns the owner of a change among the packages whose records changed.
    fn owner(&mut self, change: &Change) -> Owner {
        let touched = self.touched;
        let committed = change.committed.as_deref();
        let paths = || [Some(&change.path[..]), committed].into_iter().flatten();
        let named = |at: usize| match touched.packages.get(at) {
            Some(package) => Owner::Package(package.name.clone()),
            None => Owner::Other,
        };
        if let Some(listed) = touched.files.get(&change.path) {
            if let Some((recorded, written)) = listed.now
                && self.is_edited_since(change, &recorded, written)
                && let Some(package) = touched.packages.get(listed.package)
            {
                self.edit(package).edited += 1;
            }
            return named(listed.package);
        }
        if let Some(listed) = committed.and_then(|path| touched.files.get(path)) {
            return named(listed.package);
        }
        if let Some(package) = paths().find_map(|path| touched.package_of(path)) {
            return named(package);
        }
        if change.kind == Kind::Symlink
            && let Some(package) = touched.package_of_target(&change.path, self.after)
        {
            return named(package);
        }
        if is_bytecode(&change.path) {
            return touched
                .package_of_source(&change.path)
                .map_or(Owner::Bytecode, named);
        }
        Owner::Other
    }

    /// Returns whether a file of a package that was just installed was changed after that.
    fn is_edited_since(
        &self,
        change: &Change,
        recorded: &Recorded,
        written: crate::object::Timestamp,
    ) -> bool {
        let is_present = change.kind == Kind::File && change.what != ChangeKind::Removed;
        if !is_present || recorded.sha256.is_none() {
            return false;
        }
        let is_later = || {
            let stat = self.after.stat(&change.path);
            stat.is_some_and(|stat| stat.mtime > written)
        };
        let is_larger = recorded.size.is_some_and(|size| size != change.size);
        is_larger || is_later() && !self.is_as_recorded(change, recorded)
    }

    /// Returns whether a file has the content that its package recorded.
    fn is_as_recorded(&self, change: &Change, recorded: &Recorded) -> bool {
        let Some(hash) = recorded.sha256 else {
            return false;
        };
        if change.kind != Kind::File
            || change.size > MAX_HASHED
            || recorded.size.is_some_and(|size| size != change.size)
        {
            return false;
        }
        self.after.sha256(&change.path) == Some(hash)
    }

    /// Gives new and removed directories to the owner of what is below them.
    fn directories(&mut self, changes: &[Change]) {
        let mut dirs: HashMap<&[u8], usize> = HashMap::new();
        for (at, change) in changes.iter().enumerate() {
            let is_whole = matches!(change.what, ChangeKind::Added | ChangeKind::Removed);
            if change.kind == Kind::Directory
                && is_whole
                && self.owners.get(at) == Some(&Owner::Other)
            {
                dirs.insert(&change.path, at);
            }
        }
        if dirs.is_empty() {
            return;
        }
        let mut below: HashMap<usize, Owner> = HashMap::new();
        let mut mixed: HashSet<usize> = HashSet::new();
        for (at, change) in changes.iter().enumerate() {
            let Some(owner) = self.owners.get(at) else {
                continue;
            };
            if *owner == Owner::Other && dirs.get(&change.path[..]) == Some(&at) {
                continue;
            }
            let mut above = split(&change.path).0;
            while let Some(dir) = dirs.get(above) {
                let is_known = match owner {
                    Owner::Other => !mixed.insert(*dir),
                    Owner::Bytecode if below.contains_key(dir) => true,
                    _ => below.insert(*dir, owner.clone()).as_ref() == Some(owner),
                };
                // Then the directories above it are, too.
                if is_known {
                    break;
                }
                above = split(above).0;
            }
        }
        for (dir, owner) in below {
            if !mixed.contains(&dir)
                && let Some(own) = self.owners.get_mut(dir)
            {
                *own = owner;
            }
        }
    }
}

/// Returns the committed path of a change that may be an edit of a package's file.
fn may_be_edit(change: &Change) -> Option<&[u8]> {
    let is_content = match &change.what {
        ChangeKind::Modified { aspect } => *aspect == Aspect::Content,
        ChangeKind::Removed | ChangeKind::Renamed { .. } => true,
        ChangeKind::Added => false,
    };
    let is_file = change.kind != Kind::Directory;
    change
        .committed
        .as_deref()
        .filter(|_| is_content && is_file)
}
