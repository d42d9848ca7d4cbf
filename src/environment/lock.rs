//! The lock of an environment: one holder, over all processes and hosts.
//!
//! The lock is `flock` on a file in the home, so it ends with its holder, however that dies. Who
//! holds it is written beside it, for the message of whoever is refused.
//!
//! On network file systems `flock` may be unknown, or may be kept by each host for itself. There
//! the lock is a **lease** as well: the holder's name in a file that whoever links it first has,
//! over all hosts. Its holder renews it, and one on another host is believed to be alive until it
//! has not done so for [`LEASE`]; so is a lease that cannot be read. A lease of this host is free as soon as its process is gone or
//! the host was rebooted. Where `flock` is unknown the lease alone is the lock; where links are,
//! `flock` and the note, renewed like a lease.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{RecvTimeoutError, Sender};
use fs2::FileExt;
use serde::{Deserialize, Serialize};

use super::error::{Context, EnvironmentError, Result};
use super::layout::{Layout, Place};
use crate::object::Timestamp;
use crate::sys::medium::network_file_system;
use crate::sys::text::Text;
use crate::sys::{durable, process, regular};

/// How long the holder on another host may be silent before its lease is free.
pub const LEASE: Duration = Duration::from_secs(300);

/// How often a lease is renewed.
const RENEW: Duration = Duration::from_secs(30);

/// How often a waiting process tries again.
const RETRY: Duration = Duration::from_millis(50);

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of the host.
    pub host: String,
    /// Which start of the host.
    pub boot_id: String,
    /// Process number.
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub pid_start: u64,
    /// What for, in words.
    pub purpose: String,
    /// Since when, in seconds since 1970.
    pub since: i64,
    /// Which home it is about: a note that was copied with its home says nothing about the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    /// Where the holder can be spoken with, if it listens anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<Text>,
    /// Tells this hold from every other.
    token: String,
}

impl Holder {
    fn me(layout: &Layout, purpose: &str) -> io::Result<Holder> {
        let pid = std::process::id();
        Ok(Holder {
            host: process::host_name(),
            boot_id: process::boot_id(),
            pid,
            pid_start: process::start_time(pid).unwrap_or(0),
            purpose: purpose.to_owned(),
            since: Timestamp::now().secs,
            place: Some(layout.place()?),
            socket: None,
            token: process::new_uuid()?,
        })
    }

    /// Returns whether the process is known to be gone: on this host, and not running. Of
    /// another host nothing is known.
    pub fn is_gone(&self) -> bool {
        self.is_here()
            && (self.boot_id != process::boot_id()
                || !process::is_running(self.pid, self.pid_start))
    }

    /// Returns whether it holds nothing of this home any more, or never did. Numbers of devices are
    /// each host's own, so of another host nothing is known here either.
    fn is_void(&self, layout: &Layout) -> bool {
        let is_of_another = || {
            let place = layout.place().ok();
            self.is_here() && self.place.is_some() && place.is_some() && self.place != place
        };
        self.is_gone() || is_of_another()
    }

    /// Returns whether an envfs can have written it: it listens at an absolute path.
    fn is_possible(&self) -> bool {
        let socket = self.socket.as_ref();
        socket.is_none_or(|socket| socket.as_path().is_absolute())
    }

    /// Returns whether it is a process of this host.
    pub fn is_here(&self) -> bool {
        self.host == process::host_name()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = (Timestamp::now().secs - self.since).max(0);
        let (count, unit) = match seconds {
            0..120 => (seconds, "s"),
            120..7200 => (seconds / 60, "min"),
            7200..172_800 => (seconds / 3600, "h"),
            _ => (seconds / 86_400, "days"),
        };
        write!(
            f,
            "process {} on {} ({}) for {count} {unit}",
            self.pid, self.host, self.purpose
        )
    }
}

