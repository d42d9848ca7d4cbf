//! Copies an image file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use super::error::{CommitError, Context, Result};
use crate::progress::{Progress, Report};
use crate::sys::reflink;

/// How two environments share an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// One file with two names.
    HardLink,
    /// Two files with the same blocks.
    Blocks,
    /// None: the file system supports neither.
    Copy,
}

/// Bytes that are copied between two reports of progress.
const CHUNK: usize = 1 << 20;

/// Copies a file into an empty one, which shares its blocks if the file system can. The paths are
/// for errors. The copy is not synced; a copy that fails or is cancelled is incomplete.
pub fn copy_file(
    (from, from_path): (&File, &Path),
    (to, to_path): (&File, &Path),
    progress: &dyn Progress,
) -> Result<Sharing> {
    if reflink::clone_range(from, 0, 0, to, 0).is_ok() {
        return Ok(Sharing::Blocks);
    }
    let mut to = to;
    copy_stream((from, from_path), (&mut to, to_path), progress)?;
    Ok(Sharing::Copy)
}

/// Copies a file to a stream. Returns the number of bytes.
pub fn copy_stream(
    (from, from_path): (&File, &Path),
    (to, to_path): (&mut dyn Write, &Path),
    progress: &dyn Progress,
) -> Result<u64> {
    let total = from.metadata().context("stat", from_path)?.len();
    let mut from = from;
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        let count = from.read(&mut buffer).context("read", from_path)?;
        if count == 0 {
            return Ok(done);
        }
        let read = buffer.get(..count).unwrap_or_default();
        to.write_all(read).context("write", to_path)?;
        done += count as u64;
        progress.report(&Report {
            phase: String::from("copying"),
            files_done: 0,
            files_total: 1,
            bytes_done: done,
            bytes_total: total,
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;
    use std::sync::Mutex;

    use super::*;
    use crate::progress::NoProgress;

    /// Cancels once some bytes were copied.
    #[derive(Default)]
    struct Impatient(Mutex<u64>);

    impl Progress for Impatient {
        fn report(&self, report: &Report) {
            *self.0.lock().unwrap() = report.bytes_done;
        }
        fn is_cancelled(&self) -> bool {
            *self.0.lock().unwrap() > 0
        }
    }

    #[test]
    fn a_copy_is_complete_or_cancelled() {
        // On tmpfs, which cannot share blocks.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let bytes: Vec<u8> = (0..3 * CHUNK + 5).map(|at| (at / 7) as u8).collect();
        File::create(&from).unwrap().write_all(&bytes).unwrap();
        let copy = |progress: &dyn Progress| {
            let (input, output) = (File::open(&from).unwrap(), File::create(&to).unwrap());
            copy_file((&input, &from), (&output, &to), progress)
        };
        assert_eq!(copy(&NoProgress).unwrap(), Sharing::Copy);
        assert_eq!(std::fs::read(&to).unwrap(), bytes);
        let impatient = Impatient::default();
        assert!(matches!(copy(&impatient), Err(CommitError::Cancelled)));
        assert_eq!(*impatient.0.lock().unwrap(), CHUNK as u64);
    }
}
