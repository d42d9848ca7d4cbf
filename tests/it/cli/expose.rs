//! Launchers for the programs of an environment.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::private::is_possible;
use crate::support::{Run, TestEnv, has, mounts_below, run_with_input};

/// Makes an environment of programs that call each other.
fn import(env: &TestEnv, name: &str) {
    let prefix = env.prefix(name);
    let source = env.work().join(format!("source-{name}"));
    let at = prefix.display();
    let programs = [
        ("tool", "#!/bin/sh\necho tool\n".to_owned()),
        ("outer", "#!/bin/sh\ntool; inner \"$@\"\n".to_owned()),
        (
            "inner",
            format!("#!{at}/bin/python\nimport sys; print(sys.prefix, sys.argv[1:])\n"),
        ),
        (
            "again",
            "#!/bin/sh\n[ \"$1\" != second ] || { echo second; exit 3; }\nexec \"$0\" second\n"
                .to_owned(),
        ),
        ("count", "#!/bin/sh\nwc -c; exit 7\n".to_owned()),
        ("a b'c", "#!/bin/sh\necho odd\n".to_owned()),
        (".hidden", "#!/bin/sh\n".to_owned()),
        ("data", String::new()),
    ];
    for (name, text) in programs {
        let path = source.join("bin").join(name);
        env.write(&path, text);
        let mode = if name == "data" { 0o644 } else { 0o755 };
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    env.write(&source.join("pyvenv.cfg"), "home = /usr/bin\n");
    let bin = source.join("bin");
    for (name, target) in [
        ("python", "/usr/bin/python3"),
        ("link", "tool"),
        ("gone", "absent"),
        ("loop", "loop"),
    ] {
        symlink(target, bin.join(name)).unwrap();
        env.user().give(&bin.join(name));
    }
    env.envfs(&["import", "-q", source.to_str().unwrap(), name])
        .ok();
}

/// The programs of such an environment.
const ALL: [&str; 8] = [
    "a b'c", "again", "count", "inner", "link", "outer", "python", "tool",
];

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn contents(dir: &Path) -> BTreeMap<String, String> {
    let read = |name: String| {
        let text = fs::read_to_string(dir.join(&name)).unwrap();
        (name, text)
    };
    listing(dir).into_iter().map(read).collect()
}

/// Runs a script that finds the launchers first.
fn with(env: &TestEnv, dir: &Path, script: &str, variables: &[(&str, &str)]) -> Run {
    let mut command = env.command("/bin/sh");
    let path = format!("{}:/usr/bin:/bin", dir.display());
    command
        .args(["-c", script])
        .env("PATH", path)
        // As in a job, where nothing names the store.
        .env_remove("ENVFS_HOME")
        .envs(variables.iter().copied());
    run_with_input(command, b"12345")
}

fn stage(env: &TestEnv) -> PathBuf {
    import(env, "e");
    let dir = env.work().join("launchers");
    env.envfs(&["expose", "e", dir.to_str().unwrap()]).ok();
    dir
}

#[test]
fn launchers_run_the_programs_of_the_environment() {
    if !has("python3") {
        return;
    }
    for env in TestEnv::of_all_users() {
        let dir = stage(&env);
        assert_eq!(listing(&dir), ALL);
        let prefix = env.prefix("e").display().to_string();
        let check = |variables: &[(&str, &str)]| {
            for (script, code, out) in [
                ("tool", 0, "tool\n".to_owned()),
                ("link", 0, "tool\n".to_owned()),
                ("\"a b'c\"", 0, "odd\n".to_owned()),
                // Programs that call each other, one of them through its first line.
                (
                    "outer 'x  y' '' '*'",
                    0,
                    format!("tool\n{prefix} ['x  y', '', '*']\n"),
                ),
                ("again", 3, "second\n".to_owned()),
                ("exec count", 7, "5\n".to_owned()),
                (
                    "python -c 'import sys; print(sys.prefix, sys.executable)'",
                    0,
                    format!("{prefix} {prefix}/bin/python\n"),
                ),
                (
                    "python -m json.tool --version 2>&1 || python -m this | head -n1",
                    0,
                    String::new(),
                ),
                // A program that executes itself again, by the name that it was called by.
                (
                    "python -c 'import os, sys; a = sys.orig_argv[0]; \
                     os.execvp(a, [a, \"-c\", \"import sys; print(sys.prefix)\"])'",
                    0,
                    format!("{prefix}\n"),
                ),
                // Launchers that call each other.
                (
                    "python -c 'import subprocess; subprocess.run([\"DIR/outer\"])'",
                    0,
                    format!("tool\n{prefix} []\n"),
                ),
            ] {
                let script = script.replace("DIR", dir.to_str().unwrap());
                let done = with(&env, &dir, &script, variables);
                assert_eq!(done.code, code, "{done}");
                if !out.is_empty() {
                    assert_eq!(done.out, out, "{done}");
                }
            }
        };
        check(&[]);
        env.envfs(&["unmount", "e"]).ok();
        if is_possible(&env) {
            // In a job nothing is seen outside.
            check(&[("SLURM_JOB_ID", "7")]);
            assert!(mounts_below(env.root()).is_empty());
        }
        // A program that is gone does not run its launcher for ever.
        let mounted = env.mount("e");
        env.sh(&format!("rm '{}/bin/tool'", mounted.display())).ok();
        let gone = with(&env, &dir, "tool", &[]);
        assert_eq!(gone.code, 127, "{gone}");
    }
}

#[test]
fn launchers_are_those_of_the_committed_programs() {
    let Some(env) = TestEnv::new() else { return };
    let dir = stage(&env);
    let old = env.work().join("old");
    env.envfs(&["expose", "--read-only", "e@1", old.to_str().unwrap()])
        .ok();
    let some = env.work().join("some");
    env.envfs(&["expose", "e", some.to_str().unwrap(), "tool", "inner"])
        .ok();
    assert_eq!(listing(&some), ["inner", "tool"]);
    env.envfs(&["expose", "e", some.to_str().unwrap(), "tool", "none"])
        .fails(3, &["no program none"]);
    env.envfs(&["expose", "e", some.to_str().unwrap(), "bin/tool"])
        .fails(2, &["not the name of a program"]);
    assert_eq!(listing(&some), ["inner", "tool"]);
    let prefix = env.mount("e");
    fs::copy(prefix.join("bin/tool"), prefix.join("bin/fresh")).unwrap();
    fs::remove_file(prefix.join("bin/inner")).unwrap();
    assert_eq!(listing(&dir), ALL, "nothing is committed");
    let done = env.envfs(&["commit", "e"]).ok();
    assert!(done.err.contains("1 new, 1 removed"), "{done}");
    let mut now: Vec<&str> = ALL.into_iter().filter(|name| *name != "inner").collect();
    now.insert(3, "fresh");
    assert_eq!(listing(&dir), now);
    assert_eq!(listing(&some), ["tool"]);
    assert_eq!(listing(&old), ALL);
    assert_eq!(with(&env, &dir, "fresh", &[]).ok().out, "tool\n");
    env.envfs(&["unmount", "e"]).ok();
    let text = "test ! -e \"$ENVFS_PREFIX/bin/fresh\" && echo \"$ENVFS_REV\"";
    env.envfs(&["run", "e@1", "sh", "-c", text]).ok();
    env.envfs(&["unmount", "--all"]).ok();
    env.envfs(&["undo", "e"]).ok();
    assert_eq!(listing(&dir), ALL);
    env.envfs(&["undo", "-n", "e"]).ok();
    env.envfs(&["undo", "e"]).ok();
    assert_eq!(listing(&dir), now);
    env.envfs(&["rollback", "-y", "e", "1"]).ok();
    assert_eq!(listing(&dir), ALL);
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["rename", "e", "f"]).ok();
    assert_eq!(with(&env, &dir, "tool", &[]).ok().out, "tool\n");
    env.envfs(&["unmount", "f"]).ok();
    assert_eq!(
        with(&env, &old, "tool", &[]).ok().out,
        "tool\n",
        "read-only, at the same prefix"
    );
    env.envfs(&["unmount", "--all"]).ok();
    let elsewhere = env.work().join("elsewhere");
    env.envfs(&["relocate", "f", elsewhere.to_str().unwrap()])
        .ok();
    let where_it_is = with(&env, &dir, "inner", &[]).ok();
    assert!(
        where_it_is.out.starts_with(elsewhere.to_str().unwrap()),
        "{where_it_is}"
    );
    env.envfs(&["unmount", "--all"]).ok();
    let listed = env.envfs(&["expose", "--json", "f"]).ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
    assert_eq!(listed[1]["revision"], "1", "{listed}");
    assert_eq!(listed[1]["options"][0], "--read-only", "{listed}");
    // A clone has no launchers.
    env.envfs(&["clone", "f", "g"]).ok();
    assert_eq!(env.envfs(&["expose", "g"]).ok().out, "");
    env.envfs(&["remove", "-y", "f"]).ok();
    for dir in [&dir, &old, &some] {
        assert!(listing(dir).is_empty());
    }
}

