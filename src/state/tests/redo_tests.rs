use std::fs;

use super::*;

const RECORDS: u64 = 30;

/// A database that keeps a redo log, in a directory of its own, and its writable layer.
fn logged() -> (tempfile::TempDir, Arc<StateDb>, LayerId) {
    let dir = tempfile::tempdir().unwrap();
    let db = Arc::new(StateDb::create(&dir.path().join("state.db")).unwrap());
    let layer = init(&db, None).writable;
    db.keep_redo_log().unwrap();
    (dir, db, layer)
}

fn add(db: &StateDb, layer: LayerId, n: u64) {
    let entry = RowChange::put_entry(Ino(1), n.to_string().into_bytes(), Some(Ino(n)));
    db.apply(layer, &[RowChange::put_inode(Ino(n), inode_row()), entry])
        .unwrap();
}

/// What a killed process leaves: the files as they are now.
fn copy(from: &Path) -> (tempfile::TempDir, PathBuf) {
    let to = tempfile::tempdir().unwrap();
    for suffix in ["", "-journal", "-redo"] {
        let name = format!("state.db{suffix}");
        if from.join(&name).exists() {
            fs::copy(from.join(&name), to.path().join(&name)).unwrap();
        }
    }
    let path = to.path().join("state.db");
    (to, path)
}

fn reopen(path: &Path) -> Result<Arc<StateDb>> {
    let db = Arc::new(StateDb::open(path)?);
    db.keep_redo_log()?;
    Ok(db)
}

/// How many of the objects are there, which must be the first ones, each with its name.
fn count(db: &StateDb, layer: LayerId) -> u64 {
    let rows = db.load_layer(layer).unwrap();
    let found: Vec<u64> = rows.inodes.iter().map(|(ino, _)| ino.0).collect();
    assert_eq!(
        found,
        (2..2 + found.len() as u64).collect::<Vec<_>>(),
        "the first ones"
    );
    assert_eq!(rows.entries.len(), found.len(), "a change is whole");
    found.len() as u64
}

#[test]
fn what_is_only_in_the_log_survives_the_death_of_the_process() {
    let (dir, db, layer) = logged();
    (2..2 + RECORDS).for_each(|n| add(&db, layer, n));
    let (_kept, path) = copy(dir.path());
    let without = StateDb::open(&path).unwrap();
    assert_eq!(count(&without, layer), 0, "the database does not have them");
    drop(without);

    let again = reopen(&path).unwrap();
    assert_eq!(count(&again, layer), RECORDS);
    assert!(
        again.next_ino().unwrap() >= 2 + RECORDS,
        "no id is given twice"
    );
    // Once given they are not given again, and the numbers go on.
    again.apply(layer, &[RowChange::DropInode(Ino(2))]).unwrap();
    let (_kept, path) = copy(path.parent().unwrap());
    let third = reopen(&path).unwrap();
    assert_eq!(
        third.load_layer(layer).unwrap().inodes.len() as u64,
        RECORDS - 1
    );
}

#[test]
fn a_torn_log_gives_the_changes_before_the_tear() {
    let (dir, db, layer) = logged();
    (2..2 + RECORDS).for_each(|n| add(&db, layer, n));
    let log = fs::read(dir.path().join("state.db-redo")).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for cut in (8..log.len()).step_by(37).chain([log.len()]) {
        let (kept, path) = copy(dir.path());
        // Either the end is missing, or it is there and was never written.
        let mut torn = log[..cut].to_vec();
        if cut % 2 == 0 {
            torn.resize(log.len(), 0);
        }
        fs::write(kept.path().join("state.db-redo"), torn).unwrap();
        seen.insert(count(&reopen(&path).unwrap(), layer));
    }
    assert_eq!(seen, (0..=RECORDS).collect(), "after each of the changes");
}

#[test]
fn a_flipped_bit_ends_the_log_and_a_missing_record_is_an_error() {
    let (dir, db, layer) = logged();
    (2..6).for_each(|n| add(&db, layer, n));
    let at = dir.path().join("state.db-redo");
    let log = fs::read(&at).unwrap();
    let record = (log.len() - 8) / 4;
    for bit in (0..record * 8).step_by(11) {
        let (kept, path) = copy(dir.path());
        let mut flipped = log.clone();
        flipped[8 + record + bit / 8] ^= 1 << (bit % 8);
        fs::write(kept.path().join("state.db-redo"), flipped).unwrap();
        assert_eq!(count(&reopen(&path).unwrap(), layer), 1, "bit {bit}");
    }
    // The first record gone, the others whole: this is not what a crash leaves.
    let (kept, path) = copy(dir.path());
    let headless = [&log[..8], &log[8 + record..]].concat();
    fs::write(kept.path().join("state.db-redo"), headless).unwrap();
    let refused = reopen(&path).unwrap_err().to_string();
    assert!(refused.contains("record 1 is missing"), "{refused}");
    fs::write(kept.path().join("state.db-redo"), b"something else").unwrap();
    let refused = reopen(&path).unwrap_err().to_string();
    assert!(refused.contains("not a redo log"), "{refused}");
}

