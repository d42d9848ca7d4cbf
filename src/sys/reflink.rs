//! Shares blocks between two files of one file system (`FICLONERANGE`).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The kernel's `struct file_clone_range`.
#[repr(C)]
#[derive(Debug)]
struct FileCloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

mod ioctl {
    use super::FileCloneRange;
    nix::ioctl_write_ptr!(
        /// `FICLONERANGE` of `linux/fs.h`.
        ficlonerange, 0x94, 13, FileCloneRange
    );
}

/// Makes `length` bytes of `dest` at `dest_offset` share the blocks of `source` at `source_offset`;
/// a length of 0 means up to the end of the source.
///
/// Offsets (and the length, except at the end of the source) must be multiples of the file system's
/// block size. Fails with `EOPNOTSUPP`, `EXDEV` or `EINVAL` if blocks cannot be shared; the caller
/// should copy then.
pub fn clone_range(
    source: impl AsFd,
    source_offset: u64,
    length: u64,
    dest: impl AsFd,
    dest_offset: u64,
) -> io::Result<()> {
    let range = FileCloneRange {
        src_fd: i64::from(source.as_fd().as_raw_fd()),
        src_offset: source_offset,
        src_length: length,
        dest_offset,
    };
    // SAFETY: both descriptors are borrowed for the whole call, and `range` has the layout the
    // kernel reads for this request and outlives the call; the kernel writes no memory of ours.
    unsafe { ioctl::ficlonerange(dest.as_fd().as_raw_fd(), &range) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn blocks_are_shared_or_an_error_is_returned() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, vec![7u8; 8192]).unwrap();
        std::fs::write(&b, b"").unwrap();
        let source = std::fs::File::open(&a).unwrap();
        let dest = std::fs::File::options().write(true).open(&b).unwrap();
        match clone_range(&source, 0, 8192, &dest, 0) {
            Ok(()) => assert_eq!(std::fs::read(&b).unwrap(), vec![7u8; 8192]),
            Err(error) => {
                let code = error.raw_os_error().unwrap();
                assert!([95, 18, 22, 25].contains(&code), "{error}");
            }
        }
    }
}
