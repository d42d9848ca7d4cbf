//! Counts requests by kind and measures their latency.
//!
//! Each request costs two clock readings, two additions and a comparison. The atomics are relaxed:
//! the figures are statistics and order nothing.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Look up a name.
    Lookup,
    /// Get attributes.
    GetAttr,
    /// Set attributes, size or times.
    SetAttr,
    /// Read the target of a symbolic link.
    ReadLink,
    /// Read part of a directory listing.
    List,
    /// Read content.
    Read,
    /// Write content.
    Write,
    /// Create a file, directory, symbolic link or special file.
    Make,
    /// Remove a name.
    Remove,
    /// Rename an object.
    Rename,
    /// Create a hard link.
    Link,
    /// Get, list, set or remove extended attributes.
    Xattr,
    /// Make a file or directory durable.
    Sync,
    /// Allocate space, punch holes, seek data or holes, or copy within the mount.
    Space,
    /// Get the size and free space of the file system.
    StatFs,
}

impl Op {
    /// All kinds, in the order in which they are reported.
    pub(crate) const ALL: [Op; 15] = [
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

    /// Returns the name under which it is reported.
    pub(crate) fn name(self) -> &'static str {
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

/// One bucket for each bit length of a latency in nanoseconds; the last starts at 9 minutes.
const BUCKETS: usize = 41;

/// A latency histogram of one kind of request.
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    longest: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            nanos: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }
}

/// Statistics of the requests answered since the mount started.
#[derive(Default)]
pub(crate) struct Counters {
    histograms: [Histogram; Op::ALL.len()],
    /// Bytes read.
    pub(crate) read_bytes: AtomicU64,
    /// Bytes written.
    pub(crate) written_bytes: AtomicU64,
    /// Polls for the next request.
    pub(crate) polls: Polls,
}

/// Polls of the device after a reply.
#[derive(Debug, Default)]
pub(crate) struct Polls {
    /// All polls.
    pub(crate) all: AtomicU64,
    /// Those that found a request.
    pub(crate) found: AtomicU64,
    /// The time that they took, in nanoseconds.
    pub(crate) nanos: AtomicU64,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

/// A summary of the latency of one kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Latency {
    /// Number of requests.
    pub(crate) count: u64,
    /// Sum of all latencies.
    pub(crate) total: Duration,
    /// Median, within a factor of two.
    pub(crate) median: Duration,
    /// 99th percentile, within a factor of two.
    pub(crate) p99: Duration,
    /// Maximum.
    pub(crate) longest: Duration,
}

impl Counters {
    /// Returns the number of all requests.
    pub(crate) fn requests(&self) -> u64 {
        let buckets = self.histograms.iter().flat_map(|one| &one.buckets);
        buckets.map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    fn record(&self, op: Op, time: Duration) {
        let histogram = &self.histograms[op as usize];
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = ((u64::BITS - nanos.leading_zeros()) as usize).min(BUCKETS - 1);
        histogram.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        histogram.nanos.fetch_add(nanos, Ordering::Relaxed);
        if nanos > histogram.longest.load(Ordering::Relaxed) {
            histogram.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// Returns the latency of a kind of request, measured from its arrival until the reply was
    /// written to the kernel; `None` if there was no such request.
    pub(crate) fn latency(&self, op: Op) -> Option<Latency> {
        let histogram = &self.histograms[op as usize];
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let buckets = histogram.buckets.each_ref().map(read);
        let count = buckets.iter().sum();
        if count == 0 {
            return None;
        }
        let longest = read(&histogram.longest);
        let at = |percent| Duration::from_nanos(quantile(&buckets, count, percent).min(longest));
        Some(Latency {
            count,
            total: Duration::from_nanos(read(&histogram.nanos)),
            median: at(50),
            p99: at(99),
            longest: Duration::from_nanos(longest),
        })
    }
}

/// Returns the given percentile in nanoseconds. Assumes that latencies are distributed evenly
/// within a bucket.
fn quantile(buckets: &[u64; BUCKETS], count: u64, percent: u64) -> u64 {
    let rank = (count.saturating_mul(percent)).div_ceil(100).max(1);
    let mut before = 0;
    for (bits, &here) in buckets.iter().enumerate() {
        if before + here >= rank {
            let least = if bits == 0 { 0 } else { 1_u64 << (bits - 1) };
            // A bucket is as wide as its lower bound.
            let part = u128::from(least) * u128::from(rank - before) / u128::from(here.max(1));
            return least + part as u64;
        }
        before += here;
    }
    u64::MAX
}

/// A request in progress; records its latency when dropped.
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

    /// Records the latency now. Calling it in a closure also makes the closure capture the value.
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
    fn each_kind_has_its_own_histogram() {
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
    fn extreme_latencies_are_recorded() {
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
