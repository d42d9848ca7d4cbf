//! Differences of revisions and restored paths, checked by comparing whole trees.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use envfs::commit::{self, CommitError, CommitOptions, OpenRevision};
use envfs::object::{Ino, Kind};
use envfs::state::RevisionId;
use envfs::union::{Difference, DiscardMode, Error, SetIdBits};

use super::bench::Bench;
use super::check::check_changes;
use super::machine::Machine;
use super::tree::{Body, Node, Tree, assert_same, in_whole_seconds, show};

/// Revisions with which each new one is compared.
const COMPARED: usize = 4;

impl Machine {
    /// Compares a new revision with earlier ones, and the view with one of them.
    pub(super) fn check_history(&mut self, actual: &Tree) {
        if let Some((id, _)) = self.revisions.get(self.history.len()) {
            let new = (*id, self.base.clone());
            for old in self.history.iter().rev().take(COMPARED) {
                for (from, to) in [(old, &new), (&new, old)] {
                    let found = difference(&self.bench, from.0, to.0);
                    check_changes(&from.1, &to.1, &found.changes);
                }
            }
            self.history.push(new);
        }
        let which = actual.nodes.len() % self.history.len();
        let (id, tree) = &self.history[which];
        let found = commit::difference_since(self.bench.workspace(), *id).unwrap();
        check_changes(tree, actual, &found.changes);
    }
}

fn difference(bench: &Bench, old: RevisionId, new: RevisionId) -> Difference {
    let workspace = bench.workspace();
    let open = |id| OpenRevision::open(workspace.db(), workspace.env().layout(), Some(id)).unwrap();
    let (db, layout) = (workspace.db(), workspace.env().layout());
    commit::difference(db, layout, &open(old), &open(new)).unwrap()
}

/// Files in each directory of the environment whose revisions are compared.
const FILES: usize = 50;

