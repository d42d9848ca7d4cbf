//! Configured limits of sessions: the space of their changes in memory, their caches, their polls.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::private::{hold_in, is_possible, release, supervisors};
use super::sessions::{daemon_at, names};
use crate::support::{TestEnv, skip_allowed};

const MEMORY: &str = "/dev/shm";

fn configure(env: &TestEnv, text: &str) {
    env.write(&env.store().join("config.toml"), text);
}

/// Returns the only session that `ps` lists.
fn session(env: &TestEnv) -> Value {
    let shown = env.envfs(&["ps", "--json", "e"]).ok().json();
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
    shown[0].clone()
}

/// Returns stores with an environment `e` whose changes in memory are limited.
fn limited() -> Vec<TestEnv> {
    if !Path::new(MEMORY).is_dir() {
        skip_allowed("no /dev/shm");
        return Vec::new();
    }
    let stores = TestEnv::of_all_users();
    for env in &stores {
        env.import_sample("e");
        configure(env, "[session]\nmemory_limit = '8M'\n");
    }
    stores
}

const TOO_MUCH: &str = "LC_ALL=C dd if=/dev/zero of=big bs=1M count=20 conv=fsync";

#[test]
fn changes_in_memory_are_limited_and_the_limit_is_shown() {
    for env in limited() {
        let at = env.work().join("at");
        let path = at.to_str().unwrap();
        let mount = ["mount", "--ephemeral", "e", path, "--upper-dir", MEMORY];
        env.envfs(&mount).ok();
        let inside = |script: &str| env.sh(&format!("cd '{path}'; {script}"));
        let before = session(&env);
        assert_eq!(before["limit_bytes"], 8 << 20, "{before}");
        assert!(before["is_full"].is_null(), "{before}");
        let full = inside(TOO_MUCH);
        assert!(full.err.contains("No space left on device"), "{full}");
        let blocks: u64 = inside("stat -c %b big").ok().line().parse().unwrap();
        assert!(blocks * 512 <= 8 << 20, "{blocks}");
        assert_eq!(session(&env)["is_full"], true);
        let shown = env.envfs(&["ps", "e"]).ok();
        assert!(shown.out.contains(" of 8.00 MiB"), "{shown}");
        assert!(shown.out.contains("session.memory_limit"), "{shown}");
        let df = inside("df --block-size=1 --output=size,avail . | tail -n 1").ok();
        let numbers: Vec<u64> = df
            .out
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        assert_eq!(numbers[0], 8 << 20, "{df}");
        assert!(numbers[1] < 1 << 20, "{df}");
        let logs = names(Path::new(MEMORY)).into_iter();
        let logs = logs.filter_map(|dir| fs::read_to_string(dir.join("daemon.log")).ok());
        assert!(
            logs.into_iter()
                .any(|text| text.contains("session.memory_limit"))
        );
        // What is removed can be used again, for what the image has as well.
        inside("rm big; dd if=/dev/zero of=big bs=1M count=4 conv=fsync; echo x >>lib/c.txt").ok();
        assert!(session(&env)["is_full"].is_null());
        let many = inside("i=0; while : >f$i; do i=$((i + 1)); done");
        assert!(many.err.contains("No space left on device"), "{many}");
        env.envfs(&["unmount", path]).ok();
    }
}

#[test]
fn changes_of_a_private_session_are_limited() {
    for env in limited() {
        if !is_possible(&env) {
            continue;
        }
        let script = format!("cd \"$ENVFS_PREFIX\"; {TOO_MUCH}");
        let words = ["run", "--private", "--ephemeral", "--upper-dir", MEMORY];
        let run = env.envfs(&[&words[..], &["e", "sh", "-c", &script]].concat());
        assert!(run.err.contains("No space left on device"), "{run}");
    }
}

#[test]
fn the_default_limit_is_half_of_what_is_free_and_only_in_memory() {
    for env in limited() {
        configure(&env, "");
        let at = env.work().join("at");
        let mount = |dir: &Path| {
            let dir = dir.to_str().unwrap();
            let words = ["mount", "--ephemeral", "e", at.to_str().unwrap()];
            env.envfs(&[&words[..], &["--upper-dir", dir]].concat())
                .ok();
            let limit = session(&env)["limit_bytes"].clone();
            env.envfs(&["unmount", "e@1"]).ok();
            limit
        };
        let all = nix::sys::statvfs::statvfs(MEMORY).unwrap();
        let half = all.blocks() * all.fragment_size() / 2;
        let limit = mount(Path::new(MEMORY)).as_u64().unwrap();
        assert!((1 << 20..=half).contains(&limit), "{limit} {half}");
        let is_memory = nix::sys::statfs::statfs(&env.work()).unwrap();
        if is_memory.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC {
            assert_eq!(mount(&env.work()), Value::Null);
        }
    }
}

/// Returns what the daemon of a session was told.
fn told(pid: nix::unistd::Pid) -> Value {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let mut words = line.split(|&byte| byte == 0);
    let spec = words.find_map(|word| {
        let value: Value = serde_json::from_slice(word).ok()?;
        value.get("session").is_some().then_some(value)
    });
    spec.unwrap()["session"].clone()
}

#[test]
fn sessions_of_all_kinds_get_the_configured_caches_and_polls() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let text = "[cache]\ndata_mib = 3\nmetadata_mib = 5\n[daemon]\npoll = 77\n";
        configure(&env, text);
        let check = |pid| {
            let told = told(pid);
            assert_eq!(told["cache"], json!({"data_mib": 3, "metadata_mib": 5}));
            assert_eq!(told["poll"], 77);
        };
        for kind in ["--read-only", "--ephemeral"] {
            let at = env.work().join(kind);
            env.envfs(&["mount", kind, "e", at.to_str().unwrap()]).ok();
            check(daemon_at(&env, &at));
        }
        env.envfs(&["unmount", "e@1"]).ok();
        if !is_possible(&env) {
            continue;
        }
        for kind in ["--read-only", "--ephemeral"] {
            let held = hold_in(&env, &["run", "--private", kind, "e"], &[]);
            check(supervisors(&env)[0]);
            release(held);
            super::private::wait_for_end(&env);
        }
    }
}
