//! The client of the control socket, used by commands.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::failure::{Failure, Kind};
use super::protocol::{
    AmendOptions, Amended, Answer, Committable, DiscardOptions, Discarded, Hello, Request,
    RollbackOptions, Selection, Service, Since, StartReport, Status, TagOptions, Unmounted,
    VERSION,
};
use crate::commit::{
    CheckpointOptions, Checkpointed, Collected, CommitOptions, Committed, GcOptions, Preview,
    RolledBack, TrialDone, TrialRequest, UndoOptions, Undone,
};
use crate::packages::Differences;
use crate::progress::{NoProgress, Progress};
use crate::sys::mount::UnmountMode;
use crate::sys::process::{self, ProcessHandle};
use crate::union::{Change, Restored};

/// The time limit for the greeting of a daemon. Its accepting thread does nothing else.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which a client that waits for the greeting checks whether the daemon is stopped.
const GREETING_POLL: Duration = Duration::from_millis(500);
/// The time that a daemon with a request may be idle. A request may take hours, but not without
/// using processor time or moving bytes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The time that a daemon may be stopped: a debugger or a snapshot may stop it for a moment.
const STOPPED_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval at which a waiting client checks for cancellation by the user.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// The interval at which a daemon's progress is checked, and the time after which the user is told
/// of the wait for its end.
const SLOW: Duration = Duration::from_secs(1);
/// How long a daemon that has closed the connection may take to close its other files.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of a running daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    hello: Hello,
    /// The environment's name, for hints.
    name: Option<String>,
    report: Option<StartReport>,
}

/// The time that a daemon that accepts connections but does not greet is given to end.
const ENDING_TIMEOUT: Duration = Duration::from_secs(2);

