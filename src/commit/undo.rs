//! Undo of operations, and checkpoints.
//!
//! The state database decides which layers an undo restores ([`StateDb::plan_undo`]). They are
//! opened and compared beside the view in use; then one transaction makes them current.
//!
//! [`StateDb::plan_undo`]: crate::state::StateDb::plan_undo

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check;
use super::error::{CommitError, Result};
use super::history::invalidate_changed_names;
use super::workspace::{Workspace, new_revision};
use crate::fault;
use crate::progress::Progress;
use crate::state::{
    NotUndoable, Operation, OperationId, OperationKind, RecordedLayer, RevisionId, UndoPlan,
};
use crate::sys::text::Text;
use crate::union::{self, Change, DiscardMode, Invalidation, LowerStack, Summary};

/// The options of an undo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UndoOptions {
    /// The operation; `None` for the last one.
    pub operation: Option<i64>,
    /// Report what would happen, and change nothing.
    pub dry_run: bool,
    /// The command line of the user, recorded in the log.
    pub command: String,
}

/// The result of an undo.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Undone {
    /// The undo as an operation; `None` for a dry run.
    pub operation: Option<OperationId>,
    /// The operation that was taken back.
    pub undone: OperationId,
    /// What it had done.
    pub kind: OperationKind,
    /// For an undo of an undo, the operation that is in effect again.
    pub redone: Option<OperationId>,
    /// The current revision now.
    pub revision: RevisionId,
    /// The path where the environment is mounted from now on, if it was another one.
    pub prefix: Option<Text>,
    /// The uncommitted changes in the restored layers.
    pub restored: Summary,
    /// The uncommitted changes that went to the trash, from which an undo of the undo restores
    /// them.
    pub set_aside: Summary,
    /// Files whose content had been removed from the trash.
    pub lost: Vec<Text>,
    /// Cache entries that the kernel must drop.
    #[serde(skip)]
    pub stale: Vec<Invalidation>,
}

/// Takes back an operation, by default the last one.
///
/// Uncommitted changes made since are kept after the undo of a commit, and otherwise go to the
/// trash.
pub fn undo(
    workspace: &Workspace,
    options: &UndoOptions,
    progress: &dyn Progress,
) -> Result<Undone> {
    let (db, union) = (workspace.db(), workspace.union());
    let wanted = options.operation.map(OperationId);
    let plan = match db.plan_undo(wanted)? {
        Ok(plan) => plan,
        Err(why) => return Err(refusal(workspace, wanted, why)?),
    };
    // Its files may contain the present path.
    if plan.prefix.is_some() && super::is_tried(workspace.env().layout()) {
        return Err(CommitError::Tried);
    }
    let (restored, repaired) = union.open_recorded(&plan.lower, workspace.open_options())?;
    let keeps_changes = !plan.kept.is_empty();
    if keeps_changes {
        check_same(&plan, &union.lower(), &restored, progress)?;
    }
    let changes = match restored.frozen() {
        [] => Vec::new(),
        _ => union::frozen_changes(&restored)?,
    };
    let set_aside = match keeps_changes {
        true => Vec::new(),
        false => going(union.changes()?, &changes, &union.lower(), &restored),
    };
    let lost = repaired.lost.iter();
    let mut done = Undone {
        operation: None,
        undone: plan.operation.id,
        kind: plan.operation.kind,
        redone: redone(workspace, &plan.operation)?,
        revision: plan.operation.head_before,
        prefix: plan.prefix.as_deref().map(Text::from),
        restored: Summary::of(&changes),
        set_aside: Summary::of(&set_aside),
        lost: lost.map(|path| Text::from(path.as_os_str())).collect(),
        stale: Vec::new(),
    };
    if options.dry_run {
        return Ok(done);
    }
    let note = new_revision("", &options.command);
    fault::point("undo.begun");
    let before = union.lower().committed();
    let after = restored.committed();
    let publish = |fresh| {
        let operation = db.undo(&plan, fresh, &note)?;
        fault::point("undo.flipped");
        Ok(operation)
    };
    let (operation, stale) = match keeps_changes {
        true => union.replace_lower(with_kept(workspace, &plan, restored)?, || publish(None))?,
        false => {
            let publish = |fresh| publish(Some(fresh));
            let swapped = union.discard_uppers(restored, DiscardMode::Always, publish)?;
            swapped.ok_or(CommitError::Uncommitted)?
        }
    };
    // The undo is done. A failure from here on must not report otherwise.
    done.operation = Some(operation);
    done.stale = stale;
    if !keeps_changes && !same_images(&before, &after) {
        invalidate_changed_names(&before, &after, &mut done.stale);
        let held = union.nodes().held().into_iter();
        done.stale.extend(held.map(Invalidation::Object));
    }
    Ok(done)
}

/// Returns the path where an undo would move the environment, which must not be mounted for that.
pub fn undo_moves_to(workspace: &Workspace, options: &UndoOptions) -> Result<Option<PathBuf>> {
    let plan = workspace
        .db()
        .plan_undo(options.operation.map(OperationId))?;
    Ok(plan.ok().and_then(|plan| plan.prefix))
}

/// Returns the stack of restored layers with the frozen ones above them that stay.
fn with_kept(
    workspace: &Workspace,
    plan: &UndoPlan,
    restored: Arc<LowerStack>,
) -> Result<Arc<LowerStack>> {
    let union = workspace.union();
    // The writable layer stays in memory, with all its rows: they may be read through the layers
    // below it, which change.
    union.load_rows()?;
    if plan.kept.len() <= 1 {
        return Ok(restored);
    }
    let kept = plan.kept.iter().skip(1).copied();
    let mut layers: Vec<_> = kept.map(RecordedLayer::Upper).collect();
    layers.extend_from_slice(&plan.lower);
    Ok(union.open_recorded(&layers, workspace.open_options())?.0)
}

