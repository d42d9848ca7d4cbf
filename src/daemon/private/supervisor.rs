//! The supervisor of a private session: it serves the mount from outside of the namespaces, lets
//! commands in, and ends with the last process in them.
//!
//! While the session can be joined, the supervisor keeps the namespaces open and watches the
//! processes that have joined. When all of them have ended, it looks for processes that they left
//! behind. If there are none for [`GRACE`], it closes its descriptors of the namespaces. The kernel
//! then removes the mount with the last process in them, which ends the session.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Greeting, Place, PrivateSpec};
use crate::daemon::direct::Open;
use crate::daemon::failure::Failure;
use crate::daemon::protocol::{Started, Unmounted};
use crate::daemon::server::Control;
use crate::daemon::session::serve::{Notes, remove_upper};
use crate::daemon::spec::DirectMount;
use crate::daemon::startup::{Startup, report_start, start_up};
use crate::daemon::unmount::busy;
use crate::fault;
use crate::fuse::session::{Session, StopHandle};
use crate::sys::mount::private::{self, Namespaces, PrivateMount};
use crate::sys::mount::{MountRequest, UnmountMode};
use crate::sys::process::{self, ProcessHandle};
use crate::sys::signals::TerminationSignals;
use crate::sys::{daemonize, descriptors, holders};

/// How long a session without processes can still be joined.
const GRACE: Duration = Duration::from_millis(500);
/// How long the command that started the supervisor may take to join.
const FIRST_JOIN: Duration = Duration::from_secs(20);
/// The interval of the search for processes that the supervisor cannot watch, because they are in
/// another process namespace.
const LOOK: Duration = Duration::from_secs(5);
/// The largest number of processes that are watched. Further ones are found by a search.
const MAX_WATCHED: usize = 4096;

/// A private mount that is not served yet.
#[derive(Debug)]
pub(crate) struct Unserved {
    /// The descriptor from which requests are read.
    pub device: OwnedFd,
    /// What commands enter.
    pub inside: Inside,
}

/// The inside of a private mount, for the process that serves it.
#[derive(Debug)]
pub(crate) struct Inside {
    spec: PrivateSpec,
    namespaces: Namespaces,
    root: MountRoot,
}

/// The root of a private mount, as long as the session can be joined. It keeps the mount.
#[derive(Debug, Clone)]
pub(crate) struct MountRoot(Arc<Mutex<Option<OwnedFd>>>);

impl MountRoot {
    /// Makes the kernel write its dirty pages to this process.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let root = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        root.as_ref().map_or(Ok(()), private::sync)
    }

    fn close(&self) {
        let mut root = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(root.take());
    }
}

impl PrivateSpec {
    /// Mounts in new namespaces. Must be called while there is only one thread.
    pub(crate) fn mount(&self, request: &MountRequest) -> Result<Unserved, Failure> {
        let PrivateMount {
            device,
            namespaces,
            root,
        } = private::mount(request, self.isolation)?;
        Ok(Unserved {
            device,
            inside: Inside {
                spec: self.clone(),
                namespaces,
                root: MountRoot(Arc::new(Mutex::new(Some(root)))),
            },
        })
    }
}

impl Inside {
    /// Returns the root of the mount.
    pub(crate) fn root(&self) -> MountRoot {
        self.root.clone()
    }
}

/// Runs the supervisor of a read-only or ephemeral session until it has ended. The requirements are
/// those of [`crate::daemon::host::run`]; standard input is the lock.
pub(crate) fn run(what: &DirectMount, spec: &PrivateSpec) -> Result<(), Failure> {
    let mount_point = what.mount_point.as_path();
    let Startup {
        signals,
        warnings,
        opened: (inside, notes, session, open),
    } = start_up(|| {
        // Before anything is opened: there must be no thread yet.
        let Unserved { device, inside } = spec.mount(&what.request(""))?;
        // Before the image is opened, so that `gc` does not remove it in between.
        let spec = what.session.as_ref();
        let notes = spec.map(|spec| Notes::write(spec, what)).transpose()?;
        let open = Open::new(what)?;
        let session = open.serve(what, |filesystem| {
            Session::serve(filesystem, device, mount_point)
        })?;
        Ok((inside, notes, session, open))
    })
    .inspect_err(|_| remove_upper(what))?;
    let stop_handle = session.stop_handle();
    let served = Members::start(inside).and_then(|members| {
        members.end_on_signals(signals, stop_handle)?;
        Ok(members)
    });
    let members = match served {
        Ok(members) => members,
        Err(failure) => {
            drop(report_start(&Started::Error(failure.clone())));
            remove_upper(what);
            return Err(failure);
        }
    };
    fault::pause("pause.session.mounted");
    // If the command has ended, others may have joined already.
    if let Err(failure) = report_start(&Started::Ready {
        pid: std::process::id(),
        mount_point: mount_point.into(),
        lost: open.lost,
        warnings,
    }) {
        tracing::warn!("{failure}");
    }
    fault::pause("pause.session.started");
    let result = session.wait();
    drop(members);
    let closed = open.close();
    drop(open);
    remove_upper(what);
    drop(notes);
    closed?;
    result
        .map(drop)
        .map_err(|error| Failure::io("cannot serve requests of the kernel", &error))
}