impl Client {
    /// Connects to a daemon and receives its greeting. Returns `None` if no process listens.
    pub fn connect(socket: &Path) -> Result<Option<Client>, Failure> {
        let deadline = Instant::now() + ENDING_TIMEOUT;
        loop {
            let Some(mut connection) = Connection::open(socket)? else {
                return Ok(None);
            };
            match connection.hello() {
                Ok(hello) => {
                    return Ok(Some(Client {
                        socket: socket.to_path_buf(),
                        hello,
                        name: None,
                        report: None,
                    }));
                }
                // A daemon that is about to end accepts the connection but sends nothing. Soon its
                // socket will be closed.
                Err(_)
                    if Instant::now() < deadline
                        && !connection.pid.is_some_and(process::is_stopped) =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Sets the name of the environment.
    #[must_use]
    pub fn named(mut self, name: &str) -> Client {
        self.name = Some(name.to_owned());
        self
    }

    /// Sets the report of the daemon's start.
    #[must_use]
    pub(super) fn started(mut self, report: StartReport) -> Client {
        self.report = Some(report);
        self
    }

    /// Returns the report of the daemon's start, unless another command started the daemon.
    pub fn start_report(&self) -> Option<&StartReport> {
        self.report.as_ref()
    }

    /// Returns the path of the daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the daemon's greeting.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Sends a request, reports progress, and returns the result. Cancels the request if `progress`
    /// is cancelled.
    pub fn call<T: DeserializeOwned>(
        &self,
        request: &Request,
        progress: &dyn Progress,
    ) -> Result<T, Failure> {
        let (result, _) = self.request(request, progress)?;
        Ok(result)
    }

    fn request<T: DeserializeOwned>(
        &self,
        request: &Request,
        progress: &dyn Progress,
    ) -> Result<(T, Connection), Failure> {
        let mut connection = Connection::open(&self.socket)?
            .ok_or_else(|| Failure::new(Kind::Daemon, "the daemon has ended"))?;
        let hello = connection.hello()?;
        if hello.protocol != VERSION {
            return Err(Failure::new(
                Kind::Daemon,
                format!(
                    "the daemon (pid {}, envfs {}) speaks protocol {}, this envfs {VERSION}",
                    hello.pid, hello.version, hello.protocol
                ),
            )
            .hint(format!(
                "end it with: kill {} (it unmounts and keeps all changes), then try again",
                hello.pid
            )));
        }
        connection.send(request)?;
        loop {
            let answer = connection.receive(progress);
            match answer.map_err(|failure| self.in_doubt(failure, request))? {
                Answer::Progress(report) => progress.report(&report),
                Answer::Error(failure) => return Err(failure),
                Answer::Ok(value) => {
                    let answer = serde_json::from_value(value).map_err(|error| {
                        Failure::new(
                            Kind::Daemon,
                            format!("malformed answer from the daemon: {error}"),
                        )
                    })?;
                    return Ok((answer, connection));
                }
            }
        }
    }

    /// Adds a hint to a failure: without an answer, it is unknown whether a revision was created.
    fn in_doubt(&self, failure: Failure, request: &Request) -> Failure {
        match (&self.name, request) {
            (Some(name), Request::Undo(_) | Request::Checkpoint(_)) => {
                failure.hint(format!("envfs log --all {name} shows whether it was done"))
            }
            (Some(name), Request::Commit(_) | Request::Rollback(_)) => {
                failure.hint(format!("envfs log {name} shows whether it was done"))
            }
            _ => failure,
        }
    }

    /// Unmounts the environment through the daemon. Unless the unmount is lazy, waits until the
    /// daemon has ended and thus released everything. Calls `slow` once if that takes long, as when
    /// a commit must end first.
    pub fn unmount(&self, mode: UnmountMode, slow: &dyn Fn()) -> Result<Unmounted, Failure> {
        let lazy = mode == UnmountMode::Lazy;
        let (answer, connection) = self.request(&Request::Unmount { lazy }, &NoProgress)?;
        if !lazy {
            connection.wait_for_end(slow)?;
        }
        Ok(answer)
    }
}

impl Service for Client {
    fn status(&self) -> Result<Status, Failure> {
        self.call(&Request::Status, &NoProgress)
    }

    fn changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure> {
        self.call(&Request::Changes(selection.clone()), &NoProgress)
    }

    fn differences(&self, selection: &Selection) -> Result<Differences, Failure> {
        self.call(&Request::Differences(selection.clone()), &NoProgress)
    }

    fn differences_since(&self, since: &Since) -> Result<Differences, Failure> {
        self.call(&Request::DifferencesSince(since.clone()), &NoProgress)
    }

    fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<Option<Committed>, Failure> {
        self.call(&Request::Commit(options.clone()), progress)
    }

    fn preview(&self, part: &Committable, progress: &dyn Progress) -> Result<Preview, Failure> {
        self.call(&Request::Preview(part.clone()), progress)
    }

    fn committable(&self, part: &Committable) -> Result<Vec<Change>, Failure> {
        self.call(&Request::Committable(part.clone()), &NoProgress)
    }

    fn amend(&self, options: &AmendOptions, progress: &dyn Progress) -> Result<Amended, Failure> {
        self.call(&Request::Amend(options.clone()), progress)
    }

    fn discard(
        &self,
        options: &DiscardOptions,
        progress: &dyn Progress,
    ) -> Result<Discarded, Failure> {
        self.call(&Request::Discard(options.clone()), progress)
    }

    fn rollback(
        &self,
        options: &RollbackOptions,
        progress: &dyn Progress,
    ) -> Result<RolledBack, Failure> {
        self.call(&Request::Rollback(options.clone()), progress)
    }

    fn restore(&self, from: &Since, progress: &dyn Progress) -> Result<Restored, Failure> {
        self.call(&Request::Restore(from.clone()), progress)
    }

    fn undo(&self, options: &UndoOptions, progress: &dyn Progress) -> Result<Undone, Failure> {
        self.call(&Request::Undo(options.clone()), progress)
    }

    fn checkpoint(
        &self,
        options: &CheckpointOptions,
        progress: &dyn Progress,
    ) -> Result<Checkpointed, Failure> {
        self.call(&Request::Checkpoint(options.clone()), progress)
    }

    fn trial(&self, request: &TrialRequest, progress: &dyn Progress) -> Result<TrialDone, Failure> {
        self.call(&Request::Trial(request.clone()), progress)
    }

    fn tag(&self, options: &TagOptions, progress: &dyn Progress) -> Result<(), Failure> {
        self.call(&Request::Tag(options.clone()), progress)
    }

    fn gc(&self, options: GcOptions, progress: &dyn Progress) -> Result<Collected, Failure> {
        self.call(&Request::Gc(options), progress)
    }

    fn stats(&self) -> Result<serde_json::Value, Failure> {
        self.call(&Request::Stats, &NoProgress)
    }
}

/// A connection, on which lines are sent and received.
#[derive(Debug)]
struct Connection {
    reader: BufReader<UnixStream>,
    /// The part of a line received so far: reads time out to check for cancellation.
    partial: Vec<u8>,
    /// The daemon's process, if it is visible in this process namespace.
    pid: Option<u32>,
    /// Its handle, opened while the daemon must run: later its id may be that of another process.
    process: Option<ProcessHandle>,
}

/// Returns the process that listens at a socket, even if it does not respond.
pub(crate) fn process_at(socket: &Path) -> Option<u32> {
    process::peer_process(connect_within(socket, ENDING_TIMEOUT).ok()?)
}

/// Returns the failure for a daemon that does not respond, with the next steps.
pub(crate) fn unresponsive(pid: Option<u32>, how: &str) -> Failure {
    let Some(pid) = pid else {
        return Failure::new(Kind::Daemon, format!("the daemon {how}"))
            .hint("its log may show why (envfs paths prints its path)");
    };
    let end = format!("kill -9 {pid} ends it; completed writes are kept");
    if process::is_stopped(pid) {
        return Failure::new(Kind::Daemon, format!("the daemon (pid {pid}) is stopped"))
            .hint(format!("kill -CONT {pid} resumes it"))
            .hint(format!("or {end}"));
    }
    Failure::new(Kind::Daemon, format!("the daemon (pid {pid}) {how}"))
        .hint("its log may show why (envfs paths prints its path)")
        .hint(end)
}

/// Checks whether a daemon with a request makes progress.
#[derive(Debug)]
pub(super) struct Watch {
    /// The daemon's process; `None` if it is not visible in this process namespace.
    pub(super) pid: Option<u32>,
    work: Option<u64>,
    since: Instant,
    next: Instant,
    stopped: Option<Instant>,
}

impl Watch {
    pub(super) fn new(pid: Option<u32>) -> Watch {
        let now = Instant::now();
        Watch {
            pid,
            work: None,
            since: now,
            next: now + SLOW,
            stopped: None,
        }
    }

    /// Fails if the daemon has been stopped or idle for too long. Queries the system once a second.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let Some(pid) = self.pid.filter(|_| now >= self.next) else {
            return Ok(());
        };
        self.next = now + SLOW;
        if process::is_stopped(pid) {
            let since = *self.stopped.get_or_insert(now);
            if now.duration_since(since) >= STOPPED_TIMEOUT {
                return Err(unresponsive(self.pid, "is stopped"));
            }
        } else {
            self.stopped = None;
        }
        let work = process::work_done(pid);
        if work != self.work {
            (self.work, self.since) = (work, now);
        }
        if now.duration_since(self.since) >= IDLE_TIMEOUT {
            let how = format!("has been idle for {} s", IDLE_TIMEOUT.as_secs());
            return Err(unresponsive(self.pid, &how));
        }
        Ok(())
    }
}

/// Connects to a Unix socket. A stopped daemon accepts no connections, and once its backlog is
/// full, `connect` blocks, so it has a time limit.
pub(super) fn connect_within(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
    let stream = nix::sys::socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let limit = nix::sys::time::TimeVal::new(timeout.as_secs().cast_signed(), 0);
    nix::sys::socket::setsockopt(&stream, sockopt::SendTimeout, &limit)?;
    nix::sys::socket::connect(stream.as_raw_fd(), &UnixAddr::new(socket)?)?;
    Ok(UnixStream::from(stream))
}

fn connection_error(error: &io::Error) -> Failure {
    Failure {
        kind: Kind::Daemon,
        ..Failure::io("cannot communicate with the daemon", error)
    }
}

impl Connection {
    fn open(socket: &Path) -> Result<Option<Connection>, Failure> {
        let stream = match connect_within(socket, GREETING_TIMEOUT) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(unresponsive(None, "accepts no connections"));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(connection_error(&error)),
        };
        let peer = process::peer_user(&stream).map_err(|error| connection_error(&error))?;
        let me = process::user_id();
        if peer != me && peer != 0 && me != 0 {
            return Err(Failure::new(
                Kind::Daemon,
                format!(
                    "the daemon's socket belongs to {}",
                    process::user_name(peer)
                ),
            ));
        }
        let pid = process::peer_process(&stream);
        Ok(Some(Connection {
            pid,
            process: pid.and_then(|pid| ProcessHandle::open(pid).ok()),
            reader: BufReader::new(stream),
            partial: Vec::new(),
        }))
    }

