//! A kill at every step of the import of a history.

use std::fs;

use super::{has_taken_effect, points};
use crate::support::TestEnv;
use crate::support::tree::{self, Look};

/// Makes an environment `e` and the archive of its history, which has two revisions.
fn archive(env: &TestEnv, name: &str) -> String {
    let prefix = env.mount("e");
    fs::write(prefix.join("lib/a.txt"), name).unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    let file = env.work().join(name).to_str().unwrap().to_owned();
    env.envfs(&["export", "-q", "e", "--history", &file]).ok();
    file
}

#[test]
fn interrupted_import_of_a_history_leaves_no_environment_and_can_be_repeated() {
    for point in points("import-history") {
        let Some(env) = TestEnv::new() else { return };
        env.import_sample("e");
        let file = archive(&env, "one");
        let words = ["import", "-q", &file, "f"];
        let done = env.envfs_with("ENVFS_FAULT", point, &words);
        assert_eq!(done.code, 128 + 9, "{point}: {done}");
        assert!(!env.home_of("f").exists(), "{point}");
        env.envfs(&words).ok();
        let (theirs, ours) = (env.prefix("e"), env.mount("f"));
        tree::assert_same_at(&theirs, &ours, Look::ALL, point);
        env.envfs(&["gc"]).ok();
        let homes = fs::read_dir(env.store().join("store")).unwrap().count();
        assert_eq!(homes, 2, "{point}: gc did not remove the rest");
        env.verify("f");
    }
}

#[test]
fn addition_of_new_revisions_is_atomic_at_every_fault_point() {
    for point in points("forward") {
        let Some(env) = TestEnv::new() else { return };
        env.import_sample("e");
        let one = archive(&env, "one");
        env.envfs(&["import", "-q", &one, "f"]).ok();
        let two = archive(&env, "two");
        let words = ["import", "-q", &two, "f"];
        let done = env.envfs_with("ENVFS_FAULT", point, &words);
        assert_eq!(done.code, 128 + 9, "{point}: {done}");
        let is_done = has_taken_effect(point);
        let expected = if is_done { "two" } else { "one" };
        let prefix = env.mount("f");
        let found = fs::read_to_string(prefix.join("lib/a.txt")).unwrap();
        assert_eq!(found, expected, "{point}");
        env.envfs(&["unmount", "f"]).ok();
        env.verify("f");
        assert_eq!(
            env.count(&["log", "f"]),
            if is_done { 3 } else { 2 },
            "{point}"
        );
        let images = || fs::read_dir(env.home_of("f").join("images")).unwrap();
        assert_eq!(images().count(), if is_done { 3 } else { 2 }, "{point}");
        // The same command completes it, or has nothing to do.
        env.envfs(&words).ok();
        tree::assert_same_at(&env.prefix("e"), &env.mount("f"), Look::ALL, point);
        env.envfs(&["unmount", "f"]).ok();
        env.verify("f");
        assert_eq!(images().count(), 3, "{point}");
    }
}
