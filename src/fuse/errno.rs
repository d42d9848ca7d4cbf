//! The one place where errors become errnos.

use fuser::Errno;

use crate::{squashfs, state, union};

/// Turns a union error into what the calling program sees, and logs what it should not have to guess.
pub(super) fn errno(operation: &'static str, ino: u64, error: &union::Error) -> Errno {
    match error {
        union::Error::Posix(code) => Errno::from_i32(*code as i32),
        union::Error::Upper(io) => from_io(operation, ino, io),
        union::Error::Image(error) => {
            tracing::error!(operation, ino, "{error}");
            match error {
                squashfs::Error::Unsupported { .. } => Errno::EOPNOTSUPP,
                _ => Errno::EIO,
            }
        }
        union::Error::State(error) => {
            tracing::error!(operation, ino, "{error}");
            if state_is_full(error) {
                Errno::ENOSPC
            } else {
                Errno::EIO
            }
        }
        union::Error::CommitUnfinished | union::Error::Replaced(_) => Errno::EBUSY,
        union::Error::Redirected(_) => Errno::EPERM,
        union::Error::Inconsistent(what) => {
            tracing::error!(operation, ino, "{what}");
            Errno::EIO
        }
    }
}

fn from_io(operation: &'static str, ino: u64, io: &std::io::Error) -> Errno {
    match io.raw_os_error() {
        Some(code) => {
            if code == nix::libc::EIO {
                tracing::error!(operation, ino, "upper directory: {io}");
            }
            Errno::from_i32(code)
        }
        None => {
            tracing::error!(operation, ino, "upper directory: {io}");
            Errno::EIO
        }
    }
}

fn state_is_full(error: &state::StateError) -> bool {
    error.is_no_space()
}
