//! A copy of a store, which has the ids and prefixes of the original; and a moved store.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::{Run, TestEnv, mounts_below};

/// Runs envfs in another store.
fn in_store(env: &TestEnv, store: &Path, words: &[&str]) -> Run {
    let store = store.to_str().unwrap();
    env.envfs(&[&["--home", store], words].concat())
}

#[test]
fn commands_on_a_copied_store_do_not_affect_the_original() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "new").unwrap();
    let copy = env.work().join("copy");
    env.sh(&format!(
        "cp -ax '{}' '{}'",
        env.store().display(),
        copy.display()
    ))
    .ok();
    let home = env.home_of("e");
    let mounted = format!("mounted from {}", home.display());
    for words in [
        &["discard", "-y", "e"][..],
        &["commit", "e"],
        &["rollback", "-y", "e", "1"],
        &["gc", "e"],
        &["tag", "e", "name"],
        &["status", "e"],
        &["diff", "e"],
        &["mount", "e"],
        &["activate", "--shell", "bash", "e"],
        &["unmount", "e"],
    ] {
        in_store(&env, &copy, words).fails(4, &[&mounted, "unmount"]);
    }
    in_store(&env, &copy, &["run", "e", "true"]).fails(125, &[&mounted]);
    let list = in_store(&env, &copy, &["list", "--json"]).ok().json();
    assert_eq!(list[0]["state"], "copy");
    in_store(&env, &copy, &["log", "e"]).ok();
    assert_eq!(fs::read(prefix.join("new")).unwrap(), b"new");
    assert_eq!(env.count(&["log", "e"]), 1);

    // Nor with another runtime directory, where only the lock and the mount itself reveal the
    // original.
    let other = env.root().join("other-run");
    fs::create_dir(&other).unwrap();
    for words in [&["mount", "e"], &["status", "e"]] {
        let words = [&["--home", copy.to_str().unwrap()], &words[..]].concat();
        env.envfs_with("XDG_RUNTIME_DIR", other.to_str().unwrap(), &words)
            .fails(4, &["a copy of this environment is mounted"]);
    }
    assert_eq!(mounts_below(env.root()).len(), 1);

    env.envfs(&["unmount", "e"]).ok();
    in_store(&env, &copy, &["mount", "e"]).ok();
    let mounted = format!("mounted from {}", copy.join("store/e").display());
    env.envfs(&["mount", "e"]).fails(4, &[&mounted]);
    env.envfs(&["discard", "-y", "e"]).fails(4, &[&mounted]);
    in_store(&env, &copy, &["discard", "-y", "e"]).ok();
    in_store(&env, &copy, &["unmount", "e"]).ok();
    env.mount("e");
    assert_eq!(fs::read(prefix.join("new")).unwrap(), b"new");
}

#[test]
fn store_can_be_moved_while_mounted() {
    let Some(env) = TestEnv::new() else { return };
    let prefix = env.work().join("prefix");
    env.envfs(&["create", "e", "--prefix", prefix.to_str().unwrap()])
        .ok();
    env.mount("e");
    let pid = env.daemon("e").as_raw();
    let moved = env.work().join("moved");
    fs::rename(env.store(), &moved).unwrap();
    let status = in_store(&env, &moved, &["status", "--json", "e"]);
    assert_eq!(status.ok().json()["daemon_pid"], pid);
    in_store(&env, &moved, &["mount", "e"]).ok();
    fs::rename(&moved, env.store()).unwrap();
    env.envfs(&["unmount", "e"]).ok();
}
