//! The daemon: killed, unreachable, ended by a signal, asked to unmount while its mount is in use.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::getsid;

use crate::support::tree::{self, Look};
use crate::support::{TestEnv, finish, has, is_alive, mounts_below, run, skip_allowed, wait_for};

#[test]
fn every_command_recovers_the_mount_of_a_killed_daemon() {
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
            &["discard", "-y", "e", "lib"],
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
                "{words:?}: the dead mount was not detached: {mounts:?}"
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
fn discard_works_on_a_dead_mount() {
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
fn sigterm_unmounts_cleanly() {
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
fn unmount_refuses_while_another_mount_covers_the_prefix() {
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        return skip_allowed("mounting a tmpfs needs root");
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
fn ctrl_c_in_the_mounting_terminal_does_not_reach_the_daemon() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let mut command = env.command("/bin/sh");
    command.args(["-c", "envfs mount e; trap : INT; kill -INT 0; echo after"]);
    command.process_group(0);
    let done = run(command);
    assert!(done.out.ends_with("after\n"), "{done}");
    let daemon = env.daemon("e");
    // A terminal signals process groups of its own session only.
    assert_ne!(getsid(Some(daemon)).unwrap(), getsid(None).unwrap());
    assert!(is_alive(daemon));
    assert_eq!(
        fs::read(env.prefix("e").join("lib/c.txt")).unwrap(),
        b"gamma\n"
    );
}

#[test]
fn unmount_of_a_busy_mount_names_its_processes() {
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
fn stale_and_missing_sockets_are_tolerated() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let paths = env.envfs(&["paths", "--json", "e"]).ok().json();
    let socket = std::path::PathBuf::from(paths["socket"].as_str().unwrap());
    // Commands that only read have not created the directory.
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
fn daemon_is_found_with_a_different_runtime_directory() {
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
fn gc_during_a_rollback_keeps_the_image_it_needs() {
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
        // Either the rollback came first, or gc had already removed the older revision.
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
fn daemon_log_is_rotated() {
    const MOST: u64 = 1 << 20;
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let log = env.home_of("e").join("daemon.log");
    let old = env.home_of("e").join("daemon.log.old");
    let size = |path: &std::path::Path| fs::metadata(path).map_or(0, |meta| meta.len());
    // When the daemon starts.
    fs::write(&log, vec![b'x'; MOST as usize + 1]).unwrap();
    env.mount("e");
    assert_eq!(size(&old), MOST + 1);
    wait_for("the log", || {
        fs::read_to_string(&log).unwrap().contains("mounted")
    });
    // While it runs, for example after an error that repeats.
    let mut writer = fs::File::options().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut writer, &vec![b'y'; MOST as usize]).unwrap();
    env.envfs(&["diff", "e"]).ok();
    env.envfs(&["diff", "e"]).ok();
    assert!(size(&log) < MOST && size(&old) > MOST);
    assert!(fs::read_to_string(&log).unwrap().contains("request="));
    // A long request is abbreviated.
    let path = "p".repeat(100_000);
    env.envfs(&["diff", "e", &path]).fails(3, &["no such path"]);
    assert!(size(&log) < 10_000);
}

#[test]
fn commit_without_an_answer_says_how_to_check_the_result() {
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
fn ctrl_c_during_a_commit_changes_nothing() {
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
        // The image of the empty environment.
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
        finish(child, "commit".to_owned()).fails(130, &["nothing was changed"]);
        assert_eq!(count(), had, "the partial image was not removed");
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
fn profile_is_recorded_and_a_damaged_one_replaced() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let profile = env.home_of("e").join("profile");
        let prefix = env.prefix("e");
        let mount_and_read = || {
            env.mount("e");
            env.sh(&format!("cat '{}/lib/c.txt'", prefix.display()))
                .ok();
            env.envfs(&["unmount", "e"]).ok();
        };
        assert!(!profile.exists());
        mount_and_read();
        let recorded = fs::read(&profile).unwrap();
        assert!(recorded.starts_with(b"envprof1"), "{recorded:?}");
        mount_and_read();
        assert_eq!(fs::read(&profile).unwrap(), recorded);
        // Unknown format, truncated, and with invalid numbers.
        for bytes in [
            b"something else".to_vec(),
            recorded[..recorded.len() - 1].to_vec(),
            [&recorded[..8], &[0xff; 64]].concat(),
        ] {
            fs::write(&profile, bytes).unwrap();
            mount_and_read();
            assert_eq!(fs::read(&profile).unwrap(), recorded);
        }
        fs::remove_file(&profile).unwrap();
        fs::write(env.store().join("config.toml"), "profile = \"off\"\n").unwrap();
        mount_and_read();
        assert!(!profile.exists());
    }
}

#[test]
fn daemon_is_not_a_child_of_the_command() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    if !has("python3") {
        return;
    }
    // `run` also starts the daemon.
    let waits = "import os\ntry: os.wait()\nexcept ChildProcessError: print('alone')";
    let said = env.envfs(&["run", "e", "python3", "-c", waits]).ok();
    assert_eq!(said.out, "alone\n");
    assert!(is_alive(env.daemon("e")));
}

#[test]
fn run_keeps_limits_and_signal_dispositions() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    // `run` also starts the daemon.
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
    assert!(ignored(&daemon), "the daemon must ignore SIGXFSZ");
}
