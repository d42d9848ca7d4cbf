//! The units and hooks in `examples/`, run as they are.

use std::path::PathBuf;

use crate::support::{TestEnv, has, skip};

fn example(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(example(path)).unwrap()
}

fn messages(env: &TestEnv, name: &str) -> Vec<String> {
    let log = env.envfs(&["log", name, "--json"]).ok().json();
    let log = log.as_array().unwrap().iter();
    log.map(|one| one["message"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_units_are_valid() {
    if !has("systemd-analyze") {
        return skip("systemd-analyze is not installed");
    }
    let Some(env) = TestEnv::new() else { return };
    let units = ["systemd/envfs-commit.service", "systemd/envfs-commit.timer"];
    let mut command = env.command("systemd-analyze");
    command.arg("verify").args(units.map(example));
    let done = crate::support::run(command).ok();
    assert_eq!(done.err, "", "{done}");
}

#[test]
fn the_service_commits_each_environment_with_enough_changes() {
    for env in TestEnv::of_all_users() {
        let service = text("systemd/envfs-commit.service");
        let line = service
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        for name in ["many", "few"] {
            env.import_sample(name);
            env.mount(name);
        }
        env.sh(&format!(
            "cd '{}' && for n in 1 2 3 4 5 6 7 8 9 10; do echo $n >new-$n; done; echo x >'{}/x'",
            env.prefix("many").display(),
            env.prefix("few").display()
        ))
        .ok();
        let done = env.sh(line.unwrap()).ok();
        assert!(done.err.contains("few: not committed"), "{done}");
        assert_eq!(messages(&env, "many")[0], "by the timer");
        assert_eq!(messages(&env, "few").len(), 1);
    }
}

#[test]
fn the_hooks_commit_what_was_synced_or_installed() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let (hook, at) = (example("hooks/postsync.sh"), prefix.display());
    let sync = |path: &str| {
        let hook = hook.display();
        env.sh(&format!("sh '{hook}' gentoo rsync://example.org '{path}'"))
            .ok()
    };
    env.sh(&format!("echo ebuild >'{at}/ebuild'")).ok();
    sync(&at.to_string());
    assert_eq!(
        messages(&env, "e")[0],
        "sync of gentoo from rsync://example.org"
    );
    sync(env.work().to_str().unwrap());
    assert_eq!(messages(&env, "e").len(), 2);
    let wrapper = example("hooks/commit-after-install.sh");
    let install = |words: &str| {
        env.sh(&format!(
            "mkdir -p bin && printf '#!/bin/sh\\necho \"$2\" >>\"{at}/installed\"; test \"$2\" != bad\\n' >bin/pip \
             && chmod +x bin/pip && PATH=$PWD/bin:$PATH && export PATH ENVFS_ENV=e \
             && . '{}' && pip {words}",
            wrapper.display()
        ))
    };
    install("install polars").ok();
    assert_eq!(messages(&env, "e")[0], "pip install polars");
    install("list").ok();
    install("install bad").fails(1, &[]);
    assert_eq!(messages(&env, "e").len(), 3);
}
