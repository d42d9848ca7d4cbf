//! Taking back an operation of the log.
//!
//! Some operations do not change what the view shows (`shows_same`): a commit, and its undo. The
//! uppers above such an operation fit on either part, so they stay. The uppers above any other
//! operation were made on its layers after, so an undo moves them to the trash. The undo is itself
//! an operation whose layers before contain them: its undo restores them.

use std::collections::HashSet;
use std::path::PathBuf;

use rusqlite::{Connection, params};

use super::StateDb;
use super::error::Result;
use super::history::NewRevision;
use super::ids::{LayerId, OperationId};
use super::operations::{
    NewOperation, Operation, OperationKind, RecordedLayer, recorded_of, uppers_of,
};
use super::stack::{LayerRole, StackLayer, StackPart, UNPLACED};

/// Why an operation cannot be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotUndoable {
    /// The log has no such operation, or none at all.
    Unknown,
    /// Its layers were removed, by gc or after a later commit.
    Removed,
    /// It is not the last one, and there were newer changes, which may have changed since.
    NotLast,
}

/// The stack that an undo makes current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoPlan {
    /// The operation that it takes back.
    pub operation: Operation,
    /// The uppers that stay on top, the writable one first. Empty if a new writable layer is
    /// needed.
    pub kept: Vec<LayerId>,
    /// The layers below them, top first.
    pub lower: Vec<RecordedLayer>,
    /// The path where the environment was mounted, if it is another one now.
    pub prefix: Option<PathBuf>,
}

impl StateDb {
    /// Determines the stack after an undo of `operation`, by default of the last one. A checkpoint
    /// since which nothing has changed does not count as the last.
    pub fn plan_undo(
        &self,
        operation: Option<OperationId>,
    ) -> Result<std::result::Result<UndoPlan, NotUndoable>> {
        const DOING: &str = "plan an undo";
        self.read_rows(DOING, |conn| self.plan_undo_in(conn, operation, DOING))
    }

    /// Returns whether the last operation is a checkpoint since which nothing has changed.
    pub fn is_at_checkpoint(&self) -> Result<bool> {
        const DOING: &str = "find the last checkpoint";
        self.read_rows(DOING, |conn| {
            let stack = recorded_of(&self.stack_in(conn, DOING)?);
            match self.operations_in(conn, DOING)?.last() {
                Some(last) if last.kind == OperationKind::Checkpoint => {
                    self.changed_nothing(conn, last, &stack, DOING)
                }
                _ => Ok(false),
            }
        })
    }

    /// Makes the stack of `plan` current. `fresh` (see [`rotate`](Self::rotate)) becomes the
    /// writable layer if the plan keeps none. Other uppers go to the trash if they have changes
    /// that no image contains.
    pub fn undo(
        &self,
        plan: &UndoPlan,
        fresh: Option<LayerId>,
        note: &NewRevision,
    ) -> Result<OperationId> {
        const DOING: &str = "undo an operation";
        self.write(DOING, |conn| {
            let now = self.plan_undo_in(conn, Some(plan.operation.id), DOING)?;
            if now.as_ref() != Ok(plan) {
                return Err(self.conflict(DOING, "the layers have changed meanwhile"));
            }
            let Some(head) = self.head_in(conn, DOING)? else {
                return Err(self.conflict(DOING, "the environment is not initialised"));
            };
            let stack = self.stack_in(conn, DOING)?;
            let op = &plan.operation;
            let shows_same = !plan.kept.is_empty();
            let has_newer = self.have_rows(conn, &plan.kept, DOING)?;
            let mut before = Vec::new();
            let wanted: HashSet<LayerId> = uppers_of(&plan.lower).collect();
            for layer in &stack {
                if plan.kept.contains(&layer.id) {
                    continue;
                }
                if matches!(layer.part, StackPart::Image(_)) || wanted.contains(&layer.id) {
                    before.extend(recorded_of(&[*layer]));
                    continue;
                }
                let is_empty = self.layer_is_empty_in(conn, layer.id, DOING)?;
                let role = match shows_same || is_empty {
                    true => LayerRole::Retired,
                    false => LayerRole::Trash,
                };
                self.leave_stack(conn, *layer, role, DOING)?;
                if !is_empty {
                    before.extend(recorded_of(&[*layer]));
                }
            }
            let mut order = plan.kept.clone();
            order.extend(self.place_recorded(conn, &stack, &plan.lower, DOING)?);
            match fresh {
                Some(fresh) if plan.kept.is_empty() => {
                    self.push_writable(conn, fresh, &mut order, DOING)?;
                }
                None if shows_same => self.set_order(conn, &order, DOING)?,
                _ => return Err(self.conflict(DOING, "it needs one writable layer")),
            }
            let old_prefix = match &plan.prefix {
                Some(prefix) => self.replace_prefix_in(conn, prefix, DOING)?,
                None => None,
            };
            conn.execute("UPDATE head SET revision = ?1", [op.head_before.0])
                .map_err(|e| self.sql(DOING, e))?;
            let new = NewOperation {
                kind: OperationKind::Undo,
                undoes: Some(op.id),
                shows_same,
                has_newer,
                head_before: head,
                prefix: old_prefix.as_deref(),
                before: &before,
                after: &plan.lower,
                note,
            };
            self.record(conn, &new, DOING)
        })
    }

