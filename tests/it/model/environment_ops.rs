//! Operations on a whole environment, on a view and on the model.

use std::collections::BTreeSet;

use envfs::commit::{self, CommitError, CommitOptions};
use envfs::object::{Ino, Kind};
use envfs::union::{Error, Summary};
use nix::errno::Errno;

use super::bench::During;
use super::machine::Machine;
use super::ops::Op;
use super::tree::{Body, Tree, assert_same, in_whole_seconds, read_node, show};

impl Machine {
    pub(super) fn commit(&mut self, rebuild: bool, compact: bool) {
        let mut before = Tree::read(self.union());
        let changes = self.union().changes().unwrap();
        let options = CommitOptions {
            message: "step".to_owned(),
            rebuild,
            compact,
            ..CommitOptions::default()
        };
        let Some(done) = self.bench.commit(&options) else {
            // There was nothing to commit.
            assert_eq!(self.union().changes().unwrap(), Vec::new());
            return;
        };
        // Images store whole seconds.
        let named = self.tree.named().in_whole_seconds();
        before = before.in_whole_seconds();
        self.tree.nodes.extend(named.nodes);
        self.base = Tree::read(self.union());
        before.assert_is(&self.base);
        assert_eq!(done.changes, Summary::of(&changes));
        assert_eq!(self.union().changes().unwrap(), Vec::new());
        let layers = self.union().lower();
        assert_eq!((layers.frozen().len(), layers.images().len()), (0, 1));
        self.revisions.push((done.revision, self.tree.named()));
    }

    /// Returns the tree of the current revision.
    pub(super) fn committed(&self) -> Tree {
        let current = self.bench.workspace().db().current_revision().unwrap();
        let current = current.unwrap().id;
        let found = self.revisions.iter().find(|(id, _)| *id == current);
        found.unwrap().1.clone()
    }

    /// Commits, and runs other operations meanwhile.
    pub(super) fn commit_during(&mut self, ops: &[Op]) {
        let noted = self.note();
        let committed = Tree::read(self.union()).in_whole_seconds();
        let named = self.tree.named().in_whole_seconds();
        let workspace = self.bench.workspace().clone();
        let during = During::new(|| ops.iter().for_each(|op| self.step(*op)));
        let done = commit::commit(&workspace, &CommitOptions::default(), &during).unwrap();
        let pending = during.pending();
        let Some(done) = done else {
            pending.into_iter().for_each(|action| action());
            return;
        };
        assert!(
            pending.is_none(),
            "the commit did not check for cancellation"
        );
        self.base = committed;
        self.revisions.push((done.revision, named));
        // Objects that were not changed meanwhile have the times of the image.
        let actual = Tree::read(self.union());
        for (ino, node) in &mut self.tree.nodes {
            let kept = node.mtime.map(in_whole_seconds);
            let found = actual.nodes.get(ino);
            if found.is_some_and(|found| found.mtime == kept) {
                node.mtime = kept;
            }
        }
        assert!(self.union().lower().frozen().is_empty());
        self.done_since(noted);
        self.check();
    }

    /// Resets the model to an earlier tree; open objects without a name are kept.
    pub(super) fn back_to(&mut self, tree: Tree) {
        let before = std::mem::replace(&mut self.tree, tree);
        let named = before.named();
        for ino in std::mem::take(&mut self.held) {
            let is_known = self.tree.nodes.contains_key(&ino);
            if is_known {
                self.held.push(ino);
            } else if !named.nodes.contains_key(&ino) {
                self.tree.nodes.insert(ino, before.node(ino).clone());
                self.held.push(ino);
            } else {
                match self.union().attr(ino) {
                    Err(Error::Posix(Errno::ESTALE)) => drop(self.union().forget(ino, 1)),
                    // The restored changes had removed it: it is open without a name.
                    Ok(attr) if attr.nlink == 0 && !self.union().lower().frozen().is_empty() => {
                        let node = read_node(self.union(), ino, &attr);
                        self.tree.nodes.insert(ino, node);
                        self.held.push(ino);
                    }
                    other => panic!("object {ino} without a name: {other:?}"),
                }
            }
        }
    }

