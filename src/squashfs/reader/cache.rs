//! A cache shared by many threads: sharded, bounded in bytes, and single-flight. If several threads
//! request a value at once, one loads it and the others wait for it. Loading one value does not
//! delay requests for another.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::growth::Growth;
use crate::squashfs::Result;

/// Enough for the few threads that serve a mount. With more shards, each would have too small a
/// budget.
const SHARDS: usize = 8;

/// Keys of dropped values that a shard remembers, if the cache may grow: those of 1 GiB in blocks
/// of 128 KiB for all shards.
const DROPPED: usize = 1024;

pub(super) struct Cache<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    /// Selects shards. Seeded at random, so that an image cannot choose which of its blocks
    /// collide.
    hasher: RandomState,
    /// Bytes of each shard, unless it has grown.
    budget: usize,
    growth: Option<Growth>,
}

struct Shard<K, V> {
    kept: LruCache<K, (V, usize)>,
    bytes: usize,
    budget: usize,
    /// Keys of values that were dropped last.
    dropped: LruCache<K, ()>,
    loading: HashMap<K, Arc<Flight<V>>>,
    hits: u64,
    misses: u64,
}

/// Counts of requests to a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// Requests for a value that was in the cache, or that another thread was loading.
    pub hits: u64,
    /// Requests that had to load the value.
    pub misses: u64,
}

/// A load in progress.
struct Flight<V> {
    state: Mutex<State<V>>,
    landed: Condvar,
}

enum State<V> {
    Loading,
    Loaded(V),
    /// The load failed (or panicked). Each waiting thread loads by itself and gets its own error.
    Failed,
}

/// Locks a mutex, even a poisoned one: a panic while it was held cannot have corrupted the state
/// (at worst, the byte count is off by one value).
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq + Copy, V: Clone> Cache<K, V> {
    /// Creates a cache of about `budget` bytes of values. Each shard keeps at least one value.
    pub(super) fn new(budget: usize) -> Self {
        Cache::with(budget, None)
    }

    fn with(budget: usize, growth: Option<Growth>) -> Self {
        let shard = || Shard {
            kept: LruCache::unbounded(),
            bytes: 0,
            budget: budget / SHARDS,
            // Allocates nothing until keys are put in.
            dropped: LruCache::unbounded(),
            loading: HashMap::new(),
            hits: 0,
            misses: 0,
        };
        Cache {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            hasher: RandomState::new(),
            budget: budget / SHARDS,
            growth,
        }
    }

    /// Creates a cache that may grow beyond `budget` to what `limit` returns, while values are
    /// needed again that it had to drop.
    pub(super) fn growing(budget: usize, limit: fn() -> usize) -> Self {
        Cache::with(budget, Some(Growth::new(limit)))
    }

    pub(super) fn growth(&self) -> Option<&Growth> {
        self.growth.as_ref()
    }

    /// Returns the bytes of all values, and the bytes that they may have.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        let shards = self.shards.iter().map(|shard| {
            let shard = lock(shard);
            (shard.bytes, shard.budget)
        });
        shards.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    }

    /// Lets the shards have at most `budget` bytes together, but not less than they had at first.
    pub(super) fn shrink(&self, budget: usize) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.budget = shard.budget.min((budget / SHARDS).max(self.budget));
            self.evict(&mut shard);
        }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K, V>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Returns the counts so far, without calls of [`Cache::peek`].
    pub(super) fn hits(&self) -> Hits {
        let mut all = Hits::default();
        for shard in &self.shards {
            let shard = lock(shard);
            all.hits += shard.hits;
            all.misses += shard.misses;
        }
        all
    }

    /// Returns the value if it is in the cache.
    pub(super) fn peek(&self, key: K) -> Option<V> {
        lock(self.shard(&key))
            .kept
            .get(&key)
            .map(|(value, _)| value.clone())
    }

    /// Returns the value. If it is not in the cache, `load` returns it with its size in bytes.
    pub(super) fn get(&self, key: K, load: impl FnOnce() -> Result<(V, usize)>) -> Result<V> {
        let shard = self.shard(&key);
        let flight = loop {
            let flight = {
                let mut shard = lock(shard);
                if let Some((value, _)) = shard.kept.get(&key) {
                    let value = value.clone();
                    shard.hits += 1;
                    return Ok(value);
                }
                match shard.loading.get(&key) {
                    Some(flight) => {
                        let flight = Arc::clone(flight);
                        shard.hits += 1;
                        flight
                    }
                    None => {
                        shard.misses += 1;
                        let flight = Arc::new(Flight {
                            state: Mutex::new(State::Loading),
                            landed: Condvar::new(),
                        });
                        shard.loading.insert(key, Arc::clone(&flight));
                        break flight;
                    }
                }
            };
            let mut state = lock(&flight.state);
            loop {
                match &*state {
                    State::Loading => {
                        state = flight
                            .landed
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                    State::Loaded(value) => return Ok(value.clone()),
                    State::Failed => break,
                }
            }
        };
        let mut landing = Landing {
            cache: self,
            key,
            flight,
            value: None,
        };
        let (value, bytes) = load()?;
        landing.value = Some((value.clone(), bytes));
        Ok(value)
    }

    fn keep(&self, shard: &mut Shard<K, V>, key: K, value: V, bytes: usize) {
        if let Some(growth) = &self.growth
            && shard.dropped.pop(&key).is_some()
        {
            // With more room it would still be here.
            let limit = growth.limit() / SHARDS;
            if shard.budget < limit {
                shard.budget = (shard.budget + bytes).min(limit);
                growth.note_growth();
            }
        }
        shard.bytes += bytes;
        if let Some((_, (_, old))) = shard.kept.push(key, (value, bytes)) {
            shard.bytes = shard.bytes.saturating_sub(old);
        }
        self.evict(shard);
    }

    fn evict(&self, shard: &mut Shard<K, V>) {
        while shard.bytes > shard.budget && shard.kept.len() > 1 {
            let Some((key, (_, old))) = shard.kept.pop_lru() else {
                break;
            };
            shard.bytes = shard.bytes.saturating_sub(old);
            if self.growth.is_some() {
                shard.dropped.put(key, ());
                if shard.dropped.len() > DROPPED {
                    shard.dropped.pop_lru();
                }
            }
        }
    }
}

