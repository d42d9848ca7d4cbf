//! The main workflow with a Python environment: install, commit, discard, roll back.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::support::tree::{self, Look, Tree, digest};
use crate::support::{PATH, TestEnv, has, run, skip};

const WHEELS: [(&str, &str); 3] = [("six", "1.16.0"), ("idna", "3.7"), ("packaging", "24.0")];

/// Returns a directory with a few wheels, which are downloaded once.
pub(super) fn wheels() -> Option<PathBuf> {
    static FETCHING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = FETCHING.lock().unwrap_or_else(|e| e.into_inner());
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wheels");
    let is_there = |name: &str| {
        let files = fs::read_dir(&cache).into_iter().flatten().flatten();
        files.into_iter().any(|file| {
            let file = file.file_name();
            file.to_str().is_some_and(|file| file.starts_with(name))
        })
    };
    if WHEELS.iter().all(|(name, _)| is_there(name)) {
        return Some(cache);
    }
    let mut command = Command::new("python3");
    command.env("PATH", PATH);
    command.args([
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
    ]);
    command.arg(&cache);
    command.args(WHEELS.map(|(name, version)| format!("{name}=={version}")));
    let done = run(command);
    if done.code != 0 {
        skip(&format!("no wheels: {done}"));
        return None;
    }
    Some(cache)
}

#[test]
fn venv_is_changed_discarded_committed_and_rolled_back() {
    if !has("python3") {
        return;
    }
    let Some(wheels) = wheels() else { return };
    for env in TestEnv::of_all_users() {
        let own = env.work().join("wheels");
        fs::create_dir(&own).unwrap();
        for file in fs::read_dir(&wheels).unwrap().flatten() {
            fs::copy(file.path(), own.join(file.file_name())).unwrap();
        }
        env.user().give_tree(&own);
        let installer = "python3 -m venv \"$1\" && \"$1/bin/pip\" install -q --no-index \
                         --disable-pip-version-check --find-links wheels six";
        env.envfs(&[
            "create", "-q", "v", "--", "sh", "-ec", installer, "sh", "{prefix}",
        ])
        .ok();
        let prefix = env.mount("v");
        let pip = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            let mut all = vec!["run", "v", "--", "pip", "-q", "--disable-pip-version-check"];
            all.extend(words);
            env.envfs(&all).ok()
        };
        let python = |code: &str| env.envfs(&["run", "v", "--", "python", "-c", code]);
        let first = digest(&env, &prefix);
        assert!(first.contains("six.py"));

        // Discard restores the first tree while mounted.
        pip("install --no-index --find-links wheels idna packaging");
        pip("uninstall -y six");
        let shown = python("import idna, packaging.version, sys; print(sys.prefix)").ok();
        assert_eq!(shown.line(), prefix.to_str().unwrap());
        python("import six").fails(1, &["ModuleNotFoundError"]);
        let status = env.envfs(&["status", "--json", "v"]).ok().json();
        assert!(
            status["changes"]["added"]["entries"].as_u64() > Some(20),
            "{status}"
        );
        assert!(
            status["changes"]["removed"]["entries"].as_u64() > Some(3),
            "{status}"
        );
        env.envfs(&["discard", "-y", "v"]).ok();
        assert_eq!(digest(&env, &prefix), first, "after the discard");
        python("import six").ok();
        python("import idna").fails(1, &["ModuleNotFoundError"]);

        // Reinstalling a package is no change.
        pip("install --force-reinstall --no-index --find-links wheels six");
        let status = env.envfs(&["status", "--json", "v"]).ok().json();
        let count = |what: &str| status["changes"][what]["entries"].as_u64();
        assert_eq!((count("added"), count("removed")), (Some(0), Some(0)));
        assert!(count("touched") >= Some(4), "{status}");
        // Bytecode contains the time of its source.
        let diff = env.envfs(&["diff", "--files", "v"]).ok();
        assert!(
            diff.out.lines().all(|line| line.ends_with(".pyc")),
            "{diff}"
        );
        let diff = env.envfs(&["diff", "v"]).ok();
        assert_eq!(diff.out.lines().count(), 1, "{diff}");
        assert!(diff.out.starts_with("bytecode "), "{diff}");
        env.envfs(&["discard", "-y", "v"]).ok();
        assert_eq!(digest(&env, &prefix), first);

        // A commit does not change the tree, nor does a remount.
        pip("install --no-index --find-links wheels idna packaging");
        pip("uninstall -y six");
        let second = digest(&env, &prefix);
        env.envfs(&["commit", "-m", "idna for six", "v"]).ok();
        assert_eq!(digest(&env, &prefix), second, "after the commit");
        python("import idna, packaging").ok();
        let after_use = digest(&env, &prefix);
        env.envfs(&["unmount", "v"]).ok();
        env.mount("v");
        assert_eq!(digest(&env, &prefix), after_use, "after a remount");
        python("import idna, packaging").ok();
        python("import six").fails(1, &["ModuleNotFoundError"]);

        // Rollback restores the first tree, and then the second.
        env.envfs(&["rollback", "-y", "v"]).ok();
        assert_eq!(digest(&env, &prefix), first, "after the rollback");
        python("import six").ok();
        env.envfs(&["unmount", "v"]).ok();
        env.envfs(&["rollback", "-y", "v", "2"]).ok();
        env.mount("v");
        assert_eq!(
            digest(&env, &prefix),
            second,
            "after the rollback to revision 2"
        );
        env.verify("v");
    }
}

