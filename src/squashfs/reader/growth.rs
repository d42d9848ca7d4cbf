//! How far a cache may grow, asked for anew from time to time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long an answer about the limit counts.
const LIMIT_COUNTS: Duration = Duration::from_secs(1);
/// How far a cache may grow.
#[derive(Debug)]
pub(super) struct Growth {
    ask: fn() -> usize,
    began: Instant,
    /// When the limit was asked for last, in milliseconds since `began`.
    asked: AtomicU64,
    limit: AtomicUsize,
    pub(super) has_grown: AtomicBool,
    pub(super) is_watched: AtomicBool,
}

impl Growth {
    pub(super) fn new(ask: fn() -> usize) -> Growth {
        Growth {
            ask,
            began: Instant::now(),
            asked: AtomicU64::new(0),
            limit: AtomicUsize::new(ask()),
            has_grown: AtomicBool::new(false),
            is_watched: AtomicBool::new(false),
        }
    }

    /// Notes that the cache has grown beyond the size that it had at first.
    pub(super) fn note_growth(&self) {
        self.has_grown.store(true, Ordering::Relaxed);
    }

    /// Returns the bytes that the cache may have now.
    pub(super) fn limit(&self) -> usize {
        let now = self.began.elapsed().as_millis() as u64;
        let asked = self.asked.load(Ordering::Relaxed);
        let is_old = now.saturating_sub(asked) >= LIMIT_COUNTS.as_millis() as u64;
        // One thread asks, the others go on with what is known.
        if is_old
            && self
                .asked
                .compare_exchange(asked, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.limit.store((self.ask)(), Ordering::Relaxed);
        }
        self.limit.load(Ordering::Relaxed)
    }
}
