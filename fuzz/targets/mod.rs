//! The fuzz targets. A panic or an abort is a finding. The fuzzer runs one target for hours; the
//! integration tests run all of them briefly over seeds and regressions.

pub mod codecs;
pub mod directory;
pub mod history_archive;
pub mod inode;
pub mod metadata;
pub mod open_walk_read;
pub mod store;
pub mod superblock_tables;

/// The name of a target, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const ALL: &[Target] = &[
    ("codecs", codecs::run),
    ("directory", directory::run),
    ("history_archive", history_archive::run),
    ("inode", inode::run),
    ("metadata", metadata::run),
    ("open_walk_read", open_walk_read::run),
    ("store", store::run),
    ("superblock_tables", superblock_tables::run),
];