/// The thread that lets processes in and watches them. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Members {
    wake: UnixStream,
    /// The number of the mount namespace.
    namespace: u64,
    thread: Option<JoinHandle<()>>,
}

impl Members {
    pub(crate) fn start(inside: Inside) -> Result<Members, Failure> {
        let Inside {
            spec,
            namespaces,
            root,
        } = inside;
        let socket = spec.place.socket();
        let doing = || format!("cannot listen at {}", socket.display());
        let failed = |error| Failure::io(doing(), &error);
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let greeting = serde_json::to_vec(&Greeting {
            pid: std::process::id(),
            revision: spec.revision,
        });
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let namespace = namespaces.id().map_err(failed)?;
        let door = Door {
            listener: UnixListener::bind(&socket).map_err(failed)?,
            namespaces,
            root,
            greeting: greeting.map_err(|error| failed(error.into()))?,
            place: spec.place,
            inside: Vec::new(),
            has_unwatched: false,
        };
        let thread = std::thread::Builder::new()
            .name(String::from("members"))
            .spawn(move || door.keep(&woken))
            .map_err(failed)?;
        Ok(Members {
            wake,
            namespace,
            thread: Some(thread),
        })
    }

    /// After the first signal, admits no more processes; the session ends with those in it. After
    /// the second, ends it at once.
    pub(crate) fn end_on_signals(
        &self,
        signals: TerminationSignals,
        stop_handle: StopHandle,
    ) -> Result<(), Failure> {
        let failed = |error| Failure::io("cannot start a thread", &error);
        let mut wake = self.wake.try_clone().map_err(failed)?;
        std::thread::Builder::new()
            .name(String::from("signals"))
            .spawn(move || {
                for is_first in [true, false] {
                    match signals.wait() {
                        Ok(signal) => tracing::info!(signal, "received a signal to end"),
                        Err(error) => return tracing::error!(%error, "cannot wait for signals"),
                    }
                    match is_first {
                        true => drop(wake.write_all(b"x")),
                        false => stop_handle.abandon(),
                    }
                }
            })
            .map_err(failed)?;
        Ok(())
    }

    /// Returns what unmounts the private mount.
    pub(crate) fn control(&self, mount_point: &Path) -> Result<PrivateControl, Failure> {
        let wake = self.wake.try_clone();
        Ok(PrivateControl {
            mount_point: mount_point.to_path_buf(),
            namespace: self.namespace,
            wake: wake.map_err(|error| Failure::io("cannot control the session", &error))?,
        })
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        drop(self.wake.write_all(b"x"));
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the thread that watches the processes panicked");
        }
    }
}

/// Unmounts a private mount on request.
#[derive(Debug)]
pub(crate) struct PrivateControl {
    mount_point: PathBuf,
    namespace: u64,
    wake: UnixStream,
}

impl Control for PrivateControl {
    fn unmount(&self, mode: UnmountMode) -> Result<Unmounted, Failure> {
        let holders = holders::in_namespace(self.namespace);
        if mode == UnmountMode::Plain && !holders.is_empty() {
            return Err(busy(&self.mount_point, &holders));
        }
        (&self.wake)
            .write_all(b"x")
            .map_err(|error| Failure::io("cannot end the session", &error))?;
        Ok(Unmounted {
            holders,
            ..Unmounted::default()
        })
    }
}

/// What keeps a session joinable.
#[derive(Debug)]
struct Door {
    listener: UnixListener,
    namespaces: Namespaces,
    root: MountRoot,
    greeting: Vec<u8>,
    place: Place,
    /// The processes that have joined or were found.
    inside: Vec<ProcessHandle>,
    /// Whether processes have joined that cannot be watched.
    has_unwatched: bool,
}

