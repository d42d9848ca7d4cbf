//! The union, with commits, remounts and crashes, against a model in memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod crash;
mod ops;
mod random;
mod regressions;
mod stress;
mod tree;
