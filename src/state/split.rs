//! Replacing frozen layers by two that show the same, so that a commit takes only one of them.

use rusqlite::Connection;

use super::StateDb;
use super::error::Result;
use super::ids::LayerId;
use super::operations;
use super::rows::queries::apply_one;
use super::rows::{LayerRows, RowChange};
use super::stack::{LayerRole, StackPart, UNPLACED};

impl StateDb {
    /// Adds layers that are not in the stack and have no rows. Until they are used, the next open
    /// removes them with their files.
    pub fn add_retired(&self, layers: &[LayerId]) -> Result<()> {
        const DOING: &str = "add layers";
        self.write(DOING, |conn| {
            for layer in layers {
                conn.execute(
                    "INSERT INTO layer (id, kind, role) VALUES (?1, 'upper', 'retired')",
                    [layer.0],
                )
                .map_err(|e| self.sql(DOING, e))?;
            }
            Ok(())
        })
    }

    /// Replaces frozen layers, all below the writable one, by others with these rows, top first.
    /// They were added by [`add_retired`](Self::add_retired), and their files are complete and
    /// durable. The old layers are retired, and no operation refers to them any more.
    pub fn split(&self, old: &[LayerId], new: &[(LayerId, LayerRows)]) -> Result<()> {
        const DOING: &str = "split layers";
        self.write(DOING, |conn| {
            let stack = self.stack_in(conn, DOING)?;
            let frozen = stack.iter().filter(|layer| layer.part == StackPart::Frozen);
            if !frozen.clone().map(|layer| layer.id).eq(old.iter().copied()) {
                return Err(self.conflict(DOING, "other layers are frozen"));
            }
            for layer in frozen {
                self.leave_stack(conn, *layer, LayerRole::Retired, DOING)?;
                operations::forget_recorded_in(conn, layer.id).map_err(|e| self.sql(DOING, e))?;
            }
            for (layer, rows) in new {
                conn.execute(
                    "UPDATE layer SET role = 'frozen', position = ?2 - id WHERE id = ?1",
                    [layer.0, UNPLACED],
                )
                .and_then(|_| put_rows(conn, *layer, rows))
                .map_err(|e| self.sql(DOING, e))?;
            }
            let is_old = |layer: &LayerId| old.contains(layer);
            let others = stack.iter().map(|layer| layer.id).filter(|id| !is_old(id));
            let mut order: Vec<LayerId> = others.collect();
            order.splice(1..1, new.iter().map(|(layer, _)| *layer));
            self.set_order(conn, &order, DOING)
        })
    }
}

fn put_rows(conn: &Connection, layer: LayerId, rows: &LayerRows) -> rusqlite::Result<()> {
    for (ino, row) in &rows.inodes {
        apply_one(conn, layer, &RowChange::put_inode(*ino, row))?;
    }
    for (dir, name, target) in &rows.entries {
        apply_one(conn, layer, &RowChange::put_entry(*dir, &**name, *target))?;
    }
    for (ino, name, value) in &rows.xattrs {
        apply_one(conn, layer, &RowChange::put_xattr(*ino, &**name, &**value))?;
    }
    Ok(())
}
