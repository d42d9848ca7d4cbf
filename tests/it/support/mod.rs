//! Shared by all tests that run the program: private stores, commands, sample trees and
//! comparisons.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod disk;
mod gate;
pub(crate) mod images;
pub(crate) mod overlay;
mod process;
pub(crate) mod samples;
pub(crate) mod tree;
pub(crate) mod user;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub(crate) use disk::Disk;
pub(crate) use gate::Gate;
pub(crate) use process::{Run, finish, is_alive, run, run_for, run_with_input, wait_for};
pub(crate) use user::User;

/// Reports that a test is skipped for want of a program, even if the output of tests is captured.
/// In CI, which has all programs, this fails the test.
#[track_caller]
pub(crate) fn skip(reason: &str) {
    report_skip(reason);
    assert!(
        std::env::var_os("CI").is_none(),
        "a CI run must not skip this: {reason}"
    );
}

/// Reports that a test is skipped for want of something that CI may lack: root, a kernel feature, a
/// second user.
pub(crate) fn skip_allowed(reason: &str) {
    report_skip(reason);
}

fn report_skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIP {}: {reason}\n", thread.name().unwrap_or("a test"));
    // Not eprintln!, which the test harness captures.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// Returns whether a program is in [`PATH`]; reports a skip if it is not.
pub(crate) fn has(program: &str) -> bool {
    let is_found = find(program).is_some();
    if !is_found {
        skip(&format!("no {program}"));
    }
    is_found
}

/// Finds a program in [`PATH`].
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(PATH)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// The directories of system programs, for all commands of tests.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A temporary home directory with a store, used by one user. Dropping it unmounts and removes
/// everything.
#[derive(Debug)]
pub(crate) struct TestEnv {
    dir: tempfile::TempDir,
    user: User,
    program: PathBuf,
    store: PathBuf,
}

impl TestEnv {
    /// Creates one for the user that runs the tests. Skips the test and returns None without FUSE.
    pub(crate) fn new() -> Option<TestEnv> {
        TestEnv::of(User::current())
    }

    /// Creates one for each user that the tests can act as: the one that runs them and, if that is
    /// root, `tester`.
    pub(crate) fn of_all_users() -> Vec<TestEnv> {
        let mut all: Vec<TestEnv> = TestEnv::new().into_iter().collect();
        if User::current().is_root() {
            all.extend(TestEnv::as_tester());
        }
        all
    }

    /// Creates one for the user `tester`, for tests that also act as root. Skips the test and
    /// returns None if the tests do not run as root.
    pub(crate) fn as_tester() -> Option<TestEnv> {
        if !User::current().is_root() {
            skip_allowed("acting as two users needs root");
            return None;
        }
        TestEnv::of(User::tester()?)
    }

    /// Creates one for an ordinary user: `tester` if the tests run as root, otherwise the user that
    /// runs them.
    pub(crate) fn ordinary() -> Option<TestEnv> {
        if User::current().is_root() {
            return TestEnv::as_tester();
        }
        TestEnv::new()
    }

    fn of(user: User) -> Option<TestEnv> {
        if !Path::new("/dev/fuse").exists() {
            skip_allowed("no /dev/fuse");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("envfs-it-")
            .tempdir_in("/tmp")
            .unwrap();
        // A test that runs itself as another user sets this to a program which that user can run.
        let mut program = std::env::var_os("ENVFS_TEST_PROGRAM")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_envfs")), PathBuf::from);
        if !user.is_current() {
            // Other users may have no access to the build directory.
            let bin = dir.path().join("program");
            fs::create_dir(&bin).unwrap();
            program = bin.join("envfs");
            fs::copy(env!("CARGO_BIN_EXE_envfs"), &program).unwrap();
        }
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["home", "run", "tmp", "work"] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
            user.give(&path);
        }
        let store = dir.path().join("home/store");
        Some(TestEnv {
            dir,
            user,
            program,
            store,
        })
    }

    /// Moves the store to another directory.
    pub(crate) fn with_store(mut self, store: &Path) -> TestEnv {
        self.store = store.to_owned();
        self
    }

