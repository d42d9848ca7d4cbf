//! Nothing grows with how often something is done: descriptors, threads, memory, files of the store.
//!
//! `ENVFS_LEAK_CYCLES` makes it longer.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::Pid;

use super::asked;
use crate::support::TestEnv;

/// What a process uses.
#[derive(Debug, Clone, Copy)]
struct Use {
    descriptors: usize,
    threads: usize,
    resident_kib: usize,
}

impl Use {
    fn of(pid: Pid) -> Use {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.unwrap().split_whitespace().next();
            number.unwrap().parse().unwrap()
        };
        Use {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            threads: field("Threads:"),
            resident_kib: field("VmRSS:"),
        }
    }

    /// Returns the least of several looks: a request that was just answered may not be over.
    fn settled(pid: Pid) -> Use {
        let looks: Vec<Use> = (0..20)
            .map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                Use::of(pid)
            })
            .collect();
        let least = |of: fn(&Use) -> usize| looks.iter().map(of).min().unwrap();
        Use {
            descriptors: least(|one| one.descriptors),
            threads: least(|one| one.threads),
            resident_kib: least(|one| one.resident_kib),
        }
    }
}

/// Sizes of the files of a home by name, but for logs, which have a limit of their own.
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

/// Numbers of images rise: only how many there are, and what all files take, is the same.
fn assert_flat(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) {
    let bytes = |files: &BTreeMap<String, u64>| files.values().sum::<u64>();
    assert_eq!(before.len(), after.len(), "{before:#?} {after:#?}");
    assert!(
        bytes(after) < bytes(before) + (256 << 10),
        "{before:#?} {after:#?}"
    );
}

#[test]
fn a_store_is_as_large_after_many_mounts_and_commits_as_after_few() {
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
    // A number that ends with the collection of garbage.
    let cycles = asked("ENVFS_LEAK_CYCLES", 15).next_multiple_of(5);
    (6..=5 + cycles).for_each(cycle);
    assert_flat(&before, &files(&env));
    let now = env.sh("ls -A \"$XDG_RUNTIME_DIR\"/envfs").out;
    assert_eq!(now, runtime, "sockets and locks");
    assert_eq!(env.daemons(), [], "no process is left");
    env.verify("e");
}

#[test]
fn a_daemon_is_as_large_after_many_commits_and_activations_as_after_few() {
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
    let cycles = asked("ENVFS_LEAK_CYCLES", 30).next_multiple_of(10);
    // Pools and caches are full after some.
    (1..=20).for_each(cycle);
    let (before, on_disk) = (Use::settled(pid), files(&env));
    (21..=20 + cycles).for_each(cycle);
    assert_eq!(env.daemon("e"), pid);
    let after = Use::settled(pid);
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
