//! The commands, run as real processes.

#![allow(clippy::unwrap_used)]

mod activate;
mod archives;
mod auto_checkpoint;
mod by_path;
mod cat;
mod checkpoint;
mod clone;
mod commit;
mod commit_part;
mod completions;
mod concurrent;
mod copied_store;
mod create;
mod daemon;
mod daemon_survival;
mod damaged_store;
mod deep_trees;
mod default_name;
mod demo;
mod diff;
mod diff_revisions;
mod discard;
mod disk_full;
mod disk_full_recovery;
mod doctor;
mod documented_options;
mod du;
mod env;
mod errors;
mod export;
mod expose;
mod forget;
mod gc;
mod history_archive;
mod hook;
mod hostile_store;
mod image;
mod import;
mod in_place;
mod list;
mod log;
mod lost_content;
mod man;
mod manners;
mod modulefile;
mod mount;
mod mount_image;
mod newcomer;
mod open_files;
mod other_hosts;
mod other_users;
mod packages;
mod paths;
mod private;
mod ps;
mod quoting;
mod read_only_store;
mod reinstall;
mod relocate;
mod remove;
mod rename;
mod restore;
mod restricted_systems;
mod rollback;
mod run;
mod session_ends;
mod session_gc;
mod session_limit;
mod session_writes;
mod sessions;
mod shell;
mod show;
mod slurm;
mod snapshots;
mod stats;
mod status;
mod streams;
mod tag;
mod timers;
mod tools;
mod trial;
mod two_hosts;
mod undo;
mod unmount;
mod unresponsive;
mod venv;
mod verify;

pub(crate) use private::is_possible as is_private_possible;

use std::fs;

use crate::support::TestEnv;

/// Creates a mounted environment with one change of each kind.
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
