//! The end of sessions: nothing is left of them, whatever ended first.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};

use super::private::{NAMESPACE, RUN, hold_in, release, stores, supervisors, wait_for_end};
use super::sessions::{daemon_at, names};
use crate::support::{
    Gate, TestEnv, User, finish, has, is_alive, mounts_below, run, skip_allowed, wait_for,
};

/// Returns the notes of all sessions of `e`.
fn notes(env: &TestEnv) -> Vec<PathBuf> {
    let mut found = names(&env.root().join("run/envfs/sessions"));
    found.extend(names(&env.home_of("e").join("sessions")));
    found
}

/// Starts a shell with its working directory in a mount, until its input is closed.
fn sit_in(env: &TestEnv, dir: &Path, words: &[&str]) -> Child {
    let ready = env.work().join("sitting");
    drop(fs::remove_file(&ready));
    let script = format!("cd '{}'; echo >'{}'; cat", dir.display(), ready.display());
    let words = [words, &["sh", "-ec", &script]].concat();
    let child = env
        .command(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the shell in the mount", || ready.exists());
    child
}

/// Makes an ephemeral session, and returns its directory and that of its changes.
fn ephemeral(env: &TestEnv) -> (PathBuf, PathBuf) {
    let (at, upper) = (env.work().join("at"), env.work().join("upper"));
    fs::create_dir(&upper).unwrap();
    env.user().give(&upper);
    (at, upper)
}

fn mount_words<'a>(at: &'a Path, upper: &'a Path) -> [&'a str; 6] {
    let [at, upper] = [at, upper].map(|path| path.to_str().unwrap());
    ["mount", "--ephemeral", "e", at, "--upper-dir", upper]
}

#[test]
#[ignore = "runs alone, by tests/run"]
fn unmount_waits_until_the_session_has_ended() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let gate = Gate::new(&env);
        let (at, upper) = ephemeral(&env);
        let mut mount = env.envfs_command(&mount_words(&at, &upper));
        let mounted = gate.arm(&mut mount, "pause.session.unmounted").output();
        assert!(mounted.unwrap().status.success());
        let mut command = env.envfs_command(&["unmount", "e@1"]);
        let mut unmount = command.stderr(Stdio::piped()).spawn().unwrap();
        gate.wait("pause.session.unmounted");
        assert!(mounts_below(&at).is_empty());
        assert_eq!((notes(&env).len(), names(&upper).len()), (2, 1));
        assert!(unmount.try_wait().unwrap().is_none());
        gate.open("pause.session.unmounted");
        finish(unmount, "unmount".to_owned()).ok();
        assert_eq!(notes(&env), names(&upper));
        env.envfs(&["remove", "-y", "e"]).ok();
    }
}

#[test]
#[ignore = "runs alone, by tests/run"]
fn unmount_ends_a_session_of_which_other_namespaces_have_copies() {
    for env in TestEnv::of_all_users() {
        if !has("unshare") || !super::private::is_possible(&env) {
            continue;
        }
        env.import_sample("e");
        let elsewhere: &[&str] = match env.user().is_root() {
            true => &["unshare", "--mount", "--propagation", "private"],
            false => &["unshare", "--user", "--map-current-user", "--mount"],
        };
        let at = env.work().join("at");
        let path = at.to_str().unwrap();
        env.envfs(&["mount", "e@1", path]).ok();
        let daemon = daemon_at(&env, &at);
        // It is in use there.
        let user = sit_in(&env, &at, elsewhere);
        let copy = sit_in(&env, Path::new("/"), elsewhere);
        env.envfs(&["unmount", path])
            .fails(5, &["is in use", "working directory"]);
        assert_eq!(mounts_below(&at).len(), 1);
        release(user);
        let done = env.envfs(&["unmount", path]).ok();
        assert!(done.err.contains("copies of the mount"), "{done}");
        assert!(!is_alive(daemon));
        assert_eq!(notes(&env), Vec::<PathBuf>::new());
        env.envfs(&["remove", "-y", "e"]).ok();
        release(copy);
    }
}

#[test]
#[ignore = "runs alone, by tests/run"]
fn a_session_ends_once_what_covers_it_is_unmounted() {
    if !User::current().is_root() {
        return skip_allowed("mounting a file system needs root");
    }
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.prefix("e");
    let upper = env.work().join("upper");
    fs::create_dir(&upper).unwrap();
    let script = "mount -t tmpfs cover \"$ENVFS_PREFIX\"";
    let [dir, at] = ["--upper-dir", upper.to_str().unwrap()];
    env.envfs(&["run", "--ephemeral", dir, at, "e", "sh", "-c", script])
        .ok();
    wait_for("a vain attempt of the daemon", || {
        let logs = names(&upper)
            .into_iter()
            .map(|path| path.join("daemon.log"));
        let mut texts = logs.flat_map(fs::read_to_string);
        texts.any(|text| text.contains("will try again"))
    });
    assert_eq!(mounts_below(&prefix).len(), 2);
    env.sh(&format!("umount '{}'", prefix.display())).ok();
    wait_for("the end of the session", || {
        mounts_below(&prefix).is_empty() && notes(&env).is_empty()
    });
}

