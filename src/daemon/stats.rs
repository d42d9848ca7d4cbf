//! What a mount has done since it was mounted, and how long that took.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fuse::{Counters, Latency, Op};
use crate::squashfs::reader::Hits;
use crate::union::Union;

/// What a mount has done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests of the kernel, by kind; kinds of which there were none are absent.
    pub requests: BTreeMap<String, Requests>,
    /// Bytes read by the kernel.
    pub read_bytes: u64,
    /// Bytes written by the kernel.
    pub written_bytes: u64,
    /// Objects the kernel holds.
    pub held_objects: u64,
    /// What was done with the images that are mounted now.
    pub images: Images,
}

/// Requests of one kind. Times are in microseconds, each from the arrival of the request until its
/// answer was with the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// How many there were.
    pub count: u64,
    /// All of them together; those answered at the same time count each.
    pub total_us: f64,
    /// Half of them took at most so long, within a factor of two.
    pub p50_us: f64,
    /// 99 of 100 took at most so long, within a factor of two.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// What was read from images, and what their caches spared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// Reads from image files.
    pub reads: u64,
    /// Bytes of them, compressed as they are stored.
    pub bytes_read: u64,
    /// Data and fragment blocks expanded.
    pub data_blocks: u64,
    /// Metadata blocks expanded.
    pub metadata_blocks: u64,
    /// How often the cache of expanded data had what was asked for.
    pub data_cache: Cache,
    /// The cache of expanded metadata, the same.
    pub metadata_cache: Cache,
    /// Parsed directories, the same.
    pub directory_cache: Cache,
    /// Where the data of files lies, the same.
    pub layout_cache: Cache,
}

/// How often a cache had what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// It had it, or it was just being loaded.
    pub hits: u64,
    /// It did not.
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
        // To a tenth: a nanosecond says nothing here.
        let micros = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
        Requests {
            count: latency.count,
            total_us: micros(latency.total),
            p50_us: micros(latency.median),
            p99_us: micros(latency.p99),
            max_us: micros(latency.longest),
        }
    }
}

/// Says what a mount has done so far.
pub fn of(counters: &Counters, union: &Union) -> Stats {
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
        held_objects: union.nodes().held().len() as u64,
        images,
    }
}
