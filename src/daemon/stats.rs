//! Statistics of a mount: requests and their latency, bytes, and cache hits.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::environment::Poll;
use crate::fuse::{Counters, Latency, Op};
use crate::squashfs::reader::Hits;
use crate::union::Union;

/// Statistics since the mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Requests of the kernel by kind. Kinds without requests are absent.
    pub requests: BTreeMap<String, Requests>,
    /// Bytes read by the kernel.
    pub read_bytes: u64,
    /// Bytes written by the kernel.
    pub written_bytes: u64,
    /// Objects that the kernel references.
    pub held_objects: u64,
    /// Polls for requests.
    pub polling: Polling,
    /// Reads from the images that are mounted now.
    pub images: Images,
}

/// Polls for the next request after a reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Polling {
    /// The setting.
    pub poll: Poll,
    /// The number of polls.
    pub polls: u64,
    /// Polls that found a request.
    pub found: u64,
    /// The total time, in microseconds.
    pub total_us: f64,
}

/// Requests of one kind. Times are in microseconds, from the arrival of a request until its reply
/// was written to the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// The number of requests.
    pub count: u64,
    /// The total time. Concurrent requests count separately.
    pub total_us: f64,
    /// The median, within a factor of two.
    pub p50_us: f64,
    /// The 99th percentile, within a factor of two.
    pub p99_us: f64,
    /// The maximum.
    pub max_us: f64,
}

/// Reads from images, and hits of their caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Images {
    /// Reads from image files.
    pub reads: u64,
    /// Bytes read, before decompression.
    pub bytes_read: u64,
    /// Data and fragment blocks decompressed.
    pub data_blocks: u64,
    /// Metadata blocks decompressed.
    pub metadata_blocks: u64,
    /// The cache of decompressed data.
    pub data_cache: Cache,
    /// The cache of decompressed metadata.
    pub metadata_cache: Cache,
    /// The cache of parsed directories.
    pub directory_cache: Cache,
    /// The cache of the block lists of files.
    pub layout_cache: Cache,
}

/// Hits and misses of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cache {
    /// Lookups of an entry that was present or being loaded.
    pub hits: u64,
    /// Other lookups.
    pub misses: u64,
}

impl Cache {
    fn add(&mut self, more: Hits) {
        self.hits += more.hits;
        self.misses += more.misses;
    }
}

impl From<Latency> for Requests {
    fn from(latency: Latency) -> Requests {
        Requests {
            count: latency.count,
            total_us: micros(latency.total),
            p50_us: micros(latency.median),
            p99_us: micros(latency.p99),
            max_us: micros(latency.longest),
        }
    }
}

/// Returns a time in microseconds, rounded to a tenth.
fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

/// Collects the statistics of a mount with this setting.
pub(crate) fn of(counters: &Counters, poll: Poll, union: &Union) -> Stats {
    let mut images = Images::default();
    for layer in union.lower().images() {
        let (counts, hits) = (layer.image().counts(), layer.image().cache_hits());
        images.reads += counts.reads;
        images.bytes_read += counts.bytes_read;
        images.data_blocks += counts.data_blocks;
        images.metadata_blocks += counts.metadata_blocks;
        images.data_cache.add(hits.data);
        images.metadata_cache.add(hits.metadata);
        images.directory_cache.add(hits.directories);
        images.layout_cache.add(hits.layouts);
    }
    let requests = Op::ALL.into_iter().filter_map(|op| {
        let latency = counters.latency(op)?;
        Some((op.name().to_owned(), Requests::from(latency)))
    });
    Stats {
        requests: requests.collect(),
        read_bytes: counters.read_bytes.load(Ordering::Relaxed),
        written_bytes: counters.written_bytes.load(Ordering::Relaxed),
        polling: Polling {
            poll,
            polls: counters.polls.all.load(Ordering::Relaxed),
            found: counters.polls.found.load(Ordering::Relaxed),
            total_us: micros(Duration::from_nanos(
                counters.polls.nanos.load(Ordering::Relaxed),
            )),
        },
        held_objects: union.nodes().held().len() as u64,
        images,
    }
}
