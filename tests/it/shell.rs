//! Activation in real shells.

#![allow(clippy::unwrap_used)]

mod advice;
mod conda;
mod fish;
mod manners;
pub(crate) mod terminal;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use envfs::shell::Shell;
use envfs::shell::facts::PrefixFacts;
use envfs::shell::plan::{Settings, Variables, activate, deactivate};
use envfs::shell::render::{quote, render};

use crate::support::skip;

/// The shells of this machine, each with the strictest options it has.
fn shells() -> Vec<(Shell, &'static str, &'static [&'static str])> {
    let all: [(Shell, &str, &[&str]); 3] = [
        (
            Shell::Bash,
            "bash",
            &["--noprofile", "--norc", "-eu", "-o", "pipefail"],
        ),
        (
            Shell::Zsh,
            "zsh",
            &["-f", "-o", "errexit", "-o", "nounset", "-o", "rcquotes"],
        ),
        (Shell::Posix, "dash", &["-eu"]),
    ];
    all.into_iter()
        .filter(|(_, program, _)| {
            let is_here = envfs::sys::process::find_program(program).is_some();
            if !is_here {
                skip(&format!("no {program}"));
            }
            is_here
        })
        .collect()
}

fn shell(program: &str, options: &[&str], script: &[u8], variables: &Variables) -> Output {
    Command::new(program)
        .args(options)
        .arg("-c")
        .arg(OsString::from_vec(script.to_vec()))
        .env_clear()
        .envs(variables)
        .output()
        .unwrap()
}

fn parse(output: &[u8]) -> Variables {
    output
        .split(|&byte| byte == 0)
        .filter_map(|entry| {
            let place = entry.iter().position(|&byte| byte == b'=')?;
            let (name, value) = entry.split_at(place);
            Some((
                OsString::from_vec(name.to_vec()),
                OsString::from_vec(value[1..].to_vec()),
            ))
        })
        .filter(|(name, _)| {
            // Variables that shells set themselves.
            let own: [&[u8]; 6] = [b"_", b"SHLVL", b"PWD", b"OLDPWD", b"PS1", b"LOGNAME"];
            !own.contains(&name.as_bytes())
        })
        .collect()
}

const DUMP: &[u8] = b"\ncommand -p env -0\n";

/// A conda prefix whose path and values need quoting.
fn prefix(dir: &Path) -> PrefixFacts {
    let prefix = dir.join("it's $HOME \"`x`\"");
    for (path, text) in [
        ("bin/tool", "#!/bin/sh\necho tool\n"),
        (
            "conda-meta/state",
            r#"{"env_vars":{"ODD":"a'b\"c$HOME`x`\n\\!","EMPTY":""}}"#,
        ),
        (
            "etc/conda/activate.d/1.sh",
            "export FIRST=\"$NOT_SET_ANYWHERE$ODD\"\nexport ORDER=1\n",
        ),
        ("etc/conda/activate.d/2.sh", "export ORDER=\"$ORDER-2\"\n"),
        ("etc/conda/deactivate.d/1.sh", "unset FIRST; unset ORDER\n"),
    ] {
        let file = prefix.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
    }
    fs::set_permissions(prefix.join("bin/tool"), PermissionsExt::from_mode(0o755)).unwrap();
    PrefixFacts::read("odd", &prefix, Some(1))
}

fn start() -> Variables {
    let mut variables = BTreeMap::new();
    for (name, value) in [
        ("PATH", "/usr/bin:/bin:"),
        // No shell can create files below it.
        ("HOME", "/dev/null"),
        ("EMPTY", ""),
        ("ODD", "before 'x'"),
    ] {
        variables.insert(OsString::from(name), OsString::from(value));
    }
    variables.insert("BYTES".into(), OsString::from_vec(vec![0xff, b'\'', 0xfe]));
    variables
}

fn get<'a>(variables: &'a Variables, name: &str) -> Option<&'a OsStr> {
    variables.get(OsStr::new(name)).map(OsString::as_os_str)
}

#[test]
fn deactivation_restores_all_variables() {
    let dir = tempfile::tempdir().unwrap();
    let facts = prefix(dir.path());
    for (kind, program, options) in shells() {
        let before = start();
        let enter = render(
            &activate(&facts, &before, &Settings::with_default_prompt()),
            kind,
        );
        let script = [enter.as_slice(), b"\ntool >&2\n", DUMP].concat();
        let output = shell(program, options, &script, &before);
        assert!(output.status.success(), "{program}: {output:?}");
        assert!(output.stderr.ends_with(b"tool\n"), "{program}: {output:?}");
        let active = parse(&output.stdout);
        let odd = "a'b\"c$HOME`x`\n\\!";
        assert_eq!(get(&active, "ODD"), Some(OsStr::new(odd)), "{program}");
        assert_eq!(get(&active, "FIRST"), Some(OsStr::new(odd)), "{program}");
        assert_eq!(get(&active, "ORDER"), Some(OsStr::new("1-2")), "{program}");
        assert_eq!(
            get(&active, "CONDA_PREFIX"),
            Some(facts.prefix.as_os_str()),
            "{program}"
        );

        // In another shell, which has only the exported variables.
        let leave = render(&deactivate(&active), kind);
        let script = [leave.as_slice(), DUMP].concat();
        let output = shell(program, options, &script, &active);
        assert!(output.status.success(), "{program}: {output:?}");
        assert_eq!(parse(&output.stdout), before, "{program}");

        // In one shell.
        let script = [enter.as_slice(), b"\n", leave.as_slice(), DUMP].concat();
        let output = shell(program, options, &script, &before);
        assert!(output.status.success(), "{program}: {output:?}");
        assert_eq!(parse(&output.stdout), before, "{program}");
    }
}

