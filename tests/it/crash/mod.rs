//! A kill at every fault point of every operation leaves the complete old state or the complete new
//! one.

#![allow(clippy::unwrap_used)]

mod history;
mod in_place;
mod relocate;
mod trial;

use std::fs;
use std::path::Path;

use envfs::state::StateDb;

use crate::support::tree::{self, Look, Tree};
use crate::support::{TestEnv, mounts_below, samples};

/// Returns the fault points of one operation.
fn points(operation: &str) -> Vec<&'static str> {
    let points = envfs::fault::POINTS.iter().copied();
    let found: Vec<_> = points
        .filter(|point| point.split('.').next() == Some(operation))
        .collect();
    assert!(!found.is_empty());
    found
}

/// Returns whether the operation has taken effect at this point.
fn has_taken_effect(point: &str) -> bool {
    point.ends_with(".flipped") || point.ends_with(".cleaned")
}

#[test]
fn every_fault_point_belongs_to_a_tested_operation() {
    for point in envfs::fault::POINTS {
        let operation = point.split('.').next().unwrap();
        let tested = [
            "import",
            "import-history",
            "forward",
            "in-place",
            "in-place-undo",
            "finish",
            "clone",
            "relocate",
            "commit",
            "split",
            "discard",
            "discard-paths",
            "rollback",
            "restore",
            "undo",
            "checkpoint",
            "expose",
            "try",
            "keep",
            "drop",
            "set-aside",
        ];
        assert!(tested.contains(&operation), "{point}");
    }
}

fn change(prefix: &Path, what: &str) {
    fs::write(prefix.join("lib/a.txt"), what).unwrap();
    fs::create_dir_all(prefix.join("new/dir")).unwrap();
    fs::write(
        prefix.join("new/dir").join(what),
        samples::noise(150_000, what.len() as u64),
    )
    .unwrap();
    fs::remove_file(prefix.join("bin/tool")).unwrap();
    fs::write(prefix.join("bin/tool"), what).unwrap();
    if prefix.join("lib/deep").exists() {
        fs::rename(prefix.join("lib/deep"), prefix.join("lib/moved")).unwrap();
        fs::remove_file(prefix.join("lib/moved/x")).unwrap();
    }
}

fn revisions(env: &TestEnv) -> usize {
    env.count(&["log", "e"])
}

/// Kills the command `words` at a fault point and checks the recovery. `prepare` makes changes and
/// returns the tree that the completed command would leave.
fn check_kill_at(
    words: &[&str],
    point: &str,
    is_mounted: bool,
    prepare: impl Fn(&TestEnv, &Path) -> Tree,
) {
    let Some(env) = TestEnv::new() else { return };
    let what = format!("{words:?} at {point}, mounted: {is_mounted}");
    env.import_sample("e");
    let prefix = env.mount("e");
    let new = prepare(&env, &prefix);
    let old = tree::read(&prefix);
    let before = revisions(&env);
    env.envfs(&["unmount", "e"]).ok();
    if is_mounted {
        env.envfs_with("ENVFS_FAULT", point, &["mount", "e"]).ok();
        env.envfs(words).fails(9, &["daemon"]);
    } else {
        let done = env.envfs_with("ENVFS_FAULT", point, words);
        assert_eq!(
            done.code,
            128 + 9,
            "{what}: the point was not reached: {done}"
        );
    }

    // The next command recovers the environment.
    env.envfs(&["list"]).ok();
    env.mount("e");
    assert_eq!(mounts_below(env.root()).len(), 1, "{what}");
    let found = tree::read(&prefix);
    let expected = if has_taken_effect(point) { &new } else { &old };
    tree::assert_same(expected, &found, Look::ALL, &what);
    let adds = ["commit", "rollback"].contains(&words[0]);
    let added = usize::from(has_taken_effect(point) && adds);
    assert_eq!(revisions(&env), before + added, "{what}");
    env.verify("e");
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");

    // Further recoveries change nothing.
    env.mount("e");
    tree::assert_same(
        expected,
        &tree::read(&prefix),
        Look::ALL,
        &format!("{what}, mounted again"),
    );
    env.kill_daemon("e");
    env.mount("e");
    tree::assert_same(
        expected,
        &tree::read(&prefix),
        Look::ALL,
        &format!("{what}, killed and mounted again"),
    );

    // The environment can be changed and committed.
    fs::write(prefix.join("further"), point).unwrap();
    let further = tree::read(&prefix);
    env.envfs(&["commit", "e"]).ok();
    assert_eq!(revisions(&env), before + added + 1, "{what}");
    env.envfs(&["unmount", "e"]).ok();
    env.mount("e");
    tree::assert_same(
        &further,
        &tree::read(&prefix),
        Look::ALL,
        &format!("{what}, committed"),
    );
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["gc", "--keep", "100", "e"]).ok();
    env.verify("e");

    // No files are left over.
    let images = fs::read_dir(env.home_of("e").join("images"))
        .unwrap()
        .flatten();
    let names: Vec<String> = images
        .map(|file| file.file_name().into_string().unwrap())
        .collect();
    let log = env.envfs(&["log", "--json", "e"]).ok().json();
    for name in &names {
        let is_known = log
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["image"] == name.as_str());
        assert!(
            is_known,
            "{what}: {name} of {names:?} belongs to no revision"
        );
    }
    let layers = fs::read_dir(env.home_of("e").join("layers"))
        .unwrap()
        .count();
    assert_eq!(layers, 1, "{what}: frozen layers were left");
}

