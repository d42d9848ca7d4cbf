//! Crashes between the steps of an operation, simulated by combining the files of one moment with
//! the rows of another.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use envfs::object::{Ino, Kind};
use envfs::state::RowChange;
use envfs::union::{Creator, NewObject, RenameMode, SetAttr, SetIdBits, Union};

use super::bench::{BLOCK, Bench, copy_tree, noise};
use super::tree::{Body, Tree};

const CREATOR: Creator = Creator { uid: 1, gid: 1 };

/// The files and rows of an environment at one moment, with the original inode numbers.
struct Moment {
    dir: tempfile::TempDir,
    tree: Tree,
}

impl Moment {
    /// Kills the process and saves the state.
    fn after_kill(bench: &mut Bench) -> Moment {
        let tree = Tree::read(bench.union());
        bench.kill();
        // On the file system of the environment, for hard links.
        let dir = tempfile::tempdir_in(bench.home().parent().unwrap()).unwrap();
        copy_tree(
            &bench.home().join("layers"),
            &dir.path().join("layers"),
            true,
        );
        for path in database(&bench.home()) {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        Moment { dir, tree }
    }

    fn restore_files(&self, home: &Path) {
        fs::remove_dir_all(home.join("layers")).unwrap();
        copy_tree(&self.dir.path().join("layers"), &home.join("layers"), true);
    }

    fn restore_rows(&self, home: &Path) {
        for path in database(home) {
            fs::remove_file(path).unwrap();
        }
        for path in database(self.dir.path()) {
            fs::copy(&path, home.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn database(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("state.db")
        })
        .collect()
}

pub(super) fn find(union: &Union, path: &str) -> Ino {
    let mut at = Ino::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let (ino, _) = union.lookup(at, name.as_bytes()).unwrap().unwrap();
        union.nodes().remember(ino, at);
        at = ino;
    }
    at
}

pub(super) fn make(union: &Union, dir: &str, name: &str, content: &[u8]) -> Ino {
    let dir = find(union, dir);
    let new = NewObject::new(Kind::File, 0o644, CREATOR);
    let (ino, _) = union.create(dir, name.as_bytes(), &new).unwrap();
    union.nodes().remember(ino, dir);
    union.write_at(ino, 0, content, SetIdBits::Keep).unwrap();
    ino
}

pub(super) fn make_dir(union: &Union, dir: &str, name: &str) {
    let dir = find(union, dir);
    let new = NewObject::new(Kind::Directory, 0o755, CREATOR);
    union.create(dir, name.as_bytes(), &new).unwrap();
}

pub(super) fn write(union: &Union, path: &str, content: &[u8]) {
    union
        .write_at(find(union, path), 0, content, SetIdBits::Keep)
        .unwrap();
}

pub(super) fn rename(union: &Union, from: (&str, &str), to: (&str, &str), mode: RenameMode) {
    let (dir, new_dir) = (find(union, from.0), find(union, to.0));
    union
        .rename(dir, from.1.as_bytes(), new_dir, to.1.as_bytes(), mode)
        .unwrap();
}

fn without_times(mut tree: Tree) -> Tree {
    for node in tree.nodes.values_mut() {
        node.mtime = None;
    }
    tree
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Before,
    After,
    /// Files that rows refer to did not reach the disk, which takes a power failure.
    Anything,
}

/// Runs `op` and combines the states before and after it: new files with old rows (a crash after
/// step 1, or rows lost in a power failure), and new rows with old files (a crash after step 2).
fn crash(prepare: impl Fn(&Union), op: impl Fn(&Union), rows_first: Expect) {
    crash_both(prepare, op, Expect::Before, rows_first);
}

/// Like [`crash`], for a discard, which publishes its rows before it removes content.
fn crash_discarding(prepare: impl Fn(&Union), op: impl Fn(&Union)) {
    crash_both(prepare, op, Expect::Anything, Expect::After);
}

fn crash_both(
    prepare: impl Fn(&Union),
    op: impl Fn(&Union),
    files_first: Expect,
    rows_first: Expect,
) {
    for (new_rows, expect) in [(false, files_first), (true, rows_first)] {
        let mut bench = Bench::imported();
        prepare(bench.union());
        let before = Moment::after_kill(&mut bench);
        assert!(bench.open().is_empty());
        op(bench.union());
        let after = Moment::after_kill(&mut bench);

        let (rows, files) = if new_rows {
            (&after, &before)
        } else {
            (&before, &after)
        };
        rows.restore_rows(&bench.home());
        files.restore_files(&bench.home());
        let reconciled = bench.open();
        let found = Tree::read(bench.union());
        match expect {
            Expect::Before => without_times(before.tree.clone()).assert_is(&found),
            Expect::After => without_times(after.tree.clone()).assert_is(&found),
            Expect::Anything => {
                for (ino, node) in &before.tree.nodes {
                    let is_kept =
                        found.nodes.contains_key(ino) || !after.tree.nodes.contains_key(ino);
                    assert!(is_kept, "{ino} was lost: {:?}", node.body);
                }
            }
        }
        if expect != Expect::Anything {
            assert!(reconciled.lost.is_empty(), "{reconciled:?} with {expect:?}");
        }
        assert_eq!(bench.union().verify_upper().unwrap(), Vec::<String>::new());
        bench.kill();
        let again = bench.open();
        assert!(again.is_empty(), "{again:?} after {reconciled:?}");
        found.assert_is(&Tree::read(bench.union()));
        // Further changes and commits work.
        make(bench.union(), "", "afterwards", b"x");
        bench.commit(&Default::default()).unwrap();
        bench.remount();
    }
}

#[test]
fn crash_creating_a_file() {
    let op = |union: &Union| {
        make(union, "b/c", "new", b"content");
    };
    crash(|_| {}, op, Expect::Anything);
}

#[test]
fn crash_creating_a_symlink() {
    crash(
        |_| {},
        |union| {
            let dir = find(union, "b/c");
            let new = NewObject {
                target: Some(b"target"),
                ..NewObject::new(Kind::Symlink, 0o777, CREATOR)
            };
            union.create(dir, b"s", &new).unwrap();
        },
        // The row of a symbolic link is authoritative; the link in the upper is a copy.
        Expect::After,
    );
}

#[test]
fn crash_copying_up() {
    crash(
        |_| {},
        |union| write(union, "big", b"changed"),
        Expect::Anything,
    );
}

#[test]
fn crash_truncating_an_image_file() {
    let empty = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    crash(
        |_| {},
        |union| {
            union.set_attr(find(union, "big"), &empty).unwrap();
        },
        Expect::Anything,
    );
}

#[test]
fn crash_renaming_a_changed_file() {
    crash(
        |union| write(union, "b/c/deep", b"changed"),
        |union| {
            rename(
                union,
                ("b/c", "deep"),
                ("many", "deep"),
                RenameMode::Replace,
            )
        },
        Expect::After,
    );
}

#[test]
fn crash_renaming_over_a_changed_file() {
    // The name must never be lost, because programs replace files in this way.
    for (dir, name) in [("b/c", "deep"), ("many", "m0")] {
        crash(
            |union| {
                write(union, &format!("{dir}/{name}"), b"changed");
                write(union, "many/m1", b"replaced");
            },
            |union| rename(union, (dir, name), ("many", "m1"), RenameMode::Replace),
            Expect::After,
        );
    }
}

#[test]
fn crash_renaming_what_replaced_a_changed_file() {
    // As log files are rotated. Old rows must find the old content of both names.
    crash(
        |union| {
            write(union, "many/m1", b"replaced");
            write(union, "b/c/deep", b"changed");
        },
        |union| {
            let (deep, m1) = (("b/c", "deep"), ("many", "m1"));
            rename(union, deep, m1, RenameMode::Replace);
            rename(union, m1, ("", "moved"), RenameMode::Replace);
            make(union, "many", "m1", b"newest");
        },
        Expect::Anything,
    );
}

#[test]
fn crash_renaming_a_new_file_over_another() {
    for replaced in ["many/m1", "made"] {
        crash(
            |union| {
                make(union, "", "made", b"old");
                make(union, "", "made.tmp", b"new");
            },
            |union| {
                let (dir, name) = replaced.rsplit_once('/').unwrap_or(("", replaced));
                rename(union, ("", "made.tmp"), (dir, name), RenameMode::Replace);
            },
            Expect::After,
        );
    }
}

#[test]
fn crash_renaming_a_directory_with_changes() {
    crash(
        |union| {
            write(union, "b/c/d/e/deeper", b"changed");
            make(union, "b/c", "made", b"made");
        },
        |union| rename(union, ("b", "c"), ("many", "c2"), RenameMode::Replace),
        Expect::After,
    );
}

#[test]
fn crash_renaming_nested_directories() {
    crash(
        |union| {
            write(union, "b/c/d/e/deeper", b"changed");
            make(union, "b/c", "made", b"made");
        },
        |union| {
            rename(union, ("b/c", "d"), ("many", "d2"), RenameMode::Replace);
            rename(union, ("b", "c"), ("many/d2", "c2"), RenameMode::Replace);
            make_dir(union, "", "c3");
            rename(union, ("", "many"), ("c3", "many2"), RenameMode::Replace);
        },
        Expect::After,
    );
}

#[test]
fn crash_exchanging_files() {
    crash(
        |union| {
            write(union, "big", b"one");
            make(union, "b/c", "made", &noise(9, BLOCK));
        },
        |union| rename(union, ("", "big"), ("b/c", "made"), RenameMode::Exchange),
        Expect::After,
    );
}

#[test]
fn crash_exchanging_a_file_with_a_directory() {
    crash(
        |union| {
            write(union, "big", b"one");
            make(union, "b/c", "made", b"made");
        },
        |union| rename(union, ("", "big"), ("b", "c"), RenameMode::Exchange),
        Expect::After,
    );
}

#[test]
fn crash_exchanging_directories() {
    crash(
        |union| {
            make(union, "b/c", "same", b"one");
            make(union, "many", "same", b"other");
        },
        |union| rename(union, ("b", "c"), ("", "many"), RenameMode::Exchange),
        Expect::After,
    );
}

#[test]
fn crash_removing_a_changed_file() {
    crash(
        |union| write(union, "b/c/deep", b"changed"),
        |union| union.unlink(find(union, "b/c"), b"deep").unwrap(),
        Expect::After,
    );
}

#[test]
fn crash_removing_one_name_of_a_changed_file() {
    crash(
        |union| write(union, "a/one", b"changed"),
        |union| union.unlink(find(union, "a"), b"one").unwrap(),
        Expect::After,
    );
}

#[test]
fn crash_removing_a_name_of_a_new_file() {
    crash(
        |union| {
            let ino = make(union, "a", "new", b"new");
            union.link(ino, find(union, "b"), b"new2").unwrap();
        },
        |union| union.unlink(find(union, "a"), b"new").unwrap(),
        Expect::After,
    );
}

#[test]
fn crash_removing_a_directory() {
    crash(
        |union| {
            make(union, "empty", "new", b"new");
        },
        |union| {
            union.unlink(find(union, "empty"), b"new").unwrap();
            union.rmdir(Ino::ROOT, b"empty").unwrap();
        },
        Expect::After,
    );
}

fn discard(union: &Union, path: &str) {
    let record = |layer, rows: &[RowChange<'_>]| Ok(union.db().apply(layer, rows)?);
    union
        .discard_paths(&[path.as_bytes().to_vec()], record)
        .unwrap();
}

#[test]
fn crash_discarding_a_rename_that_moves_others_back() {
    // Discarding `m2` also moves `b` back, with the changes in it.
    crash(
        |union| {
            rename(union, ("", "many"), ("", "m2"), RenameMode::Replace);
            rename(union, ("", "b"), ("", "many"), RenameMode::Replace);
            write(union, "many/c/deep", b"changed");
            make(union, "many/c", "made", b"made");
        },
        |union| {
            discard(union, "m2");
            assert!(union.lookup(find(union, "b/c"), b"made").unwrap().is_some());
        },
        Expect::After,
    );
}

#[test]
fn crash_discarding_new_and_changed_files() {
    crash_discarding(
        |union| {
            make_dir(union, "b", "new");
            make(union, "b/new", "made", b"made");
            rename(
                union,
                ("b/c", "deep"),
                ("b/new", "deep"),
                RenameMode::Replace,
            );
            write(union, "b/new/deep", b"changed");
            write(union, "big", b"stays");
        },
        |union| discard(union, "b"),
    );
}

#[test]
fn unreferenced_files_are_set_aside_with_their_content() {
    let mut bench = Bench::imported();
    let before = Moment::after_kill(&mut bench);
    bench.open();
    make(bench.union(), "b/c", "new", b"precious");
    bench.kill();
    before.restore_rows(&bench.home());
    assert_eq!(bench.open().set_aside, 1);
    let strays: Vec<_> = fs::read_dir(bench.home().join("strays")).unwrap().collect();
    assert_eq!(strays.len(), 1);
    assert_eq!(
        fs::read(strays[0].as_ref().unwrap().path()).unwrap(),
        b"precious"
    );
}

#[test]
fn copied_store_is_recognized() {
    // The copy has other inode numbers and the same paths.
    let mut bench = Bench::imported();
    write(bench.union(), "a/one", b"changed");
    make(bench.union(), "b/c", "new", b"new");
    let before = Tree::read(bench.union());
    bench.kill();
    let aside = bench.home().with_file_name("aside");
    copy_tree(&bench.home().join("layers"), &aside, false);
    fs::remove_dir_all(bench.home().join("layers")).unwrap();
    fs::rename(aside, bench.home().join("layers")).unwrap();
    let reconciled = bench.open();
    assert_eq!(
        (reconciled.lost.len(), reconciled.set_aside),
        (0, 0),
        "{reconciled:?}"
    );
    without_times(before).assert_is(&Tree::read(bench.union()));
    assert!(
        Tree::read(bench.union())
            .nodes
            .values()
            .any(|node| node.body == Body::File(b"new".to_vec()))
    );
}

/// Replaces the environment by a copy in which `x` and `y` have exchanged inode numbers.
fn copy_with_exchanged_numbers(bench: &Bench) {
    let layer = fs::read_dir(bench.home().join("layers")).unwrap().next();
    let upper = layer.unwrap().unwrap().path().join("upper");
    let (x, y, aside) = (upper.join("x"), upper.join("y"), upper.join("aside"));
    fs::rename(&x, &aside).unwrap();
    fs::rename(&y, &x).unwrap();
    fs::rename(&aside, &y).unwrap();
    fs::write(&x, "of x").unwrap();
    fs::write(&y, "of y").unwrap();
    let aside = bench.home().with_file_name("aside");
    fs::create_dir(&aside).unwrap();
    for entry in fs::read_dir(bench.home()).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), aside.join(entry.file_name())).unwrap();
    }
    fs::remove_dir(bench.home()).unwrap();
    fs::rename(aside, bench.home()).unwrap();
}