#[test]
fn deactivation_works_without_the_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let facts = prefix(dir.path());
    let before = start();
    let mut active = before.clone();
    activate(&facts, &before, &Settings::with_default_prompt()).apply(&mut active);
    drop(dir);
    for (kind, program, options) in shells() {
        let script = [render(&deactivate(&active), kind).as_slice(), DUMP].concat();
        let output = shell(program, options, &script, &active);
        assert!(output.status.success(), "{program}: {output:?}");
        assert_eq!(parse(&output.stdout), before, "{program}");
    }
}

/// Runs a script in a shell with the hook and a fake program `envfs`.
fn hooked(kind: Shell, program: &str, options: &[&str], envfs: &str, script: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("envfs");
    fs::write(&file, format!("#!/bin/sh\n{envfs}\n")).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    let mut variables = start();
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    variables.insert("PATH".into(), path.into());
    let text = format!("{}\n{script}\n", kind.hook().unwrap());
    shell(program, options, text.as_bytes(), &variables)
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn hook_evaluates_only_successful_output_and_keeps_the_status() {
    for (kind, program, options) in shells() {
        if kind.hook().is_none() {
            continue;
        }
        let relaxed: &[&str] = if kind == Shell::Bash {
            &["--norc"]
        } else {
            &["-f"]
        };
        let run = |envfs: &str, script: &str| hooked(kind, program, options, envfs, script);

        let output = run(
            "echo 'export A=1'; exit 3",
            "envfs activate x || echo \"$? ${A-unset}\"",
        );
        assert_eq!(text(&output), "3 unset\n", "{program} {output:?}");

        let output = run(
            "echo \"export A='$*'\"",
            "envfs activate 'a b'; echo \"$A\"",
        );
        assert!(
            text(&output).starts_with(&format!("__shell {program} ")),
            "{output:?}"
        );
        assert!(text(&output).ends_with(" activate a b\n"), "{output:?}");

        let output = run("exit 0", "envfs deactivate; echo \"$? $#\"");
        assert_eq!(text(&output), "0 0\n", "{program} {output:?}");

        for words in [
            "activate --help",
            "activate -h x",
            "activate --shell bash x",
            "status x",
        ] {
            let output = run("echo \"$*\"; exit 4", &format!("envfs {words} || echo $?"));
            assert_eq!(text(&output), format!("{words}\n4\n"), "{program}");
        }
        let output = run("exit 5", "envfs commit || echo $?");
        assert_eq!(text(&output), "5\n", "{program} {output:?}");

        // Scripts of an environment see neither the arguments nor the variables of the hook.
        let script = "envfs activate x; echo \"$B\"";
        let output = run(
            "echo 'export B=\"$# ${__envfs_text-}${__envfs_word-}\"'",
            script,
        );
        assert_eq!(text(&output), "0 \n", "{program} {output:?}");

        // The program gets the prompt although it is not exported, and the hook does not export it.
        let script = "PS1='p> '; envfs activate x; echo \"$A\"; command -p env | grep -c ^PS1 || :";
        let output = hooked(kind, program, relaxed, "echo \"export A='$PS1'\"", script);
        assert_eq!(text(&output), "p> \n0\n", "{program} {output:?}");
    }
}

#[test]
fn hook_can_be_sourced_twice_and_ignores_aliases() {
    for (kind, program, options) in shells() {
        let Some(hook) = kind.hook() else { continue };
        let alias = match kind {
            Shell::Bash => "shopt -s expand_aliases\n",
            _ => "",
        };
        let script = format!("{hook}\n{alias}alias export=false unset=false\neval \"$X\"\n");
        let mut variables = start();
        let plan = activate(
            &PrefixFacts::read("n", Path::new("/nowhere"), None),
            &variables,
            &Settings::with_default_prompt(),
        );
        variables.insert("X".into(), OsString::from_vec(render(&plan, kind)));
        let script = format!("{hook}\n{script}echo \"$ENVFS_ENV\"");
        let output = shell(program, options, script.as_bytes(), &variables);
        assert_eq!(text(&output), "n\n", "{program} {output:?}");
    }
}

#[test]
fn quoting_survives_two_evaluations() {
    for (_, program, options) in shells() {
        let value = OsStr::new("a'b \"c\" $(d) `e` \\ !! \n''");
        let inner = [b"printf %s ".as_slice(), &quote(value)].concat();
        let outer = [b"eval ".as_slice(), &quote(OsStr::from_bytes(&inner))].concat();
        let output = shell(program, options, &outer, &start());
        assert_eq!(output.stdout, value.as_bytes(), "{program}");
    }
}

/// A conda prefix that sets read-only variables and has scripts with errors that end an evaluation.
fn refused(dir: &Path) -> PrefixFacts {
    let prefix = dir.join("refused");
    for (path, text) in [
        ("bin/tool", "#!/bin/sh\necho tool\n"),
        (
            "etc/conda/env_vars.d/x.json",
            r#"{"A_FIRST":"1","BASHOPTS":"x","EUID":"7","FIXED":"x","GONE":"***unset***","PPID":"9",
               "UID":"7","USERNAME":"nobody","Z_LAST":"2","path":"/nowhere","status":"3"}"#,
        ),
        ("conda-meta/state", "{}"),
        (
            "etc/conda/activate.d/1.sh",
            "FIXED=3\nPPID=4\nls /*nothing*like*this\n",
        ),
        ("etc/conda/activate.d/2.sh", "export CAME=1\n"),
        (
            "etc/conda/deactivate.d/2.sh",
            "FIXED=3\nUID=77\nfalse\nnot-a-command\n",
        ),
        ("etc/conda/deactivate.d/1.sh", "unset CAME\n"),
    ] {
        let file = prefix.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
    }
    fs::set_permissions(prefix.join("bin/tool"), PermissionsExt::from_mode(0o755)).unwrap();
    PrefixFacts::read("refused", &prefix, Some(1))
}

