//! What is changed while a commit runs, when the changes before are frozen and the new image is not there
//! yet; and while a rollback looks whether there are changes.

use std::sync::atomic::{AtomicBool, Ordering};

use envfs::commit::{self, CommitError, CommitOptions};
use envfs::object::{Ino, Kind};
use envfs::union::{Creator, DiscardMode, NewObject, RenameMode, SetIdBits, SyncMode};

use super::bench::{Bench, noise};
use super::crash::{find, make, rename};
use super::regressions::content;
use super::tree::Tree;
use crate::support::Disk;

#[test]
fn a_file_that_moved_out_of_a_directory_that_is_gone() {
    // Where the kernel last looked it up is not where it is.
    for lost_by in ["moved", "gone"] {
        let mut bench = Bench::imported();
        let union = bench.union();
        let (file, old) = (find(union, "b/c/deep"), find(union, "b/c"));
        rename(union, ("b/c", "deep"), ("a", "deep"), RenameMode::Replace);
        rename(union, ("b/c", "d"), ("a", "d"), RenameMode::Replace);
        union.rmdir(find(union, "b"), b"c").unwrap();
        if lost_by == "gone" {
            union.nodes().moved(file, old);
        }
        bench.commit_during(|| {
            bench
                .union()
                .write_at(file, 0, b"changed", SetIdBits::Keep)
                .unwrap();
        });
        let before = Tree::read(bench.union());
        assert_eq!(&content(bench.union(), "a/deep")[..7], b"changed");
        bench.kill();
        assert!(bench.open().is_empty());
        before.assert_is(&Tree::read(bench.union()));
        bench.commit(&Default::default()).unwrap();
        bench.remount();
        assert_eq!(&content(bench.union(), "a/deep")[..7], b"changed");
    }
}

#[test]
fn what_is_synced_outlasts_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), "mkfs.ext4", &["-q"], 96) else {
        return;
    };
    let bench = Bench::imported_in(disk.at());
    // What was there before is on the disk; a sync of one file need not bring it there.
    let top = std::fs::File::open(disk.at()).unwrap();
    nix::unistd::syncfs(&top).unwrap();
    let data = noise(7, 300_000);
    let file = make(bench.union(), "b", "new", &data);
    let mut copy = None;
    bench.commit_during(|| {
        bench.union().sync(file, SyncMode::Full).unwrap();
        copy = disk.after_power_cut();
    });
    let copy = copy.unwrap();
    let mut cut = bench.copied(disk.at(), copy.at());
    let mended = cut.open();
    assert!(mended.lost.is_empty(), "{mended:?}");
    assert!(content(cut.union(), "b/new") == data);
}

#[test]
fn a_rollback_takes_nothing_that_was_written_after_it_had_looked() {
    const CREATOR: Creator = Creator { uid: 1, gid: 1 };
    let bench = Bench::imported();
    let union = bench.union();
    let first = bench.workspace().db().current_revision().unwrap().unwrap();
    make(union, "a", "new", b"new");
    bench.commit(&CommitOptions::default()).unwrap();

    let over = AtomicBool::new(false);
    let (mut done, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let new = NewObject::new(Kind::File, 0o644, CREATOR);
            while !over.load(Ordering::Relaxed) {
                union.create(Ino::ROOT, b"made", &new).unwrap();
                let found = union.lookup(Ino::ROOT, b"made").unwrap();
                assert!(found.is_some(), "it was acknowledged");
                union.unlink(Ino::ROOT, b"made").unwrap();
            }
        });
        for _ in 0..200 {
            match commit::rollback(bench.workspace(), Some(first.id), false, "test") {
                Ok(_) => done += 1,
                Err(CommitError::Uncommitted) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            if writer.is_finished() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    assert!(refused > 0, "{done} were done");

    // Without the race: what is there is not dropped, what is gone again does not count.
    make(union, "a", "late", b"late");
    let publish = |fresh| Ok(bench.workspace().db().discard_all(fresh).map(drop)?);
    let dropped = union
        .discard_uppers(union.lower(), DiscardMode::IfUnchanged, publish)
        .unwrap();
    assert!(dropped.is_none());
    union.unlink(find(union, "a"), b"late").unwrap();
    let below = union.lower();
    assert!(
        union
            .discard_uppers(below, DiscardMode::IfUnchanged, publish)
            .unwrap()
            .is_some()
    );
}
