//! Like fsx, on files of the image, which are copied up while other descriptors read them.

use std::fs;

use super::fsx::operations;
use crate::fs::direct::Direct;
use crate::support::{TestEnv, has, run_for, samples};

const SCRIPT: &str = include_str!("lower_fsx.py");

/// Empty, around a page, around a block of the image, and several blocks with a fragment.
const SIZES: [usize; 9] = [
    0, 1, 4095, 4096, 131_071, 131_072, 131_073, 262_144, 400_000,
];

#[test]
fn changes_of_image_files_are_visible_to_all_readers() {
    if !has("python3") {
        return;
    }
    for env in TestEnv::of_all_users() {
        let source = env.work().join("source");
        for seed in 1..=2 {
            for size in SIZES {
                let name = format!("{size}-{seed}");
                env.write(&source.join(name), samples::noise(size, seed + size as u64));
            }
        }
        let Some(direct) = Direct::of(env, &source, "") else {
            return;
        };
        let env = &direct.env;
        let script = env.root().join("lower_fsx.py");
        fs::write(&script, SCRIPT).unwrap();
        let mut command = env.command("python3");
        command
            .arg(&script)
            .arg(operations(500).to_string())
            .arg(direct.at())
            .arg(env.work());
        run_for(command, 3600).ok();
        // A remount shows the last content.
        direct.remount();
        let same = format!(
            "for f in *.expected; do cmp $f '{}'/${{f%.expected}}; done",
            direct.at().display()
        );
        env.sh(&same).ok();
    }
}
