//! Undo on a view and on the model: what it brings back is compared byte for byte with what was
//! there before, after every kind of operation.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use envfs::commit::{self, CheckpointOptions, CommitError, CommitOptions, UndoOptions, Undone};
use envfs::progress::NoProgress;
use envfs::state::{OperationId, OperationKind};
use envfs::union::{DiscardMode, Summary};

use super::bench::Bench;
use super::crash::{make, write};
use super::machine::Machine;
use super::tree::Tree;

/// What an undo of an operation must bring back.
pub(super) struct Before {
    operation: OperationId,
    kind: OperationKind,
    /// Whether the view showed the same after it.
    shows_same: bool,
    /// The path where the environment was mounted.
    prefix: PathBuf,
    /// The view as it was read, and in the model.
    pub(super) read: Tree,
    tree: Tree,
    /// The view at the last commit.
    base: Tree,
}

/// The state before an operation, noted before it runs.
pub(super) struct Noted {
    last: Option<OperationId>,
    prefix: PathBuf,
    read: Tree,
    tree: Tree,
    base: Tree,
}

impl Machine {
    fn last_operation(&self) -> Option<(OperationId, OperationKind, bool)> {
        let log = self.bench.workspace().db().operations().unwrap();
        log.last().map(|op| (op.id, op.kind, op.shows_same))
    }

    /// Notes the state before an operation.
    pub(super) fn note(&self) -> Noted {
        Noted {
            last: self.last_operation().map(|(id, ..)| id),
            prefix: self.prefix(),
            read: Tree::read(self.union()),
            tree: self.tree.named(),
            base: self.base.clone(),
        }
    }

    /// Adds the operation that was noted to the log of the model, if it is in that of the
    /// environment.
    pub(super) fn done_since(&mut self, noted: Noted) {
        let Some((operation, kind, shows_same)) = self.last_operation() else {
            return;
        };
        if noted.last == Some(operation) {
            return;
        }
        self.log.push(Before {
            operation,
            kind,
            shows_same,
            prefix: noted.prefix,
            read: noted.read,
            tree: noted.tree,
            base: noted.base,
        });
    }

    pub(super) fn checkpoint(&mut self) {
        let noted = self.note();
        commit::checkpoint(self.bench.workspace(), &CheckpointOptions::default()).unwrap();
        noted.read.assert_is(&Tree::read(self.union()));
        self.done_since(noted);
    }

    /// Undoes the last operation, or an older one.
    pub(super) fn undo(&mut self, back: u16) {
        let wanted = match back % 4 {
            0 if !self.log.is_empty() => {
                let at = usize::from(back / 4) % self.log.len();
                Some(self.log[self.log.len() - 1 - at].operation)
            }
            _ => None,
        };
        let options = UndoOptions {
            operation: wanted.map(|id| id.0),
            dry_run: true,
            ..UndoOptions::default()
        };
        let noted = self.note();
        let run =
            |options: &UndoOptions| commit::undo(self.bench.workspace(), options, &NoProgress);
        let planned = match run(&options) {
            Ok(planned) => planned,
            Err(CommitError::NothingToUndo) => {
                assert!(
                    self.log
                        .iter()
                        .all(|entry| entry.kind == OperationKind::Checkpoint)
                );
                return;
            }
            Err(CommitError::NotUndoable { .. }) => {
                // Layers were removed after a later commit, or it is older than changes that were
                // made during a commit.
                let is_commit = |entry: &Before| entry.kind == OperationKind::Commit;
                assert!(self.log.iter().any(is_commit));
                noted.read.assert_is(&Tree::read(self.union()));
                return;
            }
            Err(e) => panic!("{e}"),
        };
        noted.read.assert_is(&Tree::read(self.union()));
        let done = run(&UndoOptions {
            dry_run: false,
            ..options
        })
        .unwrap();
        assert_eq!(
            (done.undone, &done.restored),
            (planned.undone, &planned.restored)
        );
        assert!(done.lost.is_empty(), "{:?}", done.lost);
        self.assert_undone(&done, noted);
    }