fn check_kill_everywhere(words: &[&str], prepare: impl Fn(&TestEnv, &Path) -> Tree + Copy) {
    check_kill_at_points_of(words[0], words, prepare);
}

fn check_kill_at_points_of(
    operation: &str,
    words: &[&str],
    prepare: impl Fn(&TestEnv, &Path) -> Tree + Copy,
) {
    for point in points(operation) {
        for is_mounted in [true, false] {
            check_kill_at(words, point, is_mounted, prepare);
        }
    }
}

#[test]
fn commit_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["commit", "e"], |_, prefix| {
        change(prefix, "one");
        tree::read(prefix)
    });
}

#[test]
fn second_commit_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["commit", "e"], |env, prefix| {
        change(prefix, "one");
        env.envfs(&["commit", "e"]).ok();
        change(prefix, "other");
        fs::remove_dir_all(prefix.join("lib/moved")).unwrap();
        tree::read(prefix)
    });
}

#[test]
fn commit_of_paths_is_atomic_at_every_fault_point() {
    let words = ["commit", "e", "lib", "new/dir/one"];
    let all = points("commit").into_iter().chain(points("split"));
    for point in all {
        for is_mounted in [true, false] {
            check_kill_at(&words, point, is_mounted, |_, prefix| {
                change(prefix, "one");
                fs::write(prefix.join("new/dir/other"), "other").unwrap();
                tree::read(prefix)
            });
        }
    }
}

#[test]
fn discard_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["discard", "-y", "e"], |_, prefix| {
        let new = tree::read(prefix);
        change(prefix, "one");
        new
    });
}

#[test]
fn rollback_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["rollback", "-y", "e"], |env, prefix| {
        let new = tree::read(prefix);
        change(prefix, "one");
        env.envfs(&["commit", "e"]).ok();
        change(prefix, "other");
        new
    });
}

/// Returns the tree with `lib` and `bin` as in another one.
fn with_lib_of(first: Tree, prefix: &Path) -> Tree {
    let is_restored = |path: &Path| path.starts_with("lib") || path.starts_with("bin");
    let mut new = tree::read(prefix);
    new.retain(|path, _| !is_restored(path));
    new.extend(first.into_iter().filter(|(path, _)| is_restored(path)));
    new
}

#[test]
fn discard_of_paths_is_atomic_at_every_fault_point() {
    let words = ["discard", "-y", "e", "lib", "bin"];
    for has_checkpoint in [false, true] {
        check_kill_at_points_of("discard-paths", &words, |env, prefix| {
            let first = tree::read(prefix);
            change(prefix, "one");
            if has_checkpoint {
                env.envfs(&["checkpoint", "e"]).ok();
            }
            change(prefix, "other");
            with_lib_of(first, prefix)
        });
    }
}

#[test]
fn undo_of_a_discard_of_paths_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        let new = tree::read(prefix);
        env.envfs(&["discard", "-y", "e", "lib", "bin"]).ok();
        new
    });
}

#[test]
fn undo_of_a_restore_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        env.envfs(&["commit", "e"]).ok();
        change(prefix, "other");
        let new = tree::read(prefix);
        env.envfs(&["restore", "e", "lib", "bin", "--from", "1"])
            .ok();
        new
    });
}

#[test]
fn redo_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        let new = tree::read(prefix);
        change(prefix, "one");
        env.envfs(&["discard", "-y", "e"]).ok();
        env.envfs(&["undo", "e"]).ok();
        change(prefix, "other");
        new
    });
}

#[test]
fn undo_of_a_commit_of_paths_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        let new = tree::read(prefix);
        env.envfs(&["commit", "e", "lib"]).ok();
        new
    });
}

#[test]
fn undo_of_a_kept_try_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        let new = tree::read(prefix);
        let command = format!("echo tried >'{}/tried'", prefix.display());
        env.envfs(&["try", "--keep", "e", "--", "sh", "-c", &command])
            .ok();
        assert!(prefix.join("tried").exists());
        new
    });
}

#[test]
fn restore_is_atomic_at_every_fault_point() {
    let words = ["restore", "e", "lib", "bin", "--from", "1"];
    check_kill_everywhere(&words, |env, prefix| {
        let first = tree::read(prefix);
        change(prefix, "one");
        env.envfs(&["commit", "e"]).ok();
        change(prefix, "other");
        with_lib_of(first, prefix)
    });
}

