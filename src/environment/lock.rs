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

mod note;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use fs2::FileExt;

use super::error::{Context, EnvironmentError, Result};
use super::holder::Holder;
use super::layout::Layout;
use crate::fault;
use crate::sys::medium::network_file_system;
use crate::sys::text::Text;
use crate::sys::{clock, regular};
use note::{
    Note, age_of, draft_holder, has_expired, read_holder, renew_note, sync_note, write_holder,
};

/// The time after which a lease of another host that was not renewed is free.
pub const LEASE: Duration = Duration::from_secs(300);

/// The interval at which a lease is renewed.
const RENEW: Duration = Duration::from_secs(30);

/// The time after which a holder that could not renew its lease must assume that another host takes
/// it over. Times are measured on two hosts and by the file server, so it is less than [`LEASE`].
const CERTAIN: Duration = Duration::from_secs(240);

/// The interval at which a holder looks whether it is time to renew: soon after it was suspended.
const LOOK: Duration = Duration::from_secs(5);

/// The interval at which a waiting process tries again.
const RETRY: Duration = Duration::from_millis(50);

/// The lock of an environment, held until the value is dropped.
#[derive(Debug)]
pub struct EnvLock {
    /// The locked file; `None` where the lease alone is the lock.
    _file: Option<File>,
    protocol: Protocol,
    hold: Hold,
    holder: Holder,
    /// The home; changes when the environment is renamed under the lock.
    layout: Arc<Mutex<Layout>>,
    renewal: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Whether this process still has a lock. A lease can be taken over by another host if it was not
/// renewed, for example while this one was suspended.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Whether another process was found to have taken over the lease.
    is_lost: Arc<AtomicBool>,
    /// The time of the last renewal, in seconds since boot; `None` if the lock does not expire.
    renewed: Option<Arc<AtomicU64>>,
}

impl Hold {
    fn new(protocol: Protocol) -> Hold {
        let renewed = (protocol != Protocol::Note).then(|| Arc::new(clock::since_boot().into()));
        Hold {
            is_lost: Arc::default(),
            renewed,
        }
    }

    /// Returns whether another process has taken over the lease.
    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    /// Returns whether no other process can have taken over the lock by now.
    pub fn is_certain(&self) -> bool {
        let is_recent = |renewed: &Arc<AtomicU64>| {
            let age = clock::since_boot().saturating_sub(renewed.load(Ordering::SeqCst));
            age < CERTAIN.as_secs()
        };
        !self.is_lost() && self.renewed.as_ref().is_none_or(is_recent)
    }

    /// Returns how long ago the lease was renewed.
    fn age(&self) -> Duration {
        let renewed = self
            .renewed
            .as_ref()
            .map(|time| time.load(Ordering::SeqCst));
        let now = clock::since_boot();
        Duration::from_secs(now.saturating_sub(renewed.unwrap_or(now)))
    }

    fn renewed_now(&self) {
        if let Some(renewed) = &self.renewed {
            renewed.store(clock::since_boot(), Ordering::SeqCst);
        }
    }
}

/// The hosts that can use a home.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    ThisHost,
    /// The home is on a network file system.
    OtherHosts,
}

/// The note of a lock, besides `flock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// A lease, which is renewed.
    Lease,
    /// A note that is renewed, where hard links are unsupported.
    RenewedNote,
    /// A note for messages only.
    Note,
}

impl Protocol {
    /// Returns the file that names the holder.
    fn note(self, layout: &Layout) -> PathBuf {
        match self {
            Protocol::Lease => layout.lease(),
            Protocol::RenewedNote | Protocol::Note => layout.lock_holder(),
        }
    }

    /// Ignores the failure to write a note on a full disk if the note is for messages only: `gc`
    /// and `discard` must work on a full disk. A note that is renewed is part of the lock.
    fn tolerate_full_disk(self, written: io::Result<()>) -> io::Result<()> {
        let is_full = |e: &io::Error| {
            matches!(
                e.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match written {
            Err(e) if self == Protocol::Note && is_full(&e) => {
                tracing::warn!(error = %e, "cannot write the note of a lock");
                Ok(())
            }
            other => other,
        }
    }
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

    /// Takes the lock, waiting up to `timeout` for its holder to release it. Does not wait for a
    /// daemon on another host.
    pub fn lock(layout: &Layout, purpose: &str, timeout: Duration) -> Result<EnvLock> {
        let deadline = Instant::now() + timeout;
        let network = network_file_system(layout.home())
            .context(layout.home(), "determine the type of the file system")?;
        let reach = match network {
            Some(_) => Reach::OtherHosts,
            None => Reach::ThisHost,
        };
        loop {
            match Self::attempt(layout, purpose, reach, flock)? {
                Attempt::Acquired(lock) => return Ok(lock),
                Attempt::Held(holder) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let lasts = holder.as_ref().is_some_and(Holder::is_mount_of_other_host);
                    if left.is_zero() || lasts {
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
        self.hold.is_lost()
    }

    /// Returns what tells other threads whether this process still has the lock.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
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
        let note = self.protocol.note(&layout);
        let draft = draft_holder(&layout, &self.holder);
        let written = draft.and_then(|draft| fs::rename(draft, &note));
        let written = self.protocol.tolerate_full_disk(written);
        written.context(&note, "write the note of the lock")
    }

    /// Sets the new paths of the home after it was renamed under the lock.
    pub(super) fn set_layout(&self, layout: &Layout) {
        *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = layout.clone();
    }

    fn attempt(
        layout: &Layout,
        purpose: &str,
        reach: Reach,
        flock: fn(&File) -> io::Result<()>,
    ) -> Result<Attempt> {
        let path = layout.lock();
        let me = Holder::current_process(layout, purpose)
            .context(&path, "describe the holder of the lock")?;
        let file = regular::open_or_create(&path).context(&path, "open the lock")?;
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
        if reach == Reach::OtherHosts || file.is_none() {
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
        let protocol = match reach {
            Reach::OtherHosts => Protocol::RenewedNote,
            Reach::ThisHost => Protocol::Note,
        };
        let written = protocol.tolerate_full_disk(write_holder(layout, &me));
        written.context(&note, "write the note of the lock")?;
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
        let hold = Hold::new(protocol);
        let renewal = (protocol != Protocol::Note).then(|| {
            let (stop, stopped) = crossbeam_channel::bounded(0);
            let (layout, token) = (Arc::clone(&layout), holder.token.clone());
            let hold = hold.clone();
            let (look, interval) = match fault::is_enabled("lease.renewed-often") {
                true => (RETRY, Duration::ZERO),
                false => (LOOK, RENEW),
            };
            let thread = std::thread::spawn(move || {
                while stopped.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
                    if hold.age() < interval || hold.is_lost() {
                        continue;
                    }
                    // Without this the lease would expire unnoticed after a panic.
                    let renewed = catch_unwind(AssertUnwindSafe(|| {
                        let layout = layout.lock().unwrap_or_else(PoisonError::into_inner);
                        renew_note(&protocol.note(&layout), &token)
                    }));
                    match renewed {
                        Ok(true) => hold.renewed_now(),
                        Ok(false) => hold.is_lost.store(true, Ordering::SeqCst),
                        Err(_) => tracing::error!(
                            "an internal error prevented renewing a lock; the next attempt follows"
                        ),
                    }
                }
            });
            (stop, thread)
        });
        EnvLock {
            _file: file,
            protocol,
            hold,
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
        let path = self.protocol.note(&layout);
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
