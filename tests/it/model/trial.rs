//! Trials on a view and on the model: what is kept is what the trial showed, byte for byte, and
//! what is dropped was never there.

#![allow(clippy::unwrap_used)]

use envfs::commit::{self, TrialDone, TrialOutcome, TrialRequest, TrialStep, UndoOptions};
use envfs::environment::{CacheConfig, EnvLock};
use envfs::progress::NoProgress;

use super::bench::Bench;
use super::machine::Machine;
use super::ops::Op;
use super::random::run_each;
use super::tree::Tree;

/// The directory of the trials.
const TOKEN: &str = "one";

fn step(machine: &Machine, step: TrialStep, token: &str) -> TrialDone {
    let request = TrialRequest {
        step,
        token: token.to_owned(),
        command: String::new(),
    };
    commit::trial(machine.bench.workspace(), &request).unwrap()
}

/// Begins a trial. The lock that is returned keeps it.
fn begin(machine: &mut Machine, token: &str) -> EnvLock {
    let layout = machine.bench.workspace().env().layout().clone();
    let place = layout.trial(token);
    std::fs::create_dir_all(place.home()).unwrap();
    let lock = EnvLock::try_lock(&place, "try").unwrap();
    step(machine, TrialStep::Begin, token);
    lock
}

fn open(machine: &mut Machine, token: &str) {
    let layout = machine.bench.workspace().env().layout().clone();
    let (union, reconciled) = commit::open_trial(&layout, token, &CacheConfig::default()).unwrap();
    assert!(reconciled.is_empty());
    machine.bench.trial = Some(union);
}

fn close(machine: &mut Machine) {
    machine.bench.trial.take().unwrap().close().unwrap();
}

/// Removes the directory of a trial, as its command does.
fn end_place(machine: &Machine, token: &str) {
    let place = machine.bench.workspace().env().layout().trial(token);
    std::fs::remove_dir_all(place.home()).unwrap();
}

fn undo(machine: &Machine, operation: Option<i64>) {
    let options = UndoOptions {
        operation,
        ..UndoOptions::default()
    };
    commit::undo(machine.bench.workspace(), &options, &NoProgress).unwrap();
}

fn release_all(machine: &mut Machine) {
    while !machine.held.is_empty() {
        machine.step(Op::Release { held: 0 });
    }
}

/// Performs a third of the operations before a trial, those of programs of the second third in it,
/// and the rest after it.
fn try_and(end: TrialStep, ops: &[Op]) {
    let mut machine = Machine::new(Bench::imported());
    let (before, rest) = ops.split_at(ops.len() / 3);
    let (within, after) = rest.split_at(rest.len() / 2);
    for op in before {
        if !matches!(op, Op::CommitDuring { .. }) {
            machine.step(*op);
        }
    }
    release_all(&mut machine);
    let noted = machine.note();
    let now = Tree::read(machine.union());
    let tree = machine.tree.named();
    let seen = machine.seen.clone();

    let lock = begin(&mut machine, TOKEN);
    now.assert_is(&Tree::read(machine.union()));
    open(&mut machine, TOKEN);
    now.assert_is(&Tree::read(machine.union()));
    for op in within.iter().filter(|op| op.is_by_a_program()) {
        machine.step(*op);
    }
    release_all(&mut machine);
    let tried = Tree::read(machine.union());
    close(&mut machine);
    now.assert_is(&Tree::read(machine.union()));
    if ops.len().is_multiple_of(2) {
        machine.bench.kill();
        machine.bench.open();
    }
    let done = step(&machine, end, TOKEN);
    drop(lock);
    // Ids of objects that only programs in the trial have seen may be used again.
    machine.seen = seen;
    if end != TrialStep::Drop {
        machine.seen.extend(tried.nodes.keys());
    }
    match end {
        TrialStep::Keep => {
            assert_eq!(done.outcome, TrialOutcome::Kept);
            tried.assert_is(&Tree::read(machine.union()));
            undo(&machine, None);
            now.assert_is(&Tree::read(machine.union()));
            undo(&machine, None);
            tried.assert_is(&Tree::read(machine.union()));
            machine.bench.kill();
            machine.bench.open();
            tried.assert_is(&Tree::read(machine.union()));
            machine.check();
            machine.done_since(noted);
        }
        TrialStep::SetAside => {
            now.assert_is(&Tree::read(machine.union()));
            undo(&machine, done.operation.map(|operation| operation.0));
            tried.assert_is(&Tree::read(machine.union()));
            undo(&machine, None);
            now.assert_is(&Tree::read(machine.union()));
            machine.tree = tree;
        }
        TrialStep::Drop | TrialStep::Begin => {
            now.assert_is(&Tree::read(machine.union()));
            machine.tree = tree;
        }
    }
    // What the log of the model does not know cannot be undone in it.
    let is_known = |op: &Op| !matches!(op, Op::CommitDuring { .. } | Op::Undo { .. });
    for op in after.iter().filter(|op| is_known(op)) {
        machine.step(*op);
    }
    let db = machine.bench.workspace().db();
    assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
    assert_eq!(db.trials().unwrap(), []);
}

#[test]
fn a_kept_trial_is_what_it_showed_after_random_operations() {
    run_each(24, |ops| try_and(TrialStep::Keep, ops));
}

#[test]
fn a_trial_that_was_set_aside_can_be_restored_after_random_operations() {
    run_each(16, |ops| try_and(TrialStep::SetAside, ops));
}

#[test]
fn a_dropped_trial_was_never_there_after_random_operations() {
    run_each(16, |ops| try_and(TrialStep::Drop, ops));
}

#[test]
fn objects_of_a_trial_and_of_the_environment_never_share_an_id() {
    let mut machine = Machine::new(Bench::imported());
    let first = machine.bench.workspace().db().next_ino().unwrap();
    let lock = begin(&mut machine, TOKEN);
    super::crash::make(machine.union(), "", "outside", b"outside");
    open(&mut machine, TOKEN);
    super::crash::make(machine.union(), "", "inside", b"inside");
    let tried = Tree::read(machine.union());
    close(&mut machine);
    let own = Tree::read(machine.union());
    let ids = |tree: &Tree| -> Vec<u64> {
        let new = tree.nodes.keys().map(|ino| ino.0);
        new.filter(|ino| *ino >= first).collect()
    };
    assert_eq!((ids(&tried).len(), ids(&own).len()), (1, 1));
    assert_ne!(ids(&tried), ids(&own));
    let done = step(&machine, TrialStep::Keep, TOKEN);
    assert_eq!(
        done.outcome,
        TrialOutcome::SetAside,
        "the environment has changed"
    );
    drop(lock);

    // Ids that were not used are given back.
    let before = machine.bench.workspace().db().next_ino().unwrap();
    for end in [TrialStep::Drop, TrialStep::Keep] {
        commit::discard(machine.bench.workspace(), &[], "").unwrap();
        let lock = begin(&mut machine, "two");
        open(&mut machine, "two");
        super::crash::make(machine.union(), "", "third", b"");
        close(&mut machine);
        step(&machine, end, "two");
        end_place(&machine, "two");
        drop(lock);
    }
    let after = machine.bench.workspace().db().next_ino().unwrap();
    assert_eq!(after, before + 1);
}
