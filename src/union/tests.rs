#![allow(clippy::unwrap_used)]
//! What can be brought about only between two steps of one call.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::state::{InitEnvironment, NewRevision, RevisionKind};

/// The view of an environment with nothing in it.
fn empty() -> (tempfile::TempDir, Union) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (images, layers, strays) = (at("images"), at("layers"), at("strays"));
    fs::create_dir(&layers).unwrap();
    let db = StateDb::create(&at("state.db")).unwrap();
    db.init_environment(&InitEnvironment {
        uuid: "an-identity".to_owned(),
        prefix: PathBuf::from("/nowhere"),
        images: Vec::new(),
        kind: RevisionKind::Create,
        revision: NewRevision::default(),
    })
    .unwrap();
    let paths = Paths {
        images,
        layers,
        strays,
    };
    let (union, mended) = Union::open(Arc::new(db), paths, &OpenOptions::default()).unwrap();
    assert!(mended.is_nothing());
    (dir, union)
}

#[test]
fn names_that_are_frozen_while_they_are_synced_do_not_count_as_synced() {
    let (_dir, union) = empty();
    let creator = Creator { uid: 1, gid: 1 };
    let made = union.make(Ino::ROOT, b"new", Kind::File, 0o644, 0, None, creator);
    let (file, _) = made.unwrap();
    // A commit begins after `sync` has looked, before it comes to the directories.
    union.rotate().unwrap();
    assert!(!union.sync_dirs_to(Ino::ROOT).unwrap());
    assert!(union.read().unsynced_dirs().contains(&Ino::ROOT));
    union.unrotate().unwrap();
    union.sync(file, false).unwrap();
    assert!(union.read().unsynced_dirs().is_empty());
}
