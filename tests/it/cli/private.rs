//! Private sessions: mounts that only the programs in them see.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Run, TestEnv, User, finish, has, is_alive, mounts_below, run, skip_allowed, wait_for,
};

/// The command line up to the environment.
pub(super) const RUN: [&str; 4] = ["run", "--private", "--read-only", "e"];

/// Returns whether the kernel lets this user have private sessions; reports a skip if not.
pub(crate) fn is_possible(env: &TestEnv) -> bool {
    if env.user().is_root() {
        return true;
    }
    let mut command = env.command("unshare");
    command.args(["--user", "--map-current-user", "--mount", "true"]);
    let is_possible = command.status().is_ok_and(|status| status.success());
    if !is_possible {
        skip_allowed("no user namespaces");
    }
    is_possible
}

/// Returns stores with an environment `e`, one for each user that can have private sessions.
pub(super) fn stores() -> Vec<TestEnv> {
    let mut stores = TestEnv::of_all_users();
    stores.retain(is_possible);
    for env in &stores {
        env.import_sample("e");
    }
    stores
}

/// Returns a store of an ordinary user.
pub(super) fn ordinary() -> Option<TestEnv> {
    let env = TestEnv::ordinary().filter(is_possible)?;
    env.import_sample("e");
    Some(env)
}

fn private(env: &TestEnv, words: &[&str]) -> Run {
    env.envfs(&[&RUN[..], words].concat())
}

/// Starts a command in a read-only session that waits until its input is closed.
fn hold(env: &TestEnv, variables: &[(&str, &str)]) -> Child {
    hold_in(env, &RUN, variables)
}

/// Starts a command in a session that waits until its input is closed.
pub(super) fn hold_in(env: &TestEnv, words: &[&str], variables: &[(&str, &str)]) -> Child {
    let ready = env.work().join(format!("ready-{}", variables.len()));
    drop(fs::remove_file(&ready));
    let script = format!("echo >'{}'; cat >/dev/null", ready.display());
    let mut command = env.envfs_command(&[words, &["sh", "-c", &script]].concat());
    let child = command
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the command in the session", || ready.exists());
    child
}

pub(super) fn release(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Returns the supervisors of a store.
pub(super) fn supervisors(env: &TestEnv) -> Vec<Pid> {
    let store = env.root().to_str().unwrap();
    let is_ours = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("__serve\0--private\0") && line.contains(store)
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(is_ours)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| is_alive(*pid))
        .collect()
}

