//! `envfs activate`, `deactivate` and `reactivate`, in real shells.

#![allow(clippy::unwrap_used)]

use crate::support::{Run, TestEnv, find, run, skip};

/// The shells that have a hook, each with default and with strict options.
const SHELLS: [(&str, &[&str]); 4] = [
    ("bash", &["--noprofile", "--norc", "-c"]),
    ("bash", &["--noprofile", "--norc", "-euo", "pipefail", "-c"]),
    ("zsh", &["-f", "-c"]),
    ("zsh", &["-f", "-o", "errexit", "-o", "nounset", "-c"]),
];

fn in_shell(env: &TestEnv, shell: &str, options: &[&str], script: &str) -> Run {
    let mut command = env.command(shell);
    command.args(options).arg(script);
    run(command)
}

fn each_shell(test: impl Fn(&TestEnv, &str, &dyn Fn(&str) -> Run)) {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("one");
    env.import_sample("two");
    for (shell, options) in SHELLS {
        if find(shell).is_none() {
            skip(&format!("no {shell}"));
            continue;
        }
        let hooked = |script: &str| {
            let script = format!("eval \"$(envfs hook {shell})\"\n{script}");
            in_shell(&env, shell, options, &script)
        };
        test(&env, shell, &hooked);
    }
}

#[test]
fn deactivation_restores_the_shell() {
    each_shell(|env, shell, hooked| {
        let prefix = env.prefix("one");
        let done = hooked(
            "before=\"$(command -p env | sort)\"
             envfs activate one
             echo \"$ENVFS_ENV $ENVFS_PREFIX\"; tool
             command -v tool
             envfs deactivate
             after=\"$(command -p env | sort)\"
             test \"$before\" = \"$after\" || { echo \"$before\" >&2; echo \"$after\" >&2; exit 9; }
             ! command -v tool",
        )
        .ok();
        let expected = format!("one {0}\ntool\n{0}/bin/tool\n", prefix.display());
        assert_eq!(done.out, expected, "{shell}");
    });
}

#[test]
fn readonly_variables_do_not_stop_activation() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("conda");
    for (path, text) in [
        ("bin/tool", "#!/bin/sh\necho tool\n"),
        ("conda-meta/history", ""),
        (
            "etc/conda/env_vars.d/all.json",
            r#"{"A":"a","FIXED":"x","PPID":"1","UID":"12345","Z":"z"}"#,
        ),
        (
            "etc/conda/deactivate.d/fails.sh",
            "FIXED=2\nnot-a-command\n",
        ),
    ] {
        env.write(&source.join(path), text);
    }
    env.sh("chmod 755 conda/bin/tool").ok();
    env.envfs(&["import", "-q", "conda", "c"]).ok();
    for (shell, options) in SHELLS {
        if find(shell).is_none() {
            skip(&format!("no {shell}"));
            continue;
        }
        let script = format!(
            "eval \"$(envfs hook {shell})\"; export FIXED=own; readonly FIXED
             before=\"$(command -p env | sort)\"; ids=\"$PPID $UID\"
             envfs activate c; echo \"$ENVFS_ENV $A $Z $FIXED $CONDA_PREFIX\"; tool
             envfs deactivate
             test \"$ids\" = \"$PPID $UID\" && test \"$before\" = \"$(command -p env | sort)\""
        );
        let done = in_shell(&env, shell, options, &script).ok();
        let expected = format!("c a z own {}\ntool\n", env.prefix("c").display());
        assert_eq!(done.out, expected, "{done}");
        assert!(done.err.contains("FIXED cannot be changed"), "{done}");
    }
}

