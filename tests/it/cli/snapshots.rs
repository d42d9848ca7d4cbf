//! Snapshots of the output, on a terminal and not, so that reviews see changes of wording.
//!
//! After an intended change: `INSTA_UPDATE=always tests/run snapshots`, then read the difference.

use std::fmt::Write;
use std::fs;

use crate::support::{TestEnv, has, run};

/// Replaces everything that differs between runs.
fn settings(env: &TestEnv) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let root = env.root().display().to_string();
    settings.add_filter(&root.replace('.', "\\."), "/DIR");
    for (pattern, shown) in [
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (
            r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?( ?(UTC|Z|[+-]\d{4}))?",
            "TIME",
        ),
        (r"\b(pid|process|daemon) \d+", "$1 PID"),
        (r"\d+(\.\d+)? (B|KiB|MiB|GiB|bytes)\b", "SIZE"),
        (r"\b[a-z_][a-z0-9_-]*@[\w.-]+", "USER@HOST"),
        // Namespaces of tests that run at the same time.
        (
            r"! copies of the mount in other mount namespaces have ended with it:\n(!   .*\n)*",
            "",
        ),
    ] {
        settings.add_filter(pattern, shown);
    }
    settings
}

/// Runs commands and records what each prints; error lines are marked, and a status other than 0 is
/// shown.
fn transcript(env: &TestEnv, commands: &[&[&str]]) -> String {
    let mut text = String::new();
    for args in commands {
        let done = env.envfs(args);
        writeln!(text, "$ envfs {}", args.join(" ")).unwrap();
        text.push_str(&done.out);
        for line in done.err.lines() {
            writeln!(text, "! {line}").unwrap();
        }
        if done.code != 0 {
            writeln!(text, "[status {}]", done.code).unwrap();
        }
        text.push('\n');
    }
    text
}

/// Like [`transcript`], on a terminal of 100 columns with colours; escape characters are shown as
/// `ESC`.
fn on_a_terminal(env: &TestEnv, commands: &[&[&str]]) -> String {
    let mut text = String::new();
    for args in commands {
        let line = args.join(" ");
        let mut command = env.command("script");
        command
            .args(["-qec", &format!("stty cols 100; envfs {line}"), "/dev/null"])
            .env("TERM", "xterm-256color");
        let done = run(command);
        let shown = done.out.replace('\x1b', "ESC").replace("\r\n", "\n");
        // Progress bars overwrite lines at unpredictable times; only the final lines count.
        let shown: Vec<&str> = shown.lines().filter(|line| !line.contains('\r')).collect();
        writeln!(text, "$ envfs {line}\n{}\n", shown.join("\n")).unwrap();
    }
    text
}

#[test]
fn output_of_commands_and_errors() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("tree");
    env.write(&source.join("bin/tool"), "#!/bin/sh\necho tool\n");
    env.write(&source.join("lib/a.py"), "a = 1\n");
    env.write(&source.join("lib/b.py"), "b = 1\n");
    let word = source.to_str().unwrap();
    let _filters = settings(&env).bind_to_scope();

    let before = transcript(
        &env,
        &[
            &["list"],
            &["status"],
            &["status", "nosuch"],
            &["import", word, "demo"],
            &["import", word, "demo"],
            &["list"],
            &["status", "demo"],
            &["mount", "demo"],
        ],
    );
    insta::assert_snapshot!("begin", before);

    let prefix = env.prefix("demo");
    fs::write(prefix.join("lib/new.py"), "n = 1\n").unwrap();
    fs::write(prefix.join("lib/a.py"), "a = 2\n").unwrap();
    fs::remove_file(prefix.join("lib/b.py")).unwrap();
    fs::rename(prefix.join("bin/tool"), prefix.join("bin/better")).unwrap();
    let work = transcript(
        &env,
        &[
            &["status", "demo"],
            &["diff", "demo"],
            &["diff", "demo", "--content"],
            &["discard", "demo"],
            &["rollback", "demo"],
            &["commit", "demo", "-m", "a change"],
            &["commit", "demo"],
            &["log", "demo"],
            &["tag", "demo", "good"],
            &["tag", "demo", "bad name"],
            &["rollback", "demo", "1"],
            &["rollback", "demo", "99"],
            &["discard", "demo", "-y"],
            &["verify", "demo"],
            &["gc", "demo", "--keep", "1"],
            &["run", "demo", "--", "nosuchprogram"],
            &["unmount", "demo"],
            &["unmount", "demo"],
            &["remove", "demo"],
            &["remove", "demo", "-y"],
        ],
    );
    insta::assert_snapshot!("work", work);

    let mistakes = transcript(
        &env,
        &[
            &["stats"],
            &["activate", "demo"],
            &["import", "/nonexistent", "x"],
            &["import", word, "bad/name"],
            &["mount", "--image", "/etc/passwd", "-o", "ro", "/mnt"],
            &["image", "info", "/etc/passwd"],
            &["hook", "tcsh"],
            &["nosuchcommand"],
        ],
    );
    insta::assert_snapshot!("mistakes", mistakes);
}

#[test]
fn output_on_a_terminal() {
    let Some(env) = TestEnv::new() else { return };
    if !has("script") {
        return;
    }
    let source = env.work().join("tree");
    env.write(&source.join("lib/a.py"), "a = 1\n");
    env.write(&source.join("lib/b.py"), "b = 1\n");
    env.envfs(&["import", "-q", source.to_str().unwrap(), "demo"])
        .ok();
    let prefix = env.mount("demo");
    fs::write(prefix.join("lib/a.py"), "a = 2\n").unwrap();
    fs::remove_file(prefix.join("lib/b.py")).unwrap();
    fs::write(prefix.join("odd\x1b[31m\nname"), "").unwrap();
    let _filters = settings(&env).bind_to_scope();
    let shown = on_a_terminal(
        &env,
        &[
            &["list"],
            &["status", "demo"],
            &["diff", "demo"],
            &["diff", "demo", "--content", "lib"],
            &["log", "demo"],
            &["status", "nosuch"],
            &["--help"],
        ],
    );
    insta::assert_snapshot!("terminal", shown);
}
