//! Tests of the writer with the reader of this crate and with other readers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::let_underscore_must_use
)]

mod amend;
mod append;
mod append_foreign;
mod oracles;
mod random;
mod readers;
mod support;
mod traps;
