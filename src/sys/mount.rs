//! Mounts and unmounts FUSE file systems ourselves: as root with mount(2), else through the
//! setuid helper `fusermount3`.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::durable::sync_file_system;
use super::{mountinfo, probe, process};

/// The device through which a daemon speaks with the kernel.
pub const DEVICE: &str = "/dev/fuse";
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Why a file system could not be mounted or unmounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// The kernel has no FUSE, or the container does not pass the device on.
    #[error("there is no {DEVICE}: this system or container has no FUSE")]
    NoDevice,
    /// The device is there, but not for us.
    #[error("{DEVICE} may not be opened (mode {mode:04o}, owner {owner}): {source}")]
    DeviceDenied {
        /// Permission bits of the device.
        mode: u32,
        /// Owner of the device.
        owner: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Neither root nor the helper that does it for ordinary users.
    #[error("mounting needs root or the setuid helper fusermount3, and there is none in PATH")]
    NoHelper,
    /// The helper is there, but is not setuid root (as in many containers).
    #[error("{} is not setuid root, so it cannot mount for an ordinary user", .helper.display())]
    HelperNotSetuid {
        /// The helper.
        helper: PathBuf,
    },
    /// The helper ran and refused.
    #[error("{} refused {}: {message}", .helper.display(), .path.display())]
    Refused {
        /// The helper.
        helper: PathBuf,
        /// What was to be mounted or unmounted.
        path: PathBuf,
        /// What it said, or how it ended.
        message: String,
        /// Whether AppArmor's profile for the helper is loaded and does not list this place.
        apparmor: bool,
    },
    /// Somebody uses the mount.
    #[error("{} is in use", .path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// Anything else, said by the kernel.
    #[error("cannot {action} {}: {source}", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl MountError {
    fn system(action: &'static str, path: &Path, source: impl Into<io::Error>) -> MountError {
        MountError::System {
            action,
            path: path.to_path_buf(),
            source: source.into(),
        }
    }

    /// Returns what the user can do about it, ready to be read.
    pub fn hints(&self) -> Vec<String> {
        let lines: &[&str] = match self {
            MountError::NoDevice => &[
                "on a machine of your own: modprobe fuse (as root)",
                "in a container: start it with --device /dev/fuse",
            ],
            MountError::DeviceDenied { .. } => {
                &["as root: chmod 0666 /dev/fuse (what udev does on every ordinary system)"]
            }
            MountError::NoHelper => {
                return with_namespace("as root: apt install fuse3 (or dnf install fuse3)");
            }
            MountError::HelperNotSetuid { .. } => {
                return with_namespace(
                    "as root: chmod u+s the helper, and mount its file system without nosuid",
                );
            }
            MountError::Refused { apparmor: true, .. } => &[
                "AppArmor lets fusermount3 mount below $HOME, /mnt, /media, /tmp, /cvmfs and \
                 $XDG_RUNTIME_DIR only: choose a prefix there",
                "or allow this place in /etc/apparmor.d/local/fusermount3 (as root)",
            ],
            MountError::Refused { .. } => &["envfs doctor says what may be in the way"],
            MountError::Busy { .. } => {
                &["envfs unmount --lazy detaches it at once and ends when its users do"]
            }
            MountError::System { .. } => &[],
        };
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    /// Returns whether FUSE as such cannot be used here.
    pub fn is_fuse_missing(&self) -> bool {
        matches!(
            self,
            MountError::NoDevice
                | MountError::DeviceDenied { .. }
                | MountError::NoHelper
                | MountError::HelperNotSetuid { .. }
        )
    }
}

/// Starts a shell that may mount, in a user and mount namespace of its own; the user stays who he is.
const NAMESPACE: [&str; 5] = [
    "unshare",
    "--user",
    "--map-current-user",
    "--keep-caps",
    "--mount",
];

/// Returns whether ordinary users can make namespaces in which they may mount: tries it.
pub fn namespaces_work() -> bool {
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

/// Adds to what root can do what the user can do himself.
fn with_namespace(hint: &str) -> Vec<String> {
    let mut hints = vec![hint.to_owned()];
    if namespaces_work() {
        hints.push(format!(
            "or without root: {} \"$SHELL\"",
            NAMESPACE.join(" ")
        ));
        hints.push(String::from(
            "   starts a shell in which envfs can mount; other shells do not see its mounts",
        ));
    }
    hints
}

/// What to mount where.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// An existing directory, absolute.
    pub mount_point: PathBuf,
    /// The environment's id; it becomes the source `envfs:ID`. No commas.
    pub id: String,
    /// Whether other users may enter (needs `user_allow_other` in `/etc/fuse.conf`, or root).
    pub allow_other: bool,
    /// Whether whoever mounts may do in the mount what root may elsewhere: the kernel checks no
    /// permissions. Not together with `allow_other`.
    pub fakeroot: bool,
    /// How the mount looks in the mount table, and whether it may be written.
    pub options: MountOptions,
}

/// What a mount that is not an environment's may choose otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// The source in the mount table, if not `envfs:ID`. No commas.
    pub source: Option<String>,
    /// What stands behind `fuse.` as the type; nothing at all where this is empty.
    pub subtype: String,
    /// What the kernel is to refuse or to do.
    pub flags: MountFlags,
}