/// Returns an environment with directories of files, as many as `ENVFS_TEST_FILES` says.
fn wide() -> (Bench, u64) {
    let wanted = std::env::var("ENVFS_TEST_FILES").ok();
    let wanted: usize = wanted.map_or(2000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    for number in 0..wanted.div_ceil(FILES) {
        let below = dir.path().join(format!("lib/d{}/d{number}", number % 10));
        fs::create_dir_all(&below).unwrap();
        for file in 0..FILES {
            let content = format!("{number} {file}\n");
            fs::write(below.join(format!("file{file}.py")), content).unwrap();
        }
    }
    let bench = Bench::imported_from(dir.path());
    let entries = Tree::read(bench.union()).nodes.len() as u64;
    (bench, entries)
}

/// Looks a path up as the kernel does, which remembers the directory of the file.
fn find(bench: &Bench, path: &str) -> Ino {
    let mut at = Ino::ROOT;
    for name in path.split('/') {
        let found = bench.union().lookup(at, name.as_bytes());
        let (ino, _) = found.unwrap().unwrap();
        bench.union().nodes().remember(ino, at);
        at = ino;
    }
    at
}

fn write(bench: &Bench, path: &str, content: &[u8]) {
    bench
        .union()
        .write_at(find(bench, path), 0, content, SetIdBits::Keep)
        .unwrap();
}

fn commit_as(bench: &Bench, options: &CommitOptions) -> RevisionId {
    bench.commit(options).unwrap().revision
}

#[test]
fn comparing_revisions_reads_the_inodes_on_the_way_to_the_changes() {
    let (bench, entries) = wide();
    let first = bench.current().id;
    write(&bench, "lib/d1/d1/file7.py", b"changed");
    let second = commit_as(&bench, &CommitOptions::default());
    write(&bench, "lib/d2/d2/file8.py", b"changed too");
    let third = commit_as(&bench, &CommitOptions::default());

    // The root, lib, d1, d1/d1 and the file, in both images.
    let one = difference(&bench, first, second);
    let paths = |found: &Difference| -> Vec<String> {
        let paths = found.changes.iter();
        paths
            .map(|c| String::from_utf8_lossy(&c.path).into_owned())
            .collect()
    };
    assert_eq!(paths(&one), ["lib/d1/d1/file7.py"]);
    assert_eq!(one.inodes_read, 10);
    let two = difference(&bench, third, first);
    assert_eq!(paths(&two), ["lib/d1/d1/file7.py", "lib/d2/d2/file8.py"]);
    assert_eq!(two.inodes_read, 16);
    write(&bench, "lib/d1/d1/file7.py", b"changed again");
    let since = commit::difference_since(bench.workspace(), second).unwrap();
    assert_eq!(paths(&since), paths(&two));
    assert_eq!(since.inodes_read, 10);

    // Revisions on two branches: both continue the image of the first revision.
    commit::rollback(bench.workspace(), Some(first), DiscardMode::Always, "").unwrap();
    write(&bench, "lib/d3/d3/file9.py", b"on another branch");
    let branch = commit_as(&bench, &CommitOptions::default());
    let timed = Instant::now();
    let other = difference(&bench, second, branch);
    let took = timed.elapsed();
    assert_eq!(paths(&other), ["lib/d1/d1/file7.py", "lib/d3/d3/file9.py"]);
    assert_eq!(other.inodes_read, 16);
    write(&bench, "lib/d3/d3/file9.py", b"not committed");
    let since = commit::difference_since(bench.workspace(), second).unwrap();
    assert_eq!(paths(&since), paths(&other));
    assert_eq!(since.inodes_read, 16);
    commit::rollback(bench.workspace(), Some(third), DiscardMode::Always, "").unwrap();

    // A rebuilt image shares nothing with the others: all inodes are read, and no more.
    let rebuild = CommitOptions {
        rebuild: true,
        ..CommitOptions::default()
    };
    let rebuilt = commit_as(&bench, &rebuild);
    let all = difference(&bench, first, rebuilt);
    assert_eq!(paths(&all), paths(&two));
    assert_eq!(all.inodes_read, 2 * entries);
    println!(
        "{entries} entries: {} and {} inodes; two branches in {took:?}",
        two.inodes_read, all.inodes_read
    );
}

/// Returns the part of a tree at and below a path, without identities.
fn below(tree: &Tree, path: &[u8]) -> BTreeMap<Vec<u8>, Node> {
    let within = |other: &[u8]| {
        other == path || other.starts_with(path) && other.get(path.len()) == Some(&b'/')
    };
    let paths = tree.paths().into_iter();
    let paths = paths.filter(|(other, _)| within(other));
    let nodes = paths.map(|(path, ino)| {
        let mut node = tree.node(ino).clone();
        node.mtime = node.mtime.map(in_whole_seconds);
        if let Body::Directory(names) = &mut node.body {
            names.clear();
            node.mtime = None;
        }
        (path, node)
    });
    nodes.collect()
}

impl Machine {
    /// Restores a path from a revision.
    pub(super) fn restore(&mut self, entry: u16, revision: u16) {
        let workspace = self.bench.workspace().clone();
        if !self.commits || self.history.is_empty() {
            return;
        }
        let (id, then) = self.history[usize::from(revision) % self.history.len()].clone();
        let db = workspace.db();
        let image = |id| db.revision(id).unwrap().unwrap().image;
        let is_current = image(id) == db.current_revision().unwrap().unwrap().image;
        if is_current {
            // This discards the changes of the path.
            return;
        }
        let before = Tree::read(self.union());
        let all: BTreeSet<Vec<u8>> = [before.paths(), then.paths()]
            .into_iter()
            .flat_map(BTreeMap::into_keys)
            .collect();
        let Some(path) = all.iter().nth(usize::from(entry) % all.len().max(1)) else {
            return;
        };
        let noted = self.note();
        let done = commit::restore(&workspace, id, std::slice::from_ref(path), "");
        let after = Tree::read(self.union());
        match done {
            Ok(_) => {}
            Err(CommitError::Union(Error::Replaced(_))) => return before.assert_is(&after),
            Err(e) => panic!("{e}"),
        }
        self.done_since(noted);
        let what = show(path);
        assert_eq!(below(&after, path), below(&then, path), "{what}");
        self.check_links(path, &then, &after);
        // Everything else is as it was, except that directories above may have been created.
        let (paths_before, paths_after) = (before.paths(), after.paths());
        let is_above = |other: &[u8]| {
            path.starts_with(other) && (other == path || path.get(other.len()) == Some(&b'/'))
        };
        for (other, ino) in &paths_after {
            let is_within = below(&after, path).contains_key(other);
            if !is_within && !is_above(other) {
                assert_eq!(paths_before.get(other), Some(ino), "{}", show(other));
            }
        }
        for (other, ino) in &paths_before {
            if below(&before, path).contains_key(other) {
                continue;
            }
            assert_eq!(paths_after.get(other), Some(ino), "{}", show(other));
            let (old, new) = (before.node(*ino), after.node(*ino));
            if old.kind() != Kind::Directory {
                assert_same(old, new, &show(other));
            }
        }
        let old = std::mem::replace(&mut self.tree, after);
        for ino in &self.held {
            let kept = old.node(*ino).clone();
            self.tree.nodes.entry(*ino).or_insert(kept);
        }
    }

    /// Checks that names below a path are of one object if they were.
    fn check_links(&self, path: &[u8], then: &Tree, after: &Tree) {
        let (before, now) = (then.paths(), after.paths());
        let names: Vec<Vec<u8>> = below(then, path).into_keys().collect();
        for one in &names {
            for other in &names {
                assert_eq!(
                    before[one] == before[other],
                    now[one] == now[other],
                    "{} and {}",
                    show(one),
                    show(other)
                );
            }
        }
    }
}
