//! Space by directory and by package.

use std::collections::HashMap;

use serde::Serialize;

use crate::commit::{Space, Uncommitted};
use crate::object::Kind;
use crate::packages::{Differences, Owner, Package};

/// The space of a file, a directory or a package.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Totals {
    /// Files of the revision: everything but directories.
    pub(super) files: u64,
    /// Bytes of content.
    pub(super) bytes: u64,
    /// Bytes of the image that hold it.
    pub(super) image_bytes: u64,
    /// Bytes on disk of content that is not committed.
    pub(super) uncommitted_bytes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, other: Totals) {
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.image_bytes = self.image_bytes.saturating_add(other.image_bytes);
        self.uncommitted_bytes = self
            .uncommitted_bytes
            .saturating_add(other.uncommitted_bytes);
    }

    /// Returns the bytes on disk, by which things are compared.
    pub(super) fn disk(&self) -> u64 {
        self.image_bytes.saturating_add(self.uncommitted_bytes)
    }
}

/// A file or directory.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Including everything below.
    pub(super) totals: Totals,
    /// Without what is below.
    own: Totals,
    /// The package of a file, by its place in [`Tree::packages`].
    pub(super) package: Option<usize>,
    parent: usize,
    /// Largest first.
    pub(super) children: Vec<usize>,
}

/// The merged tree with the space of everything in it.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// The root is the first.
    pub(super) nodes: Vec<Node>,
    pub(super) packages: Vec<(Package, Totals)>,
    /// Of files that belong to no package.
    pub(super) unpackaged: Totals,
}

/// The place of the root.
pub(super) const ROOT: usize = 0;

impl Tree {
    /// Combines a revision with what is not committed. `found` says which packages that belongs to.
    pub(super) fn of(space: &Space, uncommitted: &[Uncommitted], found: &Differences) -> Tree {
        let mut tree = Tree {
            packages: with_no_totals(space.packages.clone()),
            ..Tree::default()
        };
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        places.insert(b"", tree.push(b"", Kind::Directory, ROOT));
        for object in &space.objects {
            let at = tree.place(&object.path, object.kind, &mut places);
            let Some(node) = tree.nodes.get_mut(at) else {
                continue;
            };
            node.totals = Totals {
                files: u64::from(object.kind != Kind::Directory),
                bytes: object.bytes,
                image_bytes: object.image_bytes,
                uncommitted_bytes: 0,
            };
            node.package = object.package;
        }
        let owners = tree.owners(found);
        for file in uncommitted {
            let at = tree.place(&file.path, Kind::File, &mut places);
            if let Some(node) = tree.nodes.get_mut(at) {
                node.totals.uncommitted_bytes += file.disk_bytes;
                node.package = owners.get(&file.path[..]).copied().or(node.package);
            }
        }
        tree.add_up();
        tree
    }

