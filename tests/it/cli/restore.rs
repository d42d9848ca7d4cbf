//! `envfs restore`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::diff_revisions::three_revisions;
use crate::support::{TestEnv, tree};

#[test]
fn restore_brings_paths_back_as_uncommitted_changes() {
    for env in TestEnv::of_all_users() {
        let source = env.import_sample("e");
        let prefix = env.mount("e");
        let sh = |script: &str| env.sh(&format!("cd '{}'; {script}", prefix.display())).ok();
        sh(
            "echo x > lib/c.txt; rm lib/link lib/b.txt; cp -a lib/deep moved; rm -r lib/deep
            echo n > lib/new; echo t > bin/tool",
        );
        env.envfs(&["commit", "-q", "e"]).ok();
        sh("echo y > lib/c.txt; echo kept > bin/other");
        let others = tree::digest(&env, &prefix.join("bin"));
        // A program that has the replaced file open still reads it.
        let done = sh("exec 3< lib/c.txt; envfs restore e lib --from 1; cat <&3");
        assert!(done.err.contains("restored: "), "{done}");
        assert_eq!(done.out, "y\n");
        assert_eq!(
            tree::digest(&env, &prefix.join("lib")),
            tree::digest(&env, &source.join("lib"))
        );
        assert_eq!(tree::digest(&env, &prefix.join("bin")), others);
        sh("test -e moved/x; test lib/a.txt -ef lib/b.txt");
        env.envfs(&["restore", "e", "lib", "--from", "1"]).ok();
        let lib = || env.envfs(&["diff", "e", "1", "--times", "lib"]).ok().out;
        assert_eq!(lib(), "");

        // Without a mount, and one file of a removed directory.
        sh("rm -r lib/deep");
        env.envfs(&["unmount", "e"]).ok();
        env.envfs(&["restore", "e", "lib/deep/er/file", "--from", "@1"])
            .ok();
        env.mount("e");
        let file = source.join("lib/deep/er/file");
        sh(&format!("cmp lib/deep/er/file '{}'", file.display()));
        sh("! test -e lib/deep/x || exit 1");
        env.envfs(&["commit", "-q", "e"]).ok();
        env.verify("e");
        assert_eq!(lib(), "D lib/deep/x\n");
    }
}

#[test]
fn restore_from_the_current_revision_discards() {
    let Some(env) = three_revisions() else { return };
    fs::write(env.prefix("e").join("lib/c.txt"), "changed").unwrap();
    env.envfs(&["restore", "e", "lib", "open", "--from", "3"])
        .ok();
    assert_eq!(env.envfs(&["diff", "e"]).ok().out, "");
    env.envfs(&["undo", "e"]).ok();
    let content = |name: &str| fs::read_to_string(env.prefix("e").join(name)).unwrap();
    assert_eq!(content("lib/c.txt"), "changed");
    assert_eq!(content("open"), "uncommitted");
}

#[test]
fn restore_refuses_what_it_cannot_restore() {
    let Some(env) = three_revisions() else { return };
    let restore = |words: &[&str]| env.envfs(&[&["restore", "e"], words].concat());
    restore(&["nosuch", "--from", "1"]).fails(3, &["no such path", "revision 1"]);
    // The same if the revision is current, and nothing is restored if other paths exist.
    restore(&["nosuch", "--from", "3"]).fails(3, &["no such path", "revision 3"]);
    let before = env.envfs(&["diff", "e"]).ok().out;
    restore(&["lib", "nosuch", "--from", "1"]).fails(3, &["no such path"]);
    assert_eq!(env.envfs(&["diff", "e"]).ok().out, before);
    restore(&["lib", "--from", "9"]).fails(3, &["no revision 9"]);
    restore(&["--from", "1"]).fails(2, &["no path", "envfs rollback e 1"]);
    restore(&[".", "--from", "1"]).fails(2, &["rollback"]);
    restore(&["/etc/passwd", "--from", "1"]).fails(2, &["outside"]);
    let prefix = env.prefix("e");
    fs::write(prefix.join("lib/deep"), "a file").unwrap();
    restore(&["lib/deep/x", "--from", "1"]).fails(4, &["lib/deep"]);
    assert_eq!(fs::read(prefix.join("lib/deep")).unwrap(), b"a file");
    env.envfs(&["diff", "e"]).ok();
}
