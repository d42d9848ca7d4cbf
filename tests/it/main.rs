//! Integration tests: one binary, so one link.

mod shell;
