//! On a file system that can share extents, a commit costs the space of the change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{TestEnv, has, images, run, skip_allowed, unmount};

/// A file system in a file, unmounted when it is dropped.
struct Disk {
    mounted: PathBuf,
}

impl Disk {
    fn new(dir: &Path, maker: &str, arguments: &[&str]) -> Option<Disk> {
        let (disk, mounted) = (dir.join(format!("{maker}.disk")), dir.join(maker));
        fs::File::create(&disk).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&mounted).unwrap();
        let mut make = Command::new(maker);
        make.args(arguments).arg(&disk);
        run(make).ok();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&disk).arg(&mounted);
        let done = run(mount);
        if done.code != 0 {
            skip_allowed(&format!("{maker}: {}", done.err.trim()));
            return None;
        }
        Some(Disk { mounted })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The daemon of the store may still be on its way out.
        if unmount(&self.mounted).code != 0 {
            let mut umount = Command::new("umount");
            drop(umount.arg("-l").arg(&self.mounted).status());
        }
    }
}

/// Bytes of a file whose extents are shared with another, by `filefrag`.
fn shared(path: &Path) -> u64 {
    let mut command = Command::new("filefrag");
    command.args(["-v", "-b4096"]).arg(path);
    let said = run(command).ok();
    let blocks = |line: &str| -> Option<u64> {
        // `   0:        0..    4095:      34048..     38143:   4096:             shared`
        let mut parts = line.split(':');
        let length = parts.nth(3)?.trim().parse().ok()?;
        line.contains("shared").then_some(length)
    };
    said.out.lines().filter_map(blocks).sum::<u64>() * 4096
}

#[test]
fn a_commit_shares_the_extents_of_the_old_image() {
    if nix::unistd::geteuid().as_raw() != 0 {
        skip_allowed("a file system in a file needs root");
        return;
    }
    for (maker, arguments) in [
        ("mkfs.xfs", &["-q", "-m", "reflink=1"][..]),
        ("mkfs.btrfs", &["-q"]),
    ] {
        if !has(maker) || !has("filefrag") {
            continue;
        }
        let Some(env) = TestEnv::new() else { return };
        let place = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::new(place.path(), maker, arguments) else {
            continue;
        };
        let env = env.with_store(&disk.mounted.join("store"));
        let source = env.work().join("source");
        let mut bytes = vec![0; 32 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        env.write(&source.join("large"), &bytes);
        env.write(&source.join("small"), "small");
        env.envfs(&["import", "-q", source.to_str().unwrap(), "e"])
            .ok();
        let prefix = env.mount("e");
        for round in 1..4 {
            fs::write(prefix.join("small"), format!("round {round}")).unwrap();
            let commit = env.envfs(&["commit", "--json", "e"]).ok().json();
            assert_eq!(commit["way"], "append", "{commit}");
            let mut sync = Command::new("sync");
            sync.arg("-f").arg(&disk.mounted);
            run(sync).ok();
            let image = images::current(&env, "e");
            // All of the data area but its last block, which is not whole, and the first, where the
            // superblock is.
            let shared = shared(&image);
            assert!(
                shared >= (32 << 20) - (128 << 10),
                "{maker}: {shared} bytes shared"
            );
            let written = commit["written_bytes"].as_u64().unwrap();
            assert!(written < 16 << 10, "{maker}: {commit}");
        }
        env.verify("e");
        env.envfs(&["unmount", "-q", "e"]).ok();
        drop(env);
        drop(disk);
    }
}
