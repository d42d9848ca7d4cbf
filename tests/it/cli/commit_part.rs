//! `envfs commit PATH`, ignored patterns, and `envfs commit --all`.

use std::fs;
use std::path::Path;

use super::changed;
use crate::support::TestEnv;
use crate::support::tree::{self, Look};

fn configure(env: &TestEnv, text: &str) {
    env.write(&env.store().join("config.toml"), text);
}

fn paths(env: &TestEnv, words: &[&str]) -> Vec<String> {
    let out = env.envfs(words).ok().out;
    out.lines().map(str::to_owned).collect()
}

#[test]
fn a_commit_of_paths_leaves_all_else_uncommitted_mounted_and_not_and_for_each_user() {
    for env in TestEnv::of_all_users() {
        for is_mounted in [true, false] {
            let name = if is_mounted { "m" } else { "u" };
            env.import_sample(name);
            let prefix = env.mount(name);
            env.sh(&format!(
                "cd '{}' && mkdir -p new/sub && echo in >new/sub/in && echo out >new/out && \
                 echo more >>lib/a.txt && rm bin/tool",
                prefix.display()
            ))
            .ok();
            let seen = || tree::digest(&env, &prefix);
            let before = seen();
            if !is_mounted {
                env.envfs(&["unmount", name]).ok();
            }
            let said = env.envfs(&["commit", name, "new/sub", "lib", "-m", "part"]);
            let said = said.ok();
            assert!(said.err.contains("revision 2"), "{said}");
            env.mount(name);
            assert_eq!(before, seen(), "the view is the same");
            assert_eq!(
                paths(&env, &["diff", "--name-only", name, "1", "2"]),
                ["lib/a.txt", "new", "new/sub", "new/sub/in"]
            );
            assert_eq!(
                paths(&env, &["diff", "--name-only", name]),
                ["bin/tool", "new/out"]
            );
            env.verify(name);
            env.envfs(&["undo", name]).ok();
            assert_eq!(before, seen(), "after the undo");
            let all = paths(&env, &["diff", "--name-only", name]);
            assert_eq!(all.len(), 6, "{all:?}");
            env.envfs(&["commit", "-q", name]).ok();
            assert_eq!(before, seen(), "all committed");
            env.envfs(&["unmount", name]).ok();
            env.verify(name);
        }
    }
}

#[test]
fn a_part_that_cannot_be_committed_alone_is_refused_with_the_reason() {
    let Some(env) = changed() else { return };
    let prefix = env.prefix("e");
    let before = tree::read(&prefix);
    env.envfs(&["commit", "e", "lib/moved"]).fails(
        4,
        &["lib/moved", "was renamed from", "lib/deep", "name both"],
    );
    env.envfs(&["commit", "e", "missing"])
        .fails(3, &["no such path"]);
    tree::assert_same(&before, &tree::read(&prefix), Look::ALL, "refused");
    assert_eq!(env.count(&["log", "e"]), 1);
    env.envfs(&["commit", "e", "lib/moved", "lib/deep"]).ok();
    // Single paths can be discarded afterwards: nothing is frozen.
    env.envfs(&["discard", "-y", "e", "new"]).ok();
}

#[test]
fn ignored_paths_stay_uncommitted_and_status_counts_them() {
    for env in TestEnv::of_all_users() {
        configure(&env, "[commit]\nignore = [\"__pycache__/\", \"*.log\"]\n");
        env.import_sample("e");
        let prefix = env.mount("e");
        env.sh(&format!(
            "cd '{}' && mkdir lib/__pycache__ && echo x >lib/__pycache__/a.pyc && echo l >x.log",
            prefix.display()
        ))
        .ok();
        let left = ["lib/__pycache__", "lib/__pycache__/a.pyc", "x.log"];
        let status = env.envfs(&["status", "e", "--json"]).ok().json();
        assert_eq!(status["ignored"]["entries"], 3);
        assert_eq!(status["changes"]["added"]["entries"], 0);
        let said = env.envfs(&["commit", "e"]).ok();
        assert!(said.err.contains("nothing changed"), "{said}");
        env.sh(&format!("echo two >'{}/two'", prefix.display()))
            .ok();
        env.envfs(&["commit", "-q", "e"]).ok();
        assert_eq!(paths(&env, &["diff", "--name-only", "e"]), left);
        let status = env.envfs(&["status", "e"]).ok().out;
        assert!(status.contains("ignored   3 paths"), "{status}");
        let status = env.envfs(&["status", "--ignored", "e"]).ok().out;
        left.iter()
            .for_each(|path| assert!(status.contains(path), "{status}"));
        env.envfs(&["unmount", "e"]).ok();
        env.mount("e");
        assert_eq!(paths(&env, &["diff", "--name-only", "e"]), left);
        env.envfs(&["commit", "-q", "--no-ignore", "e"]).ok();
        assert_eq!(paths(&env, &["diff", "--name-only", "e"]), [""; 0]);
        // A daemon has read the configuration when it started.
        env.envfs(&["unmount", "e"]).ok();
        configure(&env, "[commit]\nignore = [\"[\"]\n");
        env.envfs(&["status", "e"])
            .fails(2, &["config.toml", "invalid pattern \"[\""]);
        configure(&env, "");
    }
}

