//! The daemon: dead, unreachable, ended by a signal, asked to unmount while it is used.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};

use crate::support::tree::{self, Look};
use crate::support::{TestEnv, finish, has, is_alive, mounts_below, run, skip_allowed, wait_for};

#[test]
fn every_command_heals_the_mount_of_a_killed_daemon_and_nothing_is_lost() {
    for env in TestEnv::of_all_users() {
        let source = env.import_sample("e");
        let first = tree::read(&source);
        let prefix = env.prefix("e");
        let at = prefix.display();
        let commands: [&[&str]; 11] = [
            &["list"],
            &["status", "e"],
            &["diff", "e"],
            &["mount", "e"],
            &["activate", "--shell", "bash", "e"],
            &["run", "e", "--", "tool"],
            &["commit", "e"],
            &["discard", "-y", "e", "nothing"],
            &["verify", "e"],
            &["rollback", "-y", "e", "1"],
            &["unmount", "e"],
        ];
        for (number, words) in commands.into_iter().enumerate() {
            env.mount("e");
            env.sh(&format!(
                "echo {number} >'{at}/file'; mkdir -p '{at}/dir{number}'"
            ))
            .ok();
            env.kill_daemon("e");
            let done = env.envfs(words).ok();
            assert!(!done.err.contains("transport"), "{done}");
            env.mount("e");
            let mounts = mounts_below(env.root());
            assert_eq!(
                mounts.len(),
                1,
                "{words:?}: mounts do not pile up: {mounts:?}"
            );
            if words[0] == "rollback" {
                env.sh(&format!("test ! -e '{at}/file'")).ok();
                if env.user().is_current() {
                    tree::assert_same(&first, &tree::read(&prefix), Look::ALL, "rolled back");
                }
            } else {
                let file = env
                    .sh(&format!("test -d '{at}/dir{number}' && cat '{at}/file'"))
                    .ok();
                assert_eq!(file.out, format!("{number}\n"), "{words:?}");
            }
        }
        env.envfs(&["unmount", "e"]).ok();
        assert_eq!(mounts_below(env.root()).len(), 0);
        env.verify("e");
    }
}

#[test]
fn discarding_everything_works_on_a_dead_mount() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("x"), "x").unwrap();
    env.kill_daemon("e");
    env.envfs(&["discard", "-y", "e"]).ok();
    env.mount("e");
    tree::assert_same_at(&source, &prefix, Look::ALL, "discarded");
}

#[test]
fn a_daemon_that_is_told_to_end_unmounts_cleanly() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        env.sh(&format!("echo kept >'{}/kept'", prefix.display()))
            .ok();
        let pid = env.daemon("e");
        kill(pid, Signal::SIGTERM).unwrap();
        wait_for("the daemon's end", || !is_alive(pid));
        assert_eq!(mounts_below(env.root()).len(), 0);
        let log = fs::read_to_string(env.home_of("e").join("daemon.log")).unwrap();
        assert!(!log.contains("not closed cleanly"), "{log}");
        env.mount("e");
        let read = env.sh(&format!("cat '{}/kept'", prefix.display())).ok();
        assert_eq!(read.out, "kept\n");
        let log = fs::read_to_string(env.home_of("e").join("daemon.log")).unwrap();
        assert!(!log.contains("not closed cleanly"), "{log}");
    }
}

