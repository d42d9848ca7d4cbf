//! The threads between the pusher and the ordered stage, and what they share.
//!
//! ```text
//!  pusher ──(1)── workers ──(2)── assembler ──── file
//!     └───────────────(2)────────────┘  │
//!               workers ◄──(1)──────────┘ full fragment blocks
//! ```
//!
//! The pusher numbers its pieces: batches of small files, which a worker opens, reads and hashes;
//! blocks of large files, which the pusher has read and a worker compresses; and pieces that need
//! no work. The assembler takes results in the order of their numbers, so the bytes of the image do
//! not depend on the number of workers or their speed.
//!
//! Memory is bounded by a budget in bytes of content, which the pusher acquires in order and the
//! assembler releases. Workers and the assembler never wait for budget, so the oldest piece always
//! arrives. Without further pushes, only one unfinished fragment block can hold budget, which is
//! much less than the limit. All channels are unbounded, but limited by the budget.
//!
//! Locks: each is taken alone, never one inside another.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};

use super::Monitor;
use super::content::Source;
use super::error::{Found, Result, WriteError};
use crate::squashfs::compress::Compressor;
use crate::squashfs::format::BlockSize;

/// Identifies content: the first 24 bytes of its BLAKE3 hash.
pub(super) type Digest = [u8; 24];

/// Content of a small file to be read.
pub(super) struct SmallFile {
    pub(super) size: u32,
    pub(super) source: Box<dyn Source>,
}

/// A task for a worker.
pub(super) enum Work {
    /// Read and hash small files.
    Read { seq: u64, files: Vec<SmallFile> },
    /// Compress a block of a large file, and hash it unless `hash` is given.
    Block {
        seq: u64,
        last: bool,
        raw: Vec<u8>,
        hash: Option<blake3::Hash>,
    },
    /// Compress a fragment block.
    Fragment { slot: u64, index: u32, raw: Vec<u8> },
}

/// A block as it will be stored.
pub(super) struct Stored {
    /// Empty for a hole.
    pub(super) bytes: Vec<u8>,
    pub(super) word: BlockSize,
    pub(super) raw_len: u32,
}

/// A piece of content. The assembler takes pieces in the order of their sequence numbers.
pub(super) enum Piece {
    /// Small files: their contents one after another, and (length, digest) of each.
    Small {
        content: Vec<u8>,
        files: Vec<(u32, Digest)>,
    },
    /// A file whose blocks follow.
    Begin(FileStart),
    /// A fresh block of it.
    Block {
        stored: Stored,
        hash: blake3::Hash,
        last: bool,
    },
    /// A block of it that is copied from the old image.
    Copied {
        from: u64,
        word: BlockSize,
        raw_len: u32,
        last: bool,
    },
    /// A file with the content of an earlier file, by index.
    Duplicate { of: u32 },
    /// A file whose data is carried over from the old image.
    Carried {
        layout: crate::squashfs::format::FileBody,
        cost: usize,
    },
    /// The next small file begins a new fragment block.
    Flush,
    /// Everything has been pushed.
    End,
}

/// The properties of a file that precede its blocks.
pub(super) struct FileStart {
    pub(super) size: u64,
    /// Tail in a fragment of the old image: (index, offset).
    pub(super) old_fragment: Option<(u32, u32)>,
    /// True if all its blocks are fresh, so that later files can be duplicates of it.
    pub(super) whole: bool,
}

/// A message to the assembler.
pub(super) enum Done {
    Piece {
        seq: u64,
        piece: Piece,
    },
    Fragment {
        slot: u64,
        index: u32,
        stored: Stored,
    },
    /// Something failed: check [`Shared::failed`].
    Wake,
}

/// Complete files of more than a block, by content.
#[derive(Default)]
pub(super) struct LargeFiles {
    pub(super) by_digest: HashMap<Digest, u32>,
    /// The number of complete files. They complete in order.
    pub(super) complete: u64,
}

/// State shared by all threads of a writer.
pub(super) struct Shared {
    pub(super) block_size: usize,
    pub(super) monitor: Arc<dyn Monitor>,
    limit: usize,
    used: Mutex<usize>,
    freed: Condvar,
    failed: AtomicBool,
    failure: Mutex<Option<WriteError>>,
    large: Mutex<LargeFiles>,
    large_complete: Condvar,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Locks a mutex, even a poisoned one: the panic is recorded as a failure (see [`Sentinel`]), and
/// the plain data inside is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(block_size: usize, threads: usize, monitor: Arc<dyn Monitor>) -> Self {
        Shared {
            block_size,
            monitor,
            limit: budget(block_size, threads),
            used: Mutex::new(0),
            freed: Condvar::new(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            large: Mutex::default(),
            large_complete: Condvar::new(),
            spare: Mutex::default(),
        }
    }

