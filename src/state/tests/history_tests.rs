use super::*;

fn ids(db: &StateDb) -> Vec<i64> {
    db.stack().unwrap().iter().map(|layer| layer.id.0).collect()
}

fn parts(db: &StateDb) -> Vec<StackPart> {
    db.stack().unwrap().iter().map(|layer| layer.part).collect()
}

fn commit(db: &StateDb, inos: impl IntoIterator<Item = u64>) -> RevisionId {
    let stack = db.stack().unwrap();
    let fresh = db.reserve_layer().unwrap();
    db.rotate(stack[0].id, fresh).unwrap();
    db.publish_commit(&PublishCommit {
        parent: db.current_revision().unwrap().unwrap().id,
        image: new_image(db, inos),
        replaces: db.stack().unwrap()[1..].iter().map(|l| l.id).collect(),
        prefix: None,
        revision: new_revision("commit"),
        place: CommitPlace::Next,
    })
    .unwrap()
}

#[test]
fn an_empty_environment_is_one_writable_layer_over_an_empty_image() {
    let db = StateDb::in_memory().unwrap();
    assert_eq!(db.stack().unwrap(), []);
    assert_eq!(db.current_revision().unwrap(), None);
    let begun = init(&db, None);
    assert_eq!(
        parts(&db),
        [StackPart::Writable, StackPart::Image(ImageId(1))]
    );
    let revision = db.current_revision().unwrap().unwrap();
    assert_eq!(
        (revision.id, revision.image, revision.parent),
        (begun.revision, ImageId(1), None)
    );
    assert_eq!(revision.kind, RevisionKind::Create);
    assert_eq!(
        db.prefix().unwrap().unwrap(),
        Path::new("/home/someone/env")
    );
    assert_eq!(db.uuid().unwrap().as_deref(), Some("an-identity"));
    assert_eq!(db.next_ino().unwrap(), 2);
    assert!(db.was_clean().unwrap());
    assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
}

#[test]
fn an_environment_is_initialised_once_and_has_an_image() {
    let db = StateDb::in_memory().unwrap();
    let begin = |images| {
        db.init_environment(&InitEnvironment {
            uuid: String::new(),
            origin: None,
            prefix: PathBuf::new(),
            images,
            kind: RevisionKind::Create,
            revision: new_revision(""),
        })
    };
    let without = begin(Vec::new());
    assert!(matches!(without, Err(StateError::Conflict { .. })));
    init(&db, None);
    let again = begin(vec![new_image(&db, [1])]);
    assert!(matches!(again, Err(StateError::Conflict { .. })));
}

#[test]
fn new_objects_get_ids_above_those_of_the_image() {
    let db = StateDb::in_memory().unwrap();
    let image = new_image(&db, [1, 2, 70]);
    init(&db, Some(image));
    assert_eq!(db.reserve_inos(10).unwrap(), 71..81);
    assert_eq!(db.reserve_inos(1).unwrap(), 81..82);
    let raise = |at_least| db.raise(&db.lock(), "ino", at_least, "test");
    raise(50).unwrap();
    assert_eq!(db.next_ino().unwrap(), 82);
    raise(500).unwrap();
    assert_eq!(db.reserve_inos(1).unwrap(), 500..501);
    assert!(raise(u64::MAX).is_err());
    assert!(db.reserve_inos(u64::MAX).is_err());
    assert_eq!(db.next_ino().unwrap(), 501);
}

