//! `envfs shell`.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::private::{stores, wait_for_end};
use crate::support::{Run, TestEnv, run_with_input};

#[test]
fn a_shell_in_an_environment_has_its_programs() {
    for env in stores() {
        for words in [
            &["shell", "e"][..],
            &["shell", "--private", "e"],
            &["shell", "--private", "--read-only", "e"],
        ] {
            let mut command = env.envfs_command(words);
            command.env("SHELL", "/bin/sh");
            let done = run_with_input(command, b"tool; echo $ENVFS_ENV; exit 3\n");
            assert_eq!((done.code, done.out.as_str()), (3, "tool\ne\n"), "{done}");
            env.envfs(&["-q", "unmount", "e"]).ok();
        }
        env.envfs(&["shell"]).fails(2, &["none is active"]);
        wait_for_end(&env);
    }
}

/// Starts a shell and has it read a script.
fn shell(env: &TestEnv, words: &[&str], shell: Option<&str>, script: &str) -> Run {
    let mut command = env.envfs_command(&[&["shell"], words].concat());
    if let Some(shell) = shell {
        command.env("SHELL", shell);
    }
    run_with_input(command, script.as_bytes())
}

#[test]
fn the_shell_is_that_of_the_user() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let own = env.work().join("my-shell");
    env.write(&own, "#!/bin/sh\necho mine $#; exec cat\n");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&own, executable).unwrap();
    let done = shell(&env, &["e"], own.to_str(), "input\n").ok();
    assert_eq!(done.out, "mine 0\ninput\n");
    for without in [None, Some("")] {
        let done = shell(&env, &["e"], without, "readlink /proc/$$/exe; tool\n").ok();
        let sh = std::fs::canonicalize("/bin/sh").unwrap();
        assert_eq!(done.out, format!("{}\ntool\n", sh.display()));
    }
    shell(&env, &["e"], Some("/none/sh"), "").fails(127, &["/none/sh"]);
    let plain = env.work().join("plain");
    env.write(&plain, "");
    shell(&env, &["e"], plain.to_str(), "").fails(126, &["plain"]);
}

#[test]
fn the_name_defaults_to_the_active_environment() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let mut command = env.envfs_command(&["shell"]);
    command.env("SHELL", "/bin/sh").env("ENVFS_ENV", "e");
    assert_eq!(run_with_input(command, b"tool\n").ok().out, "tool\n");
    env.envfs(&["shell", "none-such"])
        .fails(125, &["none-such"]);
    env.envfs(&["shell", "e@9"])
        .fails(125, &["no revision 9", "envfs log e"]);
    env.envfs(&["shell", "--writable", "e@1"])
        .fails(125, &["--writable"]);
    env.envfs(&["shell", "e", "true"]).fails(2, &["'true'"]);
}

#[test]
fn changes_in_a_shell_are_kept_unless_it_is_ephemeral() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let sh = Some("/bin/sh");
    let written = |at: &Path| format!("echo x >'{}/new' && ls '{}'\n", at.display(), at.display());
    let prefix = env.prefix("e");
    let done = shell(&env, &["--ephemeral", "e"], sh, &written(&prefix)).ok();
    assert_eq!(done.out, "bin\nlib\nnew\n");
    let changed = || {
        let changes = env.envfs(&["diff", "--name-only", "e"]).ok();
        changes.out
    };
    assert_eq!(changed(), "");
    let read_only = shell(&env, &["--read-only", "e"], sh, &written(&prefix));
    assert!(
        read_only.err.contains("Read-only file system"),
        "{read_only}"
    );
    env.envfs(&["unmount", "-q", "e@1"]).ok();
    shell(&env, &["e"], sh, &written(&prefix)).ok();
    assert_eq!(changed(), "new\n");
}