/// The lock of an environment, held until this is dropped.
#[derive(Debug)]
pub struct EnvLock {
    /// The locked file; None where the lease alone is the lock.
    _file: Option<File>,
    /// Whether there is a lease. It is the holder's note as well.
    is_leased: bool,
    /// Whether somebody else's name was found where ours was to be renewed.
    is_lost: Arc<AtomicBool>,
    holder: Holder,
    /// Where the environment is; changes when it is renamed under the lock.
    layout: Arc<Mutex<Layout>>,
    renewal: Option<(Sender<()>, JoinHandle<()>)>,
}

/// What one attempt came to.
enum Attempt {
    Got(EnvLock),
    Held(Option<Holder>),
}

/// What asking for the lease came to.
enum Lease {
    Taken,
    Held(Option<Holder>),
    /// There are no links on this file system.
    Unknown(io::Error),
}

impl EnvLock {
    /// Takes the lock, or is refused at once with the holder's name.
    pub fn try_lock(layout: &Layout, purpose: &str) -> Result<EnvLock> {
        Self::lock(layout, purpose, Duration::ZERO)
    }

    /// Takes the lock, waiting up to `timeout` for others to give it up.
    pub fn lock(layout: &Layout, purpose: &str, timeout: Duration) -> Result<EnvLock> {
        let deadline = Instant::now() + timeout;
        let is_shared = network_file_system(layout.home())
            .context(layout.home(), "ask for the file system")?
            .is_some();
        loop {
            match Self::attempt(layout, purpose, is_shared, flock)? {
                Attempt::Got(lock) => return Ok(lock),
                Attempt::Held(holder) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(EnvironmentError::Held {
                            path: layout.home().to_owned(),
                            holder: holder.map(Box::new),
                        });
                    }
                    std::thread::sleep(RETRY.min(left));
                }
            }
        }
    }

    /// Returns who this lock says that we are.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Returns whether somebody else has taken the lease over, because it was not renewed for too
    /// long. What is locked is no longer ours to change then.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    /// Returns who holds the lock of an environment, without taking it; None when
    /// nobody does, or when the holder's name is not known to be true any more.
    pub fn current_holder(layout: &Layout) -> Option<Holder> {
        let lease = read_holder(&layout.lease());
        let holder = lease.or_else(|| read_holder(&layout.lock_holder()))?;
        (!holder.is_void(layout)).then_some(holder)
    }

    /// Adds to the holder's name where it can be spoken with, so that whoever finds the lock held
    /// finds the holder's socket, too.
    pub fn listens_at(&mut self, socket: &Path) -> Result<()> {
        self.holder.socket = Some(Text::from(socket.as_os_str()));
        let layout = self.layout.lock().unwrap_or_else(PoisonError::into_inner);
        let note = note(&layout, self.is_leased);
        let draft = draft_holder(&layout, &self.holder);
        let noted = draft.and_then(|draft| fs::rename(draft, &note));
        unless_full(self.renewal.is_some(), noted).context(&note, "name the holder of the lock")
    }

    /// The lock goes with the environment to another place.
    pub(super) fn moved_to(&self, to: &Layout) {
        *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = to.clone();
    }

    fn attempt(
        layout: &Layout,
        purpose: &str,
        is_shared: bool,
        flock: fn(&File) -> io::Result<()>,
    ) -> Result<Attempt> {
        let path = layout.lock();
        let me = Holder::me(layout, purpose).context(&path, "name the holder of the lock")?;
        let options = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .clone();
        let file = regular::open_with(&path, &options).context(&path, "open the lock")?;
        let file = match flock(&file) {
            Ok(()) => Some(file),
            Err(e) if is_unsupported(&e) => None,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Attempt::Held(Self::current_holder(layout)));
            }
            Err(e) => return Err(e).context(&path, "lock"),
        };
        // The environment may have been renamed or removed while we opened the file: then we
        // hold the lock of something else.
        if let Some(file) = &file {
            let ours = file.metadata().context(&path, "look at the lock")?;
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
                Ok(_) => return Ok(Attempt::Held(None)),
                Err(e) => return Err(e).context(&path, "look at the lock"),
            }
        }
        let note = layout.lock_holder();
        if is_shared || file.is_none() {
            match Self::lease(layout, &me)? {
                Lease::Taken => return Ok(Attempt::Got(Self::start(file, me, layout, true, true))),
                Lease::Held(other) => return Ok(Attempt::Held(other)),
                Lease::Unknown(e) if file.is_none() => {
                    return Err(e).context(&layout.lease(), "take a lease");
                }
                // Two hosts at the same moment may both pass this; there is nothing better here.
                Lease::Unknown(_) => {
                    if let Some(other) = read_holder(&note)
                        && !other.is_here()
                        && !has_expired(layout, &note)?
                    {
                        return Ok(Attempt::Held(Some(other)));
                    }
                }
            }
        }
        let noted = write_holder(layout, &me);
        unless_full(is_shared, noted).context(&note, "name the holder of the lock")?;
        let lock = Self::start(file, me, layout, false, is_shared);
        Ok(Attempt::Got(lock))
    }

    /// Takes the lease: whoever creates its file has it.
    fn lease(layout: &Layout, me: &Holder) -> Result<Lease> {
        let lease = layout.lease();
        let draft = draft_holder(layout, me).context(&lease, "write a lease")?;
        // The name must not outlive a power failure that the content does not.
        sync_note(&draft).context(&draft, "write a lease")?;
        // A link is refused when the name exists, on every host at once, and never half made.
        let mut taken = fs::hard_link(&draft, &lease);
        if matches!(&taken, Err(e) if e.kind() == io::ErrorKind::AlreadyExists)
            && let Some(stale) = Self::stale_lease(layout, &lease)?
        {
            // Only one at a time may remove a stale lease, and only if it still is the same:
            // else a slow one would remove the lease that a quick one has just taken.
            let breaker = lease.with_extension("break");
            match fs::hard_link(&draft, &breaker) {
                Ok(()) => {
                    if Note::read(&lease).is_same_hold(&stale) {
                        fs::remove_file(&lease).context(&lease, "remove a stale lease")?;
                        taken = fs::hard_link(&draft, &lease);
                    }
                    fs::remove_file(&breaker).context(&breaker, "end breaking a lease")?;
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    // Left by one that died between these lines; the next attempt goes on.
                    if age_of(layout, &breaker)?.is_some_and(|age| age > LEASE) {
                        fs::remove_file(&breaker).context(&breaker, "end breaking a lease")?;
                    }
                }
                Err(e) => return Err(e).context(&breaker, "break a stale lease"),
            }
        }
        fs::remove_file(&draft).context(&draft, "remove a draft")?;
        match taken {
            Ok(()) => Ok(Lease::Taken),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match read_holder(&lease) {
                // An answer of the server was lost, and its second one is about our own link.
                Some(holder) if holder.token == me.token => Ok(Lease::Taken),
                holder => Ok(Lease::Held(holder)),
            },
            Err(e) if is_unsupported(&e) || e.raw_os_error() == Some(nix::libc::EPERM) => {
                Ok(Lease::Unknown(e))
            }
            Err(e) => Err(e).context(&lease, "take a lease"),
        }
    }

    /// Returns what is in the lease, if it may be taken over: its holder is known to be gone, or nobody has
    /// renewed it for too long. Of a lease without a name in it nothing but its age is known.
    fn stale_lease(layout: &Layout, lease: &Path) -> Result<Option<Note>> {
        let note = Note::read(lease);
        let is_stale = match &note {
            Note::Missing => false,
            Note::Of(other) if other.is_void(layout) => true,
            Note::Of(other) => !other.is_here() && has_expired(layout, lease)?,
            Note::Unreadable(_) => has_expired(layout, lease)?,
        };
        Ok(is_stale.then_some(note))
    }

    fn start(
        file: Option<File>,
        holder: Holder,
        layout: &Layout,
        is_leased: bool,
        renew: bool,
    ) -> EnvLock {
        let layout = Arc::new(Mutex::new(layout.clone()));
        let is_lost = Arc::new(AtomicBool::new(false));
        let renewal = renew.then(|| {
            let (stop, stopped) = crossbeam_channel::bounded(0);
            let (layout, token) = (Arc::clone(&layout), holder.token.clone());
            let is_lost = Arc::clone(&is_lost);
            let thread = std::thread::spawn(move || {
                while stopped.recv_timeout(RENEW) == Err(RecvTimeoutError::Timeout) {
                    let layout = layout.lock().unwrap_or_else(PoisonError::into_inner);
                    if !renew_note(&note(&layout, is_leased), &token) {
                        is_lost.store(true, Ordering::SeqCst);
                    }
                }
            });
            (stop, thread)
        });
        EnvLock {
            _file: file,
            is_leased,
            is_lost,
            holder,
            layout,
            renewal,
        }
    }
}

