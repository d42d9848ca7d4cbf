//! Reading images with other programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tree::{Look, Tree, assert_same, of_unsquashfs, read};
use super::{TestEnv, find, run, skip, skip_allowed, unmount};

/// Returns the image of an environment's current revision.
pub(crate) fn current(env: &TestEnv, name: &str) -> PathBuf {
    let paths = env.envfs(&["paths", "--json", name]).ok().json();
    PathBuf::from(paths["image"].as_str().unwrap())
}

/// Reads an image with the kernel, `unsquashfs` and `squashfuse`, as far as they are available, and
/// compares the results with a tree.
#[track_caller]
pub(crate) fn assert_read_by_others(env: &TestEnv, image: &Path, expected: &Tree) {
    let dir = env.root().join("others");
    fs::create_dir(&dir).unwrap();
    let is_root = nix::unistd::geteuid().as_raw() == 0;
    if find("unsquashfs").is_some() {
        let to = dir.join("unsquashed");
        let mut command = Command::new("unsquashfs");
        command
            .args(["-no-progress", "-quiet", "-d"])
            .arg(&to)
            .arg(image);
        // Status 2: something was not created, such as device nodes without root.
        let done = run(command);
        assert!(done.code == 0 || (done.code == 2 && !is_root), "{done}");
        assert_same(expected, &read(&to), of_unsquashfs(), "unsquashfs");
    } else {
        skip("no unsquashfs");
    }
    if find("squashfuse").is_some() {
        let to = dir.join("squashfuse");
        fs::create_dir(&to).unwrap();
        let mut command = Command::new("squashfuse");
        command.arg(image).arg(&to);
        run(command).ok();
        let seen = std::panic::catch_unwind(|| read(&to));
        unmount(&to).ok();
        // squashfuse reports a different inode number for each name of a hard link.
        let (mut seen, mut expected) = (seen.unwrap(), expected.clone());
        for tree in [&mut seen, &mut expected] {
            tree.values_mut()
                .for_each(|entry| entry.same_as = PathBuf::new());
        }
        assert_same(&expected, &seen, Look::ALL, "squashfuse");
    } else {
        skip("no squashfuse");
    }
    if !is_root {
        skip_allowed("a kernel mount needs root");
        return;
    }
    let to = dir.join("kernel");
    fs::create_dir(&to).unwrap();
    let mut command = Command::new("mount");
    command
        .args(["-t", "squashfs", "-o", "loop,ro"])
        .arg(image)
        .arg(&to);
    let mounted = run(command);
    if mounted.code != 0 && !mounted.err.contains("uperblock") {
        skip_allowed(&format!(
            "cannot mount a loop device: {}",
            mounted.err.trim()
        ));
        return;
    }
    mounted.ok();
    let seen = std::panic::catch_unwind(|| read(&to));
    unmount(&to).ok();
    assert_same(expected, &seen.unwrap(), Look::ALL, "the kernel");
}
