use super::*;

#[test]
fn rows_are_read_back_as_they_were_written() {
    let db = StateDb::in_memory().unwrap();
    let layer = init(&db, None).writable;
    assert!(db.load_layer(layer).unwrap().is_empty());
    let file = inode_row();
    let mut link = inode_row();
    link.kind = Kind::Symlink;
    link.target = Some(b"".as_slice().into());
    link.place = None;
    link.data = DataPlace::Lower;
    link.owns_xattrs = true;
    link.backing_ino = 0;
    db.apply(
        layer,
        &[
            RowChange::put_inode(Ino(7), &link),
            RowChange::put_inode(Ino(5), file.clone()),
            RowChange::put_entry(Ino(1), b"\xff-".as_slice(), Some(Ino(5))),
            RowChange::put_entry(Ino(1), b"gone".as_slice(), None),
            RowChange::put_xattr(Ino(7), b"user.a".as_slice(), vec![0; 65_536]),
            RowChange::put_xattr(Ino(7), b"user.b".as_slice(), b"".as_slice()),
        ],
    )
    .unwrap();
    let rows = db.load_layer(layer).unwrap();
    assert_eq!(rows.inodes, [(Ino(5), file), (Ino(7), link)]);
    assert_eq!(
        rows.entries,
        [
            (Ino(1), b"gone".as_slice().into(), None),
            (Ino(1), b"\xff-".as_slice().into(), Some(Ino(5))),
        ]
    );
    assert_eq!(rows.xattrs.len(), 2);
    assert_eq!(rows.xattrs[0].2.len(), 65_536);
    assert!(!rows.is_empty());
    assert!(db.load_layer(LayerId(99)).unwrap().is_empty());
}

#[test]
fn every_kind_of_row_can_be_dropped() {
    let db = StateDb::in_memory().unwrap();
    let layer = init(&db, None).writable;
    let mut changes = Vec::new();
    for n in 2..6 {
        changes.push(RowChange::put_inode(Ino(n), inode_row()));
        changes.push(RowChange::put_entry(Ino(1), vec![n as u8], Some(Ino(n))));
        changes.push(RowChange::put_entry(Ino(n), b"x".as_slice(), None));
        changes.push(RowChange::put_xattr(
            Ino(n),
            b"a".as_slice(),
            b"1".as_slice(),
        ));
        changes.push(RowChange::put_xattr(
            Ino(n),
            b"b".as_slice(),
            b"2".as_slice(),
        ));
    }
    db.apply(layer, &changes).unwrap();
    db.apply(
        layer,
        &[
            RowChange::DropInode(Ino(2)),
            RowChange::drop_entry(Ino(1), vec![2]),
            RowChange::DropEntriesOf(Ino(3)),
            RowChange::drop_xattr(Ino(2), b"a".as_slice()),
            RowChange::DropXattrs(Ino(4)),
            RowChange::DropInode(Ino(99)),
        ],
    )
    .unwrap();
    let rows = db.load_layer(layer).unwrap();
    assert_eq!(
        (rows.inodes.len(), rows.entries.len(), rows.xattrs.len()),
        (3, 6, 5)
    );
    db.apply(layer, &[RowChange::DropEntriesOf(Ino(1))])
        .unwrap();
    assert_eq!(db.load_layer(layer).unwrap().entries.len(), 3);
}

#[test]
fn a_change_that_fails_takes_the_whole_set_with_it() {
    let db = StateDb::in_memory().unwrap();
    let layer = init(&db, None).writable;
    db.lock()
        .execute_batch(
            "CREATE TRIGGER no BEFORE INSERT ON xattr BEGIN SELECT raise(ABORT, 'no'); END",
        )
        .unwrap();
    let changes = [
        RowChange::put_inode(Ino(2), inode_row()),
        RowChange::put_xattr(Ino(2), b"a".as_slice(), b"1".as_slice()),
    ];
    assert!(matches!(
        db.apply(layer, &changes),
        Err(StateError::Sql { .. })
    ));
    assert!(db.load_layer(layer).unwrap().is_empty());
    db.apply(layer, &changes[..1]).unwrap();
    assert_eq!(db.load_layer(layer).unwrap().inodes.len(), 1);
}

#[test]
fn a_panic_inside_a_transaction_rolls_it_back_and_leaves_the_database_usable() {
    let db = StateDb::in_memory().unwrap();
    let layer = init(&db, None).writable;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        db.write("panic", |conn| -> Result<()> {
            conn.execute("UPDATE environment SET uuid = 'half'", [])
                .unwrap();
            panic!("in the middle");
        })
    }));
    assert!(outcome.is_err());
    assert_eq!(db.uuid().unwrap().as_deref(), Some("an-identity"));
    db.apply(layer, &[RowChange::DropInode(Ino(2))]).unwrap();
}

#[test]
fn impossible_values_are_told_and_not_believed() {
    let db = StateDb::in_memory().unwrap();
    let layer = init(&db, None).writable;
    for set in [
        "kind = 9",
        "kind = -1",
        "mode = 65535",
        "mode = -1",
        "mtime_ns = 1000000000",
        "data = 3",
        "place_dir = NULL",
    ] {
        db.apply(layer, &[RowChange::put_inode(Ino(2), inode_row())])
            .unwrap();
        db.lock()
            .execute(&format!("UPDATE inode SET {set}"), [])
            .unwrap();
        let refused = db.load_layer(layer);
        assert!(
            matches!(refused, Err(StateError::BadRow { .. })),
            "{set}: {refused:?}"
        );
    }
    for set in ["uid = -1", "nlink = 4294967296"] {
        db.apply(layer, &[RowChange::put_inode(Ino(2), inode_row())])
            .unwrap();
        db.lock()
            .execute(&format!("UPDATE inode SET {set}"), [])
            .unwrap();
        assert!(db.load_layer(layer).is_err(), "{set}");
    }
}