    pub(super) fn discard_path(&mut self, entry: u16, of_base: bool) {
        let before = Tree::read(self.union());
        let (now_paths, base_paths) = (before.paths(), self.base.paths());
        let paths: Vec<&Vec<u8>> = if of_base {
            base_paths.keys()
        } else {
            now_paths.keys()
        }
        .collect();
        if paths.is_empty() {
            return;
        }
        let path = paths[usize::from(entry) % paths.len()].clone();
        let changed = self.union().changes().unwrap();
        let done = commit::discard(self.bench.workspace(), std::slice::from_ref(&path), "");
        let (gone, _) = match done {
            Ok(done) => done,
            Err(CommitError::Union(Error::Replaced(_))) => {
                self.assert_replaced(&path, &before);
                return;
            }
            Err(e) => panic!("{e}"),
        };
        let after = Tree::read(self.union());
        let left = self.union().changes().unwrap();
        let within = |other: &[u8]| {
            other == path || other.starts_with(&path) && other.get(path.len()) == Some(&b'/')
        };
        for change in &left {
            assert!(
                !within(&change.path),
                "still changed after discarding {}: {change:?}",
                show(&path)
            );
            assert!(
                changed.iter().any(|old| old.path == change.path) || changed.len() > left.len(),
                "a new change after discarding {}: {change:?}",
                show(&path)
            );
        }
        assert!(gone.len() <= changed.len());
        // Unless a parent was moved, the object at the path is the committed one.
        let mut same_way = true;
        let mut at = (Ino::ROOT, Ino::ROOT);
        let mut components = path.split(|byte| *byte == b'/').peekable();
        while let Some(component) = components.next() {
            let step = |tree: &Tree, dir: Ino| match tree.nodes.get(&dir).map(|node| &node.body) {
                Some(Body::Directory(entries)) => entries.get(component).copied(),
                _ => None,
            };
            match (step(&after, at.0), step(&self.base, at.1)) {
                (Some(now), Some(then)) if now == then => at = (now, then),
                (None, None) => {}
                other => {
                    same_way = false;
                    if at.0 == at.1 && components.peek().is_none() {
                        panic!("{} is {other:?} after discarding it", show(&path));
                    }
                    break;
                }
            }
        }
        if same_way
            && let (Some(now), Some(then)) = (after.paths().get(&path), base_paths.get(&path))
        {
            assert_eq!(now, then);
            let mut node = after.node(*now).clone();
            if node.kind() == Kind::Directory {
                node.mtime = None;
                node.body = self.base.node(*then).body.clone();
            }
            assert_same(&node, self.base.node(*then), &show(&path));
        }
        // Other objects are unchanged.
        let after_paths = after.paths();
        let touched: BTreeSet<Ino> = gone.iter().map(|change| change.ino).collect();
        for (ino, node) in &before.nodes {
            if let Some(now) = after.nodes.get(ino)
                && !touched.contains(ino)
                && node.kind() != Kind::Directory
                && !now_paths
                    .iter()
                    .chain(&base_paths)
                    .chain(&after_paths)
                    .any(|(path, at)| at == ino && within(path))
            {
                assert_same(node, now, &format!("bystander {ino}"));
            }
        }
        // Every object that was removed is reported.
        for (path, ino) in &now_paths {
            let is_reported = gone.iter().any(|change| change.ino == *ino)
                || left.iter().any(|change| change.path == *path)
                // It was equal to the committed object.
                || changed.iter().all(|change| change.path != *path);
            assert!(
                is_reported || after.nodes.contains_key(ino) || self.base.nodes.contains_key(ino),
                "{} was removed without a report",
                show(path)
            );
        }
        self.back_to(after);
    }

    /// Checks a refusal: nothing was discarded, because a parent of the path was removed and
    /// replaced.
    pub(super) fn assert_replaced(&self, path: &[u8], before: &Tree) {
        before.assert_is(&Tree::read(self.union()));
        let mut at = Ino::ROOT;
        let above = path.split(|byte| *byte == b'/').collect::<Vec<_>>();
        let is_gone = above[..above.len() - 1].iter().any(|name| {
            match self.base.nodes.get(&at).map(|node| &node.body) {
                Some(Body::Directory(entries)) => {
                    at = entries.get(*name).copied().unwrap_or(Ino(0));
                    at != Ino(0) && !before.nodes.contains_key(&at)
                }
                _ => true,
            }
        });
        assert!(is_gone, "no parent of {} was removed", show(path));
    }
}
