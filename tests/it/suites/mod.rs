//! Other people's test suites, on a mount and on ext4.
//!
//! The runner (`tests/run`) installs what is not in Debian and says where with `ENVFS_SUITES`.

mod fsx;
mod lower_fsx;
mod pjdfstest;
mod stress;

use std::path::PathBuf;

/// Finds a suite that the runner has installed; says that the test is skipped where it is not.
fn installed(program: &str) -> Option<PathBuf> {
    let found = std::env::var_os("ENVFS_SUITES")
        .map(|dir| PathBuf::from(dir).join("bin").join(program))
        .filter(|path| path.is_file());
    if found.is_none() {
        crate::support::skip(&format!("no {program}: tests/run installs it"));
    }
    found
}
