//! stress-ng, fio and dbench: load with verification of the written data.
//!
//! `ENVFS_STRESS_SECONDS` sets the duration of each stressor of stress-ng.

use crate::fs::direct::Direct;
use crate::support::{TestEnv, has, run_for};

fn mounted() -> Option<Direct> {
    Direct::empty(TestEnv::new()?, "")
}

#[test]
fn stress_ng_filesystem_class_passes() {
    if !has("stress-ng") {
        return;
    }
    let Some(direct) = mounted() else { return };
    let seconds = std::env::var("ENVFS_STRESS_SECONDS").unwrap_or_else(|_| "1".to_owned());
    let mut command = direct.env.command("stress-ng");
    command
        .args(["--class", "filesystem", "--seq", "1", "--verify"])
        // Not supported on FUSE: binderfs, FIEMAP and fs-verity.
        .args(["--exclude", "binderfs,fiemap,verity"])
        .args(["--timeout", &seconds, "--temp-path"])
        .arg(direct.at())
        .current_dir(direct.env.work());
    let done = run_for(command, 7200).ok();
    let said = format!("{}{}", done.out, done.err);
    assert!(said.contains("successful run completed"), "{done}");
    assert!(!said.contains("fail:"), "{done}");
    // The mount is consistent: leftovers can be removed, before and after a remount.
    let at = direct.at().display().to_string();
    direct
        .env
        .sh(&format!("rm -rf '{at}'/*; ls -A '{at}'"))
        .ok();
    direct.remount();
    direct.env.sh(&format!("test -z \"$(ls '{at}')\"")).ok();
}

#[test]
fn fio_verifies_written_data() {
    if !has("fio") {
        return;
    }
    let Some(direct) = mounted() else { return };
    let jobs = [
        ("psync", "--ioengine=psync --rw=randrw --bsrange=512-64k"),
        ("mapped", "--ioengine=mmap --rw=randrw --bs=4k"),
        (
            "direct",
            "--ioengine=libaio --iodepth=8 --direct=1 --rw=randwrite --bs=4k",
        ),
        (
            "appended",
            "--ioengine=sync --rw=write --bs=3333 --fsync=50",
        ),
    ];
    for (name, words) in jobs {
        let mut command = direct.env.command("fio");
        command
            .args(words.split(' '))
            .args([
                "--size=8m",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--do_verify=1",
            ])
            .args(["--numjobs=2", "--minimal", &format!("--name={name}")])
            .arg(format!("--directory={}", direct.at().display()))
            .current_dir(direct.env.work());
        let done = run_for(command, 600).ok();
        assert!(!done.err.contains("verify:"), "{done}");
    }
}

#[test]
fn dbench_passes() {
    if !has("dbench") {
        return;
    }
    let Some(direct) = mounted() else { return };
    let mut command = direct.env.command("dbench");
    command.args(["-t", "5", "-D"]).arg(direct.at()).arg("4");
    let done = run_for(command, 600).ok();
    assert!(done.out.contains("Throughput"), "{done}");
    assert!(!done.out.contains("ERROR"), "{done}");
}