    /// Records the first failure and ends all waits.
    pub(super) fn fail(&self, error: WriteError) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
        // Locked so that no waiter can be between its check and its wait.
        drop(lock(&self.used));
        self.freed.notify_all();
        drop(lock(&self.large));
        self.large_complete.notify_all();
    }

    pub(super) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Returns an error if anything has failed: the reason on the first call.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_failed() {
            return Err(lock(&self.failure).take().unwrap_or(WriteError::Failed));
        }
        if self.monitor.is_cancelled() {
            self.fail(WriteError::Cancelled);
            return self.check();
        }
        Ok(())
    }

    /// Acquires budget if it is available.
    pub(super) fn try_acquire(&self, bytes: usize) -> bool {
        let mut used = lock(&self.used);
        let fits = *used + bytes <= self.limit;
        if fits {
            *used += bytes;
        }
        fits
    }

    /// Waits for budget and acquires it.
    pub(super) fn acquire(&self, bytes: usize) -> Result<()> {
        let mut used = lock(&self.used);
        while *used + bytes > self.limit && !self.is_failed() {
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *used += bytes;
        drop(used);
        self.check()
    }

    pub(super) fn release(&self, bytes: usize) {
        let mut used = lock(&self.used);
        *used = used.saturating_sub(bytes);
        drop(used);
        self.freed.notify_one();
    }

    /// Waits until `count` large files are complete, then searches one with this content.
    pub(super) fn find_large(&self, count: u64, digest: &Digest) -> Result<Option<u32>> {
        let mut large = lock(&self.large);
        while large.complete < count && !self.is_failed() {
            large = self
                .large_complete
                .wait(large)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let found = large.by_digest.get(digest).copied();
        drop(large);
        self.check()?;
        Ok(found)
    }

    /// Records a complete large file.
    pub(super) fn complete_large(&self, file: u32, digest: Digest) {
        let mut large = lock(&self.large);
        large.complete += 1;
        large.by_digest.entry(digest).or_insert(file);
        drop(large);
        self.large_complete.notify_all();
    }

    /// Returns an empty buffer with room for a block.
    pub(super) fn buffer(&self) -> Vec<u8> {
        lock(&self.spare)
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(self.block_size))
    }

    /// Puts a buffer back.
    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() >= self.block_size {
            buffer.clear();
            let mut spare = lock(&self.spare);
            if spare.len() * self.block_size < self.limit {
                spare.push(buffer);
            }
        }
    }
}

/// Returns the limit of content in flight: a few blocks before and after each worker.
fn budget(block_size: usize, threads: usize) -> usize {
    (threads + 2) * (4 << 20).max(8 * block_size)
}

/// Records a failure when its thread panics, so that no thread waits for it.
pub(super) struct Sentinel<'a>(pub(super) &'a Shared, pub(super) &'a Sender<Done>);

impl Drop for Sentinel<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(WriteError::Thread("panicked".into()));
            wake(self.1);
        }
    }
}

/// Wakes the assembler.
pub(super) fn wake(done: &Sender<Done>) {
    // If the assembler has ended, this is not needed.
    drop(done.send(Done::Wake));
}

/// Computes the digest of a file from the hashes of its blocks.
pub(super) struct FileHasher(blake3::Hasher);

impl FileHasher {
    pub(super) fn new(size: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&size.to_le_bytes());
        FileHasher(hasher)
    }
    pub(super) fn block(&mut self, hash: &blake3::Hash) {
        self.0.update(hash.as_bytes());
    }
    pub(super) fn finish(&self) -> Digest {
        truncate(&self.0.finalize())
    }
}

fn truncate(hash: &blake3::Hash) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash.as_bytes()[..24]);
    digest
}

/// How a block of zeros is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// As a hole.
    Hole,
    /// As data: a fragment block cannot be a hole.
    Data,
}

/// A worker. It prefers fragment and file blocks to small files.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) reads: Receiver<Work>,
    pub(super) blocks: Receiver<Work>,
    pub(super) done: Sender<Done>,
    pub(super) compressor: Option<Box<dyn Compressor>>,
}

