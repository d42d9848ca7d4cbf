//! Archives of a whole history: all images, and a manifest with what the database knows of them.
//!
//! An archive is a tar file (`docs/history-archive.md`). Images are cut into blobs where revisions
//! were cut, so what a revision has in common with the one before it is stored once, and the blobs
//! of a revision, one after another, are its image.

mod cut;
mod forward;
mod manifest;
mod read;
mod receive;
mod tar;
mod write;

pub use forward::{Forwarded, Relation, forward, relation};
pub use read::{
    HistoryArchive, ImportHistoryOptions, ImportedHistory, import_history, is_history_archive,
};
pub use receive::Incoming;
pub use write::{ExportedHistory, HistoryExport};

/// Returns the digest of an image by the digests of its parts.
fn image_digest(digests: &[u8]) -> String {
    blake3::hash(digests).to_hex().to_string()
}
