//! Random sequences of operations; a failing one is shrunk to a short one.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::bench::Bench;
use super::machine::Machine;
use super::numbers::CopyRange;
use super::ops::{Make, Op, Place, SetMask};
use super::overlayfs::WithOverlayfs;
use super::recreated::Variation;

fn place() -> impl Strategy<Value = Place> {
    (any::<u16>(), any::<u8>(), prop::bool::weighted(0.3)).prop_map(|(dir, name, over)| Place {
        dir,
        name,
        over,
    })
}

fn make() -> impl Strategy<Value = Make> {
    prop_oneof![
        4 => Just(Make::File),
        4 => Just(Make::Directory),
        2 => Just(Make::Symlink),
        1 => Just(Make::Fifo),
        1 => Just(Make::Socket),
        1 => Just(Make::Device),
        1 => Just(Make::BlockDevice),
    ]
}

fn mask() -> impl Strategy<Value = SetMask> {
    any::<[bool; 8]>().prop_map(
        |[mode, uid, gid, size, atime, mtime, to_now, kill]| SetMask {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            to_now,
            kill,
        },
    )
}

fn variation() -> impl Strategy<Value = Variation> {
    prop_oneof![
        3 => Just(Variation::Nothing),
        1 => Just(Variation::OneIsMissing),
        1 => Just(Variation::Content),
        1 => Just(Variation::Mode),
        1 => Just(Variation::Time),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u16>;
    prop_oneof![
        12 => (place(), make(), n()).prop_map(|(place, make, mode)| Op::Make(place, make, mode)),
        8 => (n(), n(), n(), any::<u8>(), any::<bool>())
            .prop_map(|(file, offset, len, seed, kill)| Op::Write { file, offset, len, seed, kill }),
        3 => (n(), n(), any::<u8>()).prop_map(|(file, len, seed)| Op::Append { file, len, seed }),
        4 => (n(), n()).prop_map(|(file, size)| Op::Truncate { file, size }),
        4 => (n(), n(), n(), any::<u8>())
            .prop_map(|(file, offset, len, mode)| Op::Allocate { file, offset, len, mode }),
        3 => (n(), n(), n(), n(), n()).prop_map(|(from, to, from_offset, to_offset, len)| {
            Op::CopyRange(CopyRange::new((from, from_offset), (to, to_offset), len))
        }),
        2 => (n(), any::<bool>()).prop_map(|(entry, as_dir)| Op::Remove { entry, as_dir }),
        8 => n().prop_map(|entry| Op::RemoveAny { entry }),
        8 => (n(), variation(), any::<u8>())
            .prop_map(|(entry, variation, which)| Op::Recreate { entry, variation, which }),
        16 => (n(), place(), any::<u8>()).prop_map(|(entry, to, mode)| Op::Rename { entry, to, mode }),
        6 => (n(), place()).prop_map(|(entry, to)| Op::Link { entry, to }),
        4 => (n(), n()).prop_map(|(entry, mode)| Op::Chmod { entry, mode }),
        3 => (n(), any::<u8>(), any::<u8>()).prop_map(|(entry, uid, gid)| Op::Chown { entry, uid, gid }),
        3 => (n(), any::<u32>(), any::<u32>())
            .prop_map(|(entry, secs, nanos)| Op::Utimes { entry, secs, nanos }),
        3 => (n(), mask(), n(), any::<(u8, u8)>(), n(), any::<u32>())
            .prop_map(|(entry, mask, mode, owner, size, secs)| {
                Op::SetAttr { entry, mask, mode, owner, size, secs }
            }),
        4 => (n(), any::<u8>(), n()).prop_map(|(entry, name, len)| Op::SetXattr { entry, name, len }),
        2 => (n(), any::<u8>()).prop_map(|(entry, name)| Op::RemoveXattr { entry, name }),
        6 => n().prop_map(|entry| Op::Hold { entry }),
        2 => n().prop_map(|held| Op::Release { held }),
        1 => n().prop_map(|entry| Op::Sync { entry }),
        3 => (prop::bool::weighted(0.15), prop::bool::weighted(0.2))
            .prop_map(|(rebuild, compact)| Op::Commit { rebuild, compact }),
        2 => (n(), any::<bool>()).prop_map(|(entry, of_base)| Op::CommitPath { entry, of_base }),
        2 => any::<u8>().prop_map(|next| Op::CommitDuring { next }),
        2 => Just(Op::Rotate),
        1 => Just(Op::Unrotate),
        2 => Just(Op::Remount),
        3 => Just(Op::Kill),
        1 => Just(Op::DiscardAll),
        2 => (n(), any::<bool>()).prop_map(|(entry, of_base)| Op::DiscardPath { entry, of_base }),
        3 => (n(), n()).prop_map(|(entry, revision)| Op::Restore { entry, revision }),
        1 => n().prop_map(|revision| Op::Rollback { revision }),
        2 => Just(Op::Checkpoint),
        1 => n().prop_map(|file| Op::Relocate { file }),
        5 => n().prop_map(|back| Op::Undo { back }),
    ]
}

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn run(bench: fn() -> Bench, cases: u32) {
    run_each(cases, |ops| Machine::run(bench(), ops));
}

pub(super) fn run_each(cases: u32, case: impl Fn(&[Op])) {
    let steps = number("ENVFS_MODEL_STEPS", 60) as usize;
    let config = Config {
        cases: number("ENVFS_MODEL_CASES", cases),
        failure_persistence: None,
        max_shrink_time: 30_000,
        ..Config::default()
    };
    // The sequences are the same in every run unless ENVFS_MODEL_SEED is set.
    let seed = number("ENVFS_MODEL_SEED", 1);
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let sequences = prop::collection::vec(op(), 1..=steps);
    let steps = AtomicUsize::new(0);
    let result = runner.run(&sequences, |ops| {
        case(&ops);
        steps.fetch_add(ops.len(), Ordering::Relaxed);
        Ok(())
    });
    if let Err(e) = result {
        panic!("seed {seed}: {e}");
    }
    println!("seed {seed}: {} steps", steps.into_inner());
}

#[test]
fn random_operations_on_an_imported_environment() {
    run(Bench::imported, 40);
}

#[test]
fn random_operations_on_an_empty_environment() {
    run(Bench::empty, 16);
}

#[test]
fn random_operations_on_stacked_images() {
    run(Bench::stacked, 24);
}

/// A fault, which is read from the environment of the process, makes every layer a large one.
#[test]
fn random_operations_while_rows_are_read_on_demand() {
    let test = "model::random::random_operations_on_an_imported_environment";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("ENVFS_FAULT", "rows.stored")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let has_passed = output.status.success() && text.contains("1 passed");
    assert!(
        has_passed,
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn random_operations_match_overlayfs() {
    let refused = AtomicUsize::new(0);
    run_each(16, |ops| {
        if let Some(mut both) = WithOverlayfs::new(Bench::imported()) {
            both.run(ops);
            refused.fetch_add(both.refused, Ordering::Relaxed);
        }
    });
    println!("overlayfs refused {} operations", refused.into_inner());
}
