//! Writes the slots in order: appends their data to the data area, and sets the positions of large
//! files.

use super::{Assembler, Current, PER_FILE, Slot};
use crate::squashfs::format::{BlockSize, FragmentEntry};
use crate::squashfs::writer::error::{Result, WriteError};
use crate::squashfs::writer::pipeline::{FileHasher, Stored};

impl Current {
    /// Adds the next block.
    fn block(&mut self, word: BlockSize, raw_len: u32) {
        self.blocks.push(word);
        if word.is_hole() {
            self.sparse += u64::from(raw_len);
        }
    }
}

impl Assembler {
    /// Writes all slots up to the first that is not ready.
    pub(super) fn write_ready(&mut self) -> Result<()> {
        while let Some(slot) = self.slots.pop_front() {
            if matches!(slot, Slot::Waiting) {
                self.slots.push_front(slot);
                return Ok(());
            }
            self.first_slot += 1;
            let at = self.out.position();
            match slot {
                Slot::Waiting => {}
                Slot::Fragment { index, stored } => {
                    if let Some(entry) = self.fragments.get_mut(index as usize) {
                        *entry = FragmentEntry {
                            start: at,
                            size: stored.word,
                        };
                    }
                    self.store(stored)?;
                }
                Slot::Block {
                    file,
                    stored,
                    hash,
                    last,
                } => {
                    let current = self.begin(at)?;
                    current.block(stored.word, stored.raw_len);
                    current.hasher.block(&hash);
                    self.stats.fresh_bytes += u64::from(stored.raw_len);
                    self.shared
                        .monitor
                        .advance(u64::from(last), u64::from(stored.raw_len));
                    self.store(stored)?;
                    if last {
                        self.end(file)?;
                    }
                }
                Slot::Copied {
                    file,
                    from,
                    word,
                    raw_len,
                    last,
                } => {
                    self.begin(at)?.block(word, raw_len);
                    if !word.is_hole() {
                        self.out.copy(from, u64::from(word.stored()))?;
                        self.stats.blocks_carried += 1;
                        self.stats.bytes_carried += u64::from(word.stored());
                    }
                    self.stats.data_written += u64::from(word.stored());
                    self.shared
                        .monitor
                        .advance(u64::from(last), u64::from(raw_len));
                    self.shared.release(PER_FILE);
                    if last {
                        self.end(file)?;
                    }
                }
                Slot::Run { from, len } => {
                    self.out.copy(from, len)?;
                    self.stats.data_written += len;
                    self.runs.insert((from, len), at);
                }
                Slot::OldFragment { index } => {
                    let (from, len) = self.old_fragments.place(index, at);
                    self.out.copy(from, len)?;
                    self.stats.data_written += len;
                }
            }
        }
        Ok(())
    }

    fn store(&mut self, stored: Stored) -> Result<()> {
        if !stored.word.is_hole() {
            self.out.write(&stored.bytes)?;
            self.stats.data_written += stored.bytes.len() as u64;
            if stored.word.is_compressed() {
                self.stats.blocks_compressed += 1;
            } else {
                self.stats.blocks_stored_raw += 1;
            }
        }
        self.shared.recycle(stored.bytes);
        self.shared.release(stored.raw_len as usize);
        Ok(())
    }

    /// Begins the next large file, unless one is being written.
    fn begin(&mut self, at: u64) -> Result<&mut Current> {
        if self.writing.is_none() {
            let (_, start) = self.begun.pop_front().ok_or(WriteError::Failed)?;
            self.writing = Some(Current {
                start: at,
                size: start.size,
                sparse: 0,
                blocks: Vec::new(),
                hasher: FileHasher::new(start.size),
                whole: start.whole,
            });
        }
        self.writing.as_mut().ok_or(WriteError::Failed)
    }

    fn end(&mut self, file: u32) -> Result<()> {
        let current = self.writing.take().ok_or(WriteError::Failed)?;
        let data = self
            .files
            .get_mut(file as usize)
            .ok_or(WriteError::Failed)?;
        let all_holes = current.blocks.iter().all(|block| block.is_hole());
        data.start = if all_holes { 0 } else { current.start };
        // The kernel computes the allocated size as `size - sparse + 511`, unsigned: a file
        // that is all holes must not bring it to less than one byte.
        data.sparse = current.sparse.min(current.size.saturating_sub(1));
        data.first_block = self.blocks.len();
        data.block_count = current.blocks.len() as u32;
        self.blocks.extend_from_slice(&current.blocks);
        if current.whole {
            self.shared.complete_large(file, current.hasher.finish());
        }
        Ok(())
    }
}
