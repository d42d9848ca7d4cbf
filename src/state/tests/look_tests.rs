use std::fs;

use super::*;

const PATIENCE: Duration = Duration::from_millis(100);

/// What another host sees in the middle of a transaction, without the locks: the journal, and a database
/// that is half changed.
fn in_the_middle(path: &Path) -> tempfile::TempDir {
    let elsewhere = tempfile::tempdir().unwrap();
    let conn = StateDb::connect(path).unwrap();
    let db = StateDb::configure(conn, path, JournalMode::Rollback, false).unwrap();
    let conn = db.lock();
    conn.execute_batch(
        "PRAGMA cache_size = 2; BEGIN IMMEDIATE; \
         INSERT INTO meta WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) \
         SELECT i, zeroblob(3000) FROM n",
    )
    .unwrap();
    for suffix in ["", "-journal"] {
        let name = format!("state.db{suffix}");
        fs::copy(path.with_file_name(&name), elsewhere.path().join(&name)).unwrap();
    }
    elsewhere
}

/// A database that nobody has open.
fn closed() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    init(&db, None);
    db.close().unwrap();
    (dir, path)
}

#[test]
fn who_only_looks_leaves_the_journal_of_another_host_alone() {
    let (_dir, path) = closed();
    let elsewhere = in_the_middle(&path);
    let seen = elsewhere.path().join("state.db");
    let journal = elsewhere.path().join("state.db-journal");
    let before = (fs::read(&seen).unwrap(), fs::read(&journal).unwrap());
    let refused = StateDb::look_only(&seen, PATIENCE).unwrap_err();
    assert!(matches!(refused, StateError::Busy { .. }), "{refused:?}");
    assert!(refused.to_string().contains("another host"), "{refused}");
    assert!((fs::read(&seen).unwrap(), fs::read(&journal).unwrap()) == before);

    // Who may write takes it for left over.
    StateDb::open(&seen).unwrap().close().unwrap();
    assert!(!journal.exists() && fs::read(&seen).unwrap() != before.0);
    let db = StateDb::look_only(&seen, PATIENCE).unwrap();
    assert_eq!(db.stack().unwrap().len(), 2);
    assert_eq!(db.uuid().unwrap().as_deref(), Some("an-identity"));
    assert!(db.set_meta("a", b"b").unwrap_err().is_read_only());
}

#[test]
fn who_only_looks_waits_until_a_transaction_is_over() {
    let (_dir, path) = closed();
    let elsewhere = in_the_middle(&path);
    let seen = elsewhere.path().join("state.db");
    let whole = fs::read(&path).unwrap();
    let db = std::thread::scope(|scope| {
        let looking = scope.spawn(|| StateDb::look_only(&seen, BUSY_TIMEOUT).unwrap());
        // The other host rolls back by itself.
        fs::write(&seen, &whole).unwrap();
        fs::remove_file(elsewhere.path().join("state.db-journal")).unwrap();
        looking.join().unwrap()
    });
    assert_eq!(db.stack().unwrap().len(), 2);
}