#[test]
fn undo_of_a_commit_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        let new = tree::read(prefix);
        env.envfs(&["commit", "e"]).ok();
        new
    });
}

#[test]
fn undo_of_a_discard_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        let new = tree::read(prefix);
        env.envfs(&["discard", "-y", "e"]).ok();
        change(prefix, "other");
        new
    });
}

#[test]
fn undo_of_a_rollback_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        env.envfs(&["commit", "e"]).ok();
        change(prefix, "other");
        let new = tree::read(prefix);
        env.envfs(&["rollback", "-y", "e"]).ok();
        new
    });
}

#[test]
fn return_to_a_checkpoint_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["undo", "e"], |env, prefix| {
        change(prefix, "one");
        let new = tree::read(prefix);
        env.envfs(&["checkpoint", "e"]).ok();
        change(prefix, "other");
        new
    });
}

#[test]
fn checkpoint_is_atomic_at_every_fault_point() {
    check_kill_everywhere(&["checkpoint", "e"], |env, prefix| {
        change(prefix, "one");
        env.envfs(&["checkpoint", "e"]).ok();
        change(prefix, "other");
        tree::read(prefix)
    });
}

#[test]
fn interrupted_import_leaves_no_environment_and_can_be_repeated() {
    for point in points("import") {
        let Some(env) = TestEnv::new() else { return };
        let source = env.work().join("source");
        samples::small(&env, &source);
        let words = ["import", "-q", source.to_str().unwrap(), "e"];
        let done = env.envfs_with("ENVFS_FAULT", point, &words);
        assert_eq!(done.code, 128 + 9, "{point}: {done}");
        assert_eq!(env.count(&["list"]), 0);
        env.envfs(&words).ok();
        tree::assert_same_at(&source, &env.mount("e"), Look::ALL, point);
        env.envfs(&["gc"]).ok();
        let homes = fs::read_dir(env.store().join("store")).unwrap().count();
        assert_eq!(homes, 1, "{point}: gc did not remove the rest");
        env.verify("e");
    }
}

#[test]
fn amended_image_that_fails_verification_is_rewritten() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    for (fault, is_amended) in [("check.amended", false), ("", true)] {
        let prefix = env.mount("e");
        // A file without hard links, which would cause all tables to be rewritten.
        let size = fs::read(prefix.join("lib/c.txt")).unwrap().len();
        fs::write(prefix.join("lib/c.txt"), "x".repeat(size + 1)).unwrap();
        let changed = tree::read(&prefix);
        env.envfs(&["unmount", "e"]).ok();
        env.envfs_with("ENVFS_FAULT", fault, &["commit", "e"]).ok();
        let db = StateDb::open(&env.home_of("e").join("state.db")).unwrap();
        let image = db.images().unwrap().pop().unwrap();
        let appended = image.tables_appended.unwrap();
        assert_eq!(appended > 0, is_amended, "{fault:?}: {appended}");
        drop(db);
        let found = tree::read(&env.mount("e"));
        tree::assert_same(&changed, &found, Look::ALL, fault);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
        let images = fs::read_dir(env.home_of("e").join("images")).unwrap();
        assert_eq!(images.count(), revisions(&env), "an image was left over");
    }
}

#[test]
fn completed_calls_survive_a_kill_of_the_daemon() {
    for round in 0..8_u64 {
        let Some(env) = TestEnv::new() else { return };
        env.import_sample("e");
        let prefix = env.mount("e");
        let at = prefix.display();
        let note = env.work().join("note");
        // Records completed calls outside of the mount; ends when the mount dies.
        let script = format!(
            "n=0; while :; do n=$((n+1)); echo $n >'{at}/file-'$n && mv '{at}/file-'$n '{at}/done-'$n \
             && mkdir '{at}/dir-'$n && rm -f '{at}/done-'$((n-7)) && echo $n >>'{}' || exit 0; done",
            note.display()
        );
        let mut command = env.command("/bin/sh");
        command
            .args(["-c", &script])
            .stderr(std::process::Stdio::null());
        let mut writer = command.spawn().unwrap();
        let enough = 10 + 5 * round as usize;
        crate::support::wait_for("some writes", || {
            fs::read_to_string(&note).is_ok_and(|text| text.lines().count() > enough)
        });
        env.kill_daemon("e");
        writer.wait().unwrap();
        let text = fs::read_to_string(env.work().join("note")).unwrap();
        let last: u64 = text.lines().last().unwrap().parse().unwrap();
        env.mount("e");
        for number in 1..=last {
            let file = prefix.join(format!("done-{number}"));
            assert!(
                prefix.join(format!("dir-{number}")).is_dir(),
                "dir-{number} of {last}"
            );
            if number + 7 > last + 1 {
                assert_eq!(fs::read_to_string(&file).unwrap(), format!("{number}\n"));
            } else if number + 7 <= last {
                assert!(!file.exists(), "done-{number} was removed, of {last}");
            }
        }
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}
