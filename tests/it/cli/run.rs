//! `envfs run`: it runs the program that a shell would run, or fails.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    PATH, Run, TestEnv, User, finish, run, run_with_input, skip_allowed, wait_for,
};

fn script(env: &TestEnv, path: &Path, text: &str, mode: u32) {
    env.write(path, text);
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Mounts an environment. Returns a PATH with a directory of programs of the same names, and the
/// prefix.
fn with_rivals(env: &TestEnv) -> (String, std::path::PathBuf) {
    env.import_sample("e");
    let prefix = env.mount("e");
    let rivals = env.work().join("rivals");
    for name in [
        "gone", "missing", "folder", "plain", "bare", "binary", "ours",
    ] {
        script(env, &rivals.join(name), "#!/bin/sh\necho rival\n", 0o755);
    }
    (format!("{}:{PATH}", rivals.display()), prefix)
}

#[test]
fn run_does_not_fall_back_to_another_program_of_the_same_name() {
    for env in TestEnv::of_all_users() {
        let (path, prefix) = with_rivals(&env);
        let bin = prefix.join("bin");
        let make = |name: &str, text: &str, mode: u32| {
            let draft = env.work().join("draft");
            script(&env, &draft, text, mode);
            let at = bin.join(name);
            env.sh(&format!("cp -p draft '{}'", at.display())).ok();
        };
        make("missing", "#!/no/such/interpreter -x\n", 0o755);
        make("plain", "#!/bin/sh\necho plain\n", 0o644);
        make("bare", "echo \"$0 $1\"\n", 0o755);
        make("binary", "\0\u{1}\u{2}\n", 0o755);
        make("ours", "#!/bin/sh\necho ours\n", 0o755);
        let at = bin.display();
        env.sh(&format!(
            "mkdir '{at}/folder'; ln -s /no/such/target '{at}/gone'"
        ))
        .ok();
        let run = |words: &[&str]| -> Run {
            env.envfs_with("PATH", &path, &[&["run", "e"], words].concat())
        };
        assert_eq!(run(&["ours"]).ok().out, "ours\n");
        run(&["missing"]).fails(126, &["missing", "bad interpreter /no/such/interpreter"]);
        run(&["gone"]).fails(126, &["bin/gone", "/no/such/target"]);
        // Directories and files that are not executable are passed over, as in a shell.
        assert_eq!(run(&["folder"]).ok().out, "rival\n");
        assert_eq!(run(&["plain"]).ok().out, "rival\n");
        let shown = format!("{} x\n", bin.join("bare").display());
        assert_eq!(run(&["bare", "x"]).ok().out, shown);
        run(&["binary"]).fails(126, &["bin/binary", "xec format"]);
        // A name with a slash is a path relative to the working directory.
        run(&[bin.join("folder").to_str().unwrap()]).fails(126, &["directory"]);
        run(&["./no-such"]).fails(127, &["./no-such"]);
        let cwd = ["run", "--cwd", bin.to_str().unwrap(), "e", "./ours"];
        assert_eq!(env.envfs(&cwd).ok().out, "ours\n");
        env.envfs(&["run", "--cwd", "/no/such/dir", "e", "true"])
            .fails(125, &["/no/such/dir"]);
    }
}

#[test]
fn relative_and_empty_path_entries_start_at_the_working_directory() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let dir = env.work().join("dir");
    script(&env, &dir.join("here"), "#!/bin/sh\necho here\n", 0o755);
    script(
        &env,
        &dir.join("sub/below"),
        "#!/bin/sh\necho below\n",
        0o755,
    );
    let cwd = dir.to_str().unwrap();
    for path in [":/usr/bin:/bin", "/usr/bin::/bin", "/usr/bin:/bin:", "."] {
        let done = env.envfs_with("PATH", path, &["run", "--cwd", cwd, "e", "here"]);
        assert_eq!(done.ok().out, "here\n", "{path}");
    }
    let done = env.envfs_with("PATH", "sub:/bin", &["run", "--cwd", cwd, "e", "below"]);
    assert_eq!(done.ok().out, "below\n");
    env.envfs_with("PATH", "/usr/bin:/bin", &["run", "--cwd", cwd, "e", "here"])
        .fails(127, &["here", "not found"]);
    // Without PATH, a default path follows the environment's.
    for with_path in [None, Some("")] {
        let mut command = env.envfs_command(&["run", "e", "sh", "-c", "tool; ls -d /; echo $PATH"]);
        match with_path {
            None => command.env_remove("PATH"),
            Some(path) => command.env("PATH", path),
        };
        let done = run(command).ok();
        let bin = env.prefix("e").join("bin").display().to_string();
        assert!(
            done.out
                .starts_with(&format!("tool\n/\n{bin}:/usr/local/bin:")),
            "{done}"
        );
    }
}

