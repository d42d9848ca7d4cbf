//! `envfs hook`.

use crate::support::{TestEnv, find, has, mounts_below, run, skip};

/// Each shell with the line that loads its hook.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "eval \"$(envfs hook bash)\""),
    ("zsh", "eval \"$(envfs hook zsh)\""),
    ("fish", "envfs hook fish | source"),
];

#[test]
fn a_hook_is_valid_and_needs_no_store() {
    let Some(env) = TestEnv::new() else { return };
    for (shell, check) in [
        ("bash", &["bash", "-n"][..]),
        ("zsh", &["zsh", "-n"]),
        ("fish", &["fish", "--no-execute"]),
        ("direnv", &["bash", "-n"]),
    ] {
        let mut command = env.envfs_command(&["hook", shell]);
        command.env_remove("HOME").env_remove("ENVFS_HOME");
        let hook = run(command).ok();
        assert_eq!(hook.err, "", "{shell}");
        assert!(hook.out.ends_with('\n'), "{shell}");
        if has(check[0]) {
            let file = env.work().join(shell);
            env.write(&file, &hook.out);
            let mut command = env.command(check[0]);
            command.args(&check[1..]).arg(file);
            run(command).ok();
        }
    }
    assert!(!env.store().exists(), "a store was created");
}

#[test]
fn other_shells_have_no_hook() {
    let Some(env) = TestEnv::new() else { return };
    for shell in ["tcsh", "posix", "BASH", ""] {
        let done = env.envfs(&["hook", shell]);
        assert_eq!(done.clone().fails(2, &["bash, zsh, fish, direnv"]).out, "");
    }
    env.envfs(&["hook"]).fails(2, &["<SHELL>"]);
    env.envfs(&["hook", "bash", "zsh"]).fails(2, &["'zsh'"]);
}

#[test]
fn a_hook_activates_nothing_and_keeps_the_status_of_commands() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    for (shell, load) in SHELLS {
        if find(shell).is_none() {
            skip(&format!("no {shell}"));
            continue;
        }
        let status = match shell {
            "fish" => "$status",
            _ => "$?",
        };
        let script = format!(
            "{load}; echo loaded {status} \"[$ENVFS_ENV]\"
             envfs list >/dev/null; echo {status}
             envfs status none-such 2>/dev/null; echo {status}
             envfs activate none-such 2>/dev/null; echo {status} \"[$ENVFS_ENV]\""
        );
        let mut command = env.command(shell);
        command.args(["-c", &script]);
        let done = run(command).ok();
        // fish does not redirect the errors of command substitutions in a function.
        assert!(done.err.is_empty() || shell == "fish", "{done}");
        assert_eq!(done.out, "loaded 0 []\n0\n3\n3 []\n", "{shell}");
        assert!(mounts_below(env.root()).is_empty(), "{shell}");
    }
}

#[test]
fn completion_is_defined_in_interactive_shells_only() {
    let Some(env) = TestEnv::new() else { return };
    if !has("bash") {
        return;
    }
    let script = format!(
        "{}; complete -p envfs 2>/dev/null || echo none",
        SHELLS[0].1
    );
    for (options, has_completion) in [("-c", false), ("-ic", true)] {
        let mut command = env.command("bash");
        command.args(["--norc", options, &script]);
        let done = run(command).ok();
        assert_eq!(done.out.starts_with("complete "), has_completion, "{done}");
    }
}
