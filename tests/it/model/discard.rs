//! Discarding paths.

use envfs::commit::{self, UndoOptions};
use envfs::object::{Ino, Kind};
use envfs::progress::NoProgress;
use envfs::union::{RenameMode, Union};

use super::bench::{Bench, noise};
use super::crash::{find, make, make_dir, rename, write};
use super::regressions::content;
use super::tree::Tree;

pub(super) fn discard(bench: &Bench, path: &str) {
    commit::discard(bench.workspace(), &[path.as_bytes().to_vec()], "").unwrap();
    assert_eq!(bench.union().verify_upper().unwrap(), Vec::<String>::new());
}

#[test]
fn discard_of_one_name_keeps_the_other() {
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
    assert!(bench.open().is_empty());
    assert_eq!(content(bench.union(), "b/new2"), b"new");
}

#[test]
fn discard_of_a_new_link_keeps_changed_content() {
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
fn discard_by_another_name_of_a_changed_file() {
    let bench = Bench::imported();
    write(bench.union(), "a/one", b"new");
    discard(&bench, "b/three");
    assert_eq!(content(bench.union(), "a/one"), b"one");
    assert_eq!(bench.union().changes().unwrap(), Vec::new());
}

/// Returns an environment in which all entries of a directory were moved out of it and the
/// directory was removed, and the original tree.
fn emptied_and_removed() -> (Bench, Tree) {
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
    (bench, before)
}

#[test]
fn discard_of_a_removed_directory_restores_moved_entries() {
    let (bench, before) = emptied_and_removed();
    discard(&bench, "b/c");
    let after = Tree::read(bench.union());
    assert_eq!(after.paths(), before.paths());
}

#[test]
fn discard_of_a_file_moved_out_of_a_removed_directory() {
    let (bench, before) = emptied_and_removed();
    discard(&bench, "deep");
    assert_eq!(Tree::read(bench.union()).paths(), before.paths());
}

#[test]
fn discard_creates_no_directory_cycle() {
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
fn discard_restores_an_open_removed_file() {
    let bench = Bench::imported();
    let ino = find(bench.union(), "b/c/deep");
    bench
        .union()
        .unlink(find(bench.union(), "b/c"), b"deep")
        .unwrap();
    assert_eq!(bench.union().attr(ino).unwrap().nlink, 0);
    commit::discard(bench.workspace(), &[], "").unwrap();
    assert_eq!(bench.union().attr(ino).unwrap().nlink, 1);
    write(bench.union(), "b/c/deep", b"changed");
    assert_eq!(&content(bench.union(), "b/c/deep")[..7], b"changed");
}

/// Fails unless there are no changes at or below a path.
pub(super) fn assert_unchanged(union: &Union, path: &str) {
    let inside = format!("{path}/");
    for change in union.changes().unwrap() {
        let is_within =
            change.path == path.as_bytes() || change.path.starts_with(inside.as_bytes());
        assert!(!is_within, "{change:?}");
    }
}

#[test]
fn discard_of_a_path_restores_a_directory_from_elsewhere() {
    let bench = Bench::imported();
    let union = bench.union();
    // The directory that returns to `p/d` was neither there nor committed there.
    rename(union, ("b", "c"), ("", "p"), RenameMode::Replace);
    rename(union, ("p", "d"), ("", "elsewhere"), RenameMode::Replace);
    make(union, "elsewhere", "new", b"new");
    write(union, "elsewhere/e/deeper", b"changed");
    discard(&bench, "p/d");
    assert_unchanged(union, "p/d");
    assert_eq!(content(union, "p/d/e/deeper"), noise(1, 5000));
    assert!(union.lookup(find(union, "p/d"), b"new").unwrap().is_none());
    Tree::read(union);
}

#[test]
fn discard_keeps_unlinked_open_files() {
    let bench = Bench::imported();
    let union = bench.union();
    let big = find(union, "big");
    write(union, "big", b"changed");
    union.unlink(Ino::ROOT, b"big").unwrap();
    make(union, "a", "new", b"new");
    discard(&bench, "a");
    let read = union.read_at(big, 0, 7).unwrap();
    assert_eq!((*read).as_ref(), b"changed");
    assert_eq!(union.attr(big).unwrap().nlink, 0);
    discard(&bench, "big");
    assert_eq!(content(union, "big")[..7], noise(2, 7));
}

#[test]
fn discard_of_a_link_keeps_the_type_of_a_renamed_object() {
    let bench = Bench::imported();
    let union = bench.union();
    rename(union, ("", "link"), ("", "link2"), RenameMode::Replace);
    let link = find(union, "link2");
    union.link(link, Ino::ROOT, b"link3").unwrap();
    discard(&bench, "link3");
    Tree::read(union);
}

fn remove_all(union: &Union, dir: Ino) {
    for (name, ino, kind) in super::tree::list(union, dir, Ino::ROOT) {
        if kind == Kind::Directory {
            remove_all(union, ino);
            union.rmdir(dir, &name).unwrap();
        } else {
            union.unlink(dir, &name).unwrap();
        }
    }
}

#[test]
fn discard_inside_a_removed_directory_restores_it() {
    let bench = Bench::imported();
    let union = bench.union();
    let before = Tree::read(union);
    let b = find(union, "b");
    let c = find(union, "b/c");
    union.unlink(c, b"deep").unwrap();
    union
        .rename(c, b"d", Ino::ROOT, b"d", RenameMode::Replace)
        .unwrap();
    union.rmdir(b, b"c").unwrap();
    discard(&bench, "b/c/deep");
    assert_eq!(Tree::read(union).paths(), before.paths());
}

#[test]
fn discard_inside_a_recreated_directory() {
    let bench = Bench::imported();
    let union = bench.union();
    let before = Tree::read(union);
    let many = find(union, "many");
    let m1 = content(union, "many/m1");
    remove_all(union, many);
    union.rmdir(Ino::ROOT, b"many").unwrap();
    make_dir(union, "", "many");
    make(union, "many", "m1", b"other");
    make(union, "many", "more", b"more");
    let new = find(union, "many");
    discard(&bench, "many/m1");
    assert_unchanged(union, "many/m1");
    assert_eq!(content(union, "many/m1"), m1);
    assert_eq!(find(union, "many"), new);
    // Discarding a removed entry restores it, discarding a new one removes it.
    discard(&bench, "many/m2");
    assert_unchanged(union, "many/m2");
    assert_eq!(content(union, "many/more"), b"more");
    discard(&bench, "many/more");
    assert_unchanged(union, "many/more");
    // A restored entry can be changed and discarded again.
    write(union, "many/m1", b"changed");
    discard(&bench, "many/m1");
    assert_eq!(content(union, "many/m1"), m1);
    Tree::read(union);
    discard(&bench, "many");
    before.assert_is(&Tree::read(union));
}

#[test]
fn discard_inside_a_directory_replaced_by_a_file_is_refused() {
    let bench = Bench::imported();
    let union = bench.union();
    let before = Tree::read(union);
    remove_all(union, find(union, "many"));
    union.rmdir(Ino::ROOT, b"many").unwrap();
    make(union, "", "many", b"a file");
    let now = Tree::read(union);
    let refused = commit::discard(bench.workspace(), &[b"many/m1".to_vec()], "").unwrap_err();
    assert!(refused.to_string().contains("many/m1"), "{refused}");
    now.assert_is(&Tree::read(union));
    discard(&bench, "many");
    before.assert_is(&Tree::read(union));
}

#[test]
fn discarded_content_is_kept_for_an_undo() {
    let bench = Bench::imported();
    let union = bench.union();
    write(union, "big", b"changed");
    make(union, "a", &"y".repeat(255), b"new with a long name");
    // Its original name is removed, so it is stored under its identity.
    let two = make(union, "a", "first", b"two names");
    union.link(two, find(union, "a"), b"second").unwrap();
    union.unlink(find(union, "a"), b"first").unwrap();
    let before = Tree::read(union);
    for path in ["big", "a"] {
        discard(&bench, path);
    }
    assert_eq!(union.changes().unwrap(), Vec::new());
    // The committed content is not copied.
    let layer = union.db().stack().unwrap()[0].id;
    let files = bench.home().join("layers").join(layer.to_string());
    assert_eq!(envfs::sys::walk::disk_use(&files.join("upper")).0, 0);
    assert_eq!(union.lower().frozen().len(), 2);
    let options = UndoOptions {
        operation: Some(1),
        ..UndoOptions::default()
    };
    commit::undo(bench.workspace(), &options, &NoProgress).unwrap();
    before.assert_is(&Tree::read(union));
}
