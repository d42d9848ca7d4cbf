//! Integration tests: one binary, so one link.

mod model;
mod shell;
