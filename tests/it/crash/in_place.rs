//! A crash at every step of an import in place, of undoing and of finishing it, and of a clone.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::points;
use crate::support::tree::{self, Look, Tree};
use crate::support::{TestEnv, mounts_below, samples};

/// A directory to import, with its content and its inode number.
struct Original {
    dir: PathBuf,
    tree: Tree,
    inode: u64,
}

impl Original {
    fn new(env: &TestEnv) -> Original {
        let dir = env.work().join("proj/.venv");
        samples::small(env, &dir);
        Original {
            tree: tree::read(&dir),
            inode: fs::metadata(&dir).unwrap().ino(),
            dir,
        }
    }

    fn word(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    fn backup(&self) -> PathBuf {
        self.dir.with_file_name(".venv.envfs-backup")
    }

    /// Returns whether the original directory is at a path.
    fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.ino() == self.inode)
    }

    /// Fails unless the path shows the content of the original.
    #[track_caller]
    fn assert_shown(&self, what: &str) {
        tree::assert_same(&self.tree, &tree::read(&self.dir), Look::ALL, what);
    }

    /// Fails unless the original is at its path and nothing else is left.
    #[track_caller]
    fn assert_back(&self, env: &TestEnv, what: &str) {
        assert!(self.is_at(&self.dir), "{what}");
        self.assert_shown(what);
        assert!(!self.backup().exists(), "{what}");
        assert_eq!(env.count(&["list"]), 0, "{what}");
        assert_eq!(mounts_below(env.root()), Vec::<PathBuf>::new(), "{what}");
    }
}

/// Runs a command that is killed at a point.
#[track_caller]
fn die(env: &TestEnv, fault: &str, words: &[&str]) {
    let done = env.envfs_with("ENVFS_FAULT", fault, words);
    assert_eq!(done.code, 128 + 9, "{fault}: the point was not met: {done}");
}

#[test]
fn interrupted_import_in_place_leaves_the_original_or_the_environment() {
    for point in [points("import"), points("in-place")].concat() {
        let Some(env) = TestEnv::new() else { return };
        let original = Original::new(&env);
        let import = ["import", "-q", "--in-place", original.word()];
        let fault = match point {
            "in-place.renamed" => "rename.no-exchange,in-place.renamed",
            point => point,
        };
        die(&env, fault, &import);
        // The original is whole, at one of its two places.
        let is_away = original.is_at(&original.backup());
        assert!(is_away || original.is_at(&original.dir), "{point}");
        let expected = ["in-place.renamed", "in-place.swapped", "in-place.mounted"];
        assert_eq!(is_away, expected.contains(&point), "{point}");

        // The next command completes it or takes it back.
        let list = env.envfs(&["list"]).ok();
        original.assert_shown(point);
        if is_away {
            assert!(
                list.err.contains("was interrupted; it is complete now"),
                "{list}"
            );
            let mounts = mounts_below(env.root());
            assert_eq!(mounts, std::slice::from_ref(&original.dir), "{point}");
            assert_eq!(env.envfs(&["list"]).ok().err, "", "{point}");
            env.verify("proj");
            env.envfs(&["import", "--undo", "proj"]).ok();
        } else if point.starts_with("in-place") {
            assert!(list.err.contains("the environment is removed"), "{list}");
        }
        original.assert_back(&env, point);
        env.envfs(&import).ok();
        original.assert_shown(point);
        env.envfs(&["import", "--finish", "proj"]).ok();
        original.assert_shown(point);
        env.envfs(&["gc"]).ok();
        let homes = fs::read_dir(env.store().join("store")).unwrap().count();
        assert_eq!(homes, 1, "{point}: gc removes what was left");
        assert_eq!(fs::read_dir(env.work().join("proj")).unwrap().count(), 1);
        env.envfs(&["unmount", "proj"]).ok();
    }
}

