use std::fs;

use super::*;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Copies the files of a database while it is open: what a killed process leaves behind.
fn killed_copy(from: &Path, to: &Path) -> PathBuf {
    for suffix in ["", "-journal"] {
        let name = format!("state.db{suffix}");
        if from.join(&name).exists() {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
    to.join("state.db")
}

fn newest() -> u32 {
    migrations::MIGRATIONS.len() as u32
}

#[test]
fn a_database_is_created_once_and_only_opened_where_it_is() {
    let dir = dir();
    let path = dir.path().join("state.db");
    assert!(matches!(
        StateDb::open(&path),
        Err(StateError::Missing { .. })
    ));
    let db = StateDb::create(&path).unwrap();
    assert!(matches!(
        StateDb::create(&path),
        Err(StateError::Exists { .. })
    ));
    init(&db, None);
    db.close().unwrap();
    let db = StateDb::open(&path).unwrap();
    assert_eq!(db.stack().unwrap().len(), 2);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_newer_database_is_refused_and_not_touched() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    db.lock().pragma_update(None, "user_version", 77).unwrap();
    db.close().unwrap();
    let before = fs::read(&path).unwrap();
    let refused = StateDb::open(&path).unwrap_err();
    assert!(
        matches!(
            refused,
            StateError::TooNew {
                found: 77,
                supported,
                ..
            } if supported == newest()
        ),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("newer envfs"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn an_older_database_is_upgraded_in_one_step_or_not_at_all() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    let layer = init(&db, None).writable;
    db.apply(
        layer,
        &[
            RowChange::put_inode(Ino(2), inode_row()),
            RowChange::put_entry(Ino(1), &b"name"[..], Some(Ino(2))),
            RowChange::put_xattr(Ino(2), &b"user.x"[..], &b"y"[..]),
        ],
    )
    .unwrap();
    let rows = db.load_layer(layer).unwrap();
    db.close().unwrap();
    let now = migrations::MIGRATIONS;
    let next = "ALTER TABLE image ADD COLUMN colour TEXT; DROP TABLE tag";
    StateDb::open_with(&path, &[now, &[next, "this is not SQL"]].concat()).unwrap_err();
    // Nothing remains of the migration that succeeded.
    let db = StateDb::open(&path).unwrap();
    assert_eq!(db.stack().unwrap().len(), 2);
    assert!(db.tags().unwrap().is_empty());
    db.close().unwrap();

    let after = "CREATE TABLE more (a INTEGER)";
    let upgraded = [now, &[next, after]].concat();
    let db = StateDb::open_with(&path, &upgraded).unwrap();
    assert_eq!(db.stack().unwrap().len(), 2);
    assert_eq!(db.load_layer(layer).unwrap(), rows);
    assert_eq!(db.current_revision().unwrap().unwrap().message, "first");
    db.rotate(layer, db.reserve_layer().unwrap()).unwrap();
    db.close().unwrap();
    // The schema is that of a new database.
    let schema = |path: &Path| -> (u32, Vec<(String, Option<String>)>) {
        let conn = Connection::open(path).unwrap();
        let version = conn
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        let mut schema = conn
            .prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")
            .unwrap();
        let rows = schema.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        (version, rows.unwrap().collect::<Result<_, _>>().unwrap())
    };
    let new = dir.path().join("new.db");
    let conn = Connection::open(&new).unwrap();
    migrations::create(&conn, &new, &upgraded).unwrap();
    assert_eq!(schema(&new), schema(&path));
    assert!(schema(&path).1.iter().any(|(name, _)| name == "more"));

    let refused = StateDb::open(&path).unwrap_err();
    let StateError::TooNew {
        found, supported, ..
    } = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!((found, supported), (newest() + 2, newest()));
}

#[test]
fn files_that_are_no_state_database_are_told_apart() {
    let dir = dir();
    let path = dir.path().join("state.db");
    fs::write(&path, "").unwrap();
    let refused = StateDb::open(&path).unwrap_err();
    assert!(
        matches!(refused, StateError::NotADatabase { .. }),
        "{refused:?}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"");

    fs::write(&path, "hsqs".repeat(2000)).unwrap();
    let refused = StateDb::open(&path).unwrap_err();
    assert!(
        matches!(refused, StateError::NotADatabase { .. }),
        "{refused:?}"
    );

    fs::remove_file(&path).unwrap();
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE a (b)").unwrap();
    drop(foreign);
    let refused = StateDb::open(&path).unwrap_err();
    assert!(
        matches!(refused, StateError::NotADatabase { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_truncated_database_is_told_as_damaged() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    let layer = init(&db, None).writable;
    for n in 0..200u64 {
        let name = vec![b'x'; 200];
        db.apply(layer, &[RowChange::put_entry(Ino(n), name, None)])
            .unwrap();
    }
    db.close().unwrap();
    let whole = fs::read(&path).unwrap();
    let page = PAGE_SIZE as usize;
    assert!(whole.len() > 10 * page);
    for length in [
        50,
        100,
        512,
        page,
        page + 17,
        whole.len() / 2,
        whole.len() - page,
    ] {
        fs::write(&path, &whole[..length]).unwrap();
        let outcome = StateDb::open(&path)
            .and_then(|db| db.load_layer(layer))
            .expect_err("a truncated database");
        assert!(
            matches!(
                outcome,
                StateError::Corrupt { .. } | StateError::NotADatabase { .. }
            ),
            "{length}: {outcome:?}"
        );
    }
}

#[test]
fn damaged_pages_never_panic() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    let layer = init(&db, None).writable;
    for n in 2..100u64 {
        db.apply(layer, &[RowChange::put_inode(Ino(n), inode_row())])
            .unwrap();
    }
    db.close().unwrap();
    let whole = fs::read(&path).unwrap();
    for page in 1..whole.len() / PAGE_SIZE as usize {
        let mut bytes = whole.clone();
        let at = page * PAGE_SIZE as usize;
        bytes[at..at + 256].fill(0xa5);
        fs::write(&path, &bytes).unwrap();
        if let Ok(db) = StateDb::open(&path) {
            // Some pages are not read by these; the check must find every one.
            drop((db.load_layer(layer), db.stack(), db.revisions()));
            assert!(
                db.integrity_check().map_or(true, |wrong| !wrong.is_empty()),
                "page {page}"
            );
        }
    }
}

#[test]
fn what_was_applied_survives_the_death_of_the_process() {
    let (live, dead) = (dir(), dir());
    let db = StateDb::create(&live.path().join("state.db")).unwrap();
    let layer = init(&db, None).writable;
    for n in 2..50u64 {
        db.apply(layer, &[RowChange::put_inode(Ino(n), inode_row())])
            .unwrap();
    }
    // The connection is still open: nothing was closed in order.
    let copy = killed_copy(live.path(), dead.path());
    let copy = StateDb::open(&copy).unwrap();
    assert_eq!(
        copy.load_layer(layer).unwrap(),
        db.load_layer(layer).unwrap()
    );
    assert_eq!(
        copy.integrity_check().unwrap().len(),
        1,
        "ids were not reserved"
    );
}

#[test]
fn two_connections_see_each_others_changes() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let a = StateDb::create(&path).unwrap();
    let layer = init(&a, None).writable;
    let b = StateDb::open(&path).unwrap();
    a.apply(layer, &[RowChange::put_inode(Ino(2), inode_row())])
        .unwrap();
    assert_eq!(b.load_layer(layer).unwrap().inodes.len(), 1);
    assert_eq!(b.reserve_inos(5).unwrap(), 2..7);
    assert_eq!(a.reserve_inos(5).unwrap(), 7..12);
    let ranges: Vec<_> = std::thread::scope(|scope| {
        let take = |db| {
            scope.spawn(move || -> Vec<_> {
                (0..50)
                    .map(|_| StateDb::reserve_inos(db, 3).unwrap().start)
                    .collect()
            })
        };
        let (one, two) = (take(&a), take(&b));
        one.join()
            .unwrap()
            .into_iter()
            .chain(two.join().unwrap())
            .collect()
    });
    let distinct: std::collections::BTreeSet<_> = ranges.iter().collect();
    assert_eq!(distinct.len(), 100);
}

#[test]
fn the_database_is_whole_without_its_journal_after_each_transaction() {
    let (live, copy) = (dir(), dir());
    let path = live.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    let layer = init(&db, None).writable;
    db.restore_reserve();
    let journal = fs::metadata(live.path().join("state.db-journal")).unwrap();
    assert!(journal.len() >= JOURNAL_ROOM, "{}", journal.len());
    for n in 2..20u64 {
        db.apply(layer, &[RowChange::put_inode(Ino(n), inode_row())])
            .unwrap();
        let alone = copy.path().join("state.db");
        fs::copy(&path, &alone).unwrap();
        let alone = StateDb::open(&alone).unwrap();
        assert_eq!(alone.load_layer(layer).unwrap().inodes.len() as u64, n - 1);
    }
    for suffix in ["-wal", "-shm"] {
        assert!(!live.path().join(format!("state.db{suffix}")).exists());
    }
}

#[test]
fn every_table_and_column_is_in_the_document() {
    let document = include_str!("../../../docs/state.md");
    let db = StateDb::in_memory().unwrap();
    let columns = db
        .select(
            "read the schema",
            "SELECT t.name, c.name FROM pragma_table_list AS t, pragma_table_info(t.name) AS c \
             WHERE t.schema = 'main' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
        )
        .unwrap();
    assert!(columns.len() > 50);
    let sections: Vec<(&str, &str)> = document
        .split("\n### `")
        .skip(1)
        .filter_map(|section| section.split_once('`'))
        .collect();
    for (table, column) in &columns {
        let (_, section) = sections
            .iter()
            .find(|(name, _)| name == table)
            .unwrap_or_else(|| panic!("docs/state.md has no section for table {table}"));
        assert!(
            section.contains(&format!("`{column}`")),
            "docs/state.md does not explain {table}.{column}"
        );
    }
    // Nor does it explain what does not exist.
    for (table, section) in sections {
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        for cell in rows.filter_map(|line| line.split('|').nth(1)) {
            for column in cell.split(',').map(|name| name.trim().trim_matches('`')) {
                let known = (table.to_owned(), column.to_owned());
                assert!(
                    columns.contains(&known),
                    "there is no column {table}.{column}"
                );
            }
        }
    }
}

#[test]
fn a_full_disk_changes_nothing_and_is_told_as_such() {
    let dir = dir();
    let db = StateDb::create(&dir.path().join("state.db")).unwrap();
    let layer = init(&db, None).writable;
    let pages: i64 = db
        .lock()
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .unwrap();
    let limit = |pages: i64| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        db.lock().query_row(&sql, [], |_| Ok(())).unwrap();
    };
    limit(pages);
    let value = vec![0; 100_000];
    let changes = [
        RowChange::put_inode(Ino(2), inode_row()),
        RowChange::put_xattr(Ino(2), b"user.a".as_slice(), value),
    ];
    let full = db.apply(layer, &changes).unwrap_err();
    assert!(full.is_no_space() && !full.is_read_only(), "{full:?}");
    assert!(db.load_layer(layer).unwrap().is_empty());
    limit(1_000_000);
    db.apply(layer, &changes).unwrap();
    assert_eq!(db.load_layer(layer).unwrap().xattrs.len(), 1);
}

#[test]
fn another_writer_in_the_middle_of_a_transaction_is_told_as_busy() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let a = StateDb::create(&path).unwrap();
    let layer = init(&a, None).writable;
    let b = StateDb::open(&path).unwrap();
    b.lock().busy_timeout(Duration::ZERO).unwrap();
    a.lock().execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = b.apply(layer, &[RowChange::DropInode(Ino(2))]).unwrap_err();
    assert!(matches!(busy, StateError::Busy { .. }), "{busy:?}");
    // Reading goes on meanwhile.
    assert_eq!(b.stack().unwrap().len(), 2);
    a.lock().execute_batch("ROLLBACK").unwrap();
    b.apply(layer, &[RowChange::DropInode(Ino(2))]).unwrap();
}

const WRITE_IN: &str = "ENVFS_TEST_WRITE_STATE_IN";

/// The other process of the next test; does nothing when run by itself.
#[test]
fn helper_that_writes_rows_until_it_is_killed() {
    let Some(dir) = std::env::var_os(WRITE_IN).map(PathBuf::from) else {
        return;
    };
    use std::os::unix::fs::FileExt;
    let db = StateDb::open(&dir.join("state.db")).unwrap();
    let layer = db.stack().unwrap()[0].id;
    let done = fs::File::create(dir.join("done")).unwrap();
    for n in 2u64.. {
        let entry = RowChange::put_entry(Ino(1), n.to_string().into_bytes(), Some(Ino(n)));
        db.apply(layer, &[RowChange::put_inode(Ino(n), inode_row()), entry])
            .unwrap();
        done.write_all_at(&n.to_le_bytes(), 0).unwrap();
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_it_had_completed() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    let layer = init(&db, None).writable;
    db.close().unwrap();
    let mut writer = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "state::tests::open_tests::helper_that_writes_rows_until_it_is_killed",
        ])
        .env(WRITE_IN, dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let done = || -> Option<u64> {
        let bytes = fs::read(dir.path().join("done")).ok()?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    while done().is_none_or(|n| n < 300) {
        assert!(
            writer.try_wait().unwrap().is_none(),
            "the writer ended early"
        );
        std::thread::yield_now();
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    let done = done().unwrap();
    let rows = StateDb::open(&path).unwrap().load_layer(layer).unwrap();
    let last = rows.inodes.last().unwrap().0.0;
    assert!(last == done || last == done + 1, "{last} of {done}");
    assert_eq!(rows.inodes.len() as u64, last - 1);
    assert_eq!(rows.entries.len(), rows.inodes.len());
}

#[test]
fn changes_are_discarded_and_forgotten_where_the_database_cannot_grow() {
    let dir = dir();
    let path = dir.path().join("state.db");
    let db = Arc::new(StateDb::create(&path).unwrap());
    let mut layer = init(&db, None).writable;
    db.keep_redo_log().unwrap();
    db.restore_reserve();
    let pragma = |sql: &str| -> i64 { db.lock().query_row(sql, [], |row| row.get(0)).unwrap() };
    // Fills what is free, and then holds more in the log than there is room for.
    let fill = |layer, round: u64| {
        pragma(&format!(
            "PRAGMA max_page_count = {}",
            pragma("PRAGMA page_count")
        ));
        for n in 2..400u64 {
            let change =
                RowChange::put_xattr(Ino(n + 1000 * round), b"user.a".as_slice(), vec![7; 2000]);
            db.apply(layer, &[change]).unwrap();
        }
        assert!(db.checkpoint().unwrap_err().is_no_space());
    };
    for round in 0..3 {
        fill(layer, round);
        assert!(db.set_tag("a", RevisionId(1)).unwrap_err().is_no_space());
        let fresh = db.reserve_layer().unwrap();
        let trashed = db.discard_all(fresh, None).unwrap();
        assert_eq!(trashed, [layer]);
        db.forget_layer(layer).unwrap();
        db.checkpoint().unwrap();
        db.set_tag("a", RevisionId(1)).unwrap();
        assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
        layer = fresh;
        pragma("PRAGMA max_page_count = 1000000");
        db.restore_reserve();
    }
}
