//! Mounts and unmounts FUSE file systems: as root with mount(2), otherwise with the setuid helper
//! `fusermount3`, or in namespaces of their own ([`private`]).

mod error;
mod helper;
pub mod private;
mod refusal;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use serde::{Deserialize, Serialize};

use super::durable::sync_file_system;
use super::{mountinfo, probe, process};
pub use error::MountError;
pub use helper::{apparmor_allows, apparmor_confines_helper, helper, helper_is_setuid};
use helper::{mount_by_helper, unmount_by_helper};
pub use refusal::Refusal;

/// The device through which a daemon and the kernel exchange messages.
pub const DEVICE: &str = "/dev/fuse";

/// A mount to create.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The mount point: an absolute path of an existing directory.
    pub mount_point: PathBuf,
    /// The id of the environment; the source is `envfs:ID`. Must not contain commas.
    pub id: String,
    /// Whether other users may access the mount (needs `user_allow_other` in `/etc/fuse.conf`, or
    /// root).
    pub allow_other: bool,
    /// The rights of the user in the mount. [`Rights::Root`] excludes `allow_other`.
    pub rights: Rights,
    /// Further options.
    pub options: MountOptions,
}

/// The rights of a user in their mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The kernel checks permissions as in any file system.
    Own,
    /// The kernel checks no permissions, so that the user can do everything in the mount that root
    /// can do elsewhere (`--fakeroot`).
    Root,
}

/// Options that only mounts without a store change from their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// The source in the mount table, if not `envfs:ID`. Must not contain commas.
    pub source: Option<String>,
    /// The subtype: the type is `fuse.SUBTYPE`, or `fuse` if this is empty.
    pub subtype: String,
    /// Flags of the mount.
    pub flags: MountFlags,
}

/// Flags of a mount that the kernel implements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Read-only (`ro`).
    pub read_only: bool,
    /// Honor set-user-id bits (`suid`); ignored unless root mounts.
    pub suid: bool,
    /// Allow opening device nodes (`dev`); ignored unless root mounts.
    pub dev: bool,
    /// Do not execute programs (`noexec`).
    pub no_exec: bool,
    /// Do not follow symbolic links (`nosymfollow`).
    pub no_symfollow: bool,
    /// Make each write durable before it returns (`sync`).
    pub synchronous: bool,
}

impl MountFlags {
    /// Applies an option of `mount(8)`; returns false if it is not one of these flags.
    pub fn apply(&mut self, option: &[u8]) -> bool {
        match option {
            b"ro" => self.read_only = true,
            b"rw" => self.read_only = false,
            b"suid" => self.suid = true,
            b"nosuid" => self.suid = false,
            b"dev" => self.dev = true,
            b"nodev" => self.dev = false,
            b"exec" => self.no_exec = false,
            b"noexec" => self.no_exec = true,
            b"symfollow" => self.no_symfollow = false,
            b"nosymfollow" => self.no_symfollow = true,
            b"sync" | b"dirsync" => self.synchronous = true,
            b"async" => self.synchronous = false,
            _ => return false,
        }
        true
    }

    /// Returns the flags for `mount(2)`.
    fn bits(self) -> MsFlags {
        // The bindings of libc lack it for some targets.
        const MS_NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);
        let all = [
            (self.read_only, MsFlags::MS_RDONLY),
            (!self.suid, MsFlags::MS_NOSUID),
            (!self.dev, MsFlags::MS_NODEV),
            (self.no_exec, MsFlags::MS_NOEXEC),
            (self.no_symfollow, MS_NOSYMFOLLOW),
            (self.synchronous, MsFlags::MS_SYNCHRONOUS),
        ];
        let set = all.into_iter().filter(|(is_set, _)| *is_set);
        set.map(|(_, flag)| flag).collect()
    }

    /// Returns the options for `fusermount3`, which adds `nosuid` and `nodev` itself.
    fn helper_options(self) -> String {
        let all = [
            (self.read_only, ",ro"),
            (self.no_exec, ",noexec"),
            (self.no_symfollow, ",nosymfollow"),
            (self.synchronous, ",sync"),
        ];
        let set = all.into_iter().filter(|(is_set, _)| *is_set);
        set.map(|(_, option)| option).collect()
    }
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            source: None,
            subtype: String::from("envfs"),
            flags: MountFlags::default(),
        }
    }
}

impl MountRequest {
    fn source(&self) -> String {
        match &self.options.source {
            Some(source) => source.clone(),
            None => mountinfo::source(&self.id),
        }
    }

    /// Returns the options that control access.
    fn access_options(&self) -> &'static str {
        match (self.rights, self.allow_other) {
            // Without permission checks, other users must not have access.
            (Rights::Root, _) => "",
            (Rights::Own, false) => ",default_permissions",
            (Rights::Own, true) => ",default_permissions,allow_other",
        }
    }
}

/// Mounts, and returns the descriptor from which requests are read; it is close-on-exec.
///
/// The mount exists when this returns, but cannot be used before the caller has answered the INIT
/// request of the kernel.
pub fn mount(request: &MountRequest) -> Result<OwnedFd, MountError> {
    let values = [&request.source(), &request.options.subtype];
    if values.iter().any(|value| value.contains([',', '\\'])) {
        // They would be parsed as further options.
        return Err(MountError::system(
            "name the source of",
            &request.mount_point,
            io::Error::from(io::ErrorKind::InvalidInput),
        ));
    }
    let device = open_device().map_err(device_error)?;
    match mount_directly(request, &device) {
        Ok(()) => Ok(device),
        Err(Errno::EPERM | Errno::EACCES) => {
            drop(device);
            mount_by_helper(request)
        }
        Err(error) => Err(MountError::system("mount", &request.mount_point, error)),
    }
}

