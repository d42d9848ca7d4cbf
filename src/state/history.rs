//! Revisions and tags.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::Result;
use super::ids::{ImageId, RevisionId};
use super::{StateDb, now};

/// The operation that created a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevisionKind {
    /// A directory, archive or image was imported.
    Import,
    /// The environment was created empty.
    Create,
    /// Changes were committed.
    Commit,
    /// An earlier revision was restored.
    Rollback,
}

impl RevisionKind {
    /// Returns the stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            RevisionKind::Import => "import",
            RevisionKind::Create => "create",
            RevisionKind::Commit => "commit",
            RevisionKind::Rollback => "rollback",
        }
    }

    fn from_name(name: &str) -> Option<RevisionKind> {
        Some(match name {
            "import" => RevisionKind::Import,
            "create" => RevisionKind::Create,
            "commit" => RevisionKind::Commit,
            "rollback" => RevisionKind::Rollback,
            _ => return None,
        })
    }
}

/// The author and message of a new revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRevision {
    /// Message, possibly empty.
    pub message: String,
    /// Name of the user.
    pub user: String,
    /// Name of the host.
    pub host: String,
    /// The command line.
    pub command: String,
    /// The changed packages, as JSON, if there are any.
    pub packages: Option<String>,
}

/// One state in the history of the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The revision.
    pub id: RevisionId,
    /// The revision before it, which gc may have removed; None for the first.
    pub parent: Option<RevisionId>,
    /// Its image.
    pub image: ImageId,
    /// The operation that created it.
    pub kind: RevisionKind,
    /// For a rollback, the revision that was restored.
    pub source: Option<RevisionId>,
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
    /// The changed packages, as JSON, if there are any and they were recorded.
    pub packages: Option<String>,
}

/// A name for a revision, which gc keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Name.
    pub name: String,
    /// The revision.
    pub revision: RevisionId,
}

const REVISION_COLUMNS: &str =
    "id, parent, image, kind, source, message, time, user, host, command, packages";

impl StateDb {
    /// Returns all revisions, oldest first.
    pub fn revisions(&self) -> Result<Vec<Revision>> {
        self.select(
            "read the revisions",
            &format!("SELECT {REVISION_COLUMNS} FROM revision ORDER BY id"),
            revision_of,
        )?
        .into_iter()
        .map(|row| self.checked(row))
        .collect()
    }

    /// Returns a revision.
    pub fn revision(&self, id: RevisionId) -> Result<Option<Revision>> {
        const DOING: &str = "read a revision";
        self.read(DOING, |conn| self.revision_in(conn, id, DOING))
    }

    pub(super) fn revision_in(
        &self,
        conn: &Connection,
        id: RevisionId,
        doing: &'static str,
    ) -> Result<Option<Revision>> {
        conn.prepare_cached(&format!(
            "SELECT {REVISION_COLUMNS} FROM revision WHERE id = ?1"
        ))
        .and_then(|mut s| s.query_row([id.0], revision_of).optional())
        .map_err(|e| self.sql(doing, e))?
        .map(|row| self.checked(row))
        .transpose()
    }

    /// Returns the current revision; None only before the environment is initialised.
    pub fn current_revision(&self) -> Result<Option<Revision>> {
        const DOING: &str = "read the current revision";
        self.read(DOING, |conn| match self.head_in(conn, DOING)? {
            Some(id) => self.revision_in(conn, id, DOING),
            None => Ok(None),
        })
    }

    pub(super) fn head_in(
        &self,
        conn: &Connection,
        doing: &'static str,
    ) -> Result<Option<RevisionId>> {
        conn.prepare_cached("SELECT revision FROM head")
            .and_then(|mut s| s.query_row([], |row| row.get(0).map(RevisionId)).optional())
            .map_err(|e| self.sql(doing, e))
    }

    /// Deletes a revision that is neither current nor tagged.
    pub fn forget_revision(&self, id: RevisionId) -> Result<()> {
        const DOING: &str = "forget a revision";
        self.write_without_room(DOING, |conn| {
            if self.head_in(conn, DOING)? == Some(id) {
                return Err(self.conflict(DOING, format!("revision {id} is the current one")));
            }
            let tag: Option<String> = conn
                .query_row("SELECT name FROM tag WHERE revision = ?1", [id.0], |row| {
                    row.get(0)
                })
                .optional()
                .map_err(|e| self.sql(DOING, e))?;
            if let Some(tag) = tag {
                return Err(self.conflict(DOING, format!("revision {id} is tagged {tag}")));
            }
            conn.execute("DELETE FROM revision WHERE id = ?1", [id.0])
                .map_err(|e| self.sql(DOING, e))?;
            Ok(())
        })
    }

    /// Changes the message of the current revision. Returns the revision as it was.
    pub fn amend_message(&self, message: &str) -> Result<Revision> {
        const DOING: &str = "change the message of the revision";
        self.write(DOING, |conn| {
            let head = match self.head_in(conn, DOING)? {
                Some(head) => self.revision_in(conn, head, DOING)?,
                None => None,
            };
            let Some(head) = head else {
                return Err(self.conflict(DOING, "there is no revision"));
            };
            conn.execute(
                "UPDATE revision SET message = ?2 WHERE id = ?1",
                params![head.id.0, message],
            )
            .map_err(|e| self.sql(DOING, e))?;
            Ok(head)
        })
    }

