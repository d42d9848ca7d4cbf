//! Old revisions are forgotten after a commit.

use std::fs;

use crate::support::TestEnv;
use crate::support::samples::noise;

const DAY: i64 = 86_400;

fn revisions(env: &TestEnv) -> Vec<i64> {
    let log = env.envfs(&["log", "e", "--json"]).ok().json();
    let log = log.as_array().unwrap().iter().rev();
    log.map(|one| one["revision"].as_i64().unwrap()).collect()
}

/// Makes an unmounted environment with this number of revisions, all made 100 days ago.
fn aged(env: &TestEnv, count: usize) {
    env.import_sample("e");
    for number in 1..count {
        let prefix = env.mount("e");
        let file = env.work().join("content");
        env.write(&file, noise(200_000, number as u64));
        env.sh(&format!(
            "cp '{}' '{}/file'",
            file.display(),
            prefix.display()
        ))
        .ok();
        env.envfs(&["commit", "-q", "e"]).ok();
        env.envfs(&["unmount", "e"]).ok();
    }
    let db = rusqlite::Connection::open(env.home_of("e").join("state.db")).unwrap();
    let earlier = 100 * DAY;
    db.execute("UPDATE revision SET time = time - ?1", [earlier])
        .unwrap();
    drop(db);
    env.user().give_tree(&env.home_of("e"));
}

fn commit(env: &TestEnv, text: &str) -> String {
    let prefix = env.mount("e");
    env.sh(&format!("echo {text} >'{}/new'", prefix.display()))
        .ok();
    let said = env.envfs(&["commit", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    said.err
}

#[test]
fn a_commit_forgets_revisions_that_are_neither_among_the_newest_nor_recent() {
    for env in TestEnv::of_all_users() {
        aged(&env, 12);
        env.envfs(&["tag", "e", "paper", "2"]).ok();
        let prefix = env.mount("e");
        env.sh(&format!("echo discarded >'{}/mine'", prefix.display()))
            .ok();
        env.envfs(&["discard", "-y", "e"]).ok();
        let said = commit(&env, "one");
        assert!(said.contains("e: forgot revisions 1, 3 ("), "{said}");
        assert!(said.contains("history.keep"), "{said}");
        assert_eq!(revisions(&env), [vec![2], (4..=13).collect()].concat());
        env.verify("e");
        // What undo needs stays, and so does the trash.
        env.envfs(&["undo", "e"]).ok();
        let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
        let discard = log.as_array().unwrap().iter();
        let mut discard = discard.filter(|one| one["kind"] == "discard");
        assert_eq!(discard.next().unwrap()["undoable"], true, "{log}");
    }
}

#[test]
fn recent_revisions_and_those_of_another_policy_are_not_forgotten() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    for number in 0..13 {
        let said = commit(&env, &number.to_string());
        assert!(!said.contains("forgot"), "made today: {said}");
    }
    assert_eq!(revisions(&env).len(), 14);
    let Some(env) = TestEnv::new() else { return };
    aged(&env, 5);
    let configure = |text: &str| env.write(&env.store().join("config.toml"), text);
    configure("[history]\nforget = \"never\"\nkeep = 2\n");
    assert!(!commit(&env, "never").contains("forgot"));
    configure("[history]\nkeep = 2\nkeep_for = \"200d\"\n");
    assert!(!commit(&env, "long").contains("forgot"));
    configure("[history]\nkeep = 2\nkeep_for = \"50d\"\n");
    let said = commit(&env, "short");
    // The revision before the old commits was current until a moment ago.
    assert!(said.contains("forgot revisions 1–4"), "{said}");
    assert_eq!(revisions(&env), [5, 6, 7, 8]);
    configure("[history]\nkeep = 0\n");
    env.envfs(&["commit", "e"]).fails(2, &["at least 1"]);
}

#[test]
fn gc_and_show_tell_what_each_revision_frees() {
    let Some(env) = TestEnv::new() else { return };
    aged(&env, 4);
    let planned = env.envfs(&["gc", "-n", "--keep", "1", "--json", "e"]).ok();
    let planned = planned.json();
    let frees = planned["e"]["frees"].as_array().unwrap();
    assert_eq!(frees.len(), 3, "{planned}");
    let used = |revision: i64| {
        let words = ["show", "e", &revision.to_string(), "--json"];
        let shown = env.envfs(&words).ok().json();
        (
            shown["image"]["frees_bytes"].as_u64().unwrap(),
            shown["image"]["disk_bytes"].as_u64().unwrap()
                - shown["image"]["shared_bytes"].as_u64().unwrap_or(0),
        )
    };
    for one in frees {
        let (told, own) = used(one["revision"].as_i64().unwrap());
        assert_eq!(one["bytes"].as_u64().unwrap(), told);
        assert_eq!(told, own);
        assert!(told > 0);
    }
    let said = env.envfs(&["gc", "-n", "--keep", "1", "e"]).ok().err;
    assert!(said.contains("revision 3: "), "{said}");
    // The image of a revision that was restored has two users.
    env.envfs(&["rollback", "-y", "e", "2"]).ok();
    assert_eq!(used(2).0, 0);
    let before = fs::read_dir(env.home_of("e").join("images"))
        .unwrap()
        .count();
    env.envfs(&["gc", "--keep", "1", "e"]).ok();
    let after = fs::read_dir(env.home_of("e").join("images"))
        .unwrap()
        .count();
    assert_eq!((before, after), (4, 1));
    env.verify("e");
}
