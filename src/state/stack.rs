//! The layers of the environment: their rows and their order in the stack.
//!
//! What changes them is a part of a transaction, see `publish` and `undo`.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::error::Result;
use super::ids::{ImageId, LayerId};
use super::{StateDb, valid};

/// The position of a layer whose position is set later in the same transaction.
pub(super) const UNPLACED: i64 = -1;

/// The role of a layer in the stack, or after it has left the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerRole {
    /// Takes all changes; exactly one, on top.
    Writable,
    /// Is read-only.
    Frozen,
    /// Its content is in an image: its directory and rows can be removed as soon as no operation
    /// refers to it.
    Retired,
    /// It was discarded, and is kept until gc.
    Trash,
    /// It takes the changes of a trial, which are kept or dropped when that ends. Its rows are in
    /// the database of the trial.
    Trial,
}

impl LayerRole {
    fn as_str(self) -> &'static str {
        match self {
            LayerRole::Writable => "writable",
            LayerRole::Frozen => "frozen",
            LayerRole::Retired => "retired",
            LayerRole::Trash => "trash",
            LayerRole::Trial => "trial",
        }
    }

    fn from_name(name: &str) -> Option<LayerRole> {
        Some(match name {
            "writable" => LayerRole::Writable,
            "frozen" => LayerRole::Frozen,
            "retired" => LayerRole::Retired,
            "trash" => LayerRole::Trash,
            "trial" => LayerRole::Trial,
            _ => return None,
        })
    }
}

/// What a layer of the stack consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackPart {
    /// The upper that takes all changes.
    Writable,
    /// A read-only upper that is being written to an image.
    Frozen,
    /// An image.
    Image(ImageId),
}

/// A layer in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StackLayer {
    /// The layer.
    pub id: LayerId,
    /// What it consists of.
    pub part: StackPart,
}

/// A layer, in the stack or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The layer.
    pub id: LayerId,
    /// Its image; None for an upper.
    pub image: Option<ImageId>,
    /// Its current role.
    pub role: LayerRole,
    /// Its position in the stack, 0 on top.
    pub position: Option<u32>,
}

impl StateDb {
    /// Returns the stack, top first. Empty only before the environment is initialised.
    pub fn stack(&self) -> Result<Vec<StackLayer>> {
        const DOING: &str = "read the stack";
        self.read(DOING, |conn| self.stack_in(conn, DOING))
    }

