//! Sessions: mounts of a committed revision of an environment, beside its writable mount.
//!
//! A session is a mount of an image without a store ([`direct`]), read-only or with a directory for
//! changes that is removed at the end. It takes no lock. Its source in the mount table names its
//! kind, environment and revision, so it is never taken for the writable mount, and commands need
//! no control socket to find and to end it.
//!
//! This file is the part of commands, which begin, find and end sessions. `serve` is the part of
//! the daemon, `source` the name in the mount table, and `remains` removes what killed daemons left
//! behind.

mod remains;
pub(super) mod serve;
mod source;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::direct;
use super::failure::{Failure, Kind};
use super::prefix::prepare_prefix;
use super::private::{self, PrivateSpec};
use super::protocol::{StartReport, Unmounted};
use super::runtime::RuntimeDir;
use super::spec::{DirectMount, SessionSpec};
use super::target::Target;
use super::unmount::{self, detach};
use crate::environment::{
    CacheConfig, Layout, NotedSession, Poll, SessionKind, SessionNote, SessionNotes,
};
use crate::sys::cgroup::Scope;
use crate::sys::holders;
use crate::sys::mount::{MountFlags, Rights, UnmountMode};
use crate::sys::mountinfo::{self, Health, MountEntry};
use crate::sys::process::{self, ProcessHandle};
use crate::sys::text::{Text, quoted};

pub(crate) use remains::{SHARED_MEMORY, remove_remains};
pub(crate) use source::SessionSource;

use remains::{create_upper, remove_left_here};

/// How long the daemon of an unmounted session may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which a command looks whether a session that is ending is still mounted.
const END_POLL: Duration = Duration::from_millis(20);

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

/// Returns the topmost mount at a path if it is a session.
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
    /// The bytes that its changes may take, if there is a limit.
    pub limit: Option<u64>,
    /// The rights of the user in the mount.
    pub rights: Rights,
    /// The process with which the session ends, unless it is unmounted before.
    pub ends_with: Option<u32>,
    /// How long it may be unused before it ends.
    pub idle: Option<Duration>,
    /// The caches of its mount.
    pub cache: CacheConfig,
    /// How its daemon waits for requests.
    pub poll: Poll,
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
    /// The session was already mounted there.
    Joined,
}

/// Begins a session, unless it is already mounted at the path.
pub(crate) fn begin(
    target: &Target,
    runtime: &RuntimeDir,
    wanted: &Wanted,
    slow: &dyn Fn(),
) -> Result<Begun, Failure> {
    let _lock = runtime.lock(&target.id, target.layout.home())?;
    remove_remains(runtime, &target.layout);
    let path = &wanted.mount_point;
    wait_for_ending(path, runtime)?;
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
                    refuse_other_job(&session, target, runtime)?;
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
    if started.is_err() {
        serve::remove_upper(&what);
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
    if started.is_err() {
        serve::remove_upper(&what);
    }
    started
}

const ELSEWHERE: &str = "or mount it at another path: envfs mount --read-only NAME PATH";

/// Makes a path free for the writable mount: detaches a session whose daemon has ended. Fails if a
/// session is mounted there.
pub(super) fn make_way(path: &Path, runtime: &RuntimeDir) -> Result<(), Failure> {
    wait_for_ending(path, runtime)?;
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

/// Waits until a session at a path is unmounted if the command has ended that it belongs to: its
/// daemon is about to unmount it.
fn wait_for_ending(path: &Path, runtime: &RuntimeDir) -> Result<(), Failure> {
    let has_ended = |pid| match ProcessHandle::open(pid) {
        Ok(process) => process.wait(Duration::ZERO).unwrap_or(false),
        Err(_) => true,
    };
    let Some(session) = at(path)? else {
        return Ok(());
    };
    let note = note_of(&session, runtime).map(|noted| noted.note);
    let Some(note) = note.filter(|note| note.ends_with.is_some_and(has_ended)) else {
        return Ok(());
    };
    let Some(daemon) = daemon_of(&note) else {
        return Ok(());
    };
    let deadline = Instant::now() + END_TIMEOUT;
    // If programs are left that use it, the daemon detaches it and goes on until they end.
    while is_mounted(&session.entry)? && !daemon.wait(END_POLL).unwrap_or(true) {
        if Instant::now() >= deadline {
            tracing::info!("a session whose command has ended is still mounted");
            break;
        }
    }
    Ok(())
}

/// Returns the daemon of a session, if it runs and can be seen from here.
fn daemon_of(note: &SessionNote) -> Option<ProcessHandle> {
    note.process.open().filter(|_| note.is_visible())
}

fn is_mounted(entry: &MountEntry) -> Result<bool, Failure> {
    Ok(mounts()?.iter().any(|other| other.entry.id == entry.id))
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

/// Fails if a session belongs to a job that this process is not in, because it ends with that job.
fn refuse_other_job(
    session: &SessionMount,
    target: &Target,
    runtime: &RuntimeDir,
) -> Result<(), Failure> {
    // A job has another directory of sockets than a login session. Both may write into the home.
    let noted = note_of(session, runtime)
        .filter(|noted| noted.note.is_visible())
        .or_else(|| note_in(session, &target.layout));
    match noted.map(|noted| noted.note.process.pid) {
        Some(pid) if Scope::is_of_other_job(pid) => {
            let shown = format!(
                "{} at {}",
                session.describe(),
                quoted(&session.entry.mount_point)
            );
            Err(of_other_job(&shown, &target.name, pid))
        }
        _ => Ok(()),
    }
}

/// Returns the failure for a mount, given as the beginning of a sentence, whose daemon belongs to
/// another job.
pub(crate) fn of_other_job(shown: &str, name: &str, daemon: u32) -> Failure {
    let message = format!("{shown} belongs to another job (pid {daemon}), with which it ends");
    Failure::new(Kind::Busy, message)
        .hint(format!(
            "use a session of your own: envfs run --private --read-only {name} CMD"
        ))
        .hint(format!(
            "or a shell in one: envfs shell --private --read-only {name}"
        ))
}

/// Returns the note of a mounted session.
pub(crate) fn note_of(session: &SessionMount, runtime: &RuntimeDir) -> Option<NotedSession> {
    note_among(session, noted_here(runtime))
}

fn note_among(session: &SessionMount, mut notes: Vec<NotedSession>) -> Option<NotedSession> {
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

/// Returns the failure for a path at which the environment is mounted writable.
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
            limit: wanted.limit,
            is_private: false,
            cache: wanted.cache.clone(),
            poll: wanted.poll,
        }),
        trial: None,
    })
}

