//! Why a system refuses namespaces to a user, and what the user or root can do about it.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use nix::libc;

use crate::sys::process::error_text;

/// A step of creating a private mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Creating a user namespace.
    UserNamespace,
    /// Mapping the user and the group into it.
    Ids,
    /// Creating a mount namespace.
    MountNamespace,
    /// Separating its mounts from those outside.
    Propagation,
    /// Opening the FUSE device.
    Device,
    /// Mounting.
    Mount,
    /// Opening the new namespaces and the mount.
    Handles,
}

const STEPS: [Step; 7] = [
    Step::UserNamespace,
    Step::Ids,
    Step::MountNamespace,
    Step::Propagation,
    Step::Device,
    Step::Mount,
    Step::Handles,
];

impl Step {
    /// Returns a number other than 0.
    pub(super) fn code(self) -> u8 {
        let place = STEPS.iter().position(|step| *step == self).unwrap_or(0);
        u8::try_from(place + 1).unwrap_or(u8::MAX)
    }

    pub(super) fn from_code(code: u8) -> Option<Step> {
        STEPS.get(usize::from(code).checked_sub(1)?).copied()
    }

    fn describe(self) -> &'static str {
        match self {
            Step::UserNamespace => "create a user namespace",
            Step::Ids => "map this user into a user namespace",
            Step::MountNamespace => "create a mount namespace",
            Step::Propagation => "separate the mounts of a mount namespace",
            Step::Device => "open the FUSE device in a user namespace",
            Step::Mount => "mount in a user namespace",
            Step::Handles => "open the new namespaces",
        }
    }
}

