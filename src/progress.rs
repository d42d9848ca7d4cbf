//! Progress reports and cancellation of long operations. Library code never prints.

/// The progress of a long operation. Counts start at 0 in each phase.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Name of the current phase ("packing", "verifying").
    pub phase: String,
    /// Files and other entries processed in this phase.
    pub files_done: u64,
    /// Total number of entries in this phase, 0 while unknown.
    pub files_total: u64,
    /// Bytes of uncompressed content processed in this phase.
    pub bytes_done: u64,
    /// Total number of bytes in this phase, 0 while unknown.
    pub bytes_total: u64,
}

/// Receives progress and may cancel the operation. Called often and from any thread, so
/// implementations must return quickly.
pub trait Progress: Send + Sync {
    /// Receives the current counts.
    fn report(&self, report: &Report);

    /// Returns whether the operation should stop at the next safe point and undo its changes.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Ignores progress and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _report: &Report) {}
}