/// What the kernel is to refuse or to do in a mount, whoever serves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Refuse all changes.
    pub read_only: bool,
    /// Let set-user-id bits count; root only, ignored elsewhere.
    pub suid: bool,
    /// Let device nodes be opened; root only, ignored elsewhere.
    pub dev: bool,
    /// Refuse to execute.
    pub no_exec: bool,
    /// Refuse to follow symbolic links.
    pub no_symfollow: bool,
    /// Make each write durable before it returns.
    pub synchronous: bool,
}

impl MountFlags {
    /// Takes over what a word of `mount(8)` says; returns false if it says nothing about these flags.
    pub fn take(&mut self, word: &[u8]) -> bool {
        match word {
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

    /// For `mount(2)`.
    fn bits(self) -> MsFlags {
        // Not named by libc's bindings for all targets.
        const MS_NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);
        let all = [
            (self.read_only, MsFlags::MS_RDONLY),
            (!self.suid, MsFlags::MS_NOSUID),
            (!self.dev, MsFlags::MS_NODEV),
            (self.no_exec, MsFlags::MS_NOEXEC),
            (self.no_symfollow, MS_NOSYMFOLLOW),
            (self.synchronous, MsFlags::MS_SYNCHRONOUS),
        ];
        let wanted = all.into_iter().filter(|(is_wanted, _)| *is_wanted);
        wanted.map(|(_, flag)| flag).collect()
    }

    /// For `fusermount3`, which adds what others than root must have.
    fn words(self) -> String {
        let all = [
            (self.read_only, ",ro"),
            (self.no_exec, ",noexec"),
            (self.no_symfollow, ",nosymfollow"),
            (self.synchronous, ",sync"),
        ];
        let wanted = all.into_iter().filter(|(is_wanted, _)| *is_wanted);
        wanted.map(|(_, word)| word).collect()
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

    /// Who may enter, and what is checked then, as further options.
    fn access(&self) -> &'static str {
        match (self.fakeroot, self.allow_other) {
            // Where nothing is checked nobody else may enter.
            (true, _) => "",
            (false, false) => ",default_permissions",
            (false, true) => ",default_permissions,allow_other",
        }
    }
}

/// Mounts and returns the descriptor on which the kernel's requests arrive; close-on-exec.
///
/// The mount is there when this returns, but nothing in it can be used before the caller has
/// answered the kernel's INIT.
pub fn mount(request: &MountRequest) -> Result<OwnedFd, MountError> {
    let words = [&request.source(), &request.options.subtype];
    if words.iter().any(|word| word.contains([',', '\\'])) {
        // It would be read as further options.
        return Err(MountError::system(
            "name the source of",
            &request.mount_point,
            io::Error::from(io::ErrorKind::InvalidInput),
        ));
    }
    let device = open_device()?;
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
fn open_device() -> Result<OwnedFd, MountError> {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(OwnedFd::from(file)),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => MountError::NoDevice,
            io::ErrorKind::PermissionDenied => device_denied(error),
            // ENODEV or ENXIO: the node is there, but no driver behind it.
            _ if matches!(
                error.raw_os_error(),
                Some(nix::libc::ENODEV | nix::libc::ENXIO)
            ) =>
            {
                MountError::NoDevice
            }
            _ => MountError::system("open", Path::new(DEVICE), error),
        }),
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
        source,
    }
}

