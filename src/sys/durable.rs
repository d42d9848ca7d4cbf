//! Making files, names and file systems durable. A file that is synced may still be without its name after
//! power loss.
//!
//! All syncs but those of the image writer go through here, so that one fault can switch them off.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::unistd;

use crate::fault;

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
    sync_file(File::open(dir)?)
}

/// Makes the content and attributes of a file durable, or the names in a directory.
pub fn sync_file(file: impl AsFd) -> io::Result<()> {
    unless_off(|| unistd::fsync(file))
}

/// Makes the content of a file durable.
pub fn sync_data(file: impl AsFd) -> io::Result<()> {
    unless_off(|| unistd::fdatasync(file))
}

/// Makes everything in the file system of an open file durable.
pub fn sync_file_system(file: impl AsFd) -> io::Result<()> {
    unless_off(|| unistd::syncfs(file))
}

/// Returns true if a test has switched off all syncs.
pub fn is_disabled() -> bool {
    fault::is_enabled(fault::NO_SYNC)
}

fn unless_off(sync: impl FnOnce() -> nix::Result<()>) -> io::Result<()> {
    if is_disabled() {
        return Ok(());
    }
    Ok(sync()?)
}

/// Bytes of a large file after which what was written of it is begun to be written to the disk. Enough for a
/// disk at once, and more than most files that are removed again soon.
const WRITEBACK_CHUNK: u64 = 16 << 20;

/// Returns whether a write of `len` bytes at `offset` completes a stretch of a file, after which to
/// [begin](start_writeback): who syncs a large file in the end would wait for all of it then, with the disk
/// idle while it was written.
pub fn completes_writeback_chunk(offset: u64, len: usize) -> bool {
    offset / WRITEBACK_CHUNK != offset.saturating_add(len as u64) / WRITEBACK_CHUNK
}

/// Begins to write a file's content to the disk, and waits for nothing but room in the disk's queue.
pub fn start_writeback(file: &File) {
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
        assert!(!completes_writeback_chunk(0, 0));
        assert!(!completes_writeback_chunk(0, 1 << 20));
        assert!(!completes_writeback_chunk(WRITEBACK_CHUNK, 1 << 20));
        assert!(completes_writeback_chunk(WRITEBACK_CHUNK - 1, 1));
        assert!(completes_writeback_chunk(WRITEBACK_CHUNK - 1, 4096));
        assert!(completes_writeback_chunk(0, 3 << 24));
        assert!(!completes_writeback_chunk(u64::MAX, 1));
    }
}
