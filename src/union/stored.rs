//! Rows of an upper layer that are read from the database when they are asked for.
//!
//! The cost of opening a layer, and the memory for it, then follow what is used and not what was
//! changed. Rows are read a block of ids at a time: objects that were made together are mostly used
//! together, and an object of an image without a row costs no query of its own. A block that was
//! read stays in memory.
//!
//! What must hold: a block is read before any of its rows is changed ([`Delta::change`]). So for a
//! block that was not read, the database still has the rows with which the layer was opened,
//! whether or not a checkpoint has written other rows in the meantime.
//!
//! [`Delta::change`]: super::delta::Delta::change

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Result;
use super::loaded::{Dirs, Objects, dirs_of};
use super::stack::LowerStack;
use crate::object::Ino;
use crate::state::{LayerId, StateDb};

/// Ids of objects that are read together.
const OBJECTS: u64 = 256;
/// Ids of directories whose names are read together: one directory may have very many.
const DIRECTORIES: u64 = 16;
/// The highest id for which blocks are kept. Their table takes some 1.1 bytes for each id.
const HIGHEST: u64 = 1 << 26;

/// The rows that a layer had when it was opened.
#[derive(Debug)]
pub(super) struct Stored {
    db: Arc<StateDb>,
    layer: LayerId,
    below: Arc<LowerStack>,
    objects: Blocks<Objects>,
    dirs: Blocks<Dirs>,
    is_complete: AtomicBool,
    /// Held while all rows are read.
    reading: Mutex<()>,
}

impl Stored {
    /// Reads no rows. Returns `None` if the ids are too high for blocks.
    pub(super) fn open(
        db: &Arc<StateDb>,
        layer: LayerId,
        below: Arc<LowerStack>,
    ) -> Result<Option<Stored>> {
        let end = db.highest_id(layer)?.map_or(0, |id| id.saturating_add(1));
        Ok((end <= HIGHEST).then(|| Stored {
            db: db.clone(),
            layer,
            below,
            objects: Blocks::new(end, OBJECTS),
            dirs: Blocks::new(end, DIRECTORIES),
            is_complete: AtomicBool::new(false),
            reading: Mutex::new(()),
        }))
    }

    /// Returns true if all rows have been read.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    /// Returns the objects with ids about this; `None` if the layer had no object with such an id.
    pub(super) fn objects(&self, ino: Ino) -> Result<Option<&Objects>> {
        self.objects.get(ino, |ids| {
            Ok(Objects::of(self.db.load_objects(self.layer, ids)?))
        })
    }

    /// Returns the directories with ids about this; `None` if the layer had none with such an id.
    pub(super) fn dirs(&self, dir: Ino) -> Result<Option<&Dirs>> {
        self.dirs.get(dir, |ids| {
            Ok(dirs_of(self.db.load_entries(self.layer, ids)?.entries))
        })
    }

    /// Returns the objects with ids about this, to change them. They have been read before.
    pub(super) fn objects_mut(&mut self, ino: Ino) -> Option<&mut Objects> {
        self.objects.get_mut(ino)
    }

    /// Returns the directories with ids about this, to change them. They have been read before.
    pub(super) fn dirs_mut(&mut self, dir: Ino) -> Option<&mut Dirs> {
        self.dirs.get_mut(dir)
    }

    /// Returns the blocks of objects that have been read.
    pub(super) fn loaded_objects(&self) -> impl Iterator<Item = &Objects> {
        self.objects.loaded()
    }

    /// Returns the blocks of directories that have been read.
    pub(super) fn loaded_dirs(&self) -> impl Iterator<Item = &Dirs> {
        self.dirs.loaded()
    }

    /// Reads all rows that were not read yet, then calls `check` with the layers below.
    pub(super) fn load_all(&self, check: impl FnOnce(&LowerStack) -> Result<()>) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        // The lock guards no data.
        let _turn = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_complete() {
            return Ok(());
        }
        // One pass is faster than a query for each block. Rows of blocks in memory may have changed
        // since.
        let rows = self.db.load_layer(self.layer)?;
        let mut inodes = rows.inodes.into_iter().peekable();
        let mut xattrs = rows.xattrs.into_iter().peekable();
        self.objects.fill(|end| {
            let is_in = |ino: Ino| ino.0 < end;
            let rows = crate::state::LayerRows {
                inodes: from_fn(|| inodes.next_if(|(ino, _)| is_in(*ino))),
                xattrs: from_fn(|| xattrs.next_if(|(ino, _, _)| is_in(*ino))),
                entries: Vec::new(),
            };
            Objects::of(rows)
        });
        let mut entries = rows.entries.into_iter().peekable();
        self.dirs
            .fill(|end| dirs_of(from_fn(|| entries.next_if(|(dir, _, _)| dir.0 < end))));
        check(&self.below)?;
        self.is_complete.store(true, Ordering::Release);
        Ok(())
    }
}

fn from_fn<T>(next: impl FnMut() -> Option<T>) -> Vec<T> {
    std::iter::from_fn(next).collect()
}

/// Parts of a map, by ranges of ids of equal length.
#[derive(Debug)]
struct Blocks<T> {
    width: u64,
    blocks: Box<[OnceLock<Box<T>>]>,
}

impl<T> Blocks<T> {
    /// Blocks for the ids below `end`.
    fn new(end: u64, width: u64) -> Blocks<T> {
        Blocks {
            width,
            blocks: (0..end.div_ceil(width)).map(|_| OnceLock::new()).collect(),
        }
    }

    fn get(
        &self,
        ino: Ino,
        read: impl FnOnce(std::ops::Range<u64>) -> Result<T>,
    ) -> Result<Option<&T>> {
        let number = ino.0 / self.width;
        let block = usize::try_from(number)
            .ok()
            .and_then(|number| self.blocks.get(number));
        let Some(block) = block else { return Ok(None) };
        if let Some(known) = block.get() {
            return Ok(Some(known));
        }
        let start = number * self.width;
        let rows = Box::new(read(start..start + self.width)?);
        // Another thread may have read the same.
        Ok(Some(block.get_or_init(|| rows)))
    }

    fn get_mut(&mut self, ino: Ino) -> Option<&mut T> {
        let number = usize::try_from(ino.0 / self.width).ok()?;
        self.blocks
            .get_mut(number)?
            .get_mut()
            .map(|block| &mut **block)
    }

    fn loaded(&self) -> impl Iterator<Item = &T> {
        self.blocks
            .iter()
            .filter_map(|block| block.get().map(|block| &**block))
    }

    /// Sets the blocks that were not read. `rows` is asked for the rows of all blocks in order, by
    /// the end of each.
    fn fill(&self, mut rows: impl FnMut(u64) -> T) {
        for (number, block) in (1..).zip(&self.blocks) {
            let rows = rows(number * self.width);
            block.get_or_init(|| Box::new(rows));
        }
    }
}
