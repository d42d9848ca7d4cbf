//! Shrinks a cache that has grown, when it is idle or memory is short.

use std::hash::Hash;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::Cache;

/// How often a cache that has grown is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// A cache that was not used for this long gives back what it has grown.
const IDLE: Duration = Duration::from_secs(60);

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