    /// Returns the path of envfs, which the user can execute.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Returns a command that runs one ignored test of this test program as this user.
    pub(crate) fn test_command(&self, test: &str) -> Command {
        let mut own = std::env::current_exe().unwrap();
        if !self.user.is_current() {
            // Other users may have no access to the build directory.
            let copy = self.dir.path().join("tests");
            if !copy.exists() {
                fs::copy(&own, &copy).unwrap();
            }
            own = copy;
        }
        let mut command = self.command(&own);
        command
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("ENVFS_TEST_PROGRAM", &self.program);
        command
    }

    /// Returns the user of the commands.
    pub(crate) fn user(&self) -> &User {
        &self.user
    }

    /// Returns the working directory of the commands.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Returns the directory that contains everything.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Returns the home of an environment in the store.
    pub(crate) fn home_of(&self, name: &str) -> PathBuf {
        self.store.join("store").join(name)
    }

    /// Returns where an environment is mounted.
    pub(crate) fn prefix(&self, name: &str) -> PathBuf {
        self.store.join("envs").join(name)
    }

    /// Returns a command as this user, with a clean environment.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command_of_runner(program);
        if !self.user.is_current() {
            command.uid(self.user.uid()).gid(self.user.gid());
        }
        command
    }

    /// Returns a command as the user that runs the tests, with the environment of this user.
    fn command_of_runner(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let own = self.program.parent().unwrap();
        command
            .env_clear()
            .env("PATH", format!("{}:{PATH}", own.display()))
            .env("HOME", self.dir.path().join("home"))
            .env("ENVFS_HOME", &self.store)
            .env("XDG_RUNTIME_DIR", self.dir.path().join("run"))
            .env("TMPDIR", self.dir.path().join("tmp"))
            .env("LANG", "C.UTF-8")
            .env("USER", self.user.name())
            .current_dir(self.work())
            .stdin(Stdio::null());
        command
    }

    /// Returns a command of envfs as the user that runs the tests, with the environment of this
    /// user, as `sudo -E` runs it.
    pub(crate) fn envfs_of_runner<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.command_of_runner(&self.program);
        command.args(args);
        command
    }

    /// Returns a command of envfs.
    pub(crate) fn envfs_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.command(&self.program);
        command.args(args);
        command
    }

    /// Runs envfs.
    #[track_caller]
    pub(crate) fn envfs<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        run(self.envfs_command(args))
    }

    /// Returns the number of rows that a listing command prints.
    #[track_caller]
    pub(crate) fn count(&self, args: &[&str]) -> usize {
        let rows = self.envfs(&[args, &["--json"]].concat()).ok().json();
        rows.as_array().unwrap().len()
    }

    /// Runs envfs with a variable in its environment.
    #[track_caller]
    pub(crate) fn envfs_with<S: AsRef<OsStr>>(&self, name: &str, value: &str, args: &[S]) -> Run {
        let mut command = self.envfs_command(args);
        command.env(name, value);
        run(command)
    }

    /// Unmounts with the system's program for this user.
    pub(crate) fn unmount(&self, at: &Path) -> Run {
        unmount_by(self.user.is_root(), |program| self.command(program), at)
    }

    /// Runs a script in `sh -e`.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> Run {
        let mut command = self.command("/bin/sh");
        command.arg("-ec").arg(script);
        run(command)
    }

    /// Writes a file as this user, and the directories above it.
    pub(crate) fn write(&self, path: &Path, content: impl AsRef<[u8]>) {
        let mut missing = Vec::new();
        let mut dir = path.parent();
        while let Some(here) = dir.filter(|here| !here.exists()) {
            missing.push(here.to_owned());
            dir = here.parent();
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        missing.iter().for_each(|dir| self.user.give(dir));
        self.user.give(path);
    }

    /// Creates a small tree, imports it, and returns the tree's path.
    #[track_caller]
    pub(crate) fn import_sample(&self, name: &str) -> PathBuf {
        let source = self.work().join(format!("{name}-source"));
        samples::small(self, &source);
        let source_word = source.to_str().unwrap();
        self.envfs(&["import", "-q", source_word, name]).ok();
        source
    }

    /// Mounts an environment and returns its prefix.
    #[track_caller]
    pub(crate) fn mount(&self, name: &str) -> PathBuf {
        PathBuf::from(self.envfs(&["mount", name]).ok().line())
    }

    /// Returns the daemon's process of an environment.
    #[track_caller]
    pub(crate) fn daemon(&self, name: &str) -> Pid {
        let status = self.envfs(&["status", "--json", name]).ok().json();
        let pid = status["daemon_pid"].as_i64();
        Pid::from_raw(
            pid.unwrap_or_else(|| panic!("no daemon: {status}"))
                .try_into()
                .unwrap(),
        )
    }

    /// Returns the daemon's process from the lock of the environment, without a request to the
    /// daemon.
    #[track_caller]
    pub(crate) fn daemon_by_lock(&self, name: &str) -> Pid {
        let note = fs::read(self.home_of(name).join("lock.holder")).unwrap();
        let holder: Value = serde_json::from_slice(&note).unwrap();
        Pid::from_raw(holder["pid"].as_i64().unwrap().try_into().unwrap())
    }

    /// Kills the daemon of an environment and waits for its end.
    #[track_caller]
    pub(crate) fn kill_daemon(&self, name: &str) {
        let pid = self.daemon(name);
        kill(pid, Signal::SIGKILL).unwrap();
        wait_for("the end of the daemon", || !is_alive(pid));
    }

    /// Fails the test unless `envfs verify` succeeds.
    #[track_caller]
    pub(crate) fn verify(&self, name: &str) {
        self.envfs(&["verify", name]).ok();
    }

    /// Lists the files of the store except mounted content, to find leftovers.
    pub(crate) fn store_listing(&self) -> Vec<String> {
        let mut names: Vec<String> = walkdir::WalkDir::new(&self.store)
            .into_iter()
            .flatten()
            .filter(|entry| !entry.path().starts_with(self.store.join("envs")))
            .map(|entry| entry.path().display().to_string())
            // Any reader of the database creates and removes these.
            .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
            .collect();
        names.sort();
        names
    }

    /// Returns the daemons of this store.
    pub(crate) fn daemons(&self) -> Vec<Pid> {
        let store = self.store.as_os_str().as_encoded_bytes();
        let is_ours = |entry: &fs::DirEntry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&b"__daemon".as_slice()) && words.contains(&store)
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(is_ours)
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in glob_logs(&self.store) {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(15)..).unwrap_or(&[]);
                eprintln!("--- end of {}\n{}", log.display(), tail.join("\n"));
            }
        }
        let mut command = self.envfs_command(&["-q", "unmount", "--all"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        drop(command.status());
        for mount in mounts_below(self.dir.path()) {
            let mut command = Command::new("umount");
            command.arg("-l").arg(&mount).stderr(Stdio::null());
            if nix::unistd::geteuid().as_raw() != 0 {
                command = Command::new("fusermount3");
                command.arg("-uz").arg(&mount).stderr(Stdio::null());
            }
            drop(command.status());
        }
        for pid in self.daemons() {
            kill(pid, Signal::SIGKILL).ok();
        }
    }
}

fn glob_logs(store: &Path) -> Vec<PathBuf> {
    let homes = fs::read_dir(store.join("store")).into_iter().flatten();
    homes
        .flatten()
        .map(|home| home.path().join("daemon.log"))
        .filter(|log| log.exists())
        .collect()
}

/// Unmounts with the system's program for the user that runs the tests.
pub(crate) fn unmount(at: &Path) -> Run {
    unmount_by(nix::unistd::geteuid().is_root(), Command::new, at)
}

/// Retries while the mount is busy: other threads fork children, which have all open files of this
/// process until they execute their program.
fn unmount_by(is_root: bool, command: impl Fn(&'static str) -> Command, at: &Path) -> Run {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut command = if is_root {
            command("umount")
        } else {
            let mut command = command("fusermount3");
            command.arg("-u");
            command
        };
        command.arg(at);
        let done = run(command);
        if !done.err.contains("busy") || Instant::now() > deadline {
            return done;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the mounts at and below a directory, the newest first.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    // Paths of other mounts need not be UTF-8.
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(dir))
        .collect();
    found.reverse();
    found
}
