//! The note beside a lock, which names its holder.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::LEASE;
use crate::environment::error::{Context, Result};
use crate::environment::holder::Holder;
use crate::environment::layout::Layout;
use crate::environment::process::HostProcess;
use crate::object::Timestamp;
use crate::sys::{durable, process, regular};

/// The size limit of a note, in bytes.
const NOTE_LIMIT: u64 = 64 << 10;

impl Holder {
    pub(super) fn current_process(layout: &Layout, purpose: &str) -> io::Result<Holder> {
        Ok(Holder {
            process: HostProcess::current(),
            purpose: purpose.to_owned(),
            since: Timestamp::now().secs,
            home_id: Some(layout.home_id()?),
            socket: None,
            token: process::new_uuid()?,
        })
    }

    /// Returns whether this process is known not to hold the lock of this home: it has ended, or it
    /// locked another home. Device numbers differ between hosts, so it is false for another host.
    pub(super) fn is_stale(&self, layout: &Layout) -> bool {
        let locks_other_home = || {
            let home_id = layout.home_id().ok();
            self.is_local()
                && self.home_id.is_some()
                && home_id.is_some()
                && self.home_id != home_id
        };
        self.process.is_dead() || locks_other_home()
    }
}

/// The content of the file that names the holder of a lock.
pub(super) enum Note {
    /// There is no such file.
    Missing,
    /// It names a holder.
    Holder(Box<Holder>),
    /// It is empty, damaged or truncated, or cannot be read at all (`None`).
    Unreadable(Option<Vec<u8>>),
}

impl Note {
    pub(super) fn read(path: &Path) -> Note {
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
    pub(super) fn is_same_acquisition(&self, other: &Note) -> bool {
        match (self, other) {
            (Note::Holder(one), Note::Holder(other)) => one.token == other.token,
            (Note::Unreadable(one), Note::Unreadable(other)) => one == other,
            _ => false,
        }
    }
}

pub(super) fn read_holder(path: &Path) -> Option<Holder> {
    match Note::read(path) {
        Note::Holder(holder) => Some(*holder),
        Note::Missing | Note::Unreadable(_) => None,
    }
}

/// Writes a note under a temporary name beside the lock.
pub(super) fn draft_holder(layout: &Layout, holder: &Holder) -> io::Result<PathBuf> {
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

pub(super) fn sync_note(path: &Path) -> io::Result<()> {
    let synced = regular::open(path).and_then(durable::sync_file);
    if synced.is_err()
        && let Err(e) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), error = %e, "cannot remove a temporary note");
    }
    synced
}

pub(super) fn write_holder(layout: &Layout, holder: &Holder) -> io::Result<()> {
    let draft = draft_holder(layout, holder)?;
    fs::rename(draft, layout.lock_holder())
}

/// Returns whether a note has not been renewed for [`LEASE`], or no longer exists.
pub(super) fn has_expired(layout: &Layout, note: &Path) -> Result<bool> {
    Ok(age_of(layout, note)?.is_none_or(|age| age > LEASE))
}

/// Returns the time since a note was renewed, by the clock of the file server. Returns `None` if
/// the note does not exist.
pub(super) fn age_of(layout: &Layout, note: &Path) -> Result<Option<Duration>> {
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
pub(super) fn renew_note(path: &Path, token: &str) -> bool {
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
