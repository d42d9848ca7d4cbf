//! The union, with commits, remounts and crashes, against a model in memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod acts;
mod again;
mod bench;
mod check;
mod crash;
mod listing;
mod midway;
mod numbers;
mod ops;
mod overlaid;
mod publishing;
mod random;
mod regressions;
mod stress;
mod tree;
mod trouble;
mod whole;
