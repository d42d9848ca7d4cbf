//! Performs operations on a view and on the model, which are compared after each operation.

use std::collections::BTreeSet;

use envfs::commit;
use envfs::object::{Ino, Kind, Timestamp};
use envfs::state::RevisionId;
use envfs::union::{DiscardMode, Error, SetAttr, SetTime, SyncMode, Union};
use nix::errno::Errno;

use super::bench::Bench;
use super::check::check_changes;
use super::numbers::{self, Allocate};
use super::ops::{Op, Place};
use super::tree::{Body, Entry, Node, Tree, assert_same, read_node};
use super::undo::Before;

/// Dropped by any change of content or owner.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

pub(super) type Outcome<T = ()> = Result<T, Errno>;

pub(super) struct Machine {
    pub(super) bench: Bench,
    pub(super) tree: Tree,
    pub(super) held: Vec<Ino>,
    pub(super) revisions: Vec<(RevisionId, Tree)>,
    /// The view at the last commit.
    pub(super) base: Tree,
    /// The view of each revision.
    pub(super) history: Vec<(RevisionId, Tree)>,
    pub(super) seen: BTreeSet<Ino>,
    /// What undo brings back, for each operation of the log.
    pub(super) log: Vec<Before>,
    /// An environment that has received the history.
    pub(super) elsewhere: Option<Bench>,
    /// Whether there is a single image, which commits need.
    pub(super) commits: bool,
    /// The result of the last operation.
    pub(super) done: Outcome,
}

pub(super) fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = ["n0", "n1", "n2", "n3", ".wh.n0", "one"]
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    names.push(vec![0xff, 0xfe, b'\n']);
    names.push(vec![b'x'; 255]);
    names
}

pub(super) fn outcome<T>(result: envfs::union::Result<T>) -> Outcome<T> {
    match result {
        Ok(value) => Ok(value),
        Err(Error::Posix(errno)) => Err(errno),
        Err(e) => panic!("unexpected: {e}"),
    }
}

pub(super) fn without_privileges(mode: u16) -> u16 {
    let mode = mode & !0o4000;
    if mode & 0o010 != 0 {
        mode & !0o2000
    } else {
        mode
    }
}

impl Machine {
    pub(super) fn new(bench: Bench) -> Machine {
        let tree = Tree::read(bench.union());
        let revision = bench.current().id;
        let seen = tree.nodes.keys().copied().collect();
        let commits = bench.union().lower().images().len() == 1;
        Machine {
            bench,
            commits,
            elsewhere: None,
            log: Vec::new(),
            done: Ok(()),
            held: Vec::new(),
            revisions: vec![(revision, tree.clone())],
            base: tree.clone(),
            history: Vec::new(),
            seen,
            tree,
        }
    }

    pub(super) fn run(bench: Bench, ops: &[Op]) {
        let mut machine = Machine::new(bench);
        let mut ops = ops.iter().copied();
        while let Some(op) = ops.next() {
            match op {
                Op::CommitDuring { next } if machine.commits => {
                    let mut next: Vec<Op> = ops.by_ref().take(usize::from(next % 8)).collect();
                    next.retain(|op| op.is_by_a_program());
                    machine.commit_during(&next);
                }
                op => machine.step(op),
            }
        }
    }

    pub(super) fn union(&self) -> &Union {
        self.bench.union()
    }

    pub(super) fn step(&mut self, op: Op) {
        self.done = Ok(());
        if matches!(
            op,
            Op::Commit { .. }
                | Op::CommitPath { .. }
                | Op::DiscardAll
                | Op::DiscardPath { .. }
                | Op::Rollback { .. }
        ) {
            let noted = self.note();
            self.apply(op);
            self.done_since(noted);
        } else {
            self.apply(op);
        }
        self.check();
    }

