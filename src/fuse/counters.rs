//! How many requests of which kind were answered, and how long that took.
//!
//! A request costs two looks at the clock, two additions and a comparison, none of them ordered
//! with anything: they are statistics.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A name looked up.
    Lookup,
    /// Attributes asked for.
    GetAttr,
    /// Attributes, size or times set.
    SetAttr,
    /// The target of a symbolic link.
    ReadLink,
    /// A part of a directory's listing.
    List,
    /// Content read.
    Read,
    /// Content written.
    Write,
    /// A file, directory, link target or node made.
    Make,
    /// A name removed.
    Remove,
    /// A name moved.
    Rename,
    /// A further name for a file.
    Link,
    /// Extended attributes asked for or changed.
    Xattr,
    /// Something made durable.
    Sync,
    /// Space reserved, punched, sought or copied within the mount.
    Space,
    /// The file system's size and free space.
    StatFs,
}

impl Op {
    /// All of them, in the order in which they are told.
    pub const ALL: [Op; 15] = [
        Op::Lookup,
        Op::GetAttr,
        Op::SetAttr,
        Op::ReadLink,
        Op::List,
        Op::Read,
        Op::Write,
        Op::Make,
        Op::Remove,
        Op::Rename,
        Op::Link,
        Op::Xattr,
        Op::Sync,
        Op::Space,
        Op::StatFs,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Op::Lookup => "lookup",
            Op::GetAttr => "getattr",
            Op::SetAttr => "setattr",
            Op::ReadLink => "readlink",
            Op::List => "list",
            Op::Read => "read",
            Op::Write => "write",
            Op::Make => "make",
            Op::Remove => "remove",
            Op::Rename => "rename",
            Op::Link => "link",
            Op::Xattr => "xattr",
            Op::Sync => "sync",
            Op::Space => "space",
            Op::StatFs => "statfs",
        }
    }
}

/// One bucket for each length in bits of a time in nanoseconds; the last is from 9 minutes on.
const BUCKETS: usize = 41;

/// Times of one kind of request.
struct Times {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    longest: AtomicU64,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            nanos: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }
}

/// Requests answered since the start.
#[derive(Default)]
pub struct Counters {
    times: [Times; Op::ALL.len()],
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

/// What the requests of one kind have taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// How many there were.
    pub count: u64,
    /// All together.
    pub total: Duration,
    /// Half of them took no longer, within a factor of two.
    pub median: Duration,
    /// 99 of 100 took no longer, within a factor of two.
    pub p99: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Counters {
    fn record(&self, op: Op, time: Duration) {
        let times = &self.times[op as usize];
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = ((u64::BITS - nanos.leading_zeros()) as usize).min(BUCKETS - 1);
        times.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        times.nanos.fetch_add(nanos, Ordering::Relaxed);
        if nanos > times.longest.load(Ordering::Relaxed) {
            times.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// What the requests of a kind have taken so far, each from its arrival here until its answer was
    /// with the kernel. `None` if there were none.
    pub fn latency(&self, op: Op) -> Option<Latency> {
        let times = &self.times[op as usize];
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let buckets = times.buckets.each_ref().map(read);
        let count = buckets.iter().sum();
        if count == 0 {
            return None;
        }
        let longest = read(&times.longest);
        let at = |percent| Duration::from_nanos(quantile(&buckets, count, percent).min(longest));
        Some(Latency {
            count,
            total: Duration::from_nanos(read(&times.nanos)),
            median: at(50),
            p99: at(99),
            longest: Duration::from_nanos(longest),
        })
    }
}

/// The time, in nanoseconds, within which so many percent of the requests were answered. Within a
/// bucket they are taken to lie evenly.
fn quantile(buckets: &[u64; BUCKETS], count: u64, percent: u64) -> u64 {
    let rank = (count.saturating_mul(percent)).div_ceil(100).max(1);
    let mut before = 0;
    for (bits, &here) in buckets.iter().enumerate() {
        if before + here >= rank {
            let least = if bits == 0 { 0 } else { 1_u64 << (bits - 1) };
            // The bucket is as wide as what it begins with.
            let part = u128::from(least) * u128::from(rank - before) / u128::from(here.max(1));
            return least + part as u64;
        }
        before += here;
    }
    u64::MAX
}

/// A request under way: its time is recorded when this is dropped.
pub(super) struct Timed<C: Deref<Target = Counters>> {
    counters: C,
    op: Op,
    began: Instant,
}

impl<C: Deref<Target = Counters>> Timed<C> {
    pub(super) fn begin(counters: C, op: Op) -> Timed<C> {
        Timed {
            counters,
            op,
            began: Instant::now(),
        }
    }

    /// Ends it: for closures, which keep only what they use.
    pub(super) fn end(self) {}
}

impl<C: Deref<Target = Counters>> Drop for Timed<C> {
    fn drop(&mut self) {
        self.counters.record(self.op, self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_kind_has_its_own_times() {
        for (index, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, index, "{}", op.name());
        }
        let counters = Counters::default();
        assert_eq!(counters.latency(Op::Read), None);
        counters.record(Op::Read, Duration::from_micros(3));
        drop(Timed::begin(&counters, Op::Sync));
        assert_eq!(counters.latency(Op::Read).unwrap().count, 1);
        assert_eq!(counters.latency(Op::Sync).unwrap().count, 1);
        assert_eq!(counters.latency(Op::Write), None);
    }

    #[test]
    fn quantiles_are_within_a_factor_of_two() {
        let counters = Counters::default();
        // 1 to 1000 microseconds, evenly, and one that took a minute.
        for micros in 1..=1000 {
            counters.record(Op::Read, Duration::from_micros(micros));
        }
        let even = counters.latency(Op::Read).unwrap();
        assert_eq!(
            (even.count, even.total),
            (1000, Duration::from_micros(500_500))
        );
        assert_eq!(even.longest, Duration::from_micros(1000));
        for (found, is) in [(even.median, 500), (even.p99, 990)] {
            let is = Duration::from_micros(is);
            assert!(is / 2 <= found && found <= is * 2, "{found:?} for {is:?}");
        }
        assert!(even.p99 <= even.longest);
        counters.record(Op::Read, Duration::from_secs(60));
        let later = counters.latency(Op::Read).unwrap();
        assert_eq!(later.longest, Duration::from_secs(60));
        assert!(later.p99 < Duration::from_millis(2), "{:?}", later.p99);
    }

    #[test]
    fn no_time_is_too_short_or_too_long() {
        let counters = Counters::default();
        for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            counters.record(Op::Make, time);
        }
        let all = counters.latency(Op::Make).unwrap();
        assert_eq!(all.count, 3);
        assert_eq!(all.longest, Duration::from_nanos(u64::MAX));
        assert!(all.median <= Duration::from_nanos(2), "{:?}", all.median);
    }
}
