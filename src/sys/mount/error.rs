//! Errors of mounting, with hints on how to solve them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use super::{DEVICE, Refusal};

/// Why a file system could not be mounted or unmounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// The kernel does not support FUSE, or the container lacks the device.
    #[error("{DEVICE} does not exist: FUSE is not available on this system or in this container")]
    NoDevice,
    /// The device exists, but may not be opened.
    #[error("cannot open {DEVICE} (mode {mode:04o}, owner {owner}): {error}")]
    DeviceDenied {
        /// Permission bits of the device.
        mode: u32,
        /// Owner of the device.
        owner: String,
        /// The cause.
        error: io::Error,
    },
    /// The caller is not root, and the helper for ordinary users does not exist.
    #[error("mounting needs root or the setuid helper fusermount3, which is not in PATH")]
    NoHelper,
    /// The helper exists, but is not setuid root (as in many containers).
    #[error("{} is not setuid root, so it cannot mount for an ordinary user", .helper.display())]
    HelperNotSetuid {
        /// The helper.
        helper: PathBuf,
    },
    /// The helper refused to mount or unmount.
    #[error("{} refused {}: {message}", .helper.display(), .path.display())]
    Refused {
        /// The helper.
        helper: PathBuf,
        /// The mount point.
        path: PathBuf,
        /// Its error message, or its exit status.
        message: String,
        /// Whether the AppArmor profile of the helper may be the cause.
        apparmor: bool,
    },
    /// The system refuses a private mount.
    #[error("{0}")]
    Namespace(Refusal),
    /// The mount is in use.
    #[error("{} is in use", .path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {error}", .path.display())]
    System {
        /// What was attempted.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

impl MountError {
    pub(super) fn system(
        action: &'static str,
        path: &Path,
        error: impl Into<io::Error>,
    ) -> MountError {
        MountError::System {
            action,
            path: path.to_path_buf(),
            error: error.into(),
        }
    }

    /// Returns hints on how to solve the problem.
    pub fn hints(&self) -> Vec<String> {
        let lines: &[&str] = match self {
            MountError::NoDevice => &[
                "on a system that you administer, as root: modprobe fuse",
                "in a container: start it with --device /dev/fuse",
            ],
            MountError::DeviceDenied { .. } => {
                &["as root: chmod 0666 /dev/fuse (the mode that udev sets)"]
            }
            MountError::NoHelper => {
                return with_namespace("as root: apt install fuse3 (or dnf install fuse3)");
            }
            MountError::HelperNotSetuid { .. } => {
                return with_namespace(
                    "as root: chmod u+s the helper; its file system must not be mounted nosuid",
                );
            }
            MountError::Refused { apparmor: true, .. } => &[
                "AppArmor lets fusermount3 mount only below $HOME, /mnt, /media, /tmp, /cvmfs and \
                 $XDG_RUNTIME_DIR: choose a prefix there",
                "or allow this path in /etc/apparmor.d/local/fusermount3 (as root)",
            ],
            // It is missing in a chroot that no init system has seen.
            MountError::Refused { message, .. } if message.contains("/etc/mtab") => {
                &["as root: ln -s ../proc/self/mounts /etc/mtab"]
            }
            MountError::Refused { .. } => &["envfs doctor checks for possible causes"],
            MountError::Busy { .. } => &[
                "envfs unmount --lazy detaches it now; the daemon ends when it is no longer in use",
            ],
            MountError::Namespace(refusal) => return refusal.hints(),
            MountError::System { .. } => &[],
        };
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    /// Returns whether FUSE is not usable on this system at all.
    pub fn is_fuse_unavailable(&self) -> bool {
        matches!(
            self,
            MountError::NoDevice
                | MountError::DeviceDenied { .. }
                | MountError::NoHelper
                | MountError::HelperNotSetuid { .. }
                | MountError::Namespace(_)
        )
    }
}

/// A command that runs a program in its own user and mount namespace, where it may mount, with the
/// same user id.
const NAMESPACE: [&str; 5] = [
    "unshare",
    "--user",
    "--map-current-user",
    "--keep-caps",
    "--mount",
];

/// Tests whether this user can create namespaces in which mounting is allowed.
fn namespaces_work() -> bool {
    let [program, options @ ..] = NAMESPACE;
    Command::new(program)
        .args(options)
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Adds to a hint for root what the user can do without root, if it works.
fn with_namespace(hint: &str) -> Vec<String> {
    let mut hints = vec![hint.to_owned()];
    if namespaces_work() {
        hints.push(String::from(
            "or without root, so that only one command sees it: envfs run --private NAME CMD",
        ));
    }
    hints
}
