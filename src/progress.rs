//! How long work tells what it does and hears that it should stop. Libraries never print.

/// What a long operation is doing; a new phase starts its counts afresh.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// What is being done now, in the imperative ("packing", "verifying").
    pub phase: String,
    /// Files (entries) done in this phase.
    pub files_done: u64,
    /// Files in this phase, 0 while unknown.
    pub files_total: u64,
    /// Bytes done in this phase (uncompressed content).
    pub bytes_done: u64,
    /// Bytes in this phase, 0 while unknown.
    pub bytes_total: u64,
}

/// Receives progress, and says whether to go on. Called often and from any thread: be quick.
pub trait Progress: Send + Sync {
    /// Takes the newest counts.
    fn report(&self, report: &Report);

    /// Returns true when the operation should stop at the next safe point and undo itself.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Progress that goes nowhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _report: &Report) {}
}
