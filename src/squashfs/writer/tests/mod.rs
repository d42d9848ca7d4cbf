//! Tests of the writer with the reader of this crate and with other readers.

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
