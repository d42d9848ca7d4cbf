//! `envfs create NAME -- CMD` where something goes wrong.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::support::{Run, TestEnv, finish, mounts_below, wait_for};

#[test]
fn what_create_cannot_do_is_refused() {
    let Some(env) = TestEnv::new() else { return };
    let words = ["create", "e", "--exclude", "*.pyc", "--", "true"];
    env.envfs(&words).fails(2, &["--exclude"]);
    assert!(!env.home_of("e").exists());
}

#[test]
fn what_may_be_wrong_with_a_prefix_is_said() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("first");
    let prefix = env.work().join("a prefix");
    let prefix = prefix.to_str().unwrap();
    let made = env.envfs(&["create", "e", "--prefix", prefix]).ok();
    assert!(made.err.contains("contains a space"), "{made}");
    env.envfs(&["remove", "-y", "e"]).ok();
    let source = source.to_str().unwrap();
    let made = env.envfs(&["import", source, "e", "--prefix", prefix]).ok();
    assert!(made.err.contains("contains a space"), "{made}");
}

#[test]
fn what_a_command_made_stays_if_only_the_commit_fails() {
    let Some(env) = TestEnv::new() else { return };
    let words = ["create", "e", "--", "sh", "-c", "echo x >{prefix}/x"];
    env.envfs_with("ENVFS_FAULT", "commit.written", &words)
        .fails(9, &["envfs commit e"]);
    env.envfs(&["commit", "e"]).ok();
    assert_eq!(fs::read(env.mount("e").join("x")).unwrap(), b"x\n");
    assert_eq!(env.count(&["log", "e"]), 2);
}

/// Creates an environment with a script that touches `began`, and presses Ctrl-C then.
fn interrupted(env: &TestEnv, script: &str) -> Run {
    let create = env.envfs_command(&["create", "e", "--", "sh", "-c", script]);
    // Whoever started the tests may have Ctrl-C ignored, as shells do for what is in the background.
    let mut command = env.command("env");
    command
        .arg("--default-signal=INT")
        .arg(create.get_program())
        .args(create.get_args())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command.spawn().unwrap();
    let group = Pid::from_raw(child.id().try_into().unwrap());
    let began = env.prefix("e").join("began");
    wait_for("the command", || began.exists());
    killpg(group, Signal::SIGINT).unwrap();
    finish(child, script.to_owned())
}

#[test]
fn ctrl_c_during_the_command_ends_it_and_the_environment_is_removed() {
    for (script, code) in [
        // As most end.
        ("touch {prefix}/began; exec sleep 60", 130),
        // In its own way, as installers do.
        (
            "trap 'exit 7' INT; touch {prefix}/began; while :; do sleep 0.1; done",
            1,
        ),
        // What it had started ends later than it does.
        (
            "sleep 1 >{prefix}/held & touch {prefix}/began; exec sleep 60",
            130,
        ),
    ] {
        let Some(env) = TestEnv::new() else { return };
        env.envfs(&["create", "first"]).ok();
        let before = env.store_listing();
        interrupted(&env, script).fails(code, &["--keep"]);
        assert_eq!(env.store_listing(), before, "{script}");
        assert_eq!(mounts_below(env.root()).len(), 0, "{script}");
    }
}

#[test]
fn a_command_that_outlives_ctrl_c_is_committed() {
    let Some(env) = TestEnv::new() else { return };
    let script = "trap : INT; touch {prefix}/began; sleep 1; echo x >{prefix}/x";
    interrupted(&env, script).ok();
    assert_eq!(env.count(&["log", "e"]), 2);
}
