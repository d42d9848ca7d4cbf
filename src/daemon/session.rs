//! Sessions: mounts of a committed revision of an environment, beside its writable mount.
//!
//! A session is a mount of an image without a store ([`direct`]), read-only or with a directory for
//! changes that is removed at the end. It takes no lock. Its source in the mount table names its
//! kind, environment and revision, so it is never taken for the writable mount, and commands need
//! no control socket to find and to end it.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{RecvTimeoutError, Sender};
use serde::{Deserialize, Serialize};

use super::direct::{self, DirectMount};
use super::failure::{Failure, Kind};
use super::host;
use super::idle::Idle;
use super::lifecycle::{self, StartReport, Target, detach, prepare_prefix};
use super::private::{self, PrivateSpec};
use super::protocol::Unmounted;
use super::runtime::RuntimeDir;
use crate::environment::{
    EnvLock, HEARTBEAT, HostProcess, Layout, NotedSession, SessionKind, SessionNote, SessionNotes,
    WrittenNote,
};
use crate::fuse::Counters;
use crate::fuse::session::{Session, StopHandle};
use crate::object::Timestamp;
use crate::sys::mount::{MountFlags, Rights, UnmountMode};
use crate::sys::mountinfo::{self, Health, MountEntry};
use crate::sys::process::{self, ProcessHandle};
use crate::sys::text::{Text, quoted};
use crate::sys::walk;

/// The beginning of the name of a directory for changes that are dropped.
const UPPER_PREFIX: &str = "envfs-session-";
/// The age up to which such a directory without a lock is assumed to be new.
const LOCK_GRACE: Duration = Duration::from_secs(60);
/// How long the daemon of an unmounted session may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What the mount table says about a session: `envfs-KIND:NAME@REVISION:ENVIRONMENT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionSource {
    /// Read-only or ephemeral.
    pub kind: SessionKind,
    /// The name of the environment when the session began.
    pub name: String,
    /// The revision.
    pub revision: i64,
    /// The id of the environment.
    pub environment: String,
}

impl SessionSource {
    /// Parses the source of a mount. Returns `None` if it is not a session.
    pub(crate) fn parse(source: &str) -> Option<SessionSource> {
        let (word, rest) = source.split_once(':')?;
        let kind = [SessionKind::ReadOnly, SessionKind::Ephemeral]
            .into_iter()
            .find(|kind| word.strip_prefix("envfs-") == Some(kind.word()))?;
        let (place, environment) = rest.split_once(':')?;
        let (name, revision) = place.split_once('@')?;
        Some(SessionSource {
            kind,
            name: name.to_owned(),
            revision: revision.parse().ok()?,
            environment: environment.to_owned(),
        })
    }
}

impl fmt::Display for SessionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.word();
        let SessionSource {
            name,
            revision,
            environment,
            ..
        } = self;
        write!(f, "envfs-{kind}:{name}@{revision}:{environment}")
    }
}

/// A session in the mount table of this process.
#[derive(Debug, Clone)]
pub(crate) struct SessionMount {
    /// Its mount.
    pub entry: MountEntry,
    /// What it shows.
    pub source: SessionSource,
}

impl SessionMount {
    fn of(entry: MountEntry) -> Option<SessionMount> {
        let source = SessionSource::parse(entry.trusted_source()?)?;
        Some(SessionMount { entry, source })
    }

    /// Returns a description for messages.
    pub(crate) fn describe(&self) -> String {
        let SessionSource { name, revision, .. } = &self.source;
        let article = match self.source.kind {
            SessionKind::Ephemeral => "an",
            _ => "a",
        };
        format!(
            "{article} {} session of {name}@{revision}",
            self.source.kind.word()
        )
    }
}

/// Returns the sessions in the mount table, in order of mounting.
pub(crate) fn mounts() -> Result<Vec<SessionMount>, Failure> {
    let table = mountinfo::read().map_err(|e| Failure::io("cannot read the mount table", &e))?;
    Ok(table.into_iter().filter_map(SessionMount::of).collect())
}

/// Returns the session that is mounted on top at a path.
pub(crate) fn at(path: &Path) -> Result<Option<SessionMount>, Failure> {
    let at = mountinfo::at(path).map_err(|e| Failure::io("cannot read the mount table", &e))?;
    Ok(at.and_then(SessionMount::of))
}