#[test]
fn discard_and_rollback_restore_the_imported_tree() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("e");
    let first: Tree = tree::read(&source);
    let prefix = env.mount("e");
    let change = |what: &str| {
        fs::write(prefix.join("lib/a.txt"), what).unwrap();
        fs::rename(prefix.join("lib/deep"), prefix.join("lib").join(what)).unwrap();
        fs::remove_file(prefix.join("lib/link")).unwrap();
        fs::create_dir_all(prefix.join("new/dir")).unwrap();
        fs::write(prefix.join("new/dir/file"), what).unwrap();
    };
    change("one");
    env.envfs(&["discard", "-y", "e", "new", "lib/link"]).ok();
    assert!(!prefix.join("new").exists() && prefix.join("lib/link").symlink_metadata().is_ok());
    assert_eq!(fs::read(prefix.join("lib/a.txt")).unwrap(), b"one");
    env.envfs(&["discard", "-y", "e"]).ok();
    tree::assert_same(
        &first,
        &tree::read(&prefix),
        Look::ALL,
        "discard while mounted",
    );
    change("two");
    let second = tree::read(&prefix);
    env.envfs(&["commit", "e"]).ok();
    tree::assert_same(&second, &tree::read(&prefix), Look::ALL, "commit");
    let again = env.envfs(&["commit", "e"]).ok();
    assert_eq!(env.count(&["log", "e"]), 2, "{again}");
    fs::write(prefix.join("uncommitted"), "x").unwrap();
    env.envfs(&["rollback", "e"]).fails(2, &["-y"]);
    assert!(prefix.join("uncommitted").exists());
    env.envfs(&["rollback", "-y", "e"]).ok();
    tree::assert_same(
        &first,
        &tree::read(&prefix),
        Look::ALL,
        "rollback while mounted",
    );
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["rollback", "-y", "e", "2"]).ok();
    let prefix = env.mount("e");
    tree::assert_same(
        &second,
        &tree::read(&prefix),
        Look::ALL,
        "rollback while unmounted",
    );
    fs::write(prefix.join("lib/c.txt"), "more").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["discard", "-y", "e"]).ok();
    let prefix = env.mount("e");
    tree::assert_same(
        &second,
        &tree::read(&prefix),
        Look::ALL,
        "discard while unmounted",
    );
    env.verify("e");
}
