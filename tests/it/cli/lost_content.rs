//! Content lost in a crash is reported by the next command.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use envfs::environment::{EnvLock, Layout};

use crate::fs::direct::Direct;
use crate::support::{Run, TestEnv, wait_for};

#[test]
fn lost_content_is_reported_once() {
    let Some(env) = TestEnv::new() else { return };
    let lose = |name: &str| {
        env.import_sample(name);
        let prefix = env.mount(name);
        fs::create_dir(prefix.join("made")).unwrap();
        fs::write(prefix.join("made/lost"), "x").unwrap();
        fs::write(prefix.join("kept"), "x").unwrap();
        env.kill_daemon(name);
        let layout = Layout::new(env.home_of(name));
        wait_for("the release of the lock", || {
            EnvLock::current_holder(&layout).is_none()
        });
        let mut layers = fs::read_dir(env.home_of(name).join("layers")).unwrap();
        let upper = layers.next().unwrap().unwrap().path().join("upper");
        // As after a power failure; in this order, so that the files have different inode numbers.
        fs::write(upper.join("unknown"), "x").unwrap();
        fs::remove_file(upper.join("made/lost")).unwrap();
    };
    lose("e");
    let told = env.envfs(&["verify", "e"]).fails(1, &[]);
    assert!(told.out.contains("made/lost: its content"), "{told}");
    assert!(
        told.out.contains("unreferenced files were moved to"),
        "{told}"
    );
    env.verify("e");

    lose("f");
    let told = env.envfs(&["diff", "f"]).ok();
    assert_reported_once(&told, &env.home_of("f").join("daemon.log"));
    assert!(told.out.contains("kept"), "{told}");
    let told = env.envfs(&["diff", "f"]).ok();
    assert!(!told.err.contains("lost"), "{told}");

    // If the daemon finds it, the command that started the daemon reports it.
    lose("g");
    let told = env.envfs(&["mount", "g"]).ok();
    assert_reported_once(&told, &env.home_of("g").join("daemon.log"));
    let told = env.envfs(&["mount", "g"]).ok();
    assert!(!told.err.contains("lost"), "{told}");
}

#[track_caller]
fn assert_reported_once(told: &Run, log: &Path) {
    assert!(
        told.err
            .contains("changed files have lost their content: 1"),
        "{told}"
    );
    assert!(told.err.contains(log.to_str().unwrap()), "{told}");
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("made/lost").count(), 1, "{log}");
}

#[test]
fn lost_content_of_a_mount_without_a_store_is_reported() {
    let Some(env) = TestEnv::new() else { return };
    let Some(direct) = Direct::empty(env, "") else {
        return;
    };
    fs::create_dir(direct.at().join("made")).unwrap();
    fs::write(direct.at().join("made/lost"), "x").unwrap();
    direct.kill();
    let mut layers = fs::read_dir(direct.upper().join("layers")).unwrap();
    let upper = layers.next().unwrap().unwrap().path().join("upper");
    fs::write(upper.join("unknown"), "x").unwrap();
    fs::remove_file(upper.join("made/lost")).unwrap();
    let told = direct.mount();
    assert_reported_once(&told, &direct.upper().join("daemon.log"));
}
