//! `envfs ps`.

#![allow(clippy::unwrap_used)]

use std::fs;

use nix::sys::signal::{Signal, kill};

use super::other_hosts::{elsewhere, end_elsewhere};
use super::private::{hold_in, release, stores, wait_for_end};
use super::sessions::daemon_at;
use crate::support::{TestEnv, User, is_alive, run, wait_for};

#[test]
fn ps_shows_where_an_environment_is_in_use() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.import_sample("unused");
    let none = env.envfs(&["ps"]).ok();
    assert!(none.err.contains("no environment is in use"), "{none}");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "x".repeat(5000)).unwrap();
    let at = env.work().join("at");
    let word = at.to_str().unwrap();
    env.envfs(&["mount", "--ephemeral", "e@1", word]).ok();
    fs::write(at.join("new"), "x".repeat(7000)).unwrap();
    let mut inside = env
        .command("sleep")
        .arg("60")
        .current_dir(&at)
        .spawn()
        .unwrap();
    let there = elsewhere(&env, "envfs mount --read-only e \"$PWD/there\"");
    if let Some(command) = there {
        run(command).ok();
    }
    let rows = env.envfs(&["ps", "--json"]).ok().json();
    let rows = rows.as_array().unwrap();
    let of = |kind: &str| rows.iter().find(|row| row["kind"] == kind);
    let writable = of("writable").unwrap();
    assert_eq!(writable["mount_point"], prefix.to_str().unwrap());
    assert_eq!(writable["pid"], env.daemon("e").as_raw());
    assert!(
        writable["changed_bytes"].as_u64().unwrap() >= 5000,
        "{writable}"
    );
    let ephemeral = of("ephemeral").unwrap();
    assert_eq!(ephemeral["revision"], 1);
    assert_eq!(ephemeral["pid"], daemon_at(&env, &at).as_raw());
    assert_eq!(ephemeral["changed_bytes"], 7000);
    let users = ephemeral["processes"].as_array().unwrap();
    assert_eq!(users.len(), 1, "{ephemeral}");
    assert_eq!(users[0]["pid"], inside.id());
    if User::current().is_root() {
        let there = of("read-only").unwrap();
        assert_eq!(there["host"], "elsewhere");
        assert_eq!(rows.len(), 3);
    }
    let shown = env.envfs(&["ps", "e"]).ok().out;
    for words in ["e@1", "ephemeral", "6.84 KiB", word, "sleep (pid"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    inside.kill().unwrap();
    inside.wait().unwrap();
    let daemon = daemon_at(&env, &at);
    kill(daemon, Signal::SIGKILL).unwrap();
    wait_for("the end of the daemon", || !is_alive(daemon));
    let shown = env.envfs(&["ps", "e"]).ok().out;
    assert!(shown.contains("ephemeral, dead"), "{shown}");
    env.envfs(&["unmount", word]).ok();
    let shown = env.envfs(&["ps", "e"]).ok().out;
    assert!(!shown.contains("ephemeral"), "{shown}");
    end_elsewhere(&env);
}

#[test]
fn ps_shows_the_processes_in_private_sessions() {
    for env in stores() {
        for words in [
            &["run", "--private", "--read-only", "e"][..],
            &["run", "--private", "--ephemeral", "e"],
            &["run", "--private", "e"],
        ] {
            let held = hold_in(&env, words, &[]);
            let rows = env.envfs(&["ps", "--json", "e"]).ok().json();
            assert_eq!(rows.as_array().unwrap().len(), 1, "{words:?}: {rows}");
            let inside = rows[0]["processes"].as_array().unwrap();
            let shell = inside.iter().find(|one| one["pid"] == held.id());
            let shell = shell.unwrap_or_else(|| panic!("{words:?}: {rows}"));
            assert_eq!(
                (&shell["command"], &shell["use"]),
                (&"sh".into(), &"namespace".into())
            );
            release(held);
            wait_for("the end of the daemon", || env.daemons().is_empty());
            wait_for_end(&env);
        }
    }
}
