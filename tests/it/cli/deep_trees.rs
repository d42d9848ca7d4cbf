//! Trees deeper than `PATH_MAX`, thread stacks and the limit of open files allow naive code to go.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::support::TestEnv;

fn open_dir(dir: impl std::os::fd::AsFd, name: impl rustix::path::Arg) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap()
}

/// Makes a chain of directories, with a file at its end.
fn make_chain(root: &Path, name: &str, depth: usize) {
    let mut dir = open_dir(CWD, root);
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
        dir = open_dir(&dir, name);
    }
    fs::write(format!("/proc/self/fd/{}/end", dir.as_raw_fd()), "the end").unwrap();
}

/// Follows a chain to its end.
#[track_caller]
fn assert_chain(root: &Path, first: &str, name: &str, depth: usize) {
    let mut dir = open_dir(root_fd(root), first);
    for _ in 1..depth {
        dir = open_dir(&dir, name);
    }
    let end = fs::read(format!("/proc/self/fd/{}/end", dir.as_raw_fd()));
    assert_eq!(end.unwrap(), b"the end");
}

fn root_fd(root: &Path) -> OwnedFd {
    open_dir(CWD, root)
}

#[test]
fn deep_trees_work_with_every_command() {
    const DEPTH: usize = 1100;
    const NAME: &str = "directory";
    let Some(env) = TestEnv::new() else { return };
    // Too few descriptors for one per level.
    let envfs = |args: &str| env.sh(&format!("ulimit -n 512; envfs {args}"));
    fs::create_dir(env.work().join("source")).unwrap();
    make_chain(&env.work().join("source"), NAME, DEPTH);
    envfs("import source e").ok();
    envfs("mount e").ok();
    let prefix = env.prefix("e");
    assert_chain(&prefix, NAME, NAME, DEPTH);

    make_chain(&prefix, "n", DEPTH);
    let status = envfs("status e").ok();
    assert!(status.out.contains(&format!("{}", DEPTH + 1)), "{status}");
    assert_eq!(envfs("diff e").ok().out.lines().count(), DEPTH + 1);
    fs::rename(prefix.join(NAME), prefix.join("renamed")).unwrap();
    envfs("commit -q e").ok();
    assert_chain(&prefix, "n", "n", DEPTH);
    assert_chain(&prefix, "renamed", NAME, DEPTH);
    envfs("verify e").ok();

    // Removed, restored and discarded; then opened after a crash.
    env.sh(&format!("rm -rf '{}/n'", prefix.display())).ok();
    assert!(!prefix.join("n").exists());
    envfs("discard -q -y e n").ok();
    assert_chain(&prefix, "n", "n", DEPTH);
    make_chain(&prefix, "other", DEPTH);
    env.kill_daemon("e");
    envfs("mount e").ok();
    assert_chain(&prefix, "other", "other", DEPTH);
    envfs("discard -q -y e").ok();
    envfs("rollback -q -y e 1").ok();
    assert_chain(&prefix, NAME, NAME, DEPTH);
    envfs("gc --keep 1 e").ok();
    envfs("unmount e").ok();

    envfs("export e out.sqfs").ok();
    envfs("export e less.sqfs --exclude '*.pyc'").ok();
    let listed = envfs("image ls -R out.sqfs").ok();
    assert_eq!(listed.out.lines().count(), DEPTH + 1);
    envfs("image verify less.sqfs").ok();
    envfs("image pack source packed.sqfs").ok();
    envfs("remove -y e").ok();
    assert!(!env.home_of("e").exists());
    env.sh("envfs gc").ok();
}

/// The header of a tar entry.
fn header(name: &[u8], kind: u8, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000755");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar  \0");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

#[test]
fn archive_with_a_very_deep_path_is_imported() {
    const DEPTH: usize = 30_000;
    let Some(env) = TestEnv::new() else { return };
    let path = format!("{}end\0", "d/".repeat(DEPTH));
    let mut archive = File::create(env.work().join("deep.tar")).unwrap();
    let mut write = |bytes: &[u8]| {
        archive.write_all(bytes).unwrap();
        archive
            .write_all(&vec![0; bytes.len().next_multiple_of(512) - bytes.len()])
            .unwrap();
    };
    write(&header(b"././@LongLink", b'L', path.len()));
    write(path.as_bytes());
    write(&header(b"cut", b'0', 7));
    write(b"the end");
    write(&[0; 1024]);
    env.sh("ulimit -n 512; envfs import -q deep.tar e").ok();
    assert_chain(&env.mount("e"), "d", "d", DEPTH);
    env.envfs(&["unmount", "e"]).ok();

    let path = format!("{}end\0", "d/".repeat(70_000));
    let mut archive = File::create(env.work().join("deeper.tar")).unwrap();
    archive
        .write_all(&header(b"././@LongLink", b'L', path.len()))
        .unwrap();
    archive.write_all(path.as_bytes()).unwrap();
    archive
        .write_all(&vec![0; path.len().next_multiple_of(512) - path.len()])
        .unwrap();
    archive.write_all(&header(b"cut", b'0', 0)).unwrap();
    archive.write_all(&[0; 1024]).unwrap();
    let refused = env.envfs(&["import", "deeper.tar", "f"]);
    assert!(
        refused.err.contains("more than 65536 components"),
        "{refused}"
    );
}
