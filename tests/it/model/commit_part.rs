//! Commits of a part of the changes, on a view and on the model.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use envfs::commit::{self, CommitError, CommitOptions, Ignored, UndoOptions};
use envfs::environment::Config;
use envfs::object::{Ino, Kind};
use envfs::progress::NoProgress;
use envfs::sys::text::Text;
use envfs::union::{Change, ChangeKind, Error, LowerStack, RenameMode};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::bench::{Bench, During, config};
use super::crash::{find, make, make_dir, rename, write};
use super::machine::Machine;
use super::regressions::content;
use super::tree::{Body, Node, Tree, show};

fn text(path: &[u8]) -> Text {
    Text::from(OsStr::from_bytes(path))
}

fn is_at(path: &[u8], above: &[u8]) -> bool {
    above.is_empty()
        || path == above
        || path.starts_with(above) && path.get(above.len()) == Some(&b'/')
}

/// Returns true if a change is at or below a path, before or after it.
fn concerns(change: &Change, path: &[u8]) -> bool {
    is_at(&change.path, path)
        || matches!(&change.what, ChangeKind::Renamed { from } if is_at(from, path))
}

/// Reads a committed view.
fn read_committed(machine: &Machine) -> Tree {
    let images = machine.union().lower().images().to_vec();
    let stack = LowerStack::new(images);
    let mut tree = Tree {
        nodes: BTreeMap::new(),
    };
    let mut pending = vec![Ino::ROOT];
    while let Some(ino) = pending.pop() {
        let attr = stack.attr(ino).unwrap().unwrap();
        let body = match attr.kind {
            Kind::Directory => {
                let listing = stack.list(ino).unwrap();
                let entries = listing.iter().map(|(name, ino, _)| (name.to_vec(), ino));
                let entries: BTreeMap<_, _> = entries.collect();
                pending.extend(entries.values());
                Body::Directory(entries)
            }
            Kind::File => {
                let mut data: Vec<u8> = Vec::new();
                loop {
                    let read = stack.read(ino, data.len() as u64, 1 << 20).unwrap();
                    match (*read).as_ref() {
                        [] => break,
                        more => data.extend_from_slice(more),
                    }
                }
                assert_eq!(data.len() as u64, attr.size);
                Body::File(data)
            }
            Kind::Symlink => Body::Symlink(stack.read_link(ino).unwrap().into_vec()),
            kind => Body::Special(kind, attr.rdev),
        };
        let xattrs = stack.xattrs(ino).unwrap().into_iter();
        let node = Node {
            body,
            mode: attr.mode,
            owner: (attr.uid, attr.gid),
            xattrs: xattrs.map(|(n, v)| (n.into_vec(), v.into_vec())).collect(),
            mtime: Some(attr.mtime),
        };
        tree.nodes.insert(ino, node);
    }
    tree
}

/// The revision has what the view has at and below a path, and what was committed elsewhere.
fn assert_part(path: &[u8], before: &Tree, base: &Tree, committed: &Tree) {
    let (now, then, new) = (before.paths(), base.paths(), committed.paths());
    let key = |tree: &Tree, ino: Ino| {
        let node = tree.node(ino);
        let body = match &node.body {
            Body::Directory(_) => None,
            body => Some(body.clone()),
        };
        (body, node.mode, node.owner, node.xattrs.clone())
    };
    let all = now.keys().chain(then.keys()).chain(new.keys());
    for at in all {
        let is_above = is_at(path, at);
        let expected = match is_at(at, path) {
            true => now.get(at).map(|ino| key(before, *ino)),
            // A new directory above the path.
            false if is_above && !then.contains_key(at) => {
                let is_needed = now.contains_key(path);
                let new = now.get(at).filter(|_| is_needed);
                new.map(|ino| key(before, *ino))
            }
            // Or one that stands in the place of another object.
            false if is_above && new.get(at) == now.get(at) && new.get(at) != then.get(at) => {
                now.get(at).map(|ino| key(before, *ino))
            }
            false => then.get(at).map(|ino| key(base, *ino)),
        };
        let found = new.get(at).map(|ino| key(committed, *ino));
        assert!(
            found == expected,
            "{} of a commit of {}: {found:?} instead of {expected:?}",
            show(at),
            show(path)
        );
    }
}

