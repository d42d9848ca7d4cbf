//! No command waits without an end: for a mount that other namespaces have, for a daemon that is stopped,
//! for what lies in the place of a file.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::{TestEnv, has, is_alive, mounts_below, run, skip_allowed, wait_for};

/// A process in a mount namespace of its own, with copies of all mounts.
struct Namespace(Child);

impl Namespace {
    /// Starts one, with a script before it sleeps. None, and said so, where that cannot be.
    fn new(env: &TestEnv, script: &str) -> Option<Namespace> {
        if !has("unshare") {
            return None;
        }
        let mut command = env.command("unshare");
        // What root has mounted is not copied to where another user is root.
        let options = if env.user().is_root() { "-m" } else { "-Urm" };
        command
            .args([options, "sh", "-ec"])
            .arg(format!("{script}; echo ready; exec sleep 1000"))
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        if line != "ready\n" {
            child.wait().unwrap();
            skip_allowed("no mount namespaces");
            return None;
        }
        Some(Namespace(child))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Fails the test where a command takes longer than anybody would wait.
fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
    done
}

#[test]
fn copies_in_other_mount_namespaces_do_not_keep_a_mount() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.mount("e");
        let Some(namespace) = Namespace::new(&env, ":") else {
            return;
        };
        let daemon = env.daemon("e");
        // Written through a mapping, so that only the kernel has it.
        if has("python3") {
            env.sh(&format!(
                "python3 -c 'import mmap
f = open(\"{}/mapped\", \"w+b\"); f.write(b\"-\" * 4096); f.flush()
mmap.mmap(f.fileno(), 4096)[:6] = b\"mapped\"'",
                at.display()
            ))
            .ok();
        }
        let done = soon("unmount", || env.envfs(&["unmount", "e"]).ok());
        let pid = namespace.0.id().to_string();
        assert!(
            done.err.contains("is unmounted") && done.err.contains(&pid),
            "{done}"
        );
        assert!(!is_alive(daemon));
        assert!(mounts_below(env.root()).is_empty());
        env.verify("e");
        // The namespace is still there, with a copy that is dead, and in nobody's way.
        env.mount("e");
        env.sh(&format!("grep -q mapped '{}/mapped'", at.display()))
            .ok();
        env.envfs(&["unmount", "e"]).ok();

        // By a signal, too.
        env.mount("e");
        let daemon = env.daemon("e");
        let other = Namespace::new(&env, ":").unwrap();
        kill(daemon, Signal::SIGTERM).unwrap();
        wait_for("the end of the daemon", || !is_alive(daemon));
        drop((other, namespace));
        let log = fs::read_to_string(env.home_of("e").join("daemon.log")).unwrap();
        assert!(!log.contains("not closed cleanly"), "{log}");
    }
}

#[test]
fn who_uses_a_copy_in_another_namespace_is_named_and_can_be_left_behind() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.mount("e");
        let script = format!("cd '{}/lib'", at.display());
        let Some(namespace) = Namespace::new(&env, &script) else {
            return;
        };
        let (daemon, pid) = (env.daemon("e"), namespace.0.id().to_string());
        env.envfs(&["unmount", "e"]).fails(5, &[&pid, "--lazy"]);
        let done = env.envfs(&["unmount", "--lazy", "e"]).ok();
        assert!(done.err.contains(&pid), "{done}");
        assert!(is_alive(daemon));
        let daemon_word = format!("kill {daemon}");
        soon("mount", || {
            env.envfs(&["mount", "e"]).fails(5, &[&daemon_word]);
        });
        // The way out that was named.
        kill(daemon, Signal::SIGTERM).unwrap();
        wait_for("the end of the daemon", || !is_alive(daemon));
        env.mount("e");
        drop(namespace);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn a_mount_without_a_store_ends_by_a_signal_though_others_have_copies() {
    let Some(env) = TestEnv::new() else { return };
    if !has("mksquashfs") {
        return;
    }
    let source = env.import_sample("e");
    env.sh(&format!(
        "mksquashfs '{}' image -quiet -no-progress; mkdir at
         envfs mount --image image --upper upper at; echo new >at/new",
        source.display()
    ))
    .ok();
    let Some(_namespace) = Namespace::new(&env, ":") else {
        return;
    };
    let upper = env.work().join("upper");
    let note: serde_json::Value =
        serde_json::from_slice(&fs::read(upper.join("lock.holder")).unwrap()).unwrap();
    let daemon = nix::unistd::Pid::from_raw(note["pid"].as_i64().unwrap().try_into().unwrap());
    // Unmounted by another program, which knows nothing of the daemon.
    env.unmount(&env.work().join("at")).ok();
    assert!(is_alive(daemon));
    kill(daemon, Signal::SIGTERM).unwrap();
    wait_for("the end of the daemon", || !is_alive(daemon));
    env.sh("envfs mount --image image --upper upper at; cat at/new")
        .ok();
    env.unmount(&env.work().join("at")).ok();
}

