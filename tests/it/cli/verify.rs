//! `envfs verify`.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::TestEnv;

#[test]
fn verify_reports_the_disk_usage_of_images() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    env.write(&source.join("zeroes"), vec![0; 8 << 20]);
    env.envfs(&["import", source.to_str().unwrap(), "e"]).ok();
    let images = fs::read_dir(env.home_of("e").join("images")).unwrap();
    let on_disk: u64 = images
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let verified = env.envfs(&["verify", "--json", "e"]).ok().json();
    assert_eq!(verified["bytes"], on_disk);
    let said = env.envfs(&["verify", "e"]).ok();
    assert!(said.err.contains("e: 1 image, "), "{said}");
    assert!(!said.err.contains("MiB"), "{said}");
}
