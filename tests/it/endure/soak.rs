//! A soak test: processes change files while all operations run on the environment and the daemon
//! is killed.

use std::fs;
use std::time::{Duration, Instant};

use super::stage::{Operation, Stage};
use super::{Random, number_from_env};
use crate::support::TestEnv;

const OPERATIONS: &[Operation] = &[
    Operation::Commit,
    Operation::Commit,
    Operation::Commit,
    Operation::CommitUnmounted,
    Operation::Discard,
    Operation::Rollback,
    Operation::Collect,
    Operation::Remount,
    Operation::Inspect,
    Operation::Verify,
    Operation::Compare,
    Operation::CommitPart,
    Operation::DiscardPart,
    Operation::UndoDiscard,
    Operation::RestorePart,
    Operation::Checkpoint,
    Operation::Transfer,
    Operation::Wait,
];

/// Works until the daemon is killed at a random moment, and recovers. Returns what was lost.
fn until_killed(stage: &Stage, random: &mut Random) -> Vec<String> {
    let mut operations = random.clone();
    let later = Duration::from_millis(random.next() % 2_500);
    stage.play(|stage| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(later);
                stage.crash(|| stage.kill_daemon());
            });
            while !stage.has_ended() {
                let operation = OPERATIONS[operations.below(OPERATIONS.len())];
                stage.perform(operation, &mut operations);
            }
        });
    });
    stage.recover()
}

#[test]
fn completed_operations_survive_kills_at_random_moments() {
    let seed = number_from_env("ENVFS_SOAK_SEED", 1);
    let Some(env) = TestEnv::ordinary().or_else(TestEnv::new) else {
        return;
    };
    let stage = Stage::new(env, None, true, seed);
    let mut random = Random::new(seed);
    let deadline = Instant::now() + Duration::from_secs(number_from_env("ENVFS_SOAK_SECONDS", 30));
    let mut kills = 0;
    while Instant::now() < deadline || kills < 3 {
        let lost = until_killed(&stage, &mut random);
        kills += 1;
        assert!(
            lost.is_empty(),
            "ENVFS_SOAK_SEED={seed}, kill {kills}: {}",
            lost.join("\n")
        );
    }
    eprintln!("{kills} kills, {}", stage.summary());

    // No files are left over.
    for operation in [
        Operation::Commit,
        Operation::Remount,
        Operation::Compare,
        Operation::Collect,
    ] {
        stage.perform(operation, &mut random);
    }
    let env = &stage.env;
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
    let count = |dir: &str| fs::read_dir(env.home_of("e").join(dir)).unwrap().count();
    let log = env.envfs(&["log", "--json", "e"]).ok().json();
    let mut images: Vec<String> = log
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["image"].to_string())
        .collect();
    images.sort();
    images.dedup();
    assert_eq!(count("images"), images.len());
    assert_eq!(count("layers"), 1);
}