    fn assert_undone(&mut self, done: &Undone, noted: Noted) {
        let at = self
            .log
            .iter()
            .position(|entry| entry.operation == done.undone);
        let at = at.expect("an operation that was not noted was undone");
        let undone = &self.log[at];
        let (_, kind, shows_same) = self.last_operation().unwrap();
        assert_eq!(kind, OperationKind::Undo);
        assert_eq!(self.prefix(), undone.prefix);
        let actual = Tree::read(self.union());
        let (base, tree) = (undone.base.clone(), undone.tree.clone());
        if shows_same {
            assert!(undone.shows_same);
            assert_eq!(done.set_aside, Summary::default());
            // Uncommitted changes made since are kept.
            let now = noted.read.clone().in_whole_seconds();
            now.assert_is(&actual.clone().in_whole_seconds());
            for (ino, node) in &mut self.tree.nodes {
                if let Some(found) = actual.nodes.get(ino) {
                    node.mtime = node.mtime.map(|_| found.mtime.unwrap());
                }
            }
        } else {
            undone.read.assert_is(&actual);
            self.back_to(tree);
        }
        self.base = base;
        self.done_since(noted);
    }
}

/// Changes a committed file and creates a new one.
fn changed(machine: &mut Machine, text: &str) -> Tree {
    write(machine.union(), "big", text.as_bytes());
    make(machine.union(), "", text, text.as_bytes());
    Tree::read(machine.union())
}

#[test]
fn undo_of_each_kind_of_operation_restores_what_was_there_before() {
    for is_killed in [false, true] {
        let mut machine = Machine::new(Bench::imported());
        let kill = |machine: &mut Machine| {
            if is_killed {
                machine.bench.kill();
                machine.bench.open();
            }
        };
        let first = Tree::read(machine.union());
        let one = changed(&mut machine, "one");
        let undo = |machine: &Machine| {
            commit::undo(
                machine.bench.workspace(),
                &UndoOptions::default(),
                &NoProgress,
            )
            .unwrap()
        };

        // A discard, and again.
        commit::discard(machine.bench.workspace(), &[], "").unwrap();
        first.assert_is(&Tree::read(machine.union()));
        kill(&mut machine);
        let done = undo(&machine);
        assert_eq!(done.kind, OperationKind::Discard);
        one.assert_is(&Tree::read(machine.union()));
        kill(&mut machine);
        let done = undo(&machine);
        assert_eq!(done.redone, Some(OperationId(1)));
        first.assert_is(&Tree::read(machine.union()));
        kill(&mut machine);
        undo(&machine);
        one.assert_is(&Tree::read(machine.union()));

        // A commit: newer changes are kept.
        let options = CommitOptions::default();
        machine.bench.commit(&options).unwrap();
        kill(&mut machine);
        undo(&machine);
        one.assert_is(&Tree::read(machine.union()));
        assert_eq!(current(&machine), 1);
        kill(&mut machine);
        undo(&machine);
        assert_eq!(current(&machine), 2);
        assert!(machine.union().changes().unwrap().is_empty());
        let two = changed(&mut machine, "two");
        let before = machine.union().changes().unwrap().len();
        undo(&machine);
        assert_eq!(current(&machine), 1);
        let both = Tree::read(machine.union());
        two.clone()
            .in_whole_seconds()
            .assert_is(&both.clone().in_whole_seconds());
        assert!(machine.union().changes().unwrap().len() > before);
        kill(&mut machine);
        both.assert_is(&Tree::read(machine.union()));
        undo(&machine);

        // A rollback with changes.
        let rolled = |machine: &Machine| {
            let workspace = machine.bench.workspace();
            commit::rollback(workspace, None, DiscardMode::Always, "").unwrap()
        };
        let two = Tree::read(machine.union());
        rolled(&machine);
        first.assert_is(&Tree::read(machine.union()));
        kill(&mut machine);
        undo(&machine);
        two.assert_is(&Tree::read(machine.union()));
        assert_eq!(current(&machine), 2);
        undo(&machine);
        first.assert_is(&Tree::read(machine.union()));
        undo(&machine);
        two.assert_is(&Tree::read(machine.union()));

        // A checkpoint, and one without changes since.
        machine.checkpoint();
        changed(&mut machine, "three");
        let three = Tree::read(machine.union());
        kill(&mut machine);
        three.assert_is(&Tree::read(machine.union()));
        let done = undo(&machine);
        assert_eq!(done.kind, OperationKind::Checkpoint);
        assert!(!done.set_aside.is_empty());
        two.assert_is(&Tree::read(machine.union()));
        undo(&machine);
        three.assert_is(&Tree::read(machine.union()));
        machine.checkpoint();
        let done = undo(&machine);
        assert_eq!(done.kind, OperationKind::Undo);
        two.assert_is(&Tree::read(machine.union()));
    }
}

