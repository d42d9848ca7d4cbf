//! The daemon of a writable mount: open, mount, report, serve, unmount, end.

use std::path::PathBuf;
use std::sync::Arc;

use super::failure::Failure;
use super::private::{Inside, Members};
use super::protocol::{ServedHome, Service, Started, Unmounted};
use super::runtime::{RuntimeDir, SocketDir};
use super::server::{Control, Server};
use super::startup::{Startup, report_start, start_up};
use super::unmount::{busy, end_on_signal, end_unless_used, flush, holders, refuse_covered};
use crate::fault;
use crate::fuse::session::{End, Session, StopHandle};
use crate::sys::holders as users;
use crate::sys::mount::{self, MountError, UnmountMode};
use crate::sys::mountinfo;
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

    let served = serve(id, runtime, &mounted, inside, signals);
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
    fault::pause("pause.mounted");
    let reported = report_start(&Started::Ready {
        pid: std::process::id(),
        mount_point: mount_point.clone().into(),
        lost: mounted.lost,
        warnings,
    });
    if let Err(failure) = reported {
        tracing::warn!("{failure}");
        // A private mount ends when no process joins it.
        if !is_private {
            end_unless_used(&mount_point, &mounted.session.stop_handle());
        }
    }
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
            Some(own) => users::in_other_namespaces(own),
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
