//! Recovery on a full file system: reading, removing, discarding and gc work without free space or
//! inodes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support::{Disk, TestEnv, run, samples, skip_allowed};

/// A file system for a store that the test fills.
enum Medium {
    Disk(Disk),
    Tmpfs(PathBuf),
}

impl Medium {
    fn at(&self) -> &Path {
        match self {
            Medium::Disk(disk) => disk.at(),
            Medium::Tmpfs(path) => path,
        }
    }

    fn tmpfs(env: &TestEnv, options: &str) -> Option<Medium> {
        let path = env.root().join("tmpfs");
        fs::create_dir(&path).unwrap();
        let mut mount = env.command("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(&path);
        let mounted = run(mount);
        if mounted.code != 0 {
            skip_allowed(&format!("no tmpfs: {}", mounted.err.trim()));
            return None;
        }
        Some(Medium::Tmpfs(path))
    }

    fn ext4(env: &TestEnv, options: &[&str]) -> Option<Medium> {
        let mut all = vec!["-q", "-m", "0"];
        all.extend(options);
        Disk::new(env.root(), "mkfs.ext4", &all, 32).map(Medium::Disk)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        if let Medium::Tmpfs(path) = self {
            nix::mount::umount2(path.as_path(), nix::mount::MntFlags::MNT_DETACH)
                .unwrap_or_default();
        }
    }
}

/// Fills the file system with a file in a directory.
fn fill(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_default();
    let file = fs::File::options()
        .append(true)
        .create(true)
        .open(dir.join("filler"));
    let Ok(mut file) = file else { return };
    for step in [1 << 20, 64 << 10, 4096, 1024, 1] {
        while file.write_all(&vec![1; step]).is_ok() {}
    }
}

/// Uses up the inodes of the file system with files in a directory.
fn fill_inodes(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_default();
    for number in 0..100_000 {
        if fs::write(dir.join(format!("filler-{number}")), "").is_err() {
            return;
        }
    }
    panic!("the file system does not run out of inodes");
}

type Fill = fn(&Path);

fn recover(make: impl Fn(&TestEnv) -> Option<Medium>, fill: Fill) {
    let Some(env) = TestEnv::new() else { return };
    let Some(medium) = make(&env) else { return };
    let env = env.with_store(&medium.at().join("store"));
    let outside = medium.at().join("outside");
    env.import_sample("e");
    let prefix = env.mount("e");
    let read_commands_work = || {
        for command in ["status", "diff", "log", "verify"] {
            env.envfs(&[command, "e"]).ok();
        }
        assert_eq!(env.count(&["list"]), 1);
    };
    let changes_work = |round: &str| {
        let prefix = env.mount("e");
        fs::write(prefix.join("after"), round).unwrap();
        assert_eq!(fs::read_to_string(prefix.join("after")).unwrap(), round);
        assert_eq!(fs::read(prefix.join("lib/c.txt")).unwrap(), b"gamma\n");
    };
    // Filled through the mount, while mounted.
    fs::write(prefix.join("big"), samples::noise(1 << 20, 1)).unwrap();
    fill(&prefix.join("filling"));
    fill(&outside);
    read_commands_work();
    fs::remove_file(prefix.join("lib/c.txt")).unwrap();
    fs::remove_file(prefix.join("big")).unwrap();
    fill(&outside);
    fill(&prefix.join("filling"));
    env.envfs(&["discard", "-y", "e"]).ok();
    env.envfs(&["gc", "e"]).ok();
    changes_work("mounted");

    // Filled by another program, while unmounted.
    fs::write(prefix.join("big"), samples::noise(1 << 20, 2)).unwrap();
    // One file is not enough: the next open needs its space again.
    (0..20).for_each(|number| fs::write(prefix.join(format!("small-{number}")), "x").unwrap());
    env.envfs(&["unmount", "e"]).ok();
    fill(&outside);
    read_commands_work();
    env.envfs(&["discard", "-y", "e"]).ok();
    read_commands_work();
    env.envfs(&["gc", "e"]).ok();
    changes_work("not mounted");
    fs::remove_dir_all(&outside).unwrap();
    env.envfs(&["commit", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
}

#[test]
fn full_tmpfs() {
    recover(|env| Medium::tmpfs(env, "size=24m,mode=0700"), fill);
}

#[test]
fn tmpfs_without_free_inodes() {
    recover(
        |env| Medium::tmpfs(env, "size=24m,nr_inodes=400,mode=0700"),
        fill_inodes,
    );
}

#[test]
fn full_ext4_with_1k_blocks() {
    recover(|env| Medium::ext4(env, &["-b", "1024"]), fill);
}

#[test]
fn full_ext4_with_4k_blocks() {
    recover(|env| Medium::ext4(env, &["-b", "4096"]), fill);
}

#[test]
fn ext4_without_free_inodes() {
    recover(
        |env| Medium::ext4(env, &["-b", "4096", "-N", "400"]),
        fill_inodes,
    );
}
