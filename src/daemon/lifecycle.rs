//! Mounts and unmounts environments from commands, and determines the state of a mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::client::{self, Client, Watch};
use super::failure::{Failure, Kind};
use super::host::{busy, covered, holders};
use super::log;
use super::private::{PRIVATE, PrivateSpec};
use super::protocol::{Started, Unmounted};
use super::runtime::RuntimeDir;
use super::session;
use crate::environment::{EnvLock, Holder, Layout};
use crate::fault;
use crate::sys::mount::{self, MountError, Rights, UnmountMode};
use crate::sys::mountinfo::{self, Health, MountEntry};
use crate::sys::{holders as users, process, regular};

/// The time limit for the end of a daemon that has lost its mount.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// The time after which the user is told that the daemon is still starting.
const SLOW_START: Duration = Duration::from_secs(3);
/// The number of bytes at the end of a log that are searched for messages.
const LOG_TAIL: u64 = 4096;

/// An environment to mount or unmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Globally unique id of the environment.
    pub id: String,
    /// Name of the environment, for the daemon's command line and for messages.
    pub name: String,
    /// The path where it is mounted, absolute.
    pub prefix: PathBuf,
    /// Its files, such as the daemon's log and the lock.
    pub layout: Layout,
    /// The root of the store, for the daemon's command line.
    pub home: PathBuf,
}

impl Target {
    /// Returns the daemon's log.
    pub fn log(&self) -> PathBuf {
        self.layout.daemon_log()
    }
}

/// The state of an environment's mount.
#[derive(Debug)]
pub enum State {
    /// It is not mounted and has no daemon.
    Unmounted,
    /// It is mounted and its daemon responds.
    Mounted(Client),
    /// It is mounted and works, but its daemon cannot be reached because its socket was removed.
    Unreachable,
    /// It is mounted, but its daemon has ended.
    Dead(Vec<MountEntry>),
    /// Its daemon runs but has no mount here: it is ending, or serves another mount namespace.
    Elsewhere(Client),
    /// It is not mounted, but another environment with the same id is: one is a copy of the other,
    /// so both have the same prefix, source and socket. Contains the home of the other one if its
    /// daemon reports it.
    Copy(Option<PathBuf>),
}

impl State {
    /// Returns whether the prefix shows the environment now.
    pub fn is_mounted(&self) -> bool {
        matches!(self, State::Mounted(_) | State::Unreachable)
    }
}

/// Determines the state of an environment's mount. Changes nothing.
pub(crate) fn state(runtime: &RuntimeDir, target: &Target) -> Result<State, Failure> {
    let mounts = mountinfo::of_environment(&target.id)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    let client = connect(runtime, target)?.map(|client| client.named(&target.name));
    if let Some(client) = &client
        && !serves(client, target)
    {
        let path = client.hello().home.as_ref().map(|home| home.path.as_path());
        return Ok(State::Copy(path.map(Path::to_path_buf)));
    }
    Ok(match (client, mounts.last()) {
        (None, None) => State::Unmounted,
        (Some(client), None) => State::Elsewhere(client),
        (Some(client), Some(_)) => State::Mounted(client),
        // No process listens at the socket, so the mount itself is probed.
        (None, Some(top)) => match top.health() {
            Health::Dead => State::Dead(mounts),
            Health::Unresponsive => return Err(unresponsive(target)),
            // The daemon of a mount holds the lock of its environment.
            Health::Healthy if EnvLock::try_lock(&target.layout, "probe").is_ok() => {
                State::Copy(None)
            }
            Health::Healthy => State::Unreachable,
        },
    })
}

/// Returns the failure for a mount whose daemon responds neither at the socket nor to file
/// operations.
fn unresponsive(target: &Target) -> Failure {
    let holder = EnvLock::current_holder(&target.layout).filter(Holder::is_local);
    let failure = client::unresponsive(holder.map(|holder| holder.process.pid), "does not respond");
    Failure {
        message: format!("{}: {}", target.prefix.display(), failure.message),
        ..failure
    }
    .hint(format!(
        "or envfs unmount --lazy {} detaches the mount for now",
        target.name
    ))
}