impl Door {
    /// Admits processes until the session is empty or this is woken, then admits no more.
    fn keep(mut self, woken: &UnixStream) {
        if let Err(error) = self.watch(woken) {
            tracing::error!(%error, "cannot watch the processes of the session");
        }
        self.close();
    }

    fn watch(&mut self, woken: &UnixStream) -> io::Result<()> {
        let mut empty_until = Some(Instant::now() + FIRST_JOIN);
        loop {
            let timeout = match empty_until {
                Some(end) => end.saturating_duration_since(Instant::now()).into(),
                None => self.has_unwatched.then_some(LOOK),
            };
            let ready = self.wait(woken, timeout)?;
            if ready.is_woken {
                return Ok(());
            }
            if ready.has_visitor && self.let_in() {
                empty_until = None;
                continue;
            }
            let has_changed = ready.has_ended || empty_until.is_none();
            if has_changed && self.inside.is_empty() {
                self.look()?;
                let now = Instant::now();
                empty_until = match self.inside.is_empty() {
                    true => empty_until.or(Some(now + GRACE)),
                    false => None,
                };
            }
            if empty_until.is_some_and(|end| Instant::now() >= end) {
                return Ok(());
            }
        }
    }

    /// Waits for a command that connects, the end of a process, or the timeout.
    fn wait(&mut self, woken: &UnixStream, timeout: Option<Duration>) -> io::Result<Ready> {
        let timeout = match timeout {
            // Rounded up, so that the time is over after it.
            Some(timeout) => PollTimeout::try_from(timeout + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut files = vec![
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let handles = self.inside.iter();
        files.extend(handles.map(|handle| PollFd::new(handle.as_fd(), PollFlags::POLLIN)));
        match poll(&mut files, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut is_ready = files.iter().map(|file| file.any().unwrap_or(false));
        let (is_woken, has_visitor) = (is_ready.next(), is_ready.next());
        let ended: Vec<bool> = is_ready.collect();
        let before = self.inside.len();
        let mut ended = ended.into_iter();
        self.inside.retain(|_| !ended.next().unwrap_or(false));
        Ok(Ready {
            is_woken: is_woken.unwrap_or(false),
            has_visitor: has_visitor.unwrap_or(false),
            has_ended: self.inside.len() < before,
        })
    }

    /// Answers one command and watches it from now on. Returns whether it was admitted.
    fn let_in(&mut self) -> bool {
        let visitor = match self.listener.accept() {
            Ok((visitor, _)) => visitor,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a command");
                // For example for want of descriptors.
                std::thread::sleep(Duration::from_millis(10));
                return false;
            }
        };
        match process::peer_user(&visitor) {
            Ok(user) if user == process::user_id() => {}
            _ => {
                tracing::warn!("a process of another user tried to join");
                return false;
            }
        }
        let handle = process::peer_process(&visitor)
            .filter(|_| self.inside.len() < MAX_WATCHED)
            .and_then(|pid| ProcessHandle::open(pid).ok());
        // The handle may be of a later process with the same id: do not wait for that one.
        if has_left(&visitor) {
            tracing::debug!("a command ended before it joined");
            return false;
        }
        match handle {
            Some(handle) => self.inside.push(handle),
            None => self.has_unwatched = true,
        }
        let sent = descriptors::send(&visitor, &self.greeting, &self.namespaces.files());
        if let Err(error) = sent {
            // It has ended, or will try again.
            tracing::debug!(%error, "cannot greet a command");
        }
        true
    }

    /// Looks for processes in the namespaces that those which joined have left behind.
    fn look(&mut self) -> io::Result<()> {
        let found = private::members(self.namespaces.id()?);
        let found = found.into_iter().take(MAX_WATCHED);
        self.inside
            .extend(found.filter_map(|pid| ProcessHandle::open(pid).ok()));
        Ok(())
    }

    /// Admits no further processes, and releases the lock.
    fn close(self) {
        self.root.close();
        self.place.remove();
        let released = File::open("/dev/null").and_then(daemonize::replace_stdin);
        if let Err(error) = released {
            tracing::warn!(%error, "cannot release the lock");
        }
    }
}

/// Returns whether the process at the other end of a connection has closed it, or has ended.
/// `POLLHUP` need not be asked for.
fn has_left(visitor: &UnixStream) -> bool {
    let mut files = [PollFd::new(visitor.as_fd(), PollFlags::empty())];
    poll(&mut files, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// What has happened.
#[derive(Debug, Clone, Copy)]
struct Ready {
    is_woken: bool,
    has_visitor: bool,
    has_ended: bool,
}
