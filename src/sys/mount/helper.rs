//! Mounts and unmounts with the setuid helper `fusermount3`.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{MountError, MountRequest, UnmountMode};
use crate::sys::{descriptors, process};

/// The time limit for the helper, which asks the kernel and answers.
const TIME_LIMIT: Duration = Duration::from_secs(60);

const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Returns the helper that mounts for ordinary users. `ENVFS_FUSERMOUNT` overrides its path.
pub fn helper() -> Result<PathBuf, MountError> {
    if let Some(path) = std::env::var_os("ENVFS_FUSERMOUNT") {
        return Ok(PathBuf::from(path));
    }
    HELPERS
        .iter()
        .find_map(|name| process::find_program(name))
        .ok_or(MountError::NoHelper)
}

/// Returns whether the helper is setuid root.
pub fn helper_is_setuid(helper: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(helper)
        .is_ok_and(|meta| meta.uid() == 0 && meta.permissions().mode() & 0o4000 != 0)
}

/// Mounts with `fusermount3`, which sends the descriptor through a socket.
pub(super) fn mount_by_helper(request: &MountRequest) -> Result<OwnedFd, MountError> {
    let helper = helper()?;
    let path = &request.mount_point;
    let (ours, theirs) =
        UnixStream::pair().map_err(|error| MountError::system("mount", path, error))?;
    let mut options = format!("fsname={},nosuid,nodev", request.source());
    options.push_str(request.access_options());
    if !request.options.subtype.is_empty() {
        options.push_str(",subtype=");
        options.push_str(&request.options.subtype);
    }
    options.push_str(&request.options.flags.helper_options());
    // The socket is passed as standard input, so that no other program that a thread starts at the
    // same time inherits it.
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
    let deadline = Instant::now() + TIME_LIMIT;
    let received = receive_device(&ours, deadline);
    let output = output_of(child, deadline)
        .map_err(|error| MountError::system("wait for fusermount3 at", path, error))?;
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(helper_error(helper, path, &output)),
        Err(error) => Err(MountError::system("receive the device of", path, error)),
    }
}

/// Waits until a descriptor can be read, or its other end is closed.
fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => {
                let why = format!("it has not answered after {} s", TIME_LIMIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Ok(_) => return Ok(()),
        }
    }
}

/// Waits for the end of the helper. One that has not ended at the deadline is killed.
fn output_of(mut child: Child, deadline: Instant) -> io::Result<Output> {
    let mut errors = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        let mut chunk = [0; 4096];
        loop {
            // Its end is the end of the output.
            let read = wait_readable(stderr.as_fd(), deadline);
            match read.and_then(|()| stderr.read(&mut chunk)) {
                Ok(0) => break,
                Ok(count) => errors.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) => {
                    child.kill().ok();
                    // A process that waits for a disk is killed only when the disk answers.
                    std::thread::spawn(move || child.wait());
                    return Err(error);
                }
            }
        }
    }
    Ok(Output {
        status: child.wait()?,
        stdout: Vec::new(),
        stderr: errors,
    })
}

/// Receives the device, or `None` if the other end was closed without sending it.
fn receive_device(socket: &UnixStream, deadline: Instant) -> io::Result<Option<OwnedFd>> {
    wait_readable(socket.as_fd(), deadline)?;
    let (_, files) = descriptors::receive(socket, &mut [0; 1])?;
    Ok(files.into_iter().next())
}

/// Returns the error for a helper that failed.
fn helper_error(helper: PathBuf, path: &Path, output: &std::process::Output) -> MountError {
    let text = String::from_utf8_lossy(&output.stderr);
    let errors = text
        .lines()
        .map(|line| line.split_once(": ").map_or(line, |(_, rest)| rest).trim())
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    let denied = errors.contains("Operation not permitted") || errors.contains("Permission denied");
    if denied && process::user_id() != 0 && !helper_is_setuid(&helper) {
        return MountError::HelperNotSetuid { helper };
    }
    let message = if errors.is_empty() {
        output.status.to_string()
    } else {
        errors
    };
    MountError::Refused {
        apparmor: denied && apparmor_confines_helper() && !apparmor_allows(path),
        helper,
        path: path.to_path_buf(),
        message,
    }
}

/// Returns whether the AppArmor profile of `fusermount3` is installed on a system with AppArmor.
/// Whether it is loaded and enforced is readable only by root.
pub fn apparmor_confines_helper() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.trim() == "Y")
        && Path::new("/etc/apparmor.d/fusermount3").exists()
        && !Path::new("/etc/apparmor.d/disable/fusermount3").exists()
}

/// Returns whether the AppArmor profile of `fusermount3`, as Ubuntu and Debian ship it, allows a
/// mount point: below `$HOME`, `/mnt`, `/media`, `/tmp`, `/cvmfs` or `$XDG_RUNTIME_DIR`.
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

/// Unmounts with `fusermount3`.
pub(super) fn unmount_by_helper(path: &Path, mode: UnmountMode) -> Result<(), MountError> {
    let helper = helper()?;
    let mut command = Command::new(&helper);
    command.arg("-u");
    if mode == UnmountMode::Lazy {
        command.arg("-z");
    }
    let child = command
        .arg("--")
        .arg(path)
        // Its messages are parsed.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| MountError::system("run fusermount3 for", path, error))?;
    let output = output_of(child, Instant::now() + TIME_LIMIT)
        .map_err(|error| MountError::system("wait for fusermount3 at", path, error))?;
    if output.status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&output.stderr).contains("Device or resource busy") {
        return Err(MountError::Busy {
            path: path.to_path_buf(),
        });
    }
    Err(helper_error(helper, path, &output))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn started(script: &str) -> Child {
        let mut command = Command::new("/bin/sh");
        let command = command.arg("-c").arg(script).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    #[test]
    fn helper_that_does_not_end_is_killed_and_others_are_waited_for() {
        let soon = Instant::now() + Duration::from_millis(1);
        let failed = output_of(started("exec sleep 600"), soon).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        let later = Instant::now() + TIME_LIMIT;
        let output = output_of(started("echo no >&2; exit 3"), later).unwrap();
        assert_eq!(output.stderr, b"no\n");
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn helper_that_sends_no_device_is_not_waited_for_forever() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let failed = receive_device(&ours, Instant::now()).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        assert!(receive_device(&ours, Instant::now()).unwrap().is_none());
    }
}
