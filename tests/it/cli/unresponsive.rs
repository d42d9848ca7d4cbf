//! No command waits forever: for a mount copied to other namespaces, for a stopped or hung daemon,
//! or for a FIFO in place of a file.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::{TestEnv, has, is_alive, mounts_below, run, skip_allowed, wait_for};

/// A process in its own mount namespace, with copies of all mounts.
struct Namespace(Child);

impl Namespace {
    /// Starts one that runs a script and then sleeps. Skips the test and returns None if that is
    /// impossible.
    fn new(env: &TestEnv, script: &str) -> Option<Namespace> {
        if !has("unshare") {
            return None;
        }
        let mut command = env.command("unshare");
        // In a user namespace, root's mounts would not be copied.
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

/// Fails the test if a command takes longer than the limits of its waits, of which flushing the
/// kernel's cache has the longest with 30 s.
fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
    done
}

#[test]
fn mounts_copied_to_other_namespaces_do_not_prevent_unmount() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.mount("e");
        let Some(namespace) = Namespace::new(&env, ":") else {
            return;
        };
        let daemon = env.daemon("e");
        // Written through a mapping, so that only the kernel's cache has it.
        if !has("python3") {
            return;
        }
        env.sh(&format!(
            "python3 -c 'import mmap
f = open(\"{}/mapped\", \"w+b\"); f.write(b\"-\" * 4096); f.flush()
mmap.mmap(f.fileno(), 4096)[:6] = b\"mapped\"'",
            at.display()
        ))
        .ok();
        let done = soon("unmount", || env.envfs(&["unmount", "e"]).ok());
        let pid = namespace.0.id().to_string();
        assert!(
            done.err.contains("is unmounted") && done.err.contains(&pid),
            "{done}"
        );
        assert!(!is_alive(daemon));
        assert!(mounts_below(env.root()).is_empty());
        env.verify("e");
        // The dead copy in the namespace does not prevent another mount.
        env.mount("e");
        env.sh(&format!("grep -q mapped '{}/mapped'", at.display()))
            .ok();
        env.envfs(&["unmount", "e"]).ok();

        // SIGTERM also unmounts.
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
fn process_in_another_namespace_is_named_and_lazy_unmount_works() {
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
        // The command that the message names.
        kill(daemon, Signal::SIGTERM).unwrap();
        wait_for("the end of the daemon", || !is_alive(daemon));
        env.mount("e");
        drop(namespace);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn sigterm_ends_a_mount_without_a_store_despite_copies() {
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
    // Unmounted by a program that does not know the daemon.
    env.unmount(&env.work().join("at")).ok();
    assert!(is_alive(daemon));
    kill(daemon, Signal::SIGTERM).unwrap();
    wait_for("the end of the daemon", || !is_alive(daemon));
    env.sh("envfs mount --image image --upper upper at; cat at/new")
        .ok();
    env.unmount(&env.work().join("at")).ok();
}

/// A stopped process, continued when this is dropped.
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
        // Fails if the process has ended.
        kill(self.0, Signal::SIGCONT).ok();
    }
}

#[test]
fn stopped_daemon_is_reported_by_every_command() {
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
        // The other environments are unmounted nevertheless.
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
fn stopped_daemon_without_a_socket_is_reported() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.mount("e");
    let daemon = env.daemon("e");
    let socket = env.envfs(&["paths", "--json", "e"]).ok().json()["socket"].clone();
    // Without a socket, only the mount itself can be probed.
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
fn doctor_probes_only_own_mounts() {
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
fn hung_daemon_is_reported_and_lazy_unmount_works() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let words = ["mount", "e"];
    env.envfs_with("ENVFS_FAULT", "hang.statfs", &words).ok();
    let daemon = env.daemon("e");
    env.sh(&format!("echo new >'{}/new'", env.prefix("e").display()))
        .ok();
    // The daemon answers its socket, but the first statfs on the mount hangs, and every later
    // request with it.
    let (pid, end) = (format!("pid {daemon}"), format!("kill -9 {daemon}"));
    soon("run", || {
        env.envfs(&["run", "e", "true"]).fails(125, &[&pid, &end])
    });
    let doctor = soon("doctor", || env.envfs(&["doctor"]));
    assert!(doctor.code == 1 && doctor.out.contains(&pid), "{doctor}");
    // The process that called statfs still waits, so the mount is busy.
    soon("unmount", || env.envfs(&["unmount", "e"]).fails(5, &[]));
    soon("unmount --lazy", || {
        env.envfs(&["unmount", "--lazy", "e"]).ok()
    });
    assert!(mounts_below(env.root()).is_empty());
    // The command that the message names.
    kill(daemon, Signal::SIGKILL).unwrap();
    wait_for("the end of the daemon", || !is_alive(daemon));
    let read = env.sh("cat \"$(envfs mount e)/new\"").ok();
    assert_eq!(read.out, "new\n");
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
}

/// Replaces a file by a FIFO.
fn make_fifo(path: &Path) {
    fs::remove_file(path).ok();
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn fifo_in_place_of_a_store_file_does_not_block() {
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
