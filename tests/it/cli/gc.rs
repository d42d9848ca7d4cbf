//! `envfs gc`, `rename` and `remove`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;

#[test]
fn gc_keeps_what_it_should_and_rename_and_remove_do_what_they_say() {
    let Some(env) = changed() else { return };
    for number in 0..3 {
        fs::write(env.prefix("e").join("number"), number.to_string()).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
    }
    let images = |name: &str| {
        fs::read_dir(env.home_of(name).join("images"))
            .unwrap()
            .count()
    };
    assert_eq!(images("e"), 4);
    env.envfs(&["gc", "--dry-run", "--keep", "2", "e"]).ok();
    assert_eq!(images("e"), 4);
    env.envfs(&["gc", "--keep", "2", "e"]).ok();
    assert_eq!(images("e"), 2);
    env.verify("e");
    assert_eq!(fs::read(env.prefix("e").join("number")).unwrap(), b"2");
    env.envfs(&["rename", "e", "f"]).fails(5, &["unmount"]);
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["rename", "e", "f"]).ok();
    env.envfs(&["status", "e"]).fails(3, &["'e'"]);
    let prefix = env.mount("f");
    assert_eq!(prefix, env.prefix("e"), "the prefix stays");
    assert_eq!(fs::read(prefix.join("number")).unwrap(), b"2");
    env.envfs(&["unmount", "f"]).ok();
    env.envfs(&["remove", "f"]).fails(2, &["-y"]);
    env.mount("f");
    env.envfs(&["remove", "-y", "f"]).ok(); // Unmounts it first.
    assert!(!env.home_of("f").exists() && !prefix.exists());
    assert_eq!(env.count(&["list"]), 0);
}
