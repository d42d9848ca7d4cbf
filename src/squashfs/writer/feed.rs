//! Feeds the threads: numbers the pieces of content in the order in which they are pushed.

mod finish;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Sender, unbounded};

use super::Monitor;
use super::assembler::{Assembled, Assembler, PER_FILE};
use super::blocks::{Blocks, Fresh};
use super::carry::{self, OldData};
use super::content::Source;
use super::error::{Result, WriteError};
use super::nodes::{Meta, NodeId, Tree};
use super::output::{Output, copy_range};
use super::pipeline::{
    Digest, Done, FileHasher, FileStart, Piece, Sentinel, Shared, SmallFile, Stored, Work, Worker,
    wake,
};
use crate::squashfs::compress::{Compression, compressor};
use crate::squashfs::format::{
    BlockSize, FileBody, InodeKind, MAX_BLOCKS_PER_FILE, METADATA_SIZE, MetadataHeader,
    SUPERBLOCK_SIZE, Superblock,
};
use crate::squashfs::reader::FileLayout;

/// Files in one batch for a worker.
const BATCH_FILES: usize = 64;

/// Whether a finished image is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    Unsynced,
    /// Everything before the superblock is synced first, then the superblock.
    Synced,
}

/// What a new image starts with.
pub(super) struct Start {
    pub(super) compression: Compression,
    pub(super) superblock: Superblock,
    pub(super) fragments: bool,
    pub(super) codec_options: Vec<u8>,
    /// Receives the nodes.
    pub(super) tree: Tree,
    pub(super) old: Option<OldData>,
    /// Bytes left free before the data, which readers ignore. For tests.
    pub(super) gap: u64,
    pub(super) threads: NonZeroUsize,
    pub(super) monitor: Arc<dyn Monitor>,
}

/// The tree being pushed, and the threads.
pub(super) struct Feed {
    path: PathBuf,
    /// Cleared when the image is complete.
    unfinished: bool,
    file: Arc<File>,
    shared: Arc<Shared>,
    compression: Compression,
    superblock: Superblock,
    fragments: bool,
    pub(super) tree: Tree,
    old: Option<OldData>,

    next_seq: u64,
    reads: Option<Sender<Work>>,
    blocks: Option<Sender<Work>>,
    done: Sender<Done>,
    workers: Vec<JoinHandle<()>>,
    assembler: Option<JoinHandle<Option<Assembled>>>,
    /// Copies the old data area to its place.
    carrier: Option<JoinHandle<()>>,

