//! Mounts in a mount namespace of their own, visible only to the processes that enter it. They need
//! neither root nor a set-user-ID helper, because an ordinary user may mount in a user namespace
//! that the user has created.
//!
//! A child process creates the namespaces and the mount, sends their descriptors and ends. So the
//! process that serves the mount stays outside: it sees the files that it saw before, with the
//! rights that it had before. The namespaces last as long as a process is in them or one of these
//! descriptors is open; then the kernel removes the mount, which ends the session.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};

use super::refusal::{Refusal, Step};
use super::{MountError, MountRequest, device_error, mount_directly, open_device};
use crate::sys::{descriptors, process};

/// The namespaces that a private mount needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// A mount namespace; for processes that may mount.
    Mount,
    /// Also a user namespace, in which the user keeps their number and may mount.
    UserAndMount,
}

impl Isolation {
    /// Returns what this process needs.
    pub fn needed() -> Isolation {
        match process::may_administer() {
            true => Isolation::Mount,
            false => Isolation::UserAndMount,
        }
    }
}

/// The namespaces of a private mount.
#[derive(Debug)]
pub struct Namespaces {
    user: Option<OwnedFd>,
    mount: OwnedFd,
}

/// A private mount that is not served yet.
#[derive(Debug)]
pub struct PrivateMount {
    /// The descriptor from which requests are read.
    pub device: OwnedFd,
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The root directory of the mount, opened without access to it. Keeps the mount.
    pub root: OwnedFd,
}

/// The status of a child that has sent all descriptors.
const SENT: u8 = 0;

/// Creates namespaces with a mount in them. Must be called while there is only one thread.
pub fn mount(request: &MountRequest, isolation: Isolation) -> Result<PrivateMount, MountError> {
    let failed =
        |error: io::Error| MountError::system("mount privately at", &request.mount_point, error);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // SAFETY: there is only this thread, so no lock is held in the child.
    let child = match unsafe { nix::unistd::fork() }.map_err(|error| failed(error.into()))? {
        ForkResult::Child => {
            drop(ours);
            create_and_send(request, isolation, &theirs)
        }
        ForkResult::Parent { child } => child,
    };
    drop(theirs);
    let mut message = [0; 5];
    let received = descriptors::receive(&ours, &mut message);
    while waitpid(child, None) == Err(Errno::EINTR) {}
    let (length, files) = received.map_err(failed)?;
    let lost = || {
        failed(io::Error::other(
            "the child process that mounts ended early",
        ))
    };
    if length != message.len() {
        return Err(lost());
    }
    let [status, number @ ..] = message;
    if status != SENT {
        let error = io::Error::from_raw_os_error(i32::from_ne_bytes(number));
        return Err(match Step::from_code(status) {
            Some(Step::Device) => device_error(error),
            Some(step) => MountError::Namespace(Refusal::new(step, error)),
            None => lost(),
        });
    }
    let mut files = files.into_iter();
    let (Some(device), Some(root), Some(mount)) = (files.next(), files.next(), files.next()) else {
        return Err(lost());
    };
    let user = files.next();
    Ok(PrivateMount {
        device,
        namespaces: Namespaces { user, mount },
        root,
    })
}

/// Does the work of the child process.
fn create_and_send(request: &MountRequest, isolation: Isolation, socket: &UnixStream) -> ! {
    let sent = match create(request, isolation) {
        Ok(made) => {
            let mut files = vec![made.device.as_fd(), made.root.as_fd()];
            files.extend(made.namespaces.files());
            descriptors::send(socket, &[SENT, 0, 0, 0, 0], &files)
        }
        Err((step, error)) => {
            let mut message = vec![step.code()];
            message.extend(error.raw_os_error().unwrap_or(0).to_ne_bytes());
            descriptors::send(socket, &message, &[])
        }
    };
    // SAFETY: ends this process without the destructors of the parent.
    unsafe { nix::libc::_exit(i32::from(sent.is_err())) }
}

