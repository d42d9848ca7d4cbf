//! The ordered stage: takes pieces in the order in which they were pushed, finds duplicates, packs
//! small files into fragment blocks, and writes all data.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::DataStats;
use super::carry::{Carry, OldData, OldFragments};
use super::error::{Result, WriteError};
use super::output::Output;
use super::pipeline::{Digest, Done, FileHasher, Piece, Sentinel, Shared, Stored, Work};
use crate::squashfs::format::{BlockSize, FileBody, FragmentEntry};
use repack::{FragmentUse, REPACK_AHEAD, Tail};

mod repack;
mod write;

/// The fragment of a file in the new image, before old and new fragments are numbered together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment {
    None,
    /// In a fragment block of the old image, by its old index.
    Old(u32),
    /// In a fragment block of this writer.
    New(u32),
}

/// The position of a file's data.
#[derive(Debug, Clone)]
pub(super) struct FileData {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) sparse: u64,
    pub(super) fragment: Fragment,
    pub(super) offset: u32,
    first_block: usize,
    block_count: u32,
}

impl FileData {
    /// Returns the length of the tail in a fragment: less than a block.
    fn tail_len(&self, block_size: usize) -> u32 {
        (self.size % block_size as u64) as u32
    }
}

/// The completed data area.
pub(super) struct Assembled {
    files: Vec<FileData>,
    blocks: Vec<BlockSize>,
    /// The fragment table: live old ones in their old order, then new ones.
    pub(super) fragments: Vec<FragmentEntry>,
    /// New indexes of old fragments.
    old_fragments: Vec<Option<u32>>,
    old_count: u32,
    /// Where the data area ends.
    pub(super) end: u64,
    pub(super) stats: DataStats,
}

impl Assembled {
    pub(super) fn file(&self, index: u32) -> Option<&FileData> {
        self.files.get(index as usize)
    }
    pub(super) fn blocks(&self, file: &FileData) -> &[BlockSize] {
        &self.blocks[file.first_block..file.first_block + file.block_count as usize]
    }
    /// Returns the index of a file's fragment in the new fragment table.
    pub(super) fn fragment(&self, file: &FileData) -> Option<u32> {
        match file.fragment {
            Fragment::None => None,
            Fragment::Old(old) => self.old_fragments.get(old as usize).copied().flatten(),
            Fragment::New(new) => Some(self.old_count + new),
        }
    }
}

/// A piece of the data area. Slots are written in order.
enum Slot {
    /// A fragment block that is being compressed.
    Waiting,
    Fragment {
        index: u32,
        stored: Stored,
    },
    Block {
        file: u32,
        stored: Stored,
        hash: blake3::Hash,
        last: bool,
    },
    Copied {
        file: u32,
        from: u64,
        word: BlockSize,
        raw_len: u32,
        last: bool,
    },
    /// Blocks of a carried file, when compacting.
    Run {
        from: u64,
        len: u64,
    },
    /// A fragment block of the old image, when compacting.
    OldFragment {
        index: u32,
    },
}

/// The large file that is being written.
struct Current {
    start: u64,
    size: u64,
    sparse: u64,
    blocks: Vec<BlockSize>,
    hasher: FileHasher,
    whole: bool,
}

pub(super) struct Assembler {
    shared: Arc<Shared>,
    done: Receiver<Done>,
    wake: Sender<Done>,
    work: Sender<Work>,
    out: Output,
    old: Option<OldData>,

    next_seq: u64,
    early: BTreeMap<u64, Piece>,
    slots: VecDeque<Slot>,
    first_slot: u64,
    ended: bool,

