//! `envfs try`: changes that are kept or dropped afterwards.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::private::{is_possible, stores};
use crate::shell::terminal::type_into;
use crate::support::{Run, TestEnv, finish, wait_for};

/// Changes of every kind: hard links, renamed directories, whiteouts, attributes, content.
const CHANGES: &str = "cd '{}' && echo more >>lib/a.txt && ln lib/a.txt lib/again && mv lib/deep moved \
    && echo in >moved/in && rm bin/tool && mkdir bin/tool && echo new >bin/tool/new \
    && chmod 700 bin && ln -s lib/a.txt link && mkfifo fifo && touch -d 2001-02-03 old \
    && rm -f lib/c.txt";

fn store() -> Option<TestEnv> {
    let env = TestEnv::new().filter(is_possible)?;
    env.import_sample("e");
    Some(env)
}

fn changes(prefix: &Path) -> String {
    CHANGES.replace("{}", &prefix.display().to_string())
}

/// A script that lists names, attributes, links and content of a tree.
fn listing(prefix: &Path) -> String {
    format!(
        "cd '{}' && find . -printf '%P %y %m %U %G %s %n %l\\n' | grep -v ' d ' | sort; find . -type d \
         -printf '%P %m\\n' | sort; find . -type f -printf '%P %TY-%Tm-%Td %TT\\n' | sort \
         && find . -type f -exec cksum {{}} + | sort; if command -v getfattr >/dev/null; then \
         getfattr -Rd -m - . | sort; fi",
        prefix.display()
    )
}

/// Lists the tree of an environment, as the user of the test.
fn seen(env: &TestEnv) -> String {
    let prefix = env.mount("e");
    env.sh(&listing(&prefix)).ok().out
}

fn attempt(env: &TestEnv, option: &str, script: &str) -> Run {
    env.envfs(&["try", option, "e", "--", "sh", "-c", script])
}

/// Starts a try whose command waits until its input is closed.
fn hold(env: &TestEnv, option: &str, script: &str, name: &str) -> Child {
    let ready = env.work().join(name);
    drop(fs::remove_file(&ready));
    let script = format!("{script}; echo >'{}'; cat >/dev/null", ready.display());
    let mut command = env.envfs_command(&["try", option, "e", "--", "sh", "-c", &script]);
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the command of the try", || ready.exists());
    child
}

