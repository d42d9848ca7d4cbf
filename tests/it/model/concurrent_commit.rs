//! Changes during a commit, while earlier changes are frozen and the new image is incomplete; and
//! changes during a rollback.

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
fn write_during_a_commit_to_a_file_moved_out_of_a_removed_directory() {
    // The parent that the kernel last looked up is not the current one.
    for parent in ["moved", "removed"] {
        let mut bench = Bench::imported();
        let union = bench.union();
        let (file, old) = (find(union, "b/c/deep"), find(union, "b/c"));
        rename(union, ("b/c", "deep"), ("a", "deep"), RenameMode::Replace);
        rename(union, ("b/c", "d"), ("a", "d"), RenameMode::Replace);
        union.rmdir(find(union, "b"), b"c").unwrap();
        if parent == "removed" {
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
fn fsync_during_a_commit_survives_power_loss() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), "mkfs.ext4", &["-q"], 96) else {
        return;
    };
    let bench = Bench::imported_in(disk.at());
    // Everything else is on the disk; a sync of one file need not write it.
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
    let reconciled = cut.open();
    assert!(reconciled.lost.is_empty(), "{reconciled:?}");
    assert!(content(cut.union(), "b/new") == data);
}

#[test]
fn rollback_without_force_drops_no_concurrent_changes() {
    const CREATOR: Creator = Creator { uid: 1, gid: 1 };
    let bench = Bench::imported();
    let union = bench.union();
    let first = bench.current();
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
                assert!(found.is_some(), "an acknowledged change was dropped");
                union.unlink(Ino::ROOT, b"made").unwrap();
            }
        });
        // Until both outcomes were seen, whatever the scheduling.
        for round in 0..20_000 {
            if round >= 200 && done > 0 && refused > 0 {
                break;
            }
            match commit::rollback(
                bench.workspace(),
                Some(first.id),
                DiscardMode::IfUnchanged,
                "test",
            ) {
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
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");

    // Without the race: an existing change is not dropped, a removed one does not count.
    make(union, "a", "late", b"late");
    let publish = |fresh| Ok(bench.workspace().db().discard_all(fresh, None).map(drop)?);
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
