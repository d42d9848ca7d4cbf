//! What a commit would write: changed content, compressed and counted, but not stored.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::error::{CommitError, Result};
use super::workspace::Workspace;
use crate::object::{Ino, Kind};
use crate::packages::Differences;
use crate::progress::{Progress, Report};
use crate::squashfs::Compression;
use crate::squashfs::compress::{Compressor, compressor};
use crate::union::{Change, ChangeKind, Union};

/// What a commit would write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The changes that it would record.
    pub differences: Differences,
    /// Files with new content.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Their size after compression, in bytes. A commit writes less where the image, or another of
    /// these files, has the same content.
    pub compressed_bytes: u64,
    /// Codec and level with which it was compressed.
    pub compression: String,
}

/// The part of a block at the end of a file, which shares a block with those of other files.
#[derive(Default)]
struct Tails(Vec<u8>);

/// `None` stores blocks as they are.
type Codec = Option<Box<dyn Compressor>>;

struct Measured<'a> {
    union: &'a Union,
    compression: Compression,
    block: usize,
    files: Vec<Ino>,
    next: AtomicUsize,
    done: AtomicU64,
    stored: AtomicU64,
    is_cancelled: AtomicBool,
}

/// Compresses the new content of changed files as a commit does, and counts the result.
pub fn preview(
    workspace: &Workspace,
    differences: Differences,
    progress: &dyn Progress,
) -> Result<Preview> {
    let union = workspace.union();
    let (settings, lower) = (workspace.settings(), union.lower());
    // As the image will be written: a commit keeps the format of the image.
    let superblock = lower
        .images()
        .first()
        .map(|image| image.image().superblock());
    let kept = superblock
        .filter(|superblock| superblock.inodes > 1)
        .and_then(|superblock| {
            let codec = Compression::for_id(superblock.compressor)?;
            Some((codec, superblock.block_size))
        });
    let (compression, block) = kept.unwrap_or((settings.compression, settings.block_size));
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut files = Vec::new();
    for Change {
        what,
        kind,
        size,
        ino,
        ..
    } in differences.changes.iter().map(|one| &one.change)
    {
        if *kind == Kind::File
            && *what != ChangeKind::Removed
            && seen.insert(*ino)
            && union.has_own_content(*ino)?
        {
            files.push(*ino);
            bytes += size;
        }
    }
    let measured = Measured {
        union,
        compression,
        block: block as usize,
        files,
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        stored: AtomicU64::new(0),
        is_cancelled: AtomicBool::new(false),
    };
    measured.run(settings.threads, bytes, progress)?;
    Ok(Preview {
        files: measured.files.len() as u64,
        bytes,
        compressed_bytes: measured.stored.into_inner(),
        compression: compression.to_string(),
        differences,
    })
}

impl Measured<'_> {
    fn run(&self, threads: NonZeroUsize, total: u64, progress: &dyn Progress) -> Result<()> {
        let failed = Mutex::new(None);
        let threads = threads.get().min(self.files.len());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    if let Err(e) = self.work(total, progress) {
                        self.is_cancelled.store(true, Ordering::Relaxed);
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(e);
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    /// Compresses files until none is left.
    fn work(&self, total: u64, progress: &dyn Progress) -> Result<()> {
        let mut codec = compressor(&self.compression, self.block as u32)?;
        let codec = &mut codec;
        let mut tails = Tails::default();
        let mut out = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(ino) = self.files.get(at) else { break };
            self.file(*ino, codec, &mut tails, &mut out, &|| {
                progress.report(&Report {
                    phase: "compressing".to_owned(),
                    files_done: at as u64,
                    files_total: self.files.len() as u64,
                    bytes_done: self.done.load(Ordering::Relaxed),
                    bytes_total: total,
                });
                progress.is_cancelled() || self.is_cancelled.load(Ordering::Relaxed)
            })?;
        }
        self.count(codec, &tails.0, &mut out)
    }

    fn file(
        &self,
        ino: Ino,
        codec: &mut Codec,
        tails: &mut Tails,
        out: &mut Vec<u8>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut offset = 0;
        loop {
            if is_cancelled() {
                return Err(CommitError::Cancelled);
            }
            let mut data: Vec<u8> = Vec::with_capacity(self.block);
            while data.len() < self.block {
                let at = offset + data.len() as u64;
                let read = self.union.read_at(ino, at, self.block - data.len())?;
                if (*read).as_ref().is_empty() {
                    break;
                }
                data.extend_from_slice((*read).as_ref());
            }
            offset += data.len() as u64;
            self.done.fetch_add(data.len() as u64, Ordering::Relaxed);
            if data.len() == self.block {
                // A hole takes no space.
                if data.iter().any(|byte| *byte != 0) {
                    self.count(codec, &data, out)?;
                }
                continue;
            }
            if tails.0.len() + data.len() > self.block {
                self.count(codec, &tails.0, out)?;
                tails.0.clear();
            }
            tails.0.append(&mut data);
            return Ok(());
        }
    }

    fn count(&self, codec: &mut Codec, data: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        out.clear();
        // What compression does not make smaller is stored as it is.
        let is_smaller = match codec {
            Some(codec) => codec.compress(data, out)?,
            None => false,
        };
        let stored = if is_smaller { out.len() } else { data.len() };
        self.stored.fetch_add(stored as u64, Ordering::Relaxed);
        Ok(())
    }
}