impl Drop for EnvLock {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.renewal.take() {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the renewal of a lock panicked");
            }
        }
        let layout = self.layout.lock().unwrap_or_else(PoisonError::into_inner);
        let path = note(&layout, self.is_leased);
        // Only our own note: another host may have taken over what we did not renew. Its content would be
        // whole then, so a lease without a name is still ours.
        let is_ours = match Note::read(&path) {
            Note::Of(noted) => noted.token == self.holder.token,
            Note::Unreadable(Some(_)) => !self.is_lost(),
            Note::Unreadable(None) | Note::Missing => false,
        };
        if is_ours
            && let Err(e) = fs::remove_file(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "the holder's name stays behind");
        }
        // The file is closed after this, and with it the lock ends.
    }
}

fn flock(file: &File) -> io::Result<()> {
    FileExt::try_lock_exclusive(file)
}

/// Where the holder of a lock is named.
fn note(layout: &Layout, is_lease: bool) -> PathBuf {
    if is_lease {
        layout.lease()
    } else {
        layout.lock_holder()
    }
}

/// Returns whether the error says that the file system knows no locks (or links), rather than that
/// the lock is held.
fn is_unsupported(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().is_some_and(|number| {
        matches!(
            Errno::from_raw(number),
            Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL
        )
    })
}

