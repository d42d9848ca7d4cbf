//! What envfs says to a shell that did not load the hook.

use super::terminal::type_into;
use crate::support::{TestEnv, find, run, skip};

#[test]
fn unsupported_shells_are_reported() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("one");
    for verb in [&["activate", "one"][..], &["deactivate"], &["reactivate"]] {
        for shell in ["/bin/tcsh", "/opt/bin/nu"] {
            let name = shell.rsplit('/').next().unwrap();
            let done = env
                .envfs_with("SHELL", shell, verb)
                .fails(2, &[name, "bash, zsh, fish", "--shell posix"]);
            assert!(!done.err.contains("hook"), "{done}");
            assert_eq!(done.out, "");
        }
    }
    // The shell that runs envfs counts, not the login shell.
    let mut command = env.command("/bin/sh");
    command
        .args(["-c", "envfs activate one >out; echo $?"])
        .env("SHELL", "/bin/tcsh");
    assert_eq!(run(command).ok().out, "0\n");
}

#[test]
fn hints_fit_the_users_shell() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("one");
    for (shell, lines) in [
        (
            "bash",
            [
                "eval \"$(envfs hook bash)\" && envfs activate one",
                "echo 'eval \"$(envfs hook bash)\"' >> ~/.bashrc",
                "eval \"$(envfs activate one --shell bash)\"",
            ],
        ),
        (
            "zsh",
            [
                "eval \"$(envfs hook zsh)\" && envfs activate one",
                "echo 'eval \"$(envfs hook zsh)\"' >> ~/.zshrc",
                "eval \"$(envfs activate one --shell zsh)\"",
            ],
        ),
        (
            "fish",
            [
                "envfs hook fish | source && envfs activate one",
                "echo 'envfs hook fish | source' >> ~/.config/fish/config.fish",
                "envfs activate one --shell fish | source",
            ],
        ),
        (
            "dash",
            ["eval \"$(envfs activate one --shell posix)\"", "", ""],
        ),
    ] {
        if find(shell).is_none() {
            skip(&format!("no {shell}"));
            continue;
        }
        let done = type_into(&env, &[shell, "-c", "envfs activate one; true"], &[]).ok();
        for line in lines {
            assert!(done.out.contains(line), "{line}: {done}");
        }
        // The lines work in that shell.
        let script = format!("{}; tool", lines[2].trim());
        if lines[2].is_empty() {
            continue;
        }
        let mut command = env.command(shell);
        command.args(["-c", &script]);
        assert_eq!(run(command).ok().out, "tool\n");
        let mut command = env.command(shell);
        command.args(["-c", &format!("{}; tool", lines[0])]);
        assert_eq!(run(command).ok().out, "tool\n");
    }
}