/// Returns whether the device can be opened, which cloning it for further threads needs too.
pub fn device_is_usable() -> Result<(), MountError> {
    open_device().map(drop)
}

/// Mounts at this path for a trial, and takes it away again.
pub fn try_at(path: &Path) -> Result<(), MountError> {
    let request = MountRequest {
        mount_point: path.to_path_buf(),
        id: format!("trial-{}", std::process::id()),
        allow_other: false,
        fakeroot: false,
        options: Default::default(),
    };
    let device = mount(&request)?;
    let undone = unmount(path, UnmountMode::Lazy);
    drop(device);
    undone
}

/// Mounts in a temporary directory for a trial.
pub fn try_somewhere() -> Result<(), MountError> {
    let temporary = std::env::temp_dir();
    let failed = |error| MountError::system("make a directory in", &temporary, error);
    let dir = tempfile::Builder::new()
        .prefix("envfs-trial-")
        .tempdir()
        .map_err(failed)?;
    // The path as the mount table will have it.
    try_at(&dir.path().canonicalize().map_err(failed)?)
}

fn mount_directly(request: &MountRequest, device: &OwnedFd) -> Result<(), Errno> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        process::user_id(),
        process::group_id(),
    );
    data.push_str(request.access());
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

/// Changes the flags of a mount that is there; root only.
pub fn remount(path: &Path, flags: MountFlags) -> Result<(), MountError> {
    // What else there is to a FUSE mount cannot be changed, and is not looked at.
    nix::mount::mount(
        None::<&str>,
        path,
        None::<&str>,
        MsFlags::MS_REMOUNT | flags.bits(),
        None::<&str>,
    )
    .map_err(|error| MountError::system("remount", path, error))
}

/// Returns the helper that mounts for ordinary users. `ENVFS_FUSERMOUNT` names another.
pub fn helper() -> Result<PathBuf, MountError> {
    if let Some(path) = std::env::var_os("ENVFS_FUSERMOUNT") {
        return Ok(PathBuf::from(path));
    }
    HELPERS
        .iter()
        .find_map(|name| process::find_program(name))
        .ok_or(MountError::NoHelper)
}

/// Returns whether the helper has root's power by its own.
pub fn helper_is_setuid(helper: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(helper)
        .is_ok_and(|meta| meta.uid() == 0 && meta.permissions().mode() & 0o4000 != 0)
}

/// Lets `fusermount3` mount; it sends the descriptor back through a socket.
fn mount_by_helper(request: &MountRequest) -> Result<OwnedFd, MountError> {
    let helper = helper()?;
    let path = &request.mount_point;
    let (ours, theirs) =
        UnixStream::pair().map_err(|error| MountError::system("mount", path, error))?;
    let mut options = format!("fsname={},nosuid,nodev", request.source());
    options.push_str(request.access());
    if !request.options.subtype.is_empty() {
        options.push_str(",subtype=");
        options.push_str(&request.options.subtype);
    }
    options.push_str(&request.options.flags.words());
    // The socket goes as standard input: that descriptor alone reaches the child, and no thread
    // that starts a program at the same moment can leak it.
    let child = Command::new(&helper)
        .arg("-o")
        .arg(&options)
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MountError::NoHelper,
            _ => MountError::system("run fusermount3 for", path, error),
        })?;
    let received = receive_descriptor(&ours);
    let output = child
        .wait_with_output()
        .map_err(|error| MountError::system("wait for fusermount3 at", path, error))?;
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(refusal(helper, path, &output)),
        Err(error) => Err(MountError::system("receive the device of", path, error)),
    }
}

