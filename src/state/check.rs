//! The check of the whole database.

use super::error::Result;
use super::{LinksIn, StateDb, migrations};

impl StateDb {
    /// Checks the pages of the database, its tables against each other, and every row. Returns a
    /// description of each problem.
    pub fn integrity_check(&self) -> Result<Vec<String>> {
        const DOING: &str = "check the state database";
        /// Each query returns one line per problem.
        const CHECKS: &[&str] = &[
            "SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
            "SELECT 'a row of ' || \"table\" || ' refers to a missing row of ' || parent \
             FROM pragma_foreign_key_check",
            "SELECT 'rows of inodes belong to unknown layer ' || layer FROM inode \
             WHERE layer NOT IN (SELECT id FROM layer WHERE kind = 'upper') GROUP BY layer",
            "SELECT 'rows of names belong to unknown layer ' || layer FROM dentry \
             WHERE layer NOT IN (SELECT id FROM layer WHERE kind = 'upper') GROUP BY layer",
            "SELECT 'rows of xattrs belong to unknown layer ' || layer FROM xattr \
             WHERE layer NOT IN (SELECT id FROM layer WHERE kind = 'upper') GROUP BY layer",
            "SELECT 'an environment with a revision has no writable layer on top' \
             WHERE EXISTS (SELECT 1 FROM head) AND NOT EXISTS \
             (SELECT 1 FROM layer WHERE role = 'writable' AND position = 0)",
            "SELECT 'the image of the current revision is not in the stack' \
             FROM head JOIN revision ON revision.id = head.revision \
             WHERE NOT EXISTS \
             (SELECT 1 FROM layer WHERE layer.image = revision.image AND position IS NOT NULL)",
            "SELECT 'link counts belong to unknown image ' || image FROM link_count \
             WHERE image <> 0 AND image NOT IN (SELECT id FROM image) GROUP BY image",
            "SELECT 'object id ' || max(ino) || ' is in use, but not below the counter' \
             FROM inode HAVING max(ino) >= \
             coalesce((SELECT next FROM counter WHERE name = 'ino'), 2) AND max(ino) > 1",
        ];
        let mut wrong = self.read_rows(DOING, |conn| {
            let mut wrong = Vec::new();
            for sql in CHECKS {
                let mut statement = conn.prepare(sql).map_err(|e| self.sql(DOING, e))?;
                let lines = statement
                    .query_map([], |row| row.get::<_, String>(0))
                    .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
                    .map_err(|e| self.sql(DOING, e))?;
                wrong.extend(lines);
            }
            wrong.extend(migrations::foreign(conn).map_err(|e| self.sql(DOING, e))?);
            Ok(wrong)
        })?;
        wrong.extend(self.check_rows());
        Ok(wrong)
    }

    /// Reads every row as its users do, and returns the errors.
    fn check_rows(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut note = |read: Result<()>| wrong.extend(read.err().map(|e| e.to_string()));
        note(self.uuid().map(drop));
        note(self.prefix().map(drop));
        note(self.skipped_ids().map(drop));
        note(self.home_id().map(drop));
        note(self.image_owner().map(drop));
        note(self.image_fingerprint().map(drop));
        note(self.was_clean().map(drop));
        note(self.is_relocating().map(drop));
        note(self.last_redo().map(drop));
        note(
            self.read("read the number of the last transaction", |conn| {
                self.serial_in(conn, "read the number of the last transaction")
                    .map(drop)
            }),
        );
        note(self.link_counts(LinksIn::Stack).map(drop));
        note(self.next_ids().map(drop));
        note(self.revisions().map(drop));
        note(self.tags().map(drop));
        note(self.operations().map(drop));
        note(self.trials().map(drop));
        note(self.stack().map(drop));
        match self.images() {
            Ok(images) => images.iter().for_each(|image| {
                note(self.id_map(image.id).map(drop));
                note(self.link_counts(LinksIn::Image(image.id)).map(drop));
            }),
            Err(e) => note(Err(e)),
        }
        match self.layers() {
            Ok(layers) => layers
                .iter()
                .filter(|layer| layer.image.is_none())
                .for_each(|layer| note(self.load_layer(layer.id).map(drop))),
            Err(e) => note(Err(e)),
        }
        wrong.dedup();
        wrong
    }
}