    pub(super) fn check(&mut self) {
        let union = self.bench.union();
        let actual = Tree::read(union);
        let named = self.tree.named();
        named.assert_is(&actual);
        named.assert_found(union, &names());
        for (ino, node) in &self.tree.nodes {
            if named.nodes.contains_key(ino) {
                continue;
            }
            let attr = union.attr(*ino).unwrap();
            assert_eq!(
                (attr.kind, attr.nlink),
                (node.kind(), 0),
                "held object {ino}"
            );
            let found = read_node(union, *ino, &attr);
            let mut node = node.clone();
            if let Body::Directory(entries) = &mut node.body {
                entries.clear();
            }
            assert_same(&node, &found, &format!("held object {ino}"));
        }
        self.check_parents(&actual);
        assert_eq!(union.verify_upper().unwrap(), Vec::<String>::new());
        check_changes(&self.base, &actual, &union.changes().unwrap());
        // A trial is compared with no older revision.
        if self.commits && self.bench.trial.is_none() {
            self.check_history(&actual);
        }
    }

    /// Checks that the lower layers know the parents of their directories, which a copy-up needs.
    fn check_parents(&self, actual: &Tree) {
        let lower = self.union().lower();
        for (ino, node) in &actual.nodes {
            if node.kind() != Kind::Directory || *ino == Ino::ROOT {
                continue;
            }
            let place = lower.parent(*ino).unwrap();
            let is_there = lower.attr(*ino).unwrap().is_some();
            assert_eq!(place.is_some(), is_there, "{ino} below has a place");
            if let Some((dir, name)) = place {
                if !lower.frozen().is_empty() && lower.lookup(dir, &name).unwrap() != Some(*ino) {
                    // Frozen layers have removed it, and a discard of paths has brought it back.
                    continue;
                }
                assert_eq!(lower.lookup(dir, &name).unwrap(), Some(*ino), "{ino} below");
            }
        }
    }

    /// Selects an entry.
    pub(super) fn entry(&self, n: u16) -> Entry {
        let entries = self.tree.entries();
        if entries.is_empty() {
            return (Ino::ROOT, Vec::new(), Ino::ROOT);
        }
        entries[usize::from(n) % entries.len()].clone()
    }

    /// Selects an object with a name, or an open one without.
    pub(super) fn object(&self, n: u16, wanted: impl Fn(&Node) -> bool) -> Option<(Ino, Ino)> {
        let mut all: Vec<(Ino, Ino)> = self.tree.entries().iter().map(|e| (e.2, e.0)).collect();
        let named: BTreeSet<Ino> = all.iter().map(|object| object.0).collect();
        all.push((Ino::ROOT, Ino::ROOT));
        // Repeated, because they are few.
        for _ in 0..3 {
            let nameless = self
                .held
                .iter()
                .filter(|ino| !named.contains(ino) && **ino != Ino::ROOT);
            all.extend(nameless.map(|ino| (*ino, Ino::ROOT)));
        }
        all.retain(|object| wanted(self.tree.node(object.0)));
        (!all.is_empty()).then(|| all[usize::from(n) % all.len()])
    }

    pub(super) fn file(&self, n: u16) -> Option<(Ino, Ino)> {
        self.object(n, |node| node.kind() == Kind::File)
    }

    pub(super) fn place(&self, place: Place) -> (Ino, Vec<u8>) {
        if place.over {
            let (dir, name, _) = self.entry(place.dir);
            if !name.is_empty() {
                return (dir, name);
            }
        }
        let mut dirs: Vec<Ino> = self.tree.named().nodes.keys().copied().collect();
        dirs.retain(|ino| self.tree.node(*ino).kind() == Kind::Directory);
        // Open removed directories, in which nothing can be created.
        let named: BTreeSet<Ino> = dirs.iter().copied().collect();
        dirs.extend(
            self.held.iter().filter(|ino| {
                self.tree.node(**ino).kind() == Kind::Directory && !named.contains(ino)
            }),
        );
        let names = names();
        let name = names[usize::from(place.name) % names.len()].clone();
        (dirs[usize::from(place.dir) % dirs.len()], name)
    }

