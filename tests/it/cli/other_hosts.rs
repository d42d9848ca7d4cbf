//! Environments that are in use on another host.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::sessions::{daemon_at, names};
use crate::support::{TestEnv, User, has, is_alive, run, skip_allowed, wait_for};

/// The beginning of the script of a host in a mount namespace of its own. Another host has no
/// mounts of this one, and copies would keep the daemons of other tests running.
pub(super) const WITHOUT_MOUNTS: &str = "\
    awk '/ - fuse.envfs / { print $5 }' /proc/self/mountinfo | xargs -r -n1 umount -l || :; ";

/// Returns a command that runs a script as on another host: with another name and boot, and mounts
/// and sockets of its own. Its prefix is `ELSEWHERE`.
pub(super) fn elsewhere(env: &TestEnv, script: &str) -> Option<Command> {
    if !User::current().is_root() {
        skip_allowed("another host name needs root");
        return None;
    }
    if !has("unshare") {
        return None;
    }
    let boot = env.work().join("boot");
    fs::write(&boot, "another\n").unwrap();
    let run = env.work().join("elsewhere-run");
    fs::create_dir_all(&run).unwrap();
    fs::set_permissions(&run, PermissionsExt::from_mode(0o700)).unwrap();
    let setup = format!(
        "{WITHOUT_MOUNTS}hostname elsewhere; mount --bind '{}' /proc/sys/kernel/random/boot_id; {script}",
        boot.display()
    );
    let mut command = env.command("unshare");
    command
        .args(["--uts", "--mount", "sh", "-ec", &setup])
        .env("XDG_RUNTIME_DIR", &run);
    Some(command)
}

/// Ends the daemons of this store that run elsewhere.
pub(super) fn end_elsewhere(env: &TestEnv) {
    let notes = fs::read_dir(env.work().join("elsewhere-run/envfs/sessions"));
    let sessions = notes.into_iter().flatten().flatten().map(|entry| {
        let note: serde_json::Value =
            serde_json::from_slice(&fs::read(entry.path()).unwrap()).unwrap();
        Pid::from_raw(i32::try_from(note["pid"].as_i64().unwrap()).unwrap())
    });
    for pid in sessions.chain(env.daemons()) {
        kill(pid, Signal::SIGKILL).ok();
        wait_for("the end of a daemon", || !is_alive(pid));
    }
}

#[test]
fn gc_keeps_what_sessions_on_this_and_other_hosts_use() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    for number in 2..=6 {
        fs::write(prefix.join("number"), number.to_string()).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
    }
    let at = env.work().join("at");
    let mount = "envfs mount e@1 \"$PWD/there\"";
    let Some(command) = elsewhere(&env, mount) else {
        return;
    };
    run(command).ok();
    env.envfs(&["mount", "--ephemeral", "e@2", at.to_str().unwrap()])
        .ok();
    let revisions = || {
        let rows = env.envfs(&["log", "--json", "e"]).ok().json();
        let rows = rows.as_array().unwrap().iter();
        let mut numbers: Vec<i64> = rows.map(|row| row["revision"].as_i64().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    // All were current within the last day.
    env.envfs(&["gc", "--keep", "1", "--keep-for", "1d", "e"])
        .ok();
    assert_eq!(revisions(), [1, 2, 3, 4, 5, 6]);
    let done = env.envfs(&["gc", "--keep", "1", "e"]).ok();
    for words in [
        "kept revision 1",
        "on elsewhere",
        "kept revision 2",
        "ephemeral session",
    ] {
        assert!(done.err.contains(words), "{words}: {done}");
    }
    assert_eq!(revisions(), [1, 2, 6]);
    env.envfs(&["remove", "-y", "e"])
        .fails(5, &["in use", "on elsewhere", "envfs unmount e@1"]);
    // The daemon of the writable mount would be taken for one elsewhere.
    env.envfs(&["unmount", "e"]).ok();
    // A session that was killed here is known to have ended; one elsewhere after some time.
    let daemon = daemon_at(&env, &at);
    kill(daemon, Signal::SIGKILL).unwrap();
    wait_for("the end of the daemon", || !is_alive(daemon));
    env.envfs(&["gc", "--keep", "1", "e"]).ok();
    assert_eq!(revisions(), [1, 6]);
    end_elsewhere(&env);
    env.envfs(&["gc", "--keep", "1", "e"]).ok();
    assert_eq!(revisions(), [1, 6]);
    for note in names(&env.home_of("e").join("sessions")) {
        let file = fs::File::options().write(true).open(note).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600))
            .unwrap();
    }
    env.envfs(&["gc", "--keep", "1", "e"]).ok();
    assert_eq!(revisions(), [6]);
    assert_eq!(
        names(&env.home_of("e").join("sessions")),
        Vec::<PathBuf>::new()
    );
    env.verify("e");
    env.envfs(&["unmount", at.to_str().unwrap()]).ok();
}

#[test]
fn in_use_on_another_host_names_what_works_now() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let script = "envfs mount e; echo uncommitted >\"$ENVFS_HOME/envs/e/new\"";
    let Some(command) = elsewhere(&env, script) else {
        return;
    };
    run(command).ok();
    let ways = [
        "in use for writing",
        "on elsewhere",
        "--read-only",
        "--ephemeral",
    ];
    env.envfs(&["mount", "e"]).fails(5, &ways);
    env.envfs(&["activate", "--shell", "bash", "e"])
        .fails(5, &ways);
    env.envfs(&["run", "e", "tool"]).fails(125, &ways);
    for kind in ["--read-only", "--ephemeral"] {
        let script = "tool; ! ls \"$ENVFS_PREFIX/new\" 2>&-";
        assert_eq!(
            env.envfs(&["run", kind, "e", "sh", "-c", script]).ok().out,
            "tool\n"
        );
        env.envfs(&["-q", "unmount", "e"]).ok();
    }
    fs::write(
        env.store().join("config.toml"),
        "session.when_busy = 'read-only'\n",
    )
    .unwrap();
    let done = env.envfs(&["run", "e", "tool"]).ok();
    assert!(
        done.out == "tool\n" && done.err.contains("held by process"),
        "{done}"
    );
    let activated = env.envfs(&["activate", "--shell", "bash", "e"]).ok();
    assert!(activated.out.contains("ENVFS_PREFIX"), "{activated}");
    env.envfs(&["unmount", "e"]).ok();
    end_elsewhere(&env);
    env.envfs(&[
        "run",
        "e",
        "cat",
        env.prefix("e").join("new").to_str().unwrap(),
    ])
    .ok();
}
