//! The log of operations on the stack. `undo` takes them back.
//!
//! An operation replaces the lower part of the stack, its *layers before*, by its *layers after*.
//! Uppers above them are those that changes were made in since. Both parts stay in the log for as
//! long as their layers exist, and layers that the log refers to are kept ([`StateDb::recorded`]).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::Result;
use super::history::NewRevision;
use super::ids::{ImageId, LayerId, OperationId, RevisionId};
use super::rows::RowChange;
use super::stack::{StackLayer, StackPart};
use super::{StateDb, now, valid};

/// The number of operations that the log keeps.
const MOST_OPERATIONS: i64 = 1000;
/// More layers than any stack has.
const MOST_LAYERS: usize = 4096;

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Changes were committed.
    Commit,
    /// The environment got another prefix, in a commit.
    Relocate,
    /// All changes were discarded.
    Discard,
    /// The changes of some paths were discarded.
    DiscardPaths,
    /// Single paths were restored from a revision.
    RestorePaths,
    /// An earlier revision was restored.
    Rollback,
    /// The writable layer was frozen.
    Checkpoint,
    /// The changes of a trial were kept.
    Keep,
    /// The changes of a trial went to the trash: they could not be kept, or no decision was made.
    SetAside,
    /// Revisions of an archive were added.
    Import,
    /// Differences between rows and files were repaired. It cannot be taken back.
    Repair,
    /// Another operation was taken back.
    Undo,
}

impl OperationKind {
    /// Returns the stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            OperationKind::Commit => "commit",
            OperationKind::Relocate => "relocate",
            OperationKind::Discard => "discard",
            OperationKind::DiscardPaths => "discard-paths",
            OperationKind::RestorePaths => "restore-paths",
            OperationKind::Rollback => "rollback",
            OperationKind::Checkpoint => "checkpoint",
            OperationKind::Keep => "keep",
            OperationKind::SetAside => "set-aside",
            OperationKind::Import => "import",
            OperationKind::Repair => "repair",
            OperationKind::Undo => "undo",
        }
    }

    /// Returns true if an operation of this kind never stands in the way of those before it.
    pub fn is_passed_over(self) -> bool {
        matches!(self, OperationKind::SetAside | OperationKind::Repair)
    }

    fn from_name(name: &str) -> Option<OperationKind> {
        Some(match name {
            "commit" => OperationKind::Commit,
            "relocate" => OperationKind::Relocate,
            "discard" => OperationKind::Discard,
            "discard-paths" => OperationKind::DiscardPaths,
            "restore-paths" => OperationKind::RestorePaths,
            "rollback" => OperationKind::Rollback,
            "checkpoint" => OperationKind::Checkpoint,
            "keep" => OperationKind::Keep,
            "set-aside" => OperationKind::SetAside,
            "import" => OperationKind::Import,
            "repair" => OperationKind::Repair,
            "undo" => OperationKind::Undo,
            _ => return None,
        })
    }
}

/// A layer of a recorded stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordedLayer {
    /// An upper.
    Upper(LayerId),
    /// An image.
    Image(ImageId),
}

impl RecordedLayer {
    /// Returns the values of the columns `layer` and `image`.
    pub(super) fn columns(self) -> (Option<i64>, Option<i64>) {
        match self {
            RecordedLayer::Upper(layer) => (Some(layer.0), None),
            RecordedLayer::Image(image) => (None, Some(image.0)),
        }
    }
}

