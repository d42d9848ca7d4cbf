//! `envfs remove`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;
use crate::shell::terminal::type_into;
use crate::support::{TestEnv, wait_for};

#[test]
fn remove_unmounts_and_removes_everything() {
    for (verb, is_mounted) in [("remove", true), ("rm", false), ("delete", true)] {
        let Some(env) = changed() else { return };
        let prefix = env.prefix("e");
        let exported = env.work().join("exported.sqfs");
        env.envfs(&["export", "-q", "e", exported.to_str().unwrap()])
            .ok();
        if !is_mounted {
            env.envfs(&["unmount", "-q", "e"]).ok();
        }
        let done = env.envfs(&[verb, "-y", "e"]).ok();
        assert_eq!((done.out.as_str(), done.err.as_str()), ("", "removed e\n"));
        assert!(!env.home_of("e").exists() && !prefix.exists());
        assert_eq!(env.count(&["list"]), 0);
        assert!(env.daemons().is_empty());
        // An exported image is a copy.
        env.envfs(&["image", "verify", "-q", exported.to_str().unwrap()])
            .ok();
        // The name can be used again.
        env.envfs(&["create", "-q", "e"]).ok();
    }
}

#[test]
fn remove_asks_first() {
    let Some(env) = changed() else { return };
    env.envfs(&["remove", "e"])
        .fails(2, &["remove e with 1 revision", "-y"]);
    let program = ["envfs", "remove", "e"];
    let question = r"Permanently remove e with 1 revision \(.*\)\? \[y/N\] ";
    for answer in ["n\n", "\n", "maybe\n"] {
        let done = type_into(&env, &program, &[(question, answer)]);
        assert_ne!(done.code, 0, "{done}");
        assert!(done.out.contains("nothing was changed"), "{done}");
        assert_eq!(fs::read(env.prefix("e").join("new")).unwrap(), b"12345");
    }
    type_into(&env, &program, &[(question, "y\n")]).ok();
    assert!(!env.home_of("e").exists());
}

#[test]
fn an_environment_in_use_is_not_removed() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let mut command = env.command("sleep");
        let mut user = command.arg("100").current_dir(&prefix).spawn().unwrap();
        let busy = env.envfs(&["remove", "-y", "e"]);
        user.kill().unwrap();
        user.wait().unwrap();
        busy.fails(5, &["sleep"]);
        assert!(prefix.join("bin/tool").exists() || !env.user().is_current());
        env.verify("e");
        env.envfs(&["unmount", "-q", "e"]).ok();

        let other = env.work().join("other");
        env.envfs(&["mount", "e@1", other.to_str().unwrap()]).ok();
        env.envfs(&["remove", "-y", "e"]).fails(
            5,
            &[
                "e is in use",
                "read-only session of e@1",
                "envfs unmount e@1",
            ],
        );
        env.verify("e");
        env.envfs(&["unmount", "-q", "e@1"]).ok();
        let notes = env.home_of("e").join("sessions");
        wait_for("the note of the session to be gone", || {
            fs::read_dir(&notes).is_ok_and(|mut notes| notes.next().is_none())
        });
        env.envfs(&["remove", "-q", "-y", "e"]).ok();
    }
}

#[test]
fn files_of_others_at_the_prefix_are_kept() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let mine = env.prefix("e").join("mine");
    env.write(&mine, "x");
    env.envfs(&["remove", "-y", "e"]).ok();
    assert_eq!(fs::read(mine).unwrap(), b"x");
    assert_eq!(env.count(&["list"]), 0);
}

#[test]
fn only_the_name_of_an_environment_is_accepted() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.envfs(&["remove", "-y", "e@1"]).fails(2, &["e@1"]);
    // Unlike other commands, it does not take the active environment.
    env.envfs_with("ENVFS_ENV", "e", &["remove", "-y"])
        .fails(2, &["NAME"]);
    env.verify("e");
}
