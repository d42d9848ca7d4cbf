//! Histories from archives: all of a new environment, or further revisions of one that has the same
//! origin. Revisions keep their numbers.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, params};

use super::error::Result;
use super::ids::LayerId;
use super::operations::{NewOperation, OperationKind, recorded_of};
use super::stack::{LayerRole, StackLayer, StackPart, UNPLACED};
use super::{LinksIn, NewImage, NewRevision, Revision, RevisionId, StateDb, Tag, valid};
use crate::object::Ino;

/// Checks the identity of a history.
pub(crate) fn check_origin(origin: &str) -> std::result::Result<(), String> {
    valid::uuid(origin.as_bytes()).map_err(|_| "the origin is no identity".to_owned())
}

/// Checks a path where an environment was mounted.
pub(crate) fn check_prefix(prefix: &Path) -> std::result::Result<(), String> {
    valid::prefix(prefix).map_err(|_| "the prefix is no absolute path".to_owned())
}

/// An image of a history. Its file is complete and durable.
#[derive(Clone, Debug)]
pub struct ImportedImage {
    /// Its row.
    pub image: NewImage,
    /// Link counts that differ from those in the image.
    pub links: BTreeMap<Ino, u32>,
}

/// A part of a history.
#[derive(Clone, Debug)]
pub struct NewHistory {
    /// New images.
    pub images: Vec<ImportedImage>,
    /// New revisions, with their numbers, oldest first.
    pub revisions: Vec<Revision>,
    /// Tags of these revisions, and of earlier ones. Existing tags stay where they are.
    pub tags: Vec<Tag>,
    /// The revision that becomes current.
    pub head: RevisionId,
}

/// What a new environment is told apart by.
#[derive(Clone, Copy, Debug)]
pub struct NewIdentity<'a> {
    /// Its identity.
    pub uuid: &'a str,
    /// That of its history.
    pub origin: &'a str,
    /// Where it is mounted.
    pub prefix: &'a Path,
}

impl StateDb {
    /// Initialises a new database with a history.
    pub fn init_history(&self, identity: &NewIdentity<'_>, history: &NewHistory) -> Result<()> {
        const DOING: &str = "initialise the environment";
        self.write(DOING, |conn| {
            if self.head_in(conn, DOING)?.is_some() {
                return Err(self.conflict(DOING, "it is already initialised"));
            }
            let NewIdentity {
                uuid,
                origin,
                prefix,
            } = *identity;
            self.set_identity_in(conn, uuid, Some(origin), prefix, DOING)?;
            let writable = self.take_layer(conn, DOING)?;
            self.insert_upper(conn, writable, 0, DOING)?;
            let head = self.insert_history(conn, history, DOING)?;
            let layer = self.take_layer(conn, DOING)?;
            self.insert_image_layer(conn, layer, head.image, 1, DOING)
        })
    }

    /// Adds revisions and makes one of them current, if `expected` is the current one. All uppers
    /// go to the trash, and `fresh` (see [`rotate`](Self::rotate)) becomes the writable layer.
    pub fn append_history(
        &self,
        expected: RevisionId,
        fresh: LayerId,
        history: &NewHistory,
        note: &NewRevision,
    ) -> Result<()> {
        const DOING: &str = "add revisions";
        self.write(DOING, |conn| {
            let current = match self.head_in(conn, DOING)? {
                Some(head) if head == expected => self.revision_in(conn, head, DOING)?,
                _ => None,
            };
            let Some(current) = current else {
                return Err(self.conflict(DOING, "another revision became current meanwhile"));
            };
            let stack = self.stack_in(conn, DOING)?;
            let (_, mut order) = self.trash_uppers(conn, &stack, DOING)?;
            let is_current = |layer: &&StackLayer| layer.part == StackPart::Image(current.image);
            let Some(old) = stack.iter().find(is_current) else {
                return Err(self.conflict(DOING, "the current image is not in the stack"));
            };
            let at = order.iter().position(|id| *id == old.id).unwrap_or(0);
            order.retain(|id| *id != old.id);
            self.leave_stack(conn, *old, LayerRole::Retired, DOING)?;
            let head = self.insert_history(conn, history, DOING)?;
            let layer = self.take_layer(conn, DOING)?;
            self.insert_image_layer(conn, layer, head.image, UNPLACED, DOING)?;
            order.insert(at, layer);
            self.push_writable(conn, fresh, &mut order, DOING)?;
            let after = self.stack_in(conn, DOING)?;
            let new = NewOperation {
                before: &recorded_of(&stack),
                after: &recorded_of(after.get(1..).unwrap_or_default()),
                ..NewOperation::of(OperationKind::Import, current.id, note)
            };
            self.record(conn, &new, DOING)?;
            Ok(())
        })
    }

    /// Inserts the rows of a history, and sets the current revision, which it returns.
    fn insert_history(
        &self,
        conn: &Connection,
        history: &NewHistory,
        doing: &'static str,
    ) -> Result<Revision> {
        let fail = |e| self.sql(doing, e);
        let mut next_ino = 2;
        for ImportedImage { image, links } in &history.images {
            self.insert_image(conn, image, doing)?;
            self.set_link_counts_in(conn, LinksIn::Image(image.id), links, doing)?;
            next_ino = next_ino.max(image.id_map.max_ino().map_or(2, |ino| ino.0 + 1));
        }
        self.raise(conn, "ino", next_ino, doing)?;
        for revision in &history.revisions {
            conn.execute(
                "INSERT INTO revision (id, parent, image, kind, source, message, time, user, host, \
                 command, packages) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
                params![
                    revision.id.0,
                    revision.parent.map(|id| id.0),
                    revision.image.0,
                    revision.kind.as_str(),
                    revision.source.map(|id| id.0),
                    revision.message,
                    revision.time,
                    revision.user,
                    revision.host,
                    revision.command,
                    revision.packages,
                ],
            )
            .map_err(fail)?;
        }
        for tag in &history.tags {
            conn.execute(
                "INSERT OR IGNORE INTO tag (name, revision) VALUES (?1, ?2)",
                params![tag.name, tag.revision.0],
            )
            .map_err(fail)?;
        }
        let head = self.revision_in(conn, history.head, doing)?;
        let head = head.ok_or_else(|| self.conflict(doing, "there is no current revision"))?;
        conn.execute(
            "INSERT OR REPLACE INTO head (one, revision) VALUES (1, ?1)",
            [head.id.0],
        )
        .map_err(fail)?;
        Ok(head)
    }
}
