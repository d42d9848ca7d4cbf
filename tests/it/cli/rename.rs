//! `envfs rename`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;

#[test]
fn rename_keeps_the_prefix() {
    let Some(env) = changed() else { return };
    env.envfs(&["rename", "e", "f"]).fails(5, &["unmount"]);
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["rename", "e", "f"]).ok();
    env.envfs(&["status", "e"]).fails(3, &["'e'"]);
    let prefix = env.mount("f");
    assert_eq!(prefix, env.prefix("e"));
    assert_eq!(fs::read(prefix.join("new")).unwrap(), b"12345");
}
