//! The daemon's end of the control socket.

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
use super::protocol::{Answer, Hello, Request, Served, Service, Unmounted, VERSION};
use crate::fault;
use crate::progress::{Progress, Report};
use crate::sys::process;

/// The longest request that is read; a list of paths may be long, a mistake is longer.
const MAX_REQUEST: u64 = 16 << 20;
/// Progress goes out no more often than this.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// What the daemon itself answers for, besides the [`Service`].
pub trait Control: Send + Sync {
    /// Takes the mount away; the daemon ends after that.
    fn unmount(&self, lazy: bool) -> Result<Unmounted, Failure>;
}

/// The listening socket; removed from the disk when dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    hello: Hello,
}

impl Server {
    /// Listens at `path` for an environment. Takes the place of a socket that a dead daemon left;
    /// the caller holds the start lock or the environment's lock, so there is no living one.
    pub fn bind(path: &Path, environment: &str, home: Option<Served>) -> io::Result<Server> {
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
        };
        let listener = UnixListener::bind(path)?;
        // Whatever the umask is, and the directory.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Server {
            listener,
            path: path.to_path_buf(),
            hello,
        })
    }

    /// Answers in the background, each connection in a thread of its own, until the handle is
    /// dropped.
    pub fn start(
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
                let mut reserve = reserve();
                for stream in self.listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    let stream = match stream {
                        Ok(stream) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a connection");
                            // Out of descriptors: those kept for this are given up. If that does not
                            // suffice, others must finish first.
                            if reserve.is_empty() {
                                std::thread::sleep(Duration::from_millis(100));
                            }
                            reserve.clear();
                            continue;
                        }
                    };
                    if reserve.is_empty() {
                        reserve = self::reserve();
                    }
                    let (hello, service, control, work) = (
                        self.hello.clone(),
                        service.clone(),
                        control.clone(),
                        work.clone(),
                    );
                    let spawned = std::thread::Builder::new()
                        .name(String::from("request"))
                        .spawn(move || {
                            if let Err(error) =
                                converse(stream, &hello, &*service, &*control, &work)
                            {
                                tracing::debug!(%error, "a control connection broke");
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

/// Descriptors kept for the control socket, for when users of the mount have taken all others: the daemon
/// must be heard then, too. One connection needs three, and what it asks some more.
fn reserve() -> Vec<fs::File> {
    let open = |_| fs::File::open("/dev/null").ok();
    (0..12).map_while(open).collect()
}

/// How many requests are being answered, and whether one more may be.
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

    /// None at the end: whoever was greeted before it may ask only now.
    fn begin(&self) -> Option<Working<'_>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.count += 1;
        Some(Working(self))
    }

    /// Waits until no request is being answered. None will be any more.
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

/// Held from a request to its answer.
struct Working<'a>(&'a Work);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.lock().count -= 1;
        self.0.changed.notify_all();
    }
}

/// A server that answers. When dropped it stops accepting, waits until the requests that it is
/// answering have their answers, and removes its socket.
#[derive(Debug)]
pub struct Running {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    work: Arc<Work>,
    _listener: UnixListener,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread so that it sees the flag; if that fails it is gone already.
        drop(UnixStream::connect(&self.path));
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the socket");
        }
        self.work.close();
    }
}

/// Greets, reads one request, answers it.
fn converse(
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
        gone: AtomicBool::new(false),
        last: Mutex::new(None),
    });
    peer.send(hello)?;

    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader
        .by_ref()
        .take(MAX_REQUEST)
        .read_until(b'\n', &mut line)?;
    if line.is_empty() {
        // Only wanted to know whether we live.
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
                format!("the daemon does not know this: {error}"),
            );
            return peer.send(&Answer::Error(failure));
        }
    };
    tracing::info!(request = brief(&request), "asked");

    let watch = match request {
        // What waits for its turn and changes something is not done for who has gone away.
        Request::Commit(_)
        | Request::Discard(_)
        | Request::Rollback(_)
        | Request::Tag(_)
        | Request::Gc(_) => {
            let peer = peer.clone();
            Some(
                std::thread::Builder::new()
                    .name(String::from("watch"))
                    .spawn(move || {
                        let mut byte = [0u8];
                        // Nothing more is to come but the end; what ends the wait means "gone".
                        match reader.read(&mut byte) {
                            Ok(_) | Err(_) => peer.gone.store(true, Ordering::SeqCst),
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
            "a fault of envfs ended this request in the daemon",
        )
        .hint("the daemon goes on; its log says where it was (envfs paths names it): report it"))
    });
    if let Err(failure) = &result {
        tracing::warn!(kind = ?failure.kind, %failure, "refused");
    }
    let unmounted = is_unmount && result.is_ok();
    let sent = peer.send(&match result {
        Ok(value) => Answer::Ok(value),
        Err(failure) => Answer::Error(failure),
    });
    drop(working);
    if unmounted {
        // The end of the process closes the connection and so tells the client; it must not
        // happen before. The thread waits for an end that is not its own.
        loop {
            std::thread::park();
        }
    }
    stream.shutdown(Shutdown::Both)?;
    if let Some(watch) = watch
        && watch.join().is_err()
    {
        tracing::error!("the watch over a connection panicked");
    }
    sent
}

/// A request in words for the log; a list of paths may be very long.
fn brief(request: &Request) -> String {
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
        Request::Commit(options) => value(&service.commit(options, progress)?),
        Request::Discard(selection) => value(&service.discard(selection, progress)?),
        Request::Rollback(options) => value(&service.rollback(options, progress)?),
        Request::Tag(options) => value(&service.tag(options, progress)?),
        Request::Gc(options) => value(&service.gc(*options, progress)?),
        Request::Unmount { lazy } => value(&control.unmount(*lazy)?),
        Request::Stats => service.stats(),
    }
}

fn value<T: Serialize>(result: &T) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(result).map_err(|error| Failure::of(Kind::Internal, &error))
}

/// The client as the one who hears of progress, and whose going away is a cancellation.
struct Peer {
    stream: Mutex<UnixStream>,
    gone: AtomicBool,
    /// When progress was sent last, and of what phase.
    last: Mutex<Option<(Instant, String)>>,
}

impl Peer {
    fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        // A panic while sending leaves at worst half a line to a client that is lost anyway.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&line)
    }
}

impl Progress for Peer {
    fn report(&self, report: &Report) {
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
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
            self.gone.store(true, Ordering::SeqCst);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}
