//! The commands, through the real program.

#![allow(clippy::unwrap_used)]

mod activate;
mod active;
mod again;
mod archives;
mod concurrent;
mod copies;
mod create;
mod daemon;
mod deep;
mod diff;
mod discard;
mod export;
mod full;
mod gc;
mod held;
mod hints;
mod hostile;
mod import;
mod list;
mod lost;
mod missing;
mod names;
mod no_room;
mod outlives;
mod paths;
mod read_only;
mod run;
mod snapshots;
mod stats;
mod status;
mod tag;
mod trouble;
mod trust;
mod unmount;
mod venv;
mod verify;
mod waits;

use std::fs;

use crate::support::TestEnv;

/// Makes a mounted environment with one change of each kind.
fn changed() -> Option<TestEnv> {
    let env = TestEnv::new()?;
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "12345").unwrap();
    fs::write(prefix.join("lib/c.txt"), "gamma\ndelta\n").unwrap();
    fs::remove_file(prefix.join("lib/link")).unwrap();
    fs::rename(prefix.join("lib/deep"), prefix.join("lib/moved")).unwrap();
    Some(env)
}
