//! Trials (`envfs try`): changes above the current state that are kept or dropped afterwards.
//!
//! The layer of a trial is in `layers/` of the home and has a row from the beginning, but it is not
//! in the stack. Another process writes its files, and its rows to a database of its own
//! (`trials/TOKEN/session`), and reads the frozen layers and images below it. Keeping the changes
//! copies the rows and then puts the layer into the stack, in one transaction.
//!
//! The command that makes a trial holds the lock of `trials/TOKEN` from before the beginning until
//! after the end, and the process that serves it that of its session. A trial with both locks free
//! has no process: the next open, and `gc`, remove it. If the command has left a note because the
//! changes could neither be kept nor set aside, they move the changes to the trash.

pub(super) mod remains;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{CommitError, Context, Result};
use super::retired;
use super::workspace::{Workspace, new_revision, paths, reader_options};
use crate::environment::{CacheConfig, Layout};
use crate::fault;
use crate::state::{OperationId, StateDb, Trial, TrialEnd};
use crate::sys::private;
use crate::union::{DiscardMode, Invalidation, OpenOptions, Paths, Reconciled, Union};
use crate::upper::UpperDir;
use remains::{Undecided, remove, remove_ended};

/// What to do with a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialStep {
    /// Begin it.
    Begin,
    /// Keep its changes; set them aside if the environment has changed since it began.
    Keep,
    /// Move its changes to the trash, from which they can be restored.
    SetAside,
    /// Remove its changes.
    Drop,
}

/// A step of a trial. The caller holds the lock of its directory, which exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialRequest {
    /// The step.
    pub step: TrialStep,
    /// The name of the directory of the trial.
    pub token: String,
    /// The command line of the user, recorded in the log.
    pub command: String,
}

/// What has become of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialOutcome {
    /// It has begun.
    Begun,
    /// Its changes are uncommitted changes of the environment.
    Kept,
    /// Its changes are in the trash.
    SetAside,
    /// Its changes are gone.
    Dropped,
}

/// The result of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrialDone {
    /// What has become of it.
    pub outcome: TrialOutcome,
    /// The operation in the log.
    pub operation: Option<OperationId>,
    /// Cache entries that the kernel must drop.
    #[serde(skip)]
    pub stale: Vec<Invalidation>,
}

impl TrialDone {
    fn new(outcome: TrialOutcome, operation: Option<OperationId>) -> TrialDone {
        TrialDone {
            outcome,
            operation,
            stale: Vec::new(),
        }
    }
}

/// Opens the view of a trial, and returns what was repaired. The caller holds the lock of its
/// session.
pub fn open_trial(home: &Layout, token: &str, cache: &CacheConfig) -> Result<(Union, Reconciled)> {
    let session = home.trial(token).session_of_trial();
    let db = StateDb::open(&session.state_db())?;
    let options = OpenOptions {
        reader: reader_options(cache),
        limit: None,
    };
    let paths = Paths {
        strays: session.strays(),
        ..paths(home)
    };
    Ok(Union::open(Arc::new(db), paths, &options)?)
}

/// Performs a step of a trial.
pub fn trial(workspace: &Workspace, request: &TrialRequest) -> Result<TrialDone> {
    if request.step == TrialStep::Begin {
        return begin(workspace, &request.token);
    }
    let mut trials = workspace.db().trials()?.into_iter();
    let found = trials.find(|trial| trial.token == request.token);
    let trial = found.ok_or(CommitError::NoTrial)?;
    match request.step {
        TrialStep::Drop => drop_changes(workspace, &trial),
        TrialStep::SetAside => {
            copy(workspace, &trial)?;
            set_aside(workspace, &trial, request)
        }
        TrialStep::Begin | TrialStep::Keep => keep(workspace, &trial, request),
    }
}