/// Returns the notes of this user's sessions on this host.
pub(crate) fn noted_here(runtime: &RuntimeDir) -> Vec<NotedSession> {
    let Some(dir) = runtime.sessions() else {
        return Vec::new();
    };
    SessionNotes::new(dir).read().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the notes of sessions");
        Vec::new()
    })
}

/// A session to begin.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Read-only or ephemeral.
    pub kind: SessionKind,
    /// The revision.
    pub revision: i64,
    /// Its image.
    pub image: PathBuf,
    /// Where to mount it: an absolute path, as in the mount table.
    pub mount_point: PathBuf,
    /// The directory in which an ephemeral session makes its directory for changes.
    pub upper_base: PathBuf,
    /// The rights of the user in the mount.
    pub rights: Rights,
    /// The process with which the session ends, unless it is unmounted before.
    pub ends_with: Option<u32>,
    /// How long it may be unused before it ends.
    pub idle: Option<Duration>,
}

impl Wanted {
    fn source(&self, target: &Target) -> SessionSource {
        SessionSource {
            kind: self.kind,
            name: target.name.clone(),
            revision: self.revision,
            environment: target.id.clone(),
        }
    }
}

/// How a session began.
#[derive(Debug)]
pub(crate) enum Begun {
    /// A daemon was started.
    New(StartReport),
    /// It was mounted there already.
    Joined,
}

/// Begins a session, unless the same is mounted at the path already.
pub(crate) fn begin(
    target: &Target,
    runtime: &RuntimeDir,
    wanted: &Wanted,
    slow: &dyn Fn(),
) -> Result<Begun, Failure> {
    let _lock = runtime.lock(&target.id, target.layout.home())?;
    remove_remains(runtime, &target.layout);
    let path = &wanted.mount_point;
    let present =
        mountinfo::at(path).map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(present) = present {
        match SessionMount::of(present.clone()) {
            Some(session) => match session.entry.health() {
                Health::Dead => {
                    tracing::info!(path = %path.display(), "detaching a dead session");
                    detach(std::slice::from_ref(&session.entry))?;
                }
                Health::Unresponsive => return Err(unresponsive(&session)),
                Health::Healthy if can_join(&session, target, runtime, wanted) => {
                    return Ok(Begun::Joined);
                }
                Health::Healthy => return Err(taken(path, &session).hint(ELSEWHERE)),
            },
            None if present.environment_id() == Some(&target.id) => {
                return Err(mounted_writable(target, wanted));
            }
            None => {}
        }
    }
    prepare_prefix(path).map_err(|failure| failure.hint(ELSEWHERE))?;
    let what = direct_mount(target, runtime, wanted)?;
    let started = direct::start(&what, slow);
    if started.is_err()
        && let Some(spec) = &what.session
    {
        spec.remove_upper(&what);
    }
    started.map(Begun::New)
}

/// Starts the supervisor of a private session, which keeps the lock. The mount point must be free,
/// or have a mount of the environment.
pub(crate) fn start_private(
    target: &Target,
    runtime: &RuntimeDir,
    wanted: &Wanted,
    private: &PrivateSpec,
    lock: File,
    slow: &dyn Fn(),
) -> Result<StartReport, Failure> {
    remove_left_here(runtime);
    let mut what = direct_mount(target, runtime, wanted)?;
    if let Some(spec) = &mut what.session {
        spec.is_private = true;
    }
    let started = private::start_direct(&what, private, lock, slow);
    if started.is_err()
        && let Some(spec) = &what.session
    {
        spec.remove_upper(&what);
    }
    started
}

const ELSEWHERE: &str = "or mount it at another path: envfs mount --read-only NAME PATH";

/// Makes a path free for the writable mount: detaches a session whose daemon has ended. Fails if a
/// session is mounted there.
pub(super) fn make_way(path: &Path) -> Result<(), Failure> {
    let Some(session) = at(path)? else {
        return Ok(());
    };
    match session.entry.health() {
        Health::Dead => detach(std::slice::from_ref(&session.entry)),
        Health::Unresponsive => Err(unresponsive(&session)),
        Health::Healthy => {
            let SessionSource {
                kind,
                name,
                revision,
                ..
            } = &session.source;
            let word = kind.word();
            Err(taken(path, &session).hint(format!("or use it: {name}@{revision} with --{word}")))
        }
    }
}

