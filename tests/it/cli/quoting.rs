//! Names with terminal control sequences or line breaks, and names that are not UTF-8.

#![allow(clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Run, TestEnv, run, wait_for};

/// A name that clears the screen, sets the title and forges a line; and its escaped form.
pub(super) const EVIL: &[u8] = b"a\x1b[2J\x1b]0;t\x07\nenvfs: all is well\r\xff";
const SHOWN: &str = r"a\033[2J\033]0;t\a\nenvfs: all is well\r\377";

pub(super) fn evil(dir: &Path) -> PathBuf {
    dir.join(OsStr::from_bytes(EVIL))
}

/// Fails unless a text contains the name in escaped form and no control characters.
#[track_caller]
pub(super) fn assert_escaped(done: &Run, text: &str) {
    let is_control = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!text.contains(is_control), "{text:?} of {done}");
    assert!(
        !text
            .lines()
            .any(|line| line.starts_with("envfs: all is well")),
        "{done}"
    );
    assert!(text.contains(SHOWN), "{done}");
}

/// The bytes of a name in JSON, which is a string or an array.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Array(bytes) => {
            let byte = |value: &Value| u8::try_from(value.as_u64().unwrap()).unwrap();
            bytes.iter().map(byte).collect()
        }
        other => panic!("no name: {other}"),
    }
}

#[test]
fn paths_are_escaped_in_text_and_exact_in_json_and_nul_output() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(evil(&prefix), "text\n").unwrap();
    fs::create_dir(prefix.join("say \"x\"")).unwrap();
    fs::rename(prefix.join("lib/c.txt"), prefix.join("lib/ü -> x")).unwrap();

    let done = env.envfs(&["diff", "e"]).ok();
    assert_escaped(&done, &done.out);
    let lines = [
        "A \"a\\033[2J",
        "A \"say \\\"x\\\"/\"\n",
        "R lib/c.txt -> \"lib/ü -> x\"\n",
    ];
    for line in lines {
        assert!(done.out.contains(line), "{line}: {done}");
    }
    let content = env.envfs(&["diff", "-c", "e"]).ok();
    assert_escaped(&content, &content.out);
    let colored = env.envfs(&["--color", "always", "diff", "e"]).ok();
    let green = "\x1b[32mA\x1b[0m \"a\\033[2J";
    assert!(colored.out.contains(green), "{colored}");
    // Output for programs is exact.
    let mut command = env.envfs_command(&["diff", "-z", "e"]);
    let output = command.output().unwrap().stdout;
    let fields: Vec<&[u8]> = output.split(|&byte| byte == 0).collect();
    let expected = ["R".as_bytes(), b"lib/c.txt", "lib/ü -> x".as_bytes()];
    assert!(fields.windows(3).any(|some| some == expected), "{fields:?}");
    assert!(
        fields
            .windows(2)
            .any(|some| some == [b"A".as_slice(), EVIL]),
        "{fields:?}"
    );
    let json = env.envfs(&["diff", "--json", "e"]).ok().json();
    let paths = json["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| bytes(&one["path"]));
    assert!(paths.into_iter().any(|path| path == EVIL), "{json}");

    // Errors of this process and of the daemon.
    for words in [&["diff", "e"][..], &["discard", "-y", "e"]] {
        let mut command = env.envfs_command(words);
        command.arg(evil(Path::new("/outside")));
        let done = run(command);
        assert_eq!(done.code, 2, "{done}");
        assert_escaped(&done, &done.err);
    }
    let commands: [(&[&str], &[&str]); 7] = [
        (&["import"], &["x"]),
        (&["export", "e", "-f"], &[]),
        (&["image", "info"], &[]),
        (&["run", "e"], &[]),
        (&["run", "-e", "x", "--cwd"], &["e", "true"]),
        (&["mount", "-o", "ro", "--image"], &["."]),
        (&["create", "x", "--prefix", "/", "--"], &[]),
    ];
    for (before, after) in commands {
        let mut command = env.envfs_command(before);
        command.arg(evil(&env.work().join("missing"))).args(after);
        let done = run(command);
        assert_ne!(done.code, 0, "{done}");
        if before.contains(&"-e") || before.contains(&"create") {
            assert!(!done.err.contains('\x1b'), "{done}");
        } else {
            assert_escaped(&done, &done.err);
        }
    }
    // Errors of the command line parser.
    for words in [
        &["status", "--no-\x1b[2J"][..],
        &["--color=\x1b[2J", "list"],
        &["\x1b[2J"],
    ] {
        let done = env.envfs(words);
        assert_eq!(done.code, 2, "{done}");
        assert!(!done.err.contains('\x1b'), "{done}");
    }
    env.envfs(&["status", "\x1b[31m"]).fails(2, &["\\"]);

    // Messages and tags.
    env.envfs(&["commit", "-q", "-m", "one\x1b[2J\nenvfs: two\r", "e"])
        .ok();
    for words in [&["log", "e"], &["status", "e"]] {
        let done = env.envfs(words).ok();
        assert!(!done.out.contains(['\x1b', '\r']), "{done}");
        assert!(done.out.contains("one\\033[2J"), "{done}");
        assert!(!done.out.contains("\nenvfs: two"), "{done}");
    }
    let log = env.envfs(&["log", "--json", "e"]).ok().json();
    assert_eq!(log[0]["message"], "one\x1b[2J\nenvfs: two\r");
}

