//! A soak: processes at work while everything is done to the environment, and the daemon is killed.

use std::fs;
use std::time::{Duration, Instant};

use super::stage::{Deed, Stage};
use super::{Random, asked};
use crate::support::TestEnv;

const DEEDS: &[Deed] = &[
    Deed::Commit,
    Deed::Commit,
    Deed::Commit,
    Deed::CommitUnmounted,
    Deed::Discard,
    Deed::Rollback,
    Deed::Collect,
    Deed::Remount,
    Deed::Look,
    Deed::Verify,
    Deed::Compare,
    Deed::Wait,
];

/// Works until the daemon is killed, in the middle of whatever is done then, and starts again.
fn until_killed(stage: &Stage, random: &mut Random) -> Vec<String> {
    let mut deeds = random.clone();
    let later = Duration::from_millis(random.next() % 2_500);
    stage.play(|stage| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(later);
                stage.crash(|| stage.kill_daemon());
            });
            while !stage.has_ended() {
                let deed = DEEDS[deeds.below(DEEDS.len())];
                stage.perform(deed, &mut deeds);
            }
        });
    });
    stage.recover()
}

#[test]
fn what_was_done_survives_kills_of_the_daemon_in_the_middle_of_anything() {
    let seed = asked("ENVFS_SOAK_SEED", 1);
    let Some(env) = TestEnv::as_tester().or_else(TestEnv::new) else {
        return;
    };
    let stage = Stage::new(env, None, true, seed);
    let mut random = Random::new(seed);
    let deadline = Instant::now() + Duration::from_secs(asked("ENVFS_SOAK_SECONDS", 30));
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

    // Nothing is left over.
    for deed in [Deed::Commit, Deed::Remount, Deed::Compare, Deed::Collect] {
        stage.perform(deed, &mut random);
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
