//! On a file system with reflinks, a commit takes only the space of the change.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Disk, TestEnv, has, images, run};

/// Returns the number of bytes of a file in shared extents, as `filefrag` reports them.
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
fn commit_shares_extents_with_the_old_image() {
    for (maker, arguments) in [
        ("mkfs.xfs", &["-q", "-m", "reflink=1"][..]),
        ("mkfs.btrfs", &["-q"]),
    ] {
        if !has("filefrag") {
            continue;
        }
        let Some(env) = TestEnv::new() else { return };
        let place = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::new(place.path(), maker, arguments, 512) else {
            continue;
        };
        let env = env.with_store(&disk.at().join("store"));
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
            sync.arg("-f").arg(disk.at());
            run(sync).ok();
            let image = images::current(&env, "e");
            // The whole data area except its last, partial block and the first one, with the
            // superblock.
            let shared = shared(&image);
            assert!(
                shared >= (32 << 20) - (128 << 10),
                "{maker}: {shared} bytes shared"
            );
            let written = commit["image"]["bytes_written"].as_u64().unwrap();
            assert!(written < 16 << 10, "{maker}: {commit}");
        }
        env.verify("e");
        env.envfs(&["unmount", "-q", "e"]).ok();
        drop(env);
        drop(disk);
    }
}
