//! The transactions that change the stack.
//!
//! Each function is one transaction and durable when it returns: a crash leaves the stack before it
//! or after it.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::StateDb;
use super::error::Result;
use super::history::{NewRevision, RevisionKind};
use super::ids::{ImageId, LayerId, RevisionId};
use super::images::NewImage;
use super::operations::{self, NewOperation, OperationKind, RecordedLayer, recorded_of};
use super::stack::{LayerRole, StackLayer, StackPart, UNPLACED};

/// The initial state of a new environment.
#[derive(Clone, Debug)]
pub struct InitEnvironment {
    /// Its identity, which a rename does not change.
    pub uuid: String,
    /// The identity of its history, if it is a copy of another environment; otherwise its own.
    pub origin: Option<String>,
    /// Where it is mounted.
    pub prefix: PathBuf,
    /// Its images, at least one, top first. The first becomes the image of the first revision.
    pub images: Vec<NewImage>,
    /// Import or create.
    pub kind: RevisionKind,
    /// The author and message.
    pub revision: NewRevision,
}

/// The ids of a new environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initialised {
    /// The writable layer. The caller creates its directory before the environment is used.
    pub writable: LayerId,
    /// The first revision.
    pub revision: RevisionId,
}

/// The publishing transaction of a commit.
#[derive(Clone, Debug)]
pub struct PublishCommit {
    /// The revision that the new image is based on. It must still be current.
    pub parent: RevisionId,
    /// The new image. Its file and the name of the file are complete, checked and durable.
    pub image: NewImage,
    /// The layers whose content the image holds, all read-only and adjacent in the stack: frozen
    /// uppers and the image below them.
    pub replaces: Vec<LayerId>,
    /// The path where the environment will be mounted, if it changes.
    pub prefix: Option<PathBuf>,
    /// The author and message.
    pub revision: NewRevision,
    /// The place of the commit in the history.
    pub place: CommitPlace,
}

/// The place of a commit in the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitPlace {
    /// A new revision follows the current one.
    #[default]
    Next,
    /// The commit replaces the revision with which the environment was created empty, if that is
    /// the only one. Otherwise as `Next`.
    First,
}

/// The result of a rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The new revision, with the image of the old one.
    pub revision: RevisionId,
    /// The uppers that were discarded.
    pub trashed: Vec<LayerId>,
}

impl StateDb {
    /// Creates the first revision and the stack of a new database.
    pub fn init_environment(&self, init: &InitEnvironment) -> Result<Initialised> {
        const DOING: &str = "initialise the environment";
        self.write(DOING, |conn| {
            if self.head_in(conn, DOING)?.is_some() {
                return Err(self.conflict(DOING, "it is already initialised"));
            }
            let Some(first) = init.images.first() else {
                return Err(self.conflict(DOING, "it has no image"));
            };
            let origin = init.origin.as_deref();
            self.set_identity_in(conn, &init.uuid, origin, &init.prefix, DOING)?;
            let writable = self.take_layer(conn, DOING)?;
            self.insert_upper(conn, writable, 0, DOING)?;
            let mut next_ino = 2;
            for (image, position) in init.images.iter().zip(1..) {
                self.insert_image(conn, image, DOING)?;
                let layer = self.take_layer(conn, DOING)?;
                self.insert_image_layer(conn, layer, image.id, position, DOING)?;
                next_ino = next_ino.max(image.id_map.max_ino().map_or(2, |ino| ino.0 + 1));
            }
            self.raise(conn, "ino", next_ino, DOING)?;
            let revision =
                self.append_revision(conn, init.kind, first.id, None, &init.revision, DOING)?;
            Ok(Initialised { writable, revision })
        })
    }

    /// Freezes the writable layer and puts a fresh one on top.
    ///
    /// `expected` must be the writable layer now; `fresh` comes from
    /// [`reserve_layer`](Self::reserve_layer) and its directory exists and is durable.
    pub fn rotate(&self, expected: LayerId, fresh: LayerId) -> Result<()> {
        const DOING: &str = "rotate the writable layer";
        self.write(DOING, |conn| self.rotate_in(conn, expected, fresh, DOING))
    }

