//! Private sessions: mounts in namespaces of their own, which commands enter.
//!
//! The first command of a scope (a job step, or anything else with control groups of its own)
//! starts a supervisor, which serves the mount; further commands of that scope enter the same
//! namespaces. They find the supervisor by a socket in the directory of sockets, named after the
//! [`Key`] of the session. A lock beside it elects the command that starts the supervisor, which
//! then keeps the lock as long as it can be joined.

mod supervisor;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fs2::FileExt;
use serde::{Deserialize, Serialize};

pub(crate) use supervisor::{Inside, Members, MountRoot, Unserved, run};

use super::client::{connect_within, unresponsive};
use super::direct;
use super::failure::{Failure, Kind};
use super::protocol::StartReport;
use super::runtime::RuntimeDir;
use super::spec::DirectMount;
use super::target::Target;
use crate::sys::cgroup::Scope;
use crate::sys::mount::private::{EnterError, Isolation, Namespaces, own_namespace};
use crate::sys::text::Text;
use crate::sys::{descriptors, process, regular};

/// The version of the messages between supervisors and commands.
const PROTOCOL: u32 = 1;
/// The time limit for another command that starts the supervisor.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for the greeting of a supervisor.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which a command that waits for the greeting checks whether the supervisor is
/// stopped.
const GREETING_POLL: Duration = Duration::from_millis(500);
/// The longest pause between two attempts to join.
const MAX_PAUSE: Duration = Duration::from_millis(20);
/// The size limit of a greeting, in bytes.
const GREETING_LIMIT: usize = 4096;
/// The prefix of the names of sockets and locks.
const FILES: &str = "ns-";

/// The word for the kind of a session that shows and keeps the changes of the environment.
pub(crate) const WRITABLE: &str = "writable";

/// What the processes of one session have in common.
#[derive(Debug)]
pub(crate) struct Key<'a> {
    /// The environment.
    pub target: &'a Target,
    /// The word for the kind of the session.
    pub kind: &'a str,
    /// The revision, if the user asked for it.
    pub pinned: Option<i64>,
    /// The current revision. Processes of one job share the revision of the first one.
    pub current: i64,
}

impl Key<'_> {
    /// Returns the name of the files of the session.
    fn stem(&self, isolation: Isolation) -> Result<String, Failure> {
        let failed = |error| Failure::io("cannot identify the mount namespace", &error);
        let scope = Scope::own();
        let revision = match (self.pinned, scope.is_job || self.kind == WRITABLE) {
            (Some(number), _) => format!("pinned {number}"),
            (None, true) => String::from("any"),
            (None, false) => format!("current {}", self.current),
        };
        let user_namespace = fs::metadata("/proc/self/ns/user").map_err(failed)?.ino();
        let parts = serde_json::json!([
            PROTOCOL,
            self.target.id,
            Text::from(self.target.layout.home()),
            Text::from(&*self.target.prefix),
            self.kind,
            revision,
            scope.name,
            own_namespace().map_err(failed)?,
            user_namespace,
            isolation,
            process::user_id(),
        ]);
        let hash = blake3::hash(parts.to_string().as_bytes()).to_hex();
        Ok(format!("{FILES}{}", hash.get(..32).unwrap_or_default()))
    }
}

/// The files through which commands find a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    dir: Text,
    stem: String,
    /// Whether the directory is for this session alone.
    is_own_dir: bool,
}

impl Place {
    /// Returns the place of the session with this key, or of one that no other command joins.
    fn choose(
        runtime: &RuntimeDir,
        key: Option<&Key<'_>>,
        isolation: Isolation,
    ) -> Result<Place, Failure> {
        let stem = match key {
            Some(key) => key.stem(isolation)?,
            None => {
                let uuid = process::new_uuid()
                    .map_err(|error| Failure::io("cannot create an identity", &error))?;
                format!("{FILES}{}", uuid.replace('-', ""))
            }
        };
        let dir = runtime.create()?;
        let (path, is_own_dir) = dir.into_path();
        Ok(Place {
            dir: path.into(),
            stem,
            is_own_dir,
        })
    }

    fn socket(&self) -> PathBuf {
        self.dir.as_path().join(format!("{}.sock", self.stem))
    }

    fn lock(&self) -> PathBuf {
        self.dir.as_path().join(format!("{}.lock", self.stem))
    }