/// Ends a session, and waits for the end of its daemon, which removes its notes and changes. If the
/// session is in use, detaches it, or fails and names the processes that use it. Its notes may also
/// be in `home`.
pub(crate) fn end(
    session: &SessionMount,
    runtime: &RuntimeDir,
    home: Option<&Layout>,
    mode: UnmountMode,
) -> Result<Unmounted, Failure> {
    let entry = &session.entry;
    let noted_here = note_of(session, runtime);
    // Others may write notes into a home, so such a process is waited for, and gets no signal.
    let is_ours = noted_here.is_some();
    let noted = noted_here.or_else(|| note_in(session, home?));
    let daemon = noted.and_then(|noted| daemon_of(&noted.note));
    wait_for_ending(&entry.mount_point, runtime)?;
    let mut done = Unmounted::default();
    if is_mounted(entry)? {
        if entry.health() == Health::Dead {
            detach(std::slice::from_ref(entry))?;
            remove_left_here(runtime);
            return Ok(Unmounted::default());
        }
        let (copies, users) = holders::in_other_namespaces(entry);
        // The kernel checks only users in this mount namespace.
        if mode == UnmountMode::Plain && !users.is_empty() {
            return Err(unmount::busy(&entry.mount_point, &users));
        }
        match unmount::unmount_directly(entry, mode) {
            Ok(unmounted) => done = unmounted,
            // It has ended by itself meanwhile.
            Err(_) if !is_mounted(entry)? => {}
            Err(failure) => return Err(failure),
        }
        done.holders.extend(users);
        if done.holders.is_empty() && is_ours {
            done.copies = copies;
        }
    }
    if let Some(daemon) = daemon.filter(|_| done.holders.is_empty()) {
        // It cannot know that nothing uses the copies.
        if !done.copies.is_empty() && daemon.terminate().is_err() {
            tracing::debug!("the daemon of the session has ended");
        }
        if mode == UnmountMode::Plain && !daemon.wait(END_TIMEOUT).unwrap_or(true) {
            done.trouble = Some(still_runs(session));
        }
    }
    Ok(done)
}

fn note_in(session: &SessionMount, home: &Layout) -> Option<NotedSession> {
    let notes = SessionNotes::new(home.sessions()).read();
    note_among(session, notes.unwrap_or_default()).filter(|noted| noted.note.is_visible())
}

fn still_runs(session: &SessionMount) -> Failure {
    let message = format!(
        "it has not ended after {} s: programs may use the mount in another namespace",
        END_TIMEOUT.as_secs()
    );
    Failure::new(Kind::Daemon, message).hint(format!("envfs ps {} lists them", session.source.name))
}
