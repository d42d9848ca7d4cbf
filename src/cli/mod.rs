//! The command line: parses, calls, prints.

/// Runs the program and returns its exit status.
pub fn main() -> i32 {
    0
}