impl Machine {
    /// Commits the changes at and below a path.
    pub(super) fn commit_path(&mut self, entry: u16, of_base: bool) {
        let before = Tree::read(self.union());
        let (now_paths, base_paths) = (before.paths(), self.base.paths());
        let paths: Vec<&Vec<u8>> = match of_base {
            true => base_paths.keys(),
            false => now_paths.keys(),
        }
        .collect();
        if paths.is_empty() || !self.commits {
            return;
        }
        let path = paths[usize::from(entry) % paths.len()].clone();
        let changes = self.union().changes().unwrap();
        let options = CommitOptions {
            paths: vec![text(&path)],
            ..CommitOptions::default()
        };
        let done = match commit::commit(self.bench.workspace(), &options, &NoProgress) {
            Ok(Some(done)) => done,
            Ok(None) => {
                before.assert_is(&Tree::read(self.union()));
                return;
            }
            Err(CommitError::Union(Error::NotSeparable { why, .. })) => {
                // Only names and links reach beyond a path.
                let reaches = changes.iter().any(|change| {
                    matches!(change.what, ChangeKind::Renamed { .. })
                        || matches!(change.what, ChangeKind::Removed)
                        || self.base.nodes.contains_key(&change.ino)
                });
                assert!(reaches, "{why}: {changes:#?}");
                before.assert_is(&Tree::read(self.union()));
                return;
            }
            Err(e) => panic!("{}: {e}", show(&path)),
        };
        let after = Tree::read(self.union());
        let seconds = |tree: &Tree| tree.clone().in_whole_seconds();
        seconds(&before).assert_is(&seconds(&after));
        let committed = read_committed(self);
        assert_part(&path, &before, &self.base, &committed);
        for change in self.union().changes().unwrap() {
            assert!(!concerns(&change, &path), "{change:?} was committed");
        }
        for (ino, node) in &mut self.tree.nodes {
            if let Some(found) = after.nodes.get(ino) {
                node.mtime = node.mtime.map(|_| found.mtime.unwrap());
            }
        }
        self.base = committed.clone();
        self.revisions.push((done.revision, committed));
    }
}

fn commit_paths(bench: &Bench, paths: &[&str]) -> commit::Result<Option<commit::Committed>> {
    let options = CommitOptions {
        paths: paths.iter().map(|path| text(path.as_bytes())).collect(),
        ..CommitOptions::default()
    };
    commit::commit(bench.workspace(), &options, &NoProgress)
}

#[track_caller]
fn refused(bench: &Bench, paths: &[&str], words: &str) {
    let before = Tree::read(bench.union());
    let error = commit_paths(bench, paths).unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
    before.assert_is(&Tree::read(bench.union()));
    assert!(bench.union().lower().frozen().is_empty(), "as before");
}

fn changed_paths(bench: &Bench) -> Vec<String> {
    let changes = bench.union().changes().unwrap().into_iter();
    let paths = changes.map(|change| String::from_utf8(change.path).unwrap());
    paths.collect()
}

#[test]
fn a_commit_of_a_path_takes_new_directories_above_it_along() {
    let mut bench = Bench::imported();
    make_dir(bench.union(), "", "new");
    make(bench.union(), "new", "in", b"in");
    make(bench.union(), "new", "out", b"out");
    write(bench.union(), "big", b"changed");
    let before = Tree::read(bench.union());
    commit_paths(&bench, &["new/in"]).unwrap().unwrap();
    assert_eq!(changed_paths(&bench), ["big", "new/out"]);
    assert!(bench.union().lower().frozen().is_empty());
    before
        .clone()
        .in_whole_seconds()
        .assert_is(&Tree::read(bench.union()).in_whole_seconds());
    bench.kill();
    assert!(bench.open().is_empty());
    assert_eq!(content(bench.union(), "new/out"), b"out");
    assert_eq!(changed_paths(&bench), ["big", "new/out"]);
    bench.commit(&CommitOptions::default()).unwrap();
    assert_eq!(changed_paths(&bench), [""; 0]);
}

#[test]
fn what_reaches_beyond_the_paths_is_refused() {
    let bench = Bench::imported();
    rename(
        bench.union(),
        ("a", "one"),
        ("", "moved"),
        RenameMode::Replace,
    );
    refused(&bench, &["moved"], "renamed from");
    refused(&bench, &["a"], "renamed to");
    // Another name of the same file.
    refused(&bench, &["a/one", "big"], "renamed to");
    make(bench.union(), "", "other", b"other");
    commit_paths(&bench, &["other"]).unwrap().unwrap();
    commit_paths(&bench, &["a", "moved"]).unwrap().unwrap();
    assert_eq!(changed_paths(&bench), [""; 0]);
}

#[test]
fn the_undo_of_a_commit_of_paths_makes_them_uncommitted_again() {
    let bench = Bench::imported();
    make(bench.union(), "", "in", b"in");
    make(bench.union(), "", "out", b"out");
    commit_paths(&bench, &["in"]).unwrap().unwrap();
    write(bench.union(), "out", b"more");
    let undo = || {
        commit::undo(bench.workspace(), &UndoOptions::default(), &NoProgress).unwrap();
    };
    undo();
    assert_eq!(changed_paths(&bench), ["in", "out"]);
    assert_eq!(content(bench.union(), "out"), b"more");
    undo();
    assert_eq!(changed_paths(&bench), ["out"]);
    undo();
    bench.commit(&CommitOptions::default()).unwrap();
    assert_eq!(changed_paths(&bench), [""; 0]);
}

