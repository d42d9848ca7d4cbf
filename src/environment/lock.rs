//! The lock of an environment: at most one holder, across all processes and hosts.
//!
//! The lock is `flock` on a file in the home, so the kernel releases it however its holder ends. A
//! note beside it names the holder, for error messages of other processes.
//!
//! On network file systems `flock` may be unsupported, or may be local to each host. There the lock
//! includes a **lease**: a note that the holder links to a fixed name, which only one process on
//! any host can do. The holder renews its lease. A lease of another host, or one that cannot be
//! read, expires when it has not been renewed for [`LEASE`]. A lease of this host is free as soon
//! as its process has ended or the host was rebooted. Where `flock` is unsupported, the lease alone
//! is the lock; where hard links are unsupported, the lock is `flock` and a note that is renewed
//! like a lease.

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
use super::layout::{HomeId, Layout};
use crate::object::Timestamp;
use crate::sys::medium::network_file_system;
use crate::sys::text::Text;
use crate::sys::{durable, process, regular};

/// The time after which a lease of another host that was not renewed is free.
pub const LEASE: Duration = Duration::from_secs(300);

/// The interval at which a lease is renewed.
const RENEW: Duration = Duration::from_secs(30);

/// The interval at which a waiting process tries again.
const RETRY: Duration = Duration::from_millis(50);

/// The holder of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The name of the host.
    pub host: String,
    /// The host's boot ID, which changes at each boot.
    pub boot_id: String,
    /// The process ID.
    pub pid: u32,
    /// The start time of the process, in clock ticks since boot.
    pub pid_start: u64,
    /// The purpose of the lock, for messages.
    pub purpose: String,
    /// The time of acquisition, in seconds since 1970.
    pub since: i64,
    /// The home that is locked: a note that was copied along with its home is not about the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    home_id: Option<HomeId>,
    /// The control socket of the holder, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<Text>,
    /// Unique to each acquisition.
    token: String,
}

impl Holder {
    fn current_process(layout: &Layout, purpose: &str) -> io::Result<Holder> {
        let pid = std::process::id();
        Ok(Holder {
            host: process::host_name(),
            boot_id: process::boot_id(),
            pid,
            pid_start: process::start_time(pid).unwrap_or(0),
            purpose: purpose.to_owned(),
            since: Timestamp::now().secs,
            home_id: Some(layout.home_id()?),
            socket: None,
            token: process::new_uuid()?,
        })
    }

    /// Returns whether the process is known to have ended. Always false for another host.
    pub fn is_dead(&self) -> bool {
        self.is_local()
            && (self.boot_id != process::boot_id()
                || !process::is_running(self.pid, self.pid_start))
    }

    /// Returns whether this process is known not to hold the lock of this home: it has ended, or it
    /// locked another home. Device numbers differ between hosts, so it is false for another host.
    fn is_stale(&self, layout: &Layout) -> bool {
        let locks_other_home = || {
            let home_id = layout.home_id().ok();
            self.is_local()
                && self.home_id.is_some()
                && home_id.is_some()
                && self.home_id != home_id
        };
        self.is_dead() || locks_other_home()
    }

    /// Returns whether envfs could have written this note: the path of a socket is absolute.
    fn is_valid(&self) -> bool {
        let socket = self.socket.as_ref();
        socket.is_none_or(|socket| socket.as_path().is_absolute())
    }

