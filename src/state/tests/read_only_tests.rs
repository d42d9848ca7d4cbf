use std::fs;

use super::*;

const PATIENCE: Duration = Duration::from_millis(100);

/// What another host sees in the middle of a transaction, without the locks: the journal, and a
/// database that is half changed.
fn in_the_middle(path: &Path) -> tempfile::TempDir {
    let elsewhere = tempfile::tempdir().unwrap();
    let conn = StateDb::connect(path).unwrap();
    let db = StateDb::configure(conn, path, JournalMode::Rollback, Content::Existing).unwrap();
    let conn = db.lock();
    conn.execute_batch(
        "PRAGMA cache_size = 2; BEGIN IMMEDIATE; \
         INSERT INTO xattr WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) \
         SELECT 1, i, x'61', zeroblob(3000) FROM n",
    )
    .unwrap();
    for suffix in ["", "-journal"] {
        let name = format!("state.db{suffix}");
        fs::copy(path.with_file_name(&name), elsewhere.path().join(&name)).unwrap();
    }
    elsewhere
}

/// A database that no process has open.
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
    let refused = StateDb::open_file_read_only(&seen, PATIENCE).unwrap_err();
    assert!(matches!(refused, StateError::Busy { .. }), "{refused:?}");
    assert!(refused.to_string().contains("another host"), "{refused}");
    assert!((fs::read(&seen).unwrap(), fs::read(&journal).unwrap()) == before);

    // A process that may write treats the journal as left over.
    StateDb::open(&seen).unwrap().close().unwrap();
    assert!(fs::read(&journal).unwrap()[0] == 0 && fs::read(&seen).unwrap() != before.0);
    let db = StateDb::open_file_read_only(&seen, PATIENCE).unwrap();
    assert_eq!(db.stack().unwrap().len(), 2);
    assert_eq!(db.uuid().unwrap().as_deref(), Some("an-identity"));
    assert!(db.set_image_fingerprint(b"b").unwrap_err().is_read_only());
}

#[test]
fn who_only_looks_waits_until_a_transaction_is_over() {
    let (_dir, path) = closed();
    let elsewhere = in_the_middle(&path);
    let seen = elsewhere.path().join("state.db");
    let whole = fs::read(&path).unwrap();
    let db = std::thread::scope(|scope| {
        let looking = scope.spawn(|| StateDb::open_file_read_only(&seen, BUSY_TIMEOUT).unwrap());
        // The other host rolls back by itself.
        fs::write(&seen, &whole).unwrap();
        fs::remove_file(elsewhere.path().join("state.db-journal")).unwrap();
        looking.join().unwrap()
    });
    assert_eq!(db.stack().unwrap().len(), 2);
}

/// Names and content of what lies in a directory.
fn files(dir: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_look_changes_nothing_beside_a_writer_and_after_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let db = Arc::new(StateDb::create(&path).unwrap());
    let layer = init(&db, None).writable;
    db.keep_redo_log().unwrap();
    db.apply(layer, &[RowChange::put_inode(Ino(2), inode_row())])
        .unwrap();
    let before = files(dir.path());
    for lock in [LockState::Held, LockState::Free] {
        let seen = StateDb::open_read_only(&path, lock).unwrap();
        assert_eq!(seen.stack().unwrap().len(), 2);
        assert!(seen.set_image_fingerprint(b"b").unwrap_err().is_read_only());
        seen.close().unwrap();
    }
    assert_eq!(files(dir.path()), before, "beside a writer");
    db.end_clean().unwrap();
    drop(db);
    let before = files(dir.path());
    StateDb::open_read_only(&path, LockState::Free)
        .unwrap()
        .stack()
        .unwrap();
    assert_eq!(files(dir.path()), before, "after it");
}

#[test]
fn a_database_with_a_write_ahead_log_is_read_whole() {
    for look in [true, false] {
        let (live, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = live.path().join("state.db");
        let db = StateDb::create(&path).unwrap();
        let layer = init(&db, None).writable;
        db.close().unwrap();
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "journal_mode", "wal").unwrap();
        conn.execute_batch(
            "INSERT INTO dentry VALUES (1, 1, x'61', NULL); \
             UPDATE environment SET image_fingerprint = x'00'",
        )
        .unwrap();
        for suffix in ["", "-wal"] {
            let name = format!("state.db{suffix}");
            fs::copy(live.path().join(&name), old.path().join(&name)).unwrap();
        }
        let path = old.path().join("state.db");
        let db = match look {
            true => StateDb::open_read_only(&path, LockState::Free).unwrap(),
            false => StateDb::open(&path).unwrap(),
        };
        assert_eq!(db.load_layer(layer).unwrap().entries.len(), 1);
        assert_eq!(db.image_fingerprint().unwrap(), Some(vec![0]));
        db.close().unwrap();
        for suffix in ["-wal", "-shm"] {
            let beside = old.path().join(format!("state.db{suffix}"));
            assert!(!beside.exists(), "{suffix}, look: {look}");
        }
    }
}

#[test]
fn what_is_no_regular_file_is_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let refused = |what: &str| {
        for opened in [
            StateDb::open(&path),
            StateDb::open_read_only(&path, LockState::Free),
        ] {
            let refused = opened.unwrap_err();
            assert!(matches!(refused, StateError::NotADatabase { .. }));
            assert!(refused.to_string().contains(what), "{refused}");
        }
    };
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("a FIFO");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("a directory");
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    refused("a symbolic link");
}