#[test]
fn what_lies_on_top_of_a_mount_is_not_taken_away() {
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        return skip_allowed("something else is mounted by root");
    }
    env.import_sample("e");
    let prefix = env.mount("e");
    let pid = env.daemon("e");
    let mut mount = env.command("mount");
    mount.args(["-t", "tmpfs", "none"]).arg(&prefix);
    run(mount).ok();
    fs::write(prefix.join("on top"), "").unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    let log = env.home_of("e").join("daemon.log");
    wait_for("the message in the log", || {
        fs::read_to_string(&log)
            .unwrap()
            .contains("is mounted on top of")
    });
    env.envfs(&["unmount", "e"])
        .fails(4, &["is mounted on top of", "none (tmpfs)", "umount"]);
    env.envfs(&["unmount", "--lazy", "e"])
        .fails(4, &["is mounted on top of"]);
    assert!(prefix.join("on top").exists());
    assert!(is_alive(pid));
    env.unmount(&prefix).ok();
    kill(pid, Signal::SIGTERM).unwrap();
    wait_for("the daemon's end", || !is_alive(pid));
    assert_eq!(mounts_below(env.root()).len(), 0);
}

#[test]
fn ctrl_c_in_the_terminal_that_started_it_does_not_reach_the_daemon() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let mut command = env.command("/bin/sh");
    command.args([
        "-c",
        "envfs mount e; trap : INT; kill -INT 0; sleep 0.3; echo after",
    ]);
    command.process_group(0);
    let done = run(command);
    assert!(done.out.ends_with("after\n"), "{done}");
    assert!(is_alive(env.daemon("e")));
    assert_eq!(
        fs::read(env.prefix("e").join("lib/c.txt")).unwrap(),
        b"gamma\n"
    );
}

#[test]
fn a_busy_mount_is_not_taken_away_and_its_users_are_named() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let mut command = env.command("/bin/sh");
        let script = format!("cd '{}/lib'; echo here; exec sleep 60", prefix.display());
        let mut child = command
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for("the program", || {
            fs::read_link(format!("/proc/{}/exe", child.id()))
                .is_ok_and(|exe| exe.ends_with("sleep") || exe.ends_with("coreutils"))
        });
        let pid = child.id().to_string();
        env.envfs(&["unmount", "e"])
            .fails(5, &[&pid, "sleep", "--lazy"]);
        let status = env.envfs(&["status", "--json", "e"]).ok().json();
        assert_eq!(status["holders"][0]["pid"], child.id(), "{status}");
        env.sh(&format!("test -d '{}/lib'", prefix.display())).ok();
        env.envfs(&["unmount", "--lazy", "e"]).ok();
        assert_eq!(mounts_below(env.root()).len(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        env.mount("e");
        env.verify("e");
    }
}

#[test]
fn a_socket_that_nobody_listens_at_and_one_that_is_gone_do_no_harm() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let paths = env.envfs(&["paths", "--json", "e"]).ok().json();
    let socket = std::path::PathBuf::from(paths["socket"].as_str().unwrap());
    // Looking makes no directory.
    let dir = socket.parent().unwrap();
    fs::create_dir(dir).unwrap();
    fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    env.envfs(&["status", "e"]).ok();
    let prefix = env.mount("e");
    fs::write(prefix.join("x"), "x").unwrap();
    fs::remove_file(&socket).unwrap();
    env.envfs(&["list"]).ok();
    env.envfs(&["run", "e", "tool"]).ok();
    let again = env.envfs(&["mount", "e"]).ok();
    assert!(again.err.contains("envfs unmount e"), "{again}");
    env.envfs(&["status", "e"]).fails(9, &["envfs unmount e"]);
    env.envfs(&["commit", "e"]).fails(9, &["envfs unmount e"]);
    assert_eq!(fs::read(prefix.join("x")).unwrap(), b"x");
    env.envfs(&["unmount", "e"]).ok();
    wait_for("the daemon's lock", || {
        env.envfs(&["commit", "e"]).code == 0
    });
    assert_eq!(fs::read(env.mount("e").join("x")).unwrap(), b"x");
}