/// Returns whether a daemon serves this environment, and not a copy of it.
fn serves(client: &Client, target: &Target) -> bool {
    let hello = client.hello();
    let home_id = target.layout.home_id().ok();
    hello.environment == target.id
        && hello
            .home
            .as_ref()
            .is_none_or(|home| Some(home.place) == home_id)
}

/// Returns the failure for an environment of which a copy is mounted.
pub(crate) fn copied(target: &Target, from: Option<&Path>) -> Failure {
    let from = match from {
        Some(home) => format!("from {}", home.display()),
        None => format!("at {}", target.prefix.display()),
    };
    Failure::new(
        Kind::Conflict,
        format!(
            "a copy of this environment is mounted {from}; both have the same id and prefix, so only \
             one can be in use"
        ),
    )
    .hint("unmount it first (envfs --home ITS-STORE unmount NAME), then try again")
    .hint(format!(
        "or create a new environment from this one: envfs export {} FILE, then envfs import FILE",
        target.name
    ))
}

/// Connects to the daemon at the default socket of this process, else at the socket in the note of
/// the environment's lock. They differ if the daemon was started with another runtime directory
/// (from cron or by `sudo`).
fn connect(runtime: &RuntimeDir, target: &Target) -> Result<Option<Client>, Failure> {
    let default = runtime.socket(&target.id);
    if let Some(default) = &default
        && let Some(client) = Client::connect(default)?
    {
        return Ok(Some(client));
    }
    // Ignores a note that was copied along with the home.
    let noted = EnvLock::current_holder(&target.layout)
        .filter(Holder::is_local)
        .and_then(|holder| holder.socket)
        .filter(|socket| Some(socket.as_path()) != default.as_deref());
    let Some(socket) = noted else { return Ok(None) };
    let client = Client::connect(socket.as_path())?;
    // The note may be wrong.
    Ok(client.filter(|client| client.hello().environment == target.id))
}

/// Ensures that the environment is mounted: uses a healthy mount, replaces a dead one, else starts
/// a daemon. Commands that do this concurrently wait for each other.
///
/// Returns a client of the daemon, or `None` if the mount works but its daemon is unreachable.
///
/// Calls `slow` once if the start of the daemon takes long.
///
/// A mount with [`Rights::Own`] is not replaced by one with [`Rights::Root`].
pub(crate) fn ensure_mounted(
    target: &Target,
    runtime: &RuntimeDir,
    rights: Rights,
    slow: &dyn Fn(),
) -> Result<Option<Client>, Failure> {
    let found = mounted(target, runtime, rights, slow)?;
    if rights == Rights::Root && is_checked(target)? {
        let message = format!("{} is already mounted, without --fakeroot", target.name);
        return Err(Failure::new(Kind::Busy, message)
            .hint(format!("envfs unmount {}, then try again", target.name)));
    }
    Ok(found)
}

/// Returns whether the kernel checks permissions in the mount of an environment.
fn is_checked(target: &Target) -> Result<bool, Failure> {
    let mounts = mountinfo::of_environment(&target.id)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    Ok(mounts.last().is_some_and(|mount| mount.checks_permissions))
}