#[test]
fn who_asks_for_rows_gets_those_of_the_log_too_and_order_is_kept() {
    let (_dir, db, layer) = logged();
    add(&db, layer, 2);
    assert_eq!(count(&db, layer), 1);
    db.apply(layer, &[RowChange::DropInode(Ino(2))]).unwrap();
    db.apply(layer, &[RowChange::drop_entry(Ino(1), b"2".to_vec())])
        .unwrap();
    assert!(db.load_layer(layer).unwrap().is_empty());
    add(&db, layer, 2);
    let fresh = db.reserve_layer().unwrap();
    db.rotate(layer, fresh).unwrap();
    add(&db, fresh, 2);
    assert_eq!(count(&db, layer), 1);
    assert_eq!(count(&db, fresh), 1);
}

#[test]
fn a_large_log_begins_anew_and_nothing_is_lost() {
    let (dir, db, layer) = logged();
    let file = dir.path().join("state.db-redo");
    // The name makes the record large.
    let change = |n: u64| RowChange::PutXattr {
        ino: Ino(2),
        name: format!("user.{n}").into_bytes().into(),
        value: vec![7; 60_000].into(),
    };
    let mut largest = 0;
    for n in 0..400u64 {
        db.apply(layer, &[change(n)]).unwrap();
        if n % 50 == 49 {
            db.checkpoint().unwrap();
        }
        largest = largest.max(fs::metadata(&file).unwrap().len());
    }
    db.checkpoint().unwrap();
    assert!(largest < 20 << 20, "{largest}");
    assert!(
        fs::metadata(&file).unwrap().len() < 12 << 20,
        "it began anew"
    );
    let (_kept, path) = copy(dir.path());
    let again = reopen(&path).unwrap();
    assert_eq!(again.load_layer(layer).unwrap().xattrs.len(), 400);

    add(&db, layer, 2);
    db.end_clean().unwrap();
    assert!(!file.exists(), "a clean end leaves nothing");
    assert_eq!(count(&db, layer), 1);
    let refused = db.apply(layer, &[change(1)]).unwrap_err();
    assert!(refused.to_string().contains("closed"), "{refused}");
}

#[test]
fn an_end_is_clean_when_it_was_and_a_redo_log_that_is_left_says_otherwise() {
    let (dir, db, layer) = logged();
    let path = dir.path().join("state.db");
    add(&db, layer, 2);
    drop(db);
    assert!(!reopen(&path).unwrap().was_clean().unwrap(), "killed");
    let db = reopen(&path).unwrap();
    db.mark_unclean().unwrap();
    db.end_clean().unwrap();
    drop(db);
    let db = reopen(&path).unwrap();
    assert!(db.was_clean().unwrap());
    db.end_unclean().unwrap();
    drop(db);
    let db = reopen(&path).unwrap();
    assert!(!db.was_clean().unwrap(), "rows and files differ");
    db.end_clean().unwrap();
    assert!(reopen(&path).unwrap().was_clean().unwrap());
}

#[test]
fn records_of_a_layer_that_is_gone_are_passed_over() {
    let (_dir, db, layer) = logged();
    let fresh = db.reserve_layer().unwrap();
    db.discard_all(fresh, None).unwrap();
    add(&db, layer, 2);
    add(&db, fresh, 3);
    db.forget_layer(layer).unwrap();
    add(&db, layer, 4);
    assert_eq!(db.load_layer(fresh).unwrap().inodes.len(), 1);
    assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
}

#[test]
fn what_the_database_cannot_take_stays_in_the_log() {
    let (dir, db, layer) = logged();
    let pages: i64 = db
        .lock()
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .unwrap();
    let limit = |db: &StateDb, pages: i64| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        db.lock().query_row(&sql, [], |_| Ok(())).unwrap();
    };
    limit(&db, pages);
    (2..602).for_each(|n| add(&db, layer, n));
    let full = db.checkpoint().unwrap_err();
    assert!(full.is_no_space(), "{full}");
    let full = db.load_layer(layer).unwrap_err();
    assert!(full.is_no_space(), "rows are not shown in part: {full}");
    // Killed now, or with space again: all is there.
    let (_kept, path) = copy(dir.path());
    assert_eq!(count(&reopen(&path).unwrap(), layer), 600);
    limit(&db, 1 << 20);
    add(&db, layer, 602);
    assert_eq!(count(&db, layer), 601);
}

fn xattr(n: u64, len: usize) -> RowChange<'static> {
    RowChange::PutXattr {
        ino: Ino(2),
        name: format!("user.{n}").into_bytes().into(),
        value: vec![7; len].into(),
    }
}

