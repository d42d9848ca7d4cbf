//! A kill at every step of a trial leaves the state before it or the kept one, and nothing of the
//! trial.

use std::fs;
use std::path::Path;

use super::{has_taken_effect, points};
use crate::cli::is_private_possible;
use crate::support::TestEnv;
use crate::support::tree::{self, Look, Tree};

/// Drops what the kept trial has changed.
fn without_changes(mut tree: Tree) -> Tree {
    for path in ["", "lib", "kept", "lib/c.txt"] {
        tree.remove(Path::new(path));
    }
    tree
}

fn check_kill_at(point: &str, option: &str, is_mounted: bool, has_changes: bool) {
    let Some(env) = TestEnv::new().filter(is_private_possible) else {
        return;
    };
    let what = format!("{option} at {point}, mounted: {is_mounted}, changes: {has_changes}");
    env.import_sample("e");
    let prefix = env.mount("e");
    if has_changes {
        super::change(&prefix, "one");
    }
    let old = tree::read(&prefix);
    env.envfs(&["unmount", "e"]).ok();
    let script = format!("cd '{}' && echo >kept && rm lib/c.txt", prefix.display());
    let words = ["try", option, "e", "--", "sh", "-c", &script];
    if is_mounted {
        env.envfs_with("ENVFS_FAULT", point, &["mount", "e"]).ok();
        env.envfs(&words).fails(125, &["daemon"]);
    } else {
        let done = env.envfs_with("ENVFS_FAULT", point, &words);
        assert_eq!(
            done.code,
            128 + 9,
            "{what}: the point was not reached: {done}"
        );
    }

    for round in ["", ", and again"] {
        env.mount("e");
        let found = tree::read(&prefix);
        let what = format!("{what}{round}");
        if has_taken_effect(point) {
            assert!(prefix.join("kept").exists() && !prefix.join("lib/c.txt").exists());
            let (old, found) = (without_changes(old.clone()), without_changes(found));
            tree::assert_same(&old, &found, Look::ALL, &what);
        } else {
            tree::assert_same(&old, &found, Look::ALL, &what);
        }
        let home = env.home_of("e");
        let count = |dir: &str| fs::read_dir(home.join(dir)).map_or(0, Iterator::count);
        // The daemon was killed, not the command, which sees to it that nothing is lost.
        let is_set_aside = is_mounted && ["try.ended", "keep.copied"].contains(&point);
        if is_set_aside {
            let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
            assert_eq!(log[0]["kind"], "set-aside", "{what}");
        }
        // The writable layer, the kept one or the one in the trash, and the one below that.
        let layers = match (has_taken_effect(point) || is_set_aside, has_changes) {
            (false, _) => 1,
            (true, false) => 2,
            (true, true) => 3,
        };
        assert_eq!((count("layers"), count("trials")), (layers, 0), "{what}");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
    env.envfs(&["try", "--drop", "e", "--", "sh", "-c", &script]);
    env.mount("e");
    fs::write(prefix.join("further"), point).unwrap();
    let further = tree::read(&prefix);
    env.envfs(&["commit", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    env.mount("e");
    tree::assert_same(&further, &tree::read(&prefix), Look::ALL, &what);
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
}

fn check_everywhere(operation: &str, option: &str) {
    for point in points(operation) {
        for is_mounted in [true, false] {
            check_kill_at(point, option, is_mounted, is_mounted);
            check_kill_at(point, option, is_mounted, !is_mounted);
        }
    }
}

#[test]
fn beginning_a_try_is_atomic_at_every_fault_point() {
    check_everywhere("try", "--keep");
}

#[test]
fn keeping_a_try_is_atomic_at_every_fault_point() {
    check_everywhere("keep", "--keep");
}

#[test]
fn dropping_a_try_is_atomic_at_every_fault_point() {
    check_everywhere("drop", "--drop");
}

#[test]
fn setting_a_try_aside_is_atomic_at_every_fault_point() {
    for point in points("set-aside") {
        for is_mounted in [true, false] {
            check_kill_while_setting_aside(point, is_mounted);
        }
    }
}

fn check_kill_while_setting_aside(point: &str, is_mounted: bool) {
    let Some(env) = TestEnv::new().filter(is_private_possible) else {
        return;
    };
    env.import_sample("e");
    let prefix = env.mount("e");
    super::change(&prefix, "one");
    env.envfs(&["unmount", "e"]).ok();
    let script = format!(
        "cd '{}' && echo >tried && rm lib/c.txt && envfs commit -q -m meanwhile e",
        prefix.display()
    );
    let words = ["try", "--keep", "e", "--", "sh", "-c", &script];
    if is_mounted {
        env.envfs_with("ENVFS_FAULT", point, &["mount", "e"]).ok();
        env.envfs(&words).fails(125, &["daemon"]);
    } else {
        let done = env.envfs_with("ENVFS_FAULT", point, &words);
        assert_eq!(done.code, 128 + 9, "{point} was not reached: {done}");
    }
    for _ in 0..2 {
        env.mount("e");
        assert!(prefix.join("lib/c.txt").exists() && !prefix.join("tried").exists());
        assert_eq!(
            fs::read_dir(env.home_of("e").join("trials"))
                .unwrap()
                .count(),
            0
        );
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
    let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
    assert_eq!(log[0]["kind"], "set-aside", "{log}");
    let operation = log[0]["operation"].to_string();
    env.envfs(&["undo", "-q", "--operation", &operation, "e"])
        .ok();
    env.mount("e");
    assert!(!prefix.join("lib/c.txt").exists() && prefix.join("tried").exists());
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
}