#[test]
fn checkpoints_and_their_changes_are_split_as_one() {
    let bench = Bench::imported();
    make(bench.union(), "", "in", b"in");
    make(bench.union(), "", "out", b"out");
    let checkpoint = || {
        commit::checkpoint(bench.workspace(), &commit::CheckpointOptions::default()).unwrap();
    };
    checkpoint();
    write(bench.union(), "in", b"IN");
    bench
        .union()
        .set_attr(
            find(bench.union(), "out"),
            &envfs::union::SetAttr {
                mode: Some(0o600),
                ..Default::default()
            },
        )
        .unwrap();
    checkpoint();
    make(bench.union(), "", "last", b"last");
    let before = Tree::read(bench.union());
    commit_paths(&bench, &["in"]).unwrap().unwrap();
    assert_eq!(changed_paths(&bench), ["last", "out"]);
    before
        .in_whole_seconds()
        .assert_is(&Tree::read(bench.union()).in_whole_seconds());
}

#[test]
fn ignored_paths_stay_uncommitted_unless_they_are_committed_already() {
    let mut bench = Bench::imported();
    make_dir(bench.union(), "a", "__pycache__");
    make(bench.union(), "a/__pycache__", "old.pyc", b"old");
    bench.commit(&CommitOptions::default()).unwrap();
    let mut config: Config = config();
    config.commit.ignore = vec!["__pycache__/".to_owned(), "*.log".to_owned()];
    bench.close_and_open_with(&config);
    write(bench.union(), "a/__pycache__/old.pyc", b"changed");
    make(bench.union(), "a/__pycache__", "new.pyc", b"new");
    make_dir(bench.union(), "b", "__pycache__");
    make(bench.union(), "b/__pycache__", "x.pyc", b"x");
    make(bench.union(), "", "x.log", b"log");
    make(bench.union(), "", "kept", b"kept");
    let options = CommitOptions {
        ignored: Ignored::LeaveOut,
        ..CommitOptions::default()
    };
    let left = [
        "a/__pycache__/new.pyc",
        "b/__pycache__",
        "b/__pycache__/x.pyc",
        "x.log",
    ];
    for round in 0..3_u8 {
        make(bench.union(), "", &format!("round{round}"), &[round]);
        let before = Tree::read(bench.union());
        bench.commit(&options).unwrap();
        assert_eq!(changed_paths(&bench), left);
        before
            .in_whole_seconds()
            .assert_is(&Tree::read(bench.union()).in_whole_seconds());
        assert!(bench.commit(&options).is_none(), "only ignored paths");
        assert!(bench.union().lower().frozen().is_empty());
    }
    // A committed file that moves to an ignored name is committed there.
    rename(
        bench.union(),
        ("", "kept"),
        ("", "kept.log"),
        RenameMode::Replace,
    );
    bench.commit(&options).unwrap();
    assert_eq!(changed_paths(&bench), left);
    assert!(bench.commit(&CommitOptions::default()).is_some());
    assert_eq!(changed_paths(&bench), [""; 0]);
}

#[test]
fn what_changes_during_a_commit_of_paths_stays_above_the_rest() {
    let mut bench = Bench::imported();
    make(bench.union(), "", "in", b"in");
    make(bench.union(), "", "out", b"out");
    let during = During::new(|| {
        write(bench.union(), "in", b"IN");
        write(bench.union(), "out", b"OUT");
        make(bench.union(), "", "later", b"later");
    });
    let options = CommitOptions {
        paths: vec![text(b"in")],
        ..CommitOptions::default()
    };
    let done = commit::commit(bench.workspace(), &options, &during).unwrap();
    assert!(during.pending().is_none(), "the action did not run");
    assert_eq!(done.unwrap().changes.added.entries, 1);
    let expected = ["in", "later", "out"];
    assert_eq!(changed_paths(&bench), expected);
    let frozen = bench.union().lower().frozen().len();
    assert_eq!(frozen, 1, "the rest, below what was changed meanwhile");
    for is_killed in [false, true] {
        assert_eq!(content(bench.union(), "in"), b"IN");
        assert_eq!(content(bench.union(), "out"), b"OUT");
        match is_killed {
            true => bench.kill(),
            false => bench.close(),
        }
        assert!(bench.open().is_empty());
        assert_eq!(changed_paths(&bench), expected);
    }
    // Again, with the rest in two layers.
    commit_paths(&bench, &["out"]).unwrap().unwrap();
    assert_eq!(changed_paths(&bench), ["in", "later"]);
    bench.commit(&CommitOptions::default()).unwrap();
    assert_eq!(changed_paths(&bench), [""; 0]);
    assert!(bench.union().lower().frozen().is_empty());
}