#[test]
fn a_daemon_is_found_with_another_runtime_directory_or_none() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        env.sh(&format!("echo x >'{}/x'", prefix.display())).ok();
        let pid = env.daemon("e");
        let other = env.root().join("run-of-cron");
        fs::create_dir(&other).unwrap();
        env.user().give(&other);
        let elsewhere = |words: &[&str]| {
            env.envfs_with("XDG_RUNTIME_DIR", other.to_str().unwrap(), words)
                .ok()
        };
        assert_eq!(
            elsewhere(&["status", "--json", "e"]).json()["daemon_pid"],
            pid.as_raw()
        );
        let socket = env.envfs(&["paths", "--json", "e"]).ok().json()["socket"].clone();
        assert_eq!(
            elsewhere(&["paths", "--json", "e"]).json()["socket"],
            socket
        );
        elsewhere(&["mount", "e"]);
        elsewhere(&["run", "e", "tool"]);
        elsewhere(&["commit", "e", "-m", "from cron"]);
        elsewhere(&["gc", "e"]);
        assert_eq!(env.daemon("e"), pid, "one daemon served all");
        let mut command = env.envfs_command(&["unmount", "e"]);
        command.env_remove("XDG_RUNTIME_DIR");
        run(command).ok();
        assert!(!is_alive(pid));
        assert_eq!(mounts_below(env.root()).len(), 0);
        assert_eq!(env.count(&["log", "e"]), 2);
        env.verify("e");
    }
}

#[test]
fn garbage_is_collected_by_the_daemon_and_never_what_a_rollback_needs() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    for round in 0..4 {
        for number in 0..3 {
            fs::write(prefix.join("file"), format!("{round} {number}")).unwrap();
            env.envfs(&["commit", "e"]).ok();
        }
        let mut command = env.envfs_command(&["rollback", "-y", "e"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let rollback = command.spawn().unwrap();
        env.envfs(&["gc", "--keep", "1", "e"]).ok();
        let done = finish(rollback, "rollback".to_owned());
        // Whoever came first: either it went back, or there is nothing to go back to.
        let expected = match done.code {
            0 => format!("{round} 1"),
            3 => format!("{round} 2"),
            _ => panic!("{done}"),
        };
        assert_eq!(fs::read_to_string(prefix.join("file")).unwrap(), expected);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
        env.mount("e");
        assert_eq!(fs::read_to_string(prefix.join("file")).unwrap(), expected);
    }
    env.envfs(&["gc", "--keep", "1", "e"]).ok();
    let images = fs::read_dir(env.home_of("e").join("images")).unwrap();
    assert_eq!(images.count(), 1);
}

#[test]
fn the_log_of_a_daemon_does_not_grow_without_end() {
    const MOST: u64 = 1 << 20;
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let log = env.home_of("e").join("daemon.log");
    let old = env.home_of("e").join("daemon.log.old");
    let size = |path: &std::path::Path| fs::metadata(path).map_or(0, |meta| meta.len());
    // At a start.
    fs::write(&log, vec![b'x'; MOST as usize + 1]).unwrap();
    env.mount("e");
    assert_eq!(size(&old), MOST + 1);
    wait_for("the log", || {
        fs::read_to_string(&log).unwrap().contains("mounted")
    });
    // While it runs: whatever its log gets, as after an error that comes again and again.
    let mut writer = fs::File::options().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut writer, &vec![b'y'; MOST as usize]).unwrap();
    env.envfs(&["diff", "e"]).ok();
    env.envfs(&["diff", "e"]).ok();
    assert!(size(&log) < MOST && size(&old) > MOST);
    assert!(fs::read_to_string(&log).unwrap().contains("request="));
    // One request does not fill it either.
    let path = "p".repeat(100_000);
    env.envfs(&["diff", "e", &path]).ok();
    assert!(size(&log) < 10_000);
}

#[test]
fn who_gets_no_answer_is_told_how_to_know() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let words = ["mount", "e"];
    let prefix = env.envfs_with("ENVFS_FAULT", "commit.flipped", &words).ok();
    fs::write(format!("{}/new", prefix.line()), "new").unwrap();
    env.envfs(&["commit", "e"])
        .fails(9, &["without an answer", "envfs log e"]);
    assert_eq!(env.count(&["log", "e"]), 2);
}