/// Returns whether a mounted session is the wanted one. A session that ends with its command is not
/// shared.
fn can_join(
    session: &SessionMount,
    target: &Target,
    runtime: &RuntimeDir,
    wanted: &Wanted,
) -> bool {
    let source = &session.source;
    let is_same = source.kind == wanted.kind
        && source.revision == wanted.revision
        && source.environment == target.id;
    let is_owned = || {
        let note = note_of(session, runtime);
        note.is_none_or(|noted| noted.note.ends_with.is_some())
    };
    is_same && (wanted.kind != SessionKind::Ephemeral || wanted.ends_with.is_none() && !is_owned())
}

/// Returns the note of a mounted session.
pub(crate) fn note_of(session: &SessionMount, runtime: &RuntimeDir) -> Option<NotedSession> {
    let mut notes = noted_here(runtime);
    notes.retain(|noted| {
        let note = &noted.note;
        noted.is_live
            && !note.is_private
            && note.mount_point.as_path() == session.entry.mount_point
            && note.environment == session.source.environment
            && note.revision == session.source.revision
            && note.kind == session.source.kind
    });
    notes.pop()
}

fn taken(path: &Path, session: &SessionMount) -> Failure {
    let message = format!("{} is mounted at {}", session.describe(), path.display());
    let at = quoted(&session.entry.mount_point);
    Failure::new(Kind::Conflict, message).hint(format!("end it: envfs unmount {at}"))
}

/// Returns the failure for the prefix of an environment that shows its changes.
fn mounted_writable(target: &Target, wanted: &Wanted) -> Failure {
    let name = &target.name;
    let message = format!(
        "{name} is mounted writable at {}, so no {} session can be mounted there",
        wanted.mount_point.display(),
        wanted.kind.word()
    );
    Failure::new(Kind::Conflict, message)
        .hint(format!("unmount it: envfs unmount {name}"))
        .hint(format!(
            "or mount it at another path: envfs mount --{} {name}@{} PATH",
            wanted.kind.word(),
            wanted.revision
        ))
}

fn unresponsive(session: &SessionMount) -> Failure {
    let at = session.entry.mount_point.display();
    let message = format!(
        "{at}: the daemon of {} does not respond",
        session.describe()
    );
    Failure::new(Kind::Daemon, message).hint(format!("envfs unmount --lazy {at} detaches it"))
}

/// Returns the description of the mount of a session. Creates the directory for its changes.
pub(crate) fn direct_mount(
    target: &Target,
    runtime: &RuntimeDir,
    wanted: &Wanted,
) -> Result<DirectMount, Failure> {
    let upper = match wanted.kind {
        SessionKind::Ephemeral => Some(create_upper(&wanted.upper_base)?),
        _ => None,
    };
    let file = wanted.image.file_name().unwrap_or_default();
    let home = target.layout.sessions();
    let notes = runtime.sessions().into_iter().chain([home]);
    Ok(DirectMount {
        images: vec![wanted.image.as_path().into()],
        offset: None,
        upper: upper.map(Text::from),
        state: None,
        mount_point: wanted.mount_point.as_path().into(),
        source: wanted.source(target).to_string(),
        subtype: String::from("envfs"),
        flags: MountFlags {
            read_only: wanted.kind == SessionKind::ReadOnly,
            ..MountFlags::default()
        },
        // As for every mount by root.
        allow_other: process::user_id() == 0 && wanted.rights == Rights::Own,
        fakeroot: wanted.rights == Rights::Root,
        session: Some(SessionSpec {
            kind: wanted.kind,
            name: target.name.clone(),
            environment: target.id.clone(),
            revision: wanted.revision,
            image: file.to_string_lossy().into_owned(),
            notes: notes.map(Text::from).collect(),
            ends_with: wanted.ends_with,
            idle_seconds: wanted.idle.map(|idle| idle.as_secs()),
            is_private: false,
        }),
    })
}

/// Creates a directory for changes that are dropped.
fn create_upper(base: &Path) -> Result<PathBuf, Failure> {
    let created = tempfile::Builder::new()
        .prefix(UPPER_PREFIX)
        .tempdir_in(base)
        .map_err(|error| {
            let doing = format!(
                "cannot create a directory for changes in {}",
                base.display()
            );
            Failure::of_named(doing, &error).hint("choose another directory: --upper-dir DIR")
        })?;
    let path = fs::canonicalize(created.path())
        .map_err(|error| Failure::io(format!("cannot find {}", base.display()), &error))?;
    drop(created.keep());
    Ok(path)
}