/// Moves this process into new namespaces and mounts there.
fn create(request: &MountRequest, isolation: Isolation) -> Result<PrivateMount, (Step, io::Error)> {
    let at = |step: Step| move |error: Errno| (step, io::Error::from(error));
    let io_at = |step: Step| move |error: io::Error| (step, error);
    let mut user = None;
    if isolation == Isolation::UserAndMount {
        let (uid, gid) = (process::user_id(), process::group_id());
        unshare(CloneFlags::CLONE_NEWUSER).map_err(at(Step::UserNamespace))?;
        map_ids(uid, gid).map_err(io_at(Step::Ids))?;
        let file = File::open("/proc/self/ns/user").map_err(io_at(Step::Handles))?;
        user = Some(file.into());
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(at(Step::MountNamespace))?;
    // Later mounts outside appear inside, but not the other way.
    nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .map_err(at(Step::Propagation))?;
    let device = open_device().map_err(io_at(Step::Device))?;
    mount_directly(request, &device).map_err(at(Step::Mount))?;
    let root = open(
        &request.mount_point,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(at(Step::Handles))?;
    let mount = File::open("/proc/self/ns/mnt").map_err(io_at(Step::Handles))?;
    Ok(PrivateMount {
        device,
        namespaces: Namespaces {
            user,
            mount: mount.into(),
        },
        root,
    })
}

/// Maps the user and the group of this process to themselves in its new user namespace.
fn map_ids(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n"))
}

/// Why a process could not enter a private mount.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// A system call failed.
    #[error("cannot {doing}: {error}")]
    System {
        /// What was attempted.
        doing: String,
        /// The cause.
        error: io::Error,
    },
    /// Entering a mount namespace leaves a chroot.
    #[error("private sessions cannot be used in a chroot")]
    Chroot,
}

impl Namespaces {
    /// Puts together what [`files`](Self::files) has returned in another process.
    pub fn from_files(files: Vec<OwnedFd>) -> Option<Namespaces> {
        let mut files = files.into_iter();
        Some(Namespaces {
            mount: files.next()?,
            user: files.next(),
        })
    }

    /// Returns the descriptors to send to a process that is to enter the namespaces.
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        let user = self.user.as_ref().map(AsFd::as_fd);
        std::iter::once(self.mount.as_fd()).chain(user).collect()
    }

    /// Returns the number of the mount namespace.
    pub fn id(&self) -> io::Result<u64> {
        Ok(nix::sys::stat::fstat(&self.mount)?.st_ino)
    }

    /// Moves this process into the namespaces. The working directory stays the same path. Must be
    /// called while there is only one thread. After a failure this process must end, since it may
    /// have entered one of the namespaces.
    pub fn enter(&self) -> Result<(), EnterError> {
        let failed = |doing: &str, error: io::Error| EnterError::System {
            doing: doing.to_owned(),
            error,
        };
        let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        let root = Path::new("/");
        let before = identity(root).map_err(|error| failed("stat /", error))?;
        let dir = working_directory();
        let old = File::open(".").ok();
        if let Some(user) = &self.user {
            setns(user, CloneFlags::CLONE_NEWUSER)
                .map_err(|error| failed("enter the user namespace of the session", error.into()))?;
        }
        setns(&self.mount, CloneFlags::CLONE_NEWNS)
            .map_err(|error| failed("enter the mount namespace of the session", error.into()))?;
        if identity(root).map_err(|error| failed("stat /", error))? != before {
            return Err(EnterError::Chroot);
        }
        match (dir, old) {
            (Ok(dir), _) => std::env::set_current_dir(&dir)
                .map_err(|error| failed(&format!("change to {}", dir.display()), error)),
            // It was removed, so it has no path.
            (Err(_), Some(old)) => nix::unistd::fchdir(&old)
                .map_err(|error| failed("change to the working directory", error.into())),
            (Err(error), None) => Err(failed("find the working directory", error)),
        }
    }
}

/// Returns the path of the working directory.
fn working_directory() -> io::Result<PathBuf> {
    let dir = std::env::current_dir()?;
    match dir.is_absolute() {
        true => Ok(dir),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Returns the processes in a mount namespace, as far as they are visible to this user.
pub fn members(namespace: u64) -> Vec<u32> {
    let name = format!("mnt:[{namespace}]");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|link| link.as_os_str() == &*name)
    })
    .collect()
}

/// Returns the mount namespaces that a process keeps open: those of the private mounts that it
/// serves and that can be joined. Empty if this user may not inspect the process.
pub fn kept_by(pid: u32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    let numbers = links.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let number = link.to_str()?.strip_prefix("mnt:[")?.strip_suffix(']')?;
        number.parse().ok()
    });
    numbers.collect()
}

/// Makes the kernel write the dirty pages of a private mount, given by its root, to its daemon.
///
/// Must not be called on a thread that the daemon needs to handle requests.
pub fn sync(root: impl AsFd) -> io::Result<()> {
    // The mount has no path here, but its root can be opened again through its descriptor.
    let number = root.as_fd().as_raw_fd();
    super::sync(Path::new(&format!("/proc/self/fd/{number}")))
}

/// Returns whether this process may mount in its mount namespace: as root, unless it is root only
/// in a user namespace that does not have the mount namespace (`unshare --map-root-user`).
pub(super) fn may_mount_here() -> bool {
    // _IO(0xb7, 1): the user namespace that a namespace belongs to.
    const NS_GET_USERNS: nix::libc::c_ulong = 0xb701;
    if !process::may_administer() {
        return false;
    }
    let Ok(namespace) = File::open("/proc/self/ns/mnt") else {
        return true;
    };
    // SAFETY: the call takes an open descriptor and returns a new one or -1.
    let owner = unsafe { nix::libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if owner < 0 {
        // The answer is refused for a namespace that belongs to a user namespace above.
        return Errno::last() != Errno::EPERM;
    }
    // SAFETY: the descriptor is new, so nothing else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(owner) });
    true
}

/// Returns the number of the mount namespace of this process.
pub fn own_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/mnt")?.ino())
}