fn begin(workspace: &Workspace, token: &str) -> Result<TrialDone> {
    let (db, union) = (workspace.db(), workspace.union());
    let layout = workspace.env().layout();
    remove_ended(db, layout, Undecided::SetAside);
    let layer = db.reserve_layer()?;
    let path = layout.layer(layer);
    UpperDir::create(&path, &layout.strays()).context("create", &path)?;
    fault::point("try.begun");
    let begun = union.freeze(None, |top, fresh| {
        Ok(db.begin_trial(top, fresh, layer, token)?)
    })?;
    // There is always one, as the freeze waits without a limit.
    let trial = begun.ok_or(CommitError::Cancelled)?;
    fault::point("try.noted");
    let session = layout.trial(token).session_of_trial();
    let filled = private::create_dir(session.home())
        .context("create", session.home())
        .and_then(|()| Ok(db.create_of_trial(&trial, &session.state_db())?));
    if let Err(error) = filled {
        if let Err(error) = remove(db, layout, &trial) {
            tracing::warn!(%error, "the next open removes the trial");
        }
        return Err(error);
    }
    Ok(TrialDone::new(TrialOutcome::Begun, None))
}

/// Copies the rows of a trial that has ended. Nothing refers to them yet.
fn copy(workspace: &Workspace, trial: &Trial) -> Result<()> {
    let session = workspace.env().layout().trial(&trial.token);
    let database = session.session_of_trial().state_db();
    fault::point("try.ended");
    Ok(workspace.db().copy_trial(trial, &database)?)
}

fn keep(workspace: &Workspace, trial: &Trial, request: &TrialRequest) -> Result<TrialDone> {
    let (db, union) = (workspace.db(), workspace.union());
    copy(workspace, trial)?;
    fault::point("keep.copied");
    if !db.is_as_before_trial(trial)? {
        return set_aside(workspace, trial, request);
    }
    let (stack, repaired) = union.open_recorded(&trial.layers(), workspace.open_options())?;
    if !repaired.lost.is_empty() {
        let lost = repaired.lost.iter().take(10);
        let lost: Vec<_> = lost.map(|path| path.display().to_string()).collect();
        tracing::warn!("content of a trial was lost: {}", lost.join(", "));
    }
    let note = new_revision("", &request.command);
    // Under the lock of the view, so that nothing is changed between the check and the transaction.
    let kept = union.discard_uppers(stack, DiscardMode::IfEmpty, |fresh| {
        let operation = db.end_trial(trial, TrialEnd::Keep(fresh), &note)?;
        fault::point("keep.flipped");
        Ok(operation)
    })?;
    match kept {
        Some((operation, stale)) => Ok(TrialDone {
            stale,
            ..TrialDone::new(TrialOutcome::Kept, Some(operation))
        }),
        None => set_aside(workspace, trial, request),
    }
}

fn set_aside(workspace: &Workspace, trial: &Trial, request: &TrialRequest) -> Result<TrialDone> {
    let operation = move_to_trash(workspace.db(), trial, &request.command)?;
    thaw(workspace);
    Ok(TrialDone::new(TrialOutcome::SetAside, Some(operation)))
}

/// Moves the changes of a trial, whose rows were copied, to the trash.
fn move_to_trash(db: &StateDb, trial: &Trial, command: &str) -> Result<OperationId> {
    let note = new_revision("", command);
    let operation = db.end_trial(trial, TrialEnd::SetAside, &note)?;
    fault::point("set-aside.flipped");
    Ok(operation)
}

fn drop_changes(workspace: &Workspace, trial: &Trial) -> Result<TrialDone> {
    remove(workspace.db(), workspace.env().layout(), trial)?;
    thaw(workspace);
    Ok(TrialDone::new(TrialOutcome::Dropped, None))
}

/// Makes the layer that a trial has frozen writable again, unless something else needs it as it is.
fn thaw(workspace: &Workspace) {
    let thawed = workspace.union().unrotate().map_err(CommitError::from);
    let swept = thawed
        .and_then(|()| retired::sweep_retired(workspace.db(), workspace.env().layout()).map(drop));
    if let Err(error) = swept {
        tracing::warn!(%error, "the stack has one more layer until the next open");
    }
}