    files: Vec<FileData>,
    blocks: Vec<BlockSize>,
    small: HashMap<Digest, u32>,
    /// Large files whose pieces have begun, but whose data is not written yet, in order.
    begun: VecDeque<(u32, super::pipeline::FileStart)>,
    writing: Option<Current>,
    fragment: Vec<u8>,
    fragments: Vec<FragmentEntry>,
    old_fragments: OldFragments,
    /// Distinct runs of carried files: (old start, length) to new start. Without empty runs.
    runs: HashMap<(u64, u64), u64>,
    /// Carried files whose start is known once their run is written: (file, run).
    moved: Vec<(u32, (u64, u64))>,
    /// Old fragment blocks that are repacked once everything has been pushed.
    repack: VecDeque<(u32, Vec<Tail>)>,
    /// New index and offset of each repacked tail.
    repacked: HashMap<(u32, Tail), (u32, u32)>,
    stats: DataStats,
}

impl Assembler {
    pub(super) fn new(
        shared: Arc<Shared>,
        done: (Sender<Done>, Receiver<Done>),
        work: Sender<Work>,
        out: Output,
        old: Option<OldData>,
    ) -> Self {
        let old_fragments = OldFragments::new(old.as_ref());
        Assembler {
            shared,
            done: done.1,
            wake: done.0,
            work,
            out,
            old,
            next_seq: 0,
            early: BTreeMap::new(),
            slots: VecDeque::new(),
            first_slot: 0,
            ended: false,
            files: Vec::new(),
            blocks: Vec::new(),
            small: HashMap::new(),
            begun: VecDeque::new(),
            writing: None,
            fragment: Vec::new(),
            fragments: Vec::new(),
            old_fragments,
            runs: HashMap::new(),
            moved: Vec::new(),
            repack: VecDeque::new(),
            repacked: HashMap::new(),
            stats: DataStats::default(),
        }
    }

    pub(super) fn run(mut self) -> Option<Assembled> {
        let (shared, wake) = (self.shared.clone(), self.wake.clone());
        let _sentinel = Sentinel(&shared, &wake);
        match self.assemble() {
            Ok(()) => {}
            Err(error) => {
                shared.fail(error);
                return None;
            }
        }
        match self.finish() {
            Ok(assembled) => Some(assembled),
            Err(error) => {
                shared.fail(error);
                None
            }
        }
    }

    fn assemble(&mut self) -> Result<()> {
        while !(self.ended && self.slots.is_empty() && self.repack.is_empty()) {
            if self.ended && self.slots.len() < REPACK_AHEAD && !self.repack.is_empty() {
                self.shared.check()?;
                self.repack_next()?;
                self.write_ready()?;
                continue;
            }
            let Ok(done) = self.done.recv() else {
                return Err(WriteError::Failed);
            };
            if self.shared.is_failed() {
                return Err(WriteError::Failed);
            }
            match done {
                Done::Piece { seq, piece } if seq == self.next_seq => {
                    self.take(piece)?;
                    self.next_seq += 1;
                    while let Some(piece) = self.early.remove(&self.next_seq) {
                        self.take(piece)?;
                        self.next_seq += 1;
                    }
                }
                Done::Piece { seq, piece } => {
                    self.early.insert(seq, piece);
                }
                Done::Fragment {
                    slot,
                    index,
                    stored,
                } => {
                    let at = slot.checked_sub(self.first_slot).map(|at| at as usize);
                    if let Some(slot) = at.and_then(|at| self.slots.get_mut(at)) {
                        *slot = Slot::Fragment { index, stored };
                    }
                }
                Done::Wake => self.shared.check()?,
            }
            self.write_ready()?;
        }
        Ok(())
    }

