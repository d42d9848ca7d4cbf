//! Verifying an environment, and repairing what can be repaired.

use super::backend;
use super::error::Result;
use crate::commit;
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::repairs::LOST;
use crate::daemon::service::{LOCK_TIMEOUT, Local};
use crate::environment::{EnvLock, Environment, EnvironmentError};
use crate::progress::Progress;
use crate::state::{RevisionId, StateDb};
use crate::sys::text::quoted;
use crate::union::Reconciled;

/// Verifies the database and all images of an environment, and compares rows and files unless
/// another process has it open. Changes nothing, except that opening an environment after an
/// unclean shutdown reconciles it.
pub(super) fn verify(
    environment: &Environment,
    progress: &dyn Progress,
) -> Result<commit::VerifyOutcome> {
    let layout = environment.layout();
    let config = environment.store().config()?;
    let settings = commit::Settings::from_config(&config);
    let unexpected = commit::unexpected_files(layout);
    let db = match backend::open_read_only(environment) {
        // These may be the reason why the database cannot be read.
        Err(_) if !unexpected.is_empty() => {
            return Ok(commit::VerifyOutcome {
                problems: unexpected,
                ..Default::default()
            });
        }
        opened => opened?,
    };
    let mut outcome =
        commit::verify(&db, layout, settings.threads, progress).map_err(Failure::from)?;
    outcome.problems.extend(unexpected);
    // The merged view needs complete images.
    if !outcome.problems.is_empty() || EnvLock::current_holder(layout).is_some() {
        return Ok(outcome);
    }
    if db.was_clean()? {
        let _lock = match EnvLock::lock(layout, "verify", LOCK_TIMEOUT) {
            // The holder wrote no note, because the disk is full.
            Err(EnvironmentError::Held { .. }) => return Ok(outcome),
            locked => locked?,
        };
        let found = commit::verify_uppers(&db, layout).map_err(Failure::from)?;
        outcome.problems.extend(found);
        return Ok(outcome);
    }
    drop(db);
    match Local::open(environment.clone(), &config, "verify", LOCK_TIMEOUT) {
        Err(failure) if failure.kind == Kind::Busy => {}
        Err(failure) if failure.kind == Kind::Damaged => outcome.problems.push(failure.message),
        opened => outcome
            .problems
            .extend(describe_reconciled(environment, opened?.reconciled())),
    }
    Ok(outcome)
}

/// Verifies the image of one revision.
pub(super) fn verify_revision(
    environment: &Environment,
    number: i64,
    progress: &dyn Progress,
) -> Result<commit::VerifyOutcome> {
    let db = backend::open_read_only(environment)?;
    let settings = commit::Settings::from_config(&environment.store().config()?);
    let (layout, id) = (environment.layout(), RevisionId(number));
    let done = commit::verify_revision(&db, layout, id, settings.threads, progress);
    Ok(done.map_err(Failure::from)?)
}

/// Repairs an environment that no process has open, as far as possible: moves unexpected files in
/// its home aside, and drops changes whose content is missing. Returns a description of each step.
pub(super) fn repair(environment: &Environment) -> Result<Vec<String>> {
    let layout = environment.layout();
    let config = environment.store().config()?;
    let mut done = Vec::new();
    if EnvLock::current_holder(layout).is_none() {
        done.extend(commit::set_unexpected_aside(layout).map_err(Failure::from)?);
    }
    {
        let _lock = EnvLock::lock(layout, "repair", LOCK_TIMEOUT)?;
        let db = StateDb::open(&layout.state_db())?;
        done.extend(commit::recreate_missing_uppers(&db, layout).map_err(Failure::from)?);
    }
    let local = Local::open(environment.clone(), &config, "repair", LOCK_TIMEOUT)?;
    backend::report_lost(environment, &local.reconciled().lost);
    done.extend(describe_reconciled(environment, local.reconciled()));
    drop(local);
    if !done.is_empty() {
        let _lock = EnvLock::lock(layout, "repair", LOCK_TIMEOUT)?;
        let db = StateDb::open(&layout.state_db())?;
        let note = commit::new_revision(&done.join("\n"), &commit::command_line());
        db.note_repair(&note)?;
    }
    Ok(done)
}

/// Describes the problems found and repaired when an environment was opened.
fn describe_reconciled(environment: &Environment, found: &Reconciled) -> Vec<String> {
    let lost = found.lost.iter();
    let mut lines: Vec<String> = lost
        .map(|path| format!("{}: {LOST}", quoted(path)))
        .collect();
    if found.set_aside > 0 {
        lines.push(format!(
            "unreferenced files were moved to {}: {}",
            quoted(environment.layout().strays()),
            found.set_aside
        ));
    }
    lines
}
