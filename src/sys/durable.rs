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

/// Begins to write a file's content to the disk, and waits for nothing.
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
