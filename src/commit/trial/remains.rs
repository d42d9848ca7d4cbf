//! Removes trials: those that are dropped, and those without a process, unless their changes are to
//! be set aside.

use std::fs;
use std::time::{Duration, SystemTime};

use super::{move_to_trash, open_trial};
use crate::commit::error::{Context, Result};
use crate::commit::retired;
use crate::environment::{CacheConfig, EnvLock, Layout};
use crate::fault;
use crate::state::{StateDb, Trial};
use crate::sys::{durable, regular, walk};

/// The age up to which the directory of a trial without a lock is assumed to be new.
const LOCK_GRACE: Duration = Duration::from_secs(60);

/// The file in the directory of a trial that says that its changes must not be removed. It contains
/// the command line of the user.
const UNDECIDED: &str = "undecided";
/// The size limit of that file, in bytes.
const UNDECIDED_LIMIT: u64 = 1 << 20;

/// Notes that the changes of a trial could neither be kept nor set aside, so that the next open, or
/// the next trial, moves them to the trash. The caller holds the lock of its directory.
pub fn leave_undecided(home: &Layout, token: &str, command: &str) -> std::io::Result<()> {
    let path = home.trial(token).home().join(UNDECIDED);
    durable::replace(&path, command.as_bytes()).or_else(|error| match error.kind() {
        // On a full disk there may be room for a name.
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            fs::File::create_new(&path).map(drop)
        }
        _ => Err(error),
    })
}

/// Moves the changes of a trial without a process to the trash, if its command has asked for it.
/// Returns whether it has.
fn decide_later(db: &StateDb, home: &Layout, trial: &Trial) -> Result<bool> {
    let place = home.trial(&trial.token);
    let path = place.home().join(UNDECIDED);
    let command = match regular::read(&path, UNDECIDED_LIMIT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        read => read.context("read", &path)?,
    };
    // Its session may have had no room for the rows of its redo log.
    let (union, _) = open_trial(home, &trial.token, &CacheConfig::default())?;
    union.close()?;
    db.copy_trial(trial, &place.session_of_trial().state_db())?;
    let operation = move_to_trash(db, trial, &String::from_utf8_lossy(&command))?;
    tracing::info!(
        operation = operation.0,
        "set aside a trial that could not be kept"
    );
    Ok(true)
}

/// Removes a trial: its files, then its rows.
pub(super) fn remove(db: &StateDb, layout: &Layout, trial: &Trial) -> Result<()> {
    retired::remove_layer_files(layout, trial.layer)?;
    fault::point("drop.removed");
    Ok(db.forget_trial(trial)?)
}

/// What to do with the changes of a trial that could not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commit) enum Undecided {
    /// Move them to the trash.
    SetAside,
    /// Leave them: the trash is about to be emptied.
    Leave,
}

/// Removes trials whose processes have ended, and directories of trials that have no row. What
/// cannot be removed is reported and kept.
pub(in crate::commit) fn remove_ended(db: &StateDb, layout: &Layout, undecided: Undecided) {
    let trials = match db.trials() {
        Ok(trials) => trials,
        Err(error) => return tracing::warn!(%error, "cannot read the trials"),
    };
    for trial in &trials {
        let place = layout.trial(&trial.token);
        let locks = match Locks::of_ended(&place) {
            Some(locks) => locks,
            None => continue,
        };
        if undecided == Undecided::Leave && place.home().join(UNDECIDED).exists() {
            continue;
        }
        let ended = decide_later(db, layout, trial).and_then(|is_set_aside| match is_set_aside {
            true => Ok(()),
            false => remove(db, layout, trial),
        });
        let ended = ended.and_then(|()| remove_place(&place));
        drop(locks);
        match ended {
            Ok(()) => tracing::info!(layer = trial.layer.0, "removed a trial without a process"),
            Err(error) => tracing::warn!(%error, "cannot remove a trial that was killed"),
        }
    }
    for entry in fs::read_dir(layout.trials())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let Some(token) = name.to_str() else { continue };
        if trials.iter().any(|trial| trial.token == token) {
            continue;
        }
        let place = layout.trial(token);
        if let Some(_locks) = Locks::of_ended(&place)
            && let Err(error) = remove_place(&place)
        {
            tracing::warn!(%error, "cannot remove the directory of a trial");
        }
    }
}

fn remove_place(place: &Layout) -> Result<()> {
    walk::remove_tree(place.home()).context("remove", place.home())
}

/// Returns whether a trial of an environment is in progress.
pub fn is_tried(layout: &Layout) -> bool {
    let entries = fs::read_dir(layout.trials()).into_iter().flatten();
    entries.flatten().any(|entry| {
        let place = Layout::new(entry.path());
        Locks::of_ended(&place).is_none()
    })
}

/// The locks of a trial that no process uses, held while it is removed.
#[derive(Debug)]
struct Locks(#[expect(dead_code, reason = "held until dropped")] Vec<EnvLock>);

impl Locks {
    /// Returns `None` if a process uses the trial, or may be about to.
    fn of_ended(place: &Layout) -> Option<Locks> {
        let meta = match fs::symlink_metadata(place.home()) {
            Ok(meta) => meta,
            Err(_) => return Some(Locks(Vec::new())),
        };
        if !meta.is_dir() {
            return Some(Locks(Vec::new()));
        }
        let age = meta.modified().ok();
        let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
        if !place.lock().exists() && age.is_none_or(|age| age < LOCK_GRACE) {
            return None;
        }
        let session = place.session_of_trial();
        let mut locks = Vec::new();
        for layout in [place, &session] {
            if layout.home().is_dir() {
                locks.push(EnvLock::try_lock(layout, "clean").ok()?);
            }
        }
        Some(Locks(locks))
    }
}