#[test]
fn ctrl_c_during_a_commit_leaves_all_as_it_was() {
    for is_mounted in [true, false] {
        let Some(env) = TestEnv::new() else { return };
        fs::create_dir_all(env.store()).unwrap();
        fs::write(env.store().join("config.toml"), "compression = \"xz:9\"\n").unwrap();
        env.envfs(&["create", "e"]).ok();
        let prefix = env.mount("e");
        for number in 0..24 {
            let noise = crate::support::samples::noise(2 << 20, number);
            fs::write(prefix.join(format!("noise{number}")), noise).unwrap();
        }
        let before = tree::read(&prefix);
        if !is_mounted {
            env.envfs(&["unmount", "e"]).ok();
        }
        let images = env.home_of("e").join("images");
        let count = || fs::read_dir(&images).unwrap().count();
        // That of the empty environment.
        let had = count();
        let mut command = env.envfs_command(&["commit", "e"]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command.spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        wait_for("the image", || count() > had);
        kill(pid, Signal::SIGINT).unwrap();
        finish(child, "commit".to_owned()).fails(130, &["as it was"]);
        assert_eq!(count(), had, "nothing is left of the image");
        env.mount("e");
        tree::assert_same(&before, &tree::read(&prefix), Look::ALL, "after Ctrl-C");
        assert_eq!(env.count(&["log", "e"]), 1);
        env.verify("e");
        for number in 1..24 {
            fs::remove_file(prefix.join(format!("noise{number}"))).unwrap();
        }
        env.envfs(&["commit", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn a_mount_learns_what_is_used_first_and_a_damaged_profile_does_no_harm() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let profile = env.home_of("e").join("profile");
        let prefix = env.prefix("e");
        let use_it = || {
            env.mount("e");
            env.sh(&format!("cat '{}/lib/c.txt'", prefix.display()))
                .ok();
            env.envfs(&["unmount", "e"]).ok();
        };
        assert!(!profile.exists());
        use_it();
        let learnt = fs::read(&profile).unwrap();
        assert!(learnt.starts_with(b"envprof1"), "{learnt:?}");
        use_it();
        assert_eq!(fs::read(&profile).unwrap(), learnt);
        // Of no version, cut short, and with numbers that mean nothing.
        for bytes in [
            b"something else".to_vec(),
            learnt[..learnt.len() - 1].to_vec(),
            [&learnt[..8], &[0xff; 64]].concat(),
        ] {
            fs::write(&profile, bytes).unwrap();
            use_it();
            assert_eq!(fs::read(&profile).unwrap(), learnt);
        }
        fs::remove_file(&profile).unwrap();
        fs::write(env.store().join("config.toml"), "profile = \"off\"\n").unwrap();
        use_it();
        assert!(!profile.exists());
    }
}

#[test]
fn a_daemon_is_no_child_of_what_is_run() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    if !has("python3") {
        return;
    }
    // The same command starts the daemon.
    let waits = "import os\ntry: os.wait()\nexcept ChildProcessError: print('alone')";
    let said = env.envfs(&["run", "e", "python3", "-c", waits]).ok();
    assert_eq!(said.out, "alone\n");
    assert!(is_alive(env.daemon("e")));
}

#[test]
fn what_is_run_has_the_limits_and_signals_of_its_user() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    // The same command starts the daemon.
    let said =
        env.sh("ulimit -S -n 90; envfs run e sh -c 'ulimit -S -n; grep SigIgn /proc/self/status'");
    let ignored = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap() & (1 << 24) != 0
    };
    let said = said.ok().out;
    assert!(said.starts_with("90\n"), "{said}");
    assert!(!ignored(&said), "{said}");
    let daemon = fs::read_to_string(format!("/proc/{}/status", env.daemon("e"))).unwrap();
    assert!(ignored(&daemon), "a file that is too large does not end it");
}
