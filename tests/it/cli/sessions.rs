//! Sessions: revisions mounted read-only, or with changes that are dropped.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Gate, TestEnv, User, finish, is_alive, mounts_below, skip_allowed, tree, wait_for,
};

/// Returns the daemon of a session from the notes of the user's sessions on this host.
pub(super) fn daemon_at(env: &TestEnv, path: &Path) -> Pid {
    let notes = fs::read_dir(env.root().join("run/envfs/sessions")).unwrap();
    let notes = notes.flatten().filter_map(|entry| {
        let note: serde_json::Value = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
        (note["mount_point"] == path.to_str().unwrap()).then_some(note)
    });
    let pids: Vec<i64> = notes.map(|note| note["pid"].as_i64().unwrap()).collect();
    assert_eq!(pids.len(), 1, "{pids:?}");
    Pid::from_raw(i32::try_from(pids[0]).unwrap())
}

/// Returns type, mode, size and times of everything below a directory.
fn state_of(dir: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64)> {
    let entries = walkdir::WalkDir::new(dir).into_iter().flatten();
    entries
        .map(|entry| {
            let meta = entry.path().symlink_metadata().unwrap();
            let state = (meta.mode(), meta.size(), meta.ctime(), meta.ctime_nsec());
            (entry.into_path(), state)
        })
        .collect()
}

pub(super) fn names(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

#[test]
fn a_revision_is_mounted_beside_the_writable_mount() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        env.sh(&format!("echo two >'{}/new'", prefix.display()))
            .ok();
        env.envfs(&["commit", "-q", "e"]).ok();
        env.envfs(&["tag", "e", "second"]).ok();
        env.sh(&format!("echo three >'{}/new'", prefix.display()))
            .ok();
        let at = |name: &str| env.work().join("at").join(name);
        for (word, path, content) in [
            ("e@1", "one", None),
            ("e@second", "two", Some("two\n")),
            ("e", "current", Some("two\n")),
        ] {
            let path = at(path);
            let mount = ["mount", "--read-only", word, path.to_str().unwrap()];
            let shown = env.envfs(&mount).ok();
            assert_eq!(Path::new(shown.line()), path);
            // The same session again.
            env.envfs(&mount).ok();
            assert_eq!(mounts_below(&path).len(), 1);
            let script = format!(
                "cat '{0}/new' 2>&- || :; ! touch '{0}/x' 2>&- || exit 9",
                path.display()
            );
            assert_eq!(env.sh(&script).ok().out, content.unwrap_or(""), "{word}");
        }
        env.envfs(&["mount", "e@1", at("two").to_str().unwrap()])
            .fails(4, &["read-only session of e@2 is mounted", "envfs unmount"]);
        env.envfs(&["mount", "--read-only", "e"])
            .fails(4, &["e is mounted writable", "envfs unmount e", "e@2 PATH"]);
        env.envfs(&["mount", "e", at("x").to_str().unwrap()])
            .fails(2, &["--read-only", "--ephemeral"]);
        for (word, kind) in [("e@9", 3), ("e@none", 3), ("e@", 2), ("absent@1", 3)] {
            env.envfs(&["mount", word, at("x").to_str().unwrap()])
                .fails(kind, &[]);
        }
        // Neither the writable mount nor its daemon is affected.
        assert_eq!(
            env.sh(&format!("cat '{}/new'", prefix.display())).ok().out,
            "three\n"
        );
        env.envfs(&["unmount", at("one").to_str().unwrap()]).ok();
        assert!(mounts_below(&at("one")).is_empty());
        env.envfs(&["unmount", "e@second"]).ok();
        assert!(mounts_below(&env.work()).is_empty());
        env.envfs(&["unmount", "e"]).ok();
        assert!(names(&env.root().join("run/envfs/sessions")).is_empty());
        assert!(names(&env.home_of("e").join("sessions")).is_empty());
        env.verify("e");
    }
}

#[test]
fn a_session_at_the_prefix_is_not_the_writable_mount() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "uncommitted").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["mount", "--read-only", "e"]).ok();
    assert!(prefix.join("lib/c.txt").exists() && !prefix.join("new").exists());
    env.envfs(&["mount", "e"])
        .fails(4, &["read-only session of e@1", "envfs unmount"]);
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    assert!(status["daemon_pid"].is_null(), "{status}");
    let listed = env.envfs(&["list", "--json"]).ok().json();
    assert_eq!(listed[0]["state"], "read-only", "{listed}");
    env.envfs(&["commit", "-q", "e"]).ok();
    assert!(
        !prefix.join("new").exists(),
        "the session keeps its revision"
    );
    env.envfs(&["unmount", "e"]).ok();
    env.mount("e");
    assert_eq!(fs::read(prefix.join("new")).unwrap(), b"uncommitted");
}

