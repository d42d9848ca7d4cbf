//! Makes sure that an environment is mounted, or no longer is.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::client::{self, Client, Watch};
use super::failure::{Failure, Kind};
use super::host::{busy, covered, holders};
use super::log;
use super::protocol::{Started, Unmounted};
use super::runtime::RuntimeDir;
use crate::environment::{EnvLock, Holder, Layout};
use crate::sys::mount::{self, MountError, UnmountMode};
use crate::sys::mountinfo::{self, Health, MountEntry};
use crate::sys::{process, regular};

/// How long a daemon that has lost its mount may take to end.
const ENDING_PATIENCE: Duration = Duration::from_secs(5);
/// How long the start of a daemon may take before its user hears that it does.
const SLOW_START: Duration = Duration::from_secs(3);
/// How much of a log is searched for last words.
const LOG_TAIL: u64 = 4096;

/// The environment that is meant, as far as its mount is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Id of the environment, unique for ever.
    pub id: String,
    /// Name of the environment, for the daemon's command line and for messages.
    pub name: String,
    /// Where it is to be mounted, absolute.
    pub prefix: PathBuf,
    /// Its files: the daemon's log, and who holds the lock.
    pub layout: Layout,
    /// The root of the store, which the daemon is told.
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
    /// It is not mounted here and has no daemon.
    Unmounted,
    /// It is mounted and its daemon answers.
    Mounted(Client),
    /// It is mounted and works, but its daemon cannot be spoken with (its socket was removed).
    Unreachable,
    /// Mounts without a daemon are in the way.
    Dead(Vec<MountEntry>),
    /// Its daemon lives but has no mount here: it ends, or serves another mount namespace.
    Elsewhere(Client),
    /// It is not mounted, but an environment with the same id is, of which this is a copy, or the
    /// other way round: both have the same prefix, the same source and the same socket. The home of
    /// the other one, where its daemon says it.
    Copy(Option<PathBuf>),
}

impl State {
    /// Returns whether the prefix shows the environment now.
    pub fn is_mounted(&self) -> bool {
        matches!(self, State::Mounted(_) | State::Unreachable)
    }
}

/// Looks, and changes nothing.
pub fn state(runtime: &RuntimeDir, target: &Target) -> Result<State, Failure> {
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
        // Nobody listens at the socket: the mount itself has to be asked.
        (None, Some(top)) => match top.health() {
            Health::Dead => State::Dead(mounts),
            Health::Unresponsive => return Err(silent(target)),
            // Whoever serves a mount has the lock.
            Health::Healthy if EnvLock::try_lock(&target.layout, "look").is_ok() => {
                State::Copy(None)
            }
            Health::Healthy => State::Unreachable,
        },
    })
}

/// Says that the daemon behind a mount does not answer, by whatever way it is asked.
fn silent(target: &Target) -> Failure {
    let holder = EnvLock::current_holder(&target.layout).filter(Holder::is_local);
    let failure = client::silent(holder.map(|holder| holder.pid), "does not answer");
    Failure {
        message: format!("{}: {}", target.prefix.display(), failure.message),
        ..failure
    }
    .hint(format!(
        "or envfs unmount --lazy {} takes the mount away meanwhile",
        target.name
    ))
}

/// Whether a daemon serves the environment itself, and not one of which it is a copy.
fn serves(client: &Client, target: &Target) -> bool {
    let hello = client.hello();
    let place = target.layout.home_id().ok();
    hello.environment == target.id
        && hello
            .home
            .as_ref()
            .is_none_or(|home| Some(home.place) == place)
}

/// Says that an environment cannot be mounted, or worked on, beside the one it is a copy of.
pub fn copied(target: &Target, from: Option<&Path>) -> Failure {
    let from = match from {
        Some(home) => format!("from {}", home.display()),
        None => format!("at {}", target.prefix.display()),
    };
    Failure::new(
        Kind::Conflict,
        format!(
            "a copy of this environment is mounted {from}; the two have one id and one prefix, so \
             only one can be in use"
        ),
    )
    .hint("unmount that one first (envfs --home ITS-STORE unmount NAME), then try again")
    .hint(format!(
        "or make another environment of this one: envfs export {} FILE, then envfs import FILE",
        target.name
    ))
}

/// Finds the daemon at the socket where this process would have put it; else where the holder of
/// the environment's lock says that it listens, which is another place if it was started with
/// another runtime directory (from cron, or by `sudo`).
fn connect(runtime: &RuntimeDir, target: &Target) -> Result<Option<Client>, Failure> {
    let usual = runtime.socket(&target.id);
    if let Some(usual) = &usual
        && let Some(client) = Client::connect(usual)?
    {
        return Ok(Some(client));
    }
    // A note that was copied with the home is not found here.
    let noted = EnvLock::current_holder(&target.layout)
        .filter(Holder::is_local)
        .and_then(|holder| holder.socket)
        .filter(|socket| Some(socket.as_path()) != usual.as_deref());
    let Some(socket) = noted else { return Ok(None) };
    let client = Client::connect(socket.as_path())?;
    // A note is only as true as the file system it lies on.
    Ok(client.filter(|client| client.hello().environment == target.id))
}