/// Stops a process, and lets it go on when dropped.
struct Stopped(nix::unistd::Pid);

impl Stopped {
    fn new(pid: nix::unistd::Pid) -> Stopped {
        kill(pid, Signal::SIGSTOP).unwrap();
        wait_for("the stop", || {
            fs::read_to_string(format!("/proc/{pid}/stat"))
                .unwrap()
                .contains(") T ")
        });
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Fails where a test has ended it.
        kill(self.0, Signal::SIGCONT).ok();
    }
}

#[test]
fn every_command_says_that_a_daemon_is_stopped_and_what_to_do() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        env.envfs(&["create", "other"]).ok();
        let at = env.mount("e");
        env.mount("other");
        env.sh(&format!("echo new >'{}/new'", at.display())).ok();
        let daemon = env.daemon("e");
        let stopped = Stopped::new(daemon);
        let words = [
            &format!("pid {daemon}"),
            "stopped",
            &format!("kill -CONT {daemon}")[..],
        ];
        for command in [
            &["status", "e"][..],
            &["mount", "e"],
            &["diff", "e"],
            &["commit", "e"],
            &["discard", "-y", "e"],
            &["rollback", "-y", "e"],
            &["tag", "e", "name"],
            &["gc", "e"],
            &["stats", "e"],
            &["unmount", "e"],
            &["remove", "-y", "e"],
            &["activate", "--shell", "bash", "e"],
        ] {
            soon(&format!("{command:?}"), || {
                env.envfs(command).fails(9, &words)
            });
        }
        soon("run", || {
            env.envfs(&["run", "e", "tool"]).fails(125, &words)
        });
        let list = soon("list", || env.envfs(&["list"]).ok());
        assert!(
            list.out.contains("stopped") && list.out.contains("other"),
            "{list}"
        );
        let doctor = soon("doctor", || env.envfs(&["doctor"]));
        assert!(
            doctor.code == 1 && doctor.out.contains(&format!("kill -CONT {daemon}")),
            "{doctor}"
        );
        // The others are unmounted all the same.
        soon("unmount --all", || {
            env.envfs(&["unmount", "--all"]).fails(9, &words)
        });
        assert_eq!(mounts_below(env.root()), std::slice::from_ref(&at));
        let done = soon("unmount --lazy", || {
            env.envfs(&["unmount", "--lazy", "e"]).ok()
        });
        assert!(words.iter().all(|word| done.err.contains(word)), "{done}");
        assert!(mounts_below(env.root()).is_empty());
        soon("mount", || env.envfs(&["mount", "e"]).fails(9, &words));
        drop(stopped);
        wait_for("the end of the daemon", || !is_alive(daemon));
        let read = env.sh("cat \"$(envfs mount e)/new\"").ok();
        assert_eq!(read.out, "new\n");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn a_daemon_that_is_stopped_while_a_command_waits_for_it_is_told() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.mount("e");
    let daemon = env.daemon("e");
    let socket = env.envfs(&["paths", "--json", "e"]).ok().json()["socket"].clone();
    // Unreachable and stopped: only the mount itself can be probed.
    let stopped = Stopped::new(daemon);
    fs::remove_file(socket.as_str().unwrap()).unwrap();
    let pid = format!("pid {daemon}");
    for command in [&["status", "e"][..], &["mount", "e"], &["unmount", "e"]] {
        soon(&format!("{command:?}"), || {
            env.envfs(command)
                .fails(9, &[&pid, "stopped", "kill -CONT"])
        });
    }
    soon("doctor", || env.envfs(&["doctor"]).fails(1, &[]));
    drop(stopped);
    env.envfs(&["unmount", "e"]).ok();
}

