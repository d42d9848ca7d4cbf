//! Making names durable: a file that is synced may still be without its name after power loss.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Makes the name at the end of a path durable: syncs the directory that it is in.
pub fn sync_name(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Bytes of a large file after which what was written of it is begun to be written to the disk. Enough for a
/// disk at once, and more than most files that are removed again soon.
const STRETCH: u64 = 16 << 20;

/// Returns whether a write of `len` bytes at `offset` completes a stretch of a file, after which to
/// [begin](begin_to_write): who syncs a large file in the end would wait for all of it then, with the disk
/// idle while it was written.
pub fn completes_stretch(offset: u64, len: usize) -> bool {
    offset / STRETCH != offset.saturating_add(len as u64) / STRETCH
}

/// Begins to write a file's content to the disk, and waits for nothing but room in the disk's queue.
pub fn begin_to_write(file: &File) {
    // SAFETY: a system call with an open descriptor and numbers.
    let done = unsafe {
        nix::libc::sync_file_range(file.as_raw_fd(), 0, 0, nix::libc::SYNC_FILE_RANGE_WRITE)
    };
    if done != 0 {
        // It will be written when its time comes.
        tracing::debug!("beginning to write: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_completed_by_what_reaches_its_end() {
        assert!(!completes_stretch(0, 0));
        assert!(!completes_stretch(0, 1 << 20));
        assert!(!completes_stretch(STRETCH, 1 << 20));
        assert!(completes_stretch(STRETCH - 1, 1));
        assert!(completes_stretch(STRETCH - 1, 4096));
        assert!(completes_stretch(0, 3 << 24));
        assert!(!completes_stretch(u64::MAX, 1));
    }
}
