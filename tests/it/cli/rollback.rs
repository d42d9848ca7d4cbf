//! `envfs rollback`.

use std::fs;

use super::diff_revisions::three_revisions;
use crate::support::TestEnv;

#[test]
fn rollback_adds_a_revision_by_number_tag_or_default() {
    let Some(env) = three_revisions() else { return };
    env.envfs(&["discard", "-y", "-q", "e"]).ok();
    env.envfs(&["tag", "e", "first", "1"]).ok();
    let current = || {
        let log = env.envfs(&["log", "--json", "e"]).ok().json();
        (log[0]["revision"].clone(), log[0]["of"].clone())
    };
    for (words, of) in [
        (&["e", "1"][..], 1),
        (&["e", "first"], 1),
        // The revision before the current one.
        (&["e"], 4),
    ] {
        let before = current().0.as_i64().unwrap();
        let mut command = vec!["rollback", "--json"];
        command.extend(words);
        let done = env.envfs(&command).ok().json();
        assert_eq!(done["revision"], before + 1, "{words:?}");
        assert_eq!(done["of"], of, "{words:?}");
        assert_eq!(current().1, of, "{words:?}");
    }
}

#[test]
fn rollback_asks_before_it_drops_changes_and_undo_restores_them() {
    let Some(env) = three_revisions() else { return };
    let prefix = env.mount("e");
    fs::write(prefix.join("uncommitted"), "x").unwrap();
    // What does not exist is reported before any question.
    for missing in ["9", "nosuch"] {
        env.envfs(&["rollback", "e", missing])
            .fails(3, &[missing, "envfs log"]);
    }
    env.envfs(&["rollback", "e", "1"])
        .fails(2, &["uncommitted changes (2 added)", "-y"]);
    assert!(prefix.join("uncommitted").exists());
    env.envfs(&["rollback", "-y", "e", "1"]).ok();
    assert!(!prefix.join("uncommitted").exists());
    env.envfs(&["undo", "e"]).ok();
    assert_eq!(fs::read(prefix.join("uncommitted")).unwrap(), b"x");
}

#[test]
fn an_environment_with_one_revision_has_none_before_it() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.envfs(&["rollback", "e"]).fails(3, &["envfs log"]);
}