impl Worker {
    pub(super) fn run(mut self) {
        let (shared, done) = (self.shared.clone(), self.done.clone());
        let _sentinel = Sentinel(&shared, &done);
        while let Some(work) = self.next() {
            if shared.is_failed() {
                continue;
            }
            if let Err(error) = self.work(work) {
                shared.fail(error);
                wake(&done);
            }
        }
    }

    fn next(&mut self) -> Option<Work> {
        match self.blocks.try_recv() {
            Ok(work) => return Some(work),
            // The assembler is the last to hold a sender.
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        let read = select! {
            recv(self.blocks) -> work => return work.ok(),
            recv(self.reads) -> work => work,
        };
        match read {
            Ok(work) => Some(work),
            Err(_) => {
                self.reads = crossbeam_channel::never();
                self.blocks.recv().ok()
            }
        }
    }

    fn work(&mut self, work: Work) -> Result<()> {
        let done = match work {
            Work::Read { seq, files } => Done::Piece {
                seq,
                piece: read_small(&self.shared, files)?,
            },
            Work::Block {
                seq,
                last,
                raw,
                hash,
            } => {
                let hash = hash.unwrap_or_else(|| blake3::hash(&raw));
                let stored = self.store(raw, Zeros::Hole)?;
                Done::Piece {
                    seq,
                    piece: Piece::Block { stored, hash, last },
                }
            }
            Work::Fragment { slot, index, raw } => Done::Fragment {
                slot,
                index,
                stored: self.store(raw, Zeros::Data)?,
            },
        };
        // If the assembler has ended, a failure has been recorded.
        drop(self.done.send(done));
        Ok(())
    }

    fn store(&mut self, raw: Vec<u8>, zeros: Zeros) -> Result<Stored> {
        // At most a block, 1 MiB.
        let raw_len = raw.len() as u32;
        if zeros == Zeros::Hole && is_zero(&raw) {
            self.shared.recycle(raw);
            return Ok(Stored {
                bytes: Vec::new(),
                word: BlockSize::HOLE,
                raw_len,
            });
        }
        if let Some(compressor) = &mut self.compressor {
            let mut out = self.shared.buffer();
            if compressor
                .compress(&raw, &mut out)
                .map_err(WriteError::Image)?
            {
                self.shared.recycle(raw);
                let word = BlockSize::compressed(out.len() as u32);
                return Ok(Stored {
                    bytes: out,
                    word,
                    raw_len,
                });
            }
            self.shared.recycle(out);
        }
        let word = BlockSize::uncompressed(raw_len);
        Ok(Stored {
            bytes: raw,
            word,
            raw_len,
        })
    }
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

fn read_small(shared: &Shared, files: Vec<SmallFile>) -> Result<Piece> {
    let total = files.iter().map(|file| file.size as usize).sum::<usize>();
    let mut content = shared.buffer();
    content.reserve(total);
    let mut found = Vec::with_capacity(files.len());
    for file in files {
        let source_error = |error| WriteError::Source {
            label: file.source.label(),
            error,
        };
        let mut reader = file.source.open().map_err(source_error)?;
        let from = content.len();
        let wanted = file.size as usize;
        read_up_to(&mut reader, &mut content, wanted).map_err(source_error)?;
        let got = content.len() - from;
        check_end(&mut reader, file.source.as_ref(), wanted as u64, got as u64)?;
        found.push((file.size, truncate(&blake3::hash(&content[from..]))));
    }
    Ok(Piece::Small {
        content,
        files: found,
    })
}

/// Appends up to `wanted` bytes, and fewer only at the end.
pub(super) fn read_up_to(
    reader: &mut (impl Read + ?Sized),
    buffer: &mut Vec<u8>,
    wanted: usize,
) -> io::Result<()> {
    let from = buffer.len();
    buffer.resize(from + wanted, 0);
    let mut got = from;
    while got < from + wanted {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                buffer.truncate(from);
                return Err(error);
            }
        }
    }
    buffer.truncate(got);
    Ok(())
}

/// Checks that a source ends after the announced number of bytes.
pub(super) fn check_end(
    reader: &mut (impl Read + ?Sized),
    source: &dyn Source,
    expected: u64,
    got: u64,
) -> Result<()> {
    let changed = |found| WriteError::SourceChanged {
        label: source.label(),
        expected,
        found,
    };
    if got < expected {
        return Err(changed(Found::Only(got)));
    }
    loop {
        match reader.read(&mut [0]) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(changed(Found::More)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(WriteError::Source {
                    label: source.label(),
                    error,
                });
            }
        }
    }
}