#[test]
fn changes_of_an_ephemeral_session_are_dropped_at_its_end() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        env.envfs(&["unmount", "e"]).ok();
        let before = env.store_listing();
        let (at, upper) = (env.work().join("at"), env.work().join("upper"));
        fs::create_dir(&upper).unwrap();
        env.user().give(&upper);
        let words = [at.to_str().unwrap(), upper.to_str().unwrap()];
        let mount = [
            "mount",
            "--ephemeral",
            "e",
            words[0],
            "--upper-dir",
            words[1],
        ];
        for end in ["unmount", "kill"] {
            env.envfs(&mount).ok();
            env.sh(&format!(
                "cd '{}'; echo x >new; rm lib/c.txt; mv lib l",
                words[0]
            ))
            .ok();
            assert_eq!(names(&upper).len(), 1);
            let daemon = daemon_at(&env, &at);
            match end {
                "unmount" => drop(env.envfs(&["unmount", words[0]]).ok()),
                _ => kill(daemon, Signal::SIGKILL).unwrap(),
            }
            wait_for("the end of the daemon", || !is_alive(daemon));
            if end == "kill" {
                // The next session removes what is left.
                let done = env.envfs(&mount).ok();
                assert!(done.err.contains("whose daemon was killed"), "{done}");
                assert_eq!(names(&upper).len(), 1);
                assert_eq!(
                    env.sh(&format!("cat '{}/lib/c.txt'", words[0])).ok().out,
                    "gamma\n"
                );
                env.envfs(&["unmount", words[0]]).ok();
            }
            assert_eq!(names(&upper), Vec::<PathBuf>::new(), "{end}");
        }
        let after = env.store_listing();
        let after: Vec<_> = after
            .into_iter()
            .filter(|name| !name.ends_with("/sessions"))
            .collect();
        assert_eq!(after, before);
        env.envfs(&["mount", "--ephemeral", "e", words[0]]).ok();
        env.sh(&format!("echo x >'{}/new'", words[0])).ok();
        env.envfs(&["unmount", words[0]]).ok();
    }
}

#[test]
fn another_users_store_is_used_without_a_write_while_its_owner_works() {
    let (Some(owner), Some(reader)) = (TestEnv::new(), TestEnv::as_tester()) else {
        return;
    };
    owner.import_sample("e");
    owner.import_sample("idle");
    let prefix = owner.mount("e");
    fs::write(prefix.join("new"), "uncommitted").unwrap();
    let publish = format!(
        "chmod -R a+rX '{0}' || :; chmod a+rx '{0}/..'",
        owner.store().display()
    );
    owner.sh(&publish).ok();
    let store = owner.store().to_str().unwrap();
    let at = |name: &str| reader.work().join(name);
    for name in ["e", "idle"] {
        let before = state_of(&owner.home_of(name));
        for kind in ["--read-only", "--ephemeral"] {
            let path = at(&format!("{name}{kind}"));
            let path = path.to_str().unwrap();
            reader
                .envfs(&["--home", store, "mount", kind, name, path])
                .ok();
            let done = reader
                .sh(&format!(
                    "'{path}/bin/tool'; ! ls '{path}/new' 2>&- || exit 9"
                ))
                .ok();
            assert_eq!(done.out, "tool\n");
            if kind == "--ephemeral" {
                reader
                    .sh(&format!("echo mine >'{path}/new'; rm '{path}/lib/c.txt'"))
                    .ok();
            }
        }
        assert_eq!(before, state_of(&owner.home_of(name)));
    }
    // The prefix is not the reader's.
    reader
        .envfs(&["--home", store, "mount", "--read-only", "idle"])
        .fails(1, &["envfs mount --read-only NAME PATH"]);
    owner.envfs(&["commit", "-q", "e"]).ok();
    let path = at("e--read-only");
    assert!(
        !reader
            .sh(&format!("ls '{}'", path.display()))
            .ok()
            .out
            .contains("new")
    );
    // Writing is refused, and a store that a third user can change is not used.
    reader
        .envfs(&["--home", store, "mount", "e"])
        .fails(4, &["belongs to root"]);
    fs::set_permissions(owner.store(), PermissionsExt::from_mode(0o777)).unwrap();
    reader
        .envfs(&[
            "--home",
            store,
            "mount",
            "--read-only",
            "e",
            at("x").to_str().unwrap(),
        ])
        .fails(4, &["any user can replace"]);
    for name in [
        "e--read-only",
        "e--ephemeral",
        "idle--read-only",
        "idle--ephemeral",
    ] {
        reader.envfs(&["unmount", at(name).to_str().unwrap()]).ok();
    }
}

