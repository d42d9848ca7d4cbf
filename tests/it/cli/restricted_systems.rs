//! Private sessions on systems that lack or refuse something.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Stdio};

use super::private::{RUN, ordinary, supervisors, wait_for_end};
use crate::support::{Run, TestEnv, User, has, run, skip_allowed, wait_for};

/// Runs a script as root in a mount namespace of its own, then envfs as the user of the store.
fn in_changed_system(env: &TestEnv, change: &str, words: &[&str]) -> Option<Run> {
    if !User::current().is_root() || !has("setpriv") {
        skip_allowed("changing the system needs root");
        return None;
    }
    let user = env.user();
    let mut command = env.envfs_of_runner(words);
    let (uid, gid) = (user.uid(), user.gid());
    let script = format!(
        "{change}\nexec setpriv --reuid={uid} --regid={gid} --clear-groups --bounding-set=-all -- \"$@\""
    );
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let variables: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec", &script, "sh"])
        .args(words)
        .env_clear()
        .envs(variables)
        .current_dir(env.work())
        .stdin(Stdio::null());
    Some(run(command))
}

#[test]
fn a_private_session_needs_no_helper_but_the_device() {
    let Some(env) = ordinary() else { return };
    let words = [&RUN[..], &["tool"]].concat();
    let no_helper = "mount --bind /dev/null /usr/bin/fusermount3";
    let Some(done) = in_changed_system(&env, no_helper, &words) else {
        return;
    };
    assert_eq!(done.ok().out, "tool\n");
    let no_device = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3";
    let done = in_changed_system(&env, no_device, &words).unwrap();
    done.fails(125, &["/dev/fuse does not exist"]);
    let done = in_changed_system(&env, no_helper, &["doctor"]).unwrap();
    assert!(done.out.contains("private sessions: work"), "{done}");
    let done = in_changed_system(&env, no_device, &["doctor"]).unwrap();
    let refused = "private sessions: /dev/fuse does not exist";
    assert!(done.out.contains(refused), "{done}");
    wait_for_end(&env);
}

#[test]
fn root_in_a_user_namespace_has_private_sessions() {
    let Some(env) = ordinary() else { return };
    let prefix = env.prefix("e");
    let own = "id -u; tool; echo x >\"$ENVFS_PREFIX/x\" && chown 0:0 \"$ENVFS_PREFIX/x\"";
    for (options, is_own_mount) in [(&["-r"][..], false), (&["-r", "-m"], true)] {
        let inside = |words: &[&str]| {
            let mut command = env.command("unshare");
            run({
                command.args(options).args(words);
                command
            })
        };
        let read = inside(&[&["envfs"], &RUN[..], &["sh", "-c", "id -u; tool"]].concat());
        assert_eq!(read.ok().out, "0\ntool\n", "{options:?}");
        let script = "envfs run e sh -ec \"$0\"; envfs -q unmount e || :";
        let written = inside(&["sh", "-ec", script, own]).ok();
        assert_eq!(written.out, "0\ntool\n", "{options:?}");
        let is_told = written.err.contains("this user namespace does not allow");
        assert_eq!(is_told, !is_own_mount, "{written}");
        wait_for("the end of the daemon", || env.daemons().is_empty());
        // For the user it is their own file.
        env.mount("e");
        let owner = format!("stat -c %u '{}/x'", prefix.display());
        assert_eq!(env.sh(&owner).ok().line(), env.user().uid().to_string());
        env.envfs(&["unmount", "e"]).ok();
    }
    wait_for_end(&env);
}

#[test]
fn a_system_that_refuses_user_namespaces_is_named() {
    let Some(env) = ordinary() else { return };
    if !has("setpriv") {
        return;
    }
    let limit = "/proc/sys/user/max_user_namespaces";
    let drop = "setpriv --ambient-caps=-all --inh-caps=-all";
    let script = format!(
        "echo 0 >{limit}; {drop} envfs doctor || true; exec {drop} envfs {} tool",
        RUN.join(" ")
    );
    let mut command = env.command("unshare");
    command.args(["--user", "--map-current-user", "--keep-caps", "sh", "-ec"]);
    command.arg(&script);
    let words = [
        "cannot create a user namespace",
        "user.max_user_namespaces is 0",
    ];
    let done = run(command).fails(125, &words);
    assert!(done.out.contains(words[1]), "{done}");
    assert!(supervisors(&env).is_empty());
}

#[test]
fn a_session_needs_no_shared_directory_of_sockets() {
    let Some(env) = ordinary() else { return };
    let user = env.user();
    // Another user has taken the name of the directory.
    let change = format!(
        "dir=/tmp/envfs-{0}; test -d $dir || {{ mkdir -m 700 $dir; chown {0}:{1} $dir; }}\n\
         mount -t tmpfs -o mode=755 none $dir; unset XDG_RUNTIME_DIR",
        user.uid(),
        user.gid()
    );
    let words = [&RUN[..], &["tool"]].concat();
    let Some(done) = in_changed_system(&env, &change, &words) else {
        return;
    };
    assert_eq!(done.ok().out, "tool\n");
    wait_for("the end of the supervisor", || supervisors(&env).is_empty());
    let own = format!("envfs-{}-", user.uid());
    let left = fs::read_dir("/tmp").unwrap().flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(&own));
    assert_eq!(left.count(), 0);
}
