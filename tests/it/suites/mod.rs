//! Third-party test suites, on a mount and on ext4.
//!
//! `tests/run` installs those that Debian does not package and sets `ENVFS_SUITES` to their
//! directory.

mod fsx;
mod lower_fsx;
mod pjdfstest;
mod stress;

use std::path::PathBuf;

/// Finds a suite that `tests/run` has installed; reports a skip if there is none.
fn installed(program: &str) -> Option<PathBuf> {
    let found = std::env::var_os("ENVFS_SUITES")
        .map(|dir| PathBuf::from(dir).join("bin").join(program))
        .filter(|path| path.is_file());
    if found.is_none() {
        crate::support::skip(&format!("no {program}: tests/run installs it"));
    }
    found
}
