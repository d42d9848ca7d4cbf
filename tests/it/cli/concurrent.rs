//! Commands that run concurrently.

#![allow(clippy::unwrap_used)]

use super::changed;

#[test]
fn concurrent_commands_do_not_interfere() {
    let Some(env) = changed() else { return };
    env.envfs(&["unmount", "e"]).ok();
    let all = |words: &[&str]| {
        let children: Vec<_> = (0..6)
            .map(|_| {
                let mut command = env.envfs_command(words);
                command
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        for child in children {
            crate::support::finish(child, words.join(" ")).ok();
        }
    };
    all(&["status", "e"]);
    all(&["list"]);
    all(&["diff", "e"]);
    all(&["mount", "e"]);
    assert_eq!(crate::support::mounts_below(env.root()).len(), 1);
    all(&["run", "e", "tool"]);
    all(&["commit", "e"]);
    assert_eq!(env.count(&["log", "e"]), 2);
    all(&["unmount", "e"]);
}
