//! Checks the list of changes by comparing whole trees.
//!
//! The oracle uses no rows or layers. Each path of the view has at most one counterpart among the
//! committed paths: the one it was renamed from, or its name below the counterpart of its
//! directory.

use std::collections::{BTreeMap, BTreeSet};

use envfs::object::{Ino, Kind};
use envfs::union::{Aspect, Change, ChangeKind};

use super::tree::{Node, Tree, in_whole_seconds, show};

type Path = Vec<u8>;

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn join(above: &[u8], name: &[u8]) -> Path {
    if above.is_empty() {
        return name.to_vec();
    }
    [above, b"/", name].concat()
}

/// Returns the most important difference of two objects.
fn difference(then: &Node, now: &Node) -> Option<Aspect> {
    let is_dir = now.kind() == Kind::Directory;
    if then.kind() != now.kind() || !is_dir && then.body != now.body {
        return Some(Aspect::Content);
    }
    if (then.mode, then.owner, &then.xattrs) != (now.mode, now.owner, &now.xattrs) {
        return Some(Aspect::Attributes);
    }
    let time = |node: &Node| node.mtime.map(in_whole_seconds);
    (!is_dir && time(then) != time(now)).then_some(Aspect::Times)
}

struct Oracle<'a> {
    base: &'a Tree,
    now: &'a Tree,
    changes: &'a [Change],
    base_paths: BTreeMap<Path, Ino>,
    now_paths: BTreeMap<Path, Ino>,
    reported: BTreeMap<&'a [u8], &'a ChangeKind>,
    /// Committed paths by paths of the view.
    counterparts: BTreeMap<Path, Path>,
}

/// Checks that every difference is reported and every report is a difference.
pub(super) fn check_changes(base: &Tree, now: &Tree, changes: &[Change]) {
    let mut oracle = Oracle {
        base,
        now,
        changes,
        base_paths: base.paths(),
        now_paths: now.paths(),
        reported: changes.iter().map(|c| (&c.path[..], &c.what)).collect(),
        counterparts: BTreeMap::from([(Vec::new(), Vec::new())]),
    };
    assert_eq!(oracle.reported.len(), changes.len(), "{changes:#?}");
    oracle.base_paths.insert(Vec::new(), Ino::ROOT);
    oracle.now_paths.insert(Vec::new(), Ino::ROOT);
    oracle.pair();
    for path in oracle.now_paths.keys() {
        oracle.check_path(path);
    }
    oracle.check_deleted();
    for change in changes {
        let is_there = oracle.now_paths.get(&change.path) == Some(&change.ino);
        let is_deleted = change.what == ChangeKind::Removed;
        assert_eq!(is_there, !is_deleted, "{change:?} in {changes:#?}");
    }
}