#[test]
fn names_of_processes_using_a_mount_are_escaped() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(evil(&prefix), "x").unwrap();
    // The kernel takes the name of a process from its program.
    let program = env.work().join(OsStr::from_bytes(b"p\x1b[2J\nenvfs: q"));
    fs::copy("/bin/sleep", &program).unwrap();
    env.user().give(&program);
    let mut command = env.command(&program);
    let file = File::open(evil(&prefix)).unwrap();
    let mut user = command.arg("60").stdin(Stdio::from(file)).spawn().unwrap();
    // `command` has the file open, too.
    drop(command);
    let comm = format!("/proc/{}/comm", user.id());
    wait_for("the program", || {
        fs::read(&comm).is_ok_and(|name| name.starts_with(b"p\x1b"))
    });
    let status = env.envfs(&["status", "e"]).ok();
    let busy = env.envfs(&["unmount", "e"]);
    user.kill().unwrap();
    user.wait().unwrap();
    for text in [&status.out, &busy.err] {
        assert!(text.contains("p\\033[2J\\nenvfs: q"), "{text}");
        assert!(
            !text.contains('\x1b') && !text.contains("\nenvfs: q"),
            "{text}"
        );
    }
    assert_eq!(busy.code, 5, "{busy}");
    env.envfs(&["unmount", "e"]).ok();
}

/// Returns a path in a directory whose last component is not UTF-8.
fn not_utf8(dir: &Path) -> PathBuf {
    dir.join(OsString::from_vec(b"odd \xff'".to_vec()))
}

#[test]
fn store_and_prefix_need_not_be_utf8() {
    let Some(env) = TestEnv::new() else { return };
    let home = not_utf8(&env.root().join("home"));
    fs::create_dir(&home).unwrap();
    env.user().give(&home);
    let env = env.with_store(&home.join("store"));
    let source = env.work().join("source");
    crate::support::samples::small(&env, &source);
    let mut command = env.envfs_command(&["create", "x", "--prefix"]);
    command.arg(evil(&env.work()));
    let done = run(command).fails(2, &["control character"]);
    assert_escaped(&done, &done.err);
    let prefix = not_utf8(&env.work()).join("prefix");
    for (name, at) in [("a", None), ("b", Some(&prefix))] {
        let mut command = env.envfs_command(&["import", "--json", "source", name]);
        if let Some(at) = at {
            command.arg("--prefix").arg(at);
        }
        let done = run(command).ok();
        let at = at.map_or_else(|| env.prefix(name), Clone::clone);
        assert_eq!(bytes(&done.json()["prefix"]), at.as_os_str().as_bytes());

        // The path is printed byte for byte, as a command substitution needs it.
        let mut command = env.envfs_command(&["mount", name]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, [at.as_os_str().as_bytes(), b"\n"].concat());
        fs::write(at.join("new"), "x").unwrap();
        for words in [
            &["status"][..],
            &["paths"],
            &["diff"],
            &["diff", "-c"],
            &["stats"],
            &["commit", "-m", "x"],
            &["log"],
            &["verify"],
            &["tag", "-z"],
        ] {
            let done = env.envfs(&[words, &[name]].concat()).ok();
            assert!(
                !done.out.contains('\x1b') && !done.err.contains('\x1b'),
                "{done}"
            );
        }
        let paths = env.envfs(&["paths", "--json", name]).ok().json();
        for (what, path) in paths.as_object().unwrap() {
            let path = PathBuf::from(OsString::from_vec(bytes(path)));
            let may_lack = ["config", "strays"].contains(&what.as_str());
            assert!(may_lack || path.exists(), "{what}: {}", path.display());
        }
        env.envfs(&["run", name, "tool"]).ok();
        for (shell, hook) in [("bash", "bash"), ("zsh", "zsh"), ("dash", "posix")] {
            if crate::support::find(shell).is_none() {
                crate::support::skip(&format!("no {shell}"));
                continue;
            }
            let script = format!(
                "set -eu; eval \"$(envfs activate --shell {hook} {name})\"; tool; printf %s \"$ENVFS_PREFIX\"
                 eval \"$(envfs deactivate --shell {hook})\"; echo \"${{ENVFS_ENV-none}}\""
            );
            let output = env.command(shell).args(["-c", &script]).output().unwrap();
            assert!(output.status.success(), "{shell} {output:?}");
            let expected = [b"tool\n", at.as_os_str().as_bytes(), b"none\n"].concat();
            assert_eq!(output.stdout, expected, "{shell} {output:?}");
        }
        env.kill_daemon(name);
        env.envfs(&["mount", name]).ok();
        env.envfs(&["unmount", name]).ok();
    }
    let list = env.envfs(&["list", "--json"]).ok().json();
    assert_eq!(bytes(&list[1]["prefix"]), prefix.as_os_str().as_bytes());
    let shown = env.envfs(&["list"]).ok();
    assert!(shown.out.contains("odd \\377'"), "{shown}");
    assert_eq!(env.envfs(&["list", "-z"]).ok().out, "a\0b\0");
    env.envfs(&["doctor", "--json"]).json();
    let doctor = env.envfs(&["doctor"]);
    assert!(
        doctor.code <= 1 && !doctor.out.contains(['\x1b', '\u{fffd}']),
        "{doctor}"
    );
    env.envfs(&["gc"]).ok();
    env.mount("a");
    env.envfs(&["unmount", "--all"]).ok();
    env.envfs(&["rename", "b", "c"]).ok();
    env.envfs(&["remove", "-y", "c"]).ok();
    assert!(!prefix.exists());
}
