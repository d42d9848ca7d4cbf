//! The files of `examples/` for system administrators.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{TestEnv, find, has, mounts_below, run, skip_allowed, wait_for};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

/// Returns a unit with the program and the store of a test.
fn unit(env: &TestEnv, name: &str) -> String {
    let text = fs::read_to_string(example("systemd").join(name)).unwrap();
    text.replace("/usr/bin/envfs", env.program().to_str().unwrap())
        .replace("/srv/envfs", env.store().to_str().unwrap())
}

/// Returns the command of a unit as systemd would run it for the environment `e`.
fn command(unit: &str, key: &str) -> String {
    let line = unit.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().replace("%i", "e")
}

#[test]
fn units_are_valid() {
    let Some(env) = TestEnv::new() else { return };
    if find("systemd-analyze").is_none() {
        return skip_allowed("no systemd-analyze");
    }
    env.import_sample("e");
    for (name, at, options) in [
        ("envfs@.service", "envfs@e.service", &["verify"][..]),
        (
            "envfs-user@.service",
            "envfs-user@e.service",
            &["--user", "verify"],
        ),
    ] {
        let path = env.work().join(at);
        // The manual page need not be installed.
        let text = unit(&env, name).replace("Documentation=man:envfs(1)\n", "");
        env.write(&path, text);
        let mut analyze = env.command("systemd-analyze");
        analyze.args(options).arg(&path);
        let done = run(analyze);
        if done.err.contains("Failed to connect") || done.err.contains("Failed to initialize") {
            return skip_allowed(&format!("systemd-analyze cannot run here: {}", done.err));
        }
        let done = done.ok();
        let own: Vec<&str> = done
            .err
            .lines()
            .filter(|line| line.contains("envfs"))
            .collect();
        assert!(own.is_empty(), "{done}");
    }
}

#[test]
fn commands_of_units_mount_and_unmount() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let name = match env.user().is_root() {
            true => "envfs@.service",
            false => "envfs-user@.service",
        };
        let unit = unit(&env, name);
        env.sh(&command(&unit, "ExecStart=")).ok();
        let prefix = env.prefix("e");
        assert_eq!(mounts_below(&prefix).len(), 1);
        env.sh(&format!("cat '{}/lib/c.txt'", prefix.display()))
            .ok();
        env.sh(&command(&unit, "ExecStop=")).ok();
        wait_for("the end of the mount", || mounts_below(&prefix).is_empty());
    }
}

#[test]
fn the_prolog_mounts_and_never_fails() {
    let Some(env) = TestEnv::new() else { return };
    if !has("sh") {
        return;
    }
    env.import_sample("e");
    let prolog = |names: &str| {
        let mut prolog = env.command(example("slurm/prolog.sh"));
        prolog
            .env("ENVFS", env.program())
            .env("ENVIRONMENTS", names)
            .env("SLURM_JOB_ID", "7");
        run(prolog).ok()
    };
    for _ in 0..2 {
        prolog("absent e");
        assert_eq!(mounts_below(&env.prefix("e")).len(), 1);
    }
    env.envfs(&["unmount", "e"]).ok();
}