/// Fails unless the layers that are restored show what the image made from them shows. After a
/// power failure their files may be incomplete, since only the image was synced.
fn check_same(
    plan: &UndoPlan,
    current: &LowerStack,
    restored: &LowerStack,
    progress: &dyn Progress,
) -> Result<()> {
    let Some(image) = current
        .images()
        .first()
        .filter(|_| !restored.frozen().is_empty())
    else {
        return Ok(());
    };
    match check::same_layers(restored, image, progress) {
        Err(CommitError::Check(what)) => Err(not_undoable(
            &plan.operation,
            format!("its files are incomplete ({what})"),
        )),
        checked => checked,
    }
}

/// Returns the changes that are in no restored layer. Layers that stay in the stack keep theirs.
fn going(
    changes: Vec<Change>,
    restored: &[Change],
    current: &LowerStack,
    new: &LowerStack,
) -> Vec<Change> {
    let is_shared = current
        .frozen()
        .iter()
        .any(|layer| new.frozen().iter().any(|other| other.id == layer.id));
    let stays = |change: &Change| is_shared && restored.contains(change);
    changes
        .into_iter()
        .filter(|change| !stays(change))
        .collect()
}

fn same_images(before: &LowerStack, after: &LowerStack) -> bool {
    let (before, after) = (before.images(), after.images());
    before.len() == after.len() && before.iter().zip(after).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// Returns the operation that an undo of `operation` puts into effect again.
fn redone(workspace: &Workspace, operation: &Operation) -> Result<Option<OperationId>> {
    if operation.kind != OperationKind::Undo {
        return Ok(None);
    }
    let all = workspace.db().operations()?;
    let mut found = operation;
    let mut is_undo = false;
    // Every second undo of an undo takes back the operation itself. Each refers to an older one.
    while let Some(id) = found.undoes.filter(|id| *id < found.id) {
        let Some(older) = all.iter().find(|other| other.id == id) else {
            return Ok(None);
        };
        if older.kind != OperationKind::Undo {
            return Ok((!is_undo).then_some(id));
        }
        is_undo = !is_undo;
        found = older;
    }
    Ok(None)
}

/// Returns the error for an operation that cannot be undone.
fn refusal(
    workspace: &Workspace,
    wanted: Option<OperationId>,
    why: NotUndoable,
) -> Result<CommitError> {
    let mut operations = workspace.db().operations()?.into_iter().rev();
    let found = match wanted {
        Some(id) => operations.find(|operation| operation.id == id),
        None => operations.find(|operation| !operation.kind.is_passed_over()),
    };
    Ok(match (found, wanted, why) {
        (None, Some(id), _) => CommitError::NoOperation(id.0),
        (None, None, _) | (_, None, NotUndoable::Unknown) => CommitError::NothingToUndo,
        (Some(operation), _, NotUndoable::NotLast) => CommitError::NotUndoable {
            operation: operation.id.0,
            kind: operation.kind.as_str(),
            why: "it is not the last one, and there were newer changes, which it kept".to_owned(),
            hint: "undo the operations after it first".to_owned(),
        },
        (Some(operation), ..) if operation.kind == OperationKind::Repair => {
            not_undoable(&operation, "what it dropped was missing already".to_owned())
        }
        (Some(operation), ..) => not_undoable(
            &operation,
            "its layers were removed, by gc or after a later commit".to_owned(),
        ),
    })
}

fn not_undoable(operation: &Operation, why: String) -> CommitError {
    CommitError::NotUndoable {
        operation: operation.id.0,
        kind: operation.kind.as_str(),
        why,
        hint: format!(
            "to return to the revision before it: envfs rollback {}",
            operation.head_before
        ),
    }
}

/// The options of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointOptions {
    /// A message for the log.
    pub message: String,
    /// The command line of the user, recorded in the log.
    pub command: String,
}

/// The result of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointed {
    /// The checkpoint.
    pub operation: OperationId,
    /// Whether there were changes since the last checkpoint or operation.
    pub has_changes: bool,
}

/// Freezes the changes made so far, so that an undo goes back to them. The next commit includes
/// them.
pub fn checkpoint(workspace: &Workspace, options: &CheckpointOptions) -> Result<Checkpointed> {
    let done = freeze(workspace, options, None)?;
    Ok(done
        .ok_or(nix::errno::Errno::EBUSY)
        .map_err(union::Error::from)?)
}

/// As [`checkpoint`], for a request that waits: it does not wait for content that is being written
/// for longer than `patience`, and makes no second checkpoint of the same changes. Returns `None`
/// in the first case, and whether there is a new checkpoint.
pub fn checkpoint_soon(
    workspace: &Workspace,
    options: &CheckpointOptions,
    patience: Duration,
) -> Result<Option<bool>> {
    if !workspace.union().has_rows() && workspace.db().is_at_checkpoint()? {
        return Ok(Some(false));
    }
    Ok(freeze(workspace, options, Some(patience))?.map(|_| true))
}

fn freeze(
    workspace: &Workspace,
    options: &CheckpointOptions,
    patience: Option<Duration>,
) -> Result<Option<Checkpointed>> {
    let db = workspace.db();
    let note = new_revision(&options.message, &options.command);
    fault::point("checkpoint.begun");
    let done = workspace.union().freeze(patience, |layer, fresh| {
        let operation = db.checkpoint_layer(layer, fresh, &note)?;
        fault::point("checkpoint.flipped");
        Ok(Checkpointed {
            operation,
            has_changes: fresh.is_some(),
        })
    });
    Ok(done?)
}