/// Removes what daemons on this host left behind because they were killed: directories for changes,
/// and notes here and in the home of an environment.
pub(crate) fn remove_remains(runtime: &RuntimeDir, layout: &Layout) {
    remove_left_here(runtime);
    // Another process may be removing them as well, and the home may not be writable.
    for noted in SessionNotes::new(layout.sessions())
        .read()
        .unwrap_or_default()
    {
        if !noted.is_live && noted.note.is_visible() {
            drop(fs::remove_file(&noted.path));
        }
    }
}

fn remove_left_here(runtime: &RuntimeDir) {
    for noted in noted_here(runtime) {
        if noted.is_live || !noted.note.is_visible() {
            continue;
        }
        if let Some(upper) = &noted.note.upper
            && let Err(error) = remove_left(upper.as_path())
        {
            tracing::warn!(%error, path = %upper.as_path().display(), "cannot remove the changes of a session");
            continue;
        }
        if let Err(error) = fs::remove_file(&noted.path) {
            tracing::debug!(%error, path = %noted.path.display(), "cannot remove a note");
        }
    }
}

/// Removes a directory for changes that no process uses.
fn remove_left(upper: &Path) -> std::io::Result<()> {
    let meta = match fs::symlink_metadata(upper) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    let is_ours = meta.is_dir()
        && meta.uid() == process::user_id()
        && upper
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(UPPER_PREFIX));
    if !is_ours {
        return Ok(());
    }
    let layout = Layout::new(upper);
    let is_new = || {
        let age = meta
            .modified()
            .map(|time| SystemTime::now().duration_since(time));
        !layout.lock().exists() && age.is_ok_and(|age| age.is_ok_and(|age| age < LOCK_GRACE))
    };
    if is_new() {
        return Ok(());
    }
    // Held until the files are gone.
    let Ok(_lock) = EnvLock::try_lock(&layout, "clean") else {
        return Ok(());
    };
    walk::remove_tree(upper)
}

/// Ends a session. If it is in use, fails with the processes that use it, or detaches it.
pub(crate) fn end(
    session: &SessionMount,
    runtime: &RuntimeDir,
    mode: UnmountMode,
) -> Result<Unmounted, Failure> {
    let entry = &session.entry;
    if entry.health() == Health::Dead {
        detach(std::slice::from_ref(entry))?;
        remove_left_here(runtime);
        return Ok(Unmounted::default());
    }
    let daemon = note_of(session, runtime)
        .filter(|noted| noted.note.is_visible())
        .and_then(|noted| ProcessHandle::open(noted.note.process.pid).ok());
    let done = match lifecycle::unmount_directly(entry, mode) {
        // It has ended by itself meanwhile.
        Err(_) if mounts()?.iter().all(|other| other.entry.id != entry.id) => Unmounted::default(),
        done => done?,
    };
    if mode == UnmountMode::Plain
        && let Some(daemon) = daemon
    {
        // A copy of the mount in another namespace may keep it running.
        if !daemon.wait(END_TIMEOUT).unwrap_or(true) {
            tracing::info!("the daemon of a session still runs");
        }
    }
    Ok(done)
}

/// The session that a daemon serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SessionSpec {
    /// Read-only or ephemeral.
    pub kind: SessionKind,
    /// The name of the environment.
    pub name: String,
    /// Its id.
    pub environment: String,
    /// The revision.
    pub revision: i64,
    /// The file name of its image in the home.
    pub image: String,
    /// The directories in which the session notes itself, where it may.
    pub notes: Vec<Text>,
    /// The process with which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_with: Option<u32>,
    /// How long it may be unused before it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// Whether it is mounted in a namespace of its own.
    #[serde(default)]
    pub is_private: bool,
}

impl SessionSpec {
    /// Ends the session when it is not used, if that is wanted.
    pub(super) fn end_when_idle(
        &self,
        what: &DirectMount,
        session: &Session,
        counters: Arc<Counters>,
    ) {
        // A private session ends with its last process.
        let Some(seconds) = self.idle_seconds.filter(|_| !self.is_private) else {
            return;
        };
        let idle = Idle {
            limit: Duration::from_secs(seconds),
            mount_point: what.mount_point.as_path().to_path_buf(),
            source: what.source.clone(),
            counters,
            stop_handle: session.stop_handle(),
            runtime: RuntimeDir::open(),
        };
        idle.watch();
    }

    fn note(&self, what: &DirectMount) -> SessionNote {
        SessionNote {
            kind: self.kind,
            name: self.name.clone(),
            environment: self.environment.clone(),
            revision: self.revision,
            image: self.image.clone(),
            mount_point: what.mount_point.clone(),
            process: HostProcess::current(),
            pid_namespace: process::pid_namespace(),
            user: process::user_id(),
            since: Timestamp::now().secs,
            upper: what.upper.clone(),
            ends_with: self.ends_with,
            is_private: self.is_private,
        }
    }

