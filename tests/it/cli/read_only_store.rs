//! A store on a read-only file system: committed content can be inspected and mounted.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::run;

#[test]
fn read_only_store_can_be_inspected_and_mounted() {
    let Some((env, small)) = super::disk_full::store_of("28m") else {
        return;
    };
    for name in ["clean", "changed"] {
        env.import_sample(name);
        // Creates the prefix.
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
            all.push("out.sqfs");
        }
        env.envfs(&all).ok();
    }
    assert!(env.work().join("out.sqfs").exists());
    // Repeated runs share one mount.
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
    // Commands that write are refused with the reason.
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
    // An environment with changes needs the store writable: showing only its image would hide them.
    for words in [
        &["run", "changed", "tool"][..],
        &["mount", "changed"],
        &["status", "changed"],
        &["diff", "changed"],
    ] {
        let done = env.envfs(words);
        assert_ne!(done.code, 0, "{done}");
        for word in [
            "read-only",
            "uncommitted changes",
            "envfs mount --read-only changed PATH",
        ] {
            assert!(done.err.contains(word), "{word}: {done}");
        }
    }
    env.envfs(&["mount", "never"])
        .fails(1, &["read-only", "envfs mount --read-only never PATH"]);
    // What is committed can be used, at the prefix as well.
    for kind in ["--read-only", "--ephemeral"] {
        let path = env.work().join(kind);
        for words in [&["changed", path.to_str().unwrap()][..], &["changed"]] {
            let done = env.envfs(&[&["mount", kind], words].concat()).ok();
            let file = Path::new(done.line()).join("lib/c.txt");
            assert_eq!(fs::read(file).unwrap(), b"gamma\n");
        }
        env.envfs(&["unmount", path.to_str().unwrap()]).ok();
        env.envfs(&["unmount", "changed"]).ok();
    }
    remount("rw");
    let prefix = env.mount("clean");
    fs::write(prefix.join("new"), "x").unwrap();
    env.envfs(&["unmount", "--all"]).ok();
}