/// Makes sure that the environment is mounted: uses a healthy mount, replaces a dead one, starts
/// a daemon where there is none. Commands that do this at the same time wait for each other.
///
/// Returns the daemon's client, or `None` where the mount works but its daemon is deaf.
///
/// Calls `slow` once if a daemon that is started takes long.
///
/// With `fakeroot` whoever mounts may do there what root may; a mount without it is not replaced.
pub fn ensure_mounted(
    target: &Target,
    runtime: &RuntimeDir,
    fakeroot: bool,
    slow: &dyn Fn(),
) -> Result<Option<Client>, Failure> {
    let found = mounted(target, runtime, fakeroot, slow)?;
    if fakeroot && is_checked(target)? {
        let message = format!("{} is mounted already, without --fakeroot", target.name);
        return Err(Failure::new(Kind::Busy, message)
            .hint(format!("envfs unmount {}, then try again", target.name)));
    }
    Ok(found)
}

/// Whether the kernel checks permissions in the mount of an environment.
fn is_checked(target: &Target) -> Result<bool, Failure> {
    let mounts = mountinfo::of_environment(&target.id)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    Ok(mounts.last().is_some_and(|mount| mount.checks_permissions))
}

fn mounted(
    target: &Target,
    runtime: &RuntimeDir,
    fakeroot: bool,
    slow: &dyn Fn(),
) -> Result<Option<Client>, Failure> {
    let _lock = runtime.lock(&target.id, target.layout.home())?;
    let deadline = Instant::now() + ENDING_PATIENCE;
    loop {
        match state(runtime, target)? {
            // One that greets may hang nevertheless, and with it whoever goes there.
            State::Mounted(_) if mountinfo::health(&target.prefix) == Health::Unresponsive => {
                return Err(silent(target));
            }
            State::Mounted(client) => return Ok(Some(client)),
            State::Unreachable => return Ok(None),
            State::Dead(mounts) => detach(&mounts)?,
            State::Unmounted => {
                return match start(target, runtime, fakeroot, slow) {
                    Ok(client) => Ok(Some(client)),
                    // A command with another runtime directory may have been quicker: the start
                    // lock lies there, too.
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

/// Takes mounts away whose daemon is gone, the top one first.
fn detach(mounts: &[MountEntry]) -> Result<(), Failure> {
    for mount in mounts.iter().rev() {
        // Another file system may lie on top by now; what is at the path must be what we mean.
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

/// Looks whether an environment can be mounted at this place; creates the directory.
///
/// An occupied directory is refused: what is in it would be hidden.
pub fn prepare_prefix(prefix: &Path) -> Result<(), Failure> {
    let shown = prefix.display();
    if !prefix.is_absolute() {
        return Err(Failure::new(
            Kind::Usage,
            format!("the prefix {shown} is not absolute"),
        ));
    }
    // Before anything goes there: what is mounted there may not answer.
    let at = mountinfo::at(prefix)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(mount) = at {
        return Err(Failure::new(
            Kind::Conflict,
            format!(
                "something else is mounted at {shown}: {} ({})",
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
                format!("{shown} is where the environment is to be mounted, but is no directory"),
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
            format!("{shown} is where the environment is to be mounted, but is not empty"),
        )
        .hint("move what is in it away, then try again"));
    }
    Ok(())
}

/// Looks whether an environment could be mounted at this place, by mounting something there: only
/// that knows all that may be in the way. Nothing of it stays.
///
/// Where nothing can be mounted anywhere, nothing is said against the place: an image may be made
/// on one machine for another.
pub fn try_prefix(prefix: &Path) -> Result<(), Failure> {
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
    let tried = tried.map_err(|failure| failure.hint("choose another place with --prefix"));
    for dir in missing {
        if let Err(error) = fs::remove_dir(dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::info!(%error, path = %dir.display(), "a tried prefix stays");
            break;
        }
    }
    tried
}

/// Starts a daemon and waits until its mount can be used.
fn start(
    target: &Target,
    runtime: &RuntimeDir,
    fakeroot: bool,
    slow: &dyn Fn(),
) -> Result<Client, Failure> {
    prepare_prefix(&target.prefix)?;
    let (log, no_log) = log::open_or_discard(&target.layout)
        .map_err(|error| Failure::io("cannot open /dev/null", &error))?;
    let log_start = log.metadata().map_or(0, |meta| meta.len());
    let mut words = vec![
        OsStr::new("__daemon"),
        OsStr::new("--home"),
        target.home.as_os_str(),
    ];
    if fakeroot {
        words.push(OsStr::new("--fakeroot"));
    }
    words.extend([OsStr::new("--"), OsStr::new(&target.name)]);
    let mut served = match launch(&words, Stdio::from(log), slow)? {
        Launched::Ready(served) => served,
        Launched::Ended(status) => return Err(ended_early(target, status, log_start)),
    };
    served.warnings.extend(no_log);
    let client = connect(runtime, target)?;
    client
        .map(|client| client.named(&target.name).started(served))
        .ok_or_else(|| {
            Failure::new(
                Kind::Daemon,
                "the daemon said it was ready, but does not listen",
            )
            .hint(format!("its log: {}", target.log().display()))
        })
}

/// What a daemon that has just begun to serve tells about its mount.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// Changed files that it found to have lost their content; its log names them.
    pub lost: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What became of a daemon that was started.
#[derive(Debug)]
pub(super) enum Launched {
    /// It serves.
    Ready(Served),
    /// It ended without a word.
    Ended(ExitStatus),
}

/// Runs this program again as a daemon, and waits until it says that it serves, or why not.
/// Calls `slow` once if that takes long.
pub(super) fn launch(words: &[&OsStr], log: Stdio, slow: &dyn Fn()) -> Result<Launched, Failure> {
    let mut child = Command::new(process::own_program())
        .args(words)
        // Libraries of an environment must not be loaded by what serves it.
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| Failure::io("cannot start the daemon", &error))?;
    let line = match child.stdout.take() {
        Some(stdout) => hear(stdout, child.id(), slow)?,
        None => String::new(),
    };
    let told = serde_json::from_str(&line);
    let is_ready = matches!(told, Ok(Started::Ready { .. }));
    // Our child only waits for the daemon, which is not ours: what we may become by exec would
    // wait for it. If the daemon fails, it ends by itself now, and our child after it; waiting for
    // that frees the daemon's locks before we return.
    if is_ready && let Err(error) = child.kill() {
        tracing::debug!(%error, "cannot end what waits for the daemon");
    }
    let status = child
        .wait()
        .map_err(|error| Failure::io("cannot wait for the daemon", &error))?;
    match told {
        Ok(Started::Ready { lost, warnings, .. }) => Ok(Launched::Ready(Served { lost, warnings })),
        Ok(Started::Error(failure)) => Err(failure),
        Err(_) => Ok(Launched::Ended(status)),
    }
}

/// Waits for the line that a daemon says when it is ready. The child `id` has the daemon as its own child.
fn hear(stdout: ChildStdout, id: u32, slow: &dyn Fn()) -> Result<String, Failure> {
    let (sender, heard) = mpsc::channel();
    std::thread::Builder::new()
        .name(String::from("hear"))
        .spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // Nobody listens where the daemon was given up.
            drop(sender.send(read.map(|_| line)));
        })
        .map_err(|error| Failure::io("cannot start a thread", &error))?;
    let begun = Instant::now();
    let mut watch = Watch::new(None);
    let mut is_told = false;
    loop {
        match heard.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                return line.map_err(|error| Failure::io("cannot hear the daemon", &error));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(String::new()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                watch.pid = watch.pid.or_else(|| process::first_child(id));
                watch.look()?;
                if begun.elapsed() > SLOW_START && !std::mem::replace(&mut is_told, true) {
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
    for line in last_words(&target.log(), log_start) {
        failure = failure.detail(line);
    }
    failure.hint(format!("its log: {}", target.log().display()))
}

/// Returns the last lines which a daemon wrote to its log after `start`.
fn last_words(path: &Path, start: u64) -> Vec<String> {
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

/// Makes sure that the environment is not mounted and has no daemon, dead mounts included.
/// Returns whether there was anything to do. Calls `slow` if the daemon takes long to end.
pub fn ensure_unmounted(
    target: &Target,
    runtime: &RuntimeDir,
    lazy: bool,
    slow: &dyn Fn(),
) -> Result<Option<Unmounted>, Failure> {
    let _lock = runtime.lock(&target.id, target.layout.home())?;
    let state = match state(runtime, target) {
        // Whether its daemon answers or not, a mount can be detached.
        Err(failure) if lazy && failure.kind == Kind::Daemon => {
            return detach_silent(target, failure).map(Some);
        }
        state => state?,
    };
    match state {
        State::Unmounted => Ok(None),
        State::Copy(from) => Err(copied(target, from.as_deref())),
        State::Mounted(client) => client.unmount(lazy, slow).map(Some),
        State::Dead(mounts) => {
            detach(&mounts)?;
            Ok(Some(Unmounted::default()))
        }
        State::Unreachable => unmount_unreachable(target, lazy).map(Some),
        State::Elsewhere(_) if lazy => Ok(None),
        State::Elsewhere(client) => Err(elsewhere(target, &client)),
    }
}

/// Detaches a mount whose daemon does not answer, for the reason that is given.
fn detach_silent(target: &Target, failure: Failure) -> Result<Unmounted, Failure> {
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

/// Unmounts without the daemon's help; it ends when its mount does.
fn unmount_unreachable(target: &Target, lazy: bool) -> Result<Unmounted, Failure> {
    let mounts = mountinfo::of_environment(&target.id)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    let Some(top) = mounts.last() else {
        return Ok(Unmounted::default());
    };
    let source = mountinfo::source(&target.id);
    let covering = mountinfo::covering(&top.mount_point, &source)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(covering) = covering {
        return Err(covered(&covering));
    }
    match mount::unmount(&top.mount_point, UnmountMode::Plain) {
        Ok(()) => Ok(Unmounted::default()),
        Err(MountError::Busy { .. }) => {
            let holders = holders(&target.id);
            if !lazy {
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
