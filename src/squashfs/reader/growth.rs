//! Lets a cache grow where there is memory, and shrink when it is idle.

use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::Cache;

/// How long an answer about the limit counts.
const LIMIT_COUNTS: Duration = Duration::from_secs(1);
/// How often a cache that has grown is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// A cache that was not used for this long gives back what it has grown.
const IDLE: Duration = Duration::from_secs(60);

/// How far a cache may grow.
#[derive(Debug)]
pub(super) struct Growth {
    ask: fn() -> usize,
    began: Instant,
    /// When the limit was asked for last, in milliseconds since `began`.
    asked: AtomicU64,
    limit: AtomicUsize,
    has_grown: AtomicBool,
    is_watched: AtomicBool,
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

/// Starts a thread that looks at a cache from time to time, until it is idle or gone. Does nothing
/// while the cache has not grown.
pub(super) fn watch<K, V>(cache: &Arc<Cache<K, V>>)
where
    K: Hash + Eq + Copy + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let Some(growth) = cache.growth() else { return };
    if !growth.has_grown.load(Ordering::Relaxed)
        || growth.is_watched.load(Ordering::Relaxed)
        || growth.is_watched.swap(true, Ordering::AcqRel)
    {
        return;
    }
    let weak = Arc::downgrade(cache);
    let spawned = thread::Builder::new()
        .name(String::from("cache"))
        .spawn(move || shrink_when_idle(&weak));
    if let Err(error) = spawned {
        tracing::debug!(%error, "the cache does not grow");
        growth.has_grown.store(false, Ordering::Relaxed);
        cache.shrink(0);
        growth.is_watched.store(false, Ordering::Release);
    }
}

fn shrink_when_idle<K, V>(cache: &Weak<Cache<K, V>>)
where
    K: Hash + Eq + Copy,
    V: Clone,
{
    let mut used = None;
    let mut idle_since = Instant::now();
    loop {
        thread::sleep(INTERVAL);
        let Some(cache) = cache.upgrade() else { return };
        let Some(growth) = cache.growth() else { return };
        let now = cache.hits();
        if used != Some(now) {
            (used, idle_since) = (Some(now), Instant::now());
        }
        if idle_since.elapsed() >= IDLE {
            // Before it shrinks: what grows after this starts another thread.
            growth.has_grown.store(false, Ordering::Relaxed);
            growth.is_watched.store(false, Ordering::Release);
            cache.shrink(0);
            return;
        }
        // Others may need the memory by now.
        cache.shrink(growth.limit());
    }
}
