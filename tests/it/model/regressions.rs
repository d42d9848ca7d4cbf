//! What went wrong once.

use std::process::Command;

use envfs::commit::{self, CommitOptions};
use envfs::object::Ino;
use envfs::union::{ChangeKind, RenameMode, SetAttr, Union};

use super::bench::{BLOCK, Bench, noise};
use super::crash::{find, make, make_dir, rename, write};
use super::tree::Tree;

fn content(union: &Union, path: &str) -> Vec<u8> {
    let ino = find(union, path);
    let size = union.attr(ino).unwrap().size;
    let bytes = union.read_at(ino, 0, size as usize).unwrap();
    (*bytes).as_ref().to_vec()
}

fn discard(bench: &Bench, path: &str) {
    commit::discard(bench.workspace(), &[path.as_bytes().to_vec()]).unwrap();
    assert_eq!(bench.union().verify_upper().unwrap(), Vec::<String>::new());
}

#[test]
fn discarding_one_name_of_a_new_file_keeps_the_other() {
    let mut bench = Bench::imported();
    let ino = make(bench.union(), "a", "new", b"new");
    bench
        .union()
        .link(ino, find(bench.union(), "b"), b"new2")
        .unwrap();
    discard(&bench, "a/new");
    assert_eq!(content(bench.union(), "b/new2"), b"new");
    Tree::read(bench.union());
    bench.kill();
    assert!(bench.open().is_nothing());
    assert_eq!(content(bench.union(), "b/new2"), b"new");
}

#[test]
fn discarding_a_new_link_keeps_changed_content() {
    let bench = Bench::imported();
    write(bench.union(), "big", b"changed");
    let big = find(bench.union(), "big");
    bench
        .union()
        .link(big, find(bench.union(), "a"), b"big2")
        .unwrap();
    discard(&bench, "a/big2");
    assert_eq!(&content(bench.union(), "big")[..7], b"changed");
    Tree::read(bench.union());
}

#[test]
fn discarding_by_another_name_than_the_changed_one() {
    let bench = Bench::imported();
    write(bench.union(), "a/one", b"new");
    discard(&bench, "b/three");
    assert_eq!(content(bench.union(), "a/one"), b"one");
    assert_eq!(bench.union().changes().unwrap(), Vec::new());
}

#[test]
fn discarding_a_removed_directory_brings_back_what_had_moved_out_of_it() {
    let bench = Bench::imported();
    let before = Tree::read(bench.union());
    rename(
        bench.union(),
        ("b/c", "deep"),
        ("", "deep"),
        RenameMode::Replace,
    );
    rename(
        bench.union(),
        ("b/c", "d"),
        ("many", "d"),
        RenameMode::Replace,
    );
    bench.union().rmdir(find(bench.union(), "b"), b"c").unwrap();
    discard(&bench, "b/c");
    let after = Tree::read(bench.union());
    assert_eq!(after.paths(), before.paths());
}

#[test]
fn discarding_a_file_that_moved_out_of_a_removed_directory() {
    let bench = Bench::imported();
    let before = Tree::read(bench.union());
    rename(
        bench.union(),
        ("b/c", "deep"),
        ("", "deep"),
        RenameMode::Replace,
    );
    rename(
        bench.union(),
        ("b/c", "d"),
        ("many", "d"),
        RenameMode::Replace,
    );
    bench.union().rmdir(find(bench.union(), "b"), b"c").unwrap();
    discard(&bench, "deep");
    assert_eq!(Tree::read(bench.union()).paths(), before.paths());
}

#[test]
fn discarding_does_not_tie_directories_into_a_ring() {
    let bench = Bench::imported();
    let before = Tree::read(bench.union());
    rename(bench.union(), ("b", "c"), ("", "c"), RenameMode::Replace);
    rename(bench.union(), ("", "b"), ("c", "b"), RenameMode::Replace);
    make(bench.union(), "c/b", "kept", b"kept");
    discard(&bench, "c");
    let after = Tree::read(bench.union());
    assert!(after.paths().len() >= before.paths().len());
    assert_eq!(
        bench.union().lookup(Ino::ROOT, b"b").unwrap().unwrap().0,
        before.paths()[&b"b"[..]]
    );
}