fn current(machine: &Machine) -> i64 {
    let db = machine.bench.workspace().db();
    db.current_revision().unwrap().unwrap().id.0
}

#[test]
fn a_commit_takes_checkpoints_along_and_its_undo_returns_to_each() {
    let mut machine = Machine::new(Bench::imported());
    let first = changed(&mut machine, "one");
    machine.checkpoint();
    let second = changed(&mut machine, "two");
    let done = machine.bench.commit(&CommitOptions::default()).unwrap();
    assert!(done.changes.added.entries == 2, "{:?}", done.changes);
    assert!(machine.union().lower().frozen().is_empty());
    let undo = |operation: Option<i64>| {
        let options = UndoOptions {
            operation,
            ..UndoOptions::default()
        };
        commit::undo(machine.bench.workspace(), &options, &NoProgress).unwrap()
    };
    undo(None);
    second.assert_is(&Tree::read(machine.union()));
    undo(Some(1));
    first.assert_is(&Tree::read(machine.union()));
    undo(None);
    second.assert_is(&Tree::read(machine.union()));
}

#[test]
fn a_newer_commit_removes_the_layers_of_an_older_one() {
    let mut machine = Machine::new(Bench::imported());
    let layers = |machine: &Machine| {
        let dir = machine.bench.workspace().env().layout().layers();
        std::fs::read_dir(dir).unwrap().count()
    };
    for text in ["one", "two", "three"] {
        changed(&mut machine, text);
        machine.bench.commit(&CommitOptions::default()).unwrap();
        assert_eq!(
            layers(&machine),
            2,
            "the writable one and that of the last commit"
        );
    }
    let options = UndoOptions {
        operation: Some(2),
        ..UndoOptions::default()
    };
    let refused = commit::undo(machine.bench.workspace(), &options, &NoProgress).unwrap_err();
    assert!(refused.to_string().contains("later commit"), "{refused}");
}

#[test]
fn undo_of_a_commit_is_refused_if_its_files_were_changed() {
    let mut machine = Machine::new(Bench::imported());
    changed(&mut machine, "one");
    let layer = machine.union().rotate().unwrap()[0];
    machine.bench.commit(&CommitOptions::default()).unwrap();
    let before = Tree::read(machine.union());
    let layout = machine.bench.workspace().env().layout().clone();
    let file = layout.layer(layer).join("upper/one");
    assert_eq!(std::fs::read(&file).unwrap(), b"one");
    std::fs::write(&file, "eno").unwrap();
    let undone = commit::undo(
        machine.bench.workspace(),
        &UndoOptions::default(),
        &NoProgress,
    );
    let refused = undone.unwrap_err().to_string();
    assert!(refused.contains("incomplete"), "{refused}");
    before.assert_is(&Tree::read(machine.union()));
    assert_eq!(current(&machine), 2);
}