#[test]
fn run_and_activate_use_revisions() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        env.sh(&format!("echo two >'{}/new'", prefix.display()))
            .ok();
        env.envfs(&["commit", "-q", "e"]).ok();
        // The writable mount is in the way.
        env.envfs(&["run", "e@1", "tool"])
            .fails(125, &["mounted writable"]);
        env.envfs(&["unmount", "e"]).ok();
        let script = "tool; echo $ENVFS_REV; ls \"$ENVFS_PREFIX/new\" 2>&- || :";
        let done = env.envfs(&["run", "e@1", "sh", "-c", script]).ok();
        assert_eq!(done.out, "tool\n1\n");
        env.envfs(&["run", "e", "tool"])
            .fails(125, &["read-only session of e@1"]);
        env.envfs(&["run", "-e", "A=1", "--read-only", "e", "tool"])
            .fails(125, &["e@1 is mounted"]);
        env.envfs(&["unmount", "e"]).ok();
        // An ephemeral session ends with its command.
        let script = "cd /; echo x >\"$ENVFS_PREFIX/new\"; cat \"$ENVFS_PREFIX/new\"";
        assert_eq!(
            env.envfs(&["run", "--ephemeral", "e", "sh", "-c", script])
                .ok()
                .out,
            "x\n"
        );
        wait_for("the end of the session", || {
            mounts_below(&prefix).is_empty()
        });
        let script = "eval \"$(envfs activate --shell posix --ephemeral e@1)\"; tool; \
                      echo x >\"$ENVFS_PREFIX/new\"; eval \"$(envfs reactivate --shell posix)\"; \
                      cat \"$ENVFS_PREFIX/new\"; echo $ENVFS_REV; envfs unmount e";
        assert_eq!(env.sh(script).ok().out, "tool\nx\n1\n");
        env.mount("e");
        assert_eq!(
            env.sh(&format!("cat '{}/new'", prefix.display())).ok().out,
            "two\n"
        );
    }
}

#[test]
fn a_command_waits_for_an_ephemeral_session_that_is_ending() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        for _ in 0..5 {
            // Each begins while the session of the one before may still be mounted.
            env.envfs(&["run", "--ephemeral", "e", "tool"]).ok();
            env.envfs(&["run", "--ephemeral", "e@1", "tool"]).ok();
            env.envfs(&["run", "--read-only", "e", "tool"]).ok();
            env.envfs(&["unmount", "e"]).ok();
            env.envfs(&["run", "--ephemeral", "e", "tool"]).ok();
            env.envfs(&["unmount", "e"]).ok();
            assert!(mounts_below(env.root()).is_empty());
            env.envfs(&["run", "--ephemeral", "e", "tool"]).ok();
            env.envfs(&["run", "e", "tool"]).ok();
            env.envfs(&["unmount", "e"]).ok();
        }
    }
}

#[test]
fn a_session_ends_even_if_its_command_ends_first() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let gate = Gate::new(&env);
    let command = env.envfs_command(&["run", "--ephemeral", "e", "tool"]);
    let running = gate.start(command, "pause.session.started");
    let done = finish(running, "run".to_owned()).ok();
    assert_eq!(done.out, "tool\n");
    gate.open("pause.session.started");
    wait_for("the end of the session", || {
        mounts_below(env.root()).is_empty()
    });
}

