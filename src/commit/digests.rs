//! Digests of image files: BLAKE3 of each MiB, kept in the database.
//!
//! SquashFS has no checksums. A flipped bit in a block that is stored as it is, or in a name, would be
//! read as though it were meant; and whatever is carried from image to image would be carried with it.
//! Blocks that an append carries over at their place keep the digests that they had: they are not read
//! again, so the cost follows the change, and damage that happened to them since, even in the copying,
//! is found by the next verification.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::error::{CommitError, Context, Result};
use crate::progress::{Progress, Report};
use crate::sys::regular;

/// Bytes of the file under one digest.
const CHUNK: u64 = 1 << 20;
const DIGEST: usize = blake3::OUT_LEN;

/// What of the digests of an older image is those of a newer.
#[derive(Debug)]
pub(super) struct Kept {
    /// All digests of the older one.
    pub(super) digests: Vec<u8>,
    /// Bytes at the beginning that are the same in both files, except for the superblock.
    pub(super) until: u64,
}

/// The digests of an image file, one after another.
pub(super) fn of_file(
    path: &Path,
    kept: Option<&Kept>,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<Vec<u8>> {
    let file = regular::open(path).context("open", path)?;
    let size = file.metadata().context("look at", path)?.len();
    let mut digests = vec![0; size.div_ceil(CHUNK) as usize * DIGEST];
    // The first chunk has the superblock in it, so it is never the same.
    let same = kept.map_or(1, |kept| {
        let known = (kept.digests.len() / DIGEST) as u64;
        (kept.until / CHUNK).min(known).min(size / CHUNK).max(1)
    });
    if let Some(kept) = kept {
        let range = DIGEST..same as usize * DIGEST;
        if let (Some(to), Some(from)) = (digests.get_mut(range.clone()), kept.digests.get(range)) {
            to.copy_from_slice(from);
        }
    }
    let fresh = std::iter::once(0).chain(same..size.div_ceil(CHUNK));
    let found = hash(&file, size, fresh.collect(), threads, progress);
    for (chunk, digest) in found.context("read", path)? {
        let at = chunk as usize * DIGEST;
        if let Some(slot) = digests.get_mut(at..at + DIGEST) {
            slot.copy_from_slice(digest.as_bytes());
        }
    }
    if progress.is_cancelled() {
        return Err(CommitError::Cancelled);
    }
    Ok(digests)
}

/// The ranges of a file that are not what they were.
pub(super) fn damaged(
    path: &Path,
    digests: &[u8],
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<Vec<Range<u64>>> {
    let file = regular::open(path).context("open", path)?;
    let size = file.metadata().context("look at", path)?.len();
    let chunks = size.div_ceil(CHUNK);
    if chunks * DIGEST as u64 != digests.len() as u64 {
        return Err(CommitError::Check(format!(
            "{} digests for {size} bytes",
            digests.len() / DIGEST
        )));
    }
    let found = hash(&file, size, (0..chunks).collect(), threads, progress);
    if progress.is_cancelled() {
        return Err(CommitError::Cancelled);
    }
    let mut bad: Vec<Range<u64>> = Vec::new();
    let mut found = found.context("read", path)?;
    found.sort_unstable_by_key(|(chunk, _)| *chunk);
    for (chunk, digest) in found {
        let at = chunk as usize * DIGEST;
        if digests.get(at..at + DIGEST) == Some(&digest.as_bytes()[..]) {
            continue;
        }
        let range = chunk * CHUNK..size.min((chunk + 1) * CHUNK);
        match bad.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => bad.push(range),
        }
    }
    Ok(bad)
}

/// Hashes some chunks of a file. What is missing in the answer was cancelled.
fn hash(
    file: &File,
    size: u64,
    chunks: Vec<u64>,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> io::Result<Vec<(u64, blake3::Hash)>> {
    let (next, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let work = || -> io::Result<Vec<(u64, blake3::Hash)>> {
        let mut found = Vec::new();
        let mut buffer = vec![0; CHUNK as usize];
        while !stop.load(Ordering::Relaxed) && !progress.is_cancelled() {
            let index = next.fetch_add(1, Ordering::Relaxed) as usize;
            let Some(chunk) = chunks.get(index) else {
                break;
            };
            let len = (size - chunk * CHUNK).min(CHUNK) as usize;
            let read = buffer.get_mut(..len).unwrap_or_default();
            if let Err(error) = file.read_exact_at(read, chunk * CHUNK) {
                stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
            found.push((*chunk, blake3::hash(read)));
            done.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok(found)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.get().min(chunks.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut mine = work();
        progress.report(&Report {
            phase: "hashing".to_owned(),
            files_done: 0,
            files_total: 0,
            bytes_done: done.load(Ordering::Relaxed),
            bytes_total: chunks.len() as u64 * CHUNK,
        });
        for other in others {
            let found = other
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread that hashes died")));
            mine = match (mine, found) {
                (Ok(mut mine), Ok(found)) => {
                    mine.extend(found);
                    Ok(mine)
                }
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
        }
        mine
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::progress::NoProgress;

    fn threads() -> NonZeroUsize {
        NonZeroUsize::new(3).unwrap()
    }

    fn bytes(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for len in [1, CHUNK as usize, CHUNK as usize * 3 + 5] {
            let sound = bytes(len);
            std::fs::write(&path, &sound).unwrap();
            let digests = of_file(&path, None, threads(), &NoProgress).unwrap();
            assert_eq!(digests.len(), len.div_ceil(CHUNK as usize) * DIGEST);
            assert!(
                damaged(&path, &digests, threads(), &NoProgress)
                    .unwrap()
                    .is_empty()
            );
            for at in [0, len / 2, len - 1] {
                let mut bad = sound.clone();
                bad[at] ^= 0x10;
                std::fs::write(&path, &bad).unwrap();
                let found = damaged(&path, &digests, threads(), &NoProgress).unwrap();
                assert_eq!(found.len(), 1);
                assert!(found[0].contains(&(at as u64)), "{at}: {found:?}");
                assert!(found[0].end <= len as u64);
            }
            std::fs::write(&path, [&sound[..], &[0; CHUNK as usize]].concat()).unwrap();
            assert!(damaged(&path, &digests, threads(), &NoProgress).is_err());
        }
    }

    #[test]
    fn what_is_carried_in_place_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let chunk = CHUNK as usize;
        let mut image = bytes(4 * chunk + 100);
        std::fs::write(&old, &image).unwrap();
        let digests = of_file(&old, None, threads(), &NoProgress).unwrap();
        // Another superblock, and other tables from within the fourth chunk on.
        image[5] ^= 1;
        image[3 * chunk + 7..].fill(b'n');
        image.resize(6 * chunk, b'm');
        std::fs::write(&new, &image).unwrap();
        let true_ones = of_file(&new, None, threads(), &NoProgress).unwrap();
        let kept = |digests: Vec<u8>| Kept {
            digests,
            until: 3 * CHUNK + 7,
        };
        let carried = of_file(&new, Some(&kept(digests.clone())), threads(), &NoProgress).unwrap();
        assert!(carried == true_ones);
        // Wrong digests of the old image stay wrong where nothing is read: there, and only there.
        let wrong = vec![9; digests.len()];
        let carried = of_file(&new, Some(&kept(wrong)), threads(), &NoProgress).unwrap();
        let differs = |chunk: &usize| {
            let range = chunk * DIGEST..(chunk + 1) * DIGEST;
            carried[range.clone()] != true_ones[range]
        };
        let read_again: Vec<usize> = (0..6).filter(|chunk| !differs(chunk)).collect();
        assert_eq!(read_again, [0, 3, 4, 5]);
        // Fewer digests than there should be are no harm.
        let few = kept(digests[..2 * DIGEST].to_vec());
        assert!(of_file(&new, Some(&few), threads(), &NoProgress).unwrap() == true_ones);
    }
}