    /// Takes the lock, or returns `None` if another process has it.
    fn try_lock(&self) -> Result<Option<File>, Failure> {
        let path = self.lock();
        let locked = try_lock(&path, regular::open_or_create);
        locked.map_err(|error| Failure::io(format!("cannot lock {}", path.display()), &error))
    }

    /// Removes the files. The caller holds the lock, and releases it afterwards.
    fn remove(&self) {
        remove(&self.socket());
        remove(&self.lock());
        if self.is_own_dir
            && let Err(error) = fs::remove_dir(self.dir.as_path())
        {
            tracing::debug!(%error, "cannot remove the directory of the session");
        }
    }
}

/// Opens and locks a file. Returns `None` if another process has locked it, or has removed it.
fn try_lock(path: &Path, open: impl Fn(&Path) -> io::Result<File>) -> io::Result<Option<File>> {
    let file = open(path)?;
    match file.try_lock_exclusive() {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    }
    let own = file.metadata()?;
    let is_current = fs::symlink_metadata(path)
        .is_ok_and(|meta| (meta.dev(), meta.ino()) == (own.dev(), own.ino()));
    Ok(is_current.then_some(file))
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::debug!(%error, path = %path.display(), "cannot remove a file of a session");
        }
        _ => {}
    }
}

/// Removes the files of supervisors that were killed.
fn remove_remains(place: &Place) {
    let entries = fs::read_dir(place.dir.as_path()).into_iter().flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".lock")) else {
            continue;
        };
        if !stem.starts_with(FILES) || stem == place.stem {
            continue;
        }
        let other = Place {
            stem: stem.to_owned(),
            is_own_dir: false,
            dir: place.dir.clone(),
        };
        if let Ok(Some(_lock)) = try_lock(&entry.path(), regular::open) {
            other.remove();
        }
    }
}

/// What a supervisor sends to a command, with the descriptors of its namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// The process of the supervisor.
    pub pid: u32,
    /// The revision that the session shows.
    pub revision: Option<i64>,
}

/// The parameters of a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PrivateSpec {
    place: Place,
    isolation: Isolation,
    revision: Option<i64>,
}

/// A session that this process has entered.
#[derive(Debug)]
pub(crate) struct Entered {
    /// The greeting of its supervisor.
    pub greeting: Greeting,
    /// The report of the start, if this process has started the supervisor.
    pub started: Option<StartReport>,
}

