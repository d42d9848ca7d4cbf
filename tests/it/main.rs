//! Integration tests: one binary, so one link.

mod cli;
mod crash;
mod docs;
mod fs;
mod model;
mod shell;
mod support;