fn release(mut child: Child) -> Run {
    drop(child.stdin.take());
    finish(child, String::from("envfs try"))
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// The number of layers and directories of trials of the environment.
fn remains(env: &TestEnv) -> (usize, usize) {
    let home = env.home_of("e");
    (entries(&home.join("layers")), entries(&home.join("trials")))
}

#[test]
fn a_kept_try_is_what_the_try_showed_and_a_dropped_one_leaves_nothing() {
    for env in stores() {
        for is_mounted in [true, false] {
            for has_changes in [true, false] {
                let what = format!("{}, mounted: {is_mounted}", env.user().name());
                let prefix = env.mount("e");
                if has_changes {
                    env.sh(&format!("cd '{}' && echo mine >mine", prefix.display()))
                        .ok();
                }
                let before = seen(&env);
                let layers = remains(&env);
                let leave = || {
                    if !is_mounted {
                        env.envfs(&["unmount", "e"]).ok();
                    }
                };
                let script = format!("({}) && ({})", changes(&prefix), listing(&prefix));

                leave();
                let dropped = attempt(&env, "--drop", &script).ok();
                assert_ne!(dropped.out, before, "{what}");
                assert!(dropped.err.contains("dropped"), "{dropped}");
                assert_eq!(seen(&env), before, "{what}");
                leave();
                env.mount("e");
                assert_eq!(remains(&env), layers, "{what}: the drop left something");

                leave();
                let kept = attempt(&env, "--keep", &script).ok();
                assert!(kept.err.contains("to take it back: envfs undo e"), "{kept}");
                assert_eq!(seen(&env), kept.out, "{what}");
                env.kill_daemon("e");
                assert_eq!(seen(&env), kept.out, "{what}, killed");
                let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
                assert_eq!(log[0]["kind"], "keep");
                assert!(log[0]["command"].as_str().unwrap().contains("try"));

                leave();
                env.envfs(&["undo", "e"]).ok();
                assert_eq!(seen(&env), before, "{what}, taken back");
                env.envfs(&["undo", "e"]).ok();
                assert_eq!(seen(&env), kept.out, "{what}, and again");
                env.envfs(&["commit", "-q", "e"]).ok();
                env.envfs(&["unmount", "e"]).ok();
                env.verify("e");
                env.envfs(&["rollback", "-y", "e", "1"]).ok();
                env.envfs(&["gc", "-q", "--keep", "9", "e"]).ok();
            }
        }
    }
}

#[test]
fn other_programs_do_not_see_a_try_until_it_is_kept() {
    for env in stores() {
        for is_mounted in [true, false] {
            let prefix = env.prefix("e");
            if is_mounted {
                env.mount("e");
            } else {
                env.envfs(&["unmount", "e"]);
            }
            let script = format!("rm -r '{0}/lib' && echo x >'{0}/tried'", prefix.display());
            let held = hold(&env, "--keep", &script, "ready");
            env.mount("e");
            env.sh(&format!(
                "test -e '{0}/lib/a.txt' && test ! -e '{0}/tried'",
                prefix.display()
            ))
            .ok();
            let rows = env.envfs(&["ps", "--json", "e"]).ok().json();
            let rows = rows.as_array().unwrap();
            let row = rows.iter().find(|row| row["kind"] == "try").unwrap();
            assert_eq!(row["changed_bytes"], 2, "{row}");
            // The try covers the mount in its namespace, so the mount itself is not in use.
            env.envfs(&["unmount", "e"]).ok();
            env.envfs(&["rename", "e", "f"]).fails(5, &["try", "ps"]);
            if is_mounted {
                env.mount("e");
            }
            release(held).ok();
            env.mount("e");
            env.sh(&format!(
                "test ! -e '{0}/lib' && test -e '{0}/tried'",
                prefix.display()
            ))
            .ok();
            env.envfs(&["undo", "-q", "e"]).ok();
        }
    }
}

#[test]
fn a_try_is_not_kept_if_the_environment_has_changed_and_can_replace_it() {
    for env in stores() {
        let prefix = env.mount("e");
        let outside = |script: &str| {
            env.sh(&format!("cd '{}' && {script}", prefix.display()))
                .ok()
        };
        let others: [&dyn Fn(); 5] = [
            &|| drop(outside("echo other >other")),
            &|| {
                outside("echo two >two");
                env.envfs(&["commit", "-q", "e"]).ok();
            },
            &|| {
                outside("echo three >three");
                env.envfs(&["discard", "-q", "-y", "e"]).ok();
                env.envfs(&["gc", "-q", "e"]).ok();
            },
            &|| drop(env.envfs(&["rollback", "-q", "-y", "e"]).ok()),
            &|| {
                drop(
                    env.envfs(&[
                        "try",
                        "--keep",
                        "e",
                        "--",
                        "touch",
                        "/dev/null",
                        &format!("{}/second", prefix.display()),
                    ])
                    .ok(),
                )
            },
        ];
        for (number, change) in others.iter().enumerate() {
            outside("echo mine >>mine");
            let script = format!("({}) 2>/dev/null; rm -rf '{0}/bin'", changes(&prefix));
            let script = script.replace("{0}", &prefix.display().to_string());
            let view = env.work().join("view");
            let script = format!("{script}; ({}) >'{}'", listing(&prefix), view.display());
            let held = hold(&env, "--keep", &script, "ready");
            change();
            let now = seen(&env);
            let refused =
                release(held).fails(125, &["was changed since", "envfs undo --operation"]);
            assert_eq!(seen(&env), now, "{number}: {refused}");
            // A plain undo does not take it for the last operation.
            let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
            assert_eq!(log[0]["kind"], "set-aside");
            assert!(log[0]["kept_bytes"].as_u64().unwrap() > 0, "{log}");
            let operation = log[0]["operation"].to_string();
            let tried = fs::read_to_string(&view).unwrap();
            env.envfs(&["undo", "-q", "--operation", &operation, "e"])
                .ok();
            assert_eq!(seen(&env), tried, "{number}: the state of the try");
            env.envfs(&["undo", "-q", "e"]).ok();
            assert_eq!(seen(&env), now, "{number}: and back");
            env.envfs(&["unmount", "e"]).ok();
            env.verify("e");
            env.mount("e");
            env.envfs(&["gc", "-q", "e"]).ok();
            assert_eq!(seen(&env), now, "{number}: the trash is empty");
            env.envfs(&["discard", "-q", "-y", "e"]).ok();
        }
    }
}

#[test]
fn of_two_tries_at_once_the_second_to_end_is_refused() {
    let Some(env) = store() else { return };
    let prefix = env.prefix("e");
    let first = hold(
        &env,
        "--keep",
        &format!("echo 1 >'{}/first'", prefix.display()),
        "one",
    );
    let second = hold(
        &env,
        "--keep",
        &format!("echo 2 >'{}/second'", prefix.display()),
        "two",
    );
    release(first).ok();
    release(second).fails(125, &["was changed since"]);
    let prefix = env.mount("e");
    assert!(prefix.join("first").exists() && !prefix.join("second").exists());
}

#[test]
fn the_exit_status_is_that_of_the_command_and_decides_if_that_is_wanted() {
    let Some(env) = store() else { return };
    let prefix = env.mount("e");
    let file = prefix.join("made");
    let make = |code: i32| format!("echo >'{}'; exit {code}", file.display());
    let done = attempt(&env, "--keep-on-success", &make(3)).fails(3, &["dropped"]);
    assert!(!file.exists(), "{done}");
    attempt(&env, "--keep-on-success", "kill -TERM $$").fails(128 + 15, &[]);
    let done = attempt(&env, "--keep-on-success", &make(0)).ok();
    assert!(file.exists(), "{done}");
    attempt(&env, "--keep", &format!("rm '{}'; exit 7", file.display())).fails(7, &["kept"]);
    assert!(!file.exists());
    env.envfs(&["try", "--keep", "e", "--", "no-such-program"])
        .fails(127, &["not found"]);
    env.envfs(&["try", "--keep", "e", "--", "/etc/passwd"])
        .fails(126, &["cannot execute"]);
    let nothing = env.envfs(&["try", "--keep", "e", "--", "true"]).ok();
    assert!(nothing.err.contains("nothing was changed"), "{nothing}");
    env.envfs(&["try", "--keep", "e@1", "--", "true"])
        .fails(125, &["--ephemeral"]);
    env.envfs(&["try", "--keep", "--drop", "e"])
        .fails(125, &["cannot be used"]);
    env.envfs(&["try", "--keep", "none", "--", "true"])
        .fails(125, &["none"]);
}

#[test]
fn without_a_terminal_and_an_option_nothing_is_run() {
    let Some(env) = store() else { return };
    let mark = env.work().join("mark");
    let words = ["try", "e", "--", "touch", mark.to_str().unwrap()];
    env.envfs(&words)
        .fails(125, &["--keep", "--drop", "--keep-on-success"]);
    assert!(!mark.exists());
}

#[test]
fn json_tells_what_was_changed_and_what_became_of_it() {
    let Some(env) = store() else { return };
    let prefix = env.mount("e");
    let script = format!("rm -r '{}/lib'; exit 4", prefix.display());
    let words = ["try", "--drop", "--json", "e", "--", "sh", "-c", &script];
    let json = env.envfs(&words).fails(4, &[]).json();
    assert_eq!(
        (&json["outcome"], &json["exit_status"]),
        (&"dropped".into(), &4.into())
    );
    let changed = json["changes"].as_array().unwrap();
    assert!(
        changed.iter().any(|change| change["path"] == "lib/a.txt"),
        "{json}"
    );
    let words = ["try", "--keep", "--json", "e", "--", "sh", "-c", &script];
    let json = env.envfs(&words).fails(4, &[]).json();
    assert_eq!(
        (&json["outcome"], &json["operation"]),
        (&"kept".into(), &1.into())
    );
}

#[test]
fn the_question_is_asked_on_a_terminal_and_no_answer_keeps_nothing_but_loses_nothing() {
    let Some(env) = store() else { return };
    let prefix = env.prefix("e");
    let program = env.program().to_str().unwrap().to_owned();
    let script = format!("echo >'{}/asked'", prefix.display());
    let words = [program.as_str(), "try", "e", "--", "sh", "-c", &script];
    let ask = |typed: &str| {
        type_into(&env, &words, &[("Keep these changes.*\\?", typed)])
            .ok()
            .out
    };
    let said = ask("n\n");
    assert!(
        said.contains("A asked") && said.contains("dropped"),
        "{said}"
    );
    let said = ask("\x03");
    assert!(said.contains("envfs undo --operation 1 e"), "{said}");
    assert!(!env.mount("e").join("asked").exists());
    env.envfs(&["undo", "--operation", "1", "e"]).ok();
    assert!(prefix.join("asked").exists());
    env.envfs(&["undo", "e"]).ok();
    assert!(!prefix.join("asked").exists());
    let said = ask("y\n");
    assert!(said.contains("kept"), "{said}");
    assert!(prefix.join("asked").exists());
}

#[test]
fn ctrl_c_reaches_the_command_and_not_the_try() {
    let Some(env) = store() else { return };
    let prefix = env.prefix("e");
    let program = env.program().to_str().unwrap().to_owned();
    let script = format!(
        "echo >'{}/made'; trap 'exit 5' INT; echo READY; while :; do sleep 0.05; done",
        prefix.display()
    );
    let words = [
        program.as_str(),
        "try",
        "--keep",
        "e",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let done = type_into(&env, &words, &[("READY", "\x03")]);
    assert!(done.out.contains("kept"), "{done}");
    assert!(env.mount("e").join("made").exists());
}

#[test]
fn a_killed_try_loses_only_itself_and_leaves_nothing() {
    for env in stores() {
        for is_mounted in [true, false] {
            let prefix = env.mount("e");
            env.sh(&format!("cd '{}' && echo mine >mine", prefix.display()))
                .ok();
            let before = seen(&env);
            let layers = remains(&env);
            if !is_mounted {
                env.envfs(&["unmount", "e"]).ok();
            }
            let held = hold(&env, "--keep", &changes(&prefix), "ready");
            let server = server(&env);
            assert_eq!(remains(&env).1, 1);
            // The process that serves it, and the command that asks.
            for pid in [server, Pid::from_raw(held.id().try_into().unwrap())] {
                kill(pid, Signal::SIGKILL).unwrap();
            }
            drop(release(held));
            wait_for("the end of its processes", || {
                env.envfs(&["gc", "-q", "--keep", "9", "e"]).ok();
                remains(&env).1 == 0
            });
            assert_eq!(seen(&env), before);
            env.envfs(&["unmount", "e"]).ok();
            env.mount("e");
            assert_eq!(remains(&env), layers, "{}", env.user().name());
            env.envfs(&["unmount", "e"]).ok();
            env.verify("e");
        }
    }
}

/// Returns the process that serves the only try.
fn server(env: &TestEnv) -> Pid {
    let rows = env.envfs(&["ps", "--json", "e"]).ok().json();
    let rows = rows.as_array().unwrap();
    let row = rows.iter().find(|row| row["kind"] == "try").unwrap();
    Pid::from_raw(row["pid"].as_i64().unwrap().try_into().unwrap())
}

#[test]
fn a_try_whose_daemon_was_killed_can_still_be_kept() {
    let Some(env) = store() else { return };
    let prefix = env.prefix("e");
    let script = format!("echo kept >'{}/kept'", prefix.display());
    let held = hold(&env, "--keep", &script, "ready");
    kill(server(&env), Signal::SIGKILL).unwrap();
    let done = release(held).ok();
    assert!(done.err.contains("was killed"), "{done}");
    let prefix = env.mount("e");
    assert_eq!(fs::read(prefix.join("kept")).unwrap(), b"kept\n");
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
}

#[test]
fn programs_left_behind_are_waited_for() {
    let Some(env) = store() else { return };
    let prefix = env.prefix("e");
    let go = env.work().join("go");
    let script = format!(
        "cd '{}' && (until test -e '{}'; do sleep 0.02; done; echo late >late) >/dev/null 2>&1 & sleep 0.1",
        prefix.display(),
        go.display()
    );
    let mut command = env.envfs_command(&["try", "--keep", "e", "--", "sh", "-c", &script]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The session is there, although the command has ended.
    wait_for("the session", || {
        let rows = env.envfs(&["ps", "--json", "e"]).ok().json();
        rows.as_array()
            .unwrap()
            .iter()
            .any(|row| row["kind"] == "try")
    });
    fs::write(&go, "").unwrap();
    finish(child, String::from("envfs try")).ok();
    assert_eq!(fs::read(env.mount("e").join("late")).unwrap(), b"late\n");
}

#[test]
fn layers_below_a_try_are_kept_from_commit_discard_and_gc() {
    let Some(env) = store() else { return };
    let prefix = env.mount("e");
    fs::write(prefix.join("mine"), "mine").unwrap();
    let config = env.store().join("config.toml");
    fs::write(&config, "[history]\nundo = 0\n").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    env.mount("e");
    let script = format!("cd '{}'; cat lib/c.txt mine >both; cat", prefix.display());
    let mut held = hold(&env, "--drop", "true", "unused");
    drop(held.stdin.take());
    drop(finish(held, String::new()));
    let mut command = env.envfs_command(&["try", "--drop", "e", "--", "sh", "-c", &script]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the try", || {
        let rows = env.envfs(&["ps", "--json", "e"]).ok().json();
        rows.as_array()
            .unwrap()
            .iter()
            .any(|row| row["kind"] == "try")
    });
    env.envfs(&["commit", "-q", "e"]).ok();
    fs::write(prefix.join("other"), "other").unwrap();
    env.envfs(&["discard", "-q", "-y", "e"]).ok();
    env.envfs(&["gc", "-q", "--keep", "1", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    drop(child.stdin.take());
    let done = finish(child, String::from("try")).ok();
    assert!(done.err.contains("A both"), "{done}");
    env.mount("e");
    env.envfs(&["gc", "-q", "--keep", "1", "e"]).ok();
    assert_eq!(remains(&env), (1, 0));
}

#[test]
fn a_try_in_a_try_is_refused() {
    let Some(env) = store() else { return };
    let script = format!("'{}' try --keep e -- true", env.program().display());
    attempt(&env, "--drop", &script).fails(125, &["in a try of e already"]);
}

#[test]
fn a_store_that_cannot_be_written_is_named_before_the_command_runs() {
    let Some(env) = TestEnv::ordinary().filter(is_possible) else {
        return;
    };
    env.import_sample("e");
    let mark = env.work().join("mark");
    env.sh(&format!("chmod 500 '{}'", env.home_of("e").display()))
        .ok();
    let words = ["try", "--keep", "e", "--", "touch", mark.to_str().unwrap()];
    let refused = env.envfs(&words);
    env.sh(&format!("chmod 700 '{}'", env.home_of("e").display()))
        .ok();
    refused.fails(125, &["trials", "--ephemeral"]);
    assert!(!mark.exists());
}

#[test]
fn a_try_that_cannot_be_kept_on_a_full_disk_is_not_lost() {
    let Some((env, small)) = super::disk_full::store_of("24m") else {
        return;
    };
    if !is_possible(&env) {
        return;
    }
    env.import_sample("e");
    for is_mounted in [true, false] {
        let prefix = env.mount("e");
        if !is_mounted {
            env.envfs(&["unmount", "e"]).ok();
        }
        // Their rows need more than the database has free.
        let script = format!(
            "cd '{}' && for i in $(seq 2000); do echo $i >kept-$i-which-has-quite-a-long-name; done",
            prefix.display()
        );
        let held = hold(&env, "--keep", &script, "ready");
        small.fill(0);
        let done = release(held);
        small.free();
        let kept = || prefix.join("kept-2000-which-has-quite-a-long-name");
        let done = done.fails(125, &["space", "nothing is lost"]);
        // It leaves what has not been decided on.
        env.envfs(&["gc", "-q", "e"]).ok();
        if is_mounted {
            env.envfs(&["unmount", "e"]).ok();
        }
        env.mount("e");
        assert!(!kept().exists(), "{done}");
        let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
        assert_eq!(log[0]["kind"], "set-aside", "{is_mounted}: {log}");
        let operation = log[0]["operation"].to_string();
        env.envfs(&["undo", "-q", "--operation", &operation, "e"])
            .ok();
        assert_eq!(fs::read(kept()).unwrap(), b"2000\n");
        env.envfs(&["undo", "-q", "e"]).ok();
        env.envfs(&["gc", "-q", "e"]).ok();
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}
