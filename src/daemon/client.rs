//! The command's end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::failure::{Failure, Kind};
use super::lifecycle::Served;
use super::protocol::{
    Answer, Discarded, Hello, Request, RollbackOptions, Selection, Service, Status, TagOptions,
    Unmounted, VERSION,
};
use crate::commit::{Collected, CommitOptions, Committed, GcOptions, RolledBack};
use crate::progress::{NoProgress, Progress};
use crate::sys::process;
use crate::union::Change;

/// How long a living daemon may take to greet: its accepting thread does nothing else.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked meanwhile whether the daemon is stopped.
const GREETING_LOOK: Duration = Duration::from_millis(500);
/// How long a daemon may do nothing at all before what it was asked counts as lost. It may be asked for
/// what takes hours, but not without any work.
const IDLE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a daemon may be stopped: a debugger or a snapshot may stop it for a moment.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// How often a waiting client looks whether its user wants to stop.
const LOOK: Duration = Duration::from_millis(100);

/// How long the end of a daemon may take before its user hears that it does.
const SLOW: Duration = Duration::from_secs(1);

/// A daemon that can be spoken with.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    hello: Hello,
    /// The environment's name, for what to type next.
    name: Option<String>,
    served: Served,
}

/// How long a daemon that takes connections but does not greet is given to end.
const ENDING_PATIENCE: Duration = Duration::from_secs(2);

