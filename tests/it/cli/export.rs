//! `envfs export`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;

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