#[test]
fn only_launchers_of_the_environment_are_replaced_or_removed() {
    for env in TestEnv::of_all_users() {
        import(&env, "e");
        import(&env, "f");
        let dir = env.work().join("launchers");
        let shown = dir.to_str().unwrap();
        env.write(&dir.join("tool"), "mine\n");
        env.write(&dir.join("other"), "mine too\n");
        symlink("other", dir.join("outer")).unwrap();
        let before = contents(&dir);
        env.envfs(&["expose", "e", shown])
            .fails(4, &["did not write", "outer", "tool"]);
        assert_eq!(contents(&dir), before);
        assert_eq!(
            env.envfs(&["expose", "e"]).ok().out,
            "",
            "nothing is recorded"
        );
        env.envfs(&["expose", "e", shown, "inner"]).ok();
        env.envfs(&["expose", "f", shown, "inner"])
            .fails(4, &["launchers of another environment", "inner"]);
        env.envfs(&["expose", "f", shown, "count"]).ok();
        // A commit reports a name that is taken, and goes on.
        fs::remove_file(dir.join("outer")).unwrap();
        fs::remove_file(dir.join("tool")).unwrap();
        env.envfs(&["expose", "e", shown, "inner", "tool", "outer"])
            .ok();
        fs::remove_file(dir.join("tool")).unwrap();
        env.write(&dir.join("tool"), "mine again\n");
        let prefix = env.mount("e");
        env.sh(&format!("echo >'{}/new'", prefix.display())).ok();
        let done = env.envfs(&["commit", "e"]).ok();
        assert!(done.err.contains("did not write: tool"), "{done}");
        env.envfs(&["expose", "--remove", "e", shown]).ok();
        assert_eq!(listing(&dir), ["count", "other", "tool"]);
        assert_eq!(
            fs::read_to_string(dir.join("tool")).unwrap(),
            "mine again\n"
        );
        env.envfs(&["expose", "--remove", "e", shown])
            .fails(3, &["no launchers of e"]);
        // A directory that is gone is reported, and the commit is done.
        let gone = env.work().join("gone");
        env.envfs(&["expose", "e", gone.to_str().unwrap(), "tool"])
            .ok();
        fs::remove_dir_all(&gone).unwrap();
        env.sh(&format!("echo 2 >'{}/new'", prefix.display())).ok();
        let done = env.envfs(&["commit", "e"]).ok();
        assert!(done.err.contains("expose --remove"), "{done}");
        env.envfs(&["expose", "--refresh", "e"]).fails(3, &["gone"]);
        let listed = env.envfs(&["expose", "e"]).ok();
        assert!(listed.out.contains("gone (gone)"), "{listed}");
        env.envfs(&["expose", "--remove", "e", gone.to_str().unwrap()])
            .ok();
        assert_eq!(env.count(&["expose", "e"]), 0);
        let inside = prefix.join("bin");
        env.envfs(&["expose", "e", inside.to_str().unwrap()])
            .fails(2, &["inside the environment"]);
        env.verify("e");
    }
}