    /// Takes the next piece in order.
    fn take(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Small { content, files } => self.take_small(content, &files)?,
            Piece::Begin(start) => {
                let fragment = match start.old_fragment {
                    Some((index, _)) => self.keep_fragment(index)?,
                    None => Fragment::None,
                };
                let offset = start.old_fragment.map_or(0, |(_, offset)| offset);
                let file = self.push_file(FileData {
                    start: 0,
                    size: start.size,
                    sparse: 0,
                    fragment,
                    offset,
                    first_block: 0,
                    block_count: 0,
                })?;
                self.begun.push_back((file, start));
            }
            Piece::Block { stored, hash, last } => {
                let file = self.newest();
                self.slots.push_back(Slot::Block {
                    file,
                    stored,
                    hash,
                    last,
                });
            }
            Piece::Copied {
                from,
                word,
                raw_len,
                last,
            } => {
                let file = self.newest();
                self.slots.push_back(Slot::Copied {
                    file,
                    from,
                    word,
                    raw_len,
                    last,
                });
            }
            Piece::Duplicate { of } => {
                let data = self
                    .files
                    .get(of as usize)
                    .cloned()
                    .ok_or(WriteError::Failed)?;
                self.stats.duplicates += 1;
                self.shared.monitor.advance(1, data.size);
                self.push_file(data)?;
            }
            Piece::Carried { layout, cost } => {
                self.take_carried(&layout)?;
                self.shared.release(cost);
                self.shared.monitor.advance(1, layout.size);
            }
            Piece::Flush => self.flush_fragment()?,
            Piece::End => {
                self.ended = true;
                if let Some(Carry::Compact { repack_percent }) = self.carry() {
                    self.sort_old_fragments(repack_percent)?;
                }
                if self.repack.is_empty() {
                    self.flush_fragment()?;
                }
            }
        }
        Ok(())
    }

    fn carry(&self) -> Option<Carry> {
        self.old.as_ref().map(|old| old.carry)
    }

    /// Returns the newest file. The pusher sends blocks only after the beginning of a file.
    fn newest(&self) -> u32 {
        (self.files.len() as u32).saturating_sub(1)
    }

    fn push_file(&mut self, data: FileData) -> Result<u32> {
        // Files are nodes, of which there are fewer than 2^32.
        let index = self.files.len() as u32;
        self.files.push(data);
        Ok(index)
    }

    fn take_small(&mut self, content: Vec<u8>, files: &[(u32, Digest)]) -> Result<()> {
        let mut at = 0;
        let mut unused = 0;
        for (size, digest) in files {
            let len = *size as usize;
            let bytes = &content[at..at + len];
            at += len;
            unused += PER_FILE;
            let mut data = FileData {
                start: 0,
                size: u64::from(*size),
                sparse: 0,
                fragment: Fragment::None,
                offset: 0,
                first_block: 0,
                block_count: 0,
            };
            if len > 0 {
                let same = self
                    .small
                    .get(digest)
                    .and_then(|file| self.files.get(*file as usize));
                if let Some(same) = same.filter(|same| same.size == data.size) {
                    data.fragment = same.fragment;
                    data.offset = same.offset;
                    self.stats.duplicates += 1;
                    unused += len;
                } else {
                    let (index, offset) = self.pack_tail(bytes)?;
                    data.fragment = Fragment::New(index);
                    data.offset = offset;
                    self.small.insert(*digest, self.files.len() as u32);
                    self.stats.fresh_bytes += len as u64;
                }
            }
            self.push_file(data)?;
        }
        self.shared.recycle(content);
        self.shared.release(unused);
        self.shared.monitor.advance(files.len() as u64, at as u64);
        Ok(())
    }

    /// Returns the index that the current fragment block will have among the new ones.
    fn fragment_index(&self) -> u32 {
        self.fragments.len() as u32
    }

    fn flush_fragment(&mut self) -> Result<()> {
        if self.fragment.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.fragment);
        let index = self.fragment_index();
        if index >= u32::MAX / 2 {
            return Err(WriteError::tree(
                "fragments",
                "more than 2^31 fragment blocks",
            ));
        }
        // Filled in when the block is written.
        self.fragments.push(FragmentEntry {
            start: 0,
            size: BlockSize::HOLE,
        });
        let slot = self.first_slot + self.slots.len() as u64;
        self.slots.push_back(Slot::Waiting);
        self.work
            .send(Work::Fragment { slot, index, raw })
            .map_err(|_| WriteError::Thread("has ended".into()))
    }

    /// Carries a fragment block of the old image over to the new one.
    fn keep_fragment(&mut self, index: u32) -> Result<Fragment> {
        let Some(old) = &self.old else {
            return Err(WriteError::Carry("there is no old image".into()));
        };
        self.old_fragments.keep(index, old)?;
        Ok(Fragment::Old(index))
    }

    /// Appends bytes to the current fragment block. Returns the index of the block and the offset.
    fn pack_tail(&mut self, bytes: &[u8]) -> Result<(u32, u32)> {
        if self.fragment.len() + bytes.len() > self.shared.block_size {
            self.flush_fragment()?;
        }
        if self.fragment.capacity() == 0 {
            self.fragment = self.shared.buffer();
        }
        // flush_fragment refuses more fragments than fit.
        let place = (self.fragment_index(), self.fragment.len() as u32);
        self.fragment.extend_from_slice(bytes);
        Ok(place)
    }

    fn take_carried(&mut self, layout: &FileBody) -> Result<()> {
        let moves = self.carry().is_some_and(|carry| !carry.is_in_place());
        let (mut fragment, mut offset) = (Fragment::None, 0);
        if let Some(old) = layout.fragment {
            fragment = self.keep_fragment(old.index)?;
            offset = old.offset;
        }
        let first_block = self.blocks.len();
        self.blocks.extend_from_slice(&layout.blocks);
        let len: u64 = layout
            .blocks
            .iter()
            .map(|block| u64::from(block.stored()))
            .sum();
        let file = self.push_file(FileData {
            start: if len == 0 { 0 } else { layout.start },
            size: layout.size,
            sparse: layout.sparse,
            fragment,
            offset,
            first_block,
            block_count: layout.blocks.len() as u32,
        })?;
        if len == 0 {
            return Ok(());
        }
        let run = (layout.start, len);
        if moves {
            self.moved.push((file, run));
        }
        // A duplicate must not reset the new position of a run that has been copied.
        if let Entry::Vacant(entry) = self.runs.entry(run) {
            entry.insert(layout.start);
            self.stats.blocks_carried += layout
                .blocks
                .iter()
                .filter(|block| !block.is_hole())
                .count() as u64;
            self.stats.bytes_carried += len;
            if moves {
                self.slots.push_back(Slot::Run {
                    from: layout.start,
                    len,
                });
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Assembled> {
        let end = self.out.flush()?;
        for (file, run) in &self.moved {
            let start = self.runs.get(run).copied().ok_or(WriteError::Failed)?;
            if let Some(data) = self.files.get_mut(*file as usize) {
                data.start = start;
            }
        }
        self.place_repacked();
        // When compacting, nothing else is dead. When amending, most files are not pushed.
        let appended = self.old.clone().filter(|old| old.carry == Carry::Append);
        if appended.is_some() {
            let fragments = self.old_fragment_use()?;
            self.stats.dead_in_fragments = fragments.iter().map(FragmentUse::dead).sum();
        }
        self.stats.dead_bytes = self.stats.dead_in_fragments;
        let (mut fragments, old_fragments, carried) = self.old_fragments.into_table();
        let old_count = fragments.len() as u32;
        self.stats.fragments_carried = u64::from(old_count);
        self.stats.bytes_carried += carried;
        self.stats.fragments = u64::from(old_count) + self.fragments.len() as u64;
        if let Some(old) = appended {
            let live = self.runs.keys().copied();
            self.stats.dead_bytes += old.dead_bytes(
                live.chain(
                    fragments
                        .iter()
                        .map(|f| (f.start, u64::from(f.size.stored()))),
                ),
            );
        }
        fragments.append(&mut self.fragments);
        Ok(Assembled {
            files: self.files,
            blocks: self.blocks,
            fragments,
            old_fragments,
            old_count,
            end,
            stats: self.stats,
        })
    }
}

/// Budget for a small file or a copied block in addition to its content.
pub(super) const PER_FILE: usize = 256;
