//! Digests of image files: BLAKE3 of each MiB, kept in the database.
//!
//! SquashFS has no checksums, so a flipped bit in an uncompressed block or in a name is not
//! detected when it is read, and each commit would carry it over. When an append carries data over
//! at the same position, its digests are copied from the old image and the data is not read again.
//! So the cost follows the change, and the next verification detects damage that happened before or
//! during the copy.

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

/// Bytes of the file for each digest.
pub(super) const CHUNK: u64 = 1 << 20;
const DIGEST: usize = blake3::OUT_LEN;

/// Digests of the old image that apply to the new one.
#[derive(Debug)]
pub(super) struct Kept {
    /// All digests of the old image.
    pub(super) digests: Vec<u8>,
    /// The number of bytes at the beginning that are equal in both files, except for the
    /// superblock.
    pub(super) until: u64,
}

/// Computes the digests of an image file. Returns them one after another.
pub(super) fn compute(
    path: &Path,
    kept: Option<&Kept>,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<Vec<u8>> {
    let file = regular::open(path).context("open", path)?;
    let size = file.metadata().context("stat", path)?.len();
    let mut digests = vec![0; size.div_ceil(CHUNK) as usize * DIGEST];
    // The first chunk contains the superblock, which always differs.
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

/// Returns true if a part of a file is equal to what its digest shows.
pub(super) fn is_chunk(digests: &[u8], chunk: u64, bytes: &[u8]) -> bool {
    let at = chunk as usize * DIGEST;
    digests.get(at..at + DIGEST) == Some(&blake3::hash(bytes).as_bytes()[..])
}

/// Returns true if a range of two files is equal as their digests show. The range is within one
/// chunk, or several.
pub(super) fn are_equal(one: &[u8], other: &[u8], range: Range<u64>) -> bool {
    let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
    let digests = chunks.start as usize * DIGEST..chunks.end as usize * DIGEST;
    match (one.get(digests.clone()), other.get(digests)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// Returns the ranges of an image file whose content differs from the digests.
pub(super) fn find_damage(
    path: &Path,
    digests: &[u8],
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<Vec<Range<u64>>> {
    let file = regular::open(path).context("open", path)?;
    let size = file.metadata().context("stat", path)?.len();
    let chunks = size.div_ceil(CHUNK);
    if chunks * DIGEST as u64 != digests.len() as u64 {
        return Err(CommitError::Changed(format!(
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

/// Hashes chunks of a file. If it is cancelled, the result lacks some of them.
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
                .unwrap_or_else(|_| Err(io::Error::other("a hashing thread panicked")));
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
    fn a_flipped_bit_is_located() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for len in [1, CHUNK as usize, CHUNK as usize * 3 + 5] {
            let sound = bytes(len);
            std::fs::write(&path, &sound).unwrap();
            let digests = compute(&path, None, threads(), &NoProgress).unwrap();
            assert_eq!(digests.len(), len.div_ceil(CHUNK as usize) * DIGEST);
            assert!(
                find_damage(&path, &digests, threads(), &NoProgress)
                    .unwrap()
                    .is_empty()
            );
            for at in [0, len / 2, len - 1] {
                let mut bad = sound.clone();
                bad[at] ^= 0x10;
                std::fs::write(&path, &bad).unwrap();
                let found = find_damage(&path, &digests, threads(), &NoProgress).unwrap();
                assert_eq!(found.len(), 1);
                assert!(found[0].contains(&(at as u64)), "{at}: {found:?}");
                assert!(found[0].end <= len as u64);
            }
            std::fs::write(&path, [&sound[..], &[0; CHUNK as usize]].concat()).unwrap();
            assert!(find_damage(&path, &digests, threads(), &NoProgress).is_err());
        }
    }

    #[test]
    fn data_carried_over_in_place_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let chunk = CHUNK as usize;
        let mut image = bytes(4 * chunk + 100);
        std::fs::write(&old, &image).unwrap();
        let digests = compute(&old, None, threads(), &NoProgress).unwrap();
        // The superblock differs, and so do the tables, which begin in the fourth chunk.
        image[5] ^= 1;
        image[3 * chunk + 7..].fill(b'n');
        image.resize(6 * chunk, b'm');
        std::fs::write(&new, &image).unwrap();
        let correct = compute(&new, None, threads(), &NoProgress).unwrap();
        let kept = |digests: Vec<u8>| Kept {
            digests,
            until: 3 * CHUNK + 7,
        };
        let carried = compute(&new, Some(&kept(digests.clone())), threads(), &NoProgress).unwrap();
        assert!(carried == correct);
        // Wrong digests of the old image are kept exactly for the chunks that are not read.
        let wrong = vec![9; digests.len()];
        let carried = compute(&new, Some(&kept(wrong)), threads(), &NoProgress).unwrap();
        let differs = |chunk: &usize| {
            let range = chunk * DIGEST..(chunk + 1) * DIGEST;
            carried[range.clone()] != correct[range]
        };
        let read_again: Vec<usize> = (0..6).filter(|chunk| !differs(chunk)).collect();
        assert_eq!(read_again, [0, 3, 4, 5]);
        // Missing digests are computed.
        let few = kept(digests[..2 * DIGEST].to_vec());
        assert!(compute(&new, Some(&few), threads(), &NoProgress).unwrap() == correct);
    }
}
