//! `envfs export`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;
use super::errors::word;
use crate::support::{TestEnv, images, samples, tree};

#[test]
fn exported_image_can_be_imported() {
    let Some(env) = changed() else { return };
    env.envfs(&["commit", "-q", "e"]).ok();
    let file = env.work().join("out.sqfs");
    let word = file.to_str().unwrap();
    env.envfs(&["export", "e", word]).ok();
    env.envfs(&["export", "e", word]).fails(4, &["out.sqfs"]);
    env.envfs(&["export", "--rev", "9", "e", "x.sqfs"])
        .fails(3, &["9"]);
    env.envfs(&["export", "--force", "--rev", "1", "e", word])
        .ok();
    env.envfs(&["import", "-q", word, "again"]).ok();
    let prefix = env.mount("again");
    assert_eq!(fs::read(prefix.join("lib/c.txt")).unwrap(), b"gamma\n");
    let leftovers: Vec<_> = fs::read_dir(env.work())
        .unwrap()
        .flatten()
        .map(|f| f.file_name())
        .collect();
    assert_eq!(leftovers.len(), 2, "{leftovers:?}");
}

#[test]
fn export_excludes_patterns() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::rich(&env, &source);
    env.envfs(&["import", "-q", word(&source), "e"]).ok();
    let whole = env.work().join("whole.sqfs");
    env.envfs(&["export", "-q", "e", word(&whole)]).ok();
    assert!(fs::read(&whole).unwrap() == fs::read(images::current(&env, "e")).unwrap());
    let less = env.work().join("less.sqfs");
    let patterns = ["--exclude", "file-1*", "--exclude", "lib/deep/x"];
    env.envfs(&[&["export", "-q", "e", word(&less)][..], &patterns].concat())
        .ok();
    let mut expected = tree::read(&source);
    expected.retain(|path, _| {
        let path = path.to_string_lossy();
        !path.starts_with("many/file-1") && path != "lib/deep/x"
    });
    images::assert_read_by_others(&env, &less, &expected);
    env.envfs(&["image", "verify", word(&less)]).ok();
    assert!(fs::metadata(&less).unwrap().len() <= fs::metadata(&whole).unwrap().len());
}
