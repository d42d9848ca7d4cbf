//! The union with commits, remounts and crashes, compared with a model in memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive;
mod bench;
mod check;
mod commit_part;
mod concurrent_commit;
mod crash;
mod discard;
mod environment_ops;
mod file_ops;
mod history;
mod io_failures;
mod listing;
mod machine;
mod numbers;
mod ops;
mod overlayfs;
mod publishing;
mod random;
mod recreated;
mod regressions;
mod relocate;
mod stress;
mod tree;
mod trial;
mod undo;
