//! What holds after `envfs unmount` returns.

use std::fs;
use std::process::Command;

use crate::support::{Disk, TestEnv, run};

/// The daemon holds images, the upper directory and its log on the store's file system.
#[test]
fn unmount_returns_after_the_daemon_has_closed_all_files_of_the_store() {
    let Some(env) = TestEnv::new() else { return };
    let Some(disk) = Disk::new(env.root(), "mkfs.ext4", &["-q", "-m", "0"], 64) else {
        return;
    };
    // As other file systems of removable media: the user may create the store in it.
    run({
        let mut command = Command::new("chmod");
        command.arg("1777").arg(disk.at());
        command
    })
    .ok();
    let env = env.with_store(&disk.at().join("store"));
    env.import_sample("e");
    for round in 0..10 {
        let prefix = env.mount("e");
        for number in 0..50 {
            fs::write(prefix.join(format!("f{number}")), format!("{round}")).unwrap();
        }
        env.envfs(&["unmount", "-q", "e"]).ok();
        let mut umount = Command::new("umount");
        umount.arg(disk.at());
        run(umount).ok();
        disk.attach().ok();
    }
    env.verify("e");
}
