//! Reads and decompresses blocks: positional reads, pooled codec contexts, and the caches of
//! blocks.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::buffers::{Block, Buffers};
use super::cache::{Cache, Hits};
use super::idle::Idle;
use super::shrink;
use super::uses::{BlockUse, Uses};
use crate::squashfs::{
    CompressorId, Error, Result,
    compress::{Decompressor, decompressor},
    format::{BlockSize, METADATA_HEADER_SIZE, METADATA_SIZE, MetadataHeader},
};

/// A decompressed metadata block, and the position of the next one.
#[derive(Debug)]
pub(super) struct MetadataBlock {
    pub(super) bytes: Vec<u8>,
    pub(super) next: u64,
}

type Key = (u64, u32);

/// Counts of what a reader has read. Blocks from a cache do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Reads from the image file.
    pub reads: u64,
    /// Bytes of those reads.
    pub bytes_read: u64,
    /// Metadata blocks read, and decompressed if they were compressed.
    pub metadata_blocks: u64,
    /// Data and fragment blocks read, and decompressed if they were compressed.
    pub data_blocks: u64,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    metadata_blocks: AtomicU64,
    data_blocks: AtomicU64,
}

/// The file of an image, and the caches of its blocks.
pub(super) struct Blocks {
    pub(super) file: File,
    /// Where the image begins in the file.
    pub(super) base: u64,
    compressor: CompressorId,
    block_size: u32,
    workers: Idle<Worker>,
    metadata: Cache<u64, Arc<MetadataBlock>>,
    /// Data and fragment blocks share one budget, since it depends on use which are needed again.
    data_cache: Arc<Cache<Key, Block>>,
    zeros: Block,
    buffers: Arc<Buffers>,
    counters: Counters,
    pub(super) uses: Arc<Uses>,
    data_budget: usize,
}

/// A codec context, with a buffer for stored bytes.
struct Worker {
    codec: Box<dyn Decompressor>,
    stored: Vec<u8>,
}

impl Worker {
    fn new(compressor: CompressorId) -> Result<Worker> {
        Ok(Worker {
            codec: decompressor(compressor)?,
            stored: Vec::new(),
        })
    }
}

/// More idle contexts than threads that serve an image.
const MAX_IDLE: usize = 32;

impl Blocks {
    pub(super) fn new(
        (file, base): (File, u64),
        compressor: CompressorId,
        block_size: u32,
        metadata_bytes: usize,
        (data_bytes, data_limit): (usize, Option<fn() -> usize>),
    ) -> Result<Self> {
        let workers = Idle::new(MAX_IDLE);
        workers.put_back(Worker::new(compressor)?);
        Ok(Blocks {
            file,
            base,
            compressor,
            block_size,
            workers,
            metadata: Cache::new(metadata_bytes),
            data_cache: Arc::new(match data_limit {
                Some(limit) => Cache::growing(data_bytes, limit),
                None => Cache::new(data_bytes),
            }),
            zeros: Block::zeros(block_size as usize),
            buffers: Buffers::new(block_size as usize),
            counters: Counters::default(),
            uses: Arc::default(),
            data_budget: data_bytes,
        })
    }

