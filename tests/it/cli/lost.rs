//! What an unclean end has cost is told to whoever comes next.

#![allow(clippy::unwrap_used)]

use std::fs;

use envfs::environment::{EnvLock, Layout};

use crate::support::{TestEnv, wait_for};

#[test]
fn content_that_is_lost_is_told() {
    let Some(env) = TestEnv::new() else { return };
    let lose = |name: &str| {
        env.import_sample(name);
        let prefix = env.mount(name);
        fs::create_dir(prefix.join("made")).unwrap();
        fs::write(prefix.join("made/lost"), "x").unwrap();
        fs::write(prefix.join("kept"), "x").unwrap();
        env.kill_daemon(name);
        let layout = Layout::new(env.home_of(name));
        wait_for("its parent to take note", || {
            EnvLock::current_holder(&layout).is_none()
        });
        let mut layers = fs::read_dir(env.home_of(name).join("layers")).unwrap();
        let upper = layers.next().unwrap().unwrap().path().join("upper");
        // As a power cut leaves it; in this order, so that neither has the inode number of the other.
        fs::write(upper.join("unknown"), "x").unwrap();
        fs::remove_file(upper.join("made/lost")).unwrap();
    };
    lose("e");
    let told = env.envfs(&["verify", "e"]).fails(1, &[]);
    assert!(told.out.contains("made/lost: its content"), "{told}");
    assert!(told.out.contains("set aside in"), "{told}");
    env.verify("e");

    lose("f");
    let told = env.envfs(&["diff", "f"]).ok();
    let log = env.home_of("f").join("daemon.log");
    assert!(
        told.err
            .contains("changed files have lost their content: 1"),
        "{told}"
    );
    assert!(told.err.contains(log.to_str().unwrap()), "{told}");
    assert!(fs::read_to_string(log).unwrap().contains("made/lost: its"));
    assert!(told.out.contains("kept"), "{told}");
    let told = env.envfs(&["diff", "f"]).ok();
    assert!(!told.err.contains("lost"), "{told}");
}
