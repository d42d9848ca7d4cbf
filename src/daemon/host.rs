//! The life of a daemon: open, mount, say so, serve, unmount, end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::failure::{Failure, Kind};
use super::protocol::{Served, Service, Started, Unmounted};
use super::runtime::{Listening, RuntimeDir};
use super::server::{Control, Server};
use crate::fuse::session::{End, Session, StopHandle};
use crate::sys::daemonize;
use crate::sys::holders;
use crate::sys::mount::{self, MountError, UnmountMode};
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::signals::TerminationSignals;

/// A mounted environment: its running session and what answers for it.
pub struct Mounted {
    /// The mount, with its loops running.
    pub session: Session,
    /// What commands may ask of it.
    pub service: Arc<dyn Service>,
    /// Whose files it shows.
    pub home: Served,
    /// Changed files that were found to have lost their content when it was opened.
    pub lost: usize,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// Is a daemon: runs until the environment is unmounted. To be called first thing in a fresh
/// process, before any other thread runs, with a pipe as standard output and the log as standard
/// error.
///
/// `mount` opens the environment and mounts it; it runs after the process left its terminal. Its
/// failure reaches the command that started us and is returned as well.
pub fn run(
    id: &str,
    runtime: &RuntimeDir,
    mount: impl FnOnce() -> Result<Mounted, Failure>,
) -> Result<(), Failure> {
    let Begun {
        signals,
        warnings,
        opened: mounted,
    } = begin(mount)?;
    let mount_point = mounted.session.mount_point().to_path_buf();

    let served = serve(id, runtime, &mounted, signals).and_then(|running| {
        // If the command that asked for the mount is gone, nobody wants it.
        tell(&Started::Ready {
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
            if let Err(error) = mount::unmount(&mount_point, UnmountMode::Lazy) {
                tracing::warn!(%error, "could not undo the mount");
            }
            // Nobody may be listening; the log has it in any case.
            if let Err(error) = tell(&Started::Error(failure.clone())) {
                tracing::debug!(%error, "could not tell of the failure");
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
    service.end();
    match &result {
        Ok(End::Unmounted) => tracing::info!(path = %mount_point.display(), "unmounted"),
        Ok(End::Abandoned) => tracing::warn!(
            path = %mount_point.display(),
            "unmounted; copies of the mount that are left get no answers any more"
        ),
        Err(_) => {}
    }
    result
        .map(drop)
        .map_err(|error| Failure::io("the event loops ended badly", &error))
}

/// A daemon that has opened what it is to serve.
pub(super) struct Begun<T> {
    /// What asks it to end.
    pub(super) signals: TerminationSignals,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
    /// What it serves.
    pub(super) opened: T,
}

/// Becomes a daemon, then opens what it is to serve. A failure is told to the command that waits.
pub(super) fn begin<T>(open: impl FnOnce() -> Result<T, Failure>) -> Result<Begun<T>, Failure> {
    daemonize::limit_allocator();
    // Blocked before any thread exists, so that only the one that waits for them gets them.
    let began = TerminationSignals::block()
        .and_then(|signals| Ok((signals, daemonize::become_daemon()?)))
        .map_err(|error| Failure::io("cannot become a daemon", &error))
        .and_then(|(signals, warnings)| {
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            Ok(Begun {
                signals,
                warnings,
                opened: open()?,
            })
        });
    if let Err(failure) = &began {
        tell(&Started::Error(failure.clone()))?;
    }
    began
}

fn serve(
    id: &str,
    runtime: &RuntimeDir,
    mounted: &Mounted,
    signals: TerminationSignals,
) -> Result<(super::server::Running, Listening), Failure> {
    let control = Arc::new(MountControl::new(&mounted.session, id));
    let listening = runtime.make()?;
    let socket = listening.socket(id);
    let running = Server::bind(&socket, id, Some(mounted.home.clone()))
        .and_then(|server| server.start(mounted.service.clone(), control.clone()))
        .map_err(|error| Failure::io(format!("cannot listen at {}", socket.display()), &error))?;
    mounted.service.listens_at(&socket)?;
    std::thread::Builder::new()
        .name(String::from("signals"))
        .spawn(move || {
            end_on_signal(
                signals,
                &control.mount_point,
                &control.source,
                &control.stop_handle,
            );
        })
        .map_err(|error| Failure::io("cannot start a thread", &error))?;
    // In this order: the socket goes before its directory.
    Ok((running, listening))
}

/// Unmounts when asked by a signal. Whoever still uses the mount may finish, until a further signal comes.
pub(super) fn end_on_signal(
    signals: TerminationSignals,
    mount_point: &Path,
    source: &str,
    stop_handle: &StopHandle,
) {
    loop {
        match signals.wait() {
            Ok(signal) => tracing::info!(signal, "asked to end"),
            Err(error) => {
                tracing::error!(%error, "cannot wait for signals");
                return;
            }
        }
        match mountinfo::own(mount_point, source) {
            Ok(None) => {
                tracing::warn!("the mount is gone here already: ends, whoever still uses it");
                stop_handle.abandon();
                continue;
            }
            Ok(Some(own)) if !holders::in_other_namespaces(&own).0.is_empty() => flush(mount_point),
            _ => {}
        }
        if let Err(failure) = refuse_covered(mount_point, source) {
            tracing::error!("{failure}; to be asked again when it is gone");
            continue;
        }
        match mount::unmount(mount_point, UnmountMode::Plain) {
            Ok(()) => stop_handle.unmounted(),
            Err(MountError::Busy { .. }) => {
                tracing::warn!("in use: detached, to end when the last user does");
                if let Err(error) = mount::unmount(mount_point, UnmountMode::Lazy) {
                    tracing::error!(%error, "cannot detach");
                }
            }
            Err(error) => tracing::error!(%error, "cannot unmount"),
        }
    }
}

/// How long what was written through mappings may take to come to the daemon before a mount is taken away.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);

/// Brings what was written through mappings to the daemon, where there are copies of the mount: the kernel
/// does it only when the last one goes.
fn flush(mount_point: &Path) {
    if let Err(error) = mount::sync_with_timeout(mount_point, FLUSH_PATIENCE) {
        tracing::warn!(%error, "cannot flush the kernel's cache of the mount");
    }
}

/// Refuses to unmount where something else lies on top: that is what would go.
fn refuse_covered(mount_point: &Path, source: &str) -> Result<(), Failure> {
    let covering = mountinfo::covering(mount_point, source)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    match covering {
        Some(top) => Err(covered(&top)),
        None => Ok(()),
    }
}

/// Says what lies on top of a mount of ours.
pub(super) fn covered(top: &MountEntry) -> Failure {
    let (what, at) = (top.source.to_string_lossy(), top.mount_point.display());
    Failure::new(
        Kind::Conflict,
        format!("{what} ({}) lies on top of the mount at {at}", top.fs_type),
    )
    .hint(format!("unmount it (umount {at}), then try again"))
}

/// Says on standard output how the start went, then makes the log the standard output, which
/// tells the other side that nothing more is to come.
pub(super) fn tell(started: &Started) -> Result<(), Failure> {
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
    daemonize::replace_stdout(&log).map_err(io)
}

/// The mount as the daemon controls it.
#[derive(Debug)]
struct MountControl {
    mount_point: PathBuf,
    id: String,
    /// What it is called in the mount table.
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
    fn unmount(&self, lazy: bool) -> Result<Unmounted, Failure> {
        refuse_covered(&self.mount_point, &self.source)?;
        let own = mountinfo::own(&self.mount_point, &self.source)
            .map_err(|error| Failure::io("cannot read the mount table", &error))?;
        let (copies, users) = match &own {
            Some(own) => holders::in_other_namespaces(own),
            None => Default::default(),
        };
        // The kernel refuses only for those of our own namespace.
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

/// Returns who uses an environment's mount, as far as we may see.
pub fn holders(id: &str) -> Vec<holders::Holder> {
    match mountinfo::of_environment(id) {
        Ok(mounts) => mounts.iter().flat_map(holders::of_mount).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the mount table");
            Vec::new()
        }
    }
}

/// Says who keeps a mount from being unmounted.
pub fn busy(mount_point: &Path, holders: &[holders::Holder]) -> Failure {
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
        .hint("or: envfs unmount --lazy (detaches now, ends when they do)")
}