    /// Returns all layers, in the stack or not.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        const DOING: &str = "read the layers";
        self.read(DOING, |conn| self.layers_in(conn, DOING))
    }

    /// Returns the ids of all uppers, in the stack or not.
    pub(super) fn uppers_in(&self, conn: &Connection, doing: &'static str) -> Result<HashSet<i64>> {
        conn.prepare_cached("SELECT id FROM layer WHERE kind = 'upper'")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(|e| self.sql(doing, e))
    }

    fn layers_in(&self, conn: &Connection, doing: &'static str) -> Result<Vec<Layer>> {
        let mut statement = conn
            .prepare_cached(
                "SELECT id, image, role, position FROM layer \
                 ORDER BY position IS NULL, position, id",
            )
            .map_err(|e| self.sql(doing, e))?;
        let mut rows = statement.query([]).map_err(|e| self.sql(doing, e))?;
        let mut layers = Vec::new();
        while let Some(row) = rows.next().map_err(|e| self.sql(doing, e))? {
            let read = || -> rusqlite::Result<(Layer, String)> {
                let layer = Layer {
                    id: LayerId(row.get(0)?),
                    image: row.get::<_, Option<i64>>(1)?.map(ImageId),
                    role: LayerRole::Frozen,
                    position: row.get(3)?,
                };
                Ok((layer, row.get(2)?))
            };
            let (layer, role) = read().map_err(|e| self.sql(doing, e))?;
            let Some(role) = LayerRole::from_name(&role) else {
                return Err(self.bad_row("layer", format!("role {role:?}")));
            };
            valid::layer(layer.id).map_err(|what| self.bad_row("layer", what))?;
            layers.push(Layer { role, ..layer });
        }
        Ok(layers)
    }

    pub(super) fn stack_in(
        &self,
        conn: &Connection,
        doing: &'static str,
    ) -> Result<Vec<StackLayer>> {
        let mut stack = Vec::new();
        for layer in self.layers_in(conn, doing)? {
            if layer.position.is_none() {
                continue;
            }
            let part = match (layer.image, layer.role) {
                (Some(image), _) => StackPart::Image(image),
                (None, LayerRole::Writable) => StackPart::Writable,
                (None, _) => StackPart::Frozen,
            };
            let misplaced = (part == StackPart::Writable) != stack.is_empty();
            if misplaced {
                return Err(self.bad_row("layer", "order: the writable layer is not on top"));
            }
            stack.push(StackLayer { id: layer.id, part });
        }
        Ok(stack)
    }

    pub(super) fn push_writable(
        &self,
        conn: &Connection,
        fresh: LayerId,
        order: &mut Vec<LayerId>,
        doing: &'static str,
    ) -> Result<()> {
        let known: bool = conn
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM layer WHERE id = ?1)",
                [fresh.0],
                |row| row.get(0),
            )
            .map_err(|e| self.sql(doing, e))?;
        if known {
            return Err(self.conflict(doing, format!("layer {fresh} is already in use")));
        }
        self.insert_upper(conn, fresh, UNPLACED, doing)?;
        order.insert(0, fresh);
        self.set_order(conn, order, doing)
    }

    pub(super) fn insert_upper(
        &self,
        conn: &Connection,
        id: LayerId,
        position: i64,
        doing: &'static str,
    ) -> Result<()> {
        conn.execute(
            "INSERT INTO layer (id, kind, role, position) VALUES (?1, 'upper', 'writable', ?2)",
            params![id.0, position],
        )
        .map_err(|e| self.sql(doing, e))?;
        Ok(())
    }

    pub(super) fn insert_image_layer(
        &self,
        conn: &Connection,
        id: LayerId,
        image: ImageId,
        position: i64,
        doing: &'static str,
    ) -> Result<()> {
        conn.execute(
            "INSERT INTO layer (id, kind, role, position, image) \
             VALUES (?1, 'image', 'frozen', ?2, ?3)",
            // Positions are unique, also while two layers have none yet.
            params![
                id.0,
                if position == UNPLACED {
                    UNPLACED - id.0
                } else {
                    position
                },
                image.0
            ],
        )
        .map_err(|e| self.sql(doing, e))?;
        Ok(())
    }

    /// Removes a layer from the stack. The layer of an image is deleted; the image itself stays.
    pub(super) fn leave_stack(
        &self,
        conn: &Connection,
        layer: StackLayer,
        role: LayerRole,
        doing: &'static str,
    ) -> Result<()> {
        match layer.part {
            StackPart::Image(_) => conn.execute("DELETE FROM layer WHERE id = ?1", [layer.id.0]),
            StackPart::Writable | StackPart::Frozen => conn.execute(
                "UPDATE layer SET role = ?2, position = NULL WHERE id = ?1",
                params![layer.id.0, role.as_str()],
            ),
        }
        .map_err(|e| self.sql(doing, e))?;
        Ok(())
    }

    pub(super) fn set_role(
        &self,
        conn: &Connection,
        layer: LayerId,
        role: LayerRole,
        doing: &'static str,
    ) -> Result<()> {
        conn.execute(
            "UPDATE layer SET role = ?2 WHERE id = ?1",
            params![layer.0, role.as_str()],
        )
        .map_err(|e| self.sql(doing, e))?;
        Ok(())
    }

    /// Writes the order of the stack, top first.
    pub(super) fn set_order(
        &self,
        conn: &Connection,
        order: &[LayerId],
        doing: &'static str,
    ) -> Result<()> {
        let fail = |e| self.sql(doing, e);
        // Positions are unique at every step, so all get temporary ones before any gets its new
        // one.
        conn.execute(
            "UPDATE layer SET position = -1000000000 - id WHERE position IS NOT NULL",
            [],
        )
        .map_err(fail)?;
        let mut statement = conn
            .prepare_cached("UPDATE layer SET position = ?2 WHERE id = ?1")
            .map_err(fail)?;
        for (position, layer) in order.iter().enumerate() {
            statement
                .execute(params![layer.0, position as i64])
                .map_err(fail)?;
        }
        Ok(())
    }
}