fn mounted(
    target: &Target,
    runtime: &RuntimeDir,
    rights: Rights,
    slow: &dyn Fn(),
) -> Result<Option<Client>, Failure> {
    let _lock = runtime.lock(&target.id, target.layout.home())?;
    let deadline = Instant::now() + ENDING_TIMEOUT;
    loop {
        match state(runtime, target)? {
            // A daemon that greets may still hang on file operations.
            State::Mounted(_) if mountinfo::health(&target.prefix) == Health::Unresponsive => {
                return Err(unresponsive(target));
            }
            State::Mounted(client) => return Ok(Some(client)),
            State::Unreachable => return Ok(None),
            State::Dead(mounts) => detach(&mounts)?,
            State::Unmounted => {
                return match start(target, runtime, rights, slow) {
                    Ok(client) => Ok(Some(client)),
                    // A command with another runtime directory, and thus another start lock, may
                    // have been faster.
                    Err(failure) => match state(runtime, target) {
                        Ok(State::Mounted(client)) => Ok(Some(client)),
                        Ok(State::Copy(from)) => Err(copied(target, from.as_deref())),
                        _ => Err(failure),
                    },
                };
            }
            State::Copy(from) => return Err(copied(target, from.as_deref())),
            State::Elsewhere(_) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            State::Elsewhere(client) => return Err(elsewhere(target, &client)),
        }
    }
}

fn elsewhere(target: &Target, client: &Client) -> Failure {
    let pid = client.hello().pid;
    let name = &target.name;
    if client.hello().is_private {
        return Failure::new(
            Kind::Busy,
            format!("{name} is in use in another namespace, in a private session (pid {pid})"),
        )
        .hint("wait until the programs in it have ended")
        .hint(format!(
            "or in the same job or login session, run a command in it: envfs run --private {name} CMD"
        ))
        .hint(format!(
            "or use the committed revision: envfs run --private --read-only {name} CMD"
        ));
    }
    Failure::new(
        Kind::Busy,
        format!(
            "the daemon of {} (pid {pid}) still serves programs that use an earlier mount, or a \
             mount in another namespace",
            target.name
        ),
    )
    .hint("end the programs that use it, then try again")
    .hint(format!(
        "or end the daemon: kill {pid} (it keeps all changes; programs that use it get errors)"
    ))
}

/// Detaches mounts whose daemon has ended, the topmost first.
pub(super) fn detach(mounts: &[MountEntry]) -> Result<(), Failure> {
    for mount in mounts.iter().rev() {
        // Another file system may be mounted on top by now: check that this is the mount at the
        // path.
        let top = mountinfo::at(&mount.mount_point)
            .map_err(|error| Failure::io("cannot read the mount table", &error))?;
        match top {
            Some(top) if top.id == mount.id => {
                tracing::info!(path = %mount.mount_point.display(), "detaching a dead mount");
                mount::unmount(&mount.mount_point, UnmountMode::Lazy)?;
            }
            Some(top) => return Err(covered(&top)),
            None => {}
        }
    }
    Ok(())
}

/// Checks that an environment can be mounted at a prefix, and creates the directory.
///
/// Fails if the directory is not empty, as the mount would hide its contents.
pub(crate) fn prepare_prefix(prefix: &Path) -> Result<(), Failure> {
    let shown = prefix.display();
    if !prefix.is_absolute() {
        return Err(Failure::new(
            Kind::Usage,
            format!("the prefix {shown} is not absolute"),
        ));
    }
    // Check this before any access to the directory: a file system mounted there may not respond.
    let at = mountinfo::at(prefix)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(mount) = at {
        return Err(Failure::new(
            Kind::Conflict,
            format!(
                "another file system is mounted at {shown}: {} ({})",
                mount.source.to_string_lossy(),
                mount.fs_type
            ),
        )
        .hint(format!(
            "unmount it (fusermount3 -u {shown}), then try again"
        )));
    }
    match fs::create_dir_all(prefix) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new(
                Kind::Conflict,
                format!("cannot mount the environment: {shown} is not a directory"),
            )
            .hint("move it away, then try again"));
        }
        Err(error) => {
            return Err(Failure::of_named(
                format!("cannot create the prefix {shown}"),
                &error,
            ));
        }
    }
    let mut entries = fs::read_dir(prefix)
        .map_err(|error| Failure::io(format!("cannot read {shown}"), &error))?;
    if entries.next().is_some() {
        return Err(Failure::new(
            Kind::Conflict,
            format!("cannot mount the environment: {shown} is not empty"),
        )
        .hint("move its contents away, then try again"));
    }
    Ok(())
}

