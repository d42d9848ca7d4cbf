//! Queries a file system that may never respond.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::ForkResult;

/// Exit status of the child if the call succeeded; otherwise the status is the error number.
const SUCCESS: i32 = 0;
/// The largest error number that fits into an exit status; `statfs` and `syncfs` return no larger
/// one.
const MAX_ERRNO: i32 = 255;

/// A call that may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// `statfs`, which is not answered from a cache.
    StatFs,
    /// `syncfs`, which writes back dirty pages.
    SyncFs,
}

/// Calls `statfs` for a path. Returns `None` if that takes longer than `timeout`.
pub(super) fn statfs(path: &Path, timeout: Duration) -> Option<Result<(), Errno>> {
    run(Call::StatFs, path, timeout)
}

/// Writes back the dirty pages of a file system. Returns `None` if that takes longer than
/// `timeout`. A daemon may call it for its own mount.
pub(super) fn sync(path: &Path, timeout: Duration) -> Option<Result<(), Errno>> {
    run(Call::SyncFs, path, timeout)
}

/// Makes the call in a child process: a request that a hung daemon has read cannot be interrupted,
/// not even by killing the process that waits for it. A thread waiting for it would keep this
/// process from ending, and a daemon from closing its device.
fn run(call: Call, path: &Path, timeout: Duration) -> Option<Result<(), Errno>> {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return Some(Err(Errno::EINVAL));
    };
    // SAFETY: the child only makes system calls. It does not allocate or take a lock, which another
    // thread may hold now, and it exits without running destructors.
    let child = match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => call_and_exit(call, &name),
        Ok(ForkResult::Parent { child }) => child,
        Err(error) => return Some(Err(error)),
    };
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(100);
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, SUCCESS)) => return Some(Ok(())),
            Ok(WaitStatus::Exited(_, code)) => return Some(Err(Errno::from_raw(code))),
            Ok(WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => return Some(Err(Errno::EINTR)),
            Ok(_) | Err(_) if Instant::now() < deadline => {}
            Ok(_) | Err(_) => break,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    // The child may be unable to end yet; init reaps it after this process has ended.
    if let Err(error) =
        kill(child, Signal::SIGKILL).and_then(|()| waitpid(child, Some(WaitPidFlag::WNOHANG)))
    {
        tracing::debug!(%error, "cannot kill a probe");
    }
    None
}

/// Makes the call in the child.
fn call_and_exit(call: Call, name: &CStr) -> ! {
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: plain system calls. The child closes its copies of all descriptors and uses none, so
    // that it keeps no pipe open and no lock taken. `answer` is large enough for what the kernel
    // writes, and `name` ends with a NUL.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            0 as libc::c_uint,
            libc::c_uint::MAX,
            0 as libc::c_uint,
        );
        let result = match call {
            Call::StatFs => libc::statfs(name.as_ptr(), answer.as_mut_ptr()),
            Call::SyncFs => match libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) {
                -1 => -1,
                file => libc::syncfs(file),
            },
        };
        let status = match result {
            0 => SUCCESS,
            _ => Errno::last_raw().min(MAX_ERRNO),
        };
        libc::_exit(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_in_another_process_returns_its_result() {
        let timeout = Duration::from_secs(20);
        assert_eq!(statfs(Path::new("/"), timeout), Some(Ok(())));
        let missing = statfs(Path::new("/no such file"), timeout);
        assert_eq!(missing, Some(Err(Errno::ENOENT)));
        let missing = sync(Path::new("/no such file"), timeout);
        assert_eq!(missing, Some(Err(Errno::ENOENT)));
    }
}
