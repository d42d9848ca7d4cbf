//! An environment is also named by a path in it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::{Run, TestEnv, run, samples};

/// Runs envfs in a directory.
#[track_caller]
fn in_dir(env: &TestEnv, dir: &Path, words: &[&str]) -> Run {
    let mut command = env.envfs_command(words);
    command.current_dir(dir);
    run(command)
}

/// A mounted environment `proj` at `work/proj/.venv`, and its prefix.
fn project(env: &TestEnv) -> std::path::PathBuf {
    let source = env.work().join("source");
    samples::small(env, &source);
    env.user().give_tree(&source);
    fs::create_dir(env.work().join("proj")).unwrap();
    env.user().give(&env.work().join("proj"));
    let prefix = env.work().join("proj/.venv");
    env.envfs(&[
        "import",
        "-q",
        "source",
        "proj",
        "--prefix",
        prefix.to_str().unwrap(),
    ])
    .ok();
    env.mount("proj");
    prefix
}

#[test]
fn every_command_accepts_a_path_in_an_environment() {
    for env in TestEnv::of_all_users() {
        let prefix = project(&env);
        let proj = env.work().join("proj");
        let name = |done: Run| done.ok().json()["name"].as_str().unwrap().to_owned();
        for word in [
            ".venv",
            "./.venv",
            ".venv/",
            ".venv/lib/none",
            prefix.to_str().unwrap(),
        ] {
            assert_eq!(
                name(in_dir(&env, &proj, &["status", "--json", word])),
                "proj",
                "{word}"
            );
        }
        assert_eq!(
            name(in_dir(
                &env,
                &env.work(),
                &["status", "--json", "proj/.venv"]
            )),
            "proj"
        );
        let done = in_dir(&env, &proj, &["run", ".venv", "--", "tool"]);
        assert_eq!(done.ok().line(), "tool");
        let script = "cd proj && eval \"$(envfs activate --shell posix .venv)\" && echo $ENVFS_ENV && \
                      cd .venv/lib && envfs status --json . && envfs paths ..";
        let done = env.sh(script).ok();
        assert!(done.out.starts_with("proj\n"), "{done}");
        for words in [
            &["mount", ".venv"][..],
            &["paths", ".venv"],
            &["log", ".venv"],
            &["tag", ".venv", "first"],
            &["tag", ".venv"],
            &["verify", ".venv"],
            &["diff", ".venv"],
            &["commit", ".venv"],
            &["stats", ".venv"],
            &["export", ".venv", "image.sqfs"],
            &["rollback", ".venv", "first"],
            &["gc", ".venv"],
            &["discard", "-y", ".venv"],
            &["unmount", ".venv"],
            &["rename", ".venv", "other"],
            &["remove", "-y", ".venv"],
        ] {
            in_dir(&env, &proj, words).ok();
        }
        assert_eq!(env.count(&["list"]), 0);
    }
}

#[test]
fn path_inside_an_environment_selects_its_changes() {
    let Some(env) = TestEnv::new() else { return };
    let prefix = project(&env);
    fs::write(prefix.join("lib/a.txt"), "changed").unwrap();
    fs::write(prefix.join("new"), "new").unwrap();
    let proj = env.work().join("proj");
    let diff = |dir: &Path, words: &[&str]| {
        let words = [&["diff"], words].concat();
        in_dir(&env, dir, &words).ok().out
    };
    assert_eq!(diff(&proj, &[".venv"]), "M lib/a.txt\nA new\n");
    assert_eq!(diff(&proj, &[".venv/lib"]), "M lib/a.txt\n");
    assert_eq!(diff(&proj, &[".venv/new", ".venv/bin"]), "A new\n");
    assert_eq!(diff(&proj, &["proj", "lib"]), "M lib/a.txt\n");
    assert_eq!(diff(&proj, &["proj", ".venv/lib"]), "M lib/a.txt\n");
    assert_eq!(diff(&prefix.join("lib"), &["."]), "M lib/a.txt\n");
    assert_eq!(diff(&prefix.join("lib"), &[".."]), "M lib/a.txt\nA new\n");
    // Paths of the active environment stay paths of it.
    let mut command = env.envfs_command(&["diff", "lib"]);
    command.env("ENVFS_ENV", "proj").current_dir(&prefix);
    assert_eq!(run(command).ok().out, "M lib/a.txt\n");
    in_dir(&env, &proj, &["discard", "-y", "./.venv/lib"]).ok();
    assert_eq!(diff(&proj, &[".venv"]), "A new\n");
    in_dir(&env, &proj, &["diff", "proj", "../source"]).fails(2, &["outside of"]);
}

#[test]
fn name_takes_precedence_over_a_path() {
    let Some(env) = TestEnv::new() else { return };
    let prefix = project(&env);
    // Another environment is called like a directory here.
    env.import_sample("there");
    let other = prefix.parent().unwrap().join("there");
    std::os::unix::fs::symlink(".venv", &other).unwrap();
    let proj = prefix.parent().unwrap();
    for (word, name) in [("there", "there"), ("./there", "proj"), ("there/", "proj")] {
        let status = in_dir(&env, proj, &["status", "--json", word]).ok().json();
        assert_eq!(status["name"], name, "{word}");
    }
    env.envfs(&["remove", "-y", "there"]).ok();
    let status = in_dir(&env, proj, &["status", "--json", "there"])
        .ok()
        .json();
    assert_eq!(status["name"], "proj", "a path where there is no such name");
}

#[test]
fn path_outside_of_any_environment_is_refused() {
    let Some(env) = TestEnv::new() else { return };
    project(&env);
    let at = |word: &str| env.envfs(&["status", word]);
    at("./source").fails(
        3,
        &["not in an environment", "envfs import --in-place ./source"],
    );
    at(".").fails(3, &["not in an environment"]);
    at("./none").fails(3, &["no environment at ./none", "No such file"]);
    at("source/bin/tool").fails(3, &["not in an environment", "envfs import FILE"]);
    at("source").fails(3, &["no environment 'source'"]);
    at("nothing").fails(3, &["no environment 'nothing'", "envfs list"]);
    at(".none").fails(2, &["invalid environment name"]);
    env.sh("mkdir .dir").ok();
    at(".dir").fails(3, &["envfs import --in-place .dir"]);
}

#[test]
fn a_path_names_an_environment_whose_daemon_has_died() {
    let Some(env) = TestEnv::new() else { return };
    let prefix = project(&env);
    env.kill_daemon("proj");
    let words = ["status", "--json", "proj/.venv/lib"];
    let status = env.envfs(&words).ok().json();
    assert_eq!(
        (&status["name"], &status["state"]),
        (&"proj".into(), &"dead".into())
    );
    // Also where the path has to be resolved.
    std::os::unix::fs::symlink("proj", env.work().join("link")).unwrap();
    env.envfs(&["mount", "link/.venv/lib"]).ok();
    assert!(prefix.join("lib/a.txt").exists());
}