#[test]
fn an_idle_mount_is_unmounted_but_not_under_a_process_or_a_shell() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    fs::write(env.store().join("config.toml"), "session.idle = '1s'\n").unwrap();
    let prefix = env.prefix("e");
    let at = env.work().join("at");
    let word = at.to_str().unwrap();
    let ended = || mounts_below(env.root()).is_empty();
    // Nothing uses them.
    env.mount("e");
    fs::write(prefix.join("new"), "kept").unwrap();
    env.envfs(&["mount", "--ephemeral", "e", word]).ok();
    wait_for("the end of both", ended);
    wait_for("the end of the daemon", || env.daemons().is_empty());
    assert_eq!(
        names(&env.root().join("run/envfs/sessions")),
        Vec::<PathBuf>::new()
    );
    // A process with its directory inside, one that was started in the environment, and a shell in
    // which it is active: none of them sends a request.
    let wait = "read end || exit 0";
    let activated = format!("eval \"$(envfs activate --shell posix e)\"; echo ready; {wait}");
    let inside = format!("cd '{word}'; echo ready; {wait}");
    for (mount, program, script) in [
        (
            &["mount", "--read-only", "e", word][..],
            "sh",
            inside.as_str(),
        ),
        (&["mount", "e"], "sh", &activated),
        (&["mount", "e"], "envfs", "echo ready; read end || exit 0"),
    ] {
        env.envfs(mount).ok();
        let mut command = match program {
            "envfs" => env.envfs_command(&["run", "e", "sh", "-c", script]),
            _ => env.command("sh"),
        };
        if program == "sh" {
            command.args(["-ec", script]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{script}");
        // Several times the limit; a slow machine only makes the wait longer.
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(mounts_below(env.root()).len(), 1, "{script}");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        wait_for("the end of the mount", ended);
    }
    fs::remove_file(env.store().join("config.toml")).unwrap();
    env.mount("e");
    assert_eq!(fs::read(prefix.join("new")).unwrap(), b"kept");
}

#[test]
fn jobs_use_a_read_only_session_unless_they_ask_for_another() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "uncommitted").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    let script = "tool; touch \"$ENVFS_PREFIX/x\" 2>&- && echo writable || echo read-only; \
                  [ ! -e \"$ENVFS_PREFIX/new\" ] || echo changed";
    let job = |variable: &str, words: &[&str]| {
        let all = [&["run"], words, &["e", "sh", "-c", script]].concat();
        let out = env.envfs_with(variable, "7", &all).ok().out;
        env.envfs(&["-q", "unmount", "--all"]).ok();
        wait_for("the end of the mount", || mounts_below(&prefix).is_empty());
        out
    };
    for variable in ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID"] {
        assert_eq!(job(variable, &[]), "tool\nread-only\n", "{variable}");
    }
    assert_eq!(job("SLURM_JOB_ID", &["--ephemeral"]), "tool\nwritable\n");
    let writable = "tool\nwritable\nchanged\n";
    assert_eq!(job("SLURM_JOB_ID", &["--writable"]), writable);
    assert_eq!(job("OTHER_JOB_ID", &[]), writable);
    env.envfs_with("SLURM_JOB_ID", "7", &["run", "--writable", "e@1", "tool"])
        .fails(125, &["--writable"]);
    let activate = ["activate", "--shell", "posix", "e"];
    for words in [&activate[..], &["mount", "e"]] {
        env.envfs_with("SLURM_JOB_ID", "7", words).ok();
        let listed = env.envfs(&["list", "--json"]).ok().json();
        assert_eq!(listed[0]["state"], "read-only", "{words:?}: {listed}");
        env.envfs(&["unmount", "e"]).ok();
    }
    env.envfs_with("SLURM_JOB_ID", "7", &["mount", "--writable", "e"])
        .ok();
    let listed = env.envfs(&["list", "--json"]).ok().json();
    assert_eq!(listed[0]["state"], "mounted", "{listed}");
    // What is mounted already is used.
    env.envfs_with("SLURM_JOB_ID", "7", &["mount", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    fs::write(
        env.store().join("config.toml"),
        "session.in_job = 'writable'\n",
    )
    .unwrap();
    assert_eq!(job("SLURM_JOB_ID", &[]), writable);
}

#[test]
fn twenty_revisions_are_mounted_side_by_side_while_the_newest_is_changed() {
    let Some(env) = TestEnv::new() else { return };
    if !User::current().is_root() {
        return skip_allowed("many mounts of an ordinary user may exceed a limit");
    }
    env.import_sample("e");
    let prefix = env.mount("e");
    let mut committed = Vec::new();
    for revision in 1..=20 {
        if revision > 1 {
            fs::write(prefix.join(format!("lib/{revision}")), revision.to_string()).unwrap();
            fs::write(prefix.join("lib/c.txt"), "x".repeat(revision)).unwrap();
            fs::remove_file(prefix.join(format!("lib/{}", revision - 1))).ok();
            env.envfs(&["commit", "-q", "e"]).ok();
        }
        committed.push(tree::digest(&env, &prefix));
    }
    let at = |revision: usize| env.work().join(format!("at-{revision}"));
    for revision in 1..=20 {
        let (word, path) = (format!("e@{revision}"), at(revision));
        env.envfs(&["mount", &word, path.to_str().unwrap()]).ok();
    }
    let writing = std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for round in 0..50 {
                fs::write(prefix.join(format!("lib/round-{round}")), "new").unwrap();
                fs::write(prefix.join("lib/c.txt"), round.to_string()).unwrap();
            }
            env.envfs(&["commit", "-q", "e"]).ok();
        });
        for (revision, digest) in (1..=20).zip(&committed) {
            assert_eq!(&tree::digest(&env, &at(revision)), digest, "{revision}");
        }
        changes.join()
    });
    writing.unwrap();
    for (revision, digest) in (1..=20).zip(&committed) {
        assert_eq!(&tree::digest(&env, &at(revision)), digest, "{revision}");
    }
    env.envfs(&["unmount", "--all"]).ok();
    assert!(mounts_below(env.root()).is_empty());
}
