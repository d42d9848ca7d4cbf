//! Records which blocks and which files are used first, in order.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::squashfs::format::BlockSize;

/// Most blocks that are recorded: 1 GiB of content with blocks of 128 KiB.
pub const MAX_USES: usize = 8192;
/// Most files that are recorded. Many small files share a block.
pub const MAX_FILE_USES: usize = 32_768;
/// Uses are recorded for this long, from the first on.
const RECORDED_FOR: Duration = Duration::from_secs(120);
/// How long to wait for a use before giving up: the program then uses other blocks, or none.
const PATIENCE: Duration = Duration::from_secs(2);
/// A block that was used: its position and its lengths. It is only a hint, and checked against the
/// image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockUse {
    /// Position of the block.
    pub(super) start: u64,
    /// Its stored size, as in the image.
    pub(super) size: u32,
    /// Its decompressed length; 0 for a fragment block, whose length is not known.
    pub(super) len: u32,
}

impl BlockUse {
    pub(super) fn new(start: u64, size: BlockSize, len: usize) -> BlockUse {
        BlockUse {
            start,
            size: size.0,
            // At most 1 MiB.
            len: len as u32,
        }
    }

    pub(super) fn stored(&self) -> u64 {
        u64::from(BlockSize(self.size).stored())
    }
}

/// The recorded uses of an image.
#[derive(Debug, Default)]
pub(super) struct Uses {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    seen: HashSet<u64>,
    order: Vec<BlockUse>,
    seen_files: HashSet<u32>,
    /// The inode numbers of files.
    files: Vec<u32>,
    /// Blocks that were decompressed ahead and not used yet, with their bytes.
    ahead: HashMap<u64, usize>,
    ahead_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Off,
    /// Uses are recorded, since the given time of the first.
    Recording(Option<Instant>),
    /// The image is closed.
    Closed,
}

impl Uses {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Only hints: a state left by a panicking thread does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to record uses.
    pub(super) fn begin(&self) {
        self.lock().phase = Phase::Recording(None);
    }

    /// Records the use of a block. Cheap while uses are not recorded.
    pub(super) fn record(&self, used: BlockUse) {
        let mut state = self.lock();
        let Phase::Recording(since) = state.phase else {
            return;
        };
        if !state.seen.insert(used.start) {
            return;
        }
        let now = Instant::now();
        let since = since.unwrap_or(now);
        state.phase = Phase::Recording(Some(since));
        state.order.push(used);
        if let Some(bytes) = state.ahead.remove(&used.start) {
            state.ahead_bytes -= bytes;
        }
        if state.order.len() >= MAX_USES || now.duration_since(since) > RECORDED_FOR {
            state.phase = Phase::Off;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Records the use of a file by its inode number. Cheap while uses are not recorded.
    pub(super) fn record_file(&self, number: u32) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Recording(_))
            && state.files.len() < MAX_FILE_USES
            && state.seen_files.insert(number)
        {
            state.files.push(number);
        }
    }

    /// Returns the inode numbers of the recorded files in order.
    pub(super) fn files(&self) -> Vec<u32> {
        self.lock().files.clone()
    }

    /// Returns the recorded uses in order.
    pub(super) fn order(&self) -> Vec<BlockUse> {
        self.lock().order.clone()
    }

    /// Ends all waits.
    pub(super) fn close(&self) {
        self.lock().phase = Phase::Closed;
        self.changed.notify_all();
    }

    /// Waits for the first use. Returns false if uses are not recorded.
    pub(super) fn wait_for_first(&self) -> bool {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Recording(None) => {}
                Phase::Recording(Some(_)) => return true,
                Phase::Off | Phase::Closed => return false,
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until there is room for an unused block, and takes it. Returns `None` if the block has
    /// been used already, and an error if no more blocks should be decompressed ahead.
    pub(super) fn take_room(
        &self,
        block: BlockUse,
        bytes: usize,
        room: usize,
    ) -> Result<Option<()>, Over> {
        let mut state = self.lock();
        loop {
            if !matches!(state.phase, Phase::Recording(_)) {
                return Err(Over);
            }
            if state.seen.contains(&block.start) {
                return Ok(None);
            }
            if state.ahead_bytes + bytes <= room {
                break;
            }
            let (next, waited) = self
                .changed
                .wait_timeout(state, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            if waited.timed_out() {
                return Err(Over);
            }
            state = next;
        }
        if state.ahead.insert(block.start, bytes).is_none() {
            state.ahead_bytes += bytes;
        }
        Ok(Some(()))
    }
}

/// No more blocks should be decompressed ahead of use.
pub(super) struct Over;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;

    fn block(start: u64) -> BlockUse {
        BlockUse::new(start, BlockSize(100), 128 << 10)
    }

    #[test]
    fn uses_are_recorded_once_in_order_and_only_on_request() {
        let uses = Uses::default();
        uses.record(block(1));
        assert_eq!(uses.order(), []);
        uses.begin();
        for start in [7, 3, 7, 5] {
            uses.record(block(start));
        }
        assert_eq!(uses.order(), [block(7), block(3), block(5)]);
        for start in 0..2 * MAX_USES as u64 {
            uses.record(block(start));
        }
        assert_eq!(uses.order().len(), MAX_USES);
    }

    #[test]
    fn files_are_recorded_once_in_order_and_up_to_a_limit() {
        let uses = Uses::default();
        uses.record_file(1);
        assert_eq!(uses.files(), [0; 0]);
        uses.begin();
        for number in [7, 3, 7, 5] {
            uses.record_file(number);
        }
        assert_eq!(uses.files(), [7, 3, 5]);
        for number in 0..2 * MAX_FILE_USES as u32 {
            uses.record_file(number);
        }
        assert_eq!(uses.files().len(), MAX_FILE_USES);
    }

    #[test]
    fn a_use_frees_room_for_another_block() {
        let uses = Arc::new(Uses::default());
        uses.begin();
        assert!(matches!(uses.take_room(block(1), 60, 100), Ok(Some(()))));
        // There is no room for the second until the first is used.
        let second = {
            let uses = uses.clone();
            std::thread::spawn(move || uses.take_room(block(2), 60, 100).is_ok())
        };
        uses.record(block(1));
        assert!(second.join().unwrap());
        assert!(matches!(uses.take_room(block(1), 60, 100), Ok(None)));
        assert_eq!(uses.lock().ahead_bytes, 60);
    }

    #[test]
    fn closing_the_image_ends_all_waits() {
        let uses = Arc::new(Uses::default());
        uses.begin();
        let waits = {
            let uses = uses.clone();
            std::thread::spawn(move || uses.wait_for_first())
        };
        uses.close();
        assert!(!waits.join().unwrap());
        assert!(uses.take_room(block(1), 1, 100).is_err());
    }
}
