//! The server of the control socket, in the daemon.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::failure::{Failure, Kind};
use super::protocol::{Answer, Hello, Request, ServedHome, Service, Unmounted, VERSION};
use crate::fault;
use crate::progress::{Progress, Report};
use crate::sys::mount::UnmountMode;
use crate::sys::process;

/// The size limit of a request, in bytes. It must allow for a long list of paths.
const MAX_REQUEST: u64 = 16 << 20;
/// The minimum interval between two progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Requests that the daemon handles itself, besides those of the [`Service`].
pub(crate) trait Control: Send + Sync {
    /// Unmounts the environment, after which the daemon ends.
    fn unmount(&self, mode: UnmountMode) -> Result<Unmounted, Failure>;
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    hello: Hello,
}

impl Server {
    /// Listens at `path` for an environment. Replaces the socket of a dead daemon. There cannot be
    /// a running one, because the caller holds the start lock or the environment's lock.
    pub(crate) fn bind(
        path: &Path,
        environment: &str,
        home: Option<ServedHome>,
    ) -> io::Result<Server> {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let hello = Hello {
            protocol: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            environment: environment.to_owned(),
            home,
            is_private: false,
        };
        let listener = UnixListener::bind(path)?;
        // Regardless of the umask and the directory.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Server {
            listener,
            path: path.to_path_buf(),
            hello,
        })
    }

    /// Tells clients that the environment is mounted privately.
    pub(crate) fn private(mut self) -> Server {
        self.hello.is_private = true;
        self
    }

    /// Serves connections in the background, each in a thread of its own, until the handle is
    /// dropped.
    pub(crate) fn start(
        self,
        service: Arc<dyn Service>,
        control: Arc<dyn Control>,
    ) -> io::Result<Running> {
        let path = self.path.clone();
        let listener = self.listener.try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = Arc::new(Work::default());
        let running_work = work.clone();
        std::thread::Builder::new()
            .name(String::from("control"))
            .spawn(move || {
                let reserve = Arc::new(Reserve::new());
                for stream in self.listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    let stream = match stream {
                        Ok(stream) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a connection");
                            // Out of descriptors: release the reserve. If that is not enough, wait
                            // until others are closed.
                            if !reserve.release() {
                                std::thread::sleep(Duration::from_millis(100));
                            }
                            continue;
                        }
                    };
                    let (hello, service, control, work) = (
                        self.hello.clone(),
                        service.clone(),
                        control.clone(),
                        work.clone(),
                    );
                    let released = Released::new(reserve.clone());
                    let spawned = std::thread::Builder::new()
                        .name(String::from("request"))
                        .spawn(move || {
                            let _released = released;
                            if let Err(error) = handle(stream, &hello, &*service, &*control, &work)
                            {
                                tracing::debug!(%error, "a control connection failed");
                            }
                        });
                    if let Err(error) = spawned {
                        tracing::warn!(%error, "cannot start a thread for a connection");
                    }
                }
            })?;
        Ok(Running {
            path,
            stop,
            work: running_work,
            _listener: listener,
        })
    }
}

/// Descriptors held in reserve for the control socket, which must work even if users of the mount
/// have exhausted the limit. A connection needs three, and its request some more.
#[derive(Debug)]
struct Reserve(Mutex<ReserveState>);

#[derive(Debug)]
struct ReserveState {
    files: Vec<fs::File>,
    /// Connections being served; the reserve is theirs meanwhile.
    connections: usize,
}

impl Reserve {
    fn new() -> Reserve {
        Reserve(Mutex::new(ReserveState {
            files: Reserve::open(),
            connections: 0,
        }))
    }

    fn open() -> Vec<fs::File> {
        let open = |_| fs::File::open("/dev/null").ok();
        (0..12).map_while(open).collect()
    }

    fn lock(&self) -> MutexGuard<'_, ReserveState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the reserve. Returns whether there was one.
    fn release(&self) -> bool {
        !std::mem::take(&mut self.lock().files).is_empty()
    }
}

/// Keeps the reserve released while a connection is served, and refills it after the last one.
struct Released(Arc<Reserve>);

impl Released {
    fn new(reserve: Arc<Reserve>) -> Released {
        let mut state = reserve.lock();
        state.connections += 1;
        state.files.clear();
        drop(state);
        Released(reserve)
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.connections -= 1;
        if state.connections == 0 {
            state.files = Reserve::open();
        }
    }
}

/// Counts the requests in progress, and prevents new ones after the end.
#[derive(Debug, Default)]
struct Work {
    state: Mutex<WorkState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WorkState {
    count: usize,
    is_closed: bool,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, WorkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request. Returns `None` after the end: a client that was greeted before may send
    /// its request only then.
    fn begin(&self) -> Option<Working<'_>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.count += 1;
        Some(Working(self))
    }

    /// Waits until no request is in progress, and prevents new ones.
    fn close(&self) {
        let mut state = self.lock();
        while state.count > 0 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.is_closed = true;
    }
}

/// Held while a request is in progress.
struct Working<'a>(&'a Work);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.lock().count -= 1;
        self.0.changed.notify_all();
    }
}

/// A running server. When dropped, it stops accepting connections, removes its socket, and waits
/// for the requests in progress.
#[derive(Debug)]
pub(crate) struct Running {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    work: Arc<Work>,
    _listener: UnixListener,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, so that it sees the flag. Fails if that thread has ended
        // already.
        drop(UnixStream::connect(&self.path));
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the socket");
        }
        self.work.close();
    }
}

