//! Discard and rollback.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{CommitError, Result};
use super::workspace::{Workspace, new_revision};
use crate::fault;
use crate::object::{Ino, Kind};
use crate::state::{OperationKind, RevisionId};
use crate::union::{Change, DiscardMode, Invalidation, LowerStack, SharedListing, open_image};

/// Discards all changes, or those at and below the given paths (relative to the prefix). Returns
/// the discarded changes and the cache entries that the kernel must drop. `command` is recorded.
///
/// An undo restores them. Discarded content is kept until [`gc`](fn@super::gc), or after a discard
/// of single paths until a later commit.
pub fn discard(
    workspace: &Workspace,
    paths: &[Vec<u8>],
    command: &str,
) -> Result<(Vec<Change>, Vec<Invalidation>)> {
    let (union, db) = (workspace.union(), workspace.db());
    let note = new_revision("", command);
    if !paths.is_empty() {
        return Ok(union.discard_paths(paths, |layer, changes| {
            db.change_paths(layer, changes, OperationKind::DiscardPaths, &note)?;
            Ok(())
        })?);
    }
    let changes = union.changes()?;
    let note = (!changes.is_empty()).then_some(&note);
    fault::point("discard.begun");
    let dropped =
        union.discard_uppers(union.lower().committed(), DiscardMode::Always, |fresh| {
            db.discard_all(fresh, note)?;
            fault::point("discard.flipped");
            Ok(())
        })?;
    Ok((
        changes,
        dropped.map(|((), stale)| stale).unwrap_or_default(),
    ))
}

/// The result of a rollback.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolledBack {
    /// The new current revision, appended to the history.
    pub revision: RevisionId,
    /// The revision whose content it has.
    pub of: RevisionId,
    /// Cache entries that the kernel must drop.
    #[serde(skip)]
    pub stale: Vec<Invalidation>,
}

/// Appends a revision to the history that has the content of `target`, or of the parent of the
/// current revision. With [`DiscardMode::IfUnchanged`] it fails if there are uncommitted changes.
pub fn rollback(
    workspace: &Workspace,
    target: Option<RevisionId>,
    mode: DiscardMode,
    command: &str,
) -> Result<RolledBack> {
    let (db, union) = (workspace.db(), workspace.union());
    if mode == DiscardMode::IfUnchanged && union.has_changes()? {
        return Err(CommitError::Uncommitted);
    }
    let target = match target {
        Some(id) => db.revision(id)?.ok_or(CommitError::NoRevision(id.0))?,
        None => {
            let current = db.current_revision()?.ok_or(CommitError::NoEarlier)?;
            let parent = current.parent.ok_or(CommitError::NoEarlier)?;
            db.revision(parent)?
                .ok_or(CommitError::NoRevision(parent.0))?
        }
    };
    let layer = open_image(db, union.paths(), target.image, workspace.open_options())?;
    let before = union.lower().committed();
    let after = Arc::new(LowerStack::new(vec![Arc::new(layer)]));
    fault::point("rollback.begun");
    let note = new_revision(&format!("roll back to revision {}", target.id), command);
    // Checked again while writes are blocked.
    let dropped = union.discard_uppers(after.clone(), mode, |fresh| {
        let revision = db.rollback_to(target.id, fresh, &note)?.revision;
        fault::point("rollback.flipped");
        Ok(revision)
    })?;
    // The rollback is done. A failure from here on must not report otherwise.
    let (revision, mut stale) = dropped.ok_or(CommitError::Uncommitted)?;
    invalidate_changed_names(&before, &after, &mut stale);
    // Content is not compared, so all objects that the kernel holds are invalidated.
    stale.extend(union.nodes().held().into_iter().map(Invalidation::Object));
    Ok(RolledBack {
        revision,
        of: target.id,
        stale,
    })
}

/// Adds every name that refers to different objects in two trees. A directory that cannot be read
/// counts as empty, since the revision that is rolled back may be damaged.
pub(super) fn invalidate_changed_names(
    before: &LowerStack,
    after: &LowerStack,
    stale: &mut Vec<Invalidation>,
) {
    let list = |stack: &LowerStack, dir| {
        stack.list(dir).unwrap_or_else(|e| {
            tracing::warn!(%dir, "some names may not be invalidated in the kernel: {e}");
            SharedListing::default()
        })
    };
    let mut pending = vec![Ino::ROOT];
    let mut seen: HashSet<Ino> = HashSet::new();
    while let Some(dir) = pending.pop() {
        if !seen.insert(dir) {
            continue;
        }
        let (old, new) = (list(before, dir), list(after, dir));
        for (name, ino, kind) in old.iter() {
            if new.find(name).is_none_or(|(now, _)| now != ino) {
                stale.push(Invalidation::Entry {
                    dir,
                    name: Box::from(name),
                });
            }
            if kind == Kind::Directory {
                pending.push(ino);
            }
        }
        for (name, ino, kind) in new.iter() {
            if old.find(name).is_none() {
                stale.push(Invalidation::Entry {
                    dir,
                    name: Box::from(name),
                });
            }
            if kind == Kind::Directory {
                pending.push(ino);
            }
        }
    }
}
