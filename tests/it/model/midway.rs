//! What is changed while a commit runs: the changes before are frozen, the new image is not there yet.

use envfs::union::RenameMode;

use super::bench::{Bench, noise};
use super::crash::{find, make, rename};
use super::regressions::content;
use super::tree::Tree;
use crate::support::{Disk, User};

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
            bench.union().write_at(file, 0, b"changed", false).unwrap();
        });
        let before = Tree::read(bench.union());
        assert_eq!(&content(bench.union(), "a/deep")[..7], b"changed");
        bench.kill();
        assert!(bench.open().is_nothing());
        before.assert_is(&Tree::read(bench.union()));
        bench.commit(&Default::default()).unwrap();
        bench.remount();
        assert_eq!(&content(bench.union(), "a/deep")[..7], b"changed");
    }
}

#[test]
fn what_is_synced_outlasts_a_power_cut() {
    if !User::current().is_root() {
        return crate::support::skip("only root mounts a disk");
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), "mkfs.ext4", &["-q"], 96) else {
        return;
    };
    let bench = Bench::imported_in(disk.at());
    let data = noise(7, 300_000);
    let file = make(bench.union(), "b", "new", &data);
    let mut copy = None;
    bench.commit_during(|| {
        bench.union().sync(file, false).unwrap();
        copy = disk.after_power_cut();
    });
    let copy = copy.unwrap();
    let mut cut = bench.copied(disk.at(), copy.at());
    let mended = cut.open();
    assert!(mended.lost.is_empty(), "{mended:?}");
    assert!(content(cut.union(), "b/new") == data);
}
