//! `envfs gc`.

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
