//! Power loss, simulated by the shutdown ioctl of ext4 and XFS and a replay of the journal.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stage::{Operation, Stage};
use super::{Random, number_from_env};
use crate::support::{Disk, TestEnv, has};

/// Operations during which the power is lost; mostly commits.
const OPERATIONS: &[Operation] = &[
    Operation::Commit,
    Operation::Commit,
    Operation::Wait,
    Operation::Discard,
    Operation::Rollback,
    Operation::Commit,
    Operation::CommitUnmounted,
    Operation::Remount,
    Operation::CommitPart,
    Operation::DiscardPart,
    Operation::UndoDiscard,
    Operation::RestorePart,
    Operation::Checkpoint,
    Operation::Collect,
    Operation::Transfer,
    Operation::Transfer,
];

struct Machine {
    // Dropped in this order: the stage uses the disk.
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
        // Without periodic flushes of the journal, nothing becomes durable by chance.
        let options: &[&str] = if maker == "mkfs.ext4" {
            &["-o", "commit=300"]
        } else {
            &[]
        };
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::with_options(dir.path(), maker, &["-q"], options, mib)?;
        let env = env.with_store(&disk.at().join("store"));
        let stage = Stage::new(env, fault, false, seed);
        // The imported environment must not be lost even if the fault disables syncs.
        disk.sync();
        Some(Machine {
            stage,
            disk,
            _dir: dir,
            random: Random::new(seed),
        })
    }

    /// Works, loses the power and recovers. Returns what was lost.
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
                    let operation = OPERATIONS[random.below(OPERATIONS.len())];
                    stage.perform(operation, &mut random);
                }
            });
        });
        self.stage.detach();
        self.disk.restart();
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
fn synced_and_committed_data_survives_power_loss_on_ext4() {
    let seed = number_from_env("ENVFS_POWER_SEED", 1);
    lose_power_often(
        "mkfs.ext4",
        256,
        number_from_env("ENVFS_POWER_ROUNDS", 5),
        seed,
    );
}

#[test]
fn synced_and_committed_data_survives_power_loss_on_xfs() {
    let seed = number_from_env("ENVFS_POWER_SEED", 2);
    lose_power_often(
        "mkfs.xfs",
        400,
        number_from_env("ENVFS_POWER_ROUNDS", 3),
        seed,
    );
}

#[test]
fn power_loss_test_detects_missing_syncs() {
    let seed = number_from_env("ENVFS_POWER_SEED", 3);
    let fault = Some(envfs::fault::NO_SYNC);
    let Some(mut machine) = Machine::new("mkfs.ext4", 256, fault, seed) else {
        return;
    };
    // A completed commit before the power loss.
    let mut random = machine.random.clone();
    let stage = &machine.stage;
    stage.play(|stage| {
        assert!(stage.wait_for_promises(5));
        stage.perform(Operation::Commit, &mut random);
    });
    let lost = machine.lose_power();
    let is_noticed = |what: &str| lost.iter().any(|line| line.contains(what));
    assert!(
        is_noticed("revision 2"),
        "the lost commit was not noticed: {lost:?}"
    );
    assert!(
        is_noticed("promised and since then"),
        "lost files were not noticed: {lost:?}"
    );
}
