//! Integration tests: one binary, so one link.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod benches;
mod cli;
mod crash;
mod docs;
mod endure;
mod fs;
mod fuzzing;
mod image;
mod matrix;
mod model;
mod shell;
mod suites;
mod support;