/// Larger than any note.
const NOTE_LIMIT: u64 = 64 << 10;

/// What the file that names the holder of a lock says.
enum Note {
    /// There is no such file.
    Missing,
    /// It names a holder.
    Of(Box<Holder>),
    /// It names nobody: it is empty, damaged or cut off, or cannot be read at all (`None`).
    Unreadable(Option<Vec<u8>>),
}

impl Note {
    fn read(path: &Path) -> Note {
        match regular::read(path, NOTE_LIMIT) {
            Ok(bytes) => match serde_json::from_slice::<Holder>(&bytes) {
                Ok(holder) if holder.is_possible() => Note::Of(Box::new(holder)),
                _ => Note::Unreadable(Some(bytes)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Note::Missing,
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "the holder of a lock cannot be read");
                Note::Unreadable(None)
            }
        }
    }

    /// Returns true if both are of the same hold, which may have been renewed in between.
    fn is_same_hold(&self, other: &Note) -> bool {
        match (self, other) {
            (Note::Of(one), Note::Of(other)) => one.token == other.token,
            (Note::Unreadable(one), Note::Unreadable(other)) => one == other,
            _ => false,
        }
    }
}

fn read_holder(path: &Path) -> Option<Holder> {
    match Note::read(path) {
        Note::Of(holder) => Some(*holder),
        Note::Missing | Note::Unreadable(_) => None,
    }
}

