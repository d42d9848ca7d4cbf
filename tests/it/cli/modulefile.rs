//! Modulefiles, loaded and unloaded by the module systems that clusters have.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::support::{TestEnv, has, mounts_below, run, skip};

/// A module system.
struct System {
    name: &'static str,
    /// What a bash evaluates first.
    init: String,
    language: &'static str,
    file: &'static str,
}

/// Returns the module systems that are there, with each language that they read.
fn systems() -> Vec<System> {
    let mut found = Vec::new();
    // Debian's packages exclude each other, so one of them may be unpacked somewhere else.
    let unpacked = std::env::var_os("ENVFS_SUITES")
        .map_or_else(|| PathBuf::from("target/suites"), PathBuf::from);
    let roots = [PathBuf::from("/"), unpacked.join("modules")];
    let program = roots.iter().find_map(|root| {
        let dirs = fs::read_dir(root.join("usr/lib")).ok()?.flatten();
        let mut programs = dirs.map(|dir| dir.path().join("modulecmd.tcl"));
        programs.find(|path| path.is_file())
    });
    match program {
        Some(program) if has("tclsh") => found.push(System {
            name: "Environment Modules",
            init: format!("eval \"$(tclsh '{}' bash autoinit)\"", program.display()),
            language: "--tcl",
            file: "m",
        }),
        Some(_) => {}
        None => skip("no Environment Modules"),
    }
    let lmod = PathBuf::from("/usr/share/lmod/lmod/init/bash");
    match lmod.exists() {
        true => {
            for (language, file) in [("--lua", "m.lua"), ("--tcl", "m")] {
                found.push(System {
                    name: "Lmod",
                    init: format!(". '{}'", lmod.display()),
                    language,
                    file,
                });
            }
        }
        false => skip("no Lmod"),
    }
    found
}

/// Makes a conda environment that is also a virtual environment of Python.
fn import(env: &TestEnv) {
    let source = env.work().join("source");
    for (path, text) in [
        ("bin/tool", "#!/bin/sh\necho tool\n"),
        ("pyvenv.cfg", "home = /usr/bin\nprompt = shown\n"),
        ("conda-meta/history", ""),
        (
            "etc/conda/env_vars.d/v.json",
            r#"{"VALUE":"a \"b\" $HOME [c] {d} \\ 'e'"}"#,
        ),
        (
            "etc/conda/activate.d/s.sh",
            "export SEEN=\"${SEEN-}+$CONDA_DEFAULT_ENV\"\n",
        ),
        ("etc/conda/deactivate.d/s.sh", "export SEEN=\"${SEEN-}-\"\n"),
        ("etc/conda/activate.d/s.fish", "exit 9\n"),
    ] {
        env.write(&source.join(path), text);
    }
    env.sh("chmod +x source/bin/tool").ok();
    env.envfs(&["import", "-q", "source", "e"]).ok();
}

type State = BTreeMap<String, String>;

