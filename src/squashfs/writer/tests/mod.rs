//! The writer against our own reader, and against everybody else's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::let_underscore_must_use
)]

mod amend;
mod append;
mod oracles;
mod random;
mod support;
mod traps;
