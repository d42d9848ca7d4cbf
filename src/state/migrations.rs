//! Upgrades a database to the newest schema, or refuses one with a schema newer than this envfs.

use std::path::Path;

use rusqlite::Connection;

use super::error::{Result, StateError};
use super::sql_error;

/// "envf" in the header of every database, which tells it from other SQLite databases.
pub(super) const APPLICATION_ID: i32 = 0x656e_7666;

/// The migrations in order; the n-th (from 1) upgrades the schema to version n.
pub(super) const MIGRATIONS: &[&str] = &[include_str!("../../migrations/0001_initial.sql")];

/// Creates the schema in a new, empty database.
pub(super) fn create(conn: &Connection, path: &Path, migrations: &[&str]) -> Result<()> {
    run(conn, path, 0, migrations)
}

/// The oldest schema that can be read without an upgrade: the daemon of an older envfs may have the
/// database open.
const OLDEST_READABLE: u32 = 1;

/// Checks that this is a state database and not too new, and applies the missing migrations.
pub(super) fn upgrade(conn: &Connection, path: &Path, migrations: &[&str]) -> Result<()> {
    let found = version(conn, path, migrations)?;
    match found as usize == migrations.len() {
        true => Ok(()),
        false => run(conn, path, found, migrations),
    }
}

/// Checks that this is a state database, and returns true if it can be read without an upgrade.
pub(super) fn is_readable(conn: &Connection, path: &Path) -> Result<bool> {
    Ok(version(conn, path, MIGRATIONS)? >= OLDEST_READABLE)
}

/// Returns the version of the schema, which is at most the newest known here.
fn version(conn: &Connection, path: &Path, migrations: &[&str]) -> Result<u32> {
    let doing = "read the header of the state database";
    let read = |pragma: &str| -> Result<i64> {
        conn.pragma_query_value(None, pragma, |row| row.get(0))
            .map_err(|e| sql_error(path, doing, e))
    };
    let application = read("application_id")?;
    let version = read("user_version")?;
    if application != i64::from(APPLICATION_ID) {
        let detail = if application == 0 && version == 0 {
            "an empty or foreign database".to_owned()
        } else {
            format!("application id {application:#x}")
        };
        return Err(StateError::NotADatabase {
            path: path.to_owned(),
            detail,
        });
    }
    let supported = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    match u32::try_from(version) {
        Ok(found) if found > supported => Err(StateError::TooNew {
            path: path.to_owned(),
            found,
            supported,
        }),
        Ok(found) if found > 0 => Ok(found),
        _ => Err(StateError::Corrupt {
            path: path.to_owned(),
            detail: format!("schema version {version}"),
        }),
    }
}

/// Describes everything in the schema that no migration creates, such as triggers, views, or tables
/// with other columns.
pub(super) fn foreign(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let schema = |conn: &Connection| -> rusqlite::Result<Vec<(String, String, Option<String>)>> {
        conn.prepare("SELECT type, name, sql FROM sqlite_schema")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect()
    };
    let fresh = Connection::open_in_memory()?;
    for sql in MIGRATIONS {
        fresh.execute_batch(sql)?;
    }
    let known = schema(&fresh)?;
    let found = schema(conn)?.into_iter();
    Ok(found
        // Internal tables of SQLite, such as statistics.
        .filter(|row| !row.1.starts_with("sqlite_") && !known.contains(row))
        .map(|(kind, name, _)| {
            format!(
                "the {kind} {} is not part of the schema of envfs",
                name.escape_debug()
            )
        })
        .collect())
}

/// Applies all migrations above `from` in one transaction: the database has either the old schema
/// or the newest.
fn run(conn: &Connection, path: &Path, from: u32, migrations: &[&str]) -> Result<()> {
    let doing = "upgrade the schema";
    let fail = |e| sql_error(path, doing, e);
    let tx = rusqlite::Transaction::new_unchecked(conn, rusqlite::TransactionBehavior::Exclusive)
        .map_err(fail)?;
    // Another process may have upgraded while this one waited for the lock.
    let now: u32 = tx
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(fail)?;
    if now == from {
        for sql in migrations.iter().skip(from as usize) {
            tx.execute_batch(sql).map_err(fail)?;
        }
        tx.pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(fail)?;
        tx.pragma_update(None, "user_version", migrations.len() as i64)
            .map_err(fail)?;
    }
    tx.commit().map_err(fail)
}
