//! `envfs verify`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::diff_revisions::three_revisions;
use super::errors::word;
use crate::support::{TestEnv, images};

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

#[test]
fn a_repair_is_in_the_log_and_undo_passes_it_over() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("committed"), "x").unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    fs::write(prefix.join("lost"), "x").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    let operations = || {
        let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
        log.as_array().unwrap().clone()
    };
    assert_eq!(operations().len(), 1);
    let layers = fs::read_dir(env.home_of("e").join("layers")).unwrap();
    let files = layers.map(|layer| layer.unwrap().path().join("upper/lost"));
    let file = files.into_iter().find(|file| file.exists()).unwrap();
    fs::remove_file(file).unwrap();
    env.envfs(&["verify", "--repair", "-y", "e"]).ok();
    let newest = operations().remove(0);
    assert_eq!(newest["kind"], "repair");
    assert_eq!(newest["undoable"], false);
    let message = newest["message"].as_str().unwrap();
    assert!(message.contains("lost: its content"), "{message}");
    let log = env.envfs(&["log", "--all", "e"]).ok();
    assert!(log.out.contains("repair"), "{log}");
    let id = newest["operation"].to_string();
    env.envfs(&["undo", "--operation", &id, "e"])
        .fails(4, &["missing already"]);
    // Without problems there is no repair.
    env.envfs(&["verify", "--repair", "-y", "e"]).ok();
    assert_eq!(operations().len(), 2);
    env.envfs(&["undo", "e"]).ok();
    let undone = operations().remove(0);
    assert_eq!(undone["undoes"], operations()[2]["operation"]);
    let diff = env.envfs(&["diff", "--name-only", "e"]).ok();
    assert_eq!(diff.out, "committed\n");
}

/// Decoders do not notice a flipped bit in an uncompressed block.
#[test]
fn verify_detects_any_flipped_bit() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    let mut bytes = vec![0; 5 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    env.write(&source.join("noise"), &bytes);
    env.write(&source.join("small"), "small");
    env.envfs(&["import", "-q", word(&source), "e"]).ok();
    let prefix = env.mount("e");
    // The second image inherits most of its digests from the first.
    fs::write(prefix.join("small"), "changed").unwrap();
    let commit = env.envfs(&["commit", "--json", "e"]).ok().json();
    assert_eq!(commit["way"], "append");
    env.envfs(&["unmount", "-q", "e"]).ok();
    env.verify("e");
    let image = images::current(&env, "e");
    let sound = fs::read(&image).unwrap();
    fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    for at in [100, 3 << 20, sound.len() - 1] {
        let mut bad = sound.clone();
        bad[at] ^= 4;
        fs::write(&image, bad).unwrap();
        let said = env.envfs(&["verify", "--json", "e"]);
        assert_eq!(said.code, 1, "{at}: {said}");
        let problems = said.json()["problems"].as_array().unwrap().clone();
        assert_eq!(problems.len(), 1, "{said}");
        let first = format!("bytes {} to", at >> 20 << 20);
        let problem = problems[0].as_str().unwrap();
        assert!(problem.contains(&first) || at < 200, "{at}: {problem}");
    }
    fs::write(&image, sound).unwrap();
    env.verify("e");
}
