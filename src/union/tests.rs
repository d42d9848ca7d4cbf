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

/// A layer that cannot be read.
#[derive(Debug)]
struct Damaged;

impl Layer for Damaged {
    fn lookup(&self, _dir: Ino, _name: &[u8]) -> Result<Lookup> {
        Err(Errno::EIO.into())
    }

    fn list(&self, _dir: Ino) -> Result<Option<LayerListing>> {
        Err(Errno::EIO.into())
    }

    fn inode(&self, _ino: Ino) -> Result<Option<LayerInode>> {
        Err(Errno::EIO.into())
    }

    fn parent(&self, _dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        Err(Errno::EIO.into())
    }

    fn read(&self, _ino: Ino, _offset: u64, _len: usize) -> Result<Box<dyn Bytes>> {
        Err(Errno::EIO.into())
    }

    fn is_ready(&self, _ino: Ino, _offset: u64, _len: usize) -> bool {
        true
    }

    fn seek(&self, _ino: Ino, _offset: u64, _hole: bool) -> Result<Option<u64>> {
        Err(Errno::EIO.into())
    }

    fn read_link(&self, _ino: Ino) -> Result<Box<[u8]>> {
        Err(Errno::EIO.into())
    }

    fn xattrs(&self, _ino: Ino) -> Result<Vec<Xattr>> {
        Err(Errno::EIO.into())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[test]
fn what_has_been_dropped_is_told_though_the_layers_below_cannot_be_read() {
    let (_dir, union) = empty();
    let creator = Creator { uid: 1, gid: 1 };
    let made = union.make(Ino::ROOT, b"held", Kind::File, 0o644, 0, None, creator);
    let (held, _) = made.unwrap();
    union.nodes().remember(held, Ino::ROOT);
    union.write_at(held, 0, b"content", false).unwrap();
    union.unlink(Ino::ROOT, b"held").unwrap();
    let made = union.make(Ino::ROOT, b"new", Kind::File, 0o644, 0, None, creator);
    let (new, _) = made.unwrap();
    let below = Arc::new(LowerStack::new(vec![Arc::new(Damaged)]));
    let publish = |fresh| Ok(union.db().discard_all(fresh)?);
    let (trashed, stale) = union.drop_uppers(below, true, publish).unwrap().unwrap();
    assert_eq!(trashed.len(), 1);
    assert!(stale.contains(&Invalidation::Object(new)));
    // Whether it is there again is not known: who holds it goes on with what he has.
    let content = union.read_at(held, 0, 100).unwrap();
    assert_eq!((*content).as_ref(), b"content");
}
