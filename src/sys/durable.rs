//! Makes files, names and file systems durable. Syncing a file does not make its name durable.
//!
//! All syncs but those of the image writer are done here, so that one fault can disable them.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::unistd;

use crate::fault;

/// Makes the last name of a path durable by syncing its directory.
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

/// Makes the content and attributes of a file, or the names in a directory, durable.
pub fn sync_file(file: impl AsFd) -> io::Result<()> {
    unless_disabled(|| unistd::fsync(file))
}

/// Makes the content and size of a file durable.
pub fn sync_data(file: impl AsFd) -> io::Result<()> {
    unless_disabled(|| unistd::fdatasync(file))
}

/// Makes everything in the file system that holds an open file durable.
pub fn sync_file_system(file: impl AsFd) -> io::Result<()> {
    unless_disabled(|| unistd::syncfs(file))
}

/// Returns whether a test has disabled all syncs.
pub fn is_disabled() -> bool {
    fault::is_enabled(fault::NO_SYNC)
}

/// Writes a private file that has its old content or the new one after a crash.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(content)?;
    sync_file(&file)?;
    fs::rename(&draft, path)?;
    sync_name(path)
}

fn unless_disabled(sync: impl FnOnce() -> nix::Result<()>) -> io::Result<()> {
    if is_disabled() {
        return Ok(());
    }
    Ok(sync()?)
}

/// Large files are flushed each time this many bytes have been written. Large enough for efficient
/// disk writes, and larger than most files that are removed again soon.
const WRITEBACK_CHUNK: u64 = 16 << 20;

/// Returns whether a write of `len` bytes at `offset` reaches the end of a chunk of the file, after
/// which the caller should [start writeback](start_writeback). Otherwise the disk would be idle
/// while a large file is written, and a sync at the end would have to write all of it.
pub fn completes_writeback_chunk(offset: u64, len: usize) -> bool {
    offset / WRITEBACK_CHUNK != offset.saturating_add(len as u64) / WRITEBACK_CHUNK
}

/// Starts writing a file's dirty pages to the disk. Blocks only while the queue of the disk is
/// full.
pub fn start_writeback(file: &File) {
    // SAFETY: a system call with an open descriptor and numbers.
    let done = unsafe {
        nix::libc::sync_file_range(file.as_raw_fd(), 0, 0, nix::libc::SYNC_FILE_RANGE_WRITE)
    };
    if done != 0 {
        // The kernel will write the pages later.
        tracing::debug!("cannot start writeback: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_reaches_the_end_of_a_chunk_completes_it() {
        assert!(!completes_writeback_chunk(0, 0));
        assert!(!completes_writeback_chunk(0, 1 << 20));
        assert!(!completes_writeback_chunk(WRITEBACK_CHUNK, 1 << 20));
        assert!(completes_writeback_chunk(WRITEBACK_CHUNK - 1, 1));
        assert!(completes_writeback_chunk(WRITEBACK_CHUNK - 1, 4096));
        assert!(completes_writeback_chunk(0, 3 << 24));
        assert!(!completes_writeback_chunk(u64::MAX, 1));
    }
}