#[test]
fn copied_store_is_matched_by_paths_not_inode_numbers() {
    for is_clean in [false, true] {
        let mut bench = Bench::imported();
        make(bench.union(), "", "x", b"of x");
        make(bench.union(), "", "y", b"of y");
        let before = without_times(Tree::read(bench.union()));
        if is_clean {
            bench.close();
        } else {
            bench.kill();
        }
        copy_with_exchanged_numbers(&bench);
        let reconciled = bench.open();
        assert_eq!(
            (reconciled.renumbered, reconciled.moved),
            (2, 0),
            "{reconciled:?}"
        );
        before.assert_is(&Tree::read(bench.union()));
        // From now on the inode numbers of the copy are known, also after a kill.
        bench.kill();
        assert!(bench.open().is_empty());
        before.assert_is(&Tree::read(bench.union()));
    }
}

#[test]
fn reused_inode_number_is_not_mistaken_for_the_lost_file() {
    let mut bench = Bench::imported();
    make(bench.union(), "", "x", b"of x");
    bench.kill();
    // A power failure has lost the rows of later files.
    let layer = fs::read_dir(bench.home().join("layers")).unwrap().next();
    let upper = layer.unwrap().unwrap().path().join("upper");
    let number = fs::metadata(upper.join("x")).unwrap().ino();
    fs::remove_file(upper.join("x")).unwrap();
    let mut others = (0..200).map(|n| {
        let path = upper.join(format!("other{n}"));
        fs::write(&path, "of another").unwrap();
        fs::metadata(path).unwrap().ino()
    });
    if !others.any(|other| other == number) {
        return crate::support::skip_allowed("this file system does not reuse inode numbers");
    }
    let reconciled = bench.open();
    assert_eq!(
        (reconciled.lost.len(), reconciled.moved),
        (1, 0),
        "{reconciled:?}"
    );
    assert!(reconciled.set_aside > 0, "{reconciled:?}");
    let tree = Tree::read(bench.union());
    let is_it = |body: &Body| *body == Body::File(b"of another".to_vec());
    assert!(!tree.nodes.values().any(|node| is_it(&node.body)));
}