/// Sends the greeting, reads one request, and answers it.
fn handle(
    stream: UnixStream,
    hello: &Hello,
    service: &dyn Service,
    control: &dyn Control,
    work: &Work,
) -> io::Result<()> {
    let user = process::peer_user(&stream)?;
    if user != process::user_id() && user != 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let peer = Arc::new(Peer {
        stream: Mutex::new(stream.try_clone()?),
        is_disconnected: AtomicBool::new(false),
        last_progress: Mutex::new(None),
    });
    peer.send(hello)?;

    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader
        .by_ref()
        .take(MAX_REQUEST)
        .read_until(b'\n', &mut line)?;
    if line.is_empty() {
        // The client only checked that the daemon is running.
        return Ok(());
    }
    let Some(working) = work.begin() else {
        let failure = Failure::new(Kind::Daemon, "the daemon is about to end").hint("try again");
        return peer.send(&Answer::Error(failure));
    };
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::new(
                Kind::Usage,
                format!("unknown or malformed request: {error}"),
            );
            return peer.send(&Answer::Error(failure));
        }
    };
    tracing::info!(request = describe(&request), "request");

    let watch = match request {
        // A request that changes something is cancelled if its client disconnects, even while it
        // waits for another operation.
        Request::Commit(_)
        | Request::Preview(_)
        | Request::Amend(_)
        | Request::Discard(_)
        | Request::Rollback(_)
        | Request::Restore(_)
        | Request::Undo(_)
        | Request::Checkpoint(_)
        | Request::Trial(_)
        | Request::Tag(_)
        | Request::Gc(_) => {
            let peer = peer.clone();
            Some(
                std::thread::Builder::new()
                    .name(String::from("watch"))
                    .spawn(move || {
                        let mut byte = [0u8];
                        // The client sends nothing more, so the read ends when it disconnects.
                        match reader.read(&mut byte) {
                            Ok(_) | Err(_) => peer.is_disconnected.store(true, Ordering::SeqCst),
                        }
                    })?,
            )
        }
        _ => None,
    };

    let is_unmount = matches!(request, Request::Unmount { lazy: false });
    let answered = catch_unwind(AssertUnwindSafe(|| {
        fault::panic_once("panic.control");
        answer(&request, service, control, &*peer)
    }));
    let result = answered.unwrap_or_else(|_| {
        Err(Failure::new(
            Kind::Internal,
            "internal error of envfs: the request panicked in the daemon",
        )
        .hint("the daemon still runs; please report the error with its log (envfs paths prints its path)"))
    });
    if let Err(failure) = &result {
        tracing::warn!(kind = ?failure.kind, %failure, "request failed");
    }
    let unmounted = is_unmount && result.is_ok();
    let sent = peer.send(&match result {
        Ok(value) => Answer::Ok(value),
        Err(failure) => Answer::Error(failure),
    });
    drop(working);
    if unmounted {
        // The client waits until the connection is closed by the end of the process, so it must
        // stay open until then.
        loop {
            std::thread::park();
        }
    }
    stream.shutdown(Shutdown::Both)?;
    if let Some(watch) = watch
        && watch.join().is_err()
    {
        tracing::error!("the thread that watches a connection panicked");
    }
    sent
}

/// Describes a request for the log. Truncates it, as a list of paths may be very long.
fn describe(request: &Request) -> String {
    let mut text = format!("{request:?}");
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn answer(
    request: &Request,
    service: &dyn Service,
    control: &dyn Control,
    progress: &dyn Progress,
) -> Result<serde_json::Value, Failure> {
    match request {
        Request::Ping => value(&()),
        Request::Status => value(&service.status()?),
        Request::Changes(selection) => value(&service.changes(selection)?),
        Request::Differences(selection) => value(&service.differences(selection)?),
        Request::DifferencesSince(since) => value(&service.differences_since(since)?),
        Request::Commit(options) => value(&service.commit(options, progress)?),
        Request::Preview(part) => value(&service.preview(part, progress)?),
        Request::Committable(part) => value(&service.committable(part)?),
        Request::Amend(options) => value(&service.amend(options, progress)?),
        Request::Discard(options) => value(&service.discard(options, progress)?),
        Request::Rollback(options) => value(&service.rollback(options, progress)?),
        Request::Restore(from) => value(&service.restore(from, progress)?),
        Request::Undo(options) => value(&service.undo(options, progress)?),
        Request::Checkpoint(options) => value(&service.checkpoint(options, progress)?),
        Request::Trial(step) => value(&service.trial(step, progress)?),
        Request::Tag(options) => value(&service.tag(options, progress)?),
        Request::Gc(options) => value(&service.gc(*options, progress)?),
        Request::Unmount { lazy } => {
            let mode = match lazy {
                true => UnmountMode::Lazy,
                false => UnmountMode::Plain,
            };
            value(&control.unmount(mode)?)
        }
        Request::Stats => service.stats(),
    }
}

fn value<T: Serialize>(result: &T) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(result).map_err(|error| Failure::of(Kind::Internal, &error))
}

/// The client of a connection. It receives progress, and cancels the request by disconnecting.
struct Peer {
    stream: Mutex<UnixStream>,
    is_disconnected: AtomicBool,
    /// The time and the phase of the last progress message.
    last_progress: Mutex<Option<(Instant, String)>>,
}

impl Peer {
    fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        // If another thread panicked while sending, the client gets an incomplete line at worst.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&line)
    }
}

impl Progress for Peer {
    fn report(&self, report: &Report) {
        {
            let mut last = self
                .last_progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if let Some((time, phase)) = &*last
                && *phase == report.phase
                && now.duration_since(*time) < PROGRESS_INTERVAL
            {
                return;
            }
            *last = Some((now, report.phase.clone()));
        }
        if self.send(&Answer::Progress(report.clone())).is_err() {
            self.is_disconnected.store(true, Ordering::SeqCst);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.is_disconnected.load(Ordering::SeqCst)
    }
}
