//! fsx: random operations on one file; every read is verified.

use std::fs;

use super::installed;
use crate::fs::direct::Direct;
use crate::support::{TestEnv, run_for};

/// All operations that fsx supports on a mount.
const CONFIGURATION: &str = "\
flen = 400000
[weights]
close_open = 1
invalidate = 1
truncate = 10
read = 10
write = 10
mapread = 10
mapwrite = 10
copy_file_range = 5
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 5
sendfile = 5
";

/// Returns the number of operations for each seed.
pub(super) fn operations(usual: u64) -> u64 {
    std::env::var("ENVFS_FSX_OPS").map_or(usual, |text| text.parse().unwrap())
}

#[test]
fn fsx_passes() {
    let Some(program) = installed("fsx") else {
        return;
    };
    let Some(env) = TestEnv::new() else { return };
    let Some(direct) = Direct::empty(env, "") else {
        return;
    };
    let env = &direct.env;
    let settings = env.work().join("fsx.toml");
    fs::write(&settings, CONFIGURATION).unwrap();
    let count = operations(4000).to_string();
    for seed in 1..=4 {
        let mut command = env.command(&program);
        command
            .args(["-q", "-N", &count, "-S", &seed.to_string(), "-f"])
            .arg(&settings)
            .arg("-P")
            .arg(env.work())
            .arg(direct.at().join(format!("file-{seed}")));
        run_for(command, 3600).ok();
    }
    direct.remount();
    assert_eq!(fs::read_dir(direct.at()).unwrap().count(), 4);
}