#[test]
fn an_environment_has_patterns_of_its_own_beside_those_of_the_configuration() {
    for env in TestEnv::of_all_users() {
        configure(&env, "[commit]\nignore = [\"*.log\"]\n");
        env.import_sample("e");
        env.import_sample("other");
        let prefix = env.mount("e");
        let sh = |script: &str| {
            env.sh(&format!("cd '{}' && {script}", prefix.display()))
                .ok()
        };
        sh(
            "printf '# caches\\n\\n__pycache__/\\n/lib/cache  \\n' >.envfsignore \\
            && mkdir lib/__pycache__ lib/cache && echo x >lib/__pycache__/a && echo x >lib/cache/b \\
            && mkdir bin/cache && echo x >bin/cache/c && echo l >x.log",
        );
        let left = [
            "lib/__pycache__",
            "lib/__pycache__/a",
            "lib/cache",
            "lib/cache/b",
            "x.log",
        ];
        let status = env.envfs(&["status", "e", "--json"]).ok().json();
        assert_eq!(status["ignored"]["entries"], 5, "{status}");
        env.envfs(&["commit", "-q", "e"]).ok();
        assert_eq!(paths(&env, &["diff", "--name-only", "e"]), left);
        let found = env.envfs(&["cat", "e@2:.envfsignore"]).ok().out;
        assert!(found.starts_with("# caches"), "{found}");
        // It is read at each commit, and applies to its environment only.
        sh("echo '*.tmp' >.envfsignore && echo t >y.tmp");
        env.envfs(&["commit", "-q", "e"]).ok();
        assert_eq!(
            paths(&env, &["diff", "--name-only", "e"]),
            ["x.log", "y.tmp"]
        );
        let other = env.mount("other");
        env.sh(&format!("echo t >'{}/y.tmp'", other.display())).ok();
        env.envfs(&["commit", "-q", "other"]).ok();
        assert_eq!(paths(&env, &["diff", "--name-only", "other"]), [""; 0]);
        for (line, why) in [("!x", "negated"), ("[", "invalid pattern")] {
            sh(&format!("echo '{line}' >.envfsignore"));
            env.envfs(&["commit", "e"]).fails(2, &[why, ".envfsignore"]);
        }
        env.envfs(&["commit", "-q", "--no-ignore", "e"]).ok();
        sh("rm .envfsignore && mkdir .envfsignore");
        env.envfs(&["commit", "-q", "e"]).ok();
        env.verify("e");
        for name in ["e", "other"] {
            env.envfs(&["unmount", name]).ok();
        }
    }
}

#[test]
fn commit_all_goes_on_after_a_failure_and_reports_it() {
    let Some(env) = changed() else { return };
    for name in ["a", "damaged", "z"] {
        env.import_sample(name);
        let prefix = env.mount(name);
        fs::write(prefix.join("new"), name).unwrap();
        env.envfs(&["unmount", name]).ok();
    }
    env.import_sample("unchanged");
    let image = env.home_of("damaged").join("images");
    let away = env.work().join("away");
    fs::rename(&image, &away).unwrap();
    let said = env.envfs(&["commit", "--all", "-m", "timer"]);
    let said = said.fails(1, &["damaged: "]);
    for name in ["a", "e", "z"] {
        assert!(said.err.contains(&format!("{name}: revision 2")), "{said}");
    }
    assert!(!said.err.contains("unchanged"), "{said}");
    fs::rename(&away, &image).unwrap();
    let words = ["commit", "--all", "--if-changed", "2", "--json"];
    let said = env.envfs(&words).ok().json();
    assert_eq!(said["damaged"]["changed"], 1, "{said}");
    assert_eq!(said["unchanged"]["changed"], 0);
    let said = env.envfs(&["commit", "--all", "--json"]).ok().json();
    assert_eq!(said["damaged"]["revision"], 2);
    assert!(said["a"].is_null());
    assert!(Path::new(&image).exists());
    env.envfs(&["commit", "--all", "e"]).fails(2, &["--all"]);
}
