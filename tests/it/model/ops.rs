//! Operations, each on a view and on the model, compared after every one.

use std::collections::{BTreeMap, BTreeSet};

use envfs::commit::{self, CommitOptions};
use envfs::object::{Ino, Kind, Timestamp};
use envfs::state::RevisionId;
use envfs::union::{
    AllocateMode, Change, ChangeKind, Creator, Error, RenameMode, SetAttr, SetTime, Union,
    XattrMode,
};
use nix::errno::Errno;

use super::bench::{BLOCK, Bench, noise};
use super::tree::{Body, Entry, Node, Tree, assert_same, read_node, show};

/// Where a name is made: a name of few, or with `over` the place of something that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) dir: u16,
    pub(super) name: u8,
    pub(super) over: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Make {
    File,
    Directory,
    Symlink,
    Fifo,
    Device,
}

/// One step. Numbers choose among what is there, modulo.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Make(Place, Make, u16),
    Write {
        file: u16,
        offset: u16,
        len: u16,
        seed: u8,
        kill: bool,
    },
    Append {
        file: u16,
        len: u16,
        seed: u8,
    },
    Truncate {
        file: u16,
        size: u16,
    },
    Allocate {
        file: u16,
        offset: u16,
        len: u16,
        mode: u8,
    },
    CopyRange {
        from: u16,
        to: u16,
        from_offset: u16,
        to_offset: u16,
        len: u16,
    },
    Remove {
        entry: u16,
        as_dir: bool,
    },
    RemoveProperly {
        entry: u16,
    },
    Rename {
        entry: u16,
        to: Place,
        mode: u8,
    },
    Link {
        entry: u16,
        to: Place,
    },
    Chmod {
        entry: u16,
        mode: u16,
    },
    Chown {
        entry: u16,
        uid: u8,
        gid: u8,
    },
    Utimes {
        entry: u16,
        secs: u32,
        nanos: u32,
    },
    SetXattr {
        entry: u16,
        name: u8,
        len: u16,
    },
    RemoveXattr {
        entry: u16,
        name: u8,
    },
    Hold {
        entry: u16,
    },
    Release {
        held: u16,
    },
    Sync {
        entry: u16,
    },
    Commit {
        rebuild: bool,
        compact: bool,
    },
    Remount,
    Kill,
    DiscardAll,
    DiscardPath {
        entry: u16,
        of_base: bool,
    },
    Rollback {
        revision: u16,
    },
}

type Outcome<T = ()> = Result<T, Errno>;

pub(super) struct Machine {
    pub(super) bench: Bench,
    pub(super) tree: Tree,
    held: Vec<Ino>,
    revisions: Vec<(RevisionId, Tree)>,
    /// The view as it was when it was committed last, as read.
    base: Tree,
    seen: BTreeSet<Ino>,
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

fn outcome<T>(result: envfs::union::Result<T>) -> Outcome<T> {
    match result {
        Ok(value) => Ok(value),
        Err(Error::Posix(errno)) => Err(errno),
        Err(e) => panic!("unexpected: {e}"),
    }
}

fn without_privileges(mode: u16) -> u16 {
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
        let revision = bench
            .workspace()
            .db()
            .current_revision()
            .unwrap()
            .unwrap()
            .id;
        let seen = tree.nodes.keys().copied().collect();
        Machine {
            bench,
            held: Vec::new(),
            revisions: vec![(revision, tree.clone())],
            base: tree.clone(),
            seen,
            tree,
        }
    }

    pub(super) fn run(bench: Bench, ops: &[Op]) {
        let mut machine = Machine::new(bench);
        for op in ops {
            machine.step(*op);
        }
    }

    fn union(&self) -> &Union {
        self.bench.union()
    }

    pub(super) fn step(&mut self, op: Op) {
        self.apply(op);
        self.check();
    }