impl Client {
    /// Returns the client of a daemon that lives and greets, or `None` where nobody listens.
    pub fn connect(socket: &Path) -> Result<Option<Client>, Failure> {
        let deadline = Instant::now() + ENDING_PATIENCE;
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
                        served: Served::default(),
                    }));
                }
                // A daemon that is about to end takes the connection and says nothing; soon
                // nobody listens any more.
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

    /// Tells it the name of the environment.
    #[must_use]
    pub fn named(mut self, name: &str) -> Client {
        self.name = Some(name.to_owned());
        self
    }

    /// Notes what it told when we started it.
    #[must_use]
    pub(super) fn started(mut self, served: Served) -> Client {
        self.served = served;
        self
    }

    /// Returns what the daemon told about its mount when it began to serve. Nothing if it was not we who
    /// started it: who did was told.
    pub fn served(&self) -> &Served {
        &self.served
    }

    /// Returns where the daemon listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns what the daemon said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks, shows progress, and returns the answer. The daemon stops when `progress` says so.
    pub fn call<T: DeserializeOwned>(
        &self,
        request: &Request,
        progress: &dyn Progress,
    ) -> Result<T, Failure> {
        let (answer, _) = self.ask(request, progress)?;
        Ok(answer)
    }

    fn ask<T: DeserializeOwned>(
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
                        Failure::new(Kind::Daemon, format!("the daemon's answer is odd: {error}"))
                    })?;
                    return Ok((answer, connection));
                }
            }
        }
    }

    /// Without an answer a revision may have been made, or not.
    fn in_doubt(&self, failure: Failure, request: &Request) -> Failure {
        match (&self.name, request) {
            (Some(name), Request::Commit(_) | Request::Rollback(_)) => {
                failure.hint(format!("envfs log {name} tells whether it was done"))
            }
            _ => failure,
        }
    }

    /// Asks the daemon to unmount. Unless it was a lazy unmount, the daemon has ended and has
    /// let go of everything when this returns.
    /// If that takes long (a commit must end first), `slow` is called once.
    pub fn unmount(&self, lazy: bool, slow: &dyn Fn()) -> Result<Unmounted, Failure> {
        let (answer, connection) = self.ask(&Request::Unmount { lazy }, &NoProgress)?;
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

    fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<Option<Committed>, Failure> {
        self.call(&Request::Commit(options.clone()), progress)
    }

    fn discard(
        &self,
        selection: &Selection,
        progress: &dyn Progress,
    ) -> Result<Discarded, Failure> {
        self.call(&Request::Discard(selection.clone()), progress)
    }

    fn rollback(
        &self,
        options: &RollbackOptions,
        progress: &dyn Progress,
    ) -> Result<RolledBack, Failure> {
        self.call(&Request::Rollback(options.clone()), progress)
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

/// One connection: lines out, lines in.
#[derive(Debug)]
struct Connection {
    reader: BufReader<UnixStream>,
    /// What came of a line so far; reads are cut short to look whether the user wants to stop.
    partial: Vec<u8>,
    /// The daemon's process, where it can be seen from here.
    pid: Option<u32>,
}

/// Returns the process that listens at a socket, also if it does not answer.
pub fn process_at(socket: &Path) -> Option<u32> {
    process::peer_process(connect_within(socket, ENDING_PATIENCE).ok()?)
}

/// Says that a daemon does not answer, and what to do about it.
pub fn silent(pid: Option<u32>, how: &str) -> Failure {
    let Some(pid) = pid else {
        return Failure::new(Kind::Daemon, format!("the daemon {how}"))
            .hint("its log may tell why (envfs paths names it)");
    };
    let end = format!("kill -9 {pid} ends it; what programs have completed is kept");
    if process::is_stopped(pid) {
        return Failure::new(Kind::Daemon, format!("the daemon (pid {pid}) is stopped"))
            .hint(format!("kill -CONT {pid} lets it go on"))
            .hint(format!("or {end}"));
    }
    Failure::new(Kind::Daemon, format!("the daemon (pid {pid}) {how}"))
        .hint("its log may tell why (envfs paths names it)")
        .hint(end)
}

/// Watches whether a daemon that was asked something still works.
#[derive(Debug)]
pub(super) struct Watch {
    /// As this process sees it; none if it is in a process namespace that is not ours.
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

    /// Fails where the daemon has been stopped or idle for too long. Asks the system once a second.
    pub(super) fn look(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let Some(pid) = self.pid.filter(|_| now >= self.next) else {
            return Ok(());
        };
        self.next = now + SLOW;
        if process::is_stopped(pid) {
            let since = *self.stopped.get_or_insert(now);
            if now.duration_since(since) >= STOP_PATIENCE {
                return Err(silent(self.pid, "is stopped"));
            }
        } else {
            self.stopped = None;
        }
        let work = process::work_done(pid);
        if work != self.work {
            (self.work, self.since) = (work, now);
        }
        if now.duration_since(self.since) >= IDLE_PATIENCE {
            let how = format!("has done nothing for {} s", IDLE_PATIENCE.as_secs());
            return Err(silent(self.pid, &how));
        }
        Ok(())
    }
}

/// Connects to a Unix socket. A daemon that is stopped takes no connections, and once those that wait are
/// too many `connect` waits, too.
fn connect_within(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
    let stream = nix::sys::socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let limit = nix::sys::time::TimeVal::new(patience.as_secs().cast_signed(), 0);
    nix::sys::socket::setsockopt(&stream, sockopt::SendTimeout, &limit)?;
    nix::sys::socket::connect(stream.as_raw_fd(), &UnixAddr::new(socket)?)?;
    Ok(UnixStream::from(stream))
}

fn trouble(error: &io::Error) -> Failure {
    Failure {
        kind: Kind::Daemon,
        ..Failure::io("cannot speak with the daemon", error)
    }
}

impl Connection {
    fn open(socket: &Path) -> Result<Option<Connection>, Failure> {
        let stream = match connect_within(socket, GREETING_PATIENCE) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(silent(None, "takes no connections"));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(trouble(&error)),
        };
        let peer = process::peer_user(&stream).map_err(|error| trouble(&error))?;
        let me = process::user_id();
        if peer != me && peer != 0 && me != 0 {
            return Err(Failure::new(
                Kind::Daemon,
                format!(
                    "the daemon's socket is held by {}",
                    process::user_name(peer)
                ),
            ));
        }
        Ok(Some(Connection {
            pid: process::peer_process(&stream),
            reader: BufReader::new(stream),
            partial: Vec::new(),
        }))
    }

    fn hello(&mut self) -> Result<Hello, Failure> {
        let stream = self.reader.get_ref();
        stream
            .set_read_timeout(Some(GREETING_LOOK))
            .map_err(|error| trouble(&error))?;
        let deadline = Instant::now() + GREETING_PATIENCE;
        loop {
            if let Some(line) = self.line()? {
                return parse(&line);
            }
            let is_stopped = self.pid.is_some_and(process::is_stopped);
            if is_stopped || Instant::now() > deadline {
                let how = format!("does not answer within {} s", GREETING_PATIENCE.as_secs());
                return Err(silent(self.pid, &how));
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
            .map_err(|error| trouble(&error))
    }

    /// Waits for the next message; hangs up when the user wants to stop.
    fn receive(&mut self, progress: &dyn Progress) -> Result<Answer, Failure> {
        self.reader
            .get_ref()
            .set_read_timeout(Some(LOOK))
            .map_err(|error| trouble(&error))?;
        let mut watch = Watch::new(self.pid);
        let mut is_cancelled = false;
        loop {
            if let Some(line) = self.line()? {
                return parse(&line);
            }
            watch.look()?;
            if progress.is_cancelled() && !is_cancelled {
                is_cancelled = true;
                self.reader
                    .get_ref()
                    .shutdown(std::net::Shutdown::Write)
                    .map_err(|error| trouble(&error))?;
                // The daemon's last word tells whether it stopped or was done already.
            }
        }
    }

    /// Returns the next line, or `None` when it did not come in time.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.reader.read_until(b'\n', &mut self.partial) {
            Ok(_) if self.partial.ends_with(b"\n") => Ok(Some(std::mem::take(&mut self.partial))),
            Ok(_) => Err(
                Failure::new(Kind::Daemon, "the daemon ended without an answer")
                    .hint("its log may tell why (envfs paths names it)"),
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
            Err(error) => Err(trouble(&error)),
        }
    }

    /// Waits until the daemon is no more.
    fn wait_for_end(mut self, slow: &dyn Fn()) -> Result<(), Failure> {
        let stream = self.reader.get_ref().try_clone();
        let stream = stream.map_err(|error| trouble(&error))?;
        let limited = stream.set_read_timeout(Some(SLOW));
        limited.map_err(|error| trouble(&error))?;
        let mut watch = Watch::new(self.pid);
        let mut is_told = false;
        let mut rest = [0; 64];
        loop {
            match self.reader.read(&mut rest).map_err(|error| error.kind()) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(io::ErrorKind::Interrupted) => {}
                // It ended with something of ours unread: it has ended all the same.
                Err(io::ErrorKind::ConnectionReset) => return Ok(()),
                Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if !std::mem::replace(&mut is_told, true) {
                        slow();
                    }
                    watch.look()?;
                }
                Err(kind) => return Err(trouble(&kind.into())),
            }
        }
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(line)
        .map_err(|error| Failure::new(Kind::Daemon, format!("the daemon's words are odd: {error}")))
}
