//! A listing that is under way when the stack changes is finished in the order in which it began: what
//! is there all the time is met exactly once.

use std::collections::BTreeSet;

use envfs::commit::{self, CommitOptions};
use envfs::object::Ino;
use envfs::union::Union;

use super::bench::Bench;
use super::crash::{find, make};

/// Made in another order than that of their names, and mixed with those of the image (`m0`…`m6`).
const MADE: [&str; 7] = ["zz", "m33", "aa", "mm", "b", "m00", "y"];

/// What a listing met before the stack changed, and after it.
type Listing = (Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Lists at most `limit` entries from a position on; returns names and the next position.
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

/// Begins listings of `many`, one for each number of names read, changes the stack, and ends them.
/// Returns what each met before and after.
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

/// Every name that is there before and after must be met once, in all the listings.
fn assert_whole(listings: Vec<Listing>) {
    let whole = listings.last().unwrap().0.clone();
    assert_eq!(whole.len(), 2 + 7 + MADE.len());
    for (before, after) in listings {
        let count = before.len();
        let mut met = [before, after].concat();
        let mut expected = whole.clone();
        if count < 2 {
            // No name was read, so it may be in any order.
            met.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(met, expected, "after {count} names");
    }
}

#[test]
fn a_listing_goes_on_over_a_rotation() {
    assert_whole(listings(make_all, |bench| {
        bench.union().rotate().unwrap();
    }));
}

#[test]
fn a_listing_goes_on_over_a_commit() {
    assert_whole(listings(make_all, commit));
}

#[test]
fn a_listing_goes_on_over_two_commits() {
    assert_whole(listings(make_all, |bench| {
        commit(bench);
        make(bench.union(), "", "elsewhere", b"x");
        commit(bench);
    }));
}

#[test]
fn a_listing_goes_on_over_a_commit_that_failed() {
    assert_whole(listings(make_all, |bench| {
        bench.union().rotate().unwrap();
        bench.union().unrotate().unwrap();
    }));
    // It began in between.
    assert_whole(listings(
        |bench| {
            make_all(bench);
            bench.union().rotate().unwrap();
        },
        |bench| bench.union().unrotate().unwrap(),
    ));
}

#[test]
fn a_listing_over_a_discard_meets_what_stays_once() {
    for (before, after) in listings(make_all, |bench| {
        commit::discard(bench.workspace(), &[]).unwrap();
    }) {
        let met = [before.clone(), after.clone()].concat();
        for n in 0..7 {
            let name = format!("m{n}").into_bytes();
            let times = met.iter().filter(|met| **met == name).count();
            assert_eq!(times, 1, "m{n} after {} names", before.len());
        }
        for name in MADE {
            assert!(!after.contains(&name.as_bytes().to_vec()), "{name} is gone");
        }
    }
}

#[test]
fn changes_after_a_commit_do_not_disturb_a_listing() {
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