    pub(super) fn rotate_in(
        &self,
        conn: &Connection,
        expected: LayerId,
        fresh: LayerId,
        doing: &'static str,
    ) -> Result<()> {
        let stack = self.stack_in(conn, doing)?;
        match stack.first() {
            Some(top) if top.id == expected && top.part == StackPart::Writable => {}
            Some(top) => {
                let detail = format!("layer {} is on top, not {expected}", top.id);
                return Err(self.conflict(doing, detail));
            }
            None => return Err(self.conflict(doing, "the stack is empty")),
        }
        let mut order: Vec<LayerId> = stack.iter().map(|layer| layer.id).collect();
        self.set_role(conn, expected, LayerRole::Frozen, doing)?;
        self.push_writable(conn, fresh, &mut order, doing)
    }

    /// Reverts a rotation: `fresh`, which has no changes, leaves the stack, and the frozen layer
    /// below it becomes writable again.
    pub fn unrotate(&self, fresh: LayerId) -> Result<LayerId> {
        const DOING: &str = "revert a rotation";
        self.write(DOING, |conn| {
            let stack = self.stack_in(conn, DOING)?;
            let (top, below) = match (stack.first(), stack.get(1)) {
                (Some(top), Some(below)) if top.id == fresh && below.part == StackPart::Frozen => {
                    (*top, *below)
                }
                _ => {
                    return Err(self.conflict(
                        DOING,
                        format!("layer {fresh} is not on top of a frozen one"),
                    ));
                }
            };
            if !self.layer_is_empty_in(conn, fresh, DOING)? {
                return Err(self.conflict(DOING, format!("layer {fresh} has changes")));
            }
            let order: Vec<LayerId> = stack.iter().skip(1).map(|layer| layer.id).collect();
            self.leave_stack(conn, top, LayerRole::Retired, DOING)?;
            self.set_role(conn, below.id, LayerRole::Writable, DOING)?;
            self.set_order(conn, &order, DOING)?;
            Ok(below.id)
        })
    }

    /// Replaces layers of the stack with a new image, and makes a new revision current.
    ///
    /// Replaced uppers become retired. The caller removes their directories and rows after this.
    pub fn publish_commit(&self, publish: &PublishCommit) -> Result<RevisionId> {
        const DOING: &str = "publish the commit";
        self.write(DOING, |conn| {
            let head = self.head_in(conn, DOING)?;
            if head != Some(publish.parent) {
                let detail = match head {
                    Some(head) => format!(
                        "revision {head} is current, but the image builds on {}",
                        publish.parent
                    ),
                    None => "the environment is not initialised".to_owned(),
                };
                return Err(self.conflict(DOING, detail));
            }
            let stack = self.stack_in(conn, DOING)?;
            let replaced = |layer: &StackLayer| publish.replaces.contains(&layer.id);
            let Some(first) = stack.iter().position(replaced) else {
                return Err(self.conflict(DOING, "it replaces nothing in the stack"));
            };
            let found = stack.iter().skip(first).take_while(|layer| replaced(layer));
            let found: Vec<StackLayer> = found.copied().collect();
            let mut wanted = publish.replaces.clone();
            wanted.sort_unstable();
            wanted.dedup();
            if found.len() != wanted.len() || first == 0 {
                let detail = "the layers it replaces are not adjacent and read-only in the stack";
                return Err(self.conflict(DOING, detail));
            }
            // The current image must be among them: otherwise the stack would hold two images of
            // the history.
            let current = self.revision_in(conn, publish.parent, DOING)?;
            let replaces_it = |current: ImageId| {
                let mut parts = found.iter().map(|layer| layer.part);
                parts.any(|part| part == StackPart::Image(current))
            };
            if !current
                .as_ref()
                .is_some_and(|revision| replaces_it(revision.image))
            {
                return Err(self.conflict(DOING, "it does not replace the current image"));
            }

            self.insert_image(conn, &publish.image, DOING)?;
            if let Some(max) = publish.image.id_map.max_ino() {
                self.raise(conn, "ino", max.0 + 1, DOING)?;
            }
            let layer = self.take_layer(conn, DOING)?;
            let mut order: Vec<LayerId> = stack.iter().map(|layer| layer.id).collect();
            order.splice(first..first + found.len(), [layer]);
            for old in &found {
                self.leave_stack(conn, *old, LayerRole::Retired, DOING)?;
            }
            self.insert_image_layer(conn, layer, publish.image.id, UNPLACED, DOING)?;
            self.set_order(conn, &order, DOING)?;
            let old_prefix = match &publish.prefix {
                Some(prefix) => self.replace_prefix_in(conn, prefix, DOING)?,
                None => None,
            };
            let above = first;
            let (image, revision) = (publish.image.id, &publish.revision);
            if let Some(first) = current
                && publish.place == CommitPlace::First
                && first.kind == RevisionKind::Create
                && self.is_only_revision(conn, DOING)?
            {
                self.replace_revision(conn, &first, image, revision, DOING)?;
                // The log begins with the environment: its parts while it was created are gone.
                operations::clear_in(conn).map_err(|e| self.sql(DOING, e))?;
                return Ok(first.id);
            }
            let above = stack.iter().take(above).map(|layer| layer.id);
            let above: Vec<LayerId> = above.collect();
            let has_newer = self.have_rows(conn, &above, DOING)?;
            let id =
                self.append_revision(conn, RevisionKind::Commit, image, None, revision, DOING)?;
            let (mut before, after) = (recorded_of(&found), [RecordedLayer::Image(image)]);
            if publish.prefix.is_some() {
                // There were no uncommitted changes: those in the uppers are its own.
                before.retain(|layer| matches!(layer, RecordedLayer::Image(_)));
            }
            let mut new = NewOperation {
                shows_same: true,
                has_newer,
                before: &before,
                after: &after,
                ..NewOperation::of(OperationKind::Commit, publish.parent, revision)
            };
            if publish.prefix.is_some() {
                (new.kind, new.prefix) = (OperationKind::Relocate, old_prefix.as_deref());
                (new.shows_same, new.has_newer) = (false, false);
            }
            self.record(conn, &new, DOING)?;
            Ok(id)
        })
    }