/// Enters the session with this key; without a key, a new session that no other command joins.
/// Calls `start` unless its supervisor runs. Must be called while there is only one thread. After a
/// failure to enter, this process must end.
pub(crate) fn enter(
    runtime: &RuntimeDir,
    key: Option<&Key<'_>>,
    revision: Option<i64>,
    start: &dyn Fn(&PrivateSpec, File) -> Result<StartReport, Failure>,
) -> Result<Entered, Failure> {
    let isolation = Isolation::needed();
    let spec = PrivateSpec {
        place: Place::choose(runtime, key, isolation)?,
        isolation,
        revision,
    };
    let deadline = Instant::now() + START_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(entered) = join(&spec.place)? {
            return entered.enter(None);
        }
        if let Some(lock) = spec.place.try_lock()? {
            // Another command may have started the supervisor in between.
            if let Some(entered) = join(&spec.place)? {
                return entered.enter(None);
            }
            remove_remains(&spec.place);
            let report = start(&spec, lock).inspect_err(|_| {
                // Unless another command has started one by now.
                if let Ok(Some(_lock)) = spec.place.try_lock() {
                    spec.place.remove();
                }
            })?;
            let joined = join(&spec.place)?.ok_or_else(|| {
                Failure::new(
                    Kind::Daemon,
                    "the supervisor of the session ended as soon as it was ready",
                )
            })?;
            return joined.enter(Some(report));
        }
        if Instant::now() > deadline {
            return Err(Failure::new(
                Kind::Busy,
                format!(
                    "another command has been starting this session for more than {} s",
                    START_TIMEOUT.as_secs()
                ),
            )
            .hint("wait until it has finished, or end it"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Starts the supervisor of a read-only or ephemeral session, which keeps the lock, and waits until
/// it can be joined.
pub(crate) fn start_direct(
    what: &DirectMount,
    spec: &PrivateSpec,
    lock: File,
    slow: &dyn Fn(),
) -> Result<StartReport, Failure> {
    let text = spec.to_word()?;
    let words = [OsStr::new(PRIVATE), OsStr::new(&text)];
    direct::start_daemon(what, &words, Stdio::from(lock), slow)
}

/// The option that tells a daemon to mount privately.
pub(super) const PRIVATE: &str = "--private";

impl PrivateSpec {
    /// Returns the description as a word for the command line of a daemon.
    pub(super) fn to_word(&self) -> Result<String, Failure> {
        serde_json::to_string(self).map_err(|error| Failure::of(Kind::Internal, &error))
    }
}

/// A supervisor's answer.
#[derive(Debug)]
struct Joined {
    greeting: Greeting,
    namespaces: Namespaces,
}

impl Joined {
    fn enter(self, started: Option<StartReport>) -> Result<Entered, Failure> {
        self.namespaces.enter().map_err(|error| match &error {
            EnterError::System { .. } => Failure::of(Kind::System, &error),
            EnterError::Chroot => Failure::of(Kind::Usage, &error),
        })?;
        Ok(Entered {
            greeting: self.greeting,
            started,
        })
    }
}

/// Connects to the supervisor, which counts this process from now on. Returns `None` if there is
/// none, or if it is ending.
fn join(place: &Place) -> Result<Option<Joined>, Failure> {
    let path = place.socket();
    let doing = || format!("cannot connect to {}", path.display());
    let socket = match connect_within(&path, GREETING_TIMEOUT) {
        Ok(socket) => socket,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(Failure::io(doing(), &error)),
    };
    socket
        .set_read_timeout(Some(GREETING_POLL))
        .map_err(|error| Failure::io(doing(), &error))?;
    let Some((text, files)) = receive(&socket)? else {
        return Ok(None);
    };
    let malformed = || {
        Failure::new(
            Kind::Daemon,
            "malformed message from the supervisor of the session",
        )
    };
    Ok(Some(Joined {
        greeting: serde_json::from_slice(&text).map_err(|_| malformed())?,
        namespaces: Namespaces::from_files(files).ok_or_else(malformed)?,
    }))
}

/// A text and the files that came with it.
type Message = (Vec<u8>, Vec<OwnedFd>);

/// Receives the greeting. Returns `None` if the supervisor is ending.
fn receive(socket: &UnixStream) -> Result<Option<Message>, Failure> {
    let pid = process::peer_process(socket);
    let deadline = Instant::now() + GREETING_TIMEOUT;
    let mut buffer = vec![0; GREETING_LIMIT];
    loop {
        match descriptors::receive(socket, &mut buffer) {
            Ok((0, _)) => return Ok(None),
            Ok((length, files)) => {
                buffer.truncate(length);
                return Ok(Some((buffer, files)));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > deadline || pid.is_some_and(process::is_stopped) {
                    return Err(unresponsive(pid, "does not respond"));
                }
            }
            Err(error) => return Err(Failure::io("cannot join the session", &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn place(dir: &Path, stem: &str) -> Place {
        Place {
            dir: dir.into(),
            stem: format!("{FILES}{stem}"),
            is_own_dir: false,
        }
    }

    #[test]
    fn one_of_several_commands_gets_the_lock_and_a_removed_lock_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), "a");
        let first = place.try_lock().unwrap().unwrap();
        assert!(place.try_lock().unwrap().is_none());
        place.remove();
        // The next session has a lock of its own while the first one ends.
        let second = place.try_lock().unwrap().unwrap();
        drop(first);
        assert!(place.try_lock().unwrap().is_none());
        drop(second);
        assert!(join(&place).unwrap().is_none());
    }

    #[test]
    fn files_of_killed_supervisors_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let [own, dead, live] = ["own", "dead", "live"].map(|stem| place(dir.path(), stem));
        let _own = own.try_lock().unwrap().unwrap();
        let _live = live.try_lock().unwrap().unwrap();
        drop(dead.try_lock().unwrap());
        for other in [&own, &dead, &live] {
            fs::write(other.socket(), "").unwrap();
        }
        fs::write(dir.path().join("1234.lock"), "").unwrap();
        remove_remains(&own);
        for (path, exists) in [
            (own.lock(), true),
            (live.lock(), true),
            (live.socket(), true),
            (dead.lock(), false),
            (dead.socket(), false),
            (dir.path().join("1234.lock"), true),
        ] {
            assert_eq!(path.exists(), exists, "{}", path.display());
        }
    }
}