/// An operation of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The operation.
    pub id: OperationId,
    /// What it did.
    pub kind: OperationKind,
    /// For an undo, the operation that it took back.
    pub undoes: Option<OperationId>,
    /// Whether the view showed the same before and after it.
    pub shows_same: bool,
    /// For one that shows the same, whether uppers above its layers had changes. They were not
    /// recorded, because they may have changed since.
    pub has_newer: bool,
    /// The current revision before it.
    pub head_before: RevisionId,
    /// The current revision after it.
    pub head_after: RevisionId,
    /// For one that changed the path where the environment is mounted, the path before it.
    pub prefix: Option<PathBuf>,
    /// Whether the layers before it, and the revision, still exist.
    pub is_complete: bool,
    /// The layers that it replaced, top first. Empty if they are not recorded or were removed.
    pub before: Vec<RecordedLayer>,
    /// The layers that it put in their place, without the new writable one.
    pub after: Vec<RecordedLayer>,
    /// Message, possibly empty.
    pub message: String,
    /// When, in seconds since 1970.
    pub time: i64,
    /// Name of the user.
    pub user: String,
    /// Name of the host.
    pub host: String,
    /// The command line.
    pub command: String,
}

/// An operation to be added to the log.
pub(super) struct NewOperation<'a> {
    pub(super) kind: OperationKind,
    pub(super) undoes: Option<OperationId>,
    pub(super) shows_same: bool,
    pub(super) has_newer: bool,
    pub(super) head_before: RevisionId,
    pub(super) prefix: Option<&'a Path>,
    pub(super) before: &'a [RecordedLayer],
    pub(super) after: &'a [RecordedLayer],
    pub(super) note: &'a NewRevision,
}

impl<'a> NewOperation<'a> {
    /// Returns an operation that changed what the view shows, without layers.
    pub(super) fn of(
        kind: OperationKind,
        head_before: RevisionId,
        note: &'a NewRevision,
    ) -> NewOperation<'a> {
        NewOperation {
            kind,
            undoes: None,
            shows_same: false,
            has_newer: false,
            head_before,
            prefix: None,
            before: &[],
            after: &[],
            note,
        }
    }
}

const OPERATION_COLUMNS: &str = "id, kind, undoes, shows_same, has_newer, before, after, message, time, user, host, command, \
     prefix";

impl StateDb {
    /// Returns the log of operations, oldest first.
    pub fn operations(&self) -> Result<Vec<Operation>> {
        const DOING: &str = "read the operations";
        self.read(DOING, |conn| self.operations_in(conn, DOING))
    }

    /// Returns the uppers that the log refers to.
    pub fn recorded(&self) -> Result<HashSet<LayerId>> {
        let rows = self.select(
            "read the layers of operations",
            "SELECT DISTINCT layer FROM operation_layer WHERE layer IS NOT NULL",
            |row| row.get(0).map(LayerId),
        )?;
        Ok(rows.into_iter().collect())
    }

    /// Returns true if an operation or a trial refers to a layer, so that it must not change.
    pub fn is_recorded(&self, layer: LayerId) -> Result<bool> {
        const DOING: &str = "read the layers of operations";
        self.read(DOING, |conn| {
            let is_recorded = is_recorded_in(conn, layer).map_err(|e| self.sql(DOING, e))?;
            Ok(is_recorded || self.is_below_trial_in(conn, layer, DOING)?)
        })
    }

    /// Forgets the layers of all operations that refer to one of these, which are about to be
    /// removed or changed. The operations stay in the log, but cannot be undone.
    pub fn forget_recorded(&self, layers: &[LayerId]) -> Result<()> {
        const DOING: &str = "forget the layers of operations";
        if layers.is_empty() {
            return Ok(());
        }
        self.write_without_room(DOING, |conn| {
            layers
                .iter()
                .try_for_each(|layer| forget_recorded_in(conn, *layer))
                .map_err(|e| self.sql(DOING, e))
        })
    }

    /// Keeps the committed layers of the newest `commits` commits only.
    pub fn limit_recorded(&self, commits: u32) -> Result<()> {
        const DOING: &str = "forget the layers of old commits";
        self.write_without_room(DOING, |conn| {
            conn.execute(
                "DELETE FROM operation_layer WHERE operation <= \
                 (SELECT id FROM operation WHERE kind = 'commit' ORDER BY id DESC \
                  LIMIT 1 OFFSET ?1) \
                 AND operation IN (SELECT operation FROM operation_layer \
                 JOIN layer ON layer.id = operation_layer.layer WHERE layer.role = 'retired')",
                [commits],
            )
            .map(drop)
            .map_err(|e| self.sql(DOING, e))
        })
    }