#[test]
fn errors_and_readonly_variables_do_not_stop_activation() {
    let dir = tempfile::tempdir().unwrap();
    let facts = refused(dir.path());
    let mut before = start();
    for (name, value) in [("FIXED", "own"), ("GONE", "kept")] {
        before.insert(name.into(), value.into());
    }
    let enter = activate(&facts, &before, &Settings::with_default_prompt());
    let mut active = before.clone();
    enter.apply(&mut active);
    for (kind, program, strict) in shells() {
        let relaxed: &[&str] = match kind {
            Shell::Bash => &["--noprofile", "--norc"],
            Shell::Zsh => &["-f"],
            Shell::Posix | Shell::Fish => &[],
        };
        let mut modes = vec![strict, relaxed];
        if kind == Shell::Bash {
            modes.push(&["--noprofile", "--norc", "--posix", "-eu"]);
        }
        for options in modes {
            let script = [
                b"readonly FIXED GONE\neval ".as_slice(),
                &quote(OsStr::from_bytes(&render(&enter, kind))),
                b"\ntool; echo \"$ENVFS_ENV $A_FIRST $Z_LAST $FIXED $GONE ${CAME-} $-\" >&2\neval ",
                // Planned from the variables that the shell exports then.
                &quote(OsStr::from_bytes(&render(&deactivate(&active), kind))),
                DUMP,
            ]
            .concat();
            let output = shell(program, options, &script, &before);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program} {options:?}: {output:?}");
            let flags = if options.contains(&"-eu") { "eu" } else { "" };
            let line = said
                .lines()
                .find(|line| line.starts_with("refused 1 2 own kept 1 "));
            let line = line.unwrap_or_else(|| panic!("{program} {options:?}: {said}"));
            assert!(flags.chars().all(|flag| line.contains(flag)), "{line}");
            assert!(
                said.contains("envfs: FIXED cannot be changed in this shell"),
                "{said}"
            );
            let output = output.stdout.strip_prefix(b"tool\n").unwrap();
            assert_eq!(parse(output), before, "{program} {options:?}: {said}");
        }
    }
}

#[test]
fn activation_without_path_keeps_system_programs() {
    let dir = tempfile::tempdir().unwrap();
    let facts = prefix(dir.path());
    for (kind, program, options) in shells() {
        for path in [None, Some("")] {
            let mut before = start();
            before.remove(OsStr::new("PATH"));
            if let Some(path) = path {
                before.insert("PATH".into(), path.into());
            }
            let mut active = before.clone();
            let enter = activate(&facts, &before, &Settings::with_default_prompt());
            enter.apply(&mut active);
            let script = [
                render(&enter, kind).as_slice(),
                b"\ntool; ls -d /\n",
                &render(&deactivate(&active), kind),
                b"\necho \"${PATH-none}\"\n",
            ]
            .concat();
            let program = format!("/bin/{program}");
            let output = shell(&program, options, &script, &before);
            assert!(output.status.success(), "{program}: {output:?}");
            let expected = format!("tool\n/\n{}\n", path.unwrap_or("none"));
            assert_eq!(text(&output), expected, "{program}: {output:?}");
        }
    }
}