    /// Tags a revision, moving the tag if it exists.
    pub fn set_tag(&self, name: &str, revision: RevisionId) -> Result<()> {
        const DOING: &str = "tag a revision";
        self.write(DOING, |conn| {
            if self.revision_in(conn, revision, DOING)?.is_none() {
                return Err(self.conflict(DOING, format!("there is no revision {revision}")));
            }
            conn.execute(
                "INSERT OR REPLACE INTO tag (name, revision) VALUES (?1, ?2)",
                params![name, revision.0],
            )
            .map_err(|e| self.sql(DOING, e))?;
            Ok(())
        })
    }

    /// Removes a tag; returns false if there was none.
    pub fn remove_tag(&self, name: &str) -> Result<bool> {
        const DOING: &str = "remove a tag";
        self.write(DOING, |conn| {
            conn.execute("DELETE FROM tag WHERE name = ?1", [name])
                .map(|count| count > 0)
                .map_err(|e| self.sql(DOING, e))
        })
    }

    /// Returns all tags, by name.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        self.select(
            "read the tags",
            "SELECT name, revision FROM tag ORDER BY name",
            |row| {
                Ok(Tag {
                    name: row.get(0)?,
                    revision: RevisionId(row.get(1)?),
                })
            },
        )
    }

    /// Adds a revision after the current one and makes it current.
    pub(super) fn append_revision(
        &self,
        conn: &Connection,
        kind: RevisionKind,
        image: ImageId,
        source: Option<RevisionId>,
        new: &NewRevision,
        doing: &'static str,
    ) -> Result<RevisionId> {
        let parent = self.head_in(conn, doing)?;
        conn.execute(
            "INSERT INTO revision (parent, image, kind, source, message, time, user, host, \
             command, packages) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
            params![
                parent.map(|id| id.0),
                image.0,
                kind.as_str(),
                source.map(|id| id.0),
                new.message,
                now(),
                new.user,
                new.host,
                new.command,
                new.packages,
            ],
        )
        .map_err(|e| self.sql(doing, e))?;
        let id = RevisionId(conn.last_insert_rowid());
        conn.execute(
            "INSERT OR REPLACE INTO head (one, revision) VALUES (1, ?1)",
            [id.0],
        )
        .map_err(|e| self.sql(doing, e))?;
        Ok(id)
    }

    /// Returns whether the history has one revision.
    pub(super) fn is_only_revision(&self, conn: &Connection, doing: &'static str) -> Result<bool> {
        let count: i64 = conn
            .query_row("SELECT count(*) FROM revision", [], |row| row.get(0))
            .map_err(|e| self.sql(doing, e))?;
        Ok(count == 1)
    }

    /// Gives a revision another image, author and message, and deletes the row of its image, which
    /// no layer may use any more.
    pub(super) fn replace_revision(
        &self,
        conn: &Connection,
        old: &Revision,
        image: ImageId,
        new: &NewRevision,
        doing: &'static str,
    ) -> Result<()> {
        conn.execute(
            "UPDATE revision SET image = ?2, message = ?3, time = ?4, user = ?5, host = ?6, \
             command = ?7, packages = ?8 WHERE id = ?1",
            params![
                old.id.0,
                image.0,
                new.message,
                now(),
                new.user,
                new.host,
                new.command,
                new.packages,
            ],
        )
        .map_err(|e| self.sql(doing, e))?;
        self.delete_image(conn, old.image, doing)
    }

    /// Reads all rows of a query without parameters.
    pub(super) fn select<T>(
        &self,
        doing: &'static str,
        sql: &str,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.read(doing, |conn| {
            let mut statement = conn.prepare_cached(sql).map_err(|e| self.sql(doing, e))?;
            let rows = statement
                .query_map([], map)
                .and_then(Iterator::collect)
                .map_err(|e| self.sql(doing, e))?;
            Ok(rows)
        })
    }

    fn checked(&self, row: Result<Revision, String>) -> Result<Revision> {
        row.map_err(|what| self.bad_row("revision", what))
    }
}

/// Reads a row of [`REVISION_COLUMNS`]; the inner error describes a bad value.
fn revision_of(row: &Row<'_>) -> rusqlite::Result<Result<Revision, String>> {
    let kind: String = row.get(3)?;
    let Some(kind) = RevisionKind::from_name(&kind) else {
        return Ok(Err(format!("kind {kind:?}")));
    };
    Ok(Ok(Revision {
        id: RevisionId(row.get(0)?),
        parent: row.get::<_, Option<i64>>(1)?.map(RevisionId),
        image: ImageId(row.get(2)?),
        kind,
        source: row.get::<_, Option<i64>>(4)?.map(RevisionId),
        message: row.get(5)?,
        time: row.get(6)?,
        user: row.get(7)?,
        host: row.get(8)?,
        command: row.get(9)?,
        packages: row.get(10)?,
    }))
}
