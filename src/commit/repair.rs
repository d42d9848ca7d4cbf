//! Finds and repairs missing and unexpected files of an environment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cleanup;
use super::error::{Context, Result};
use super::workspace::paths;
use crate::environment::Layout;
use crate::object::Timestamp;
use crate::state::{StackPart, StateDb};
use crate::sys::{private, regular};
use crate::union::{self, OpenOptions};
use crate::upper::UpperDir;

/// Describes every file of a home that has an unexpected type, and missing directories.
pub fn unexpected_files(layout: &Layout) -> Vec<String> {
    let mut problems: Vec<String> = files(layout)
        .iter()
        .filter_map(|path| Some(format!("{}: {}", path.display(), unexpected_file(path)?)))
        .collect();
    for (dir, is_needed) in [
        (layout.images(), true),
        (layout.layers(), true),
        (layout.strays(), false),
        (layout.sessions(), false),
        (layout.trials(), false),
    ] {
        match fs::metadata(&dir) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => problems.push(format!("{}: it is not a directory", dir.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !is_needed => {}
            Err(e) => problems.push(format!("{}: {e}", dir.display())),
        }
    }
    problems
}

/// Describes the differences between the rows of an environment and the files of its uppers, and
/// changes nothing. No other process has the environment open, and its last close was clean.
pub fn verify_uppers(db: &StateDb, layout: &Layout) -> Result<Vec<String>> {
    Ok(union::verify_uppers(
        db,
        &paths(layout),
        &OpenOptions::default(),
    )?)
}

/// Returns the files that are newer than the database, which was then restored from an older copy.
pub fn newer_files(db: &StateDb, layout: &Layout) -> Result<Vec<PathBuf>> {
    cleanup::newer_than(db, layout)
}

/// Moves unexpected objects aside from the places of files and directories that can be recreated.
/// Returns a description of each step. The caller holds the environment's lock, unless the lock
/// itself is unexpected.
pub fn set_unexpected_aside(layout: &Layout) -> Result<Vec<String>> {
    let mut done = Vec::new();
    let strays = layout.strays();
    for dir in [&strays, &layout.sessions(), &layout.trials()] {
        if fs::symlink_metadata(dir).is_ok_and(|meta| !meta.is_dir()) {
            let to = layout.home().join(aside_name(dir));
            fs::rename(dir, &to).context("move aside", dir)?;
            done.push(format!("{} was moved to {}", dir.display(), to.display()));
        }
    }
    for path in files(layout) {
        // Without its database there is no environment to repair.
        if path == layout.state_db() || unexpected_file(&path).is_none() {
            continue;
        }
        private::create_dir(&strays).context("create", &strays)?;
        let to = strays.join(aside_name(&path));
        fs::rename(&path, &to).context("move aside", &path)?;
        done.push(format!("{} was moved to {}", path.display(), to.display()));
    }
    Ok(done)
}

/// Creates missing upper directories as empty ones, so that the environment can be opened without
/// their content. Returns a description of each step. The caller holds the environment's lock.
pub fn recreate_missing_uppers(db: &StateDb, layout: &Layout) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for dir in [layout.images(), layout.layers()] {
        private::create_dir(&dir).context("create", &dir)?;
    }
    for layer in db.stack()? {
        if matches!(layer.part, StackPart::Image(_)) {
            continue;
        }
        let upper = layout.upper(layer.id);
        if fs::symlink_metadata(&upper).is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        UpperDir::create(&layout.layer(layer.id), &layout.strays()).context("create", &upper)?;
        done.push(format!("{} was recreated, empty", upper.display()));
    }
    Ok(done)
}

/// Returns the files of a home that are opened by name.
fn files(layout: &Layout) -> Vec<PathBuf> {
    let database = layout.state_db();
    let beside = |suffix: &str| {
        let mut path = database.clone().into_os_string();
        path.push(suffix);
        PathBuf::from(path)
    };
    let mut files = vec![
        beside("-journal"),
        beside("-redo"),
        layout.lock(),
        layout.lock_holder(),
        layout.lease(),
        layout.daemon_log(),
        layout.old_daemon_log(),
        layout.profile(),
        layout.in_place(),
    ];
    files.push(database);
    files
}

/// Describes a file that exists but is not a regular file.
fn unexpected_file(path: &Path) -> Option<String> {
    match regular::exists(path) {
        Ok(_) => None,
        Err(e) => match regular::as_not_regular(&e) {
            Some(odd) => Some(format!("it is {}, not a regular file", odd.found)),
            None => Some(e.to_string()),
        },
    }
}

fn aside_name(path: &Path) -> String {
    let now = Timestamp::now();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{}.{:09}-{name}", now.secs, now.nanos)
}
