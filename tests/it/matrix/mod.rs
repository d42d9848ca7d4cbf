//! Every operation on every kind of object in every state of a union, on a mount and on a plain
//! directory of ext4 in lock step: results and what is left are the same.
//!
//! A case is one operation in a directory of its own. All cases share a mount; between any two
//! steps of all cases it is mounted anew, and nothing may be seen of that.

mod case;
mod fixture;
mod ops;
mod snapshot;
mod stream;

use crate::fs::direct::{Direct, plain_directory};
use crate::support::{TestEnv, User, run_for};
use case::{Case, all_cases};
use snapshot::{Snapshot, differences};

/// A mount and a plain directory that are to be the same.
struct Pair {
    direct: Direct,
    plain: std::path::PathBuf,
}

impl Pair {
    /// Lays the lower parts of all cases, as an image and as plain files.
    fn new(cases: &[Case]) -> Option<Pair> {
        let env = TestEnv::new()?;
        let plain = plain_directory(&env)?;
        for (number, case) in cases.iter().enumerate() {
            case.lay_lower(&plain.join(name(number)));
        }
        let direct = Direct::of(env, &plain, "")?;
        Some(Pair { direct, plain })
    }
}

fn name(number: usize) -> String {
    format!("{number:05}")
}

/// What went wrong, case by case; a few are shown.
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
        // All of them where somebody looks into it.
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

/// Reads both directories of a case and compares them, also with what the mount showed before.
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
        found.extend(ours.differs_from_before(before));
    }
    found.extend(ours.is_inconsistent());
    (found, ours, theirs)
}

/// Runs all cases; where `remount`, the mount is made anew between all steps.
fn run(remount: bool) {
    let cases = all_cases(User::current().is_root());
    assert!(cases.len() > 3000, "{} cases", cases.len());
    let Some(pair) = Pair::new(&cases) else {
        return;
    };
    let mut failures = Failures::default();
    let (at, plain) = (pair.direct.at(), pair.plain.clone());
    let both = |number: usize| (at.join(name(number)), plain.join(name(number)));
    let again = || {
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
    again();
    for (number, case) in cases.iter().enumerate() {
        let (ours, theirs) = both(number);
        let (old_ours, old_theirs) = (Snapshot::read(&ours), Snapshot::read(&theirs));
        let mut found = old_ours.differs_from_before(&seen[number]);
        let results = (case.act(&ours), case.act(&theirs));
        // The kernel lets no FUSE file system have the time of what goes through a fifo; the content
        // of a fifo is in no file system anyway. A test of its own holds this.
        if case.writes_through_a_fifo() {
            fixture::age(&ours.join("x"));
            fixture::age(&theirs.join("x"));
        }
        if results.0 != results.1 {
            found.push(format!("answers {:?} and {:?}", results.0, results.1));
        }
        let (more, new_ours, new_theirs) = compare(&pair, number, None);
        found.extend(more);
        // Which object each name leads to: the same one as which name before?
        let (a, b) = (new_ours.origins(&old_ours), new_theirs.origins(&old_theirs));
        if a != b {
            found.push(format!("identities {a:?} and {b:?}"));
        }
        failures.add("done", case, found);
        seen[number] = new_ours;
    }
    again();
    for (number, case) in cases.iter().enumerate() {
        let (found, ours, _) = compare(&pair, number, Some(&seen[number]));
        failures.add("mounted anew", case, found);
        seen[number] = ours;
    }
    // Whatever an operation left must bear all others.
    for step in 0..ops::AFTERWARDS {
        for (number, case) in cases.iter().enumerate() {
            let (ours, theirs) = both(number);
            let results = (case.afterwards(&ours, step), case.afterwards(&theirs, step));
            if results.0 != results.1 {
                let found = format!("answers {:?} and {:?}", results.0, results.1);
                failures.add(&format!("afterwards, {step}"), case, vec![found]);
            }
        }
        again();
    }
    for (number, case) in cases.iter().enumerate() {
        let (found, ours, _) = compare(&pair, number, None);
        failures.add("at the end", case, found);
        seen[number] = ours;
    }
    pair.direct.remount();
    for (number, case) in cases.iter().enumerate() {
        let (found, _, _) = compare(&pair, number, Some(&seen[number]));
        failures.add("at the end, mounted anew", case, found);
    }
    failures.none();
}

#[test]
fn every_operation_on_every_state_is_as_on_ext4() {
    run(false);
}

#[test]
fn every_operation_on_every_state_is_as_on_ext4_with_remounts_between() {
    run(true);
}

#[test]
fn every_operation_on_every_state_is_as_on_ext4_for_an_ordinary_user() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    let own = "matrix::as_an_ordinary_user";
    let done = run_for(env.test_command(own), 900).ok();
    assert!(done.out.contains("1 passed"), "{done}");
}

#[test]
#[ignore = "run by every_operation_on_every_state_is_as_on_ext4_for_an_ordinary_user"]
fn as_an_ordinary_user() {
    run(true);
}
