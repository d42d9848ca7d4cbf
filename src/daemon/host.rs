//! Startup and shutdown of a daemon: open, mount, report, serve, unmount, end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::failure::{Failure, Kind};
use super::private::{Inside, Members};
use super::protocol::{ServedHome, Service, Started, Unmounted};
use super::runtime::{RuntimeDir, SocketDir};
use super::server::{Control, Server};
use crate::fuse::session::{End, Session, StopHandle};
use crate::sys::daemonize;
use crate::sys::holders;
use crate::sys::mount::{self, MountError, UnmountMode};
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::signals::TerminationSignals;

/// A mounted environment with its running session and its service.
pub(crate) struct Mounted {
    /// The mount, with its event loops running.
    pub session: Session,
    /// The operations available to commands.
    pub service: Arc<dyn Service>,
    /// The home of the environment.
    pub home: ServedHome,
    /// The number of changed files whose content was found to be lost on opening.
    pub lost: usize,
    /// The inside of the mount, if it is private.
    pub inside: Option<Inside>,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// Runs a daemon until the environment is unmounted. Must be called first in a new process, before
/// any other thread runs, with a pipe as standard output and the log as standard error.
///
/// `mount` opens and mounts the environment. It runs after the process has left its terminal. Its
/// failure is sent to the command that started the daemon and is returned as well.
pub(crate) fn run(
    id: &str,
    runtime: &RuntimeDir,
    mount: impl FnOnce() -> Result<Mounted, Failure>,
) -> Result<(), Failure> {
    let Startup {
        signals,
        warnings,
        opened: mut mounted,
    } = start_up(mount)?;
    let mount_point = mounted.session.mount_point().to_path_buf();
    let inside = mounted.inside.take();
    let is_private = inside.is_some();

    let served = serve(id, runtime, &mounted, inside, signals).and_then(|running| {
        // If the command that started the daemon has ended, this fails and the mount is undone.
        report_start(&Started::Ready {
            pid: std::process::id(),
            mount_point: mount_point.clone().into(),
            lost: mounted.lost,
            warnings,
        })?;
        Ok(running)
    });
    let running = match served {
        Ok(running) => running,
        Err(failure) => {
            // A private mount ends with its namespaces.
            if !is_private && let Err(error) = mount::unmount(&mount_point, UnmountMode::Lazy) {
                tracing::warn!(%error, "cannot undo the mount");
            }
            // The command may have ended; the failure is logged in any case.
            if let Err(error) = report_start(&Started::Error(failure.clone())) {
                tracing::debug!(%error, "cannot report the failure");
            }
            return Err(failure);
        }
    };
    tracing::info!(pid = std::process::id(), path = %mount_point.display(), "mounted");

    let Mounted {
        session, service, ..
    } = mounted;
    let result = session.wait();
    drop(running);
    service.close();
    match &result {
        Ok(End::Unmounted) => tracing::info!(path = %mount_point.display(), "unmounted"),
        Ok(End::Abandoned) => tracing::warn!(
            path = %mount_point.display(),
            "unmounted; requests to remaining copies of the mount are refused"
        ),
        Err(_) => {}
    }
    result
        .map(drop)
        .map_err(|error| Failure::io("cannot serve requests of the kernel", &error))
}

/// The state of a daemon after its startup.
pub(super) struct Startup<T> {
    /// The signals that end the daemon.
    pub(super) signals: TerminationSignals,
    /// Warnings for the user.
    pub(super) warnings: Vec<String>,
    /// The opened environment or images.
    pub(super) opened: T,
}

/// Becomes a daemon, then calls `open`. Sends a failure to the command that waits.
pub(super) fn start_up<T>(
    open: impl FnOnce() -> Result<T, Failure>,
) -> Result<Startup<T>, Failure> {
    daemonize::limit_allocator();
    // Blocked before any thread exists, so that only the thread that waits for them receives them.
    let started = TerminationSignals::block()
        .and_then(|signals| Ok((signals, daemonize::become_daemon()?)))
        .map_err(|error| Failure::io("cannot become a daemon", &error))
        .and_then(|(signals, warnings)| {
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            Ok(Startup {
                signals,
                warnings,
                opened: open()?,
            })
        });
    if let Err(failure) = &started {
        report_start(&Started::Error(failure.clone()))?;
    }
    started
}

/// What runs beside the session. Dropped in this order: the socket is removed before its directory.
#[derive(Debug)]
struct Running {
    _server: super::server::Running,
    _dir: SocketDir,
    _members: Option<Members>,
}

fn serve(
    id: &str,
    runtime: &RuntimeDir,
    mounted: &Mounted,
    inside: Option<Inside>,
    signals: TerminationSignals,
) -> Result<Running, Failure> {
    let mount_point = mounted.session.mount_point();
    let stop_handle = mounted.session.stop_handle();
    let members = inside.map(Members::start).transpose()?;
    let shared = Arc::new(MountControl::new(&mounted.session, id));
    let control: Arc<dyn Control> = match &members {
        Some(members) => Arc::new(members.control(mount_point)?),
        None => shared.clone(),
    };
    let dir = runtime.create()?;
    let socket = dir.socket(id);
    let server = Server::bind(&socket, id, Some(mounted.home.clone()))
        .map(|server| match members {
            Some(_) => server.private(),
            None => server,
        })
        .and_then(|server| server.start(mounted.service.clone(), control))
        .map_err(|error| Failure::io(format!("cannot listen at {}", socket.display()), &error))?;
    mounted.service.set_socket(&socket)?;
    match &members {
        Some(members) => members.end_on_signals(signals, stop_handle)?,
        None => {
            std::thread::Builder::new()
                .name(String::from("signals"))
                .spawn(move || {
                    end_on_signal(
                        signals,
                        &shared.mount_point,
                        &shared.source,
                        &shared.stop_handle,
                    );
                })
                .map_err(|error| Failure::io("cannot start a thread", &error))?;
        }
    }
    Ok(Running {
        _server: server,
        _dir: dir,
        _members: members,
    })
}

/// Unmounts on a signal. Programs that use the mount may finish, unless a second signal arrives.
pub(super) fn end_on_signal(
    signals: TerminationSignals,
    mount_point: &Path,
    source: &str,
    stop_handle: &StopHandle,
) {
    loop {
        match signals.wait() {
            Ok(signal) => tracing::info!(signal, "received a signal to end"),
            Err(error) => {
                tracing::error!(%error, "cannot wait for signals");
                return;
            }
        }
        end(mount_point, source, stop_handle);
    }
}

/// Unmounts. If the mount is in use, detaches it, so that it ends with the last program that uses
/// it. If it was removed already, ends at once.
pub(super) fn end(mount_point: &Path, source: &str, stop_handle: &StopHandle) {
    match mountinfo::own(mount_point, source) {
        Ok(None) => {
            tracing::warn!("the mount was removed already: ending although it may be in use");
            return stop_handle.abandon();
        }
        Ok(Some(own)) if !holders::in_other_namespaces(&own).0.is_empty() => flush(mount_point),
        _ => {}
    }
    if let Err(failure) = refuse_covered(mount_point, source) {
        return tracing::error!("{failure}; send SIGTERM after that");
    }
    match mount::unmount(mount_point, UnmountMode::Plain) {
        Ok(()) => stop_handle.unmounted(),
        Err(MountError::Busy { .. }) => {
            tracing::warn!("in use: detached; ends when the last program that uses it does");
            if let Err(error) = mount::unmount(mount_point, UnmountMode::Lazy) {
                tracing::error!(%error, "cannot detach");
            }
        }
        Err(error) => tracing::error!(%error, "cannot unmount"),
    }
}

/// The time limit for flushing the kernel's cache before a mount is removed.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Flushes data written through mappings to the daemon. Needed if the mount has copies, as the
/// kernel does it by itself only when the last copy is removed.
fn flush(mount_point: &Path) {
    if let Err(error) = mount::sync_with_timeout(mount_point, FLUSH_TIMEOUT) {
        tracing::warn!(%error, "cannot flush the kernel's cache of the mount");
    }
}

/// Fails if another file system is mounted on top, which an unmount would remove instead.
pub(super) fn refuse_covered(mount_point: &Path, source: &str) -> Result<(), Failure> {
    let covering = mountinfo::covering(mount_point, source)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    match covering {
        Some(top) => Err(covered(&top)),
        None => Ok(()),
    }
}

/// Returns the failure for a mount with another file system on top.
pub(super) fn covered(top: &MountEntry) -> Failure {
    let (source, at) = (top.source.to_string_lossy(), top.mount_point.display());
    Failure::new(
        Kind::Conflict,
        format!(
            "another file system is mounted on top of {at}: {source} ({})",
            top.fs_type
        ),
    )
    .hint(format!("unmount it (umount {at}), then try again"))
}

/// Writes the outcome of the start to standard output, then replaces standard output by the log.
/// That closes the pipe to the command.
pub(super) fn report_start(started: &Started) -> Result<(), Failure> {
    let io = |error| Failure::io("cannot answer the command that started the daemon", &error);
    let mut line =
        serde_json::to_vec(started).map_err(|error| Failure::of(Kind::Internal, &error))?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(&line)
        .and_then(|()| stdout.flush())
        .map_err(io)?;
    let log = File::options()
        .append(true)
        .open("/proc/self/fd/2")
        .or_else(|_| File::options().write(true).open("/dev/null"))
        .map_err(io)?;
    daemonize::replace_stdout(&log).map_err(io)?;
    daemonize::release_program();
    Ok(())
}

/// Controls the mount of the daemon.
#[derive(Debug)]
struct MountControl {
    mount_point: PathBuf,
    id: String,
    /// The source in the mount table.
    source: String,
    stop_handle: StopHandle,
}

impl MountControl {
    fn new(session: &Session, id: &str) -> MountControl {
        MountControl {
            mount_point: session.mount_point().to_path_buf(),
            id: id.to_owned(),
            source: mountinfo::source(id),
            stop_handle: session.stop_handle(),
        }
    }
}

impl Control for MountControl {
    fn unmount(&self, mode: UnmountMode) -> Result<Unmounted, Failure> {
        let lazy = mode == UnmountMode::Lazy;
        refuse_covered(&self.mount_point, &self.source)?;
        let own = mountinfo::own(&self.mount_point, &self.source)
            .map_err(|error| Failure::io("cannot read the mount table", &error))?;
        let (copies, users) = match &own {
            Some(own) => holders::in_other_namespaces(own),
            None => Default::default(),
        };
        // The kernel checks only users in this mount namespace.
        if !lazy && !users.is_empty() {
            return Err(busy(&self.mount_point, &users));
        }
        if !copies.is_empty() {
            flush(&self.mount_point);
        }
        match mount::unmount(&self.mount_point, UnmountMode::Plain) {
            Ok(()) if users.is_empty() => {
                self.stop_handle.unmounted();
                return Ok(Unmounted {
                    copies,
                    ..Unmounted::default()
                });
            }
            Ok(()) => {
                return Ok(Unmounted {
                    holders: users,
                    ..Unmounted::default()
                });
            }
            Err(MountError::Busy { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut holders = holders(&self.id);
        if lazy {
            mount::unmount(&self.mount_point, UnmountMode::Lazy)?;
            holders.extend(users);
            return Ok(Unmounted {
                holders,
                ..Unmounted::default()
            });
        }
        Err(busy(&self.mount_point, &holders))
    }
}

/// Returns the processes that use an environment's mount, as far as they are visible.
pub(crate) fn holders(id: &str) -> Vec<holders::Holder> {
    match mountinfo::of_environment(id) {
        Ok(mounts) => mounts.iter().flat_map(holders::of_mount).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the mount table");
            Vec::new()
        }
    }
}

/// Returns the failure for a mount that is in use, with the processes that use it.
pub(crate) fn busy(mount_point: &Path, holders: &[holders::Holder]) -> Failure {
    let mut message = format!("{} is in use", mount_point.display());
    if holders.is_empty() {
        message.push_str(" (by a process of another user, or by a mount inside it)");
    }
    let mut failure = Failure::new(Kind::Busy, message);
    for holder in holders.iter().take(10) {
        failure = failure.detail(holder.to_string());
    }
    if holders.len() > 10 {
        failure = failure.detail(format!("and {} more", holders.len() - 10));
    }
    failure
        .hint("end these processes or leave the directory, then try again")
        .hint("or: envfs unmount --lazy (detaches it now; the daemon ends when they do)")
}
