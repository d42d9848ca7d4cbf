//! Repeated operations leak no descriptors, threads, memory or files of the store.
//!
//! `ENVFS_LEAK_CYCLES` sets the number of repetitions.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::Pid;

use super::number_from_env;
use crate::support::TestEnv;

/// Resources of a process.
#[derive(Debug, Clone, Copy)]
struct Usage {
    descriptors: usize,
    threads: usize,
    resident_kib: usize,
}

impl Usage {
    fn of(pid: Pid) -> Usage {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.unwrap().split_whitespace().next();
            number.unwrap().parse().unwrap()
        };
        Usage {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            threads: field("Threads:"),
            resident_kib: field("VmRSS:"),
        }
    }

    /// Returns the minimum of several samples, because the thread of the last request may not have
    /// ended.
    fn minimum(pid: Pid) -> Usage {
        let samples: Vec<Usage> = (0..20)
            .map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                Usage::of(pid)
            })
            .collect();
        let least = |of: fn(&Usage) -> usize| samples.iter().map(of).min().unwrap();
        Usage {
            descriptors: least(|one| one.descriptors),
            threads: least(|one| one.threads),
            resident_kib: least(|one| one.resident_kib),
        }
    }
}

/// Returns the sizes of the files of an environment, except logs and the profile, which have their
/// own limits.
fn files(env: &TestEnv) -> BTreeMap<String, u64> {
    let home = env.home_of("e");
    let all = walkdir::WalkDir::new(&home).into_iter().map(Result::unwrap);
    all.filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let name = entry.path().strip_prefix(&home).unwrap();
            (name.display().to_string(), entry.metadata().unwrap().len())
        })
        .filter(|(name, _)| !name.starts_with("daemon.log") && name != "profile")
        .collect()
}

/// Compares the number and the total size of files; their names contain increasing numbers.
fn assert_flat(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) {
    let bytes = |files: &BTreeMap<String, u64>| files.values().sum::<u64>();
    assert_eq!(before.len(), after.len(), "{before:#?} {after:#?}");
    assert!(
        bytes(after) < bytes(before) + (256 << 10),
        "{before:#?} {after:#?}"
    );
}

#[test]
fn store_does_not_grow_with_mounts_and_commits() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let cycle = |number: u64| {
        let prefix = env.mount("e");
        fs::write(prefix.join("lib/a.txt"), format!("{number}")).unwrap();
        fs::create_dir_all(prefix.join("new")).unwrap();
        fs::write(prefix.join("new/file"), format!("{number}")).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
        env.envfs(&["unmount", "e"]).ok();
        if number.is_multiple_of(5) {
            env.envfs(&["gc", "-q", "--keep", "2", "e"]).ok();
        }
    };
    (1..=5).for_each(cycle);
    let (before, runtime) = (files(&env), env.sh("ls -A \"$XDG_RUNTIME_DIR\"/envfs").out);
    // The last cycle must collect garbage.
    let cycles = number_from_env("ENVFS_LEAK_CYCLES", 15).next_multiple_of(5);
    (6..=5 + cycles).for_each(cycle);
    assert_flat(&before, &files(&env));
    let now = env.sh("ls -A \"$XDG_RUNTIME_DIR\"/envfs").out;
    assert_eq!(now, runtime, "sockets and locks");
    assert_eq!(env.daemons(), [], "a daemon was left");
    env.verify("e");
}

#[test]
fn daemon_does_not_grow_with_commits_and_activations() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let pid = env.daemon("e");
    let cycle = |number: u64| {
        fs::write(prefix.join("lib/a.txt"), format!("{number}")).unwrap();
        fs::write(prefix.join("passing"), "x").unwrap();
        fs::remove_file(prefix.join("passing")).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
        env.envfs(&["activate", "--shell", "bash", "e"]).ok();
        env.envfs(&["run", "e", "true"]).ok();
        fs::write(prefix.join("lib/a.txt"), "discarded").unwrap();
        env.envfs(&["discard", "-q", "-y", "e"]).ok();
        if number.is_multiple_of(10) {
            env.envfs(&["rollback", "-q", "-y", "e"]).ok();
            env.envfs(&["gc", "-q", "--keep", "2", "e"]).ok();
        }
    };
    let cycles = number_from_env("ENVFS_LEAK_CYCLES", 30).next_multiple_of(10);
    // Some cycles fill pools and caches.
    (1..=20).for_each(cycle);
    let (before, on_disk) = (Usage::minimum(pid), files(&env));
    (21..=20 + cycles).for_each(cycle);
    assert_eq!(env.daemon("e"), pid);
    let after = Usage::minimum(pid);
    eprintln!("after 20 cycles {before:?}, after {cycles} more {after:?}");
    assert!(
        after.descriptors <= before.descriptors,
        "{before:?} {after:?}"
    );
    assert!(after.threads <= before.threads, "{before:?} {after:?}");
    assert!(
        after.resident_kib < before.resident_kib + 4096 + before.resident_kib / 4,
        "{before:?} {after:?}"
    );
    assert_flat(&on_disk, &files(&env));
}
