//! Every operation on every type of object in every state of a union, on a mount and on a plain
//! ext4 directory in lockstep: results and resulting trees must be equal.
//!
//! A case is one operation in a directory of its own. All cases share a mount, which can be
//! remounted between all steps; a remount must have no visible effect.

mod case;
mod fixture;
mod ops;
mod sequence;
mod snapshot;

use crate::fs::direct::{Direct, plain_directory};
use crate::support::{TestEnv, User, run_for};
use case::{Case, all_cases};
use snapshot::{Snapshot, differences};

/// A mount and a plain directory that must be equal.
struct Pair {
    direct: Direct,
    plain: std::path::PathBuf,
}

impl Pair {
    /// Creates the lower parts of all cases, as an image and as plain files.
    fn new(cases: &[Case]) -> Option<Pair> {
        let env = TestEnv::new()?;
        let plain = plain_directory(&env)?;
        for (number, case) in cases.iter().enumerate() {
            case.make_lower(&plain.join(name(number)));
        }
        let direct = Direct::of(env, &plain, "")?;
        Some(Pair { direct, plain })
    }
}

fn name(number: usize) -> String {
    format!("{number:05}")
}

/// The failures of all cases.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn add(&mut self, when: &str, case: &Case, found: Vec<String>) {
        if !found.is_empty() {
            self.0
                .push(format!("{when}: {case}\n    {}", found.join("\n    ")));
        }
    }

    fn none(self) {
        let count = self.0.len();
        // ENVFS_MATRIX_ALL=1 prints all of them.
        let shown = match std::env::var_os("ENVFS_MATRIX_ALL") {
            Some(_) => count,
            None => count.min(25),
        };
        assert!(
            count == 0,
            "{count} cases differ (mount first, then ext4)\n{}",
            self.0.get(..shown).unwrap_or_default().join("\n")
        );
    }
}

/// Reads both directories of a case and compares them with each other, and with an earlier state of
/// the mount.
fn compare(
    pair: &Pair,
    number: usize,
    before: Option<&Snapshot>,
) -> (Vec<String>, Snapshot, Snapshot) {
    let (ours, theirs) = (
        Snapshot::read(&pair.direct.at().join(name(number))),
        Snapshot::read(&pair.plain.join(name(number))),
    );
    let mut found = differences(&ours, &theirs);
    if let Some(before) = before {
        found.extend(ours.changes_since(before));
    }
    found.extend(ours.inconsistencies());
    (found, ours, theirs)
}

/// Runs all cases, with remounts between all steps if `remount` is set.
fn run(remount: bool) {
    let cases = all_cases(User::current().is_root());
    assert!(cases.len() > 3000, "{} cases", cases.len());
    let Some(pair) = Pair::new(&cases) else {
        return;
    };
    let mut failures = Failures::default();
    let (at, plain) = (pair.direct.at(), pair.plain.clone());
    let both = |number: usize| (at.join(name(number)), plain.join(name(number)));
    let remount_if_asked = || {
        if remount {
            pair.direct.remount();
        }
    };

    for (number, case) in cases.iter().enumerate() {
        let (ours, theirs) = both(number);
        case.prepare(&ours);
        case.prepare(&theirs);
    }
    let mut seen: Vec<Snapshot> = Vec::with_capacity(cases.len());
    for (number, case) in cases.iter().enumerate() {
        let (found, ours, _) = compare(&pair, number, None);
        failures.add("prepared", case, found);
        seen.push(ours);
    }
    remount_if_asked();
    for (number, case) in cases.iter().enumerate() {
        let (ours, theirs) = both(number);
        let (old_ours, old_theirs) = (Snapshot::read(&ours), Snapshot::read(&theirs));
        let mut found = old_ours.changes_since(&seen[number]);
        let results = (case.act(&ours), case.act(&theirs));
        // The kernel does not tell FUSE file systems about writes to a FIFO, so they do not change
        // its time (`fifo_writes_do_not_change_times`).
        if case.writes_through_a_fifo() {
            fixture::age(&ours.join("x"));
            fixture::age(&theirs.join("x"));
        }
        if results.0 != results.1 {
            found.push(format!("answers {:?} and {:?}", results.0, results.1));
        }
        let (more, new_ours, new_theirs) = compare(&pair, number, None);
        found.extend(more);
        // Compares which names refer to the same object as which names before.
        let (a, b) = (new_ours.origins(&old_ours), new_theirs.origins(&old_theirs));
        if a != b {
            found.push(format!("identities {a:?} and {b:?}"));
        }
        failures.add("done", case, found);
        seen[number] = new_ours;
    }
    remount_if_asked();
    for (number, case) in cases.iter().enumerate() {
        let (found, ours, _) = compare(&pair, number, Some(&seen[number]));
        failures.add("after a remount", case, found);
        seen[number] = ours;
    }
    // The results of all operations must support further operations.
    for step in 0..ops::AFTERWARDS {
        for (number, case) in cases.iter().enumerate() {
            let (ours, theirs) = both(number);
            let results = (case.afterwards(&ours, step), case.afterwards(&theirs, step));
            if results.0 != results.1 {
                let found = format!("answers {:?} and {:?}", results.0, results.1);
                failures.add(&format!("follow-up {step}"), case, vec![found]);
            }
        }
        remount_if_asked();
    }
    for (number, case) in cases.iter().enumerate() {
        let (found, ours, _) = compare(&pair, number, None);
        failures.add("at the end", case, found);
        seen[number] = ours;
    }
    pair.direct.remount();
    for (number, case) in cases.iter().enumerate() {
        let (found, _, _) = compare(&pair, number, Some(&seen[number]));
        failures.add("at the end, after a remount", case, found);
    }
    failures.none();
}

#[test]
fn operations_match_ext4_in_every_state() {
    run(false);
}

#[test]
fn operations_match_ext4_with_remounts_in_between() {
    run(true);
}

#[test]
fn operations_match_ext4_for_an_ordinary_user() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    let own = "matrix::as_an_ordinary_user";
    let done = run_for(env.test_command(own), 900).ok();
    assert!(done.out.contains("1 passed"), "{done}");
}

#[test]
#[ignore = "run by operations_match_ext4_for_an_ordinary_user"]
fn as_an_ordinary_user() {
    run(true);
}
