#![allow(clippy::unwrap_used)]
//! Tests of states that exist only between two steps of one call, and of layers that are read in
//! part.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::squashfs::writer::{ImageWriter, Meta, WriterOptions};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{IdMap, ImageId, InitEnvironment, NewImage, NewRevision, RevisionKind};

/// Creates an image with these objects in its root directory, each a FIFO.
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

/// Returns the view of an empty environment.
fn empty() -> (tempfile::TempDir, Union) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (images, layers) = (at("images"), at("layers"));
    fs::create_dir(&layers).unwrap();
    fs::create_dir(&images).unwrap();
    let db = StateDb::create(&at("state.db")).unwrap();
    let id = db.reserve_image().unwrap();
    let file = format!("{id}.sqfs");
    let layer = image(&images.join(&file), &[]);
    db.init_environment(&InitEnvironment {
        uuid: "an-identity".to_owned(),
        origin: None,
        prefix: PathBuf::from("/nowhere"),
        images: vec![new_image(id, file, &layer)],
        kind: RevisionKind::Create,
        revision: NewRevision::default(),
    })
    .unwrap();
    drop(db);
    let union = reopen(&dir);
    (dir, union)
}

/// Opens the environment of [`empty`], which was closed.
fn reopen(dir: &tempfile::TempDir) -> Union {
    let at = |name: &str| dir.path().join(name);
    let db = StateDb::open(&at("state.db")).unwrap();
    let opened = Union::open(Arc::new(db), paths(dir), &OpenOptions::default());
    let (union, repaired) = opened.unwrap();
    assert!(repaired.is_empty());
    union
}

fn paths(dir: &tempfile::TempDir) -> Paths {
    let at = |name: &str| dir.path().join(name);
    Paths {
        images_are_links: false,
        images: at("images"),
        layers: at("layers"),
        strays: at("strays"),
    }
}

/// Creates 3,000 files in 30 directories and closes the environment.
fn fill(union: Union) {
    let creator = Creator { uid: 1, gid: 1 };
    for dir in 0..30 {
        let new_dir = NewObject::new(Kind::Directory, 0o755, creator);
        let name = format!("d{dir}");
        let (ino, _) = union.create(Ino::ROOT, name.as_bytes(), &new_dir).unwrap();
        for file in 0..100 {
            let new_file = NewObject::new(Kind::File, 0o644, creator);
            let name = format!("f{file}");
            union.create(ino, name.as_bytes(), &new_file).unwrap();
        }
    }
    union.close().unwrap();
}

fn find(union: &Union, path: &str) -> Option<Ino> {
    let mut at = Ino::ROOT;
    for name in path.split('/') {
        at = union.lookup(at, name.as_bytes()).unwrap()?.0;
    }
    Some(at)
}

#[test]
fn of_a_large_layer_only_what_is_used_is_read() {
    let (dir, union) = empty();
    fill(union);

    let union = reopen(&dir);
    assert_eq!(union.db().rows_read(), 0);
    find(&union, "d7/f70").unwrap();
    // The names of some directories, and some hundred objects.
    let used = union.db().rows_read();
    assert!((1..2500).contains(&used), "{used} rows");
    // A change is in memory and in the database, and everything else as it was.
    let d7 = find(&union, "d7").unwrap();
    union.unlink(d7, b"f70").unwrap();
    union
        .rename(d7, b"f71", Ino::ROOT, b"moved", RenameMode::Replace)
        .unwrap();
    assert!(union.db().rows_read() < 6000);
    assert_eq!(union.changes().unwrap().len(), 30 + 3000 - 1);
    assert_eq!(find(&union, "d7/f70"), None);
    let moved = find(&union, "moved");
    union.close().unwrap();

    let union = reopen(&dir);
    assert_eq!(union.db().rows_read(), 0);
    assert_eq!(find(&union, "d7/f70"), None);
    assert_eq!(find(&union, "moved"), moved);
    // Without a change of names there is nothing to compare at the end either.
    union.close().unwrap();
    assert!(union.db().rows_read() < 2500);
    drop(union);

    // A commit reads all.
    let union = reopen(&dir);
    union.rotate().unwrap();
    assert_eq!(
        union.lower().frozen()[0].delta().rows().unwrap(),
        3029 + 1 + 3029
    );
}

