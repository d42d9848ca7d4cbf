//! `envfs mount` of environments. Sessions and images have files of their own.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::errors::word;
use crate::support::{TestEnv, mounts_below, run};

#[test]
fn mount_prints_the_prefix_and_is_repeatable() {
    for env in TestEnv::of_all_users() {
        samples(&env);
        // Exactly, for cd "$(envfs mount NAME)".
        let prefix = env.work().join("a b\u{e9}");
        let words = ["import", "-q", "source", "e", "--prefix", word(&prefix)];
        env.envfs(&words).ok();
        let printed = format!("{}\n", prefix.display());
        let first = env.envfs(&["mount", "e"]).ok();
        assert_eq!(first.out, printed);
        let daemon = env.daemon("e");
        for again in [&["mount", "e"][..], &["mount", "-q", "e"]] {
            let done = env.envfs(again).ok();
            assert_eq!((done.out.as_str(), done.err.as_str()), (&*printed, ""));
        }
        assert_eq!(env.daemon("e"), daemon);
        assert_eq!(mounts_below(env.root()).len(), 1);
        env.sh("cd \"$(envfs mount e)\" && test -x bin/tool").ok();
        // The prefix names the environment, too.
        assert_eq!(env.envfs(&["mount", word(&prefix)]).ok().out, printed);
    }
}

fn samples(env: &TestEnv) {
    crate::support::samples::small(env, &env.work().join("source"));
}

#[test]
fn options_that_do_not_fit_are_refused_with_the_way_out() {
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    env.import_sample("e");
    let at = env.work().join("at");
    let at = word(&at);
    for (words, code, said) in [
        (
            &["e", at][..],
            2,
            &[
                "writable only at its prefix",
                "envfs mount --read-only e PATH",
            ][..],
        ),
        (&["--upper", "u", "e"], 2, &["require --image"]),
        (&["--state", "s", "e"], 2, &["require --image"]),
        (&["--offset", "0", "e"], 2, &["require --image"]),
        (&["-o", "ro", "e"], 2, &["require --image"]),
        (&["--read-only", "--ephemeral", "e"], 2, &["--ephemeral"]),
        (&["--read-only", "--writable", "e"], 2, &["--writable"]),
        (&["--writable", "e@1"], 2, &["--writable", "envfs rollback"]),
        (&["--upper-dir", "u", "e"], 2, &["--ephemeral"]),
        (
            &["--read-only", "--upper-dir", "u", "e"],
            2,
            &["--upper-dir", "--read-only"],
        ),
        (&["--ephemeral", "--upper-dir", "none", "e"], 3, &["none"]),
        (&["e@9"], 3, &["e has no revision 9", "envfs log e"]),
        (&["e@paper"], 3, &["no revision paper", "envfs log e"]),
        (&["-o", "remount,ro"], 2, &["no mount point", "MOUNTPOINT"]),
        (&[], 2, &["none is active", "envfs activate"]),
    ] {
        let done = env.envfs(&[&["mount"], words].concat());
        assert_eq!(done.fails(code, said).out, "");
        assert!(mounts_below(env.root()).is_empty(), "{words:?}");
    }
    // A refused mount leaves no directory.
    assert!(!env.work().join("at").exists());
}

#[test]
fn options_for_environments_and_images_exclude_each_other() {
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    samples(&env);
    env.envfs(&["image", "pack", "-q", "source", "i"]).ok();
    env.sh("mkdir at").ok();
    let image = ["mount", "--image", "i", "-o", "ro"];
    for (words, said) in [
        (&["at", "path"][..], "for environments"),
        (&["--read-only", "at"], "for environments"),
        (&["--ephemeral", "at"], "for environments"),
        (&["--state", "s", "at"], "--state requires --upper"),
        (&["--offset", "0", "--image", "i", "at"], "exactly one"),
        (&["--fakeroot", "-o", "allow_other", "at"], "combined"),
    ] {
        env.envfs(&[&image[..], words].concat()).fails(2, &[said]);
    }
    assert!(mounts_below(env.root()).is_empty());
    assert!(!env.store().exists(), "a store was created");
}

#[test]
fn fakeroot_lets_an_ordinary_user_change_owners() {
    if let Some(env) = TestEnv::new().filter(|env| env.user().is_root()) {
        env.import_sample("e");
        env.envfs(&["mount", "--fakeroot", "e"])
            .fails(2, &["not for root", "omit it"]);
    }
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    env.import_sample("e");
    let prefix = env.prefix("e");
    let at = prefix.display();
    env.mount("e");
    env.sh(&format!("! chown 12:34 '{at}/lib' 2>/dev/null || exit 1"))
        .ok();
    env.envfs(&["unmount", "-q", "e"]).ok();
    env.envfs(&["mount", "--fakeroot", "e"]).ok();
    let script = format!("chown 12:34 '{at}/lib'; stat -c %u:%g '{at}/lib'");
    assert_eq!(env.sh(&script).ok().out, "12:34\n");
}

#[test]
fn a_revision_is_mounted_at_a_new_directory() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.work().join("new/dir");
        let done = env.envfs(&["mount", "e@1", word(&at)]).ok();
        assert_eq!(done.out, format!("{}\n", at.display()));
        let mut command = env.command("cat");
        command.arg(at.join("lib/c.txt"));
        assert_eq!(run(command).ok().out, "gamma\n");
        env.envfs(&["unmount", "-q", "e@1"]).ok();
        // Directories with other content are left alone.
        let full = env.work().join("full");
        env.write(&full.join("file"), "mine");
        env.envfs(&["mount", "--read-only", "e", word(&full)])
            .fails(4, &["full is not empty"]);
        assert_eq!(fs::read(full.join("file")).unwrap(), b"mine");
    }
}