#[test]
fn environments_can_be_switched_and_stacked() {
    each_shell(|env, shell, hooked| {
        let (one, two) = (env.prefix("one"), env.prefix("two"));
        let done = hooked(
            "old=\"$PATH\"
             envfs activate one; envfs activate two
             echo \"$ENVFS_ENV\"; command -v tool
             case \":$PATH:\" in *\":$1/bin:\"*) echo both;; *) echo switched;; esac
             envfs deactivate; test \"$PATH\" = \"$old\"; echo \"${ENVFS_ENV-none}\"
             envfs activate one; envfs activate --stack two; echo \"$ENVFS_ENV\"
             envfs deactivate; echo \"$ENVFS_ENV\"; envfs activate one; envfs reactivate
             envfs deactivate; test \"$PATH\" = \"$old\"; echo \"${ENVFS_ENV-none}\""
                .replace("$1", one.to_str().unwrap())
                .as_str(),
        )
        .ok();
        let expected = format!(
            "two\n{}/bin/tool\nswitched\nnone\ntwo\none\nnone\n",
            two.display()
        );
        assert_eq!(done.out, expected, "{shell}: {done}");
    });
}

#[test]
fn nested_shell_inherits_without_affecting_its_parent() {
    each_shell(|_, shell, hooked| {
        let done = hooked(&format!(
            "envfs activate one
             {shell} -c 'eval \"$(envfs hook {shell})\"; echo $ENVFS_ENV; tool; envfs deactivate; echo ${{ENVFS_ENV-none}}'
             echo $ENVFS_ENV; tool; envfs deactivate; echo ${{ENVFS_ENV-none}}"
        ))
        .ok();
        assert_eq!(done.out, "one\ntool\nnone\none\ntool\nnone\n", "{shell}");
    });
}

#[test]
fn failed_activation_leaves_the_shell_unchanged() {
    each_shell(|_, shell, hooked| {
        let done = hooked(
            "old=\"$PATH\"; code=0
             envfs activate no-such || code=$?
             echo \"$code ${ENVFS_ENV-none}\"; test \"$PATH\" = \"$old\"",
        )
        .ok();
        assert_eq!(done.out, "3 none\n", "{shell}");
        assert!(done.err.contains("no-such"), "{done}");
    });
}

#[test]
fn commands_default_to_the_active_environment() {
    each_shell(|_, shell, hooked| {
        let done = hooked(
            "envfs activate one; echo x >\"$ENVFS_PREFIX/new\"
             envfs diff; envfs commit -q -m new; envfs diff; envfs rollback -q -y
             ls \"$ENVFS_PREFIX\"; cd \"$ENVFS_PREFIX/lib\"; echo y >c.txt; envfs diff ./c.txt
             envfs discard -q -y c.txt; cat c.txt; envfs deactivate
             envfs diff 2>&1 || echo $?",
        )
        .ok();
        assert!(
            done.out
                .starts_with("A new\nbin\nlib\nM lib/c.txt\ngamma\nenvfs: no environment given"),
            "{shell}: {done}"
        );
        assert!(done.out.ends_with("2\n"), "{shell}: {done}");
    });
}

#[test]
fn scripts_can_activate_without_the_hook() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("one");
    for (shell, kind) in [("bash", "bash"), ("zsh", "zsh"), ("dash", "posix")] {
        if find(shell).is_none() {
            skip(&format!("no {shell}"));
            continue;
        }
        let script = format!(
            "set -eu; eval \"$(envfs activate --shell {kind} one)\"; tool; echo $ENVFS_ENV
             eval \"$(envfs deactivate --shell {kind})\"; echo ${{ENVFS_ENV-none}}"
        );
        let done = in_shell(&env, shell, &["-c"], &script).ok();
        assert_eq!(done.out, "tool\none\nnone\n", "{shell}");
        let script =
            format!("text=\"$(envfs activate --shell {kind} none-such)\" || echo \"$? <$text>\"");
        assert_eq!(in_shell(&env, shell, &["-c"], &script).ok().out, "3 <>\n");
    }
}

#[test]
fn shell_files_can_be_sourced_as_hooks() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("one");
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shell");
    for (shell, option) in [("bash", "--norc"), ("zsh", "-f")] {
        if find(shell).is_none() {
            skip(&format!("no {shell}"));
            continue;
        }
        let script = format!(
            ". '{}/envfs.{shell}'; envfs activate one; tool; envfs deactivate",
            dir.display()
        );
        assert_eq!(
            in_shell(&env, shell, &[option, "-c"], &script).ok().out,
            "tool\n"
        );
    }
}