#[test]
fn files_of_a_large_layer_that_were_changed_by_hand_are_noticed() {
    let (dir, union) = empty();
    let layer = union.paths().layer(union.read().layer).join("upper");
    fill(union);
    for (change, is_there) in [
        (
            &(|| fs::remove_file(layer.join("d3/f3"))) as &dyn Fn() -> std::io::Result<()>,
            false,
        ),
        (&(|| fs::write(layer.join("d4/stranger"), "")), true),
    ] {
        change().unwrap();
        let db = Arc::new(StateDb::open(&dir.path().join("state.db")).unwrap());
        let (union, repaired) = Union::open(db, paths(&dir), &OpenOptions::default()).unwrap();
        assert_eq!(repaired.lost.is_empty(), is_there);
        assert_eq!(repaired.set_aside, usize::from(is_there));
        assert_eq!(find(&union, "d3/f3"), None);
        assert_eq!(find(&union, "d4/stranger"), None);
        union.close().unwrap();
    }
    // What was repaired is as it should be.
    assert_eq!(reopen(&dir).db().rows_read(), 0);

    // While it is open, too.
    let union = reopen(&dir);
    let root = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    union.create(Ino::ROOT, b"new", &root).unwrap();
    fs::remove_file(layer.join("d5/f5")).unwrap();
    union.close().unwrap();
    drop(union);
    let db = Arc::new(StateDb::open(&dir.path().join("state.db")).unwrap());
    let (_, repaired) = Union::open(db, paths(&dir), &OpenOptions::default()).unwrap();
    assert_eq!(repaired.lost, [PathBuf::from("d5/f5")]);
}

#[test]
fn an_unclean_end_of_a_large_layer_is_reconciled() {
    let (dir, union) = empty();
    fill(union);
    let union = reopen(&dir);
    let new_file = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    union.create(Ino::ROOT, b"new", &new_file).unwrap();
    // Killed: not closed.
    drop(union);
    let union = reopen(&dir);
    assert!(union.db().rows_read() > 6000);
    assert!(find(&union, "new").is_some());
}

#[test]
fn a_sync_during_which_the_layer_is_frozen_syncs_the_frozen_layer() {
    let (_dir, union) = empty();
    let new_file = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    let made = union.create(Ino::ROOT, b"new", &new_file);
    let (file, _) = made.unwrap();
    // A commit begins after `sync` has found what to sync, before it syncs the directories.
    let layer = union.read().layer;
    union.rotate().unwrap();
    assert_ne!(union.read().layer, layer);
    let has_unsynced = || !union.lower().frozen()[0].upper().unsynced().has_no_dirs();
    assert!(has_unsynced());
    union.sync_dirs_to(layer, Ino::ROOT).unwrap();
    assert!(!has_unsynced());
    // When the commit fails, the layer keeps its marks.
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
fn a_discard_succeeds_even_if_a_lower_layer_cannot_be_read() {
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
    // An image with an object of the same identity, which cannot be read.
    let file = dir.path().join("damaged");
    let damaged = image(&file, &[held]);
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(96)
        .unwrap();
    let below = Arc::new(LowerStack::new(vec![Arc::new(damaged)]));
    let publish = |fresh| Ok(union.db().discard_all(fresh, None)?);
    let (trashed, stale) = union
        .discard_uppers(below, DiscardMode::Always, publish)
        .unwrap()
        .unwrap();
    assert_eq!(trashed.len(), 1);
    assert!(stale.contains(&Invalidation::Object(new)));
    // It is unknown whether the object has its name again: it stays an orphan.
    let content = union.read_at(held, 0, 100).unwrap();
    assert_eq!((*content).as_ref(), b"content");
}

#[test]
fn a_change_without_space_is_repeated_once_removed_content_is_gone() {
    let (dir, union) = empty();
    let new_file = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    let (file, _) = union.create(Ino::ROOT, b"synced", &new_file).unwrap();
    union
        .write_at(file, 0, b"content", SetIdBits::Keep)
        .unwrap();
    union.sync(file, SyncMode::Full).unwrap();
    let work = || {
        fs::read_dir(dir.path().join("layers/1/work"))
            .unwrap()
            .count()
    };
    let count = std::cell::Cell::new(0);
    let fails_once = || {
        count.set(count.get() + 1);
        match count.get() {
            1 => Err(Error::from(Errno::EDQUOT)),
            _ => Ok(work()),
        }
    };
    union.unlink(Ino::ROOT, b"synced").unwrap();
    assert_eq!(work(), 1);
    assert_eq!(union.with_space(fails_once).unwrap(), 0);
    // Nothing was removed since.
    count.set(0);
    assert!(union.with_space(fails_once).unwrap_err().is_no_space());
    assert_eq!(count.get(), 1);
    // Other errors are final.
    union.create(Ino::ROOT, b"other", &new_file).unwrap();
    let fails = || Err::<(), _>(Error::from(Errno::EIO));
    assert!(!union.with_space(fails).unwrap_err().is_no_space());
}

#[test]
fn removed_bytes_still_count_after_a_failed_sync() {
    let (_dir, union) = empty();
    let new_file = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    let (file, _) = union.create(Ino::ROOT, b"large", &new_file).unwrap();
    let chunk = vec![1; 1 << 20];
    for at in 0..16 {
        union
            .write_at(file, at << 20, &chunk, SetIdBits::Keep)
            .unwrap();
    }
    union.sync(file, SyncMode::Full).unwrap();
    union.unlink(Ino::ROOT, b"large").unwrap();
    assert_eq!(union.removals_due(), Some(Duration::ZERO));
    union.db().fail_syncs();
    union.finish_removals().unwrap_err();
    assert_eq!(union.removals_due(), Some(Duration::ZERO));
}