    fn check(&mut self) {
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
        assert_eq!(union.verify_upper().unwrap(), Vec::<String>::new());
        check_changes(&self.base, &actual, &union.changes().unwrap());
    }

    /// Everything that can be named: entries, and the root.
    fn entry(&self, n: u16) -> Entry {
        let entries = self.tree.entries();
        if entries.is_empty() {
            return (Ino::ROOT, Vec::new(), Ino::ROOT);
        }
        entries[usize::from(n) % entries.len()].clone()
    }

    /// An object: one with a name, or one that is held without.
    fn object(&self, n: u16, wanted: impl Fn(&Node) -> bool) -> Option<(Ino, Ino)> {
        let mut all: Vec<(Ino, Ino)> = self.tree.entries().iter().map(|e| (e.2, e.0)).collect();
        let named: BTreeSet<Ino> = all.iter().map(|object| object.0).collect();
        all.push((Ino::ROOT, Ino::ROOT));
        // Often, as they are few.
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

    fn file(&self, n: u16) -> Option<(Ino, Ino)> {
        self.object(n, |node| node.kind() == Kind::File)
    }

    fn place(&self, place: Place) -> (Ino, Vec<u8>) {
        if place.over {
            let (dir, name, _) = self.entry(place.dir);
            if !name.is_empty() {
                return (dir, name);
            }
        }
        let mut dirs: Vec<Ino> = self.tree.named().nodes.keys().copied().collect();
        dirs.retain(|ino| self.tree.node(*ino).kind() == Kind::Directory);
        // Held directories that were removed: nothing can be made in them.
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

    /// Does something while the kernel knows the objects, as it does during every request.
    fn holding<T>(&self, objects: &[(Ino, Ino)], f: impl FnOnce(&Union) -> T) -> T {
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

    fn is_named(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || self.tree.entries().iter().any(|entry| entry.2 == ino)
    }

    /// Forgets what has lost its last name, unless it is held.
    fn bury(&mut self) {
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
                        usize::from(offset) % (5 * BLOCK),
                        usize::from(len) % 6000,
                        seed,
                        kill,
                    );
                }
            }
            Op::Append { file, len, seed } => {
                if let Some(file) = self.file(file) {
                    let size = self.tree.file_len(file.0);
                    self.write(file, size, usize::from(len) % 6000, seed, false);
                }
            }
            Op::Truncate { file, size } => {
                let Some(file) = self.file(file) else { return };
                let size = usize::from(size) % (5 * BLOCK);
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                let attr = self
                    .holding(&[file], |union| union.set_attr(file.0, &set))
                    .unwrap();
                assert_eq!(attr.size, size as u64);
                self.tree.file_mut(file.0).resize(size, 0);
            }
            Op::Allocate {
                file,
                offset,
                len,
                mode,
            } => {
                let Some(file) = self.file(file) else { return };
                self.allocate(
                    file,
                    usize::from(offset) % (4 * BLOCK),
                    1 + usize::from(len) % (2 * BLOCK),
                    mode,
                );
            }
            Op::CopyRange {
                from,
                to,
                from_offset,
                to_offset,
                len,
            } => {
                let (Some(from), Some(to)) = (self.file(from), self.file(to)) else {
                    return;
                };
                self.copy_range(from, to, from_offset, to_offset, len);
            }
            Op::Remove { entry, as_dir } => self.remove(entry, as_dir),
            Op::RemoveProperly { entry } => {
                let (_, _, ino) = self.entry(entry);
                self.remove(entry, self.tree.node(ino).kind() == Kind::Directory);
            }
            Op::Rename { entry, to, mode } => self.rename(entry, to, mode),
            Op::Link { entry, to } => self.link(entry, to),
            Op::Chmod { entry, mode } => {
                let Some(object) = self.object(entry, |_| true) else {
                    return;
                };
                let mode = mode & 0o7777;
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
                }
            }
            Op::Utimes { entry, secs, nanos } => {
                let Some(object) = self.object(entry, |_| true) else {
                    return;
                };
                let time = Timestamp {
                    secs: i64::from(secs),
                    nanos: nanos % 1_000_000_000,
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
                let xattrs = &self.tree.node(object.0).xattrs;
                let names: Vec<&Vec<u8>> = xattrs.keys().collect();
                let name = match names.len() {
                    0 => b"user.none".to_vec(),
                    n => names[usize::from(name) % n].clone(),
                };
                let done = self.holding(&[object], |union| {
                    outcome(union.remove_xattr(object.0, &name))
                });
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
                    self.bury();
                }
            }
            Op::Sync { entry } => {
                if let Some(object) = self.object(entry, |_| true) {
                    self.holding(&[object], |union| union.sync(object.0, false))
                        .unwrap();
                }
            }
            Op::Commit { rebuild, compact } => self.commit(rebuild, compact),
            Op::Remount => {
                let before = Tree::read(self.union());
                self.bench.remount();
                self.held.clear();
                self.bury();
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
                self.bury();
                before.assert_is(&Tree::read(self.union()));
            }
            Op::DiscardAll => {
                commit::discard(self.bench.workspace(), &[]).unwrap();
                let (_, tree) = self.revisions.last().unwrap();
                let tree = tree.clone();
                self.back_to(tree);
                assert_eq!(self.union().changes().unwrap(), Vec::new());
            }
            Op::DiscardPath { entry, of_base } => self.discard_path(entry, of_base),
            Op::Rollback { revision } => {
                let (id, tree) =
                    self.revisions[usize::from(revision) % self.revisions.len()].clone();
                let done =
                    commit::rollback(self.bench.workspace(), Some(id), true, "test").unwrap();
                self.revisions.push((done.revision, tree.clone()));
                self.back_to(tree);
                self.base = Tree::read(self.union());
                assert_eq!(self.union().changes().unwrap(), Vec::new());
            }
        }
    }

    fn make(&mut self, place: Place, make: Make, mode: u16) {
        let (dir, name) = self.place(place);
        let mode = mode & 0o7777;
        let (kind, rdev, target) = match make {
            Make::File => (Kind::File, 0, None),
            Make::Directory => (Kind::Directory, 0, None),
            Make::Symlink => (Kind::Symlink, 0, Some(&b"some/where"[..])),
            Make::Fifo => (Kind::Fifo, 0, None),
            Make::Device => (Kind::CharDevice, 0x103, None),
        };
        let creator = Creator { uid: 7, gid: 8 };
        let done = self.holding(&[(dir, dir)], |union| {
            outcome(union.make(dir, &name, kind, mode, rdev, target, creator))
        });
        if !self.is_named(dir) {
            assert_eq!(done.map(|_| ()), Err(Errno::ENOENT));
            return;
        }
        if self.tree.dir(dir).contains_key(&name) {
            assert_eq!(done.map(|_| ()), Err(Errno::EEXIST));
            return;
        }
        let (ino, attr) = done.unwrap();
        assert!(self.seen.insert(ino), "identity {ino} is used again");
        assert_eq!(self.union().attr(ino).unwrap(), attr);
        let above = self.tree.node(dir);
        let passes_group = above.mode & 0o2000 != 0;
        let gid = if passes_group { above.owner.1 } else { 8 };
        let node = Node {
            body: match make {
                Make::File => Body::File(Vec::new()),
                Make::Directory => Body::Directory(BTreeMap::new()),
                Make::Symlink => Body::Symlink(b"some/where".to_vec()),
                Make::Fifo | Make::Device => Body::Special(kind, rdev),
            },
            mode: if passes_group && kind == Kind::Directory {
                mode | 0o2000
            } else {
                mode
            },
            owner: (7, gid),
            mtime: None,
            xattrs: BTreeMap::new(),
        };
        self.tree.nodes.insert(ino, node);
        self.tree.dir_mut(dir).insert(name, ino);
    }

    fn write(&mut self, file: (Ino, Ino), offset: usize, len: usize, seed: u8, kill: bool) {
        let data = noise(seed.into(), len);
        let done = self.holding(&[file], |union| {
            union.write_at(file.0, offset as u64, &data, kill)
        });
        assert_eq!(done.unwrap(), len);
        if kill {
            let node = self.tree.node_mut(file.0);
            node.mode = without_privileges(node.mode);
        }
        if len == 0 {
            return;
        }
        let content = self.tree.file_mut(file.0);
        if content.len() < offset + len {
            content.resize(offset + len, 0);
        }
        content[offset..offset + len].copy_from_slice(&data);
    }

    fn allocate(&mut self, file: (Ino, Ino), offset: usize, len: usize, mode: u8) {
        let modes = [
            AllocateMode::Reserve { keep_size: false },
            AllocateMode::Reserve { keep_size: true },
            AllocateMode::PunchHole,
            AllocateMode::ZeroRange { keep_size: false },
            AllocateMode::ZeroRange { keep_size: true },
        ];
        let mode = modes[usize::from(mode) % modes.len()];
        let done = self.holding(&[file], |union| {
            outcome(union.allocate(file.0, offset as u64, len as u64, mode))
        });
        if done == Err(Errno::EOPNOTSUPP) {
            // Not every file system can; a copy-up may have happened, which changes nothing.
            return;
        }
        done.unwrap();
        let node = self.tree.node_mut(file.0);
        node.mode = without_privileges(node.mode);
        let content = self.tree.file_mut(file.0);
        let grows = matches!(
            mode,
            AllocateMode::Reserve { keep_size: false }
                | AllocateMode::ZeroRange { keep_size: false }
        );
        if grows && content.len() < offset + len {
            content.resize(offset + len, 0);
        }
        let zeroes = !matches!(mode, AllocateMode::Reserve { .. });
        if zeroes && offset < content.len() {
            let end = content.len().min(offset + len);
            content[offset..end].fill(0);
        }
    }

    fn copy_range(
        &mut self,
        from: (Ino, Ino),
        to: (Ino, Ino),
        from_offset: u16,
        to_offset: u16,
        len: u16,
    ) {
        let source = match &self.tree.node(from.0).body {
            Body::File(content) => content.clone(),
            _ => return,
        };
        let (from_offset, to_offset) = (
            usize::from(from_offset) % (4 * BLOCK),
            usize::from(to_offset) % (4 * BLOCK),
        );
        let len = usize::from(len) % (3 * BLOCK);
        if from.0 == to.0 && from_offset.abs_diff(to_offset) < len {
            return; // Ranges of one file may not overlap.
        }
        let done = self.holding(&[from, to], |union| {
            union.copy_range(
                from.0,
                from_offset as u64,
                to.0,
                to_offset as u64,
                len as u64,
            )
        });
        let len = len.min(source.len().saturating_sub(from_offset));
        assert_eq!(done.unwrap(), len as u64);
        if len == 0 {
            return;
        }
        let content = self.tree.file_mut(to.0);
        if content.len() < to_offset + len {
            content.resize(to_offset + len, 0);
        }
        content[to_offset..to_offset + len]
            .copy_from_slice(&source[from_offset..from_offset + len]);
    }

    fn remove(&mut self, entry: u16, as_dir: bool) {
        let (dir, name, ino) = self.entry(entry);
        if name.is_empty() {
            return;
        }
        let done = self.holding(&[(dir, dir)], |union| {
            outcome(if as_dir {
                union.rmdir(dir, &name)
            } else {
                union.unlink(dir, &name)
            })
        });
        let expected = match &self.tree.node(ino).body {
            Body::Directory(_) if !as_dir => Err(Errno::EISDIR),
            Body::Directory(entries) if !entries.is_empty() => Err(Errno::ENOTEMPTY),
            Body::Directory(_) => Ok(()),
            _ if as_dir => Err(Errno::ENOTDIR),
            _ => Ok(()),
        };
        assert_eq!(done, expected, "removing {}", show(&name));
        if done.is_ok() {
            self.tree.dir_mut(dir).remove(&name);
            self.bury();
        }
    }

    fn rename(&mut self, entry: u16, to: Place, mode: u8) {
        let (dir, name, ino) = self.entry(entry);
        if name.is_empty() {
            return;
        }
        let (new_dir, new_name) = self.place(to);
        let mode = match mode % 6 {
            0 => RenameMode::NoReplace,
            1 | 2 => RenameMode::Exchange,
            _ => RenameMode::Replace,
        };
        let done = self.holding(&[(dir, dir), (new_dir, new_dir)], |union| {
            outcome(union.rename(dir, &name, new_dir, &new_name, mode))
        });
        if !self.is_named(new_dir) {
            assert_eq!(done, Err(Errno::ENOENT));
            return;
        }
        let other = self.tree.dir(new_dir).get(&new_name).copied();
        let is_dir = |ino: Ino| self.tree.node(ino).kind() == Kind::Directory;
        let expected = match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => Err(Errno::ENOENT),
            (_, Some(other)) if other == ino => Ok(None),
            _ if is_dir(ino) && self.tree.is_within(new_dir, ino) => Err(Errno::EINVAL),
            (RenameMode::Exchange, Some(other)) => {
                if is_dir(other) && self.tree.is_within(dir, other) {
                    Err(Errno::EINVAL)
                } else {
                    Ok(Some(()))
                }
            }
            (_, Some(other)) if is_dir(ino) && !is_dir(other) => Err(Errno::ENOTDIR),
            (_, Some(other)) if !is_dir(ino) && is_dir(other) => Err(Errno::EISDIR),
            (_, Some(other)) if is_dir(other) && !self.tree.dir(other).is_empty() => {
                Err(Errno::ENOTEMPTY)
            }
            _ => Ok(Some(())),
        };
        assert_eq!(
            done,
            expected.map(|_| ()),
            "renaming {} to {}",
            show(&name),
            show(&new_name)
        );
        if expected != Ok(Some(())) {
            return;
        }
        if mode == RenameMode::Exchange {
            self.tree.dir_mut(dir).insert(name, other.unwrap());
        } else {
            self.tree.dir_mut(dir).remove(&name);
        }
        self.tree.dir_mut(new_dir).insert(new_name, ino);
        self.bury();
    }

    fn link(&mut self, entry: u16, to: Place) {
        let Some((ino, parent)) = self.object(entry, |_| true) else {
            return;
        };
        let (dir, name) = self.place(to);
        let done = self.holding(&[(ino, parent), (dir, dir)], |union| {
            outcome(union.link(ino, dir, &name))
        });
        let done = done.map(|attr| attr.nlink);
        let expected = if !self.is_named(dir) {
            Err(Errno::ENOENT)
        } else if self.tree.dir(dir).contains_key(&name) {
            Err(Errno::EEXIST)
        } else if !self.is_named(ino) {
            Err(Errno::ENOENT)
        } else if self.tree.node(ino).kind() == Kind::Directory {
            Err(Errno::EPERM)
        } else {
            Ok(self.tree.nlink(ino) + 1)
        };
        assert_eq!(done, expected);
        if done.is_ok() {
            self.tree.dir_mut(dir).insert(name, ino);
        }
    }

    fn set_xattr(&mut self, entry: u16, name: u8, len: u16) {
        let Some(object) = self.object(entry, |_| true) else {
            return;
        };
        let name = format!("user.{}", name % 3).into_bytes();
        let value = noise(len.into(), usize::from(len) % 300);
        let mode = [XattrMode::Either, XattrMode::Create, XattrMode::Replace][usize::from(len) % 3];
        let done = self.holding(&[object], |union| {
            outcome(union.set_xattr(object.0, &name, &value, mode))
        });
        let xattrs = &mut self.tree.node_mut(object.0).xattrs;
        let expected = match (mode, xattrs.contains_key(&name)) {
            (XattrMode::Create, true) => Err(Errno::EEXIST),
            (XattrMode::Replace, false) => Err(Errno::ENODATA),
            _ => Ok(()),
        };
        assert_eq!(done, expected);
        if done.is_ok() {
            xattrs.insert(name, value);
        }
    }

    fn commit(&mut self, rebuild: bool, compact: bool) {
        let mut before = Tree::read(self.union());
        let options = CommitOptions {
            message: "step".to_owned(),
            rebuild,
            compact,
            ..CommitOptions::default()
        };
        let Some(done) = self.bench.commit(&options) else {
            // Times of directories are not changes of their own.
            let mut now = before;
            for node in now
                .nodes
                .values_mut()
                .filter(|node| node.kind() == Kind::Directory)
            {
                node.mtime = None;
            }
            now.assert_is(&self.base);
            return;
        };
        // Images keep whole seconds.
        let named = self.tree.named();
        for tree in [&mut before, &mut self.tree] {
            for (_, node) in tree
                .nodes
                .iter_mut()
                .filter(|(ino, _)| named.nodes.contains_key(ino))
            {
                node.mtime = node.mtime.map(|time| Timestamp { nanos: 0, ..time });
            }
        }
        self.base = Tree::read(self.union());
        before.assert_is(&self.base);
        assert_eq!(self.union().changes().unwrap(), Vec::new());
        let layers = self.union().lower();
        assert_eq!(layers.layers().len(), 1);
        self.revisions.push((done.revision, self.tree.named()));
    }

    /// The view is again what it was: objects without a name stay with those who hold them.
    fn back_to(&mut self, tree: Tree) {
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
                assert!(matches!(
                    self.union().attr(ino),
                    Err(Error::Posix(Errno::ESTALE))
                ));
                self.union().forget(ino, 1);
            }
        }
    }

    fn discard_path(&mut self, entry: u16, of_base: bool) {
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
        let (gone, _) =
            commit::discard(self.bench.workspace(), std::slice::from_ref(&path)).unwrap();
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
        // What is at the path, and has not moved with a directory above it, is what was committed.
        let mut same_way = true;
        let mut at = (Ino::ROOT, Ino::ROOT);
        for component in path.split(|byte| *byte == b'/') {
            let step = |tree: &Tree, dir: Ino| match tree.nodes.get(&dir).map(|node| &node.body) {
                Some(Body::Directory(entries)) => entries.get(component).copied(),
                _ => None,
            };
            match (step(&after, at.0), step(&self.base, at.1)) {
                (Some(now), Some(then)) if now == then => at = (now, then),
                (None, None) => {}
                other => {
                    same_way = false;
                    if at.0 == at.1 && path.ends_with(component) {
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
        // What is elsewhere and nothing of what was discarded is as it was.
        let touched: BTreeSet<Ino> = gone.iter().map(|change| change.ino).collect();
        for (ino, node) in &before.nodes {
            if let Some(now) = after.nodes.get(ino)
                && !touched.contains(ino)
                && node.kind() != Kind::Directory
                && !before
                    .paths()
                    .iter()
                    .any(|(path, at)| at == ino && within(path))
            {
                assert_same(node, now, &format!("bystander {ino}"));
            }
        }
        self.tree = after;
        // Held objects are not followed through this.
        for ino in std::mem::take(&mut self.held) {
            self.union().forget(ino, 1);
        }
    }
}

impl Tree {
    fn file_len(&self, ino: Ino) -> usize {
        match &self.node(ino).body {
            Body::File(content) => content.len(),
            other => panic!("{other:?}"),
        }
    }
}

/// Every difference must be reported, and every report must be a difference.
fn check_changes(base: &Tree, now: &Tree, changes: &[Change]) {
    let base_entries: BTreeSet<Entry> = base.entries().into_iter().collect();
    let now_entries: BTreeSet<Entry> = now.entries().into_iter().collect();
    let (base_paths, now_paths) = (base.paths(), now.paths());
    let what = || format!("{changes:#?}");
    for (ino, then) in &base.nodes {
        match now.nodes.get(ino) {
            None => {
                let reported = changes
                    .iter()
                    .any(|c| c.ino == *ino && c.what == ChangeKind::Deleted)
                    || base_paths
                        .iter()
                        .any(|(path, at)| at == ino && changes.iter().any(|c| c.path == *path))
                    || changes.iter().any(|c| {
                        let name = c.path.rsplit(|b| *b == b'/').next().unwrap();
                        base_entries.iter().any(|(_, n, i)| i == ino && n == name)
                    });
                assert!(reported, "{ino} is gone, unreported: {}", what());
            }
            Some(node) => {
                let is_dir = node.kind() == Kind::Directory;
                let same = (is_dir || (node.body == then.body && node.mtime == then.mtime))
                    && (node.mode, node.owner) == (then.mode, then.owner)
                    && node.xattrs == then.xattrs;
                if !same {
                    assert!(
                        changes.iter().any(|c| c.ino == *ino),
                        "{ino} is changed, unreported: {}",
                        what()
                    );
                }
            }
        }
    }
    for (path, ino) in &now_paths {
        if !base.nodes.contains_key(ino) {
            let reported = changes.iter().any(|c| c.ino == *ino && c.path == *path);
            assert!(reported, "{} is new, unreported: {}", show(path), what());
        }
    }
    // Names of objects that are in both.
    for (path, ino) in &now_paths {
        let Some(entry) = entry_of(now, path) else {
            continue;
        };
        if base.nodes.contains_key(ino) && !base_entries.contains(&entry) {
            let reported = changes.iter().any(|c| c.ino == *ino && c.path == *path);
            assert!(
                reported,
                "{} is a new name, unreported: {}",
                show(path),
                what()
            );
        }
    }
    for change in changes {
        let (path, ino) = (&change.path, change.ino);
        let text = format!("{} {ino} {:?}: {}", show(path), change.what, what());
        if path.is_empty() {
            assert_eq!(
                change.what,
                ChangeKind::Modified { content: false },
                "{text}"
            );
            continue;
        }
        match &change.what {
            ChangeKind::Added => {
                assert_eq!(now_paths.get(path), Some(&ino), "{text}");
                let entry = entry_of(now, path).unwrap();
                assert!(!base_entries.contains(&entry), "{text}");
            }
            ChangeKind::Deleted => {
                assert!(base.nodes.contains_key(&ino), "{text}");
                assert_ne!(now_paths.get(path), Some(&ino), "{text}");
            }
            ChangeKind::Renamed { from } => {
                assert_eq!(now_paths.get(path), Some(&ino), "{text}");
                assert_eq!(base_paths.get(from), Some(&ino), "{text}");
                let (old, new) = (entry_of(base, from).unwrap(), entry_of(now, path).unwrap());
                assert_ne!(old, new, "{text}");
                assert!(!now_entries.contains(&old), "{text}");
            }
            ChangeKind::Modified { .. } => {
                assert_eq!(now_paths.get(path), Some(&ino), "{text}");
                assert!(
                    base.nodes.contains_key(&ino)
                        || base_paths.contains_key(path)
                        || entry_of(now, path).is_some(),
                    "{text}"
                );
            }
        }
    }
}

fn entry_of(tree: &Tree, path: &[u8]) -> Option<Entry> {
    let mut dir = Ino::ROOT;
    let mut components = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = components.next() {
        let ino = match &tree.nodes.get(&dir)?.body {
            Body::Directory(entries) => *entries.get(name)?,
            _ => return None,
        };
        if components.peek().is_none() {
            return Some((dir, name.to_vec(), ino));
        }
        dir = ino;
    }
    None
}