#[test]
fn any_command_recovers_an_import_in_place() {
    for words in [
        &["status", "proj/.venv"][..],
        &["mount", "proj"],
        &["run", "proj", "--", "tool"],
        &["diff", "proj"],
        &["import", "--undo", "proj"],
        &["import", "--in-place", "proj/.venv", "again"],
    ] {
        for point in ["in-place.created", "in-place.swapped"] {
            let Some(env) = TestEnv::new() else { return };
            let original = Original::new(&env);
            die(
                &env,
                point,
                &["import", "-q", "--in-place", original.word()],
            );
            let done = env.envfs(words);
            assert!(done.err.contains("was interrupted"), "{point}: {done}");
            original.assert_shown(point);
            let is_undo = words.contains(&"--undo");
            let is_back = original.is_at(&original.dir);
            let again = words.contains(&"again");
            assert_eq!(
                is_back,
                is_undo || point == "in-place.created" && !again,
                "{point}: {done}"
            );
            assert_eq!(
                env.count(&["list"]),
                usize::from(!is_back),
                "{point}: {done}"
            );
        }
    }
}

#[test]
fn running_import_is_left_alone() {
    let Some(env) = TestEnv::new() else { return };
    let original = Original::new(&env);
    let mut command = env.envfs_command(&["import", "-q", "--in-place", original.word()]);
    command.env("ENVFS_FAULT", "hang.in-place");
    let mut child = command.spawn().unwrap();
    crate::support::wait_for("the environment", || {
        env.home_of("proj").join("in-place").exists() && !original.backup().exists()
    });
    let list = env.envfs(&["list"]).ok();
    assert!(!list.err.contains("interrupted"), "{list}");
    assert!(env.home_of("proj").exists());
    env.envfs(&["mount", "proj"]).fails(4, &["not empty"]);
    child.kill().unwrap();
    child.wait().unwrap();
    env.envfs(&["list"]).ok();
    original.assert_back(&env, "killed");
}

#[test]
fn interrupted_undo_is_completed() {
    for point in points("in-place-undo") {
        let Some(env) = TestEnv::new() else { return };
        let original = Original::new(&env);
        env.envfs(&["import", "-q", "--in-place", original.word()])
            .ok();
        fs::write(original.dir.join("new"), "dropped on request").unwrap();
        die(&env, point, &["import", "--undo", "proj", "--force"]);
        assert!(
            original.is_at(&original.dir) || original.is_at(&original.backup()),
            "{point}"
        );
        env.envfs(&["list"]).ok();
        original.assert_back(&env, point);
        env.envfs(&["gc"]).ok();
        assert_eq!(
            fs::read_dir(env.store().join("store")).unwrap().count(),
            0,
            "{point}"
        );
    }
}

#[test]
fn interrupted_finish_is_completed() {
    for point in points("finish") {
        for is_mounted in [true, false] {
            let Some(env) = TestEnv::new() else { return };
            let original = Original::new(&env);
            env.envfs(&["import", "-q", "--in-place", original.word()])
                .ok();
            if !is_mounted {
                env.envfs(&["unmount", "proj"]).ok();
            }
            die(&env, point, &["import", "--finish", "proj"]);
            // As if the crash had come while files were deleted.
            fs::remove_dir_all(original.backup().join("lib")).ok();
            let list = env.envfs(&["list", "--json"]).ok();
            assert!(list.json()[0]["backup"].is_null(), "{point}: {list}");
            assert!(!original.backup().exists(), "{point}");
            env.envfs(&["import", "--undo", "proj"])
                .fails(4, &["no backup"]);
            env.mount("proj");
            original.assert_shown(point);
            env.envfs(&["unmount", "proj"]).ok();
            env.verify("proj");
        }
    }
}

#[test]
fn interrupted_clone_leaves_no_environment_and_can_be_repeated() {
    for point in points("clone") {
        let Some(env) = TestEnv::new() else { return };
        env.import_sample("e");
        let words = ["clone", "-q", "e", "c"];
        die(&env, point, &words);
        assert_eq!(env.count(&["list"]), 1, "{point}");
        env.verify("e");
        env.envfs(&words).ok();
        tree::assert_same_at(&env.mount("e"), &env.mount("c"), Look::ALL, point);
        env.envfs(&["gc"]).ok();
        let homes = fs::read_dir(env.store().join("store")).unwrap().count();
        assert_eq!(homes, 2, "{point}: gc removes what was left");
        env.verify("e");
        env.verify("c");
    }
}