    fn hello(&mut self) -> Result<Hello, Failure> {
        let stream = self.reader.get_ref();
        stream
            .set_read_timeout(Some(GREETING_POLL))
            .map_err(|error| connection_error(&error))?;
        let deadline = Instant::now() + GREETING_TIMEOUT;
        loop {
            if let Some(line) = self.line()? {
                return parse(&line);
            }
            let is_stopped = self.pid.is_some_and(process::is_stopped);
            if is_stopped || Instant::now() > deadline {
                let how = format!("did not respond within {} s", GREETING_TIMEOUT.as_secs());
                return Err(unresponsive(self.pid, &how));
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), Failure> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| Failure::of(Kind::Internal, &error))?;
        line.push(b'\n');
        self.reader
            .get_mut()
            .write_all(&line)
            .map_err(|error| connection_error(&error))
    }

    /// Waits for the next message. Shuts down the sending half when the user cancels.
    fn receive(&mut self, progress: &dyn Progress) -> Result<Answer, Failure> {
        self.reader
            .get_ref()
            .set_read_timeout(Some(CANCEL_POLL))
            .map_err(|error| connection_error(&error))?;
        let mut watch = Watch::new(self.pid);
        let mut is_cancelled = false;
        loop {
            if let Some(line) = self.line()? {
                return parse(&line);
            }
            watch.check()?;
            if progress.is_cancelled() && !is_cancelled {
                is_cancelled = true;
                self.reader
                    .get_ref()
                    .shutdown(std::net::Shutdown::Write)
                    .map_err(|error| connection_error(&error))?;
                // The daemon's last message tells whether it stopped or had finished already.
            }
        }
    }