/// Ends a flight however the load ends, so that no thread waits for it indefinitely.
struct Landing<'a, K: Hash + Eq + Copy, V: Clone> {
    cache: &'a Cache<K, V>,
    key: K,
    flight: Arc<Flight<V>>,
    value: Option<(V, usize)>,
}

impl<K: Hash + Eq + Copy, V: Clone> Drop for Landing<'_, K, V> {
    fn drop(&mut self) {
        let value = self.value.take();
        {
            let mut shard = lock(self.cache.shard(&self.key));
            shard.loading.remove(&self.key);
            if let Some((value, bytes)) = value.clone() {
                self.cache.keep(&mut shard, self.key, value, bytes);
            }
        }
        *lock(&self.flight.state) = match value {
            Some((value, _)) => State::Loaded(value),
            None => State::Failed,
        };
        self.flight.landed.notify_all();
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("budget_per_shard", &self.budget)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;
    use crate::squashfs::Error;

    #[test]
    fn concurrent_requests_share_one_load() {
        let cache: Cache<u64, Arc<u64>> = Cache::new(1 << 20);
        let loads = AtomicUsize::new(0);
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for key in 0..200 {
                        barrier.wait();
                        let value = cache.get(key, || {
                            loads.fetch_add(1, Ordering::Relaxed);
                            thread::yield_now();
                            Ok((Arc::new(key * 3), 8))
                        });
                        assert_eq!(*value.unwrap(), key * 3);
                    }
                });
            }
        });
        assert_eq!(loads.into_inner(), 200);
        let Hits { hits, misses } = cache.hits();
        assert_eq!((hits, misses), (7 * 200, 200));
    }

    #[test]
    fn a_load_delays_no_other_key() {
        let cache: Cache<u64, u64> = Cache::new(1 << 20);
        let (begun, go_on) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            let slow = scope.spawn(|| {
                cache.get(0, || {
                    begun.wait();
                    go_on.wait();
                    Ok((7, 8))
                })
            });
            begun.wait();
            // More keys than shards: some are in the shard of the key that is loading.
            for key in 1..100 {
                assert_eq!(cache.get(key, || Ok((key, 8))).unwrap(), key);
                assert_eq!(cache.peek(key), Some(key));
            }
            assert_eq!(cache.peek(0), None);
            go_on.wait();
            assert_eq!(slow.join().unwrap().unwrap(), 7);
        });
    }

    #[test]
    fn stays_within_its_budget() {
        let cache: Cache<u64, u64> = Cache::new(8 * 1000);
        for key in 0..10_000 {
            cache.get(key, || Ok((key, 100))).unwrap();
            cache.get(key / 2, || Ok((key / 2, 100))).unwrap();
        }
        for shard in &cache.shards {
            let shard = lock(shard);
            assert_eq!(shard.bytes, shard.kept.len() * 100);
            assert!(shard.bytes <= 1000 && shard.loading.is_empty());
        }
    }

    #[test]
    fn grows_while_dropped_values_are_needed_again_and_shrinks() {
        let cache: Arc<Cache<u64, u64>> = Arc::new(Cache::growing(8 * 1000, || 8 * 20_000));
        let read = |keys: std::ops::Range<u64>| {
            for key in keys {
                cache.get(key, || Ok((key, 100))).unwrap();
            }
        };
        // Once through everything is no reason to grow.
        read(0..10_000);
        assert_eq!(cache.size().1, 8 * 1000);
        // A set that is read again and again is kept in the end.
        for _ in 0..10 {
            read(0..1000);
        }
        let before = cache.hits();
        read(0..1000);
        assert_eq!(cache.hits().misses, before.misses);
        let (bytes, budget) = cache.size();
        assert!((1000 * 100..=8 * 20_000).contains(&bytes) && budget >= bytes);
        cache.shrink(0);
        assert!(cache.size().0 <= 8 * 1000);
        assert_eq!(cache.size().1, 8 * 1000);
        // Not beyond the limit.
        for _ in 0..20 {
            read(0..5000);
        }
        assert!(cache.size().0 <= 8 * 20_000);
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let cache: Cache<u64, u64> = Cache::new(1000);
        assert!(cache.get(1, || Err(Error::Cancelled)).is_err());
        assert_eq!(cache.peek(1), None);
        assert_eq!(cache.get(1, || Ok((5, 1))).unwrap(), 5);
        assert_eq!(cache.peek(1), Some(5));
    }

    #[test]
    fn a_panic_while_loading_ends_the_load() {
        let cache: Cache<u64, u64> = Cache::new(1000);
        thread::scope(|scope| {
            let first = scope.spawn(|| cache.get(1, || panic!("on purpose")));
            assert!(first.join().is_err());
        });
        assert_eq!(cache.get(1, || Ok((6, 1))).unwrap(), 6);
    }
}
