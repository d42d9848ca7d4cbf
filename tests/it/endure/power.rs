//! Power loss: what a disk holds when nothing more is written to it, after its journal was replayed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stage::{Deed, Stage};
use super::{Random, asked};
use crate::support::{Disk, TestEnv, has};

/// What is done while the power is lost; a commit most of the time.
const DEEDS: &[Deed] = &[
    Deed::Commit,
    Deed::Commit,
    Deed::Wait,
    Deed::Discard,
    Deed::Rollback,
    Deed::Commit,
    Deed::CommitUnmounted,
    Deed::Remount,
    Deed::Collect,
];

struct Machine {
    // The order counts: what uses the disk is dropped before it.
    stage: Stage,
    disk: Disk,
    _dir: tempfile::TempDir,
    random: Random,
}

impl Machine {
    fn new(maker: &str, mib: u64, fault: Option<&'static str>, seed: u64) -> Option<Machine> {
        if !has("xfs_io") {
            return None;
        }
        let env = TestEnv::new()?;
        // Nothing is written to the disk unless it is asked for, so that nothing is safe by chance.
        let options: &[&str] = if maker == "mkfs.ext4" {
            &["-o", "commit=300"]
        } else {
            &[]
        };
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::with_options(dir.path(), maker, &["-q"], options, mib)?;
        let env = env.with_store(&disk.at().join("store"));
        let stage = Stage::new(env, fault, false, seed);
        // The import is not what is to be lost where nothing is synced.
        disk.sync();
        Some(Machine {
            stage,
            disk,
            _dir: dir,
            random: Random::new(seed),
        })
    }

    /// Works, loses the power, starts again. Returns what was lost.
    fn lose_power(&mut self) -> Vec<String> {
        let enough = self.stage.promised.load(Ordering::SeqCst) + 3 + self.random.below(60);
        let later = Duration::from_micros(self.random.next() % 40_000);
        let (disk, mut random) = (&self.disk, self.random.clone());
        self.random.next();
        self.stage.play(|stage| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    if stage.wait_for_promises(enough) {
                        std::thread::sleep(later);
                        stage.crash(|| {
                            disk.shut_down();
                            stage.kill_daemon();
                        });
                    }
                });
                while !stage.has_ended() {
                    let deed = DEEDS[random.below(DEEDS.len())];
                    stage.perform(deed, &mut random);
                }
            });
        });
        self.stage.clear_away();
        self.disk.start_again();
        self.stage.recover()
    }
}

fn lose_power_often(maker: &str, mib: u64, rounds: u64, seed: u64) {
    let Some(mut machine) = Machine::new(maker, mib, None, seed) else {
        return;
    };
    for round in 0..rounds {
        let lost = machine.lose_power();
        assert!(
            lost.is_empty(),
            "{maker}, ENVFS_POWER_SEED={seed}, round {round}: {}",
            lost.join("\n")
        );
    }
    eprintln!("{maker}: {rounds} power cuts, {}", machine.stage.summary());
}

#[test]
fn what_was_synced_or_committed_survives_power_loss_on_ext4() {
    let seed = asked("ENVFS_POWER_SEED", 1);
    lose_power_often("mkfs.ext4", 256, asked("ENVFS_POWER_ROUNDS", 5), seed);
}

#[test]
fn what_was_synced_or_committed_survives_power_loss_on_xfs() {
    let seed = asked("ENVFS_POWER_SEED", 2);
    lose_power_often("mkfs.xfs", 400, asked("ENVFS_POWER_ROUNDS", 3), seed);
}

#[test]
fn without_any_sync_power_loss_is_noticed() {
    let seed = asked("ENVFS_POWER_SEED", 3);
    let fault = Some(envfs::fault::NO_SYNC);
    let Some(mut machine) = Machine::new("mkfs.ext4", 256, fault, seed) else {
        return;
    };
    // A commit that has ended before, whatever comes then.
    let mut random = machine.random.clone();
    let stage = &machine.stage;
    stage.play(|stage| {
        assert!(stage.wait_for_promises(5));
        stage.perform(Deed::Commit, &mut random);
    });
    let lost = machine.lose_power();
    let is_noticed = |what: &str| lost.iter().any(|line| line.contains(what));
    assert!(is_noticed("revision 2"), "a lost commit: {lost:?}");
    assert!(
        is_noticed("promised and since then"),
        "lost files: {lost:?}"
    );
}
