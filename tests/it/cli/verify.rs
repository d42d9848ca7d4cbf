//! `envfs verify`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::diff_revisions::three_revisions;
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

#[test]
fn verify_reads_one_image_or_all_environments() {
    let Some(env) = three_revisions() else { return };
    env.import_sample("f");
    let one = env.envfs(&["verify", "e@1"]).ok();
    assert!(one.err.contains("e@1: 1 image, "), "{one}");
    let all = env.envfs(&["verify", "--all"]).ok();
    assert!(all.err.contains("e: 3 images, "), "{all}");
    assert!(all.err.contains("f: 1 image, "), "{all}");
    // A flipped byte in the image of revision 2.
    let shown = env.envfs(&["show", "e", "2", "--json"]).ok().json();
    let file = shown["image"]["file"].as_str().unwrap().to_owned();
    let image = env.home_of("e").join("images").join(file);
    let mut bytes = fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&image).unwrap();
    fs::write(&image, bytes).unwrap();
    env.envfs(&["verify", "e@1"]).ok();
    assert_eq!(env.envfs(&["verify", "e@2"]).code, 1);
    let all = env.envfs(&["verify", "--all", "--json"]);
    assert_eq!(all.code, 1, "{all}");
    assert_eq!(all.json()["f"]["images"], 1);
    assert_eq!(all.json()["e"]["images"], 2);
}