/// Writes the holder's name to a file of its own beside the lock.
fn draft_holder(layout: &Layout, holder: &Holder) -> io::Result<PathBuf> {
    let path = layout
        .lock_holder()
        .with_extension(format!("draft-{}", holder.token));
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    let written = serde_json::to_vec(holder)
        .map_err(io::Error::from)
        .and_then(|text| file.write_all(&text));
    if written.is_err()
        && let Err(e) = fs::remove_file(&path)
    {
        tracing::warn!(path = %path.display(), error = %e, "half a note stays behind");
    }
    written.map(|()| path)
}

fn sync_note(path: &Path) -> io::Result<()> {
    let synced = regular::open(path).and_then(durable::sync_file);
    if synced.is_err()
        && let Err(e) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), error = %e, "a draft stays behind");
    }
    synced
}

fn write_holder(layout: &Layout, holder: &Holder) -> io::Result<()> {
    let draft = draft_holder(layout, holder)?;
    fs::rename(draft, layout.lock_holder())
}

/// Passes over a note that could not be written for want of space, unless it is a lease: where
/// `flock` is the lock, a note is for messages, and on a full disk `gc` and `discard` must be
/// able to work.
fn unless_full(is_lease: bool, noted: io::Result<()>) -> io::Result<()> {
    match noted {
        Err(e)
            if !is_lease
                && matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
        {
            tracing::warn!(error = %e, "the holder of the lock is not noted");
            Ok(())
        }
        other => other,
    }
}

/// Returns whether a note has not been renewed for [`LEASE`]; true also when it is gone.
fn has_expired(layout: &Layout, note: &Path) -> Result<bool> {
    Ok(age_of(layout, note)?.is_none_or(|age| age > LEASE))
}

/// Returns how long ago a note was renewed by the clock of the file server; None when there is
/// no such note.
fn age_of(layout: &Layout, note: &Path) -> Result<Option<Duration>> {
    static PROBES: AtomicU64 = AtomicU64::new(0);
    let count = PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = layout.lock_holder().with_extension(format!(
        "probe-{}-{}-{count}",
        process::host_name(),
        std::process::id()
    ));
    let server_time = || -> io::Result<SystemTime> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&probe)?;
        file.write_all(b"?")?;
        let modified = fs::metadata(&probe)?.modified()?;
        fs::remove_file(&probe)?;
        Ok(modified)
    };
    let now = server_time().context(&probe, "ask for the time of the file server")?;
    match fs::symlink_metadata(note).and_then(|metadata| metadata.modified()) {
        // A note from the future is as good as new.
        Ok(renewed) => Ok(Some(now.duration_since(renewed).unwrap_or_default())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(note, "look at a lease"),
    }
}

/// Renews the holder's note, or says that it is another's by now.
fn renew_note(path: &Path, token: &str) -> bool {
    match Note::read(path) {
        Note::Of(noted) if noted.token == token => {}
        Note::Of(noted) => {
            tracing::error!(
                path = %path.display(), holder = %noted,
                "another process took over the lock: nothing more is changed here"
            );
            return false;
        }
        // Who took it over would have named itself, so it is still ours, and others go by its age.
        Note::Unreadable(Some(_)) => {
            tracing::warn!(path = %path.display(), "a lock is renewed that names no holder any more");
        }
        // It may be there again, or not, when the server answers again.
        Note::Unreadable(None) | Note::Missing => {
            tracing::warn!(path = %path.display(), "a lock could not be renewed: it cannot be read");
            return true;
        }
    }
    // Times set to "now" are the server's own; explicit ones would be ours.
    let touched = regular::open_with(path, OpenOptions::new().write(true)).and_then(|file| {
        nix::sys::stat::futimens(
            &file,
            &nix::sys::time::TimeSpec::UTIME_NOW,
            &nix::sys::time::TimeSpec::UTIME_NOW,
        )
        .map_err(io::Error::from)
    });
    if let Err(e) = touched {
        tracing::warn!(path = %path.display(), error = %e, "a lock could not be renewed");
    }
    true
}

#[cfg(test)]
mod tests;