    fn push(&mut self, name: &[u8], kind: Kind, parent: usize) -> usize {
        self.nodes.push(Node {
            name: name.to_vec(),
            kind,
            totals: Totals::default(),
            own: Totals::default(),
            package: None,
            parent,
            children: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// Returns the place of a path. Adds it, and the directories above it, unless they are there.
    fn place<'a>(
        &mut self,
        path: &'a [u8],
        kind: Kind,
        places: &mut HashMap<&'a [u8], usize>,
    ) -> usize {
        let mut missing: Vec<&'a [u8]> = Vec::new();
        let mut known = path;
        let mut place = loop {
            match places.get(known) {
                Some(place) => break *place,
                // The root is always known.
                None => missing.push(known),
            }
            known = above(known);
        };
        while let Some(path) = missing.pop() {
            let name = path.get(above(path).len()..).unwrap_or(path);
            let name = name.strip_prefix(b"/").unwrap_or(name);
            let kind = if missing.is_empty() {
                kind
            } else {
                Kind::Directory
            };
            place = self.push(name, kind, place);
            places.insert(path, place);
        }
        place
    }

    /// Returns the packages of changed paths. Adds those that are new.
    fn owners<'a>(&mut self, found: &'a Differences) -> HashMap<&'a [u8], usize> {
        let changed = &found.packages;
        let all = changed
            .installed
            .iter()
            .chain(changed.upgraded.iter().map(|one| &one.package))
            .chain(&changed.reinstalled)
            .chain(changed.edited.iter().map(|one| &one.package));
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        for package in all {
            // The version may be another one.
            let is_it = |(one, _): &(Package, Totals)| {
                (&one.name, one.ecosystem, &one.location)
                    == (&package.name, package.ecosystem, &package.location)
            };
            let known = self.packages.iter().position(is_it);
            let at = known.unwrap_or_else(|| {
                self.packages.push((package.clone(), Totals::default()));
                self.packages.len() - 1
            });
            by_name.insert(&package.name, at);
        }
        let owner = |one: &'a crate::packages::OwnedChange| match &one.owner {
            Owner::Package(name) => Some((&one.change.path[..], *by_name.get(&name[..])?)),
            _ => None,
        };
        found.changes.iter().filter_map(owner).collect()
    }

    /// Adds what is in directories to them, and what belongs to packages to those.
    fn add_up(&mut self) {
        for node in &mut self.nodes {
            node.own = node.totals;
            match node.package.and_then(|at| self.packages.get_mut(at)) {
                Some((_, sum)) => sum.add(node.totals),
                None => self.unpackaged.add(node.totals),
            }
        }
        // What is in a directory comes after it.
        for at in (ROOT + 1..self.nodes.len()).rev() {
            let Some(node) = self.nodes.get(at) else {
                continue;
            };
            let (parent, totals) = (node.parent, node.totals);
            if let Some(above) = self.nodes.get_mut(parent) {
                above.totals.add(totals);
                above.children.push(at);
            }
        }
        let order: Vec<(u64, u64)> = self
            .nodes
            .iter()
            .map(|node| (node.totals.disk(), node.totals.bytes))
            .collect();
        let size = |at: &usize| std::cmp::Reverse(order.get(*at).copied());
        for node in &mut self.nodes {
            // They are in reverse order.
            node.children.reverse();
            node.children.sort_by_key(size);
        }
    }

    /// Returns the place of a path.
    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        let mut at = ROOT;
        for name in path.split(|byte| *byte == b'/') {
            if name.is_empty() {
                continue;
            }
            let children = &self.nodes.get(at)?.children;
            let is_it =
                |child: &&usize| self.nodes.get(**child).is_some_and(|one| one.name == name);
            at = *children.iter().find(is_it)?;
        }
        Some(at)
    }

    /// Returns the part of a tree at and below a path, with only the files and packages there.
    pub(super) fn below(&self, root: usize) -> Tree {
        let mut part = Tree {
            packages: with_no_totals(self.packages.iter().map(|(one, _)| one.clone())),
            ..Tree::default()
        };
        let mut pending = vec![(root, ROOT)];
        while let Some((from, parent)) = pending.pop() {
            let Some(node) = self.nodes.get(from) else {
                continue;
            };
            let at = part.push(&node.name, node.kind, parent);
            if let Some(copy) = part.nodes.get_mut(at) {
                copy.package = node.package;
                copy.totals = node.own;
            }
            pending.extend(node.children.iter().rev().map(|child| (*child, at)));
        }
        part.add_up();
        part
    }

    /// Follows directories that have nothing but one directory. Returns their names as a path, and
    /// the place of the last one.
    pub(super) fn chain(&self, at: usize) -> (Vec<u8>, usize) {
        let (mut names, mut at) = (Vec::new(), at);
        while let Some(node) = self.nodes.get(at) {
            if !names.is_empty() {
                names.push(b'/');
            }
            names.extend_from_slice(&node.name);
            match node.children.as_slice() {
                [only]
                    if self
                        .nodes
                        .get(*only)
                        .is_some_and(|one| one.kind == Kind::Directory) =>
                {
                    at = *only;
                }
                _ => break,
            }
        }
        (names, at)
    }

    /// Returns the path of a node from the root of the tree.
    pub(super) fn path(&self, at: usize) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = at;
        while at != ROOT
            && let Some(node) = self.nodes.get(at)
        {
            names.push(&node.name[..]);
            at = node.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Returns the packages that have files, largest first.
    pub(super) fn sorted_packages(&self) -> Vec<&(Package, Totals)> {
        let has_files = |one: &&(Package, Totals)| one.1 != Totals::default();
        let mut sorted: Vec<_> = self.packages.iter().filter(has_files).collect();
        sorted.sort_by(|(a, one), (b, other)| {
            let size = |totals: &Totals| (totals.disk(), totals.bytes);
            size(other).cmp(&size(one)).then_with(|| a.cmp(b))
        });
        sorted
    }
}

fn with_no_totals(packages: impl IntoIterator<Item = Package>) -> Vec<(Package, Totals)> {
    let packages = packages.into_iter();
    packages.map(|one| (one, Totals::default())).collect()
}

/// Returns the path of the directory that a path is in; of names at the top, nothing.
fn above(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    slash.and_then(|at| path.get(..at)).unwrap_or_default()
}
