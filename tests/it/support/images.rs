//! Other people's tools on our images.

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

/// Reads an image with the kernel, `unsquashfs` and `squashfuse`, as far as they are here, and
/// compares what they see.
#[track_caller]
pub(crate) fn assert_read_by_others(env: &TestEnv, image: &Path, expected: &Tree) {
    let place = env.root().join("others");
    fs::create_dir(&place).unwrap();
    let is_root = nix::unistd::geteuid().as_raw() == 0;
    if find("unsquashfs").is_some() {
        let to = place.join("unsquashed");
        let mut command = Command::new("unsquashfs");
        command
            .args(["-no-progress", "-quiet", "-d"])
            .arg(&to)
            .arg(image);
        // It ends with 2 where it could not do everything, such as device nodes without root.
        let done = run(command);
        assert!(done.code == 0 || (done.code == 2 && !is_root), "{done}");
        assert_same(expected, &read(&to), of_unsquashfs(), "unsquashfs");
    } else {
        skip("no unsquashfs");
    }
    if find("squashfuse").is_some() {
        let to = place.join("squashfuse");
        fs::create_dir(&to).unwrap();
        let mut command = Command::new("squashfuse");
        command.arg(image).arg(&to);
        run(command).ok();
        let seen = std::panic::catch_unwind(|| read(&to));
        unmount(&to).ok();
        // It gives each name of a hard link another number.
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
        skip_allowed("the kernel's own mount needs root");
        return;
    }
    let to = place.join("kernel");
    fs::create_dir(&to).unwrap();
    let mut command = Command::new("mount");
    command
        .args(["-t", "squashfs", "-o", "loop,ro"])
        .arg(image)
        .arg(&to);
    let mounted = run(command);
    if mounted.code != 0 && !mounted.err.contains("uperblock") {
        skip_allowed(&format!("no loop mount here: {}", mounted.err.trim()));
        return;
    }
    mounted.ok();
    let seen = std::panic::catch_unwind(|| read(&to));
    unmount(&to).ok();
    assert_same(expected, &seen.unwrap(), Look::ALL, "the kernel");
}
