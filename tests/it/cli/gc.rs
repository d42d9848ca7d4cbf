//! `envfs gc`, `rename` and `remove`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;

#[test]
fn gc_keeps_the_newest_revisions() {
    let Some(env) = changed() else { return };
    for number in 0..3 {
        fs::write(env.prefix("e").join("number"), number.to_string()).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
    }
    let images = || {
        let entries = fs::read_dir(env.home_of("e").join("images")).unwrap();
        entries.count()
    };
    assert_eq!(images(), 4);
    env.envfs(&["gc", "--dry-run", "--keep", "2", "e"]).ok();
    assert_eq!(images(), 4);
    env.envfs(&["gc", "--keep", "2", "e"]).ok();
    assert_eq!(images(), 2);
    assert_eq!(env.count(&["log", "e"]), 2);
    env.verify("e");
    assert_eq!(fs::read(env.prefix("e").join("number")).unwrap(), b"2");
}

#[test]
fn rename_keeps_the_prefix_and_remove_unmounts() {
    let Some(env) = changed() else { return };
    env.envfs(&["rename", "e", "f"]).fails(5, &["unmount"]);
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["rename", "e", "f"]).ok();
    env.envfs(&["status", "e"]).fails(3, &["'e'"]);
    let prefix = env.mount("f");
    assert_eq!(prefix, env.prefix("e"));
    assert_eq!(fs::read(prefix.join("new")).unwrap(), b"12345");
    env.envfs(&["unmount", "f"]).ok();
    env.envfs(&["remove", "f"]).fails(2, &["-y"]);
    env.mount("f");
    env.envfs(&["remove", "-y", "f"]).ok();
    assert!(!env.home_of("f").exists() && !prefix.exists());
    assert_eq!(env.count(&["list"]), 0);
}
