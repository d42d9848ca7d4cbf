//! Conditions that a daemon survives: a log that cannot be written, panics, and the limits and
//! descriptors of the shell that mounted.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Stdio;

use crate::support::{TestEnv, finish, has, is_alive, wait_for};

fn log_of(env: &TestEnv, name: &str) -> String {
    fs::read_to_string(env.home_of(name).join("daemon.log")).unwrap_or_default()
}

/// Changes, commits and reads an environment.
fn change_and_commit(env: &TestEnv, name: &str) {
    let at = env.prefix(name);
    env.sh(&format!("echo new >'{}/new'", at.display())).ok();
    env.envfs(&["status", name]).ok();
    env.envfs(&["commit", "-q", name]).ok();
    let read = env.sh(&format!("cat '{}/new'", at.display())).ok();
    assert_eq!(read.out, "new\n");
}

#[test]
fn unwritable_log_does_not_prevent_mounting() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let log = env.home_of("e").join("daemon.log");
        let path = log.display();
        let places = [
            format!("ln -s /dev/full '{path}'"),
            format!("ln -s /nowhere/at/all '{path}'"),
            format!("mkfifo '{path}'"),
            format!("mkdir '{path}'"),
            format!("touch '{path}'; chmod 400 '{path}'"),
        ];
        for place in places {
            env.sh(&format!("rm -rf '{path}'; {place}")).ok();
            let mounted = env.envfs(&["mount", "e"]).ok();
            // Root can write to a file of any mode.
            if !(place.contains("chmod") && env.user().is_root()) {
                assert!(mounted.err.contains("daemon.log"), "{place}: {mounted}");
            }
            change_and_commit(&env, "e");
            env.envfs(&["unmount", "e"]).ok();
        }
        env.sh(&format!("rm -rf '{path}'")).ok();
        env.verify("e");
    }
}

#[test]
fn log_at_the_file_size_limit_does_not_end_the_daemon() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        // The log is larger than the file size limit (in units of 512 bytes) and too small to be
        // rotated.
        let log = env.home_of("e").join("daemon.log");
        env.write(&log, vec![b'x'; 1_040_000]);
        env.sh("ulimit -f 2000; envfs mount e").ok();
        let daemon = env.daemon("e");
        change_and_commit(&env, "e");
        assert_eq!(env.daemon("e"), daemon);
        assert_eq!(fs::metadata(&log).unwrap().len(), 1_040_000);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn panic_fails_one_request_and_not_the_mount() {
    if !has("python3") {
        return;
    }
    let fails = |what: &str| {
        format!(
            "python3 -c 'import errno, os, sys
try: {what}
except OSError as error: sys.exit(error.errno != errno.EIO)
sys.exit(7)'"
        )
    };
    let sync = "f = os.open(\"d/sync\", os.O_CREAT | os.O_WRONLY); os.fsync(f)";
    let cases: [(&str, String); 6] = [
        // On the event loop: requests with and without an answer.
        (
            "panic.request",
            fails("os.getxattr(\"lib/c.txt\", \"user.x\")"),
        ),
        (
            "panic.forget",
            String::from("echo 2 >/proc/sys/vm/drop_caches; stat d >/dev/null"),
        ),
        // In a worker.
        ("panic.pool", fails(sync)),
        // In the thread that sends invalidations.
        ("panic.notices", fails("os.rename(\"d/sub\", \"sub\")")),
        // In the checkpoint thread: 1 MiB of records wakes it.
        (
            "panic.checkpoint",
            String::from("p=$(printf %0230d 0); for n in $(seq 5000); do : >d/$p$n; done"),
        ),
        // In a thread that serves a command.
        (
            "panic.control",
            String::from("! envfs diff e 2>err && grep -q 'internal error of envfs' err && rm err"),
        ),
    ];
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        return crate::support::skip_allowed("dropping the kernel's caches needs root");
    }
    env.import_sample("e");
    for (fault, script) in cases {
        let at = env.envfs_with("ENVFS_FAULT", fault, &["mount", "e"]).ok();
        let at = at.line().to_owned();
        let daemon = env.daemon_by_lock("e");
        env.sh(&format!("cd '{at}'; mkdir -p d/sub; {script}")).ok();
        wait_for("the panic", || log_of(&env, "e").contains(fault));
        assert!(is_alive(daemon), "{fault}");
        // The next request works.
        env.sh(&format!("cd '{at}'; rm -rf sub; mkdir -p d/more"))
            .ok();
        change_and_commit(&env, "e");
        assert_eq!(env.daemon("e"), daemon, "{fault}");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
        let at = env.mount("e");
        assert!(at.join("d/more").exists(), "{fault}");
        if fault == "panic.checkpoint" {
            let made = fs::read_dir(at.join("d")).unwrap().count();
            assert_eq!(made, 5002);
        }
        env.sh(&format!("rm -r '{}/d'", at.display())).ok();
        env.envfs(&["unmount", "e"]).ok();
    }
}