    pub(super) fn counts(&self) -> ReadCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReadCounts {
            reads: read(&self.counters.reads),
            bytes_read: read(&self.counters.bytes_read),
            metadata_blocks: read(&self.counters.metadata_blocks),
            data_blocks: read(&self.counters.data_blocks),
        }
    }

    /// Returns the hits of the caches of metadata and of data.
    pub(super) fn hits(&self) -> (Hits, Hits) {
        (self.metadata.hits(), self.data_cache.hits())
    }

    /// Returns the budget of the cache of decompressed data.
    pub(super) fn data_budget(&self) -> usize {
        self.data_budget
    }

    pub(super) fn read(&self, at: u64, buffer: &mut [u8], what: &'static str) -> Result<()> {
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters
            .bytes_read
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let at = at.saturating_add(self.base);
        self.file.read_exact_at(buffer, at).map_err(Error::io(what))
    }

    fn with_worker<T>(&self, work: impl FnOnce(&mut Worker) -> Result<T>) -> Result<T> {
        let mut worker = match self.workers.take() {
            Some(worker) => worker,
            None => Worker::new(self.compressor)?,
        };
        let result = work(&mut worker);
        self.workers.put_back(worker);
        result
    }

    /// Reads and decompresses a block without the cache. `expected` is its exact decompressed
    /// length; with `None`, any length up to the block size is accepted.
    pub(super) fn load(
        &self,
        what: &'static str,
        start: u64,
        size: BlockSize,
        expected: Option<usize>,
    ) -> Result<Block> {
        if !size.is_valid(self.block_size) || size.is_hole() {
            return Err(Error::corrupt(what, start, format!("size {:#x}", size.0)));
        }
        self.counters.data_blocks.fetch_add(1, Ordering::Relaxed);
        let stored = size.stored() as usize;
        let mut buffer = self.buffers.take();
        let out = buffer.as_mut_slice();
        let len = if size.is_compressed() {
            let room = expected.unwrap_or(out.len()).min(out.len());
            self.with_worker(|worker| {
                worker.stored.resize(stored, 0);
                self.read(start, &mut worker.stored, "reading a block")?;
                worker
                    .codec
                    .decompress(&worker.stored, &mut out[..room])
                    .map_err(|e| Error::corrupt(what, start, e.to_string()))
            })?
        } else {
            self.read(start, &mut out[..stored], "reading a block")?;
            stored
        };
        match expected {
            Some(expected) if expected != len => Err(Error::corrupt(
                what,
                start,
                format!("{len} bytes instead of {expected}"),
            )),
            _ => Ok(buffer.into_block(len)),
        }
    }

    /// Returns true if a block is in the cache, or is a hole.
    pub(super) fn is_decompressed(&self, start: u64, size: BlockSize) -> bool {
        size.is_hole() || self.data_cache.peek((start, size.0)).is_some()
    }

    /// Returns a data block through the cache, and records the use.
    pub(super) fn data(&self, start: u64, size: BlockSize, expected: usize) -> Result<Block> {
        if size.is_hole() {
            return Ok(self.zeros.slice(0..expected));
        }
        self.uses.record(BlockUse::new(start, size, expected));
        self.decompress_data(start, size, expected)
    }

    /// Returns a data block that is not a hole through the cache, without recording a use.
    pub(super) fn decompress_data(
        &self,
        start: u64,
        size: BlockSize,
        expected: usize,
    ) -> Result<Block> {
        let what = "data block";
        let block = self.decompress(what, start, size, Some(expected))?;
        // In a damaged image, two files may have the same block with different lengths.
        if block.len() != expected {
            let detail = format!("{} bytes instead of {expected}", block.len());
            return Err(Error::corrupt(what, start, detail));
        }
        Ok(block)
    }

    /// Returns a fragment block through the cache, and records the use.
    pub(super) fn fragment(&self, start: u64, size: BlockSize) -> Result<Block> {
        self.uses.record(BlockUse::new(start, size, 0));
        self.decompress_fragment(start, size)
    }

    /// Returns a fragment block through the cache, without recording a use.
    pub(super) fn decompress_fragment(&self, start: u64, size: BlockSize) -> Result<Block> {
        self.decompress("fragment block", start, size, None)
    }

    /// Decompresses a block into the cache, without recording a use.
    pub(super) fn decompress_use(&self, block: BlockUse) -> Result<Block> {
        let size = BlockSize(block.size);
        match block.len {
            0 => self.decompress_fragment(block.start, size),
            len => self.decompress_data(block.start, size, len as usize),
        }
    }

    /// Like [`Blocks::load`], through the cache.
    fn decompress(
        &self,
        what: &'static str,
        start: u64,
        size: BlockSize,
        expected: Option<usize>,
    ) -> Result<Block> {
        let block = self.data_cache.get((start, size.0), || {
            let block = self.load(what, start, size, expected)?;
            let held = block.held();
            Ok((block, held))
        })?;
        shrink::watch(&self.data_cache);
        Ok(block)
    }

    /// Returns a metadata block through the cache. It must end at or before `end`.
    pub(super) fn metadata(
        &self,
        what: &'static str,
        at: u64,
        end: u64,
    ) -> Result<Arc<MetadataBlock>> {
        let block = self.metadata.get(at, || {
            let block = self.load_metadata(what, at, end)?;
            let bytes = block.bytes.len() + size_of::<MetadataBlock>();
            Ok((Arc::new(block), bytes))
        })?;
        if block.next > end {
            return Err(Error::corrupt(
                what,
                at,
                "a metadata block reaches into the next table",
            ));
        }
        Ok(block)
    }

    /// Reads and decompresses a metadata block without the cache.
    pub(super) fn load_metadata(
        &self,
        what: &'static str,
        at: u64,
        end: u64,
    ) -> Result<MetadataBlock> {
        const HEADER: usize = METADATA_HEADER_SIZE;
        self.counters
            .metadata_blocks
            .fetch_add(1, Ordering::Relaxed);
        let mut raw = [0; HEADER + METADATA_SIZE];
        let room = end.saturating_sub(at).min(raw.len() as u64) as usize;
        let outside = || Error::corrupt(what, at, format!("a metadata block beyond {end:#x}"));
        if room <= HEADER {
            return Err(outside());
        }
        let raw = &mut raw[..room];
        self.read(at, raw, "reading metadata")?;
        let (header, rest) = raw.split_at(HEADER);
        let header = MetadataHeader::parse([header[0], header[1]])
            .ok_or_else(|| Error::corrupt(what, at, format!("metadata header {header:02x?}")))?;
        let stored = rest.get(..usize::from(header.stored)).ok_or_else(outside)?;
        let bytes = if header.compressed {
            self.with_worker(|worker| {
                let mut out = vec![0; METADATA_SIZE];
                let len = worker
                    .codec
                    .decompress(stored, &mut out)
                    .map_err(|e| Error::corrupt(what, at, e.to_string()))?;
                out.truncate(len);
                Ok(out)
            })?
        } else {
            stored.to_vec()
        };
        Ok(MetadataBlock {
            bytes,
            next: at + HEADER as u64 + u64::from(header.stored),
        })
    }
}