impl Oracle<'_> {
    /// Finds the counterparts, directories before their entries.
    fn pair(&mut self) {
        for path in self.now_paths.keys().skip(1) {
            let (above, name) = split(path);
            let counterpart = match self.reported.get(&path[..]) {
                Some(ChangeKind::Renamed { from }) => Some(from.clone()),
                Some(ChangeKind::Added) => None,
                _ => self.counterparts.get(above).map(|then| join(then, name)),
            };
            if let Some(then) = counterpart
                && self.base_paths.contains_key(&then)
            {
                self.counterparts.insert(path.clone(), then);
            }
        }
    }

    fn check_path(&self, path: &Path) {
        let ino = self.now_paths[path];
        let node = self.now.node(ino);
        let text = || format!("{} ({ino}) in {:#?}", show(path), self.changes);
        let then = self.counterparts.get(path);
        let committed = then.map(|then| self.base_paths[then]);
        let found = committed.and_then(|then| difference(self.base.node(then), node));
        let (above, name) = split(path);
        match self.reported.get(&path[..]) {
            None => {
                let committed = committed.unwrap_or_else(|| panic!("unreported: {}", text()));
                // A file with several names is reported by one of them.
                let is_reported = committed == ino && self.changes.iter().any(|c| c.ino == ino);
                assert!(
                    found.is_none() || is_reported,
                    "unreported {found:?}: {}",
                    text()
                );
                assert!(
                    committed == ino || !self.base.nodes.contains_key(&ino),
                    "a new name is unreported: {}",
                    text()
                );
            }
            Some(ChangeKind::Modified { aspect }) => {
                let committed = committed.unwrap_or_else(|| panic!("new: {}", text()));
                let is_joined = self.now_paths.iter().any(|(other, at)| {
                    let then = self.counterparts.get(other);
                    let then = then.map(|then| self.base_paths[then]);
                    *at == ino
                        && then.is_some_and(|then| {
                            then != committed && self.base.node(then).kind() == node.kind()
                        })
                }) || committed != ino && self.base.nodes.contains_key(&ino);
                let expected = match (found, is_joined) {
                    (Some(Aspect::Content), _) => Aspect::Content,
                    (_, true) => Aspect::Attributes,
                    (found, false) => found.unwrap_or_else(|| panic!("equal: {}", text())),
                };
                assert_eq!(*aspect, expected, "{}", text());
            }
            Some(ChangeKind::Renamed { from }) => {
                assert_eq!(self.base_paths.get(from), Some(&ino), "{}", text());
                let stays = self.counterparts.iter().filter(|(other, then)| {
                    *then == from && *other != path && self.now_paths[*other] == ino
                });
                assert_eq!(stays.count(), 0, "{}", text());
            }
            Some(ChangeKind::Added) => {
                // Only the path of a directory that was moved can be added again.
                let above = self.counterparts.get(above);
                let committed = above.and_then(|above| self.base_paths.get(&join(above, name)));
                if let Some(committed) = committed {
                    let is_dir = self.base.node(*committed).kind() == Kind::Directory;
                    let is_elsewhere = self.now.nodes.contains_key(committed);
                    assert!(is_dir && is_elsewhere, "not new: {}", text());
                }
            }
            Some(ChangeKind::Removed) => panic!("not removed: {}", text()),
        }
    }

    /// Checks that each committed path is a counterpart, was renamed, or is reported as removed.
    fn check_deleted(&self) {
        let met: BTreeSet<&Path> = self.counterparts.values().collect();
        // The current paths of committed directories; a directory takes precedence over a file that
        // replaced it.
        let is_dir = |path: &Path| self.now.node(self.now_paths[path]).kind() == Kind::Directory;
        let mut here: BTreeMap<Path, Path> = BTreeMap::new();
        for (path, then) in &self.counterparts {
            if is_dir(path) || !here.contains_key(then) {
                here.insert(then.clone(), path.clone());
            }
        }
        let mut deleted = 0;
        for (then, ino) in &self.base_paths {
            if met.contains(then) {
                continue;
            }
            let (above, name) = split(then);
            let path = join(&here[above], name);
            here.entry(then.clone()).or_insert_with(|| path.clone());
            match self.reported.get(&path[..]) {
                Some(ChangeKind::Removed) => {
                    let change = self.changes.iter().find(|c| c.path == path);
                    assert_eq!(change.unwrap().ino, *ino, "{}", show(&path));
                    deleted += 1;
                }
                // Another object has the name, and is reported.
                Some(_) => {}
                // Another object came to the path with a directory that was moved there.
                None if self
                    .counterparts
                    .get(&path)
                    .is_some_and(|other| other != then) => {}
                None => panic!(
                    "{} ({ino}, was {}) was removed, unreported: {:#?}",
                    show(&path),
                    show(then),
                    self.changes
                ),
            }
        }
        let all = self.changes.iter();
        let all = all.filter(|c| c.what == ChangeKind::Removed);
        assert_eq!(all.count(), deleted, "{:#?}", self.changes);
    }
}
