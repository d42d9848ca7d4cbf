//! Failures of `envfs create NAME -- CMD`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::support::{Run, TestEnv, finish, mounts_below, wait_for};

#[test]
fn create_rejects_exclude_with_a_command() {
    let Some(env) = TestEnv::new() else { return };
    let words = ["create", "e", "--exclude", "*.pyc", "--", "true"];
    env.envfs(&words).fails(2, &["--exclude"]);
    assert!(!env.home_of("e").exists());
}

#[test]
fn create_and_import_warn_about_spaces_in_the_prefix() {
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
fn failed_commit_after_create_keeps_the_installed_files() {
    let Some(env) = TestEnv::new() else { return };
    let words = ["create", "e", "--", "sh", "-c", "echo x >{prefix}/x"];
    env.envfs_with("ENVFS_FAULT", "commit.written", &words)
        .fails(9, &["envfs commit e"]);
    env.envfs(&["commit", "e"]).ok();
    assert_eq!(fs::read(env.mount("e").join("x")).unwrap(), b"x\n");
    assert_eq!(env.count(&["log", "e"]), 2);
}

/// Creates an environment with a script and sends Ctrl-C once the script has created `began`.
fn interrupted(env: &TestEnv, script: &str) -> Run {
    let create = env.envfs_command(&["create", "e", "--", "sh", "-c", script]);
    // A shell that runs the tests in the background may have set SIGINT to be ignored.
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
fn ctrl_c_during_create_removes_the_environment() {
    for (script, code) in [
        // Killed by the signal, as most programs.
        ("touch {prefix}/began; exec sleep 60", 130),
        // Handles the signal and fails, as installers do.
        (
            "trap 'exit 7' INT; touch {prefix}/began; while :; do sleep 0.1; done",
            1,
        ),
        // Leaves a child that holds a file of the mount a little longer.
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
fn create_commits_if_the_command_handles_ctrl_c() {
    let Some(env) = TestEnv::new() else { return };
    let script = "trap 'touch {prefix}/interrupted' INT; touch {prefix}/began
                  while [ ! -e {prefix}/interrupted ]; do sleep 0.1; done; echo x >{prefix}/x";
    interrupted(&env, script).ok();
    assert_eq!(env.count(&["log", "e"]), 2);
}