#[test]
fn inaccessible_environment_runs_no_system_program() {
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    let (path, prefix) = with_rivals(&env);
    let change = |mode: &str, at: &Path| {
        env.sh(&format!("chmod {mode} '{}'", at.display())).ok();
    };
    let bin = prefix.join("bin");
    change("0", &bin);
    env.envfs_with("PATH", &path, &["run", "e", "ours"])
        .fails(126, &[bin.to_str().unwrap(), "ermission denied"]);
    change("755", &bin);
    change("0", &prefix);
    env.envfs_with("PATH", &path, &["run", "e", "ours"])
        .fails(125, &[prefix.to_str().unwrap(), "ermission denied"]);
    for words in [
        &["activate", "--shell", "bash", "e"][..],
        &["activate", "--shell", "posix", "e"],
    ] {
        let done = env.envfs(words).fails(1, &["ermission denied"]);
        assert_eq!(done.out, "");
    }
    change("755", &prefix);
    assert_eq!(env.envfs(&["run", "e", "tool"]).ok().out, "tool\n");

    // Root on a user's mount, which the kernel closes to all other users.
    if !User::current().is_root() {
        return skip_allowed("acting as root needs root");
    }
    let mut command = env.envfs_command(&["run", "e", "ours"]);
    command.env("PATH", &path);
    std::os::unix::process::CommandExt::uid(&mut command, 0);
    std::os::unix::process::CommandExt::gid(&mut command, 0);
    let done = run(command);
    assert!((125..=127).contains(&done.code), "{done}");
    assert_eq!(done.out, "", "{done}");
}

#[test]
fn create_does_not_fall_back_to_another_installer() {
    let Some(env) = TestEnv::new() else { return };
    let first = env.work().join("first");
    let second = env.work().join("second");
    script(
        &env,
        &first.join("install"),
        "#!/no/such/interpreter\n",
        0o755,
    );
    script(&env, &second.join("install"), "#!/bin/sh\n", 0o755);
    let path = format!("{}:{}:{PATH}", first.display(), second.display());
    env.envfs_with("PATH", &path, &["create", "e", "--", "install"])
        .fails(1, &["bad interpreter"]);
    env.envfs_with("PATH", &path, &["create", "e", "--", "no-such"])
        .fails(3, &["no-such", "not found"]);
    assert!(!env.home_of("e").exists());
}

#[test]
fn run_passes_on_status_input_and_signals() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("one");
    let status = |args: &[&str]| env.envfs(&[&["run", "one", "--"], args].concat());
    assert_eq!(status(&["tool"]).ok().out, "tool\n");
    for code in [0, 1, 42, 125, 255] {
        let done = status(&["sh", "-c", &format!("exit {code}")]);
        assert_eq!(done.code, code, "{done}");
    }
    assert_eq!(status(&["sh", "-c", "kill -TERM $$"]).code, 128 + 15);
    let mut command = env.envfs_command(&["run", "one", "cat"]);
    let input = b"some\0input\n";
    assert_eq!(
        run_with_input(
            {
                command.env("X", "y");
                command
            },
            input
        )
        .ok()
        .out
        .as_bytes(),
        input
    );
    let args = [
        "run",
        "-e",
        "A=b c",
        "one",
        "--",
        "sh",
        "-c",
        "echo \"$A $ENVFS_ENV\"",
    ];
    assert_eq!(env.envfs(&args).ok().out, "b c one\n");
    let args = ["run", "--cwd", "/", "one", "pwd"];
    assert_eq!(env.envfs(&args).ok().out, "/\n");
    // Options after the command belong to the command.
    let done = env
        .envfs(&["run", "one", "echo", "--help", "-e", "--"])
        .ok();
    assert_eq!(done.out, "--help -e --\n");

    status(&["no-such-program"]).fails(127, &["no-such-program"]);
    let plain = env.work().join("plain");
    env.write(&plain, "not a program");
    status(&[plain.to_str().unwrap()]).fails(126, &["plain"]);
    env.envfs(&["run", "no-such", "true"])
        .fails(125, &["no-such"]);
    env.envfs(&["run", "--no-such-option", "one", "true"])
        .fails(125, &["--no-such-option"]);
    env.envfs(&["run", "one"]).fails(125, &[]);
}

#[test]
fn run_is_replaced_by_the_command() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("one");
    let note = env.work().join("note");
    let script = format!(
        "trap 'echo got it; exit 7' TERM; echo $$ >'{}'; while :; do sleep 0.05; done",
        note.display()
    );
    let mut command = env.envfs_command(&["run", "one", "--", "sh", "-c", &script]);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for("the command", || {
        fs::read_to_string(&note).is_ok_and(|text| text.ends_with('\n'))
    });
    let pid: u32 = fs::read_to_string(&note).unwrap().trim().parse().unwrap();
    assert_eq!(child.id(), pid, "envfs must replace itself by the command");
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
    let done = finish(child, "run".to_owned());
    assert_eq!((done.code, done.out.as_str()), (7, "got it\n"), "{done}");
}

#[test]
fn missing_command_is_not_found_despite_unreadable_path_entries() {
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    env.import_sample("e");
    let closed = env.root().join("closed-dir");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let path = format!("{}:{PATH}", closed.display());
    env.envfs_with("PATH", &path, &["run", "e", "no-such-command"])
        .fails(127, &["no-such-command", "not found"]);
    let open = env.work().join("open");
    env.write(&open.join("no-such-command"), "#!/bin/sh\n");
    let path = format!("{}:{path}", open.display());
    env.envfs_with("PATH", &path, &["run", "e", "no-such-command"])
        .fails(126, &["not executable"]);
}
