//! fish, whose syntax differs from that of the other shells.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use envfs::shell::Shell;
use envfs::shell::plan::{Settings, Variables, activate, deactivate};
use envfs::shell::render::{quote_for_fish, render};

use super::terminal::type_into;
use super::{get, parse, prefix, shell, start, text};
use crate::support::{Run, TestEnv, has, run};

const DUMP: &[u8] = b"\ncommand env -0\n";

/// Runs a script in fish.
fn fish(script: &[u8], variables: &Variables) -> Output {
    shell("fish", &["--no-config"], script, variables)
}

/// As [`start`], with a PATH that fish does not change: it exports an empty entry as a dot.
fn start_of_fish() -> Variables {
    let mut variables = start();
    variables.insert("PATH".into(), "/usr/bin:/bin:.".into());
    variables.insert("LANG".into(), "C.UTF-8".into());
    variables
}

fn without_own(mut variables: Variables) -> Variables {
    variables.remove(OsStr::new("USER"));
    variables
}

#[test]
fn deactivation_restores_all_variables_in_fish() {
    if !has("fish") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let facts = prefix(dir.path());
    for (name, text) in [
        (
            "activate.d/1.fish",
            "set -gx FIRST \"$ODD\"; set -gx ORDER 1\n",
        ),
        (
            "activate.d/2.fish",
            "not-a-command\nset -gx ORDER \"$ORDER-2\"\n",
        ),
        ("deactivate.d/1.fish", "set -e FIRST; set -e ORDER\n"),
    ] {
        fs::write(facts.prefix.join("etc/conda").join(name), text).unwrap();
    }
    let facts = envfs::shell::facts::PrefixFacts::read("odd", &facts.prefix, Some(1));
    let before = start_of_fish();
    let enter = render(
        &activate(&facts, &before, &Settings::with_default_prompt()),
        Shell::Fish,
    );
    let script = [enter.as_slice(), b"\ntool >&2\n", DUMP].concat();
    let output = fish(&script, &before);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.ends_with(b"tool\n"), "{output:?}");
    let active = parse(&output.stdout);
    let odd = "a'b\"c$HOME`x`\n\\!";
    assert_eq!(get(&active, "ODD"), Some(OsStr::new(odd)));
    assert_eq!(get(&active, "FIRST"), Some(OsStr::new(odd)));
    assert_eq!(get(&active, "ORDER"), Some(OsStr::new("1-2")));

    // In a shell that knows only what was exported; the mount may be gone.
    let leave = render(&deactivate(&active), Shell::Fish);
    for is_gone in [false, true] {
        if is_gone {
            fs::rename(&facts.prefix, dir.path().join("gone")).unwrap();
        }
        let output = fish(&[leave.as_slice(), DUMP].concat(), &active);
        assert!(output.status.success(), "{output:?}");
        let mut after = without_own(parse(&output.stdout));
        if is_gone {
            after.remove(OsStr::new("FIRST"));
            after.remove(OsStr::new("ORDER"));
        }
        assert_eq!(after, before);
    }
}

#[test]
fn quoting_survives_two_evaluations_in_fish() {
    if !has("fish") {
        return;
    }
    for value in [
        OsString::from("a'b \"c\" $(d) `e` \\ !! \n'' \\' %self {a,b} ~ *"),
        OsString::from_vec((1..=255).collect()),
        OsString::from(""),
    ] {
        let inner = [b"set -gx V ".as_slice(), &quote_for_fish(&value), DUMP].concat();
        let outer = [
            b"eval ".as_slice(),
            &quote_for_fish(OsStr::from_bytes(&inner)),
        ]
        .concat();
        let output = fish(&outer, &start_of_fish());
        let after = parse(&output.stdout);
        assert_eq!(get(&after, "V"), Some(value.as_os_str()), "{output:?}");
    }
}

#[test]
fn readonly_variables_do_not_stop_activation_in_fish() {
    if !has("fish") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut facts = prefix(dir.path());
    let set = |name: &str, value: &str| (OsString::from(name), Some(OsString::from(value)));
    facts.variables = vec![
        set("A_FIRST", "1"),
        set("fish_pid", "1"),
        set("status", "3"),
        set("Z_LAST", "2"),
    ];
    let before = start_of_fish();
    let enter = activate(&facts, &before, &Settings::with_default_prompt());
    let script = [
        &render(&enter, Shell::Fish),
        b"\ntool >&2\n".as_slice(),
        DUMP,
    ]
    .concat();
    let output = fish(&script, &before);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("envfs: status cannot be changed in this shell\n"),
        "{said}"
    );
    assert!(said.ends_with("tool\n"), "{said}");
    let active = parse(&output.stdout);
    assert_eq!(get(&active, "Z_LAST"), Some(OsStr::new("2")));
    let leave = render(&deactivate(&active), Shell::Fish);
    let output = fish(&[leave.as_slice(), DUMP].concat(), &active);
    assert_eq!(without_own(parse(&output.stdout)), before, "{output:?}");
}

