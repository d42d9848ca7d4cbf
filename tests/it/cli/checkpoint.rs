//! `envfs checkpoint`.

use std::fs;

use crate::support::TestEnv;

#[test]
fn a_checkpoint_has_a_message_and_undo_returns_to_it() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("kept"), "1").unwrap();
    let told = env
        .envfs(&["checkpoint", "-m", "before the test", "e"])
        .ok();
    assert_eq!(told.out, "");
    assert!(told.err.contains("e: checkpoint 1"), "{told}");
    fs::write(prefix.join("kept"), "2").unwrap();
    fs::write(prefix.join("dropped"), "x").unwrap();
    let log = env.envfs(&["log", "--all", "e"]).ok();
    assert!(log.out.contains("checkpoint"), "{log}");
    assert!(log.out.contains("before the test"), "{log}");
    // No revision was made.
    assert_eq!(env.count(&["log", "e"]), 1);
    env.envfs(&["undo", "e"]).ok();
    assert_eq!(fs::read(prefix.join("kept")).unwrap(), b"1");
    assert!(!prefix.join("dropped").exists());
    // A commit includes what is in checkpoints.
    env.envfs(&["checkpoint", "-q", "e"]).ok();
    env.envfs(&["commit", "-q", "e"]).ok();
    assert_eq!(env.envfs(&["cat", "e@2:kept"]).ok().out, "1");
    env.verify("e");
}