#[test]
fn launchers_that_were_half_written_are_completed() {
    for point in ["expose.recorded", "expose.renamed", "expose.removed"] {
        let Some(env) = TestEnv::new() else { return };
        import(&env, "e");
        let dir = env.work().join("launchers");
        let shown = dir.to_str().unwrap();
        let expose = ["expose", "e", shown];
        let remove = ["expose", "--remove", "e", shown];
        let words: &[&str] = match point {
            "expose.removed" => {
                env.envfs(&expose).ok();
                &remove
            }
            _ => &expose,
        };
        let killed = env.envfs_with("ENVFS_FAULT", point, words);
        assert_eq!(killed.code, 128 + 9, "{point}: {killed}");
        // Each launcher is whole or absent, and the directory is known.
        for (name, text) in contents(&dir) {
            assert!(
                name.starts_with(".envfs-new-") || text.ends_with("\"$@\"\n"),
                "{name}"
            );
        }
        assert_eq!(env.count(&["expose", "e"]), 1, "{point}");
        env.envfs(words).ok();
        let left = listing(&dir);
        let launchers = left.iter().filter(|name| !name.starts_with('.')).count();
        let expected = if words == expose { ALL.len() } else { 0 };
        assert_eq!(launchers, expected, "{point}: {left:?}");
    }
}
