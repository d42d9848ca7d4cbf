//! Integration tests, in one binary so that they are linked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

mod benches;
mod cli;
mod crash;
mod docs;
mod endure;
mod examples;
mod fs;
mod fuzzing;
mod image;
mod lints;
mod matrix;
mod model;
mod packages;
mod shell;
mod suites;
mod support;