    /// Ends the session with the process that it belongs to.
    pub(super) fn watch(
        &self,
        mount_point: &Path,
        source: &str,
        stop_handle: &StopHandle,
    ) -> Option<JoinHandle<()>> {
        let process = match ProcessHandle::open(self.ends_with?) {
            Ok(process) => process,
            Err(error) => {
                tracing::warn!(%error, "the process of the session cannot be watched");
                return None;
            }
        };
        let (mount_point, source) = (mount_point.to_path_buf(), source.to_owned());
        let stop_handle = stop_handle.clone();
        let watching = std::thread::Builder::new()
            .name(String::from("command"))
            .spawn(move || {
                loop {
                    match process.wait(HEARTBEAT) {
                        Ok(false) => {}
                        Ok(true) => return host::end(&mount_point, &source, &stop_handle),
                        Err(error) => return tracing::warn!(%error, "cannot wait for a process"),
                    }
                }
            });
        watching
            .inspect_err(|error| tracing::warn!(%error, "cannot start a thread"))
            .ok()
    }

    /// Removes the directory for changes.
    pub(super) fn remove_upper(&self, what: &DirectMount) {
        if self.kind == SessionKind::Ephemeral
            && let Some(upper) = &what.upper
            && let Err(error) = walk::remove_tree(upper.as_path())
        {
            tracing::warn!(%error, path = %upper.as_path().display(), "cannot remove the changes");
        }
    }
}

/// The notes of the session of this daemon, renewed by a thread. Removed when dropped.
#[derive(Debug)]
pub(super) struct Notes {
    /// Dropping it ends the thread.
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

impl Notes {
    /// Writes the notes where that is possible. A session does not depend on them.
    pub(super) fn write(spec: &SessionSpec, what: &DirectMount) -> Notes {
        let note = spec.note(what);
        let mut written: Vec<WrittenNote> = Vec::new();
        for dir in &spec.notes {
            match SessionNotes::new(dir.as_path().to_path_buf()).write(&note) {
                Ok(one) => written.push(one),
                Err(error) => {
                    tracing::info!(path = %dir.as_path().display(), %error, "the session is not noted here");
                }
            }
        }
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let renewal = std::thread::Builder::new()
            .name(String::from("heartbeat"))
            .spawn(move || {
                while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                    for note in &written {
                        if let Err(error) = note.renew() {
                            tracing::warn!(%error, "cannot renew the note of the session");
                        }
                    }
                }
            });
        Notes {
            stop: Some(stop),
            renewal: renewal
                .inspect_err(|error| tracing::warn!(%error, "cannot start a thread"))
                .ok(),
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewal) = self.renewal.take()
            && renewal.join().is_err()
        {
            tracing::error!("the thread that renews notes panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_source_names_the_session_and_no_other_mount_is_one() {
        for kind in [SessionKind::ReadOnly, SessionKind::Ephemeral] {
            let source = SessionSource {
                kind,
                name: String::from("a.b-c"),
                revision: 12,
                environment: String::from("6f1c-2"),
            };
            assert_eq!(SessionSource::parse(&source.to_string()), Some(source));
        }
        for other in [
            "envfs:6f1c",
            "envfs-writable:a@1:6f1c",
            "envfs-read-only:a@x:6f1c",
            "envfs-read-only:6f1c",
            "read-only:a@1:6f1c",
            "",
        ] {
            assert_eq!(SessionSource::parse(other), None, "{other}");
        }
    }

    #[test]
    fn only_directories_that_no_daemon_uses_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("precious");
        fs::create_dir(&other).unwrap();
        remove_left(&other).unwrap();
        assert!(other.exists());
        let upper = create_upper(dir.path()).unwrap();
        remove_left(&upper).unwrap();
        assert!(upper.exists(), "it is new");
        let lock = EnvLock::try_lock(&Layout::new(&upper), "mounted").unwrap();
        remove_left(&upper).unwrap();
        assert!(upper.exists(), "it is in use");
        drop(lock);
        remove_left(&upper).unwrap();
        assert!(!upper.exists());
        remove_left(&upper).unwrap();
        std::os::unix::fs::symlink(&other, &upper).unwrap();
        remove_left(&upper).unwrap();
        assert!(other.exists() && upper.is_symlink());
    }
}
