//! A store that can only be read: everything committed can be looked at and used.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::run;

#[test]
fn a_store_that_can_only_be_read_can_be_looked_at_and_used() {
    let Some((env, small)) = super::full::store_of("28m") else {
        return;
    };
    for name in ["clean", "changed"] {
        env.import_sample(name);
        // Makes the prefix.
        env.mount(name);
    }
    fs::remove_file(env.prefix("changed").join("lib/c.txt")).unwrap();
    for name in ["clean", "changed"] {
        env.envfs(&["unmount", name]).ok();
    }
    env.import_sample("never");
    let remount = |how: &str| {
        let mut command = env.command("mount");
        command
            .args(["-o", &format!("remount,{how}")])
            .arg(&small.0);
        run(command).ok();
    };
    remount("ro");
    assert_eq!(env.count(&["list"]), 3);
    for words in [
        &["status"][..],
        &["diff"],
        &["log"],
        &["paths"],
        &["tag"],
        &["export", "-f"],
        &["gc", "-n"],
    ] {
        let mut all = words.to_vec();
        all.push("clean");
        if words[0] == "export" {
            all.push("/dev/shm/envfs-test-read-only.sqfs");
        }
        env.envfs(&all).ok();
    }
    fs::remove_file("/dev/shm/envfs-test-read-only.sqfs").unwrap();
    // Used, and more than once, with one mount.
    for _ in 0..2 {
        let done = env.envfs(&["run", "clean", "tool"]).ok();
        assert_eq!(done.out, "tool\n");
    }
    let prefix = env.mount("clean");
    assert_eq!(fs::read(prefix.join("lib/c.txt")).unwrap(), b"gamma\n");
    let refused = fs::write(prefix.join("new"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
    let script = "eval \"$(envfs activate --shell posix clean)\"; tool";
    assert_eq!(env.sh(script).ok().out, "tool\n");
    // What writes is refused, and says why.
    for words in [
        &["commit", "clean"][..],
        &["discard", "-y", "clean"],
        &["tag", "clean", "x"],
        &["rename", "clean", "other"],
        &["remove", "-y", "clean"],
        &["create", "new"],
    ] {
        let done = env.envfs(words);
        assert_ne!(done.code, 0, "{done}");
        assert!(done.err.to_lowercase().contains("read-only"), "{done}");
    }
    env.envfs(&["unmount", "clean"]).ok();
    assert!(!prefix.join("lib").exists());
    env.mount("clean");
    env.envfs(&["unmount", "--all"]).ok();
    // Changes that nobody may look at are not passed over.
    for words in [
        &["run", "changed", "tool"][..],
        &["mount", "changed"],
        &["status", "changed"],
        &["diff", "changed"],
    ] {
        let done = env.envfs(words);
        assert_ne!(done.code, 0, "{done}");
        for word in ["read-only", "uncommitted changes", "envfs mount --image "] {
            assert!(done.err.contains(word), "{word}: {done}");
        }
    }
    env.envfs(&["mount", "never"])
        .fails(1, &["read-only", "envfs mount --image "]);
    remount("rw");
    let prefix = env.mount("clean");
    fs::write(prefix.join("new"), "x").unwrap();
    env.envfs(&["unmount", "--all"]).ok();
}