    /// Freezes the writable layer, unless it is empty, and notes the stack, so that an undo goes
    /// back to it. `fresh` is as in [`rotate`](Self::rotate); `None` if the layer is empty.
    pub fn checkpoint_layer(
        &self,
        expected: LayerId,
        fresh: Option<LayerId>,
        note: &NewRevision,
    ) -> Result<OperationId> {
        const DOING: &str = "make a checkpoint";
        self.write(DOING, |conn| {
            if let Some(fresh) = fresh {
                self.rotate_in(conn, expected, fresh, DOING)?;
            }
            let stack = self.stack_in(conn, DOING)?;
            if stack
                .first()
                .is_none_or(|top| top.part != StackPart::Writable)
            {
                return Err(self.conflict(DOING, "the stack has no writable layer"));
            }
            let below = recorded_of(stack.get(1..).unwrap_or_default());
            let head = self.head_in(conn, DOING)?;
            let Some(head) = head else {
                return Err(self.conflict(DOING, "the environment is not initialised"));
            };
            let new = NewOperation {
                before: &below,
                after: &below,
                ..NewOperation::of(OperationKind::Checkpoint, head, note)
            };
            self.record(conn, &new, DOING)
        })
    }

    /// Changes rows of the writable layer in an operation on single paths, and notes the stack
    /// below that layer, to which an undo goes back.
    pub fn change_paths(
        &self,
        layer: LayerId,
        changes: &[RowChange<'_>],
        kind: OperationKind,
        note: &NewRevision,
    ) -> Result<OperationId> {
        const DOING: &str = "change paths";
        self.write(DOING, |conn| {
            let stack = self.stack_in(conn, DOING)?;
            let top = stack.first().filter(|top| top.part == StackPart::Writable);
            if top.is_none_or(|top| top.id != layer) {
                return Err(self.conflict(DOING, format!("layer {layer} is not writable")));
            }
            let Some(head) = self.head_in(conn, DOING)? else {
                return Err(self.conflict(DOING, "the environment is not initialised"));
            };
            self.apply_in(conn, layer, changes, DOING)?;
            let below = recorded_of(stack.get(1..).unwrap_or_default());
            let new = NewOperation {
                before: &below,
                after: &below,
                ..NewOperation::of(kind, head, note)
            };
            self.record(conn, &new, DOING)
        })
    }

    /// Adds a repair to the log of operations.
    pub fn note_repair(&self, note: &NewRevision) -> Result<OperationId> {
        const DOING: &str = "note a repair";
        self.write(DOING, |conn| {
            let Some(head) = self.head_in(conn, DOING)? else {
                return Err(self.conflict(DOING, "the environment is not initialised"));
            };
            let new = NewOperation::of(OperationKind::Repair, head, note);
            self.record(conn, &new, DOING)
        })
    }

    /// Returns true if one of the layers has rows.
    pub(super) fn have_rows(
        &self,
        conn: &Connection,
        layers: &[LayerId],
        doing: &'static str,
    ) -> Result<bool> {
        for layer in layers {
            if !self.layer_is_empty_in(conn, *layer, doing)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns true if all layers before an operation, and its revision, still exist.
    fn exist(&self, conn: &Connection, operation: &Operation, doing: &'static str) -> Result<bool> {
        if operation.kind == OperationKind::Repair {
            return Ok(false);
        }
        let has = |sql: &str, id: i64| {
            conn.prepare_cached(sql)
                .and_then(|mut s| s.query_row([id], |row| row.get::<_, bool>(0)))
                .map_err(|e| self.sql(doing, e))
        };
        for layer in &operation.before {
            let exists = match layer {
                RecordedLayer::Upper(layer) => has(
                    "SELECT EXISTS (SELECT 1 FROM layer WHERE id = ?1 AND kind = 'upper' \
                     AND role <> 'writable')",
                    layer.0,
                )?,
                RecordedLayer::Image(image) => {
                    has("SELECT EXISTS (SELECT 1 FROM image WHERE id = ?1)", image.0)?
                }
            };
            if !exists {
                return Ok(false);
            }
        }
        has(
            "SELECT EXISTS (SELECT 1 FROM revision WHERE id = ?1)",
            operation.head_before.0,
        )
    }

    /// Adds an operation to the log. The current revision is the one after it.
    pub(super) fn record(
        &self,
        conn: &Connection,
        new: &NewOperation<'_>,
        doing: &'static str,
    ) -> Result<OperationId> {
        let fail = |e| self.sql(doing, e);
        let after = self.head_in(conn, doing)?.unwrap_or(new.head_before);
        conn.execute(
            "INSERT INTO operation (kind, undoes, shows_same, has_newer, before, after, message, \
             time, user, host, command, prefix) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
            params![
                new.kind.as_str(),
                new.undoes.map(|id| id.0),
                new.shows_same,
                new.has_newer,
                new.head_before.0,
                after.0,
                new.note.message,
                now(),
                new.note.user,
                new.note.host,
                new.note.command,
                new.prefix.map(|prefix| prefix.as_os_str().as_bytes()),
            ],
        )
        .map_err(fail)?;
        let id = OperationId(conn.last_insert_rowid());
        for (side, layers) in [("before", new.before), ("after", new.after)] {
            for (position, layer) in layers.iter().enumerate() {
                let (upper, image) = layer.columns();
                conn.prepare_cached("INSERT INTO operation_layer VALUES (?1,?2,?3,?4,?5)")
                    .and_then(|mut statement| {
                        statement.execute(params![id.0, side, position as i64, upper, image])
                    })
                    .map_err(fail)?;
            }
        }
        let oldest = id.0.saturating_sub(MOST_OPERATIONS);
        conn.execute(
            "DELETE FROM operation_layer WHERE operation <= ?1",
            [oldest],
        )
        .and_then(|_| conn.execute("DELETE FROM operation WHERE id <= ?1", [oldest]))
        .map_err(fail)?;
        Ok(id)
    }

    pub(super) fn operations_in(
        &self,
        conn: &Connection,
        doing: &'static str,
    ) -> Result<Vec<Operation>> {
        let fail = |e| self.sql(doing, e);
        let mut operations = Vec::new();
        let mut statement = conn
            .prepare_cached(&format!(
                "SELECT {OPERATION_COLUMNS} FROM operation ORDER BY id"
            ))
            .map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        while let Some(row) = rows.next().map_err(fail)? {
            let operation = operation_of(row)
                .map_err(fail)?
                .map_err(|what| self.bad_row("operation", what))?;
            operations.push(operation);
        }
        for operation in &mut operations {
            operation.before = self.recorded_in(conn, operation.id, "before", doing)?;
            operation.after = self.recorded_in(conn, operation.id, "after", doing)?;
            operation.is_complete =
                !operation.before.is_empty() && self.exist(conn, operation, doing)?;
        }
        Ok(operations)
    }

    fn recorded_in(
        &self,
        conn: &Connection,
        operation: OperationId,
        side: &str,
        doing: &'static str,
    ) -> Result<Vec<RecordedLayer>> {
        let fail = |e| self.sql(doing, e);
        let bad = |what: String| Err(self.bad_row("operation_layer", what));
        let mut statement = conn
            .prepare_cached(
                "SELECT layer, image FROM operation_layer WHERE operation = ?1 AND side = ?2 \
                 ORDER BY position",
            )
            .map_err(fail)?;
        let mut rows = statement.query(params![operation.0, side]).map_err(fail)?;
        let (mut layers, mut seen) = (Vec::new(), HashSet::new());
        while let Some(row) = rows.next().map_err(fail)? {
            let upper: Option<i64> = row.get(0).map_err(fail)?;
            let image: Option<i64> = row.get(1).map_err(fail)?;
            let layer = match (upper, image) {
                (Some(layer), None) => {
                    let layer = LayerId(layer);
                    if let Err(what) = valid::layer(layer) {
                        return bad(what);
                    }
                    RecordedLayer::Upper(layer)
                }
                (None, Some(image)) => RecordedLayer::Image(ImageId(image)),
                _ => return bad("layer and image".to_owned()),
            };
            if !seen.insert(layer) || layers.len() >= MOST_LAYERS {
                return bad(format!("layers of operation {operation}"));
            }
            let is_below_an_image = layers
                .iter()
                .any(|above| matches!(above, RecordedLayer::Image(_)));
            if is_below_an_image && matches!(layer, RecordedLayer::Upper(_)) {
                return bad(format!("order of the layers of operation {operation}"));
            }
            layers.push(layer);
        }
        Ok(layers)
    }
}

/// Returns layers of the stack as the log records them.
pub(super) fn recorded_of(stack: &[StackLayer]) -> Vec<RecordedLayer> {
    let recorded = stack.iter().map(|layer| match layer.part {
        StackPart::Image(image) => RecordedLayer::Image(image),
        StackPart::Writable | StackPart::Frozen => RecordedLayer::Upper(layer.id),
    });
    recorded.collect()
}

pub(super) fn uppers_of(layers: &[RecordedLayer]) -> impl Iterator<Item = LayerId> + '_ {
    layers.iter().filter_map(|layer| match layer {
        RecordedLayer::Upper(layer) => Some(*layer),
        RecordedLayer::Image(_) => None,
    })
}

/// Forgets the layers of all operations that refer to a layer.
pub(super) fn forget_recorded_in(conn: &Connection, layer: LayerId) -> rusqlite::Result<()> {
    conn.execute(
        "DELETE FROM operation_layer WHERE operation IN \
         (SELECT operation FROM operation_layer WHERE layer = ?1)",
        [layer.0],
    )
    .map(drop)
}

/// Removes all operations.
pub(super) fn clear_in(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM operation_layer", [])?;
    conn.execute("DELETE FROM operation", []).map(drop)
}

/// Returns true if an operation refers to a layer.
pub(super) fn is_recorded_in(conn: &Connection, layer: LayerId) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT 1 FROM operation_layer WHERE layer = ?1 LIMIT 1",
        [layer.0],
        |_| Ok(()),
    )
    .optional()
    .map(|found| found.is_some())
}

/// Reads a row of [`OPERATION_COLUMNS`]; the inner error describes a bad value.
fn operation_of(row: &Row<'_>) -> rusqlite::Result<std::result::Result<Operation, String>> {
    let kind: String = row.get(1)?;
    let Some(kind) = OperationKind::from_name(&kind) else {
        return Ok(Err(format!("kind {kind:?}")));
    };
    let prefix = row.get::<_, Option<Vec<u8>>>(12)?;
    let prefix = prefix.map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes)));
    if let Some(Err(what)) = prefix.as_deref().map(valid::prefix) {
        return Ok(Err(what));
    }
    Ok(Ok(Operation {
        prefix,
        id: OperationId(row.get(0)?),
        kind,
        undoes: row.get::<_, Option<i64>>(2)?.map(OperationId),
        shows_same: row.get(3)?,
        has_newer: row.get(4)?,
        head_before: RevisionId(row.get(5)?),
        head_after: RevisionId(row.get(6)?),
        is_complete: false,
        before: Vec::new(),
        after: Vec::new(),
        message: row.get(7)?,
        time: row.get(8)?,
        user: row.get(9)?,
        host: row.get(10)?,
        command: row.get(11)?,
    }))
}