    /// Runs a function while the kernel knows the objects, as it does during every request.
    pub(super) fn holding<T>(&self, objects: &[(Ino, Ino)], f: impl FnOnce(&Union) -> T) -> T {
        let union = self.union();
        for (ino, parent) in objects {
            union.nodes().remember(*ino, *parent);
        }
        let done = f(union);
        for (ino, _) in objects {
            union.forget(*ino, 1);
        }
        done
    }

    pub(super) fn is_named(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || self.tree.entries().iter().any(|entry| entry.2 == ino)
    }

    /// Removes objects without a name from the model, unless they are open.
    pub(super) fn remove_unreachable(&mut self) {
        let named = self.tree.named();
        let held = &self.held;
        self.tree
            .nodes
            .retain(|ino, _| named.nodes.contains_key(ino) || held.contains(ino));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Make(place, make, mode) => self.make(place, make, mode),
            Op::Write {
                file,
                offset,
                len,
                seed,
                kill,
            } => {
                if let Some(file) = self.file(file) {
                    self.write(
                        file,
                        numbers::offset(offset),
                        &numbers::data(len, seed),
                        kill,
                    );
                }
            }
            Op::Append { file, len, seed } => {
                if let Some(file) = self.file(file) {
                    let size = self.tree.file_len(file.0);
                    self.write(file, size, &numbers::data(len, seed), false);
                }
            }
            Op::Truncate { file, size } => {
                let Some(file) = self.file(file) else { return };
                let size = numbers::cut(size);
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                let attr = self
                    .holding(&[file], |union| union.set_attr(file.0, &set))
                    .unwrap();
                assert_eq!(attr.size, size as u64);
                self.tree.file_mut(file.0).resize(size, 0);
                self.tree.node_mut(file.0).xattrs.remove(CAPABILITY);
            }
            Op::Allocate {
                file,
                offset,
                len,
                mode,
            } => {
                if let Some(file) = self.file(file) {
                    self.allocate(file, Allocate::new(offset, len, mode));
                }
            }
            Op::CopyRange(range) => self.copy_range(range),
            Op::Remove { entry, as_dir } => self.remove(entry, as_dir),
            Op::RemoveAny { entry } => {
                let (_, _, ino) = self.entry(entry);
                self.remove(entry, self.tree.node(ino).kind() == Kind::Directory);
            }
            Op::Recreate {
                entry,
                variation,
                which,
            } => self.recreate(entry, variation, which),
            Op::Rename { entry, to, mode } => self.rename(entry, to, mode),
            Op::Link { entry, to } => self.link(entry, to),
            Op::Chmod { entry, mode } => {
                let Some(object) = self.object(entry, |_| true) else {
                    return;
                };
                let mode = numbers::mode(mode);
                let set = SetAttr {
                    mode: Some(mode),
                    ..SetAttr::default()
                };
                let attr = self
                    .holding(&[object], |union| union.set_attr(object.0, &set))
                    .unwrap();
                assert_eq!(attr.mode, mode);
                self.tree.node_mut(object.0).mode = mode;
            }
            Op::Chown { entry, uid, gid } => {
                let Some(object) = self.object(entry, |_| true) else {
                    return;
                };
                let set = SetAttr {
                    uid: Some(uid.into()),
                    gid: Some(gid.into()),
                    ..SetAttr::default()
                };
                self.holding(&[object], |union| union.set_attr(object.0, &set))
                    .unwrap();
                let node = self.tree.node_mut(object.0);
                node.owner = (uid.into(), gid.into());
                if node.kind() != Kind::Directory {
                    node.mode = without_privileges(node.mode);
                    node.xattrs.remove(CAPABILITY);
                }
            }
            Op::Utimes { entry, secs, nanos } => {
                let Some(object) = self.object(entry, |_| true) else {
                    return;
                };
                let time = Timestamp {
                    secs: i64::from(secs),
                    nanos: numbers::nanos(nanos),
                };
                let set = SetAttr {
                    mtime: Some(SetTime::To(time)),
                    ..SetAttr::default()
                };
                let attr = self
                    .holding(&[object], |union| union.set_attr(object.0, &set))
                    .unwrap();
                assert_eq!(attr.mtime, time);
                self.tree.node_mut(object.0).mtime = Some(time);
            }
            Op::SetXattr { entry, name, len } => self.set_xattr(entry, name, len),
            Op::RemoveXattr { entry, name } => {
                let Some(object) = self.object(entry, |_| true) else {
                    return;
                };
                let name = numbers::removed(name, self.tree.node(object.0).xattrs.keys());
                let done = self.holding(&[object], |union| {
                    outcome(union.remove_xattr(object.0, &name))
                });
                self.done = done;
                match self.tree.node_mut(object.0).xattrs.remove(&name) {
                    Some(_) => assert_eq!(done, Ok(())),
                    None => assert_eq!(done, Err(Errno::ENODATA)),
                }
            }
            Op::Hold { entry } => {
                let (dir, name, ino) = self.entry(entry);
                if !name.is_empty() && !self.held.contains(&ino) && self.held.len() < 4 {
                    self.union().nodes().remember(ino, dir);
                    self.held.push(ino);
                }
            }
            Op::Release { held } => {
                if !self.held.is_empty() {
                    let ino = self.held.remove(usize::from(held) % self.held.len());
                    self.union().forget(ino, 1);
                    self.remove_unreachable();
                }
            }
            Op::Sync { entry } => {
                if let Some(object) = self.object(entry, |_| true) {
                    self.holding(&[object], |union| union.sync(object.0, SyncMode::Full))
                        .unwrap();
                }
            }
            Op::SetAttr {
                entry,
                mask,
                mode,
                owner,
                size,
                secs,
            } => self.set_attr(entry, mask, mode, owner, size, secs),
            // A stack of several images gets another upper instead.
            Op::Commit { .. } | Op::CommitDuring { .. } if !self.commits => {
                drop(self.union().rotate().unwrap())
            }
            Op::Commit { rebuild, compact } => self.commit(rebuild, compact),
            Op::CommitDuring { .. } => self.commit_during(&[]),
            Op::Rotate => drop(self.union().rotate().unwrap()),
            Op::Unrotate => self.union().unrotate().unwrap(),
            Op::Remount => {
                let before = Tree::read(self.union());
                self.bench.remount();
                self.held.clear();
                self.remove_unreachable();
                before.assert_is(&Tree::read(self.union()));
            }
            Op::Kill => {
                let before = Tree::read(self.union());
                self.bench.kill();
                let reconciled = self.bench.open();
                assert!(
                    reconciled.lost.is_empty() && reconciled.set_aside == 0,
                    "{reconciled:?}"
                );
                self.held.clear();
                self.remove_unreachable();
                before.assert_is(&Tree::read(self.union()));
            }
            Op::DiscardAll => {
                commit::discard(self.bench.workspace(), &[], "").unwrap();
                let tree = self.committed();
                self.back_to(tree);
                assert_eq!(self.union().changes().unwrap(), Vec::new());
            }
            Op::Checkpoint => self.checkpoint(),
            Op::Relocate { file } => self.relocate(file),
            Op::Undo { back } => self.undo(back),
            Op::CommitPath { entry, of_base } => self.commit_path(entry, of_base),
            Op::DiscardPath { entry, of_base } => self.discard_path(entry, of_base),
            Op::Restore { entry, revision } => self.restore(entry, revision),
            Op::Rollback { .. } if !self.commits => self.apply(Op::DiscardAll),
            Op::Rollback { revision } => {
                let (id, tree) =
                    self.revisions[usize::from(revision) % self.revisions.len()].clone();
                let done = commit::rollback(
                    self.bench.workspace(),
                    Some(id),
                    DiscardMode::Always,
                    "test",
                )
                .unwrap();
                self.revisions.push((done.revision, tree.clone()));
                self.back_to(tree);
                self.base = Tree::read(self.union());
                assert_eq!(self.union().changes().unwrap(), Vec::new());
            }
        }
    }
}

impl Tree {
    pub(super) fn file_len(&self, ino: Ino) -> usize {
        match &self.node(ino).body {
            Body::File(content) => content.len(),
            other => panic!("{other:?}"),
        }
    }
}
