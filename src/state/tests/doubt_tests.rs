use super::doubt::CommitFault;
use super::*;

/// Lets the next COMMITs fail.
fn fail(db: &StateDb, how: &[CommitFault]) {
    db.failing.lock().unwrap().extend(how);
}

#[test]
fn a_commit_that_fails_and_has_happened_counts_and_one_that_has_not_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let db = StateDb::create(&path).unwrap();
    let first = init(&db, None);
    let fresh = db.reserve_layer().unwrap();
    fail(&db, &[CommitFault::Before]);
    let refused = db.rotate(first.writable, fresh).unwrap_err();
    assert!(matches!(refused, StateError::Sql { .. }), "{refused}");
    assert_eq!(db.stack().unwrap().len(), 2);

    fail(&db, &[CommitFault::After]);
    db.rotate(first.writable, fresh).unwrap();
    assert_eq!(db.stack().unwrap().len(), 3);
    // What it returns is of the transaction that has happened.
    fail(&db, &[CommitFault::After]);
    assert_eq!(db.unrotate(fresh).unwrap(), first.writable);
    let fresh = db.reserve_layer().unwrap();
    fail(&db, &[CommitFault::After]);
    let trashed = db.discard_all(fresh, None).unwrap();
    assert_eq!(trashed, [first.writable]);
    db.close().unwrap();
    assert_eq!(StateDb::open(&path).unwrap().stack().unwrap()[0].id, fresh);
}

#[test]
fn nothing_is_written_after_a_commit_in_doubt() {
    for first in [CommitFault::Before, CommitFault::After] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let db = Arc::new(StateDb::create(&path).unwrap());
        let layer = init(&db, None).writable;
        db.keep_redo_log().unwrap();
        let changes = [RowChange::put_inode(Ino(2), inode_row())];
        db.apply(layer, &changes).unwrap();
        db.checkpoint().unwrap();
        fail(&db, &[first, CommitFault::Before]);
        let is_refused = |done: Result<()>| matches!(done, Err(StateError::InDoubt { .. }));
        assert!(is_refused(db.set_image_fingerprint(b"red")));
        assert!(is_refused(db.set_image_fingerprint(b"blue")));
        assert!(is_refused(db.apply(layer, &changes)));
        assert!(is_refused(db.reserve_inos(1).map(drop)));
        assert_eq!(db.load_layer(layer).unwrap().inodes.len(), 1);
        drop(db);
        let db = StateDb::open(&path).unwrap();
        let kept = (first == CommitFault::After).then(|| b"red".to_vec());
        assert_eq!(db.image_fingerprint().unwrap(), kept);
        db.set_image_fingerprint(b"blue").unwrap();
    }
}

#[test]
fn what_there_was_no_room_for_leaves_no_doubt() {
    let db = StateDb::in_memory().unwrap();
    // The next one would fail, too.
    fail(&db, &[CommitFault::Full, CommitFault::Before]);
    let full = db.reserve_inos(1).unwrap_err();
    assert!(full.is_no_space(), "{full}");
    db.failing.lock().unwrap().clear();
    db.set_image_fingerprint(b"blue").unwrap();
}
