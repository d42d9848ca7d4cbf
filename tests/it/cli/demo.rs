//! `envfs demo`.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::{Run, TestEnv, mounts_below, samples};

/// Runs the demonstration on a sample tree.
fn demo(env: &TestEnv, more: &[&str]) -> Run {
    let source = env.work().join("source");
    if !source.exists() {
        samples::small(env, &source);
    }
    // Neither another store nor an active environment has a meaning for it.
    env.envfs_with("ENVFS_ENV", "other", &[&["demo"], more].concat())
}

/// Returns the names in the directory of temporary files.
fn temporary(env: &TestEnv) -> Vec<String> {
    let names = fs::read_dir(env.root().join("tmp")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn the_demonstration_succeeds_and_cleans_up() {
    for env in TestEnv::of_all_users() {
        let done = demo(&env, &["--source", "source"]).ok();
        for step in [
            "$ envfs import source demo",
            "$ envfs status demo",
            "$ envfs commit demo -m 'add new-package'",
            "yes: after remounting, every name, size and byte is the same",
            "yes: new-package is back",
            "yes: after the rollback, new-package does not exist",
            "That is envfs.",
        ] {
            assert!(done.out.contains(step), "{step}: {done}");
        }
        assert!(temporary(&env).is_empty(), "{:?}", temporary(&env));
        assert!(mounts_below(env.root()).is_empty());
        assert!(!env.store().exists(), "it used the user's store");
    }
}

#[test]
fn a_kept_store_can_be_used() {
    let Some(env) = TestEnv::new() else { return };
    let done = demo(&env, &["--source", "source", "--keep"]).ok();
    let kept = temporary(&env);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let store = env.root().join("tmp").join(&kept[0]);
    let store = store.to_str().unwrap();
    assert!(done.err.contains(&format!("the scratch store is {store}")));
    assert!(mounts_below(env.root()).is_empty());
    env.envfs(&["--home", store, "verify", "demo"]).ok();
    let log = env.envfs(&["--home", store, "log", "--json", "demo"]).ok();
    let kinds = log.json();
    assert_eq!(kinds.as_array().unwrap().len(), 3, "{kinds}");
}

#[test]
fn a_source_that_cannot_be_used_leaves_nothing_behind() {
    let Some(env) = TestEnv::new() else { return };
    env.sh("mkdir -p empty/dir; >file").ok();
    for (source, code, said) in [
        ("none", 3, "none: No such file or directory"),
        ("file", 2, "file is not a directory"),
        ("empty", 3, "empty contains no files"),
    ] {
        let done = demo(&env, &["--source", source]).fails(code, &[said]);
        assert!(temporary(&env).is_empty(), "{done}");
        assert!(mounts_below(env.root()).is_empty(), "{done}");
    }
    env.envfs_with("TMPDIR", "/none", &["demo", "--source", "source"])
        .fails(1, &["/none/envfs-demo-", "TMPDIR"]);
}