#[test]
fn rotation_freezes_the_top_and_puts_a_fresh_layer_on_it() {
    let db = StateDb::in_memory().unwrap();
    let image = new_image(&db, 1..=3);
    let begun = init(&db, Some(image));
    let fresh = db.reserve_layer().unwrap();
    db.rotate(begun.writable, fresh).unwrap();
    let image = StackPart::Image(ImageId(1));
    assert_eq!(parts(&db), [StackPart::Writable, StackPart::Frozen, image]);
    assert_eq!(db.stack().unwrap()[0].id, fresh);

    let another = db.reserve_layer().unwrap();
    assert_ne!(another, fresh);
    let stale = db.rotate(begun.writable, another);
    assert!(
        matches!(stale, Err(StateError::Conflict { .. })),
        "{stale:?}"
    );
    let used = db.rotate(fresh, begun.writable);
    assert!(matches!(used, Err(StateError::Conflict { .. })), "{used:?}");
    assert_eq!(ids(&db)[0], fresh.0);
    assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_commit_replaces_frozen_layers_and_image_by_the_new_image() {
    let db = StateDb::in_memory().unwrap();
    let first = new_image(&db, 1..=3);
    let begun = init(&db, Some(first));
    let (b, c) = (db.reserve_layer().unwrap(), db.reserve_layer().unwrap());
    db.rotate(begun.writable, b).unwrap();
    db.rotate(b, c).unwrap();
    let replaces: Vec<LayerId> = db.stack().unwrap()[1..].iter().map(|l| l.id).collect();
    assert_eq!(replaces.len(), 3);
    let revision = db
        .publish_commit(&PublishCommit {
            parent: begun.revision,
            image: new_image(&db, [1, 2, 3, 9]),
            replaces,
            prefix: None,
            revision: new_revision("second"),
            place: CommitPlace::Next,
        })
        .unwrap();
    assert_eq!(
        parts(&db),
        [StackPart::Writable, StackPart::Image(ImageId(2))]
    );
    assert_eq!(db.stack().unwrap()[0].id, c);
    let current = db.current_revision().unwrap().unwrap();
    assert_eq!(current.id, revision);
    assert_eq!(current.parent, Some(begun.revision));
    assert_eq!(current.image, ImageId(2));
    assert_eq!(db.next_ino().unwrap(), 10);
    assert_eq!(db.images().unwrap().len(), 2);
    let retired: Vec<i64> = db
        .layers()
        .unwrap()
        .iter()
        .filter(|layer| layer.role == LayerRole::Retired)
        .map(|layer| layer.id.0)
        .collect();
    assert_eq!(retired, [begun.writable.0, b.0]);
    db.forget_layer(b).unwrap();
    assert_eq!(db.layers().unwrap().len(), 3);
    db.forget_layer(c).unwrap_err();
    assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_commit_that_does_not_fit_the_stack_changes_nothing() {
    let db = StateDb::in_memory().unwrap();
    let first = new_image(&db, 1..=3);
    let begun = init(&db, Some(first));
    let (b, c) = (db.reserve_layer().unwrap(), db.reserve_layer().unwrap());
    db.rotate(begun.writable, b).unwrap();
    db.rotate(b, c).unwrap();
    let [_, frozen, older, image] = db.stack().unwrap()[..] else {
        panic!("four layers");
    };
    let before = (
        db.stack().unwrap(),
        db.images().unwrap(),
        db.revisions().unwrap(),
    );
    let next = new_image(&db, 1..=4);
    for replaces in [
        vec![],
        vec![c, frozen.id, older.id, image.id],
        vec![frozen.id, image.id],
        vec![frozen.id, older.id],
        vec![frozen.id, older.id, image.id, LayerId(99)],
    ] {
        let refused = db.publish_commit(&PublishCommit {
            parent: begun.revision,
            image: next.clone(),
            replaces: replaces.clone(),
            prefix: None,
            revision: new_revision("no"),
            place: CommitPlace::Next,
        });
        assert!(
            matches!(refused, Err(StateError::Conflict { .. })),
            "{replaces:?} {refused:?}"
        );
    }
    let refused = db.publish_commit(&PublishCommit {
        parent: RevisionId(7),
        image: next,
        replaces: vec![frozen.id, older.id, image.id],
        prefix: None,
        revision: new_revision("no"),
        place: CommitPlace::Next,
    });
    assert!(
        matches!(refused, Err(StateError::Conflict { .. })),
        "{refused:?}"
    );
    let after = (
        db.stack().unwrap(),
        db.images().unwrap(),
        db.revisions().unwrap(),
    );
    assert_eq!(before, after);
}

#[test]
fn discard_sends_every_upper_to_the_trash() {
    let db = StateDb::in_memory().unwrap();
    let first = new_image(&db, 1..=3);
    let begun = init(&db, Some(first));
    let (b, c) = (db.reserve_layer().unwrap(), db.reserve_layer().unwrap());
    db.rotate(begun.writable, b).unwrap();
    assert_eq!(db.discard_all(c, None).unwrap(), [b, begun.writable]);
    assert_eq!(
        parts(&db),
        [StackPart::Writable, StackPart::Image(ImageId(1))]
    );
    assert_eq!(db.stack().unwrap()[0].id, c);
    let trash = db.layers().unwrap();
    let trash = trash.iter().filter(|l| l.role == LayerRole::Trash).count();
    assert_eq!(trash, 2);
    assert_eq!(db.current_revision().unwrap().unwrap().id, begun.revision);
}

#[test]
fn rollback_appends_a_revision_and_forgets_none() {
    let db = StateDb::in_memory().unwrap();
    let begun = init(&db, None);
    let second = commit(&db, 1..=2);
    let third = commit(&db, 1..=3);
    assert_eq!(
        parts(&db),
        [StackPart::Writable, StackPart::Image(ImageId(3))]
    );

    let fresh = db.reserve_layer().unwrap();
    let back = db
        .rollback_to(second, fresh, &new_revision("back"))
        .unwrap();
    assert_eq!(back.trashed.len(), 1);
    assert_eq!(
        parts(&db),
        [StackPart::Writable, StackPart::Image(ImageId(2))]
    );
    let current = db.current_revision().unwrap().unwrap();
    assert_eq!(current.id, back.revision);
    assert_eq!(current.parent, Some(third));
    assert_eq!(current.source, Some(second));
    assert_eq!(current.kind, RevisionKind::Rollback);

    let fresh = db.reserve_layer().unwrap();
    db.rollback_to(begun.revision, fresh, &new_revision("empty"))
        .unwrap();
    assert_eq!(
        parts(&db),
        [StackPart::Writable, StackPart::Image(ImageId(1))]
    );
    let fresh = db.reserve_layer().unwrap();
    db.rollback_to(third, fresh, &new_revision("forth"))
        .unwrap();
    assert_eq!(
        parts(&db),
        [StackPart::Writable, StackPart::Image(ImageId(3))]
    );
    assert_eq!(db.revisions().unwrap().len(), 6);
    let fresh = db.reserve_layer().unwrap();
    assert!(
        db.rollback_to(RevisionId(99), fresh, &new_revision(""))
            .is_err()
    );
    assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
}

#[test]
fn what_is_in_use_cannot_be_forgotten() {
    let db = StateDb::in_memory().unwrap();
    let first = new_image(&db, 1..=3);
    let begun = init(&db, Some(first));
    let second = commit(&db, 1..=4);
    db.set_tag("golden", begun.revision).unwrap();
    assert!(db.set_tag("none", RevisionId(99)).is_err());
    assert_eq!(db.tags().unwrap()[0].revision, begun.revision);
    assert!(db.forget_revision(second).is_err());
    assert!(db.forget_revision(begun.revision).is_err());
    assert!(db.forget_image(ImageId(1)).is_err());
    assert!(db.remove_tag("golden").unwrap());
    assert!(!db.remove_tag("golden").unwrap());
    db.forget_revision(begun.revision).unwrap();
    db.forget_image(ImageId(1)).unwrap();
    assert_eq!(db.image(ImageId(1)).unwrap(), None);
    assert!(db.forget_image(ImageId(2)).is_err());
    assert_eq!(
        db.current_revision().unwrap().unwrap().parent,
        Some(begun.revision)
    );
    let third = commit(&db, 1..=5);
    assert!(third > second);
}

#[test]
fn an_image_keeps_its_map_and_digests() {
    let db = StateDb::in_memory().unwrap();
    let mut image = new_image(&db, [1, 5, 6]);
    image.digests = Some(vec![2; 1000]);
    image.dead_bytes = 77;
    let map = image.id_map.clone();
    init(&db, Some(image));
    assert_eq!(db.id_map(ImageId(1)).unwrap(), Some(map));
    assert_eq!(db.id_map(ImageId(2)).unwrap(), None);
    assert_eq!(db.image_digests(ImageId(1)).unwrap().unwrap().len(), 1000);
    let row = db.image(ImageId(1)).unwrap().unwrap();
    assert_eq!((row.dead_bytes, row.inodes, row.offset), (77, 3, None));
    for offset in [Some(i64::MAX as u64), None] {
        db.set_image_offset(ImageId(1), offset).unwrap();
        assert_eq!(db.image(ImageId(1)).unwrap().unwrap().offset, offset);
    }
    assert!(db.set_image_offset(ImageId(1), Some(u64::MAX)).is_err());
    assert!(db.set_image_offset(ImageId(2), Some(0)).is_err());
    db.lock()
        .execute("UPDATE image SET id_map = x'01ff'", [])
        .unwrap();
    assert!(matches!(
        db.id_map(ImageId(1)),
        Err(StateError::BadRow { .. })
    ));
}

#[test]
fn only_an_amended_image_may_know_fewer_objects_than_it_has_inodes() {
    let db = StateDb::in_memory().unwrap();
    let image_of = |inodes, tables_appended| NewImage {
        inodes,
        tables_appended,
        ..new_image(&db, [1, 5, 6])
    };
    for (inodes, tables_appended, is_taken) in [
        (2, Some(100), false),
        (3, None, true),
        (4, None, false),
        (4, Some(0), false),
        (4, Some(100), true),
    ] {
        let image = image_of(inodes, tables_appended);
        let done = db.insert_image(&db.lock(), &image, "test");
        assert_eq!(done.is_ok(), is_taken, "{inodes} {tables_appended:?}");
    }
}

#[test]
fn facts_of_the_environment_are_kept() {
    let db = StateDb::in_memory().unwrap();
    assert!(db.was_clean().unwrap());
    db.mark_unclean().unwrap();
    assert!(!db.was_clean().unwrap());
    db.end_clean().unwrap();
    assert!(db.was_clean().unwrap());
    assert_eq!(db.image_fingerprint().unwrap(), None);
    db.set_image_fingerprint(b"\xff\0").unwrap();
    let found = db.image_fingerprint().unwrap();
    assert_eq!(found.as_deref(), Some(b"\xff\0".as_slice()));
    assert_eq!(db.image_owner().unwrap(), None);
    db.set_image_owner(0, u32::MAX).unwrap();
    assert_eq!(db.image_owner().unwrap(), Some((0, u32::MAX)));
    assert_eq!(db.home_id().unwrap(), None);
    let home = HomeId {
        ino: u64::MAX,
        born: i64::MAX,
    };
    db.set_home_id(home).unwrap();
    assert_eq!(db.home_id().unwrap(), Some(home));
}

#[test]
fn link_counts_are_kept_until_their_image_is_forgotten() {
    let db = StateDb::in_memory().unwrap();
    let first = new_image(&db, 1..=3);
    let begun = init(&db, Some(first));
    let image = LinksIn::Image(ImageId(1));
    let counts = [(Ino(1), 9), (Ino(1 << 40), u32::MAX)].into();
    db.set_link_counts(image, &counts).unwrap();
    db.set_link_counts(LinksIn::Stack, &[(Ino(2), 7)].into())
        .unwrap();
    assert_eq!(db.link_counts(image).unwrap(), counts);
    db.set_link_counts(image, &[(Ino(3), 1)].into()).unwrap();
    assert_eq!(db.link_counts(image).unwrap(), [(Ino(3), 1)].into());
    assert_eq!(db.integrity_check().unwrap(), Vec::<String>::new());
    commit(&db, 1..=4);
    db.forget_revision(begun.revision).unwrap();
    db.forget_image(ImageId(1)).unwrap();
    assert!(db.link_counts(image).unwrap().is_empty());
    assert_eq!(db.link_counts(LinksIn::Stack).unwrap().len(), 1);
}

#[test]
fn a_database_without_facts_is_refused_and_gains_none() {
    let db = StateDb::in_memory().unwrap();
    init(&db, None);
    db.lock().execute("DELETE FROM environment", []).unwrap();
    for refused in [
        db.uuid().map(drop),
        db.was_clean().map(drop),
        db.set_image_owner(1, 2),
        db.reserve_layer().map(drop),
    ] {
        assert!(matches!(refused, Err(StateError::BadRow { .. })));
    }
    assert!(!db.integrity_check().unwrap().is_empty());
}

#[test]
fn the_check_names_what_is_wrong() {
    let db = StateDb::in_memory().unwrap();
    init(&db, None);
    db.apply(LayerId(50), &[RowChange::put_inode(Ino(900), inode_row())])
        .unwrap();
    let wrong = db.integrity_check().unwrap().join("\n");
    assert!(wrong.contains("unknown layer 50"), "{wrong}");
    assert!(wrong.contains("object id 900"), "{wrong}");
}

#[test]
fn the_first_commit_may_replace_the_revision_of_an_empty_environment() {
    let db = StateDb::in_memory().unwrap();
    let begun = init(&db, None);
    let publish = |place: CommitPlace, message: &str| {
        let stack = db.stack().unwrap();
        db.rotate(stack[0].id, db.reserve_layer().unwrap()).unwrap();
        db.publish_commit(&PublishCommit {
            parent: db.current_revision().unwrap().unwrap().id,
            image: new_image(&db, [1, 2]),
            replaces: db.stack().unwrap()[1..].iter().map(|l| l.id).collect(),
            revision: new_revision(message),
            place,
            prefix: None,
        })
        .unwrap()
    };
    assert_eq!(publish(CommitPlace::First, "filled"), begun.revision);
    let first = db.current_revision().unwrap().unwrap();
    assert_eq!(
        (first.message.as_str(), first.image),
        ("filled", ImageId(2))
    );
    assert_eq!((first.kind, first.parent), (RevisionKind::Create, None));
    let images: Vec<ImageId> = db.images().unwrap().iter().map(|row| row.id).collect();
    assert_eq!(images, [ImageId(2)]);
    // Not if there are others.
    publish(CommitPlace::Next, "second");
    publish(CommitPlace::First, "third");
    let messages: Vec<String> = db
        .revisions()
        .unwrap()
        .into_iter()
        .map(|r| r.message)
        .collect();
    assert_eq!(messages, ["filled", "second", "third"]);
    assert_eq!(db.integrity_check().unwrap(), [""; 0]);
}