    /// Returns whether it is a process on this host.
    pub fn is_local(&self) -> bool {
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

/// The lock of an environment, held until the value is dropped.
#[derive(Debug)]
pub struct EnvLock {
    /// The locked file; `None` where the lease alone is the lock.
    _file: Option<File>,
    /// Whether the lock includes a lease, which then serves as the note too.
    is_leased: bool,
    /// Whether another process was found to have taken over the lease.
    is_lost: Arc<AtomicBool>,
    holder: Holder,
    /// The home; changes when the environment is renamed under the lock.
    layout: Arc<Mutex<Layout>>,
    renewal: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The outcome of an attempt to take the lock.
enum Attempt {
    Acquired(EnvLock),
    Held(Option<Holder>),
}

/// The outcome of an attempt to take the lease.
enum Lease {
    Acquired,
    Held(Option<Holder>),
    /// The file system does not support hard links.
    Unsupported(io::Error),
}

impl EnvLock {
    /// Takes the lock. Fails at once, naming the holder, if it is held.
    pub fn try_lock(layout: &Layout, purpose: &str) -> Result<EnvLock> {
        Self::lock(layout, purpose, Duration::ZERO)
    }

    /// Takes the lock, waiting up to `timeout` for its holder to release it.
    pub fn lock(layout: &Layout, purpose: &str, timeout: Duration) -> Result<EnvLock> {
        let deadline = Instant::now() + timeout;
        let is_shared = network_file_system(layout.home())
            .context(layout.home(), "determine the type of the file system")?
            .is_some();
        loop {
            match Self::attempt(layout, purpose, is_shared, flock)? {
                Attempt::Acquired(lock) => return Ok(lock),
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

    /// Returns the description of this process in the note.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Returns whether another process has taken over the lease because it was not renewed in time.
    /// The environment must not be changed any more then.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    /// Returns the holder of an environment's lock without taking the lock. Returns `None` if the
    /// lock is free, or if the note is missing or known to be stale.
    pub fn current_holder(layout: &Layout) -> Option<Holder> {
        let lease = read_holder(&layout.lease());
        let holder = lease.or_else(|| read_holder(&layout.lock_holder()))?;
        (!holder.is_stale(layout)).then_some(holder)
    }

    /// Adds the path of the control socket to the note, so that a process that finds the lock held
    /// can connect to its holder.
    pub fn set_socket(&mut self, socket: &Path) -> Result<()> {
        self.holder.socket = Some(Text::from(socket.as_os_str()));
        let layout = self.layout.lock().unwrap_or_else(PoisonError::into_inner);
        let note = note(&layout, self.is_leased);
        let draft = draft_holder(&layout, &self.holder);
        let noted = draft.and_then(|draft| fs::rename(draft, &note));
        unless_full(self.renewal.is_some(), noted).context(&note, "write the note of the lock")
    }

    /// Sets the new paths of the home after it was renamed under the lock.
    pub(super) fn set_layout(&self, layout: &Layout) {
        *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = layout.clone();
    }

    fn attempt(
        layout: &Layout,
        purpose: &str,
        is_shared: bool,
        flock: fn(&File) -> io::Result<()>,
    ) -> Result<Attempt> {
        let path = layout.lock();
        let me = Holder::current_process(layout, purpose)
            .context(&path, "describe the holder of the lock")?;
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
        // If the environment was renamed or removed since the file was opened, this is the lock of
        // another environment or of none.
        if let Some(file) = &file {
            let ours = file.metadata().context(&path, "stat the lock")?;
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
                Ok(_) => return Ok(Attempt::Held(None)),
                Err(e) => return Err(e).context(&path, "stat the lock"),
            }
        }
        let note = layout.lock_holder();
        if is_shared || file.is_none() {
            match Self::lease(layout, &me)? {
                Lease::Acquired => {
                    return Ok(Attempt::Acquired(Self::new(
                        file,
                        me,
                        layout,
                        Protocol::Lease,
                    )));
                }
                Lease::Held(other) => return Ok(Attempt::Held(other)),
                Lease::Unsupported(e) if file.is_none() => {
                    return Err(e).context(&layout.lease(), "take a lease");
                }
                // Two hosts at the same moment may both pass this check. Without hard links there
                // is no better one.
                Lease::Unsupported(_) => {
                    if let Some(other) = read_holder(&note)
                        && !other.is_local()
                        && !has_expired(layout, &note)?
                    {
                        return Ok(Attempt::Held(Some(other)));
                    }
                }
            }
        }
        let noted = write_holder(layout, &me);
        unless_full(is_shared, noted).context(&note, "write the note of the lock")?;
        let protocol = if is_shared {
            Protocol::RenewedNote
        } else {
            Protocol::Note
        };
        Ok(Attempt::Acquired(Self::new(file, me, layout, protocol)))
    }

    /// Takes the lease by creating its file.
    fn lease(layout: &Layout, me: &Holder) -> Result<Lease> {
        let lease = layout.lease();
        let draft = draft_holder(layout, me).context(&lease, "write a lease")?;
        // The name must not survive a power failure without the content.
        sync_note(&draft).context(&draft, "write a lease")?;
        // link(2) fails if the name exists, is atomic, and is seen by all hosts at once.
        let mut taken = fs::hard_link(&draft, &lease);
        if matches!(&taken, Err(e) if e.kind() == io::ErrorKind::AlreadyExists)
            && let Some(stale) = Self::stale_lease(layout, &lease)?
        {
            // Only one process at a time may remove a stale lease, and only if it is still the same
            // lease: otherwise it could remove one that another process has just taken.
            let breaker = lease.with_extension("break");
            match fs::hard_link(&draft, &breaker) {
                Ok(()) => {
                    if Note::read(&lease).is_same_acquisition(&stale) {
                        fs::remove_file(&lease).context(&lease, "remove a stale lease")?;
                        taken = fs::hard_link(&draft, &lease);
                    }
                    fs::remove_file(&breaker)
                        .context(&breaker, "remove the lock of a stale lease")?;
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    // Left by a process that died between these lines; the next attempt continues.
                    if age_of(layout, &breaker)?.is_some_and(|age| age > LEASE) {
                        fs::remove_file(&breaker)
                            .context(&breaker, "remove the lock of a stale lease")?;
                    }
                }
                Err(e) => return Err(e).context(&breaker, "lock a stale lease"),
            }
        }
        fs::remove_file(&draft).context(&draft, "remove a temporary note")?;
        match taken {
            Ok(()) => Ok(Lease::Acquired),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match read_holder(&lease) {
                // The server's first reply was lost, and the retried request found our own link.
                Some(holder) if holder.token == me.token => Ok(Lease::Acquired),
                holder => Ok(Lease::Held(holder)),
            },
            Err(e) if is_unsupported(&e) || e.raw_os_error() == Some(nix::libc::EPERM) => {
                Ok(Lease::Unsupported(e))
            }
            Err(e) => Err(e).context(&lease, "take a lease"),
        }
    }

    /// Returns the lease if it may be taken over: its holder is known to have ended, or it has
    /// expired. A lease that cannot be read is judged by its age alone.
    fn stale_lease(layout: &Layout, lease: &Path) -> Result<Option<Note>> {
        let note = Note::read(lease);
        let is_stale = match &note {
            Note::Missing => false,
            Note::Holder(other) if other.is_stale(layout) => true,
            Note::Holder(other) => !other.is_local() && has_expired(layout, lease)?,
            Note::Unreadable(_) => has_expired(layout, lease)?,
        };
        Ok(is_stale.then_some(note))
    }

    fn new(file: Option<File>, holder: Holder, layout: &Layout, protocol: Protocol) -> EnvLock {
        let layout = Arc::new(Mutex::new(layout.clone()));
        let is_lost = Arc::new(AtomicBool::new(false));
        let is_leased = protocol == Protocol::Lease;
        let renewal = (protocol != Protocol::Note).then(|| {
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
                tracing::error!("the thread that renews a lock panicked");
            }
        }
        let layout = self.layout.lock().unwrap_or_else(PoisonError::into_inner);
        let path = note(&layout, self.is_leased);
        // Remove only our own note: if we failed to renew it, another host may have taken it over.
        // It would have written a valid note, so an unreadable one is still ours.
        let is_ours = match Note::read(&path) {
            Note::Holder(noted) => noted.token == self.holder.token,
            Note::Unreadable(Some(_)) => !self.is_lost(),
            Note::Unreadable(None) | Note::Missing => false,
        };
        if is_ours
            && let Err(e) = fs::remove_file(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "cannot remove the note of a lock");
        }
        // Closing the file, after this, releases the lock.
    }
}

fn flock(file: &File) -> io::Result<()> {
    FileExt::try_lock_exclusive(file)
}

/// Returns the file that names the holder of a lock.
fn note(layout: &Layout, is_lease: bool) -> PathBuf {
    if is_lease {
        layout.lease()
    } else {
        layout.lock_holder()
    }
}

/// Returns whether the error means that the file system does not support locks (or links), rather
/// than that the lock is held.
fn is_unsupported(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().is_some_and(|number| {
        matches!(
            Errno::from_raw(number),
            Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL
        )
    })
}

/// The size limit of a note, in bytes.
const NOTE_LIMIT: u64 = 64 << 10;

/// Which note a lock has besides `flock`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// A lease, which is renewed.
    Lease,
    /// A note that is renewed, where hard links are unsupported.
    RenewedNote,
    /// A note for messages only.
    Note,
}

/// The content of the file that names the holder of a lock.
enum Note {
    /// There is no such file.
    Missing,
    /// It names a holder.
    Holder(Box<Holder>),
    /// It is empty, damaged or truncated, or cannot be read at all (`None`).
    Unreadable(Option<Vec<u8>>),
}

impl Note {
    fn read(path: &Path) -> Note {
        match regular::read(path, NOTE_LIMIT) {
            Ok(bytes) => match serde_json::from_slice::<Holder>(&bytes) {
                Ok(holder) if holder.is_valid() => Note::Holder(Box::new(holder)),
                _ => Note::Unreadable(Some(bytes)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Note::Missing,
            Err(e) => {
                tracing::warn!(
                    path = %path.display(), error = %e, "cannot read the note of a lock"
                );
                Note::Unreadable(None)
            }
        }
    }

    /// Returns whether both belong to the same acquisition, even if it was renewed in between.
    fn is_same_acquisition(&self, other: &Note) -> bool {
        match (self, other) {
            (Note::Holder(one), Note::Holder(other)) => one.token == other.token,
            (Note::Unreadable(one), Note::Unreadable(other)) => one == other,
            _ => false,
        }
    }
}

fn read_holder(path: &Path) -> Option<Holder> {
    match Note::read(path) {
        Note::Holder(holder) => Some(*holder),
        Note::Missing | Note::Unreadable(_) => None,
    }
}

/// Writes a note under a temporary name beside the lock.
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
        tracing::warn!(path = %path.display(), error = %e, "cannot remove an incomplete note");
    }
    written.map(|()| path)
}

fn sync_note(path: &Path) -> io::Result<()> {
    let synced = regular::open(path).and_then(durable::sync_file);
    if synced.is_err()
        && let Err(e) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), error = %e, "cannot remove a temporary note");
    }
    synced
}