/// Checks that an environment can be mounted at a prefix by a trial mount, the only check that
/// covers all causes of failure. Removes everything that it creates.
///
/// If nothing can be mounted anywhere, the check succeeds: an environment may be created on one
/// machine for use on another.
pub(crate) fn try_prefix(prefix: &Path) -> Result<(), Failure> {
    let is_missing = |dir: &&Path| {
        fs::symlink_metadata(dir).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    let missing: Vec<&Path> = prefix.ancestors().take_while(is_missing).collect();
    let tried = prepare_prefix(prefix).and_then(|()| match mount::test_mount_at(prefix) {
        Err(error) if !error.is_fuse_unavailable() && mount::test_mount().is_ok() => {
            Err(Failure::from(error))
        }
        _ => Ok(()),
    });
    let tried = tried.map_err(|failure| failure.hint("choose another path with --prefix"));
    for dir in missing {
        if let Err(error) = fs::remove_dir(dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::info!(%error, path = %dir.display(), "cannot remove a prefix after a trial mount");
            break;
        }
    }
    tried
}

/// Checks that a file system can be mounted at a path now. Nothing is at the path, before and
/// after.
pub(crate) fn require_mount(path: &Path) -> Result<(), Failure> {
    fs::create_dir(path)
        .map_err(|error| Failure::io(format!("cannot make {}", path.display()), &error))?;
    // The path as it is in the mount table.
    let tested = fs::canonicalize(path)
        .map_err(|error| Failure::io(format!("cannot find {}", path.display()), &error))
        .and_then(|real| Ok(mount::test_mount_at(&real)?));
    fs::remove_dir(path)
        .map_err(|error| Failure::io(format!("cannot remove {}", path.display()), &error))?;
    tested
}

/// Starts a daemon and waits until its mount can be used.
fn start(
    target: &Target,
    runtime: &RuntimeDir,
    rights: Rights,
    slow: &dyn Fn(),
) -> Result<Client, Failure> {
    session::make_way(&target.prefix)?;
    let report = start_daemon(target, &[], Stdio::null(), rights, slow)?;
    let client = connect(runtime, target)?;
    client
        .map(|client| client.named(&target.name).started(report))
        .ok_or_else(|| {
            Failure::new(
                Kind::Daemon,
                "the daemon reported that it was ready, but does not listen at its socket",
            )
            .hint(format!("see its log: {}", target.log().display()))
        })
}

/// Starts a daemon that mounts privately, and waits until it can be joined. The environment must
/// not be mounted: if it is, the failure says where.
pub(crate) fn start_private(
    target: &Target,
    runtime: &RuntimeDir,
    spec: &PrivateSpec,
    lock: File,
    slow: &dyn Fn(),
) -> Result<StartReport, Failure> {
    let _lock = runtime.lock(&target.id, target.layout.home())?;
    let deadline = Instant::now() + ENDING_TIMEOUT;
    loop {
        match state(runtime, target)? {
            State::Unmounted => break,
            State::Dead(mounts) => detach(&mounts)?,
            State::Elsewhere(_) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            State::Elsewhere(client) => return Err(elsewhere(target, &client)),
            State::Copy(from) => return Err(copied(target, from.as_deref())),
            State::Mounted(_) | State::Unreachable => {
                let message = format!("{} was just mounted by another command", target.name);
                return Err(Failure::new(Kind::Busy, message).hint("try again"));
            }
        }
    }
    let word = spec.to_word()?;
    let options = [OsStr::new(PRIVATE), OsStr::new(&word)];
    start_daemon(target, &options, Stdio::from(lock), Rights::Own, slow)
}

/// Starts a daemon with these options of its command line and this standard input.
fn start_daemon(
    target: &Target,
    options: &[&OsStr],
    input: Stdio,
    rights: Rights,
    slow: &dyn Fn(),
) -> Result<StartReport, Failure> {
    prepare_prefix(&target.prefix)?;
    if fault::is_enabled("start.fails") {
        return Err(Failure::new(Kind::Daemon, "injected fault: start.fails"));
    }
    let (log, log_warning) = log::open_or_discard(&target.layout)
        .map_err(|error| Failure::io("cannot open /dev/null", &error))?;
    let log_start = log.metadata().map_or(0, |meta| meta.len());
    let mut words = vec![
        OsStr::new("__daemon"),
        OsStr::new("--home"),
        target.home.as_os_str(),
    ];
    if rights == Rights::Root {
        words.push(OsStr::new("--fakeroot"));
    }
    words.extend(options);
    words.extend([OsStr::new("--"), OsStr::new(&target.name)]);
    let mut report = match launch(&words, input, Stdio::from(log), slow)? {
        Launched::Ready(report) => report,
        Launched::Ended(status) => return Err(ended_early(target, status, log_start)),
    };
    report.warnings.extend(log_warning);
    Ok(report)
}

/// The report of a daemon after its start.
#[derive(Debug, Clone, Default)]
pub struct StartReport {
    /// The number of changed files whose content was lost; the log has their names.
    pub lost: usize,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The outcome of starting a daemon.
#[derive(Debug)]
pub(super) enum Launched {
    /// It is ready.
    Ready(StartReport),
    /// It ended without reporting a failure.
    Ended(ExitStatus),
}

/// Executes this program as a daemon, and waits until it reports that it is ready or has failed.
/// Calls `slow` once if that takes long. Standard input may be a lock, which the daemon keeps.
///
/// When this returns without a failure of the system, this process has no more threads than before.
pub(super) fn launch(
    words: &[&OsStr],
    input: Stdio,
    log: Stdio,
    slow: &dyn Fn(),
) -> Result<Launched, Failure> {
    let mut child = Command::new(process::own_program())
        .args(words)
        // The daemon must not load libraries of an environment.
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("LD_PRELOAD")
        // Or it would count as a process that uses the environment.
        .env_remove("ENVFS_PREFIX")
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| Failure::io("cannot start the daemon", &error))?;
    let line = match child.stdout.take() {
        Some(stdout) => read_report(stdout, child.id(), slow)?,
        None => String::new(),
    };
    let report = serde_json::from_str(&line);
    let is_ready = matches!(report, Ok(Started::Ready { .. }));
    // The child only waits for the daemon, which is its own child. It is killed now: a program that
    // this process executes later must not have children that it does not know. If the daemon has
    // failed, it is about to end, and the child after it; waiting for the child ensures that the
    // daemon's locks are released.
    if is_ready && let Err(error) = child.kill() {
        tracing::debug!(%error, "cannot end the parent of the daemon");
    }
    let status = child
        .wait()
        .map_err(|error| Failure::io("cannot wait for the daemon", &error))?;
    match report {
        Ok(Started::Ready { lost, warnings, .. }) => {
            Ok(Launched::Ready(StartReport { lost, warnings }))
        }
        Ok(Started::Error(failure)) => Err(failure),
        Err(_) => Ok(Launched::Ended(status)),
    }
}

/// Waits for the line that a daemon writes after its start. The child `id` is the parent of the
/// daemon.
fn read_report(stdout: ChildStdout, id: u32, slow: &dyn Fn()) -> Result<String, Failure> {
    let (sender, received) = mpsc::channel();
    let reader = std::thread::Builder::new()
        .name(String::from("report"))
        .spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // Fails if the caller has given up.
            drop(sender.send(read.map(|_| line)));
        })
        .map_err(|error| Failure::io("cannot start a thread", &error))?;
    let started = Instant::now();
    let mut watch = Watch::new(None);
    let mut was_slow = false;
    loop {
        match received.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                // The caller may need to be the only thread.
                if reader.join().is_err() {
                    tracing::error!("the thread that read the report panicked");
                }
                return line
                    .map_err(|error| Failure::io("cannot read the daemon's report", &error));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(String::new()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                watch.pid = watch.pid.or_else(|| process::first_child(id));
                watch.check()?;
                if started.elapsed() > SLOW_START && !std::mem::replace(&mut was_slow, true) {
                    slow();
                }
            }
        }
    }
}

