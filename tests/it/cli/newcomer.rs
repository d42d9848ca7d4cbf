//! What somebody types first is answered with what to type next.

use std::fs;

use crate::support::{Run, TestEnv, run};

#[test]
fn words_without_a_name_are_explained_where_no_environment_is_active() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let active = "no environment is active";
    for words in [
        &["diff", "1", "2"][..],
        &["restore", "lib", "--from", "1"],
        &["discard", "lib"],
    ] {
        env.envfs(words).fails(3, &[active, "NAME"]);
        let done = env.envfs_with("ENVFS_ENV", "e", words);
        assert!(!done.err.contains(active), "{done}");
    }
}

#[test]
fn a_directory_above_environments_names_them() {
    for env in TestEnv::of_all_users() {
        env.write(&env.work().join("proj/.venv/bin/tool"), "");
        env.envfs(&["import", "-q", "--in-place", "proj/.venv"])
            .ok();
        let status = |dir: &str, word: &str| -> Run {
            let mut command = env.envfs_command(&["status", word]);
            command.current_dir(env.work().join(dir));
            run(command)
        };
        let at = env.work().join("proj/.venv");
        for (dir, word) in [("proj", "."), (".", "./proj"), ("proj/.venv", "..")] {
            let done = status(dir, word).fails(3, &["proj is below it", at.to_str().unwrap()]);
            assert!(!done.err.contains("--in-place"), "{done}");
        }
        status(".", "/usr").fails(3, &["envfs import --in-place /usr"]);
    }
}

#[test]
fn an_export_into_a_missing_directory_names_what_was_typed() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let done = env.envfs(&["export", "e", "none/e.sqfs"]);
    let done = done.fails(3, &["cannot write none/e.sqfs: No such file or directory"]);
    assert!(!done.err.contains(".envfs-new"), "{done}");
}

#[test]
fn collecting_garbage_says_if_there_is_none() {
    let Some(env) = TestEnv::new() else { return };
    assert!(env.envfs(&["gc"]).ok().err.contains("nothing to remove"));
    env.import_sample("e");
    for words in [&["gc"][..], &["gc", "-n"], &["gc", "e"]] {
        let done = env.envfs(words).ok();
        assert_eq!(done.err.matches("nothing to remove").count(), 1, "{done}");
    }
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "x").unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    let done = env.envfs(&["gc", "--keep", "1"]).ok();
    assert!(
        done.err.contains("1 revision") && !done.err.contains("nothing"),
        "{done}"
    );
}

#[test]
fn a_prefix_may_be_given_with_parents_in_it() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.sh("mkdir -p here real/below; ln -s real/below link")
        .ok();
    let mut relocate = env.envfs_command(&["relocate", "e", "../link/../new"]);
    relocate.current_dir(env.work().join("here"));
    run(relocate).ok();
    // A link is followed before its parent is taken, as the system does.
    assert_eq!(env.mount("e"), env.work().join("real/new"));
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["relocate", "e", "none/../new"])
        .fails(1, &["none/.."]);
}
