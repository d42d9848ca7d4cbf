//! A directory listing continues in its original order when the stack changes: entries that exist
//! all the time are returned exactly once.

use std::collections::BTreeSet;

use envfs::commit::{self, CommitOptions};
use envfs::object::Ino;
use envfs::union::Union;

use super::bench::Bench;
use super::crash::{find, make};

/// New names, not in alphabetical order, and mixed with those of the image (`m0`…`m6`).
const MADE: [&str; 7] = ["zz", "m33", "aa", "mm", "b", "m00", "y"];

/// The names that a listing returned before and after the change of the stack.
type Listing = (Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Lists at most `limit` entries from a position. Returns names and the next position.
fn list(union: &Union, dir: Ino, mut at: u64, limit: usize) -> (Vec<Vec<u8>>, u64) {
    let mut names = Vec::new();
    while names.len() < limit {
        let part = union.read_dir(dir, at, 2.min(limit - names.len())).unwrap();
        if part.is_empty() {
            break;
        }
        for item in part {
            at = item.next;
            names.push(item.name.into_vec());
        }
    }
    (names, at)
}

/// Starts listings of `many`, one for each number of names read, changes the stack, and finishes
/// them.
fn listings(prepare: impl Fn(&Bench), change: impl Fn(&Bench)) -> Vec<Listing> {
    let bench = Bench::imported();
    let union = bench.union();
    prepare(&bench);
    let dir = find(union, "many");
    let (all, _) = list(union, dir, 0, usize::MAX);
    let begun: Vec<_> = (0..=all.len())
        .map(|count| list(union, dir, 0, count))
        .collect();
    change(&bench);
    let ended = begun.into_iter().map(|(names, at)| {
        let (rest, _) = list(union, dir, at, usize::MAX);
        (names, rest)
    });
    ended.collect()
}

fn make_all(bench: &Bench) {
    for name in MADE {
        make(bench.union(), "many", name, b"x");
    }
}

fn commit(bench: &Bench) {
    bench.commit(&CommitOptions::default()).unwrap();
}

/// Checks that every listing returned every name exactly once.
fn assert_complete(listings: Vec<Listing>) {
    let whole = listings.last().unwrap().0.clone();
    assert_eq!(whole.len(), 2 + 7 + MADE.len());
    for (before, after) in listings {
        let count = before.len();
        let mut met = [before, after].concat();
        let mut expected = whole.clone();
        if count < 2 {
            // No name was read yet, so the order may change.
            met.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(met, expected, "after {count} names");
    }
}

#[test]
fn listing_continues_across_a_rotation() {
    assert_complete(listings(make_all, |bench| {
        bench.union().rotate().unwrap();
    }));
}

#[test]
fn listing_continues_across_a_commit() {
    assert_complete(listings(make_all, commit));
}

#[test]
fn listing_continues_across_two_commits() {
    assert_complete(listings(make_all, |bench| {
        commit(bench);
        make(bench.union(), "", "elsewhere", b"x");
        commit(bench);
    }));
}

#[test]
fn listing_continues_across_a_failed_commit() {
    assert_complete(listings(make_all, |bench| {
        bench.union().rotate().unwrap();
        bench.union().unrotate().unwrap();
    }));
    // Started on the rotated stack.
    assert_complete(listings(
        |bench| {
            make_all(bench);
            bench.union().rotate().unwrap();
        },
        |bench| bench.union().unrotate().unwrap(),
    ));
}

#[test]
fn listing_across_a_discard_returns_remaining_entries_once() {
    for (before, after) in listings(make_all, |bench| {
        commit::discard(bench.workspace(), &[], "").unwrap();
    }) {
        let met = [before.clone(), after.clone()].concat();
        for n in 0..7 {
            let name = format!("m{n}").into_bytes();
            let times = met.iter().filter(|met| **met == name).count();
            assert_eq!(times, 1, "m{n} after {} names", before.len());
        }
        for name in MADE {
            assert!(
                !after.contains(&name.as_bytes().to_vec()),
                "{name} was discarded"
            );
        }
    }
}

#[test]
fn listing_is_not_disturbed_by_changes_after_a_commit() {
    let changed = listings(make_all, |bench| {
        commit(bench);
        let union = bench.union();
        let dir = find(union, "many");
        union.unlink(dir, b"mm").unwrap();
        union.unlink(dir, b"m4").unwrap();
        make(union, "many", "n", b"new");
        make(union, "many", "mm", b"again");
    });
    for (before, after) in changed {
        let met = [before.clone(), after.clone()].concat();
        let once: BTreeSet<_> = met.iter().collect();
        assert_eq!(
            once.len(),
            met.len(),
            "after {} names: {met:?}",
            before.len()
        );
        assert!(!after.contains(&b"m4".to_vec()));
        for name in ["m0", "m6", "zz", "m33", "aa", "b", "m00", "y"] {
            assert!(met.contains(&name.as_bytes().to_vec()), "{name}");
        }
    }
}
