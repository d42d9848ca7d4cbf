//! What each fuzz target does with its input: a panic or an abort is a finding. The fuzzer runs one target
//! for hours; a test of the main build runs all of them for a moment, over seeds and regressions.

pub mod codecs;
pub mod directory;
pub mod inode;
pub mod metadata;
pub mod open_walk_read;
pub mod store;
pub mod superblock_tables;

/// A target: its name and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const ALL: &[Target] = &[
    ("codecs", codecs::run),
    ("directory", directory::run),
    ("inode", inode::run),
    ("metadata", metadata::run),
    ("open_walk_read", open_walk_read::run),
    ("store", store::run),
    ("superblock_tables", superblock_tables::run),
];
