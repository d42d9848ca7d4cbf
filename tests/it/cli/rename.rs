//! `envfs rename` and `envfs remove`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;

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
