//! Tests of the writer with our own reader and with other readers.

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
