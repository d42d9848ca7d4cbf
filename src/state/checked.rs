//! What the directories of an upper layer looked like when its rows and files were last compared.

use rusqlite::{OptionalExtension, params};

use super::{LayerId, Result, StateDb};

const READ: &str = "read when a layer was compared";
const STORE: &str = "store when a layer was compared";

impl StateDb {
    /// Returns what was last stored for a layer. It holds only if the environment was closed
    /// cleanly.
    pub fn checked_directories(&self, layer: LayerId) -> Result<Option<Vec<u8>>> {
        self.read(READ, |conn| {
            conn.prepare_cached("SELECT directories FROM checked WHERE layer = ?1")
                .and_then(|mut s| s.query_row([layer.0], |row| row.get(0)).optional())
                .map_err(|e| self.sql(READ, e))
        })
    }

    /// Stores what the directories of a layer look like, or that this is not known; durable when
    /// this returns.
    pub fn set_checked_directories(
        &self,
        layer: LayerId,
        directories: Option<&[u8]>,
    ) -> Result<()> {
        self.write(STORE, |conn| {
            match directories {
                Some(bytes) => conn
                    .prepare_cached("INSERT OR REPLACE INTO checked VALUES (?1, ?2)")
                    .and_then(|mut s| s.execute(params![layer.0, bytes])),
                None => conn
                    .prepare_cached("DELETE FROM checked WHERE layer = ?1")
                    .and_then(|mut s| s.execute([layer.0])),
            }
            .map_err(|e| self.sql(STORE, e))
            .map(drop)
        })
    }
}
