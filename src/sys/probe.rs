//! Asking a file system that may never answer.

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

/// What the child's exit status is where the call succeeded; otherwise it is the error number.
const FINE: i32 = 0;
/// Error numbers above this do not fit into an exit status, and are none of `statfs`.
const MOST: i32 = 255;

/// What a file system is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// How much room it has, which no cache answers.
    Size,
    /// To write back what the kernel has of its files.
    Sync,
}

/// Calls `statfs` for a path. Returns `None` where that takes longer than `patience`.
pub(super) fn statfs(path: &Path, patience: Duration) -> Option<Result<(), Errno>> {
    ask(Question::Size, path, patience)
}

/// Writes back what the kernel has of the files of a file system. Returns `None` where that takes longer
/// than `patience`. Also for a daemon whose mount it is.
pub(super) fn sync(path: &Path, patience: Duration) -> Option<Result<(), Errno>> {
    ask(Question::Sync, path, patience)
}

/// A child process asks: a request that a hung daemon has already read cannot be interrupted, not even
/// by the end of the process that waits for it. A thread that waits so would keep this process from ending,
/// and with it the device of a daemon from being closed.
fn ask(question: Question, path: &Path, patience: Duration) -> Option<Result<(), Errno>> {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return Some(Err(Errno::EINVAL));
    };
    // SAFETY: the child makes system calls only. It allocates nothing and takes no lock, which another
    // thread may hold at this moment, and it ends without running destructors.
    let child = match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => ask_and_exit(question, &name),
        Ok(ForkResult::Parent { child }) => child,
        Err(error) => return Some(Err(error)),
    };
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(100);
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, FINE)) => return Some(Ok(())),
            Ok(WaitStatus::Exited(_, code)) => return Some(Err(Errno::from_raw(code))),
            Ok(WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => return Some(Err(Errno::EINTR)),
            Ok(_) | Err(_) if Instant::now() < deadline => {}
            Ok(_) | Err(_) => break,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    // It may be unable to end now; init takes it over when this process ends.
    if let Err(error) =
        kill(child, Signal::SIGKILL).and_then(|()| waitpid(child, Some(WaitPidFlag::WNOHANG)))
    {
        tracing::debug!(%error, "cannot end a probe");
    }
    None
}

/// The child's part.
fn ask_and_exit(question: Question, name: &CStr) -> ! {
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: plain system calls. The descriptors are copies, of which the child uses none: whoever waits for
    // the end of a pipe or for a lock of ours must not wait for the child. `answer` is large enough for
    // what the kernel writes, and `name` ends with a NUL.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            0 as libc::c_uint,
            libc::c_uint::MAX,
            0 as libc::c_uint,
        );
        let answered = match question {
            Question::Size => libc::statfs(name.as_ptr(), answer.as_mut_ptr()),
            Question::Sync => match libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) {
                -1 => -1,
                file => libc::syncfs(file),
            },
        };
        let status = match answered {
            0 => FINE,
            _ => Errno::last_raw().min(MOST),
        };
        libc::_exit(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_asked_in_another_process() {
        let patience = Duration::from_secs(20);
        assert_eq!(statfs(Path::new("/"), patience), Some(Ok(())));
        let missing = statfs(Path::new("/no such file"), patience);
        assert_eq!(missing, Some(Err(Errno::ENOENT)));
        let missing = sync(Path::new("/no such file"), patience);
        assert_eq!(missing, Some(Err(Errno::ENOENT)));
    }
}