/// Opens the FUSE device.
fn open_device() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open(DEVICE)?;
    Ok(OwnedFd::from(file))
}

/// Returns the error for a device that cannot be opened.
fn device_error(error: io::Error) -> MountError {
    match error.kind() {
        io::ErrorKind::NotFound => MountError::NoDevice,
        io::ErrorKind::PermissionDenied => device_denied(error),
        // ENODEV or ENXIO: the node exists, but no driver for it.
        _ if matches!(
            error.raw_os_error(),
            Some(nix::libc::ENODEV | nix::libc::ENXIO)
        ) =>
        {
            MountError::NoDevice
        }
        _ => MountError::system("open", Path::new(DEVICE), error),
    }
}

fn device_denied(source: io::Error) -> MountError {
    use std::os::unix::fs::MetadataExt;
    let (mode, owner) = match std::fs::metadata(DEVICE) {
        Ok(meta) => (meta.mode() & 0o7777, process::user_name(meta.uid())),
        Err(_) => (0, String::from("unknown")),
    };
    MountError::DeviceDenied {
        mode,
        owner,
        error: source,
    }
}

/// Tests whether the FUSE device can be opened.
pub fn device_is_usable() -> Result<(), MountError> {
    open_device().map(drop).map_err(device_error)
}

/// Tests mounting at a path: mounts and unmounts.
pub fn test_mount_at(path: &Path) -> Result<(), MountError> {
    let device = mount(&trial(path))?;
    let undone = unmount(path, UnmountMode::Lazy);
    drop(device);
    undone
}

/// Returns a mount for a test.
fn trial(path: &Path) -> MountRequest {
    MountRequest {
        mount_point: path.to_path_buf(),
        id: format!("test-{}", std::process::id()),
        allow_other: false,
        rights: Rights::Own,
        options: Default::default(),
    }
}

/// Tests mounting in a temporary directory.
pub fn test_mount() -> Result<(), MountError> {
    with_temporary_directory(test_mount_at)
}

fn with_temporary_directory(
    test: impl FnOnce(&Path) -> Result<(), MountError>,
) -> Result<(), MountError> {
    let temporary = std::env::temp_dir();
    let failed = |error| MountError::system("create a directory in", &temporary, error);
    let dir = tempfile::Builder::new()
        .prefix("envfs-test-")
        .tempdir()
        .map_err(failed)?;
    // The path as it will be in the mount table.
    test(&dir.path().canonicalize().map_err(failed)?)
}

/// Tests mounting in namespaces of its own, in a temporary directory. Must be called while there is
/// only one thread.
pub fn test_private_mount() -> Result<(), MountError> {
    with_temporary_directory(|path| {
        private::mount(&trial(path), private::Isolation::UserAndMount).map(drop)
    })
}

/// Returns whether this process can mount for all processes, by itself or with the helper.
pub fn is_shared_mount_possible() -> bool {
    private::may_mount_here() || helper().is_ok_and(|helper| helper_is_setuid(&helper))
}

fn mount_directly(request: &MountRequest, device: &OwnedFd) -> Result<(), Errno> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        process::user_id(),
        process::group_id(),
    );
    data.push_str(request.access_options());
    let fs_type = match request.options.subtype.as_str() {
        "" => String::from("fuse"),
        subtype => format!("fuse.{subtype}"),
    };
    nix::mount::mount(
        Some(request.source().as_str()),
        &request.mount_point,
        Some(fs_type.as_str()),
        request.options.flags.bits(),
        Some(data.as_str()),
    )
}

/// Changes the flags of an existing mount; only root may do this.
pub fn remount(path: &Path, flags: MountFlags) -> Result<(), MountError> {
    // Other options of a FUSE mount cannot be changed, and the kernel ignores them.
    nix::mount::mount(
        None::<&str>,
        path,
        None::<&str>,
        MsFlags::MS_REMOUNT | flags.bits(),
        None::<&str>,
    )
    .map_err(|error| MountError::system("remount", path, error))
}

/// How to unmount a mount that may be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountMode {
    /// Fail if it is in use.
    Plain,
    /// Detach it now; it ends when it is no longer in use.
    Lazy,
}

/// Unmounts the topmost mount at a path.
pub fn unmount(path: &Path, mode: UnmountMode) -> Result<(), MountError> {
    let flags = match mode {
        UnmountMode::Plain => MntFlags::UMOUNT_NOFOLLOW,
        UnmountMode::Lazy => MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
    };
    match umount2(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(MountError::Busy {
            path: path.to_path_buf(),
        }),
        Err(Errno::EPERM) => unmount_by_helper(path, mode),
        Err(error) => Err(MountError::system("unmount", path, error)),
    }
}

/// Like [`sync`], with a timeout. The daemon of the mount may call it in any state.
pub fn sync_with_timeout(path: &Path, timeout: Duration) -> io::Result<()> {
    match probe::sync(path, timeout) {
        Some(done) => Ok(done?),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Makes the kernel write the dirty pages of a mount to its daemon.
///
/// Must not be called on a thread that the daemon needs to handle requests.
pub fn sync(path: &Path) -> io::Result<()> {
    let dir = File::open(path)?;
    sync_file_system(&dir)
}