/// Waits until nothing of the sessions is left.
#[track_caller]
pub(super) fn wait_for_end(env: &TestEnv) {
    wait_for("the end of the supervisor", || supervisors(env).is_empty());
    let left = fs::read_dir(env.root().join("run/envfs")).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("ns-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Returns the number of changed paths.
fn changed_paths(env: &TestEnv) -> usize {
    let changed = env.envfs(&["diff", "--name-only", "e"]).ok();
    changed.out.lines().count()
}

/// The part of a script that prints the mount namespace.
pub(super) const NAMESPACE: &str = "readlink /proc/self/ns/mnt";

#[test]
fn only_programs_in_a_private_session_see_its_mount() {
    for env in stores() {
        let prefix = env.prefix("e");
        let script = format!("tool; cat '{0}/lib/a.txt'; id -u", prefix.display());
        let done = private(&env, &["sh", "-c", &script]).ok();
        let user = env.user().uid();
        assert_eq!(done.out, format!("tool\nalpha\nbeta\n{user}\n"), "{done}");
        let held = hold(&env, &[]);
        assert!(mounts_below(env.root()).is_empty());
        assert_eq!(fs::read_dir(&prefix).unwrap().count(), 0);
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", held.id())).unwrap();
        assert!(table.contains(prefix.to_str().unwrap()), "{table}");
        // The session is read-only and takes no lock.
        private(
            &env,
            &["sh", "-c", &format!("! echo >'{}/x'", prefix.display())],
        )
        .ok();
        let writable = env.mount("e");
        env.sh(&format!("echo >'{}/x'", writable.display())).ok();
        private(
            &env,
            &["sh", "-c", &format!("! test -e '{}/x'", prefix.display())],
        )
        .ok();
        env.envfs(&["unmount", "e"]).ok();
        release(held);
        wait_for_end(&env);
    }
}

#[test]
fn a_command_in_a_private_session_keeps_status_process_directory_and_input() {
    for env in stores() {
        for code in [0, 1, 125] {
            let done = private(&env, &["sh", "-c", &format!("exit {code}")]);
            assert_eq!(done.code, code, "{done}");
        }
        assert_eq!(private(&env, &["sh", "-c", "kill -TERM $$"]).code, 128 + 15);
        private(&env, &["no-such-program"]).fails(127, &["no-such-program"]);
        let dir = env.work().join("a dir");
        env.write(&dir.join("file"), "x");
        let words = [&RUN[..], &["sh", "-c", "echo $$; pwd; cat file"]].concat();
        let mut command = env.envfs_command(&words);
        command
            .current_dir(&dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let expected = format!("{}\n{}\nx", child.id(), dir.display());
        assert_eq!(finish(child, "run".to_owned()).ok().out, expected);
        // A directory without a path.
        let script = format!(
            "mkdir gone; cd gone; rmdir ../gone; envfs {}",
            RUN.join(" ")
        );
        env.sh(&format!("{script} tool")).ok();
        let script = "echo $ENVFS_ENV $ENVFS_PREFIX";
        let done = private(&env, &["sh", "-c", script]).ok();
        assert_eq!(done.line(), format!("e {}", env.prefix("e").display()));
    }
}

#[test]
fn many_processes_at_once_share_one_mount() {
    for env in stores() {
        let script = format!("{NAMESPACE}; cat >/dev/null");
        let children: Vec<Child> = (0..64)
            .map(|_| {
                let words = [&RUN[..], &["sh", "-c", &script]].concat();
                let mut command = env.envfs_command(&words);
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                command.stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        // All are in the session before the first one leaves it.
        let mut outputs: Vec<_> = Vec::new();
        let mut children: Vec<Child> = children
            .into_iter()
            .map(|mut child| {
                use std::io::{BufRead, BufReader};
                let mut line = String::new();
                let output = child.stdout.take().unwrap();
                BufReader::new(output).read_line(&mut line).unwrap();
                outputs.push(line);
                child
            })
            .collect();
        assert_eq!(supervisors(&env).len(), 1);
        for child in &mut children {
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        }
        let namespaces: HashSet<&String> = outputs.iter().collect();
        assert_eq!(namespaces.len(), 1, "{namespaces:?}");
        assert!(outputs[0].starts_with("mnt:["), "{outputs:?}");
        wait_for_end(&env);
    }
}

#[test]
fn a_session_lasts_as_long_as_a_process_that_was_left_behind() {
    for env in stores() {
        let note = env.work().join("pid");
        let script = format!(
            "setsid sh -c 'echo $$ >{0}.new; mv {0}.new {0}; while test -e {0}; do sleep 0.05; done; tool >{0}.out' \
             </dev/null >/dev/null 2>&1 & while ! test -e {0}; do sleep 0.05; done",
            note.display()
        );
        private(&env, &["sh", "-c", &script]).ok();
        let pid: i32 = fs::read_to_string(&note).unwrap().trim().parse().unwrap();
        let of_session = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        // Longer than an empty session is kept.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let joined = private(&env, &["sh", "-c", NAMESPACE]).ok();
        assert_eq!(joined.line(), of_session.to_str().unwrap());
        fs::remove_file(&note).unwrap();
        wait_for_end(&env);
        let out = fs::read_to_string(env.work().join("pid.out")).unwrap();
        assert_eq!(out, "tool\n", "the environment works up to the end");
    }
}

#[test]
fn the_next_command_replaces_a_killed_supervisor() {
    for env in stores() {
        let held = hold(&env, &[]);
        let old = supervisors(&env);
        assert_eq!(old.len(), 1);
        kill(old[0], Signal::SIGKILL).unwrap();
        wait_for("the end of the supervisor", || !is_alive(old[0]));
        assert_eq!(private(&env, &["tool"]).ok().out, "tool\n");
        // A process in the dead session can start another one.
        let table = format!("/proc/{}/root{}", held.id(), env.prefix("e").display());
        assert!(fs::read_dir(table).is_err());
        release(held);
        wait_for_end(&env);
    }
}

#[test]
fn a_supervisor_that_is_asked_to_end_serves_its_processes_to_the_end() {
    for env in stores() {
        let held = hold(&env, &[]);
        let old = supervisors(&env);
        kill(old[0], Signal::SIGTERM).unwrap();
        wait_for("the session to close", || {
            let words = [&RUN[..], &["sh", "-c", NAMESPACE]].concat();
            let own = fs::read_link(format!("/proc/{}/ns/mnt", held.id())).unwrap();
            env.envfs(&words).ok().line() != own.to_str().unwrap()
        });
        let inside = format!("/proc/{}/root{}", held.id(), env.prefix("e").display());
        // The kernel keeps other users, even root, out of the mount.
        if env.user().is_current() {
            assert!(fs::read_dir(&inside).unwrap().count() > 0);
        }
        assert!(is_alive(old[0]));
        release(held);
        wait_for_end(&env);
    }
}

#[test]
fn a_session_of_a_session_is_the_same() {
    for env in stores() {
        let nested = format!("{NAMESPACE}; envfs {} {NAMESPACE}", RUN.join(" "));
        let done = private(&env, &["sh", "-c", &nested]).ok();
        let lines: HashSet<&str> = done.out.lines().collect();
        assert_eq!(lines.len(), 1, "{done}");
        // Another environment is a session inside.
        env.import_sample("f");
        let nested = "tool; envfs run --private --read-only f sh -c 'tool; echo $ENVFS_ENV'";
        let done = private(&env, &["sh", "-c", nested]).ok();
        assert_eq!(done.out, "tool\ntool\nf\n");
        wait_for_end(&env);
    }
}

#[test]
fn a_session_of_another_job_is_not_joined() {
    for env in stores() {
        let one = hold(&env, &[("SLURM_JOB_ID", "1")]);
        let namespace = |variables: &[(&str, &str)]| {
            let mut command = env.envfs_command(&[&RUN[..], &["sh", "-c", NAMESPACE]].concat());
            command.envs(variables.iter().copied());
            run(command).ok().line().to_owned()
        };
        let own = fs::read_link(format!("/proc/{}/ns/mnt", one.id())).unwrap();
        let own = own.to_str().unwrap();
        assert_eq!(namespace(&[("SLURM_JOB_ID", "1")]), own);
        for other in [
            &[("SLURM_JOB_ID", "2")][..],
            &[("SLURM_JOB_ID", "1"), ("SLURM_STEP_ID", "7")],
            &[],
        ] {
            assert_ne!(namespace(other), own, "{other:?}");
        }
        release(one);
        wait_for_end(&env);
    }
}

#[test]
fn processes_of_one_job_see_one_revision_and_others_the_current_one() {
    for env in stores() {
        let job = [("SLURM_JOB_ID", "1")];
        let in_job = hold(&env, &job);
        let other = hold(&env, &[]);
        let prefix = env.mount("e");
        let change = format!("echo changed >'{}/lib/a.txt'", prefix.display());
        env.sh(&change).ok();
        env.envfs(&["commit", "-q", "-m", "change", "e"]).ok();
        env.envfs(&["unmount", "e"]).ok();
        env.envfs(&["gc", "-q", "--keep", "1", "e"]).ok();
        let text = |variables: &[(&str, &str)]| {
            let script = format!("cat '{}/lib/a.txt'", prefix.display());
            let mut command = env.envfs_command(&[&RUN[..], &["sh", "-c", &script]].concat());
            command.envs(variables.iter().copied());
            run(command).ok().out
        };
        assert_eq!(text(&job), "alpha\nbeta\n");
        assert_eq!(text(&[]), "changed\n");
        release(in_job);
        release(other);
        wait_for_end(&env);
    }
}

#[test]
fn changes_in_a_writable_private_session_belong_to_the_environment() {
    for env in stores() {
        let prefix = env.prefix("e");
        let held = hold_in(&env, &["run", "--private", "e"], &[]);
        let script = format!("echo new >'{}/new'; tool", prefix.display());
        let done = env.envfs(&["run", "--private", "e", "sh", "-c", &script]);
        assert_eq!(done.ok().out, "tool\n");
        // It is one session, and outside nothing is mounted.
        assert_eq!(env.daemons().len(), 1);
        assert!(mounts_below(env.root()).is_empty());
        assert_eq!(changed_paths(&env), 1);
        // A page that was changed through a mapping is committed too.
        if has("python3") {
            let script = format!(
                "import mmap,sys\nf=open('{}/lib/c.txt','r+b')\nm=mmap.mmap(f.fileno(),0)\nm[:5]=b'GAMMA'\n\
                 import subprocess\nsys.exit(subprocess.run(['envfs','commit','-q','-m','x','e']).returncode)",
                prefix.display()
            );
            let words = ["run", "--private", "e", "python3", "-c", &script];
            env.envfs(&words).ok();
        } else {
            env.envfs(&["commit", "-q", "-m", "x", "e"]).ok();
        }
        env.envfs(&["mount", "e"])
            .fails(5, &["in another namespace"]);
        env.envfs(&["unmount", "e"])
            .fails(5, &["is in the private session"]);
        release(held);
        wait_for("the end of the daemon", || env.daemons().is_empty());
        env.verify("e");
        env.mount("e");
        let text = env.sh(&format!("cd '{}'; cat new lib/c.txt", prefix.display()));
        assert_eq!(text.ok().out, "new\nGAMMA\n");
        // A mount outside is used as it is.
        let script = format!("test -e '{}/new'; {NAMESPACE}", prefix.display());
        let done = env.envfs(&["run", "--private", "e", "sh", "-ec", &script]);
        let own = fs::read_link("/proc/self/ns/mnt").unwrap();
        assert_eq!(done.ok().line(), own.to_str().unwrap());
    }
}

#[test]
fn a_writable_session_of_another_job_is_refused() {
    for env in stores() {
        let job = [("SLURM_JOB_ID", "1")];
        let held = hold_in(&env, &["run", "--private", "--writable", "e"], &job);
        let words = ["run", "--private", "--writable", "e", "tool"];
        let mut command = env.envfs_command(&words);
        command.env("SLURM_JOB_ID", "2");
        run(command).fails(125, &["(pid", "in another namespace"]);
        assert_eq!(private(&env, &["tool"]).ok().out, "tool\n");
        release(held);
        wait_for("the end of the daemon", || env.daemons().is_empty());
        // A session in which something is left behind ends on request.
        let script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!";
        let done = env
            .envfs(&["run", "--private", "e", "sh", "-c", script])
            .ok();
        env.envfs(&["unmount", "e"]).fails(5, &["sleep"]);
        kill(Pid::from_raw(done.line().parse().unwrap()), Signal::SIGKILL).unwrap();
        env.envfs(&["unmount", "e"]).ok();
        assert_eq!(
            env.envfs(&["run", "--private", "e", "tool"]).ok().out,
            "tool\n"
        );
    }
}

#[test]
fn files_of_supplementary_groups_are_accessible_in_a_private_session() {
    let Some(env) = ordinary() else { return };
    if !User::current().is_root() || !has("setpriv") {
        return skip_allowed("setting groups needs root");
    }
    let file = env.root().join("shared");
    fs::write(&file, "of the group\n").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&file, Some(0), Some(4242)).unwrap();
    let mut command = env.envfs_of_runner::<&str>(&[]);
    let program = command.get_program().to_owned();
    let variables: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command = Command::new("setpriv");
    command
        .env_clear()
        .envs(variables)
        .current_dir(env.work())
        .arg(format!("--reuid={}", env.user().uid()))
        .arg(format!("--regid={}", env.user().gid()))
        .args(["--groups=4242", "--"])
        .arg(program)
        .args(RUN)
        .args(["cat", file.to_str().unwrap()]);
    assert_eq!(run(command).ok().out, "of the group\n");
    private(&env, &["cat", file.to_str().unwrap()]).fails(1, &["ermission denied"]);
}

#[test]
fn run_in_a_job_and_without_a_helper_is_private() {
    for env in stores() {
        let own = fs::read_link("/proc/self/ns/mnt").unwrap();
        let own = own.to_str().unwrap();
        let run_with = |words: &[&str], name: &str, value: &str| {
            let words = [
                &["run"],
                words,
                &["sh", "-c", "tool; readlink /proc/self/ns/mnt"],
            ];
            let done = env.envfs_with(name, value, &words.concat()).ok();
            let lines: Vec<&str> = done.out.lines().collect();
            assert_eq!(lines[0], "tool", "{done}");
            (lines[1] != own, done.err.clone())
        };
        for words in [&["e"][..], &["e@1"], &["--ephemeral", "e"]] {
            let (is_private, talk) = run_with(words, "SLURM_JOB_ID", "1");
            assert!(is_private && talk.is_empty(), "{words:?}: {talk}");
            let missing = env.work().join("no-fusermount3");
            let (is_private, talk) = run_with(words, "ENVFS_FUSERMOUNT", missing.to_str().unwrap());
            // Root needs no helper.
            assert_eq!(is_private, !env.user().is_root(), "{words:?}");
            assert_eq!(
                talk.contains("fusermount3 is missing"),
                is_private,
                "{talk}"
            );
            // An ephemeral session ends with its command.
            if words[0] != "--ephemeral" {
                env.envfs(&["-q", "unmount", "e"]).ok();
            }
            wait_for("the end of the mount", || {
                mounts_below(env.root()).is_empty()
            });
        }
        wait_for_end(&env);
    }
}

#[test]
fn changes_in_a_private_ephemeral_session_are_dropped() {
    for env in stores() {
        let file = env.prefix("e").join("new");
        let base = env.work().join("changes");
        env.sh(&format!("mkdir '{}'", base.display())).ok();
        let script = format!("echo x >'{0}'; cat '{0}'; tool", file.display());
        let words = [
            "run",
            "--private",
            "--ephemeral",
            "--upper-dir",
            base.to_str().unwrap(),
            "e",
            "sh",
            "-ec",
            &script,
        ];
        assert_eq!(env.envfs(&words).ok().out, "x\ntool\n");
        // Each command has its own.
        let words = [
            "run",
            "--private",
            "--ephemeral",
            "e",
            "test",
            "-e",
            file.to_str().unwrap(),
        ];
        assert_eq!(env.envfs(&words).code, 1);
        wait_for_end(&env);
        wait_for("the changes to be removed", || {
            fs::read_dir(&base).unwrap().count() == 0
        });
        assert_eq!(changed_paths(&env), 0);
    }
}

#[test]
fn a_prefix_with_other_content_is_refused() {
    for env in stores() {
        let file = env.prefix("e").join("precious");
        env.write(&file, "x");
        private(&env, &["tool"]).fails(125, &["not empty"]);
        assert!(supervisors(&env).is_empty());
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
    }
}
