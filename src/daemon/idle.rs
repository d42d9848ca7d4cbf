//! Unmounts what is not used (`session.idle` in the configuration).
//!
//! A mount is in use while requests come, while a process has a file, directory, program or mapping
//! in it, and while a process was started in the environment: it has the prefix in its variable
//! `ENVFS_PREFIX`. A shell in which the environment is active leaves a note, because variables that
//! it sets itself cannot be read. The kernel refuses to unmount what is in use in any other way.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::runtime::RuntimeDir;
use super::unmount::refuse_covered;
use crate::fuse::Counters;
use crate::fuse::session::StopHandle;
use crate::sys::mount::{self, MountError, UnmountMode};
use crate::sys::mountinfo;
use crate::sys::{holders, private, process, regular};

/// The longest and shortest interval between two checks.
const LONGEST: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_millis(200);
/// The size limit of the note of a shell, in bytes.
const NOTE_LIMIT: u64 = 64 << 10;

/// A mount that is unmounted when it is idle.
#[derive(Debug)]
pub(super) struct Idle {
    /// How long it must be unused.
    pub limit: Duration,
    /// The mount point.
    pub mount_point: PathBuf,
    /// The source in the mount table.
    pub source: String,
    /// The requests that it has served.
    pub counters: Arc<Counters>,
    /// Ends the session after the unmount.
    pub stop_handle: StopHandle,
    /// The directory with the notes of shells.
    pub runtime: RuntimeDir,
}

impl Idle {
    /// Starts the thread that watches the mount. It ends with the mount, or with the process.
    pub(super) fn watch(self) {
        let started = std::thread::Builder::new()
            .name(String::from("idle"))
            .spawn(move || self.run());
        if let Err(error) = started {
            tracing::warn!(%error, "cannot start a thread: the mount is not unmounted when idle");
        }
    }

    fn run(&self) {
        let step = (self.limit / 4).clamp(SHORTEST, LONGEST);
        let (mut requests, mut since) = (self.counters.requests(), Instant::now());
        loop {
            std::thread::sleep(step);
            let now = self.counters.requests();
            if now != requests || self.is_used() {
                (requests, since) = (now, Instant::now());
            }
            if since.elapsed() < self.limit {
                continue;
            }
            if let Err(error) = refuse_covered(&self.mount_point, &self.source) {
                tracing::debug!("idle, but {error}");
                since = Instant::now();
                continue;
            }
            match mount::unmount(&self.mount_point, UnmountMode::Plain) {
                Ok(()) => {
                    tracing::info!("unmounted: not used for {} s", self.limit.as_secs());
                    return self.stop_handle.unmounted();
                }
                Err(error) => {
                    if !matches!(error, MountError::Busy { .. }) {
                        tracing::warn!(%error, "cannot unmount an idle mount; will try again");
                    }
                    since = Instant::now();
                }
            }
        }
    }

    /// Returns whether a process uses the mount, as far as that can be seen.
    fn is_used(&self) -> bool {
        let own = match mountinfo::own(&self.mount_point, &self.source) {
            Ok(Some(own)) => own,
            // It is being unmounted, or cannot be seen.
            _ => return true,
        };
        !holders::of_mount(&own).is_empty()
            || !holders::in_other_namespaces(&own).0.is_empty()
            || process::any_with_variable("ENVFS_PREFIX", self.mount_point.as_os_str())
            || shells(&self.runtime)
                .iter()
                .any(|prefix| prefix == &self.mount_point)
    }
}

/// A change of the environments that are active in a shell.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ShellChange<'a> {
    /// The environment with this prefix replaces the active ones.
    Replace(&'a Path),
    /// It is stacked on the active one.
    Stack(&'a Path),
    /// The one that was activated last is deactivated.
    Leave,
}

/// Notes which environments are active in a shell, so that they are not idle while it runs.
pub(crate) fn note_shell(
    runtime: &RuntimeDir,
    pid: u32,
    change: ShellChange<'_>,
) -> io::Result<()> {
    let (Some(dir), Some(started)) = (runtime.shells(), process::start_time(pid)) else {
        return Ok(());
    };
    let path = dir.join(format!("{pid}-{started}"));
    let mut active = match change {
        ShellChange::Replace(_) => Vec::new(),
        _ => regular::read(&path, NOTE_LIMIT).unwrap_or_default(),
    };
    match change {
        ShellChange::Replace(prefix) | ShellChange::Stack(prefix) => {
            active.extend_from_slice(prefix.as_os_str().as_bytes());
            active.push(0);
        }
        ShellChange::Leave => {
            active.pop();
            let end = active.iter().rposition(|&byte| byte == 0);
            active.truncate(end.map_or(0, |end| end + 1));
        }
    }
    if active.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    private::create_dir(&dir)?;
    fs::write(&path, active)
}

/// Returns the prefixes of the environments that are active in running shells. Removes notes of
/// shells that have ended.
fn shells(runtime: &RuntimeDir) -> Vec<PathBuf> {
    let entries = runtime.shells().and_then(|dir| fs::read_dir(dir).ok());
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((pid, started)) = name.to_str().and_then(|name| name.split_once('-')) else {
            continue;
        };
        let (Ok(pid), Ok(started)) = (pid.parse(), started.parse()) else {
            continue;
        };
        if process::is_running(pid, started) {
            let text = regular::read(&entry.path(), NOTE_LIMIT).unwrap_or_default();
            let prefixes = text.split(|&byte| byte == 0).filter(|one| !one.is_empty());
            found.extend(prefixes.map(|one| PathBuf::from(OsStr::from_bytes(one))));
        } else if let Err(error) = fs::remove_file(entry.path()) {
            tracing::debug!(%error, "cannot remove the note of a shell");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn environments_are_noted_while_a_shell_has_them_active() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(&dir.path().join("run")).unwrap();
        let pid = std::process::id();
        let (a, b) = (Path::new("/a b"), Path::new("/b"));
        let after = |change: ShellChange<'_>| {
            note_shell(&runtime, pid, change).unwrap();
            shells(&runtime)
        };
        assert_eq!(after(ShellChange::Replace(a)), [a]);
        assert_eq!(after(ShellChange::Stack(b)), [a, b]);
        assert_eq!(after(ShellChange::Leave), [a]);
        assert_eq!(after(ShellChange::Replace(b)), [b]);
        assert_eq!(after(ShellChange::Leave), Vec::<PathBuf>::new());
        assert_eq!(after(ShellChange::Leave), Vec::<PathBuf>::new());
        // A shell that has ended.
        let ended = runtime.shells().unwrap().join(format!("{pid}-1"));
        fs::write(&ended, "/a\0").unwrap();
        assert_eq!(shells(&runtime), Vec::<PathBuf>::new());
        assert!(!ended.exists());
    }
}
