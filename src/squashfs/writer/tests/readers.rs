//! What all readers find in a written image.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::*;

/// Returns whether a program exists. Prints a message if not.
pub(super) fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()));
    if !found {
        eprintln!("SKIP {program}: not installed");
    }
    found
}

pub(super) fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Describes an image as `unsquashfs` unpacks it.
pub(super) fn by_unsquashfs(image: &Path) -> Option<Vec<String>> {
    if !have("unsquashfs") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mut command = Command::new("unsquashfs");
    command
        .args(["-no-progress", "-strict-errors", "-processors", "1", "-d"])
        .arg(&target)
        .arg(image);
    run(&mut command);
    Some(describe(&target))
}

/// Unmounts, and retries: children of other tests hold our descriptors between fork and exec.
pub(super) fn unmount(path: &Path) {
    let mut command = if is_root() {
        Command::new("umount")
    } else {
        let mut command = Command::new("fusermount3");
        command.arg("-u");
        command
    };
    command.arg(path);
    for _ in 0..100 {
        if command.output().unwrap().status.success() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    run(&mut command);
}

/// Describes an image as the kernel sees it.
pub(super) fn by_kernel(image: &Path) -> Option<Vec<String>> {
    if !is_root() {
        eprintln!("SKIP kernel: not root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "squashfs", "-o", "loop,ro"])
        .arg(image)
        .arg(dir.path())
        .output()
        .unwrap();
    if !mounted.status.success() {
        let loops = Path::new("/dev/loop-control").exists();
        let why = String::from_utf8_lossy(&mounted.stderr);
        assert!(!loops, "the kernel refuses {image:?}: {why}");
        eprintln!("SKIP kernel: no loop devices");
        return None;
    }
    let lines = std::panic::catch_unwind(|| describe(dir.path()));
    unmount(dir.path());
    Some(lines.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Describes an image as squashfuse sees it.
pub(super) fn by_squashfuse(image: &Path) -> Option<Vec<String>> {
    if !have("squashfuse") || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIP squashfuse");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    run(Command::new("squashfuse")
        .arg(image)
        .arg(dir.path())
        .stdout(Stdio::null()));
    let lines = std::panic::catch_unwind(|| describe(dir.path()));
    unmount(dir.path());
    Some(lines.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Describes an image as `rdsquashfs` of squashfs-tools-ng unpacks it.
pub(super) fn by_rdsquashfs(image: &Path) -> Option<Vec<String>> {
    if !have("rdsquashfs") || !is_root() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    fs::create_dir(&target).unwrap();
    let mut command = Command::new("rdsquashfs");
    command.args(["-q", "-XTCO", "-u", "/", "-p"]);
    run(command.arg(&target).arg(image));
    Some(describe(&target))
}

/// Returns the sorted paths that `sqfs2tar` of squashfs-tools-ng finds in an image, and the length
/// of the archive.
pub(super) fn by_sqfs2tar(image: &Path) -> Option<Vec<Vec<u8>>> {
    if !have("sqfs2tar") {
        return None;
    }
    let out = Command::new("sqfs2tar").arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "sqfs2tar {image:?}: {said}");
    let mut archive = tar::Archive::new(&out.stdout[..]);
    let mut paths: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path_bytes().to_vec())
        .map(|path| path.strip_suffix(b"/").unwrap_or(&path).to_vec())
        .collect();
    paths.sort();
    Some(paths)
}

/// Compares an image with its description by all readers.
pub(super) fn check_everywhere(image: &Path, expected: &[String]) {
    compare("our reader", &describe_image(&open(image)), expected);
    check_by_unsquashfs(image, expected);
    if let Some(lines) = by_kernel(image) {
        compare("the kernel", &lines, expected);
    }
    // Squashfuse assigns its own inode numbers to names.
    let without_groups = |lines: &[String]| -> Vec<String> {
        let cut = |line: &String| {
            let (before, rest) = line.split_once(" as ").unwrap();
            let (_, rest) = rest.split_once(" {").unwrap();
            let (xattrs, after) = rest.split_once("} ").unwrap();
            // Before 0.2 it confuses trusted and security.
            let user: Vec<_> = xattrs
                .split(", ")
                .filter(|x| x.starts_with("\"user."))
                .collect();
            format!("{before} {user:?} {after}")
        };
        lines.iter().map(cut).collect()
    };
    if let Some(lines) = by_squashfuse(image) {
        compare(
            "squashfuse",
            &without_groups(&lines),
            &without_groups(expected),
        );
    }
}

/// Compares an image with its description by `unsquashfs`.
pub(super) fn check_by_unsquashfs(image: &Path, expected: &[String]) {
    let Some(lines) = by_unsquashfs(image) else {
        return;
    };
    if is_root() {
        compare("unsquashfs", &lines, expected);
    } else {
        // As an ordinary user it does not set owners, and clears set-id bits.
        compare(
            "unsquashfs",
            &without_owners(&lines),
            &without_owners(expected),
        );
    }
}

fn without_owners(lines: &[String]) -> Vec<String> {
    let cut = |line: &String| {
        let (before, rest) = line.split_once(" links ").unwrap();
        let words: Vec<&str> = before.rsplitn(4, ' ').collect();
        let &[time, _owner, mode, name] = &words[..] else {
            panic!("{line}");
        };
        let mode = u32::from_str_radix(mode, 8).unwrap() & !0o6000;
        format!("{name} {mode:o} {time} links {rest}")
    };
    lines.iter().map(cut).collect()
}

pub(super) fn compare(who: &str, found: &[String], expected: &[String]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "by {who}");
    }
    assert_eq!(found.len(), expected.len(), "by {who}");
}
