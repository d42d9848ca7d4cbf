//! Which blocks are used first, in order; and decompressing them ahead of use the next time.
//!
//! A program starts by reading the same blocks in the same order each time, one after the other: each
//! time it waits for a disk and a decompressor, while other processors have nothing to do. Whoever
//! knows the order can be ahead of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::squashfs::format::BlockSize;

/// Blocks noted at most: 1 GiB of content with blocks of 128 KiB.
pub const MAX_USES: usize = 8192;
/// Uses are noted for so long from the first on.
const NOTED_FOR: Duration = Duration::from_secs(120);
/// The reader that was to be preceded does something else, or nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// A block that was used: where it is stored, and what it decompresses to. It is a hint: what it says of a
/// block is held against the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockUse {
    /// Position of the block.
    pub(super) start: u64,
    /// Its size as the image has it.
    pub(super) size: u32,
    /// Bytes of it when decompressed; 0 of a fragment block, which says by itself.
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

/// What is noted of an image.
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
    /// Blocks that were decompressed ahead and not used yet, with their bytes.
    ahead: HashMap<u64, usize>,
    ahead_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Off,
    /// Since the first use.
    Noting(Option<Instant>),
    /// The image is closed.
    Closed,
}

impl Uses {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Hints: whatever a panicking thread left is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to note uses.
    pub(super) fn begin(&self) {
        self.lock().phase = Phase::Noting(None);
    }

    /// Notes that a block is used. Cheap where nothing is noted, or no longer.
    pub(super) fn note(&self, used: BlockUse) {
        let mut state = self.lock();
        let Phase::Noting(since) = state.phase else {
            return;
        };
        if !state.seen.insert(used.start) {
            return;
        }
        let now = Instant::now();
        let since = since.unwrap_or(now);
        state.phase = Phase::Noting(Some(since));
        state.order.push(used);
        if let Some(bytes) = state.ahead.remove(&used.start) {
            state.ahead_bytes -= bytes;
        }
        if state.order.len() >= MAX_USES || now.duration_since(since) > NOTED_FOR {
            state.phase = Phase::Off;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What was noted so far, in the order of use.
    pub(super) fn order(&self) -> Vec<BlockUse> {
        self.lock().order.clone()
    }

    /// Lets nobody wait any more.
    pub(super) fn close(&self) {
        self.lock().phase = Phase::Closed;
        self.changed.notify_all();
    }

    /// Waits for the first use. Returns false if there will be none that is noted.
    pub(super) fn wait_for_first(&self) -> bool {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Noting(None) => {}
                Phase::Noting(Some(_)) => return true,
                Phase::Off | Phase::Closed => return false,
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until there is room for a block ahead of use, and takes it. `None` if it is used already,
    /// and an error if there is no sense in going on.
    pub(super) fn take_room(
        &self,
        block: BlockUse,
        bytes: usize,
        room: usize,
    ) -> Result<Option<()>, Over> {
        let mut state = self.lock();
        loop {
            if !matches!(state.phase, Phase::Noting(_)) {
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

/// Nobody wants more ahead of use.
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
    fn uses_are_noted_once_and_in_order_and_only_when_asked() {
        let uses = Uses::default();
        uses.note(block(1));
        assert_eq!(uses.order(), []);
        uses.begin();
        for start in [7, 3, 7, 5] {
            uses.note(block(start));
        }
        assert_eq!(uses.order(), [block(7), block(3), block(5)]);
        for start in 0..2 * MAX_USES as u64 {
            uses.note(block(start));
        }
        assert_eq!(uses.order().len(), MAX_USES);
    }

    #[test]
    fn room_ahead_is_given_back_by_use() {
        let uses = Arc::new(Uses::default());
        uses.begin();
        assert!(matches!(uses.take_room(block(1), 60, 100), Ok(Some(()))));
        // There is none for the second until the first is used.
        let second = {
            let uses = uses.clone();
            std::thread::spawn(move || uses.take_room(block(2), 60, 100).is_ok())
        };
        uses.note(block(1));
        assert!(second.join().unwrap());
        assert!(matches!(uses.take_room(block(1), 60, 100), Ok(None)));
        assert_eq!(uses.lock().ahead_bytes, 60);
    }

    #[test]
    fn nobody_waits_for_a_closed_image() {
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