#[test]
fn hook_evaluates_only_successful_output_in_fish() {
    if !has("fish") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("envfs");
    let hooked = |envfs: &str, script: &str| -> String {
        fs::write(&program, format!("#!/bin/sh\n{envfs}\n")).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let mut variables = start_of_fish();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        variables.insert("PATH".into(), path.into());
        // Loading it twice changes nothing.
        let hook = Shell::Fish.hook().unwrap();
        text(&fish(
            format!("{hook}\n{hook}\n{script}\n").as_bytes(),
            &variables,
        ))
    };
    let failed = "envfs activate x; or echo \"$status $A\"";
    assert_eq!(hooked("echo 'set -gx A 1'; exit 3", failed), "3 \n");
    let words = hooked("echo \"set -gx A '$*'\"", "envfs activate 'a b'; echo $A");
    assert!(words.starts_with("__shell fish "), "{words}");
    assert!(words.ends_with(" activate a b\n"), "{words}");
    assert_eq!(hooked("exit 0", "envfs deactivate; echo $status"), "0\n");
    for words in [
        "activate --help",
        "activate -h x",
        "activate --shell fish x",
        "deactivate --shell=fish",
        "status x",
        "",
    ] {
        let out = hooked(
            "echo \"$*\"; exit 4",
            &format!("envfs {words}; or echo $status"),
        );
        assert_eq!(out, format!("{words}\n4\n"));
    }
    // Scripts of an environment see neither our arguments nor our variables.
    let out = hooked(
        "echo 'set -gx B (count $argv)\"$__envfs_text\"'",
        "envfs activate x; echo $B",
    );
    assert_eq!(out, "0\n");
}

fn in_fish(env: &TestEnv, script: &str) -> Run {
    let mut command = env.command("fish");
    command
        .args(["--no-config", "-c"])
        .arg(format!("envfs hook fish | source\n{script}"));
    run(command)
}

/// The environments `one` and `two` for every user.
fn stores() -> Vec<TestEnv> {
    if !has("fish") {
        return Vec::new();
    }
    let all = TestEnv::of_all_users();
    for env in &all {
        env.import_sample("one");
        env.import_sample("two");
    }
    all
}

#[test]
fn environments_can_be_switched_and_stacked_in_fish() {
    for env in stores() {
        let (one, two) = (env.prefix("one"), env.prefix("two"));
        let done = in_fish(
            &env,
            "set before (command env | sort)
             envfs activate one; echo $ENVFS_ENV $ENVFS_PREFIX; tool; command -s tool
             envfs activate two; command -s tool; contains $argv/bin $PATH; echo $ENVFS_SHLVL
             envfs activate --stack one; echo $ENVFS_ENV $ENVFS_SHLVL
             fish --no-config -c 'envfs hook fish | source; envfs deactivate; echo $ENVFS_ENV'
             envfs deactivate; echo $ENVFS_ENV; envfs reactivate; envfs deactivate
             set after (command env | sort)
             test \"$before\" = \"$after\"; or string join \\n $before - $after
             command -s tool; echo $status
             envfs activate no-such; echo $status (set -q ENVFS_ENV; echo $status)",
        )
        .ok();
        let expected = format!(
            "one {0}\ntool\n{0}/bin/tool\n{1}/bin/tool\n1\none 2\ntwo\ntwo\n127\n3 1\n",
            one.display(),
            two.display()
        );
        assert_eq!(done.out, expected, "{done}");
    }
}

#[test]
fn universal_variables_are_emptied_not_erased() {
    for env in stores() {
        let source = env.work().join("conda");
        for (path, text) in [
            ("conda-meta/history", ""),
            ("conda-meta/state", r#"{"env_vars":{"MINE":"***unset***"}}"#),
        ] {
            env.write(&source.join(path), text);
        }
        env.envfs(&["import", "-q", "conda", "c"]).ok();
        // Without the configuration fish has no universal variables.
        let mut command = env.command("fish");
        command.arg("-c").arg(
            "envfs hook fish | source
             set -Ux MINE all; envfs activate c; command env | grep '^MINE='
             fish -c 'set -e -g MINE; echo $MINE'; envfs deactivate; command env | grep '^MINE='",
        );
        let done = run(command).ok();
        assert_eq!(done.out, "MINE=\nall\nMINE=all\n", "{done}");
    }
}

#[test]
fn fish_scripts_can_activate_without_the_hook() {
    for env in stores() {
        let mut command = env.command("fish");
        command.args(["--no-config", "-c"]).arg(
            "envfs activate --shell fish one | source; tool; echo $ENVFS_ENV
             envfs deactivate --shell fish | source; set -q ENVFS_ENV; echo $status
             envfs activate one | source; tool",
        );
        assert_eq!(run(command).ok().out, "tool\none\n1\ntool\n");
    }
}

#[test]
fn fish_prompt_shows_the_environment_and_the_status() {
    for env in stores() {
        let config = env.root().join("home/.config/fish/config.fish");
        env.write(
            &config,
            "set -g fish_greeting
             envfs hook fish | source
             function fish_prompt; echo \"<$status>> \"; end\n",
        );
        let done = type_into(
            &env,
            &["fish"],
            &[
                ("<0>> ", "envfs activate one\n"),
                ("\\(one\\) <0>> ", "false\n"),
                // Anything may redefine the prompt at any time.
                ("\\(one\\) <1>> ", "function fish_prompt; echo '=> '; end\n"),
                ("\\(one\\) => ", "fish\n"),
                ("\\(one\\) <0>> ", "exit\n"),
                ("\\(one\\) => ", "envfs deactivate\n"),
                ("[\r\n]=> ", "exit\n"),
            ],
        )
        .ok();
        assert!(done.out.contains("(one) => "), "{done}");
    }
}

#[test]
fn fish_completes_names_and_no_files() {
    for env in stores() {
        env.write(&env.work().join("oddfile"), "");
        let script = |line: &str| {
            let mut command = env.command("fish");
            command
                .args(["--no-config", "-i", "-c"])
                .arg(format!("envfs hook fish | source; complete -C '{line}'"));
            run(command).ok().out
        };
        assert_eq!(script("envfs activate o"), "one\n");
        assert_eq!(script("envfs hook f"), "fish\n");
        assert!(script("envfs import o").contains("oddfile"));
        assert!(script("envfs stat").contains("status\n"));
    }
}
