//! Receives a source of an import from a stream, as a file.
//!
//! A stream is read once, and an import reads its source several times. The first bytes tell what
//! it is, so that a stream that cannot be imported is refused before the rest is read. An archive
//! of a history says how long it is: it must end there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::manifest::{MANIFEST, MAX_MANIFEST, Manifest};
use super::tar;
use crate::commit::error::{CommitError, Context, Result};
use crate::commit::import::longest_stream;
use crate::progress::{Progress, Report};

/// Bytes that are copied at once.
const COPIED: usize = 1 << 20;

/// A stream of which only the beginning was read.
pub struct Incoming<R> {
    from: R,
    /// What was read.
    head: Vec<u8>,
    /// The length of a history with its name, or the largest length of another source.
    len: Len,
}

enum Len {
    History(String, u64),
    AtMost(u64),
}

impl<R> std::fmt::Debug for Incoming<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl<R: Read> Incoming<R> {
    /// Reads the beginning of a stream, up to the end of the manifest of a history. `path` names it
    /// in errors; `offset` is where an image begins, if that is known.
    pub fn begin(mut from: R, path: &Path, offset: Option<u64>) -> Result<Incoming<R>> {
        let refuse = |why: String| CommitError::Source {
            path: path.to_owned(),
            why,
        };
        let mut head = Vec::new();
        let mut read = |up_to: u64, head: &mut Vec<u8>| {
            let missing = up_to.saturating_sub(head.len() as u64);
            let read = (&mut from).take(missing).read_to_end(head);
            read.context("read", path)
        };
        read(tar::BLOCK, &mut head)?;
        if !tar::is_named(&head, MANIFEST) {
            let len = match offset {
                Some(_) => Some(u64::MAX),
                None => longest_stream(&head),
            };
            let len = len.ok_or_else(|| {
                refuse(match head.is_empty() {
                    true => "empty".to_owned(),
                    false => "neither a SquashFS image nor a tar archive (plain, gzip, zstd or \
                              xz); if the image is inside another file, use envfs import --offset"
                        .to_owned(),
                })
            })?;
            let len = Len::AtMost(len);
            return Ok(Incoming { from, head, len });
        }
        let block = head.first_chunk();
        let size = block.and_then(|block| tar::size_in(block, MANIFEST));
        let size = size.ok_or_else(|| {
            refuse("truncated, or changed since it was exported: its first header".to_owned())
        })?;
        if size > MAX_MANIFEST {
            return Err(refuse(format!("a manifest of {size} bytes")));
        }
        read(tar::BLOCK + size, &mut head)?;
        let manifest = head.get(tar::BLOCK as usize..).unwrap_or_default();
        if (manifest.len() as u64) < size {
            return Err(refuse("truncated: its manifest is incomplete".to_owned()));
        }
        let manifest = Manifest::parse(manifest).map_err(refuse)?;
        let (_, len) = manifest
            .places(size)
            .ok_or_else(|| refuse("sizes beyond 64 bits".to_owned()))?;
        let len = Len::History(manifest.name, len);
        Ok(Incoming { from, head, len })
    }

    /// Returns the name of the environment, if this is the archive of a history.
    pub fn history(&self) -> Option<&str> {
        match &self.len {
            Len::History(name, _) => Some(name),
            Len::AtMost(_) => None,
        }
    }

    /// Writes all of it to an empty file, which is not synced. `path` names the stream in errors.
    pub fn save(mut self, to: &File, path: &Path, progress: &dyn Progress) -> Result<u64> {
        let (len, total) = match &self.len {
            Len::History(_, len) => (*len, *len),
            Len::AtMost(len) => (*len, 0),
        };
        if total > 0 {
            reserve(to, total).context("find the space for", path)?;
        }
        let mut to = to;
        let mut write = |bytes: &[u8]| to.write_all(bytes).context("store", path);
        write(&self.head)?;
        let mut done = self.head.len() as u64;
        let mut buffer = vec![0; COPIED];
        loop {
            if progress.is_cancelled() {
                return Err(CommitError::Cancelled);
            }
            // One byte more tells that there is more.
            let wanted = len
                .saturating_sub(done)
                .saturating_add(1)
                .min(COPIED as u64);
            let part = buffer.get_mut(..wanted as usize).unwrap_or_default();
            let count = match self.from.read(part) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.context("read", path)?,
            };
            let read = part.get(..count).unwrap_or_default();
            if count == 0 {
                break;
            }
            write(read)?;
            done += count as u64;
            if done > len {
                break;
            }
            progress.report(&Report {
                phase: "receiving".to_owned(),
                files_done: 0,
                files_total: 0,
                bytes_done: done,
                bytes_total: total,
            });
        }
        let why = match &self.len {
            Len::History(_, len) if done < *len => format!("truncated: {done} of {len} bytes"),
            Len::History(_, len) if done > *len => format!("more than {len} bytes"),
            Len::AtMost(_) if done > len => {
                "zeros, and more of them than in an empty archive".to_owned()
            }
            _ => return Ok(done),
        };
        Err(CommitError::Source {
            path: path.to_owned(),
            why,
        })
    }
}

/// Reserves the space for a file, so that a full disk is noticed before anything is read. Not all
/// file systems can.
fn reserve(file: &File, len: u64) -> nix::Result<()> {
    let len = i64::try_from(len).map_err(|_| Errno::EFBIG)?;
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len) {
        Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::progress::NoProgress;

    fn receive(bytes: &[u8], offset: Option<u64>) -> Result<u64> {
        let file = tempfile::tempfile().unwrap();
        let path = Path::new("stream");
        let len = Incoming::begin(bytes, path, offset)?.save(&file, path, &NoProgress)?;
        assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
        Ok(len)
    }

    #[test]
    fn what_cannot_be_imported_is_refused_before_the_rest_is_read() {
        // It never ends.
        let endless = || io::repeat(7);
        let refused = Incoming::begin(endless(), Path::new("s"), None).unwrap_err();
        assert!(refused.to_string().contains("neither"), "{refused}");
        assert!(Incoming::begin(endless(), Path::new("s"), Some(0)).is_ok());
        // An archive without members is zeros, which end.
        let zeros = Incoming::begin(io::repeat(0), Path::new("s"), None).unwrap();
        let file = tempfile::tempfile().unwrap();
        let refused = zeros.save(&file, Path::new("s"), &NoProgress).unwrap_err();
        assert!(refused.to_string().contains("more of them"), "{refused}");
        assert_eq!(receive(&[0; 10240], None).unwrap(), 10240);
        let empty = receive(b"", None).unwrap_err().to_string();
        assert_eq!(empty, "stream: empty");
        for image in [&b"hsqs"[..], b"\x1f\x8b and more", b"\x7fELF"] {
            assert_eq!(receive(image, None).unwrap(), image.len() as u64);
        }
    }
}
