//! `envfs status`, and its agreement with `envfs diff`.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::changed;

fn count(status: &Value, what: &str) -> u64 {
    status["changes"][what]["entries"].as_u64().unwrap()
}

#[test]
fn status_and_diff_agree_mounted_and_unmounted() {
    let Some(env) = changed() else { return };
    let files = || env.envfs(&["diff", "--json", "e"]).ok().json()["changes"].clone();
    let mounted = files();
    let lines = env.envfs(&["diff", "e"]).ok();
    assert_eq!(
        lines.out, "M lib/c.txt\nD lib/link\nR lib/deep -> lib/moved/\nA new\n",
        "{lines}"
    );
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    for (what, number) in [
        ("added", 1),
        ("modified", 1),
        ("removed", 1),
        ("renamed", 1),
    ] {
        assert_eq!(count(&status, what), number, "{status}");
        let in_diff = mounted
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["change"] == what);
        assert_eq!(in_diff.count() as u64, number, "{mounted}");
    }
    assert_eq!(status["changes"]["added"]["bytes"], 5);
    assert_eq!(status["state"], "mounted");
    assert!(status["daemon_pid"].is_u64());
    env.envfs(&["unmount", "e"]).ok();
    assert_eq!(files(), mounted);
    let after = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(after["changes"], status["changes"]);
    assert_ne!(after["state"], "mounted");
    // Limited to paths.
    assert_eq!(
        env.envfs(&["diff", "e", "lib/c.txt", "new"]).ok().out,
        "M lib/c.txt\nA new\n"
    );
    assert_eq!(env.envfs(&["diff", "e", "bin"]).ok().out, "");
}