    /// Changes the path where the environment is mounted, and ends a relocation: no file contains
    /// the old path, so there is no new revision. There are no uncommitted changes.
    pub fn set_prefix(&self, prefix: &Path, note: &NewRevision) -> Result<()> {
        const DOING: &str = "change the prefix";
        self.write(DOING, |conn| {
            let old = self.replace_prefix_in(conn, prefix, DOING)?;
            let (Some(old), Some(head)) = (old, self.head_in(conn, DOING)?) else {
                return Ok(());
            };
            let mut images = recorded_of(&self.stack_in(conn, DOING)?);
            images.retain(|layer| matches!(layer, RecordedLayer::Image(_)));
            let new = NewOperation {
                prefix: Some(&old),
                before: &images,
                after: &images,
                ..NewOperation::of(OperationKind::Relocate, head, note)
            };
            self.record(conn, &new, DOING).map(drop)
        })
    }

    /// Discards all changes since the current revision: every upper goes to the trash, and `fresh`
    /// (see [`rotate`](Self::rotate)) becomes the writable layer. With a note, an undo can restore
    /// them.
    ///
    /// Returns the uppers that were moved to the trash.
    pub fn discard_all(&self, fresh: LayerId, note: Option<&NewRevision>) -> Result<Vec<LayerId>> {
        const DOING: &str = "discard the changes";
        self.write_without_room(DOING, |conn| {
            let stack = self.stack_in(conn, DOING)?;
            if stack.is_empty() {
                return Err(self.conflict(DOING, "the stack is empty"));
            }
            let (trashed, mut order) = self.trash_uppers(conn, &stack, DOING)?;
            self.push_writable(conn, fresh, &mut order, DOING)?;
            if let (Some(note), Some(head)) = (note, self.head_in(conn, DOING)?) {
                let before = recorded_of(&stack);
                let is_image = |layer: &&RecordedLayer| matches!(layer, RecordedLayer::Image(_));
                let after: Vec<RecordedLayer> = before.iter().filter(is_image).copied().collect();
                let new = NewOperation {
                    before: &before,
                    after: &after,
                    ..NewOperation::of(OperationKind::Discard, head, note)
                };
                self.record(conn, &new, DOING)?;
            }
            Ok(trashed)
        })
    }

    /// Reverts a relocation that did not end: every upper is retired, since all changes in it are
    /// its own, and `fresh` (see [`rotate`](Self::rotate)) becomes the writable layer.
    pub fn revert_relocation(&self, fresh: LayerId) -> Result<()> {
        const DOING: &str = "revert the relocation";
        self.write_without_room(DOING, |conn| {
            let mut order = Vec::new();
            for layer in self.stack_in(conn, DOING)? {
                match layer.part {
                    StackPart::Image(_) => order.push(layer.id),
                    StackPart::Writable | StackPart::Frozen => {
                        self.leave_stack(conn, layer, LayerRole::Retired, DOING)?;
                    }
                }
            }
            self.push_writable(conn, fresh, &mut order, DOING)?;
            self.set_facts_in(conn, "relocating = 0", [], DOING)
        })
    }

