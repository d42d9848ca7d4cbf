//! Converts errors to errnos; no other module does.

use fuser::Errno;

use crate::{squashfs, union};

/// Returns the errno that the calling program receives, and logs errors whose cause it does not
/// tell.
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
            if error.is_no_space() {
                Errno::ENOSPC
            } else {
                Errno::EIO
            }
        }
        union::Error::Replaced(_) | union::Error::NotSeparable { .. } => Errno::EBUSY,
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