/// Receives one descriptor, or `None` where the other end closed without sending one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut byte)];
    let message = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(message) => break message,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us by SCM_RIGHTS; nobody else
            // knows it, so it is ours alone to close.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    Ok(None)
}

/// Explains why the helper did not do it.
fn refusal(helper: PathBuf, path: &Path, output: &std::process::Output) -> MountError {
    let text = String::from_utf8_lossy(&output.stderr);
    let said = text
        .lines()
        .map(|line| line.split_once(": ").map_or(line, |(_, rest)| rest).trim())
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    let denied = said.contains("Operation not permitted") || said.contains("Permission denied");
    if denied && process::user_id() != 0 && !helper_is_setuid(&helper) {
        return MountError::HelperNotSetuid { helper };
    }
    let message = if said.is_empty() {
        output.status.to_string()
    } else {
        said
    };
    MountError::Refused {
        apparmor: denied && apparmor_confines_helper() && !apparmor_allows(path),
        helper,
        path: path.to_path_buf(),
        message,
    }
}

/// Returns whether AppArmor's profile for `fusermount3` is installed on a system that enforces
/// AppArmor. It may be enforced or not: who is loaded is root's to read.
pub fn apparmor_confines_helper() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.trim() == "Y")
        && Path::new("/etc/apparmor.d/fusermount3").exists()
        && !Path::new("/etc/apparmor.d/disable/fusermount3").exists()
}

/// Returns whether AppArmor's profile for `fusermount3` (as Ubuntu and Debian ship it) lists the
/// place: below `$HOME`, `/mnt`, `/media`, `/tmp`, `/cvmfs` or `$XDG_RUNTIME_DIR`.
pub fn apparmor_allows(path: &Path) -> bool {
    let fixed = ["/mnt", "/media", "/tmp", "/cvmfs", "/home"].map(PathBuf::from);
    let own = ["HOME", "XDG_RUNTIME_DIR"]
        .into_iter()
        .filter_map(|name| std::env::var_os(name).map(PathBuf::from));
    fixed
        .into_iter()
        .chain(own)
        .any(|root| root.is_absolute() && path != root && path.starts_with(&root))
}

/// How an unmount treats those who still use the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountMode {
    /// Refuse while anybody uses it.
    Plain,
    /// Take it out of the tree at once; it ends when its last user does.
    Lazy,
}

/// Unmounts what is on top at this path.
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

fn unmount_by_helper(path: &Path, mode: UnmountMode) -> Result<(), MountError> {
    let helper = helper()?;
    let mut command = Command::new(&helper);
    command.arg("-u");
    if mode == UnmountMode::Lazy {
        command.arg("-z");
    }
    let mut child = command
        .arg("--")
        .arg(path)
        // Its answers are looked at, so they should be in the language we know.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| MountError::system("run fusermount3 for", path, error))?;
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.as_mut() {
        stderr
            .read_to_end(&mut said)
            .map_err(|error| MountError::system("hear fusermount3 about", path, error))?;
    }
    let status = child
        .wait()
        .map_err(|error| MountError::system("wait for fusermount3 at", path, error))?;
    if status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&said).contains("Device or resource busy") {
        return Err(MountError::Busy {
            path: path.to_path_buf(),
        });
    }
    let output = std::process::Output {
        status,
        stdout: Vec::new(),
        stderr: said,
    };
    Err(refusal(helper, path, &output))
}

/// Like [`sync`], from the daemon itself and with a limit of time, whatever state its loops are in.
pub fn sync_within(path: &Path, patience: Duration) -> io::Result<()> {
    match probe::sync(path, patience) {
        Some(done) => Ok(done?),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Writes what is dirty in the kernel's cache of this mount to its daemon.
///
/// Must not be called from a thread that the daemon needs to answer requests.
pub fn sync(path: &Path) -> io::Result<()> {
    let dir = File::open(path)?;
    sync_file_system(&dir)
}