#[test]
fn doctor_asks_only_the_users_own_mounts() {
    let (Some(other), Some(env)) = (TestEnv::as_tester(), TestEnv::new()) else {
        return;
    };
    other.import_sample("e");
    other.mount("e");
    let _stopped = Stopped::new(other.daemon("e"));
    let doctor = soon("doctor", || env.envfs(&["doctor"]));
    let path = other.prefix("e").display().to_string();
    assert!(!doctor.out.contains(&path), "{doctor}");
}

#[test]
fn a_daemon_that_hangs_is_told_and_can_be_left() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let words = ["mount", "e"];
    env.envfs_with("ENVFS_FAULT", "hang.statfs", &words).ok();
    let daemon = env.daemon("e");
    env.sh(&format!("echo new >'{}/new'", env.prefix("e").display()))
        .ok();
    // It greets, but whoever asks the mount for its size waits for ever, and everybody else after that.
    let (pid, end) = (format!("pid {daemon}"), format!("kill -9 {daemon}"));
    soon("run", || {
        env.envfs(&["run", "e", "true"]).fails(125, &[&pid, &end])
    });
    let doctor = soon("doctor", || env.envfs(&["doctor"]));
    assert!(doctor.code == 1 && doctor.out.contains(&pid), "{doctor}");
    // Whoever asked still waits, and so the mount is in use.
    soon("unmount", || env.envfs(&["unmount", "e"]).fails(5, &[]));
    soon("unmount --lazy", || {
        env.envfs(&["unmount", "--lazy", "e"]).ok()
    });
    assert!(mounts_below(env.root()).is_empty());
    // The way out that was named.
    kill(daemon, Signal::SIGKILL).unwrap();
    wait_for("the end of the daemon", || !is_alive(daemon));
    let read = env.sh("cat \"$(envfs mount e)/new\"").ok();
    assert_eq!(read.out, "new\n");
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
}

/// Puts a FIFO in the place of a file.
fn make_fifo(path: &Path) {
    fs::remove_file(path).ok();
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn a_fifo_in_the_place_of_a_file_of_the_store_keeps_nobody_waiting() {
    let Some(env) = TestEnv::new() else { return };
    let files = [
        "state.db",
        "state.db-wal",
        "state.db-shm",
        "state.db-redo",
        "lock",
        "lock.holder",
        "lock.lease",
        "profile",
        "profile.new",
        "daemon.log",
        "daemon.log.old",
        "id",
        "images/1.sqfs",
        "../../config.toml",
    ];
    for (number, file) in files.into_iter().enumerate() {
        let name = &format!("e{number}");
        env.import_sample(name);
        env.mount(name);
        env.envfs(&["unmount", name]).ok();
        let home = env.home_of(name);
        make_fifo(&home.join(file));
        for command in [
            &["list"][..],
            &["status", name],
            &["mount", name],
            &["commit", name],
            &["gc", name],
            &["verify", name],
            &["unmount", name],
        ] {
            let mut line = env.command("timeout");
            line.args(["20", "envfs"]).args(command);
            let done = run(line);
            assert_ne!(done.code, 124, "{file}: {command:?} hangs");
            assert!(!done.err.contains("panicked"), "{file}: {done}");
        }
        fs::remove_dir_all(&home).unwrap();
        fs::remove_file(env.store().join("config.toml")).ok();
    }
}
