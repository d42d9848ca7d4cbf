//! Daemons in processes of their own: unmounting, users of a mount, and death.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Fake;
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::host::{self, Mounted};
use crate::daemon::lifecycle::{State, ensure_mounted, ensure_unmounted, state};
use crate::daemon::prefix;
use crate::daemon::protocol::*;
use crate::daemon::runtime::RuntimeDir;
use crate::daemon::target::Target;
use crate::environment::Layout;
use crate::fuse::session::{Session, tests::Hello};
use crate::sys::mount::{self, MountRequest, Rights, UnmountMode};
use crate::sys::process;

/// A daemon in a process of its own, which serves [`Hello`].
struct Daemon {
    child: Child,
    _dir: tempfile::TempDir,
    target: Target,
    runtime: RuntimeDir,
}

impl Daemon {
    /// Starts a daemon, or returns `None` if this machine cannot mount.
    fn start(id: &str) -> Option<Daemon> {
        if process::user_id() != 0 || mount::device_is_usable().is_err() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("prefix");
        std::fs::create_dir(&prefix).unwrap();
        let id = format!("{id}-{}", std::process::id());
        let runtime = RuntimeDir::at(&dir.path().join("run")).unwrap();
        let mut child = Command::new(process::own_program())
            .args([
                "--exact",
                "daemon::tests::processes::be_a_daemon",
                "--ignored",
                "--nocapture",
            ])
            .env("ENVFS_TEST_DIR", dir.path())
            .env("ENVFS_TEST_ID", &id)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.path().join("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        // The test runner prints before the daemon does.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines
            .find_map(|line| line.ok().filter(|line| line.contains('{')))
            .unwrap();
        let line = line.get(line.find('{').unwrap()..).unwrap();
        let Started::Ready { mount_point, .. } = serde_json::from_str(line).unwrap() else {
            panic!("{line}");
        };
        assert_eq!(mount_point.as_path(), prefix);
        let target = Target {
            id,
            name: String::from("hello"),
            prefix,
            layout: Layout::new(dir.path()),
            home: dir.path().to_path_buf(),
        };
        Some(Daemon {
            child,
            _dir: dir,
            target,
            runtime,
        })
    }

    fn file(&self) -> PathBuf {
        self.target.prefix.join("hello")
    }

    fn unmount(&self, mode: UnmountMode) -> Result<Option<Unmounted>, Failure> {
        ensure_unmounted(&self.target, &self.runtime, mode, &|| {})
    }

    fn wait_for_end(&mut self) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        if crate::sys::mountinfo::of_environment(&self.target.id).is_ok_and(|m| !m.is_empty()) {
            mount::unmount(&self.target.prefix, UnmountMode::Lazy).unwrap();
        }
    }
}

#[test]
#[ignore = "run by other tests as a process of its own"]
fn be_a_daemon() {
    let dir = PathBuf::from(std::env::var_os("ENVFS_TEST_DIR").unwrap());
    let id = std::env::var("ENVFS_TEST_ID").unwrap();
    let runtime = RuntimeDir::at(&dir.join("run")).unwrap();
    let request = MountRequest {
        mount_point: dir.join("prefix"),
        id: id.clone(),
        allow_other: false,
        rights: Rights::Own,
        options: Default::default(),
    };
    host::run(&id, &runtime, || {
        Ok(Mounted {
            session: Session::start(Hello, &request)?,
            service: Arc::new(Fake::default()),
            home: ServedHome::of(&Layout::new(&dir)).unwrap(),
            lost: 0,
            inside: None,
        })
    })
    .unwrap();
}

#[test]
fn a_mount_in_use_is_not_unmounted_and_its_users_are_listed() {
    let Some(mut daemon) = Daemon::start("busy") else {
        return;
    };
    let client = ensure_mounted(&daemon.target, &daemon.runtime, Rights::Own, &|| {})
        .unwrap()
        .unwrap();
    assert_eq!(client.hello().pid, daemon.child.id());
    let mut user = Command::new("sleep")
        .arg("30")
        .stdin(std::fs::File::open(daemon.file()).unwrap())
        .spawn()
        .unwrap();
    let failure = daemon.unmount(UnmountMode::Plain).unwrap_err();
    assert_eq!(failure.kind, Kind::Busy);
    assert!(
        failure
            .details
            .iter()
            .any(|line| line.contains(&format!("sleep (pid {})", user.id()))),
        "{failure}"
    );
    user.kill().unwrap();
    user.wait().unwrap();
    daemon.unmount(UnmountMode::Plain).unwrap().unwrap();
    assert!(matches!(
        state(&daemon.runtime, &daemon.target).unwrap(),
        State::Unmounted
    ));
    daemon.wait_for_end();
    assert!(daemon.unmount(UnmountMode::Plain).unwrap().is_none());
}

#[test]
fn a_lazy_unmount_lets_programs_finish() {
    let Some(mut daemon) = Daemon::start("lazy") else {
        return;
    };
    let held = std::fs::File::open(daemon.file()).unwrap();
    daemon.unmount(UnmountMode::Lazy).unwrap().unwrap();
    assert!(!daemon.file().exists());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &held, &mut text).unwrap();
    assert_eq!(text, "hello\n");
    assert!(matches!(
        state(&daemon.runtime, &daemon.target).unwrap(),
        State::Elsewhere(_)
    ));
    drop(held);
    daemon.wait_for_end();
}

#[test]
fn a_killed_daemon_leaves_a_dead_mount_that_is_detached() {
    let Some(mut daemon) = Daemon::start("kill") else {
        return;
    };
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(matches!(
        state(&daemon.runtime, &daemon.target).unwrap(),
        State::Dead(_)
    ));
    daemon.unmount(UnmountMode::Plain).unwrap().unwrap();
    assert!(matches!(
        state(&daemon.runtime, &daemon.target).unwrap(),
        State::Unmounted
    ));
    prefix::prepare_prefix(&daemon.target.prefix).unwrap();
}