    /// Puts recorded layers back into the stack, without a position yet. Returns them in order.
    pub(super) fn place_recorded(
        &self,
        conn: &Connection,
        stack: &[StackLayer],
        layers: &[RecordedLayer],
        doing: &'static str,
    ) -> Result<Vec<LayerId>> {
        for layer in stack {
            if matches!(layer.part, StackPart::Image(_)) {
                self.leave_stack(conn, *layer, LayerRole::Retired, doing)?;
            }
        }
        let mut order = Vec::new();
        for layer in layers {
            order.push(match layer {
                RecordedLayer::Image(image) => {
                    let layer = self.take_layer(conn, doing)?;
                    self.insert_image_layer(conn, layer, *image, UNPLACED, doing)?;
                    layer
                }
                RecordedLayer::Upper(layer) => {
                    conn.execute(
                        "UPDATE layer SET role = 'frozen', position = ?2 - id WHERE id = ?1",
                        params![layer.0, UNPLACED],
                    )
                    .map_err(|e| self.sql(doing, e))?;
                    *layer
                }
            });
        }
        Ok(order)
    }

    fn plan_undo_in(
        &self,
        conn: &Connection,
        wanted: Option<OperationId>,
        doing: &'static str,
    ) -> Result<std::result::Result<UndoPlan, NotUndoable>> {
        let mut operations = self.operations_in(conn, doing)?;
        let stack = recorded_of(&self.stack_in(conn, doing)?);
        let current = self.prefix_in(conn, doing)?;
        let mut is_last = true;
        // The path before an operation is that before the first move that is not older.
        let mut prefix = None;
        let found = loop {
            let Some(operation) = operations.pop() else {
                return Ok(Err(NotUndoable::Unknown));
            };
            prefix = operation.prefix.clone().or(prefix);
            match wanted {
                Some(id) if operation.id == id => break operation,
                Some(_) => is_last &= self.changed_nothing(conn, &operation, &stack, doing)?,
                None if self.changed_nothing(conn, &operation, &stack, doing)? => {}
                None => break operation,
            }
        };
        if !found.is_complete {
            return Ok(Err(NotUndoable::Removed));
        }
        let mut kept = Vec::new();
        if let Some(above) = stack.strip_suffix(found.after.as_slice())
            && is_last
            && found.shows_same
            && uppers_of(above).count() == above.len()
        {
            kept.extend(uppers_of(above));
        }
        if kept.is_empty() && found.has_newer {
            return Ok(Err(NotUndoable::NotLast));
        }
        let mut lower = Vec::new();
        for layer in &found.before {
            match layer {
                RecordedLayer::Upper(upper) if kept.contains(upper) => {
                    let what = "layer that is above itself".to_owned();
                    return Err(self.bad_row("operation_layer", what));
                }
                RecordedLayer::Upper(upper) if self.layer_is_empty_in(conn, *upper, doing)? => {}
                _ => lower.push(*layer),
            }
        }
        Ok(Ok(UndoPlan {
            kept,
            lower,
            prefix: prefix.filter(|before| current.as_ref() != Some(before)),
            operation: found,
        }))
    }

    /// Returns true if an operation has not changed the view and does not stand in the way of those
    /// before it: it set a trial aside, is a repair, or is a checkpoint since which nothing has
    /// changed.
    fn changed_nothing(
        &self,
        conn: &Connection,
        operation: &Operation,
        stack: &[RecordedLayer],
        doing: &'static str,
    ) -> Result<bool> {
        if operation.kind.is_passed_over() {
            return Ok(true);
        }
        let above = stack.strip_suffix(operation.after.as_slice());
        let Some(above) = above.filter(|_| operation.kind == OperationKind::Checkpoint) else {
            return Ok(false);
        };
        let above: Vec<LayerId> = uppers_of(above).collect();
        Ok(!operation.after.is_empty() && !self.have_rows(conn, &above, doing)?)
    }
}