/// The settings of a system that refuse namespaces to ordinary users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// `user.max_mnt_namespaces`.
    pub max_mnt_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone` (Debian, Arch).
    pub unprivileged_userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu).
    pub apparmor: Option<u64>,
    /// Whether the kernel has user namespaces.
    pub supported: bool,
}

impl Settings {
    /// Reads them.
    pub(super) fn read() -> Settings {
        let number =
            |path: &str| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
        Settings {
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            max_mnt_namespaces: number("/proc/sys/user/max_mnt_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            supported: Path::new("/proc/self/ns/user").exists(),
        }
    }
}

/// What refuses a private mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The kernel has no user namespaces.
    Unsupported,
    /// A setting allows no more of them, by default none.
    Limit(&'static str),
    /// A setting forbids them to ordinary users.
    Disabled,
    /// AppArmor forbids what ordinary users need in them.
    AppArmor,
    /// A sandbox, such as the seccomp filter of a container, or a chroot.
    Sandbox,
    /// The kernel is too old to let users mount FUSE in them.
    OldKernel,
    /// Something else.
    Unknown,
}

impl Cause {
    fn of(step: Step, error: &io::Error, settings: Settings) -> Cause {
        let code = error.raw_os_error();
        let is_denied = matches!(code, Some(libc::EPERM | libc::EACCES));
        let is_full = matches!(code, Some(libc::ENOSPC | libc::EUSERS));
        let creates = matches!(step, Step::UserNamespace | Step::MountNamespace);
        match step {
            Step::UserNamespace if !settings.supported => Cause::Unsupported,
            Step::UserNamespace if code == Some(libc::EINVAL) => Cause::Unsupported,
            Step::UserNamespace if is_full => Cause::Limit("user.max_user_namespaces"),
            Step::MountNamespace if is_full => Cause::Limit("user.max_mnt_namespaces"),
            Step::UserNamespace if is_denied && settings.unprivileged_userns_clone == Some(0) => {
                Cause::Disabled
            }
            _ if is_denied && settings.apparmor.is_some_and(|value| value > 0) => Cause::AppArmor,
            Step::Mount if code == Some(libc::EPERM) => Cause::OldKernel,
            _ if is_denied && (creates || step == Step::Ids) => Cause::Sandbox,
            _ => Cause::Unknown,
        }
    }
}

/// The refusal of a private mount.
#[derive(Debug)]
pub struct Refusal {
    step: Step,
    error: io::Error,
    cause: Cause,
    settings: Settings,
}

impl Refusal {
    pub(super) fn new(step: Step, error: io::Error) -> Refusal {
        Refusal::with(step, error, Settings::read())
    }

    fn with(step: Step, error: io::Error, settings: Settings) -> Refusal {
        Refusal {
            cause: Cause::of(step, &error, settings),
            step,
            error,
            settings,
        }
    }

    /// Returns the cause.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// Returns what to do about it.
    pub(super) fn hints(&self) -> Vec<String> {
        let words: &[&str] = match self.cause {
            Cause::Disabled => &["as root: sysctl -w kernel.unprivileged_userns_clone=1"],
            Cause::AppArmor => &[
                "as root: allow it for envfs with an AppArmor profile (docs/private-sessions.md has one)",
                "or for all programs: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ],
            Cause::Sandbox => {
                &["in a container: start it with a seccomp profile that allows unshare and mount"]
            }
            Cause::Limit(name) => {
                return vec![
                    format!("as root: sysctl -w {name}=15000"),
                    String::from(SETUID),
                ];
            }
            Cause::OldKernel => &["it needs Linux 4.18 or later"],
            Cause::Unsupported | Cause::Unknown => &[],
        };
        let words = words.iter().copied().chain([SETUID]);
        words.map(str::to_owned).collect()
    }
}

/// What works without namespaces.
const SETUID: &str =
    "or use envfs without a private session; that needs fusermount3 (as root: apt install fuse3)";

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (doing, error) = (self.step.describe(), error_text(&self.error));
        match self.cause {
            Cause::Unsupported => write!(f, "cannot {doing}: this kernel does not support them"),
            Cause::Limit(name) => {
                let limit = match name {
                    "user.max_user_namespaces" => self.settings.max_user_namespaces,
                    _ => self.settings.max_mnt_namespaces,
                };
                write!(f, "cannot {doing}: the limit {name}")?;
                match limit {
                    Some(limit) => write!(f, " is {limit}"),
                    None => write!(f, " is reached"),
                }
            }
            Cause::Disabled => write!(f, "cannot {doing}: kernel.unprivileged_userns_clone is 0"),
            Cause::AppArmor => write!(
                f,
                "cannot {doing}: {error}; AppArmor restricts them \
                 (kernel.apparmor_restrict_unprivileged_userns is 1)"
            ),
            Cause::Sandbox => write!(
                f,
                "cannot {doing}: {error}; a sandbox, a container or a chroot forbids it"
            ),
            Cause::OldKernel => write!(
                f,
                "cannot {doing}: {error}; this kernel does not let users mount FUSE there"
            ),
            Cause::Unknown => write!(f, "cannot {doing}: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(step: Step, code: i32, settings: Settings) -> Refusal {
        Refusal::with(step, io::Error::from_raw_os_error(code), settings)
    }

    #[test]
    fn each_refusal_of_the_system_is_named_with_a_remedy() {
        let plain = Settings {
            supported: true,
            ..Settings::default()
        };
        let none = Settings {
            max_user_namespaces: Some(0),
            ..plain
        };
        let debian = Settings {
            unprivileged_userns_clone: Some(0),
            ..plain
        };
        let ubuntu = Settings {
            apparmor: Some(1),
            unprivileged_userns_clone: Some(1),
            ..plain
        };
        for (step, code, settings, cause, words) in [
            (
                Step::UserNamespace,
                libc::ENOSPC,
                none,
                Cause::Limit("user.max_user_namespaces"),
                "user.max_user_namespaces is 0",
            ),
            (
                Step::UserNamespace,
                libc::EPERM,
                debian,
                Cause::Disabled,
                "kernel.unprivileged_userns_clone is 0",
            ),
            (Step::Ids, libc::EPERM, ubuntu, Cause::AppArmor, "AppArmor"),
            (
                Step::Mount,
                libc::EACCES,
                ubuntu,
                Cause::AppArmor,
                "AppArmor",
            ),
            (
                Step::UserNamespace,
                libc::EPERM,
                plain,
                Cause::Sandbox,
                "a container",
            ),
            (
                Step::UserNamespace,
                libc::EINVAL,
                plain,
                Cause::Unsupported,
                "does not support",
            ),
            (
                Step::Mount,
                libc::EPERM,
                plain,
                Cause::OldKernel,
                "mount FUSE",
            ),
            (
                Step::Mount,
                libc::ENODEV,
                plain,
                Cause::Unknown,
                "No such device",
            ),
        ] {
            let refusal = refused(step, code, settings);
            assert_eq!(refusal.cause(), cause, "{refusal}");
            assert!(refusal.to_string().contains(words), "{refusal}");
            assert!(!refusal.hints().is_empty(), "{refusal}");
        }
    }

    #[test]
    fn steps_survive_the_way_through_a_socket() {
        for step in STEPS {
            assert_ne!(step.code(), 0);
            assert_eq!(Step::from_code(step.code()), Some(step));
        }
        assert_eq!(Step::from_code(0), None);
        assert_eq!(Step::from_code(200), None);
    }
}
