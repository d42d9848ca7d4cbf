//! Relocation of a view and of the model, with files that contain the path.

#![allow(clippy::unwrap_used)]

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use envfs::commit::{self, CommitError, CommitOptions, Force, Relocation, UndoOptions};
use envfs::environment::EnvLock;
use envfs::object::Ino;
use envfs::progress::NoProgress;
use envfs::relocate::{Action, Request, Scope, apply};
use envfs::state::OperationKind;
use envfs::union::SetAttr;

use super::bench::Bench;
use super::crash::{make, write};
use super::machine::{CAPABILITY, Machine};
use super::ops::Op;
use super::tree::Tree;

/// The paths between which environments are moved.
const PREFIXES: [&str; 2] = ["/nowhere", "/elsewhere/longer"];

impl Machine {
    pub(super) fn prefix(&self) -> PathBuf {
        self.bench.workspace().db().prefix().unwrap().unwrap()
    }

    /// Writes the path into a file, commits, and moves the environment to the other path.
    pub(super) fn relocate(&mut self, file: u16) {
        if !self.commits {
            return;
        }
        let old = self.prefix();
        if let Some(file) = self.file(file) {
            let set = SetAttr {
                size: Some(0),
                ..SetAttr::default()
            };
            self.holding(&[file], |union| union.set_attr(file.0, &set))
                .unwrap();
            self.tree.file_mut(file.0).clear();
            let text = format!("#!{0}/bin/x\n{0}\n", old.display());
            self.write(file, 0, text.as_bytes(), false);
        }
        self.step(Op::Commit {
            rebuild: false,
            compact: false,
        });
        let noted = self.note();
        let new = Path::new(PREFIXES[usize::from(old == Path::new(PREFIXES[0]))]);
        let workspace = self.bench.workspace().clone();
        let request = Request {
            old: vec![old],
            new: new.to_owned(),
            scope: Scope::All,
        };
        let plan = commit::plan_relocation(&workspace, &request, &NoProgress).unwrap();
        let how = Relocation {
            prefix: new.to_owned(),
            force: Force::Yes,
            commit: CommitOptions::default(),
        };
        let done = commit::relocate(&workspace, &plan, &how, &NoProgress).unwrap();
        assert_eq!(done.committed.is_some(), !plan.edits.is_empty());
        assert_eq!(self.prefix(), new);
        for edit in &plan.edits {
            let Action::Rewrite { splices, .. } = &edit.action else {
                panic!("{edit:?}")
            };
            let ino = Ino(edit.node.id);
            let content = apply(self.tree.file_mut(ino), splices);
            let is_there = |path: &[u8]| content.windows(path.len()).any(|part| part == path);
            assert!(is_there(new.as_os_str().as_bytes()), "{edit:?}");
            *self.tree.file_mut(ino) = content;
            self.tree.node_mut(ino).xattrs.remove(CAPABILITY);
        }
        if let Some(committed) = done.committed {
            self.revisions.push((committed.revision, self.tree.named()));
        }
        self.base = Tree::read(self.union());
        self.done_since(noted);
    }
}