fn write_holder(layout: &Layout, holder: &Holder) -> io::Result<()> {
    let draft = draft_holder(layout, holder)?;
    fs::rename(draft, layout.lock_holder())
}

/// Ignores the failure to write a note on a full disk, unless the note is renewed and thus part of
/// the lock: otherwise it is for messages only, and `gc` and `discard` must work on a full disk.
fn unless_full(is_renewed: bool, noted: io::Result<()>) -> io::Result<()> {
    match noted {
        Err(e)
            if !is_renewed
                && matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
        {
            tracing::warn!(error = %e, "cannot write the note of a lock");
            Ok(())
        }
        other => other,
    }
}

/// Returns whether a note has not been renewed for [`LEASE`], or no longer exists.
fn has_expired(layout: &Layout, note: &Path) -> Result<bool> {
    Ok(age_of(layout, note)?.is_none_or(|age| age > LEASE))
}

/// Returns the time since a note was renewed, by the clock of the file server. Returns `None` if
/// the note does not exist.
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
    let now = server_time().context(&probe, "determine the time of the file server")?;
    match fs::symlink_metadata(note).and_then(|metadata| metadata.modified()) {
        // A time in the future counts as now.
        Ok(renewed) => Ok(Some(now.duration_since(renewed).unwrap_or_default())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(note, "stat a lease"),
    }
}