    /// Returns the next line, or `None` if the read timed out.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.reader.read_until(b'\n', &mut self.partial) {
            Ok(_) if self.partial.ends_with(b"\n") => Ok(Some(std::mem::take(&mut self.partial))),
            Ok(_) => Err(
                Failure::new(Kind::Daemon, "the daemon ended without an answer")
                    .hint("its log may show why (envfs paths prints its path)"),
            ),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(connection_error(&error)),
        }
    }

    /// Waits until the daemon has ended and has closed all its files.
    fn wait_for_end(mut self, slow: &dyn Fn()) -> Result<(), Failure> {
        let (pid, process) = (self.pid, self.process.take());
        self.wait_for_close(slow)?;
        // The kernel closes the files of a process one by one, and the connection is not the last.
        // A file system that holds the store could not be unmounted in between.
        let Some(process) = process else {
            return Ok(());
        };
        let wait = |timeout| {
            let ended = process.wait(timeout);
            ended.map_err(|error| Failure::io("cannot wait for the end of the daemon", &error))
        };
        if wait(SLOW)? {
            return Ok(());
        }
        slow();
        if wait(CLOSE_TIMEOUT)? {
            return Ok(());
        }
        let after = format!(
            "has unmounted, but not ended after {} s",
            CLOSE_TIMEOUT.as_secs()
        );
        Err(unresponsive(pid, &after))
    }

    /// Waits until the daemon has closed the connection.
    fn wait_for_close(mut self, slow: &dyn Fn()) -> Result<(), Failure> {
        let stream = self.reader.get_ref().try_clone();
        let stream = stream.map_err(|error| connection_error(&error))?;
        let limited = stream.set_read_timeout(Some(SLOW));
        limited.map_err(|error| connection_error(&error))?;
        let mut watch = Watch::new(self.pid);
        let mut is_told = false;
        let mut rest = [0; 64];
        loop {
            match self.reader.read(&mut rest).map_err(|error| error.kind()) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(io::ErrorKind::Interrupted) => {}
                // It ended with unread data of ours, but it ended.
                Err(io::ErrorKind::ConnectionReset) => return Ok(()),
                Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if !std::mem::replace(&mut is_told, true) {
                        slow();
                    }
                    watch.check()?;
                }
                Err(kind) => return Err(connection_error(&kind.into())),
            }
        }
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(line).map_err(|error| {
        Failure::new(
            Kind::Daemon,
            format!("malformed message from the daemon: {error}"),
        )
    })
}