/// Returns the variables after each step of a script in bash.
fn states(env: &TestEnv, system: &System, steps: &[&str]) -> Vec<State> {
    let init = &system.init;
    let mut script = format!(
        "export VALUE=before PYTHONHOME=; unset PYTHONHOME; {init} || exit 8\nmodule use \"$PWD/modules\" || exit 8\n"
    );
    for (number, step) in steps.iter().enumerate() {
        script.push_str(&format!(
            "{step} || exit 9\ncommand -p env -0 >state-{number}\n"
        ));
    }
    let mut command = env.command("bash");
    command.args(["--norc", "-c", &script]);
    run(command).ok();
    let read = |number: usize| {
        let text = fs::read_to_string(env.work().join(format!("state-{number}"))).unwrap();
        let entries = text.split('\0').filter_map(|entry| entry.split_once('='));
        let of_systems = |name: &str| {
            ["_", "MODULE", "LMOD", "LOADED", "__", "BASH_"]
                .iter()
                .any(|start| name.starts_with(start))
        };
        entries
            .filter(|(name, _)| !of_systems(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    (0..steps.len()).map(read).collect()
}

fn write_module(env: &TestEnv, system: &System, options: &[&str], name: &str) {
    let dir = env.work().join("modules");
    drop(fs::remove_dir_all(&dir));
    let words = [&["modulefile", system.language], options, &[name]].concat();
    let text = env.envfs(&words).ok().out;
    env.write(&dir.join(system.file), text);
}

#[test]
fn loading_activates_and_unloading_restores() {
    for env in TestEnv::of_all_users() {
        import(&env);
        for system in systems() {
            let what = format!("{} {}", system.name, system.language);
            write_module(&env, &system, &[], "e");
            env.envfs(&["-q", "unmount", "--all"]).ok();
            let steps = [
                "true",
                "module load m",
                "tool >tool-output",
                "module unload m",
            ];
            let found = states(&env, &system, &steps);
            let (before, loaded, after) = (&found[0], &found[1], &found[3]);
            let output = fs::read_to_string(env.work().join("tool-output")).unwrap();
            assert_eq!(output, "tool\n", "{what}");
            // What `envfs run` sets, but for what the module leaves out.
            let words = ["run", "e", "env", "-0"];
            let active = env.envfs_with("VALUE", "before", &words).ok().out;
            let left_out = ["PATH", "ENVFS_SHLVL", "ENVFS_REV", "VALUE", "SEEN"];
            for (name, value) in active.split('\0').filter_map(|entry| entry.split_once('=')) {
                if !left_out.contains(&name) && !name.starts_with('_') {
                    assert_eq!(
                        loaded.get(name).map(String::as_str),
                        Some(value),
                        "{what}: {name}"
                    );
                }
            }
            assert_eq!(loaded["VALUE"], "a \"b\" $HOME [c] {d} \\ 'e'", "{what}");
            assert_eq!(loaded["SEEN"], "+e", "{what}");
            let bin = env.prefix("e").join("bin");
            assert!(loaded["PATH"].starts_with(bin.to_str().unwrap()), "{what}");
            let mut after = after.clone();
            assert_eq!(after.remove("SEEN").as_deref(), Some("+e-"), "{what}");
            let mut before = before.clone();
            if (system.name, system.language) == ("Lmod", "--tcl") {
                // As documented.
                before.remove("VALUE");
            }
            assert_eq!(after, before, "{what}");
        }
        env.envfs(&["-q", "unmount", "--all"]).ok();
    }
}

#[test]
fn a_module_mounts_the_session_that_it_was_printed_for() {
    let Some(env) = TestEnv::new() else { return };
    import(&env);
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "").unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    for system in systems() {
        write_module(&env, &system, &["--read-only"], "e@1");
        env.envfs(&["-q", "unmount", "--all"]).ok();
        let shown = "module show m >&2 && ! test -e \"$ENVFS_PREFIX/bin/tool\"";
        let look = "test -e \"$ENVFS_PREFIX/bin/tool\" && ! test -e \"$ENVFS_PREFIX/new\" && \
                    ! touch \"$ENVFS_PREFIX/x\" 2>/dev/null";
        states(&env, &system, &[shown, "module load m", look]);
        assert_eq!(mounts_below(&prefix).len(), 1);
        env.envfs(&["-q", "unmount", "--all"]).ok();
    }
}

#[test]
fn a_module_that_cannot_mount_is_not_loaded() {
    let Some(env) = TestEnv::new() else { return };
    import(&env);
    for system in systems() {
        write_module(&env, &system, &[], "e");
        env.envfs(&["-q", "unmount", "--all"]).ok();
        let home = env.home_of("e");
        let moved = env.work().join("moved");
        fs::rename(&home, &moved).unwrap();
        let steps = [
            "module load m 2>problem || true",
            "test -z \"${ENVFS_PREFIX-}\"",
        ];
        states(&env, &system, &steps);
        let problem = fs::read_to_string(env.work().join("problem")).unwrap();
        assert!(
            problem.contains("does not exist") || problem.contains("no environment"),
            "{problem}"
        );
        fs::rename(&moved, &home).unwrap();
    }
}