#[test]
fn undo_of_a_relocation_restores_every_byte_and_the_path() {
    for is_killed in [false, true] {
        let mut machine = Machine::new(Bench::imported());
        machine.check();
        let text = format!("#!{0}/bin/x\n", PREFIXES[0]);
        make(machine.union(), "", "script", text.as_bytes());
        machine.tree = Tree::read(machine.union());
        let old = machine.tree.clone();
        machine.relocate(0);
        let new = Tree::read(machine.union());
        assert_ne!(format!("{old:?}"), format!("{new:?}"));
        // Changes made at the new path.
        write(machine.union(), "script", b"changed later");
        let changed = Tree::read(machine.union());
        let undo = |machine: &mut Machine, path: &str, expected: &Tree| {
            if is_killed {
                machine.bench.kill();
                machine.bench.open();
            }
            let options = UndoOptions::default();
            let workspace = machine.bench.workspace();
            let done = commit::undo(workspace, &options, &NoProgress).unwrap();
            assert_eq!(done.prefix, Some(Path::new(path).into()));
            assert_eq!(machine.prefix(), Path::new(path));
            expected.assert_is(&Tree::read(machine.union()));
            done
        };
        let layout = machine.bench.workspace().env().layout().clone();
        std::fs::create_dir_all(layout.trial("one").home()).unwrap();
        let tried = EnvLock::try_lock(&layout.trial("one"), "try").unwrap();
        let options = UndoOptions::default();
        let refused = commit::undo(machine.bench.workspace(), &options, &NoProgress);
        assert!(matches!(refused, Err(CommitError::Tried)), "{refused:?}");
        drop(tried);
        std::fs::remove_dir_all(layout.trial("one").home()).unwrap();
        let before = machine.log.last().unwrap().read.clone();
        let done = undo(&mut machine, PREFIXES[0], &before);
        assert_eq!(done.kind, OperationKind::Relocate);
        assert!(!done.set_aside.is_empty());
        assert!(machine.union().changes().unwrap().is_empty());
        let done = undo(&mut machine, PREFIXES[1], &changed);
        assert!(done.redone.is_some());
        undo(&mut machine, PREFIXES[0], &before);

        // An operation before the relocation, with all after it.
        let log = machine.bench.workspace().db().operations().unwrap();
        let redo = UndoOptions {
            operation: Some(log.last().unwrap().id.0),
            ..UndoOptions::default()
        };
        commit::undo(machine.bench.workspace(), &redo, &NoProgress).unwrap();
        assert_eq!(machine.prefix(), Path::new(PREFIXES[1]));
        let relocation = log
            .iter()
            .position(|one| one.kind == OperationKind::Relocate)
            .unwrap();
        let commit_before = UndoOptions {
            operation: Some(log[relocation - 1].id.0),
            ..UndoOptions::default()
        };
        let workspace = machine.bench.workspace();
        let done = commit::undo(workspace, &commit_before, &NoProgress).unwrap();
        assert_eq!(done.kind, OperationKind::Commit);
        assert_eq!(machine.prefix(), Path::new(PREFIXES[0]));
        before
            .in_whole_seconds()
            .assert_is(&Tree::read(machine.union()).in_whole_seconds());
        assert!(!machine.union().changes().unwrap().is_empty());
        let db = machine.bench.workspace().db();
        assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn undo_of_a_move_without_a_revision_restores_the_path() {
    let mut machine = Machine::new(Bench::imported());
    let old = Tree::read(machine.union());
    let move_to = |machine: &Machine, path: &str| {
        let workspace = machine.bench.workspace();
        let request = Request {
            old: vec![machine.prefix()],
            new: PathBuf::from(path),
            scope: Scope::All,
        };
        let plan = commit::plan_relocation(workspace, &request, &NoProgress).unwrap();
        let how = Relocation {
            prefix: PathBuf::from(path),
            force: Force::No,
            commit: CommitOptions::default(),
        };
        let done = commit::relocate(workspace, &plan, &how, &NoProgress).unwrap();
        assert!(done.committed.is_none());
    };
    let undo = |machine: &Machine| {
        let options = UndoOptions::default();
        commit::undo(machine.bench.workspace(), &options, &NoProgress).unwrap()
    };
    move_to(&machine, PREFIXES[1]);
    move_to(&machine, PREFIXES[1]);
    let count = machine.bench.workspace().db().operations().unwrap().len();
    assert_eq!(count, 1, "a move to the same path is no operation");
    make(machine.union(), "", "new", PREFIXES[1].as_bytes());
    let new = Tree::read(machine.union());
    undo(&machine);
    assert_eq!(machine.prefix(), Path::new(PREFIXES[0]));
    old.assert_is(&Tree::read(machine.union()));
    machine.bench.kill();
    machine.bench.open();
    undo(&machine);
    assert_eq!(machine.prefix(), Path::new(PREFIXES[1]));
    new.assert_is(&Tree::read(machine.union()));
}