    /// Restores an earlier revision, as a new revision with the same image. All uppers go to
    /// the trash, and `fresh` (see [`rotate`](Self::rotate)) becomes the writable layer.
    pub fn rollback_to(
        &self,
        target: RevisionId,
        fresh: LayerId,
        revision: &NewRevision,
    ) -> Result<RolledBack> {
        const DOING: &str = "roll back";
        self.write_without_room(DOING, |conn| {
            let Some(target) = self.revision_in(conn, target, DOING)? else {
                return Err(self.conflict(DOING, format!("there is no revision {target}")));
            };
            let current = match self.head_in(conn, DOING)? {
                Some(head) => self.revision_in(conn, head, DOING)?,
                None => None,
            };
            let Some(current) = current else {
                return Err(self.conflict(DOING, "the environment is not initialised"));
            };
            let stack = self.stack_in(conn, DOING)?;
            let (trashed, mut order) = self.trash_uppers(conn, &stack, DOING)?;

            // The image of the history is the topmost one; below it may be shared bases.
            let is_current = |l: &&StackLayer| l.part == StackPart::Image(current.image);
            let Some(old) = stack.iter().find(is_current) else {
                let detail = format!("the current image {} is not in the stack", current.image);
                return Err(self.conflict(DOING, detail));
            };
            let at = order.iter().position(|id| *id == old.id).unwrap_or(0);
            order.retain(|id| *id != old.id);
            self.leave_stack(conn, *old, LayerRole::Retired, DOING)?;
            let layer = self.take_layer(conn, DOING)?;
            self.insert_image_layer(conn, layer, target.image, UNPLACED, DOING)?;
            order.insert(at, layer);
            self.push_writable(conn, fresh, &mut order, DOING)?;
            let note = revision;
            let revision = self.append_revision(
                conn,
                RevisionKind::Rollback,
                target.image,
                Some(target.id),
                note,
                DOING,
            )?;
            let after = self.stack_in(conn, DOING)?;
            let new = NewOperation {
                before: &recorded_of(&stack),
                after: &recorded_of(after.get(1..).unwrap_or_default()),
                ..NewOperation::of(OperationKind::Rollback, current.id, note)
            };
            self.record(conn, &new, DOING)?;
            Ok(RolledBack { revision, trashed })
        })
    }

    /// Deletes the rows of a layer that has left the stack, and then the layer. The caller has
    /// removed its directory.
    pub fn forget_layer(&self, layer: LayerId) -> Result<()> {
        const DOING: &str = "forget a layer";
        const CHUNK: i64 = 1000;
        loop {
            let deleted = self.write_without_room(DOING, |conn| {
                let in_stack: bool = conn
                    .prepare_cached(
                        "SELECT EXISTS (SELECT 1 FROM layer WHERE id = ?1 AND position IS NOT NULL)",
                    )
                    .and_then(|mut s| s.query_row([layer.0], |row| row.get(0)))
                    .map_err(|e| self.sql(DOING, e))?;
                if in_stack {
                    return Err(self.conflict(DOING, format!("layer {layer} is in the stack")));
                }
                let deleted = self.drop_rows_in(conn, layer, CHUNK, DOING)?;
                if deleted < CHUNK {
                    operations::forget_recorded_in(conn, layer)
                        .and_then(|()| {
                            conn.execute("DELETE FROM layer WHERE id = ?1", [layer.0])
                        })
                        .map_err(|e| self.sql(DOING, e))?;
                }
                Ok(deleted < CHUNK)
            })?;
            if deleted {
                return Ok(());
            }
        }
    }

    /// Moves every upper of the stack to the trash; returns them, and the images that remain.
    pub(super) fn trash_uppers(
        &self,
        conn: &Connection,
        stack: &[StackLayer],
        doing: &'static str,
    ) -> Result<(Vec<LayerId>, Vec<LayerId>)> {
        let (mut trashed, mut remain) = (Vec::new(), Vec::new());
        for layer in stack {
            match layer.part {
                StackPart::Image(_) => remain.push(layer.id),
                StackPart::Writable | StackPart::Frozen => {
                    self.leave_stack(conn, *layer, LayerRole::Trash, doing)?;
                    trashed.push(layer.id);
                }
            }
        }
        Ok((trashed, remain))
    }
}