/// Renews a note. Returns false if another process has taken it over.
fn renew_note(path: &Path, token: &str) -> bool {
    match Note::read(path) {
        Note::Holder(noted) if noted.token == token => {}
        Note::Holder(noted) => {
            tracing::error!(
                path = %path.display(), holder = %noted,
                "another process has taken over the lock: the environment is not changed any more"
            );
            return false;
        }
        // A process that took it over would have written a valid note, so it is still ours. Other
        // processes judge it by its age.
        Note::Unreadable(Some(_)) => {
            tracing::warn!(path = %path.display(), "the note of a lock is damaged");
        }
        // The server may return it at the next attempt.
        Note::Unreadable(None) | Note::Missing => {
            tracing::warn!(path = %path.display(), "cannot renew a lock: its note cannot be read");
            return true;
        }
    }
    // UTIME_NOW is the time of the server; an explicit time would be that of this host.
    let touched = regular::open_with(path, OpenOptions::new().write(true)).and_then(|file| {
        nix::sys::stat::futimens(
            &file,
            &nix::sys::time::TimeSpec::UTIME_NOW,
            &nix::sys::time::TimeSpec::UTIME_NOW,
        )
        .map_err(io::Error::from)
    });
    if let Err(e) = touched {
        tracing::warn!(path = %path.display(), error = %e, "cannot renew a lock");
    }
    true
}

#[cfg(test)]
mod tests;