fn limits_of(pid: nix::unistd::Pid) -> impl Fn(&str) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    move |what| {
        let line = limits.lines().find_map(|line| line.strip_prefix(what));
        let words = line.unwrap().split_whitespace().take(2);
        words.map(str::to_owned).collect()
    }
}

#[test]
fn limits_that_would_end_a_mount_are_lifted_or_reported() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        for (set, what) in [
            ("-S -t 2", "Max cpu time"),
            ("-S -v 4000000", "Max address space"),
            ("-S -d 3000000", "Max data size"),
            ("-S -f 2000", "Max file size"),
            ("-S -s 4000", "Max stack size"),
        ] {
            let mounted = env.sh(&format!("ulimit {set}; envfs mount e")).ok();
            assert!(!mounted.err.contains("ulimit"), "{mounted}");
            let [soft, hard] = &limits_of(env.daemon("e"))(what)[..] else {
                panic!("{what}");
            };
            assert_eq!(soft, hard, "{what}");
            env.envfs(&["unmount", "e"]).ok();
        }
        for (set, what, option) in [
            ("-t 1000", "Max cpu time", "ulimit -H -t: 1000"),
            ("-v 4000000", "Max address space", "ulimit -H -v"),
            ("-d 3000000", "Max data size", "ulimit -H -d"),
        ] {
            let mounted = env.sh(&format!("ulimit {set}; envfs mount e")).ok();
            let [_, hard] = &limits_of(env.daemon("e"))(what)[..] else {
                panic!("{what}");
            };
            // Root in a container may lack the capability.
            let is_lifted = hard == "unlimited";
            assert!(!is_lifted || env.user().is_root(), "{what}");
            assert_eq!(mounted.err.contains(option), !is_lifted, "{mounted}");
            change_and_commit(&env, "e");
            env.envfs(&["unmount", "e"]).ok();
        }
    }
}

#[test]
fn mount_with_a_low_descriptor_limit_works_or_is_refused() {
    if !has("python3") {
        return;
    }
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        for few in [20, 30] {
            env.sh(&format!(
                "ulimit -n {few}; envfs mount e 2>err || :; grep -q 'open files' err"
            ))
            .ok();
            assert_eq!(
                env.envfs(&["list", "--json"]).ok().json()[0]["state"],
                "unmounted"
            );
        }
        let at = env.sh("ulimit -n 64; envfs mount e").ok();
        let at = at.line().to_owned();
        // Removed files that are open keep descriptors of the daemon until it has none left.
        let hold = "import os, sys
held = []
try:
    for n in range(100):
        held.append(os.open(f\"f{n}\", os.O_CREAT | os.O_RDWR))
        os.write(held[-1], b\"x\")
        os.unlink(f\"f{n}\")
except OSError: pass
print(len(held), flush=True)
sys.stdin.read()";
        let mut command = env.command("/bin/sh");
        command
            .arg("-c")
            .arg(format!("cd '{at}' && exec python3 -c '{hold}'"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.as_mut().unwrap()),
            &mut line,
        )
        .unwrap();
        for _ in 0..3 {
            env.envfs(&["status", "e"]).ok();
        }
        drop(child.stdin.take());
        finish(child, String::from("hold")).ok();
        // The daemon closes removed files a moment after the kernel forgets them.
        wait_for("free descriptors", || {
            env.sh(&format!("echo probe >'{at}/probe'")).code == 0
        });
        change_and_commit(&env, "e");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn daemon_closes_inherited_descriptors() {
    for env in TestEnv::of_all_users() {
        let source = env.import_sample("e");
        env.sh("exec 9>mine; flock 9; envfs run e true; exec 9>&-; flock -n mine true")
            .ok();
        let fds = format!("/proc/{}/fd", env.daemon("e"));
        let opened = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(dir).unwrap().flatten();
            let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
            links.map(|link| link.display().to_string()).collect()
        };
        let links = opened(&fds);
        assert!(links.iter().any(|link| link.ends_with("/state.db")));
        assert!(links.iter().all(|link| !link.ends_with("/mine")));
        env.envfs(&["unmount", "e"]).ok();
        // The reader of a pipe sees its end, whatever the number of the inherited descriptor.
        for number in [3, 7] {
            env.sh(&format!(
                "timeout 60 sh -c '(envfs run e true) 2>&1 {number}>&1 | cat'; envfs unmount e"
            ))
            .ok();
        }
        // A mount without a store.
        if !has("mksquashfs") {
            return;
        }
        env.sh(&format!(
            "mksquashfs '{}' image -quiet -no-progress; mkdir at upper
             exec 9>mine; flock 9; envfs mount --image image --upper upper at; exec 9>&-
             flock -n mine true; cat at/lib/c.txt",
            source.display()
        ))
        .ok();
        env.unmount(&env.work().join("at")).ok();
    }
}
