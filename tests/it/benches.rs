//! The benchmark program.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{TestEnv, finish, has, mounts_below, samples, skip_allowed, wait_for};

#[test]
fn interrupted_comparison_cleans_up() {
    if !has("mksquashfs") || !has("python3") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        skip_allowed("the comparison needs root");
        return;
    }
    let tree = env.work().join("tree");
    samples::small(&env, &tree);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let scratch = env.root().join(format!("scratch-{signal}"));
        fs::create_dir(&scratch).unwrap();
        let mut command = env.command("python3");
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare.py"))
            .args(["--without", "plain,kernel,fuse", "--only", "find, warm"])
            .args(["--rounds", "1000000"])
            .arg("--env")
            .arg(&tree)
            .arg("--envfs")
            .arg(env!("CARGO_BIN_EXE_envfs"))
            .arg("--scratch")
            .arg(&scratch)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        wait_for("the mount", || !mounts_below(&scratch).is_empty());
        kill(pid, signal).unwrap();
        let done = finish(child, format!("compare.py, {signal}"));
        assert_eq!(done.code, 128 + signal as i32, "{done}");
        assert_eq!(mounts_below(&scratch).len(), 0, "{done}");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "{done}");
    }
}
