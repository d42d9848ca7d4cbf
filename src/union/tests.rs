#![allow(clippy::unwrap_used)]
//! What can be brought about only between two steps of one call.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::squashfs::writer::{ImageWriter, Meta, WriterOptions};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{IdMap, ImageId, InitEnvironment, NewImage, NewRevision, RevisionKind};

/// Makes an image with these objects in its root directory, each a FIFO.
fn image(path: &std::path::Path, inos: &[Ino]) -> ImageLayer {
    let meta = |number| Meta {
        number,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: Vec::new(),
    };
    let mut writer = ImageWriter::create(path, WriterOptions::default()).unwrap();
    let root = writer.add_directory(&meta(1)).unwrap();
    for (number, ino) in (2..).zip(inos) {
        let fifo = writer.add_fifo(&meta(number)).unwrap();
        writer.link(root, ino.to_string().as_bytes(), fifo).unwrap();
    }
    writer.finish(root).unwrap();
    let ids = [&[Ino::ROOT], inos].concat();
    let image = Image::open(path, ReaderOptions::default()).unwrap();
    ImageLayer::new(image, IdMap::from_ascending(ids).unwrap())
}

fn new_image(id: ImageId, file: String, layer: &ImageLayer) -> NewImage {
    let superblock = layer.image().superblock();
    NewImage {
        id,
        file,
        size: superblock.bytes_used,
        inodes: superblock.inodes,
        block_size: superblock.block_size,
        compression: superblock.compressor.to_string(),
        root_number: 1,
        id_map: layer.ids().clone(),
        digests: None,
        dead_bytes: 0,
        tables_appended: None,
    }
}

/// The view of an environment with nothing in it.
fn empty() -> (tempfile::TempDir, Union) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (images, layers, strays) = (at("images"), at("layers"), at("strays"));
    fs::create_dir(&layers).unwrap();
    fs::create_dir(&images).unwrap();
    let db = StateDb::create(&at("state.db")).unwrap();
    let id = db.reserve_image().unwrap();
    let file = format!("{id}.sqfs");
    let layer = image(&images.join(&file), &[]);
    db.init_environment(&InitEnvironment {
        uuid: "an-identity".to_owned(),
        prefix: PathBuf::from("/nowhere"),
        images: vec![new_image(id, file, &layer)],
        kind: RevisionKind::Create,
        revision: NewRevision::default(),
    })
    .unwrap();
    let paths = Paths {
        images_are_links: false,
        images,
        layers,
        strays,
    };
    let (union, mended) = Union::open(Arc::new(db), paths, &OpenOptions::default()).unwrap();
    assert!(mended.is_empty());
    (dir, union)
}

#[test]
fn names_that_are_frozen_while_they_are_synced_are_synced_where_they_lie() {
    let (_dir, union) = empty();
    let new_file = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    let made = union.create(Ino::ROOT, b"new", &new_file);
    let (file, _) = made.unwrap();
    // A commit begins after `sync` has looked, before it comes to the directories.
    let layer = union.read().layer;
    union.rotate().unwrap();
    assert_ne!(union.read().layer, layer);
    let has_unsynced = || !union.lower().frozen()[0].upper().unsynced().has_no_dirs();
    assert!(has_unsynced());
    union.sync_dirs_to(layer, Ino::ROOT).unwrap();
    assert!(!has_unsynced());
    // What was noted goes with the layer when the commit fails.
    union.unrotate().unwrap();
    let made = union.create(Ino::ROOT, b"other", &new_file);
    made.unwrap();
    union.rotate().unwrap();
    union.unrotate().unwrap();
    assert!(!union.read().upper.unsynced().has_no_dirs());
    union.sync(file, SyncMode::Full).unwrap();
    assert!(union.read().upper.unsynced().has_no_dirs());
}

#[test]
fn what_has_been_dropped_is_told_though_the_layers_below_cannot_be_read() {
    let (dir, union) = empty();
    let new_file = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    let made = union.create(Ino::ROOT, b"held", &new_file);
    let (held, _) = made.unwrap();
    union.nodes().remember(held, Ino::ROOT);
    union
        .write_at(held, 0, b"content", SetIdBits::Keep)
        .unwrap();
    union.unlink(Ino::ROOT, b"held").unwrap();
    let made = union.create(Ino::ROOT, b"new", &new_file);
    let (new, _) = made.unwrap();
    // An image that has the file by its identity, and cannot be read any more.
    let file = dir.path().join("damaged");
    let damaged = image(&file, &[held]);
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(96)
        .unwrap();
    let below = Arc::new(LowerStack::new(Vec::new(), vec![Arc::new(damaged)]));
    let publish = |fresh| Ok(union.db().discard_all(fresh)?);
    let (trashed, stale) = union
        .discard_uppers(below, DiscardMode::Always, publish)
        .unwrap()
        .unwrap();
    assert_eq!(trashed.len(), 1);
    assert!(stale.contains(&Invalidation::Object(new)));
    // Whether it is there again is not known: who holds it goes on with what he has.
    let content = union.read_at(held, 0, 100).unwrap();
    assert_eq!((*content).as_ref(), b"content");
}