fn ended_early(target: &Target, status: ExitStatus, log_start: u64) -> Failure {
    let message = format!(
        "the daemon of {} ended before it was ready ({status})",
        target.name
    );
    let mut failure = Failure::new(Kind::Daemon, message);
    for line in last_lines(&target.log(), log_start) {
        failure = failure.detail(line);
    }
    failure.hint(format!("see its log: {}", target.log().display()))
}

/// Returns the last lines that a daemon wrote to its log after position `start`.
fn last_lines(path: &Path, start: u64) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = regular::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL))))?;
        let mut text = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(5))
        .map(|line| (*line).to_owned())
        .collect()
}

/// Ensures that the environment is not mounted and has no daemon. Also detaches dead mounts.
/// Returns `None` if there was nothing to do. Calls `slow` if the daemon takes long to end.
pub(crate) fn ensure_unmounted(
    target: &Target,
    runtime: &RuntimeDir,
    mode: UnmountMode,
    slow: &dyn Fn(),
) -> Result<Option<Unmounted>, Failure> {
    let _lock = runtime.lock(&target.id, target.layout.home())?;
    let lazy = mode == UnmountMode::Lazy;
    let state = match state(runtime, target) {
        // A mount can be detached even if its daemon does not respond.
        Err(failure) if lazy && failure.kind == Kind::Daemon => {
            return detach_unresponsive(target, failure).map(Some);
        }
        state => state?,
    };
    match state {
        State::Unmounted => Ok(None),
        State::Copy(from) => Err(copied(target, from.as_deref())),
        State::Mounted(client) => client.unmount(mode, slow).map(Some),
        State::Dead(mounts) => {
            detach(&mounts)?;
            Ok(Some(Unmounted::default()))
        }
        State::Unreachable => unmount_unreachable(target, mode).map(Some),
        State::Elsewhere(client) if client.hello().is_private => {
            client.unmount(mode, slow).map(Some)
        }
        State::Elsewhere(_) if lazy => Ok(None),
        State::Elsewhere(client) => Err(elsewhere(target, &client)),
    }
}