#[test]
fn a_change_that_failed_is_never_applied() {
    let (dir, db, layer) = logged();
    let conn = |sql: &str| db.lock().query_row(sql, [], |_| Ok(())).unwrap();
    conn("PRAGMA max_page_count = 1");
    let taken = (0..5000).take_while(|n| db.apply(layer, &[xattr(*n, 60_000)]).is_ok());
    let taken = taken.count();
    assert!(taken > 200 && taken < 5000, "{taken}");
    let (_kept, path) = copy(dir.path());
    let again = reopen(&path).unwrap();
    assert_eq!(again.load_layer(layer).unwrap().xattrs.len(), taken);
    conn("PRAGMA max_page_count = 1000000");
    assert_eq!(db.load_layer(layer).unwrap().xattrs.len(), taken);
}

#[test]
fn a_change_of_any_length_is_read_again() {
    let (dir, db, layer) = logged();
    let long = 65 << 20;
    // The lock keeps the log from being written to the database, so that the next open applies it.
    let conn = db.lock();
    db.apply(layer, &[xattr(1, 1)]).unwrap();
    db.apply(layer, &[xattr(2, long)]).unwrap();
    let (_kept, path) = copy(dir.path());
    drop(conn);
    for db in [db, reopen(&path).unwrap()] {
        let xattrs = db.load_layer(layer).unwrap().xattrs;
        let found: Vec<usize> = xattrs.iter().map(|(_, _, value)| value.len()).collect();
        assert_eq!(found, [1, long]);
    }
}

#[test]
fn records_that_cannot_be_read_do_not_count_as_given() {
    let (dir, db, layer) = logged();
    let other = dir.path().join("other-redo");
    let (mut redo, _) = redo::Redo::open(&other, 7).unwrap();
    redo.append(layer, &[xattr(1, 1)]).unwrap();
    let before = redo.take();
    redo.append(layer, &[xattr(2, 1)]).unwrap();
    drop(redo.take());
    redo.put_back(before);
    // Two records were made, and the first is all that is there.
    let refused = db.apply_redo(&db.lock(), &redo.take()).unwrap_err();
    assert!(matches!(refused, StateError::Corrupt { .. }), "{refused}");
    assert!(db.load_layer(layer).unwrap().is_empty());
}

#[test]
fn records_that_say_impossible_things_are_not_applied() {
    let slash = || b"../../../secret".as_slice();
    let mut placed = inode_row();
    placed.place = Some((Ino(1), slash().into()));
    let mut root = inode_row();
    root.place = None;
    for (change, what) in [
        (RowChange::put_inode(Ino(5), placed), "is a path"),
        (RowChange::put_inode(Ino(1), root), "root"),
        (
            RowChange::put_inode(Ino(u64::MAX), inode_row()),
            "object id",
        ),
        (RowChange::put_inode(Ino(0), inode_row()), "object id"),
        (
            RowChange::put_entry(Ino(1), slash(), Some(Ino(5))),
            "is a path",
        ),
        (
            RowChange::put_entry(Ino(1), b"..".as_slice(), None),
            "no name",
        ),
        (
            RowChange::put_entry(Ino(5), b"a".as_slice(), Some(Ino(1))),
            "root",
        ),
        (
            RowChange::put_xattr(Ino(5), b"user.a\0".as_slice(), slash()),
            "attribute name",
        ),
    ] {
        let (dir, db, layer) = logged();
        // Nothing of ours makes such a change; a log that does was made by another program.
        db.apply(layer, &[change]).unwrap();
        let (_kept, path) = copy(dir.path());
        let error = reopen(&path).unwrap_err().to_string();
        assert!(
            error.contains(what) && error.contains("record 1"),
            "{error}"
        );
        let unchanged = StateDb::open(&path).unwrap();
        assert!(unchanged.load_layer(layer).unwrap().is_empty());
    }
}

#[test]
fn a_length_alone_makes_no_room_for_a_record() {
    let (dir, db, layer) = logged();
    add(&db, layer, 2);
    let (kept, path) = copy(dir.path());
    let log = fs::OpenOptions::new()
        .append(true)
        .open(kept.path().join("state.db-redo"))
        .unwrap();
    // A record that is said to have 4 GiB, in a file that is shorter.
    std::io::Write::write_all(&mut &log, &[0xff; 12]).unwrap();
    log.set_len(1 << 20).unwrap();
    assert_eq!(count(&reopen(&path).unwrap(), layer), 1);
}

#[test]
fn a_log_that_is_a_link_or_a_fifo_is_refused_and_named() {
    let (dir, db, _) = logged();
    for odd in ["link", "fifo"] {
        let (kept, path) = copy(dir.path());
        let log = kept.path().join("state.db-redo");
        let outside = kept.path().join("outside");
        fs::rename(&log, &outside).unwrap();
        match odd {
            "link" => std::os::unix::fs::symlink(&outside, &log).unwrap(),
            _ => nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        }
        let error = reopen(&path).unwrap_err().to_string();
        assert!(error.contains("state.db-redo is a"), "{error}");
    }
    drop(db);
}
