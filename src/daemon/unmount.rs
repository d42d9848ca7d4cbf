//! Unmounting, by commands and by daemons, and its failures.

use std::path::Path;
use std::time::Duration;

use super::failure::{Failure, Kind};
use super::protocol::Unmounted;
use crate::fuse::session::StopHandle;
use crate::sys::holders;
use crate::sys::mount::{self, MountError, UnmountMode};
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::signals::TerminationSignals;

/// Unmounts on a signal. Programs that use the mount may finish, unless a second signal arrives.
pub(super) fn end_on_signal(
    signals: TerminationSignals,
    mount_point: &Path,
    source: &str,
    stop_handle: &StopHandle,
) {
    loop {
        match signals.wait() {
            Ok(signal) => tracing::info!(signal, "received a signal to end"),
            Err(error) => {
                tracing::error!(%error, "cannot wait for signals");
                return;
            }
        }
        if let Err(failure) = end(mount_point, source, stop_handle) {
            tracing::error!("{failure}; send SIGTERM after that");
        }
    }
}

/// Unmounts. If the mount is in use, detaches it, so that it ends with the last program that uses
/// it. If it was removed already, ends at once.
pub(super) fn end(
    mount_point: &Path,
    source: &str,
    stop_handle: &StopHandle,
) -> Result<(), Failure> {
    match mountinfo::own(mount_point, source) {
        Ok(None) => {
            tracing::warn!("the mount was removed already: ending although it may be in use");
            stop_handle.abandon();
            return Ok(());
        }
        Ok(Some(own)) if !holders::in_other_namespaces(&own).0.is_empty() => flush(mount_point),
        _ => {}
    }
    refuse_covered(mount_point, source)?;
    match mount::unmount(mount_point, UnmountMode::Plain) {
        Ok(()) => stop_handle.unmounted(),
        Err(MountError::Busy { .. }) => {
            mount::unmount(mount_point, UnmountMode::Lazy)?;
            tracing::warn!("in use: detached; ends when the last program that uses it does");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Unmounts what was mounted for a command that has ended meanwhile, unless other programs use it.
pub(super) fn end_unless_used(mount_point: &Path, stop_handle: &StopHandle) {
    match mount::unmount(mount_point, UnmountMode::Plain) {
        Ok(()) => stop_handle.unmounted(),
        Err(MountError::Busy { .. }) => tracing::info!("other programs use the mount: it stays"),
        Err(error) => tracing::error!(%error, "cannot undo the mount"),
    }
}

/// The time limit for flushing the kernel's cache before a mount is removed.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Flushes data written through mappings to the daemon. Needed if the mount has copies, as the
/// kernel does it by itself only when the last copy is removed.
pub(super) fn flush(mount_point: &Path) {
    if let Err(error) = mount::sync_with_timeout(mount_point, FLUSH_TIMEOUT) {
        tracing::warn!(%error, "cannot flush the kernel's cache of the mount");
    }
}

/// Fails if another file system is mounted on top, which an unmount would remove instead.
pub(super) fn refuse_covered(mount_point: &Path, source: &str) -> Result<(), Failure> {
    let covering = mountinfo::covering(mount_point, source)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    match covering {
        Some(top) => Err(covered(&top)),
        None => Ok(()),
    }
}

/// Returns the failure for a mount with another file system on top.
pub(super) fn covered(top: &MountEntry) -> Failure {
    let (source, at) = (top.source.to_string_lossy(), top.mount_point.display());
    Failure::new(
        Kind::Conflict,
        format!(
            "another file system is mounted on top of {at}: {source} ({})",
            top.fs_type
        ),
    )
    .hint(format!("unmount it (umount {at}), then try again"))
}

/// Detaches mounts whose daemon has ended, the topmost first.
pub(super) fn detach(mounts: &[MountEntry]) -> Result<(), Failure> {
    for mount in mounts.iter().rev() {
        // Another file system may be mounted on top by now: check that this is the mount at the
        // path.
        let top = mountinfo::at(&mount.mount_point)
            .map_err(|error| Failure::io("cannot read the mount table", &error))?;
        match top {
            Some(top) if top.id == mount.id => {
                tracing::info!(path = %mount.mount_point.display(), "detaching a dead mount");
                mount::unmount(&mount.mount_point, UnmountMode::Lazy)?;
            }
            Some(top) => return Err(covered(&top)),
            None => {}
        }
    }
    Ok(())
}

/// Unmounts a mount of envfs without a request to its daemon.
pub(super) fn unmount_directly(top: &MountEntry, mode: UnmountMode) -> Result<Unmounted, Failure> {
    let source = top.source.to_string_lossy();
    let covering = mountinfo::covering(&top.mount_point, &source)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(covering) = covering {
        return Err(covered(&covering));
    }
    match mount::unmount(&top.mount_point, UnmountMode::Plain) {
        Ok(()) => Ok(Unmounted::default()),
        Err(MountError::Busy { .. }) => {
            let holders = holders::of_mount(top);
            if mode != UnmountMode::Lazy {
                return Err(busy(&top.mount_point, &holders));
            }
            mount::unmount(&top.mount_point, UnmountMode::Lazy)?;
            Ok(Unmounted {
                holders,
                ..Unmounted::default()
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the processes that use an environment's mount, as far as they are visible.
pub(crate) fn holders(id: &str) -> Vec<holders::Holder> {
    match mountinfo::of_environment(id) {
        Ok(mounts) => mounts.iter().flat_map(holders::of_mount).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the mount table");
            Vec::new()
        }
    }
}

/// Returns the failure for a mount that is in use, with the processes that use it.
pub(crate) fn busy(mount_point: &Path, holders: &[holders::Holder]) -> Failure {
    let mut message = format!("{} is in use", mount_point.display());
    if holders.is_empty() {
        message.push_str(" (by a process of another user, or by a mount inside it)");
    }
    let mut failure = Failure::new(Kind::Busy, message);
    for holder in holders.iter().take(10) {
        failure = failure.detail(holder.to_string());
    }
    if holders.len() > 10 {
        failure = failure.detail(format!("and {} more", holders.len() - 10));
    }
    failure
        .hint("end these processes or leave the directory, then try again")
        .hint("or: envfs unmount --lazy (detaches it now; the daemon ends when they do)")
}