#[test]
fn what_is_held_comes_back_with_discarded_changes() {
    let bench = Bench::imported();
    let ino = find(bench.union(), "b/c/deep");
    bench
        .union()
        .unlink(find(bench.union(), "b/c"), b"deep")
        .unwrap();
    assert_eq!(bench.union().attr(ino).unwrap().nlink, 0);
    commit::discard(bench.workspace(), &[]).unwrap();
    assert_eq!(bench.union().attr(ino).unwrap().nlink, 1);
    write(bench.union(), "b/c/deep", b"changed");
    assert_eq!(&content(bench.union(), "b/c/deep")[..7], b"changed");
}

#[test]
fn a_rebuild_of_nothing_is_no_commit() {
    let bench = Bench::empty();
    let options = CommitOptions {
        rebuild: true,
        ..CommitOptions::default()
    };
    assert!(bench.commit(&options).is_none());
}

#[test]
fn a_renamed_directory_is_one_change() {
    let bench = Bench::imported();
    rename(
        bench.union(),
        ("", "many"),
        ("b", "few"),
        RenameMode::Replace,
    );
    let changes = bench.union().changes().unwrap();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0].path, b"b/few");
    assert_eq!(
        changes[0].what,
        ChangeKind::Renamed {
            from: b"many".to_vec()
        }
    );
}

#[test]
fn a_change_of_mode_alone_is_committed() {
    let bench = Bench::imported();
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    bench
        .union()
        .set_attr(find(bench.union(), "big"), &set)
        .unwrap();
    let changes = bench.union().changes().unwrap();
    assert_eq!(changes[0].what, ChangeKind::Modified { content: false });
    assert!(bench.commit(&CommitOptions::default()).is_some());
    assert!(bench.commit(&CommitOptions::default()).is_none());
    assert_eq!(
        bench.union().attr(find(bench.union(), "big")).unwrap().mode,
        0o600
    );
}

#[test]
fn an_unlinked_file_is_readable_after_commits() {
    let bench = Bench::imported();
    let union = bench.union();
    let data = noise(5, 2 * BLOCK + 10);
    let ino = make(union, "a", "held", &data);
    union.rotate().unwrap();
    union.unlink(find(union, "a"), b"held").unwrap();
    for n in 0..3 {
        make(union, "a", &format!("other{n}"), b"x");
        assert!(bench.commit(&CommitOptions::default()).is_some());
        let read = union.read_at(ino, 0, data.len()).unwrap();
        assert_eq!((*read).as_ref(), data);
    }
    union.write_at(ino, 0, b"changed", false).unwrap();
    let read = union.read_at(ino, 0, 7).unwrap();
    assert_eq!((*read).as_ref(), b"changed");
}

#[test]
fn other_readers_read_a_committed_image() {
    if Command::new("unsquashfs").arg("-version").output().is_err() {
        eprintln!("skipped: no unsquashfs");
        return;
    }
    let bench = Bench::imported();
    let union = bench.union();
    make_dir(union, "b", "made");
    make(union, "b/made", "file", &noise(7, 3 * BLOCK + 5));
    rename(union, ("", "many"), ("b/made", "many"), RenameMode::Replace);
    union
        .write_at(find(union, "big"), BLOCK as u64 + 7, b"dirty", false)
        .unwrap();
    bench.commit(&CommitOptions::default()).unwrap();
    let tree = Tree::read(union);
    let db = bench.workspace().db();
    let image = db.current_revision().unwrap().unwrap().image.unwrap();
    let file = bench
        .home()
        .join("images")
        .join(db.image(image).unwrap().unwrap().file);
    let out = tempfile::tempdir().unwrap();
    let root = out.path().join("root");
    let done = Command::new("unsquashfs")
        .arg("-no-progress")
        .arg("-d")
        .arg(&root)
        .arg(&file)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    for (path, ino) in tree.paths() {
        use std::os::unix::ffi::OsStrExt;
        let path = root.join(std::ffi::OsStr::from_bytes(&path));
        let meta = path.symlink_metadata().unwrap();
        if let super::tree::Body::File(content) = &tree.node(ino).body {
            assert!(
                &std::fs::read(&path).unwrap() == content,
                "{}",
                path.display()
            );
        }
        assert_eq!(
            meta.is_dir(),
            tree.node(ino).kind() == envfs::object::Kind::Directory
        );
    }
}
