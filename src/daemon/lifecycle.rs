//! Mounts and unmounts environments from commands, and determines the state of a mount.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::client::{self, Client};
use super::failure::{Failure, Kind};
use super::launch::start_daemon;
use super::private::{PRIVATE, PrivateSpec};
use super::protocol::{StartReport, Unmounted};
use super::runtime::RuntimeDir;
use super::session;
use super::target::Target;
use super::unmount::{detach, holders, unmount_directly};
use crate::environment::{EnvLock, Holder};
use crate::sys::mount::{Rights, UnmountMode};
use crate::sys::mountinfo::{self, Health, MountEntry};

/// The time limit for the end of a daemon that has lost its mount.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Starts a daemon and waits until its mount can be used.
fn start(
    target: &Target,
    runtime: &RuntimeDir,
    rights: Rights,
    slow: &dyn Fn(),
) -> Result<Client, Failure> {
    session::make_way(&target.prefix, runtime)?;
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
