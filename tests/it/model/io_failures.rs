//! Failures of operations on files of the upper: the call fails without a change, or the next open
//! repairs it.

use std::fs;
use std::path::PathBuf;

use envfs::union::{RenameMode, SetAttr};

use super::bench::Bench;
use super::crash::{find, make, make_dir, write};
use super::regressions::content;
use super::tree::Tree;

/// Returns the directory of the only layer.
fn layer(bench: &Bench) -> PathBuf {
    let layers = fs::read_dir(bench.home().join("layers")).unwrap();
    let mut all: Vec<PathBuf> = layers.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn replace(bench: &Bench, from: (&str, &str), to: (&str, &str)) -> bool {
    let union = bench.union();
    let (dir, new_dir) = (find(union, from.0), find(union, to.0));
    let (name, new_name) = (from.1.as_bytes(), to.1.as_bytes());
    let done = union.rename(dir, name, new_dir, new_name, RenameMode::Replace);
    done.is_ok()
}

#[test]
fn failed_detach_does_not_overwrite_content() {
    let mut bench = Bench::imported();
    let kept = make(bench.union(), "", "y", b"kept");
    bench
        .union()
        .link(kept, find(bench.union(), "a"), b"z")
        .unwrap();
    make(bench.union(), "", "x", b"x");
    let before = Tree::read(bench.union());
    let obstacle = layer(&bench).join("work").join(kept.to_string());
    fs::create_dir(&obstacle).unwrap();
    assert!(!replace(&bench, ("", "x"), ("", "y")));
    assert!(bench.union().unlink(find(bench.union(), ""), b"y").is_err());
    before.assert_is(&Tree::read(bench.union()));
    assert_eq!(content(bench.union(), "a/z"), b"kept");
    fs::remove_dir(obstacle).unwrap();
    assert!(replace(&bench, ("", "x"), ("", "y")));
    assert_eq!(content(bench.union(), "a/z"), b"kept");
    assert_eq!(content(bench.union(), "y"), b"x");
    bench.remount();
    assert_eq!(content(bench.union(), "a/z"), b"kept");
}

#[test]
fn failed_move_leaves_content_in_place() {
    let mut bench = Bench::imported();
    make(bench.union(), "", "x", b"x");
    make(bench.union(), "b", "other", b"other");
    let before = Tree::read(bench.union());
    // The obstacle has no row, and cannot be set aside.
    let obstacle = layer(&bench).join("upper/b/y");
    fs::create_dir(&obstacle).unwrap();
    fs::write(obstacle.join("full"), "").unwrap();
    let strays = bench.home().join("strays");
    fs::remove_dir_all(&strays).unwrap_or_default();
    fs::write(&strays, "").unwrap();
    assert!(!replace(&bench, ("", "x"), ("b", "y")));
    before.assert_is(&Tree::read(bench.union()));
    assert_eq!(bench.union().verify_upper().unwrap(), Vec::<String>::new());
    fs::remove_file(strays).unwrap();
    assert!(replace(&bench, ("", "x"), ("b", "y")));
    assert_eq!(content(bench.union(), "b/y"), b"x");
    bench.remount();
}

#[test]
fn reopening_sets_aside_leftover_files() {
    let mut bench = Bench::imported();
    make(bench.union(), "", "x", b"x");
    write(bench.union(), "big", b"changed");
    make_dir(bench.union(), "", "d");
    let x = layer(&bench).join("upper/x");
    fs::remove_file(&x).unwrap();
    fs::create_dir(&x).unwrap();
    fs::write(x.join("left"), "").unwrap();
    bench.union().unlink(find(bench.union(), ""), b"x").unwrap();
    let before = Tree::read(bench.union());
    bench.close();
    let reconciled = bench.open();
    assert_eq!(
        (reconciled.set_aside, reconciled.lost.len()),
        (1, 0),
        "{reconciled:?}"
    );
    before.assert_is(&Tree::read(bench.union()));
    bench.remount();
}

#[test]
fn missing_layer_directory_is_not_taken_for_empty() {
    for is_clean in [false, true] {
        let mut bench = Bench::imported();
        write(bench.union(), "b/c/deep", b"changed");
        make(bench.union(), "", "x", b"x");
        let before = Tree::read(bench.union());
        let (path, away) = (layer(&bench), bench.home().join("away"));
        if is_clean {
            bench.close();
        } else {
            bench.kill();
        }
        fs::rename(&path, &away).unwrap();
        let refused = bench.try_open().unwrap_err().to_string();
        let said = path.join("upper").display().to_string();
        assert!(
            refused.contains(&said) && refused.contains("Restore it"),
            "{refused}"
        );
        assert!(!path.exists());
        fs::rename(&away, &path).unwrap();
        assert!(bench.open().is_empty());
        before.assert_is(&Tree::read(bench.union()));

        // The loss is accepted by creating an empty directory.
        bench.close();
        fs::rename(&path, &away).unwrap();
        bench.try_open().unwrap_err();
        fs::create_dir_all(path.join("upper")).unwrap();
        let lost = ["b/c/deep", "x"].map(PathBuf::from);
        assert_eq!(bench.open().lost, lost);
        assert_eq!(content(bench.union(), "b/c/deep"), b"deep down");
        bench.remount();
    }
}

#[test]
fn unneeded_layer_directory_may_be_missing() {
    let mut bench = Bench::imported();
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    bench
        .union()
        .set_attr(find(bench.union(), "big"), &mode)
        .unwrap();
    make_dir(bench.union(), "b", "new");
    let before = Tree::read(bench.union());
    let path = layer(&bench);
    bench.close();
    fs::remove_dir_all(&path).unwrap();
    assert!(bench.open().is_empty());
    before.assert_is(&Tree::read(bench.union()));
    write(bench.union(), "big", b"changed");
    bench.remount();
}