/// Detaches a mount whose daemon does not respond, as `failure` describes.
fn detach_unresponsive(target: &Target, failure: Failure) -> Result<Unmounted, Failure> {
    let mounts = mountinfo::of_environment(&target.id)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if mounts.is_empty() {
        return Err(failure);
    }
    let holders = holders(&target.id);
    detach(&mounts)?;
    Ok(Unmounted {
        holders,
        trouble: Some(failure),
        ..Unmounted::default()
    })
}

/// Unmounts an environment without a request to its daemon, which ends when its mount does.
fn unmount_unreachable(target: &Target, mode: UnmountMode) -> Result<Unmounted, Failure> {
    let mounts = mountinfo::of_environment(&target.id)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    let Some(top) = mounts.last() else {
        return Ok(Unmounted::default());
    };
    unmount_directly(top, mode)
}

/// Unmounts a mount of envfs without a request to its daemon.
pub(super) fn unmount_directly(top: &MountEntry, mode: UnmountMode) -> Result<Unmounted, Failure> {
    let source = top.source.to_string_lossy();
    let covering = mountinfo::covering(&top.mount_point, &source)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(covering) = covering {
        return Err(covered(&covering));
    }
    match mount::unmount(&top.mount_point, UnmountMode::Plain) {
        Ok(()) => Ok(Unmounted::default()),
        Err(MountError::Busy { .. }) => {
            let holders = users::of_mount(top);
            if mode != UnmountMode::Lazy {
                return Err(busy(&top.mount_point, &holders));
            }
            mount::unmount(&top.mount_point, UnmountMode::Lazy)?;
            Ok(Unmounted {
                holders,
                ..Unmounted::default()
            })
        }
        Err(error) => Err(error.into()),
    }
}