#[test]
fn identity_gives_the_root_id_one() {
    let map = IdMap::identity(5, 3).unwrap();
    let inos: Vec<_> = (0..=6).map(|n| map.ino_of(n).map(|ino| ino.0)).collect();
    assert_eq!(
        inos,
        [None, Some(3), Some(2), Some(1), Some(4), Some(5), None]
    );
    for (inodes, root) in [(1, 1), (2, 2), (5, 5), (5, 1), (u32::MAX, u32::MAX)] {
        let map = IdMap::identity(inodes, root).unwrap();
        assert_eq!(map.ino_of(root), Some(Ino::ROOT));
        assert_eq!(map.number_of(Ino::ROOT), Some(root));
        assert_eq!(map.len(), u64::from(inodes));
        assert_eq!(map.max_ino(), Some(Ino(u64::from(inodes))));
        assert_eq!(IdMap::from_bytes(&map.to_bytes()).unwrap(), map);
    }
    assert!(IdMap::identity(5, 6).is_err());
    assert!(IdMap::identity(5, 0).is_err());
    assert!(IdMap::identity(0, 0).is_err());
}

#[test]
fn maps_that_are_not_one_to_one_are_refused() {
    let run = |first_number, first_ino, count| IdRun {
        first_number,
        first_ino,
        count,
    };
    for runs in [
        vec![run(0, 1, 1)],
        vec![run(1, 0, 1)],
        vec![run(1, 1, 0)],
        vec![run(1, 1, 5), run(5, 20, 1)],
        vec![run(1, 1, 5), run(6, 5, 1)],
        vec![run(1, 10, 5), run(6, 6, 5)],
        vec![run(u32::MAX, 1, 2)],
        vec![run(1, i64::MAX as u64, 1)],
    ] {
        assert!(IdMap::from_runs(runs.clone()).is_err(), "{runs:?}");
    }
    let joined = IdMap::from_runs([run(1, 1, 5), run(6, 6, 5)]).unwrap();
    assert_eq!(joined.runs().len(), 1);
    assert!(IdMap::from_ascending([Ino(2), Ino(2)]).is_err());
    assert!(IdMap::from_ascending([Ino(0)]).is_err());
    assert!(IdMap::from_ascending([]).unwrap().is_empty());
}

proptest! {
    #[test]
    fn id_maps_survive_the_round_trip(
        mut inos in proptest::collection::btree_set(1u64..400, 0..300),
        far in proptest::collection::btree_set(any::<u64>().prop_map(|n| 1000 + (n >> 2)), 0..5),
        absent in 1u64..500,
    ) {
        inos.extend(far);
        let inos: Vec<u64> = inos.into_iter().collect();
        let map = IdMap::from_ascending(inos.iter().copied().map(Ino)).unwrap();
        let map = {
            let read = IdMap::from_bytes(&map.to_bytes()).unwrap();
            prop_assert_eq!(&read, &map);
            read
        };
        for (index, ino) in inos.iter().enumerate() {
            let number = index as u32 + 1;
            prop_assert_eq!(map.ino_of(number), Some(Ino(*ino)));
            prop_assert_eq!(map.number_of(Ino(*ino)), Some(number));
        }
        prop_assert_eq!(map.ino_of(0), None);
        prop_assert_eq!(map.ino_of(inos.len() as u32 + 1), None);
        if !inos.contains(&absent) {
            prop_assert_eq!(map.number_of(Ino(absent)), None);
        }
        prop_assert_eq!(map.len(), inos.len() as u64);
    }

    #[test]
    fn shuffled_runs_survive_the_round_trip(
        order in Just((0u64..20).collect::<Vec<_>>()).prop_shuffle(),
        lengths in proptest::collection::vec((0u32..3, 1u32..9), 20),
    ) {
        let mut runs = Vec::new();
        let mut next = 1u32;
        for (slot, (gap, count)) in order.iter().zip(&lengths) {
            runs.push(IdRun { first_number: next + gap, first_ino: 1 + slot * 10, count: *count });
            next += gap + count;
        }
        let map = IdMap::from_runs(runs.clone()).unwrap();
        prop_assert_eq!(&IdMap::from_bytes(&map.to_bytes()).unwrap(), &map);
        for run in runs {
            for offset in 0..run.count {
                let ino = Ino(run.first_ino + u64::from(offset));
                prop_assert_eq!(map.ino_of(run.first_number + offset), Some(ino));
                prop_assert_eq!(map.number_of(ino), Some(run.first_number + offset));
            }
        }
    }

    #[test]
    fn any_bytes_are_safe_to_read_as_a_map(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..60),
        versioned in any::<bool>(),
    ) {
        if versioned && !bytes.is_empty() {
            bytes[0] = 1;
        }
        if let Ok(map) = IdMap::from_bytes(&bytes) {
            prop_assert_eq!(IdMap::from_bytes(&map.to_bytes()).unwrap(), map);
        }
    }
}

#[test]
fn objects_are_taken_out_of_a_map() {
    let map = IdMap::identity(10, 10).unwrap();
    let gone = [Ino(3), Ino(5), Ino(6), Ino(9), Ino(77)];
    let left = IdMap::from_runs(map.runs_without(&gone)).unwrap();
    assert_eq!(left.len(), 6);
    for number in 1..=10 {
        let ino = map.ino_of(number).unwrap();
        let expected = (!gone.contains(&ino)).then_some(ino);
        assert_eq!(left.ino_of(number), expected);
        assert_eq!(left.number_of(ino), expected.map(|_| number));
    }
    assert_eq!(map.runs_without(&[]), map.runs());
}