#[test]
#[ignore = "runs alone, by tests/run"]
fn nothing_is_left_of_a_session_whose_command_was_killed_while_it_began() {
    for (place, is_gone) in [
        ("pause.session.noted", false),
        // The start fails then.
        ("pause.session.noted", true),
        ("pause.session.mounted", false),
    ] {
        for env in TestEnv::of_all_users() {
            env.import_sample("e");
            let gate = Gate::new(&env);
            let (at, upper) = ephemeral(&env);
            let mut begun = gate.start(env.envfs_command(&mount_words(&at, &upper)), place);
            begun.kill().unwrap();
            begun.wait().unwrap();
            if is_gone {
                fs::remove_dir_all(env.home_of("e").join("images")).unwrap();
            }
            gate.open(place);
            wait_for("the end of the session", || {
                notes(&env).is_empty() && names(&upper).is_empty()
            });
            assert!(mounts_below(&at).is_empty());
        }
    }
}

#[test]
#[ignore = "runs alone, by tests/run"]
fn a_mount_that_others_use_stays_although_its_first_command_was_killed() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let gate = Gate::new(&env);
        let at = env.work().join("at");
        let mount = ["mount", "e@1", at.to_str().unwrap()];
        let mut first = env.envfs_command(&mount);
        gate.arm(&mut first, "pause.session.mounted,pause.session.started");
        let mut first = first.stderr(Stdio::null()).spawn().unwrap();
        gate.wait("pause.session.mounted");
        first.kill().unwrap();
        first.wait().unwrap();
        env.envfs(&mount).ok();
        let user = sit_in(&env, &at, &["env"]);
        gate.open("pause.session.mounted");
        gate.wait("pause.session.started");
        gate.open("pause.session.started");
        let script = format!("cat '{}/lib/c.txt'", at.display());
        assert_eq!(env.sh(&script).ok().out, "gamma\n");
        release(user);
        env.envfs(&["unmount", "e@1"]).ok();

        // The same with the writable mount.
        let mut first = gate.start(env.envfs_command(&["mount", "e"]), "pause.mounted");
        first.kill().unwrap();
        first.wait().unwrap();
        let prefix = env.mount("e");
        let user = sit_in(&env, &prefix, &["env"]);
        gate.open("pause.mounted");
        let log = env.home_of("e").join("daemon.log");
        wait_for("the decision of the daemon", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("other programs use"))
        });
        env.sh(&format!("echo x >'{}/new'", prefix.display())).ok();
        release(user);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
#[ignore = "runs alone, by tests/run"]
fn commands_stay_in_a_private_session_although_the_first_one_was_killed() {
    for env in stores() {
        let gate = Gate::new(&env);
        let mut first = env.envfs_command(&[&RUN[..], &["tool"]].concat());
        gate.arm(&mut first, "pause.session.mounted,pause.session.started");
        let mut first = first.stdout(Stdio::null()).spawn().unwrap();
        gate.wait("pause.session.mounted");
        first.kill().unwrap();
        first.wait().unwrap();
        let held = hold_in(&env, &RUN, &[]);
        gate.open("pause.session.mounted");
        gate.wait("pause.session.started");
        gate.open("pause.session.started");
        let script = format!("tool; {NAMESPACE}");
        let done = env.envfs(&[&RUN[..], &["sh", "-c", &script]].concat());
        let namespace = fs::read_link(format!("/proc/{}/ns/mnt", held.id())).unwrap();
        assert_eq!(done.ok().out, format!("tool\n{}\n", namespace.display()));
        release(held);
        wait_for_end(&env);
    }
}

#[test]
#[ignore = "runs alone, by tests/run"]
fn who_only_knocks_does_not_keep_a_private_session() {
    for env in stores() {
        let held = hold_in(&env, &RUN, &[]);
        let [supervisor] = supervisors(&env)[..] else {
            panic!("one supervisor");
        };
        let sockets = names(&env.root().join("run/envfs")).into_iter();
        let socket = sockets
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "sock")
            })
            .find(|path| path.to_str().unwrap().contains("/ns-"));
        let socket = socket.unwrap();
        kill(supervisor, Signal::SIGSTOP).unwrap();
        // From a process of its own: one that another test is starting may have a copy of a socket
        // of this process.
        let mut knock = env.command("python3");
        let script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        knock.args(["-c", script]).arg(&socket);
        run(knock).ok();
        // One of another user is not admitted.
        let other = (!env.user().is_current()).then(|| UnixStream::connect(&socket).unwrap());
        release(held);
        kill(supervisor, Signal::SIGCONT).unwrap();
        wait_for_end(&env);
        drop(other);
    }
}