    batch: Vec<SmallFile>,
    batch_bytes: usize,
    files: u32,
    /// Large files so far that later files may be duplicates of.
    whole_files: u64,
    /// By size and first block of those: their number, up to the last of this kind.
    first_blocks: HashMap<Digest, u64>,
    zero_hash: blake3::Hash,
    began: Instant,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Feed {
    pub(super) fn start(path: &Path, start: Start) -> Result<Feed> {
        let Start {
            compression,
            superblock,
            fragments,
            codec_options,
            tree,
            old,
            gap,
            threads,
            monitor,
        } = start;
        let block_size = superblock.block_size;
        let threads = threads.get();
        let mut codecs = Vec::with_capacity(threads);
        for _ in 0..threads {
            codecs.push(compressor(&compression, block_size)?);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(WriteError::io("creating the image"))?;
        let file = Arc::new(file);
        let shared = Arc::new(Shared::new(block_size as usize, threads, monitor));
        let (reads, read_work) = unbounded();
        let (blocks, block_work) = unbounded();
        let (done, results) = unbounded();
        // From here on, dropping `inner` stops the threads and removes the file.
        let mut inner = Feed {
            path: path.to_owned(),
            unfinished: true,
            file: file.clone(),
            shared: shared.clone(),
            compression,
            superblock,
            fragments,
            tree,
            old: old.clone(),
            next_seq: 0,
            reads: Some(reads),
            blocks: Some(blocks.clone()),
            done: done.clone(),
            workers: Vec::new(),
            assembler: None,
            carrier: None,
            batch: Vec::new(),
            batch_bytes: 0,
            files: 0,
            whole_files: 0,
            first_blocks: HashMap::new(),
            zero_hash: blake3::hash(&vec![0; block_size as usize]),
            began: Instant::now(),
        };
        let data_at = match &old {
            Some(old) if old.carry.is_in_place() => {
                let (old, file, shared) = (old.clone(), file.clone(), shared.clone());
                let (done, end) = (done.clone(), old.data.1);
                inner.carrier = Some(spawn("carry", move || {
                    let _sentinel = Sentinel(&shared, &done);
                    let blanked = copy_range(old.image.as_file(), 0, &file, 0, end, &mut || {
                        shared.check()
                    })
                    // The file is not an image until the superblock is written, last of all.
                    .and_then(|()| blank_superblock(&file));
                    if let Err(error) = blanked {
                        shared.fail(error);
                        wake(&done);
                    }
                })?);
                end
            }
            _ => {
                blank_superblock(&file)?;
                write_options(&file, &codec_options)? + gap
            }
        };
        for compressor in codecs {
            let worker = Worker {
                shared: shared.clone(),
                reads: read_work.clone(),
                blocks: block_work.clone(),
                done: done.clone(),
                compressor,
            };
            inner.workers.push(spawn("compress", move || worker.run())?);
        }
        let out = Output::new(file, old.as_ref().map(|old| old.image.clone()), data_at);
        let assembler = Assembler::new(shared, (done, results), blocks, out, old);
        inner.assembler = Some(spawn("assemble", move || assembler.run())?);
        Ok(inner)
    }

    /// Stops the writer if pushing data has failed: the tree has a node without data.
    pub(super) fn stop_on_failure(&mut self, pushed: Result<()>) -> Result<()> {
        if pushed.is_err() {
            self.shared.fail(WriteError::Failed);
            wake(&self.done);
        }
        pushed
    }

    pub(super) fn add_file_node(&mut self, meta: &Meta, size: u64) -> Result<NodeId> {
        self.shared.check()?;
        if size.div_ceil(self.shared.block_size as u64) > MAX_BLOCKS_PER_FILE {
            return Err(WriteError::tree(
                "file size",
                format!("{size} bytes are too many blocks"),
            ));
        }
        let node = self.tree.add(InodeKind::File, meta, self.files)?;
        self.files += 1;
        Ok(node)
    }

    pub(super) fn push_file(&mut self, size: u64, source: Box<dyn Source>) -> Result<()> {
        let block_size = self.shared.block_size;
        match usize::try_from(size) {
            Ok(bytes) if bytes == 0 || (bytes < block_size && self.fragments) => {
                self.acquire(bytes + PER_FILE)?;
                self.batch.push(SmallFile {
                    size: size as u32,
                    source,
                });
                self.batch_bytes += bytes;
                if self.batch_bytes >= block_size || self.batch.len() >= BATCH_FILES {
                    self.flush_batch()?;
                }
                Ok(())
            }
            _ => self.push_large(size, source.as_ref()),
        }
    }

    fn push_large(&mut self, size: u64, source: &dyn Source) -> Result<()> {
        let mut blocks = Blocks::open(source, size, self.shared.block_size)?;
        self.acquire(blocks.next_len())?;
        let first = blocks.next(&self.shared)?;
        let first_hash = self.hash(&first);
        let mut hasher = FileHasher::new(size);
        hasher.block(&first_hash);
        let look_alike = hasher.finish();
        if let Some(count) = self.first_blocks.get(&look_alike).copied()
            && source.can_reopen()
        {
            // Probably a duplicate, which justifies one additional read.
            let mut rest = Blocks::open(source, size, self.shared.block_size)?;
            rest.skip()?;
            while rest.next_len() > 0 {
                let block = rest.next(&self.shared)?;
                hasher.block(&self.hash(&block));
                if let Fresh::Bytes(bytes) = block {
                    self.shared.recycle(bytes);
                }
                self.shared.check()?;
            }
            rest.check_end()?;
            self.flush_batch()?;
            if let Some(of) = self.shared.find_large(count, &hasher.finish())? {
                self.shared.release(first.len());
                return self.piece(Piece::Duplicate { of });
            }
        }
        self.whole_files += 1;
        self.first_blocks.insert(look_alike, self.whole_files);
        self.flush_batch()?;
        self.piece(Piece::Begin(FileStart {
            size,
            old_fragment: None,
            whole: true,
        }))?;
        self.block(first, Some(first_hash), blocks.next_len() == 0)?;
        while blocks.next_len() > 0 {
            self.acquire(blocks.next_len())?;
            let block = blocks.next(&self.shared)?;
            self.block(block, None, blocks.next_len() == 0)?;
        }
        blocks.check_end()
    }

    fn hash(&self, block: &Fresh) -> blake3::Hash {
        match block {
            Fresh::Bytes(bytes) => blake3::hash(bytes),
            Fresh::Hole(len) if *len == self.shared.block_size => self.zero_hash,
            Fresh::Hole(len) => blake3::hash(&vec![0; *len]),
        }
    }

    /// Sends a block to be compressed, or a hole to the assembler.
    fn block(&mut self, block: Fresh, hash: Option<blake3::Hash>, last: bool) -> Result<()> {
        match block {
            Fresh::Hole(len) => {
                let hash = hash.unwrap_or_else(|| self.hash(&block));
                let raw_len = len as u32;
                let stored = Stored {
                    bytes: Vec::new(),
                    word: BlockSize::HOLE,
                    raw_len,
                };
                self.piece(Piece::Block { stored, hash, last })
            }
            Fresh::Bytes(raw) => {
                let seq = self.seq();
                let work = Work::Block {
                    seq,
                    last,
                    raw,
                    hash,
                };
                send(self.blocks.as_ref(), work)
            }
        }
    }

    /// Acquires budget. Files of an unsent batch hold some, so the batch is sent before waiting.
    fn acquire(&mut self, bytes: usize) -> Result<()> {
        if self.shared.try_acquire(bytes) {
            return Ok(());
        }
        self.flush_batch()?;
        self.shared.acquire(bytes)
    }

    fn flush_batch(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch_bytes = 0;
        let files = std::mem::take(&mut self.batch);
        let seq = self.seq();
        send(self.reads.as_ref(), Work::Read { seq, files })
    }

    fn seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    fn piece(&mut self, piece: Piece) -> Result<()> {
        let seq = self.seq();
        self.done
            .send(Done::Piece { seq, piece })
            .map_err(|_| self.shared.check().err().unwrap_or(WriteError::Failed))
    }

    /// Returns the inode body for a layout, or an error if it would make a damaged image.
    pub(super) fn checked(&self, layout: &FileLayout) -> Result<FileBody> {
        let old = self.old.as_ref();
        let old = old.ok_or_else(|| WriteError::Carry("there is no old image".into()))?;
        let layout = FileBody {
            start: layout.start(),
            size: layout.size(),
            sparse: layout.sparse(),
            fragment: layout.fragment(),
            blocks: layout.blocks().clone(),
        };
        carry::check_blocks(&layout, self.superblock.block_size, old)?;
        Ok(layout)
    }

    pub(super) fn push_carried(&mut self, layout: &FileBody) -> Result<()> {
        self.flush_batch()?;
        let cost = (PER_FILE + layout.blocks.len() * 4).min(self.shared.block_size);
        self.acquire(cost)?;
        self.piece(Piece::Carried {
            layout: layout.clone(),
            cost,
        })
    }

    /// Places the small files that were pushed so far here.
    pub(super) fn push_flush(&mut self) -> Result<()> {
        self.flush_batch()?;
        self.piece(Piece::Flush)
    }

    pub(super) fn push_partly_carried(
        &mut self,
        layout: &FileBody,
        size: u64,
        dirty: &mut dyn FnMut(u64) -> bool,
        source: Box<dyn Source>,
    ) -> Result<()> {
        let block_size = self.shared.block_size as u64;
        let count = size.div_ceil(block_size);
        let full = size / block_size;
        // The tail may stay in the old fragment if it is the same bytes: same length, not dirty.
        let keep_tail = layout
            .fragment
            .filter(|_| layout.size == size && !dirty(full))
            .filter(|_| full > 0);
        let blocks = if keep_tail.is_some() { full } else { count };
        let old_len = |at: u64| layout.size.saturating_sub(at * block_size).min(block_size);
        let new_len = |at: u64| size.saturating_sub(at * block_size).min(block_size);
        let mut keep = |at: u64| {
            let word = usize::try_from(at)
                .ok()
                .and_then(|at| layout.blocks.get(at))
                .copied();
            word.filter(|_| old_len(at) == new_len(at) && !dirty(at))
        };
        let kept: Vec<Option<BlockSize>> = (0..blocks).map(&mut keep).collect();
        if kept.iter().all(Option::is_none) && keep_tail.is_none() {
            return self.push_file(size, source);
        }
        if kept.len() == layout.blocks.len()
            && layout.size == size
            && kept.iter().all(Option::is_some)
            && (keep_tail.is_some() || layout.fragment.is_none())
        {
            return self.push_carried(layout);
        }
        self.flush_batch()?;
        let old_fragment = keep_tail.map(|tail| (tail.index, tail.offset));
        self.piece(Piece::Begin(FileStart {
            size,
            old_fragment,
            whole: false,
        }))?;
        let mut content = Blocks::open(source.as_ref(), size, self.shared.block_size)?;
        let mut from = layout.start;
        for (at, word) in kept.iter().enumerate() {
            let last = at + 1 == kept.len();
            let raw_len = content.next_len();
            match word {
                Some(word) => {
                    content.skip()?;
                    self.acquire(PER_FILE)?;
                    let piece = Piece::Copied {
                        from,
                        word: *word,
                        raw_len: raw_len as u32,
                        last,
                    };
                    self.piece(piece)?;
                }
                None => {
                    self.acquire(raw_len)?;
                    let block = content.next(&self.shared)?;
                    self.block(block, None, last)?;
                }
            }
            from += layout
                .blocks
                .get(at)
                .map_or(0, |word| u64::from(word.stored()));
        }
        if keep_tail.is_some() {
            content.skip()?;
        }
        content.check_end()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if !self.unfinished {
            return;
        }
        self.shared.fail(WriteError::Failed);
        wake(&self.done);
        // The error has been reported, or the caller gave up without one.
        drop(self.join());
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "unfinished image not removed");
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|error| WriteError::Thread(format!("could not be started: {error}")))
}

fn send(to: Option<&Sender<Work>>, work: Work) -> Result<()> {
    to.and_then(|to| to.send(work).ok())
        .ok_or(WriteError::Failed)
}

fn blank_superblock(file: &File) -> Result<()> {
    file.write_all_at(&[0; SUPERBLOCK_SIZE], 0)
        .map_err(WriteError::io("writing the image"))
}

/// Writes the compressor options, if any, and returns where data begins.
fn write_options(file: &File, options: &[u8]) -> Result<u64> {
    if !options.is_empty() {
        if options.len() > METADATA_SIZE {
            return Err(WriteError::Carry(
                "compressor options longer than 8 KiB".into(),
            ));
        }
        let header = MetadataHeader {
            stored: options.len() as u16,
            compressed: false,
        };
        let block = [&header.to_bytes()[..], options].concat();
        file.write_all_at(&block, SUPERBLOCK_SIZE as u64)
            .map_err(WriteError::io("writing the image"))?;
    }
    Ok(carry::data_start(options))
}
