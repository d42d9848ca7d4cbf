//! How many requests of which kind were answered.

use std::sync::atomic::{AtomicU64, Ordering};

/// Requests answered since the start, by kind.
#[derive(Debug, Default)]
pub struct Counters {
    /// Names looked up.
    pub lookups: AtomicU64,
    /// Attributes asked for.
    pub getattrs: AtomicU64,
    /// Reads of content.
    pub reads: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Writes of content.
    pub writes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Directory listings (parts).
    pub listings: AtomicU64,
    /// Names made, removed, linked or renamed.
    pub namespace: AtomicU64,
    /// Extended attributes asked for or changed.
    pub xattrs: AtomicU64,
    /// Requests to make something durable.
    pub syncs: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
