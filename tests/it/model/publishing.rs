//! Failures of the transaction that publishes a commit, and missing or unexpected files of a store.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use envfs::commit::{self, Collected, CommitOptions, GcOptions};
use envfs::environment::Layout;
use envfs::object::Ino;
use envfs::progress::NoProgress;
use envfs::squashfs::{Image, ReaderOptions};
use envfs::state::StateDb;
use envfs::union::{DiscardMode, Invalidation};

use super::bench::Bench;
use super::crash::{find, make};
use super::tree::Tree;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn image_is_removed_only_once_it_is_known_to_be_unpublished() {
    let mut bench = Bench::imported();
    make(bench.union(), "a", "new", b"new");
    let expected = Tree::read(bench.union());
    let images = bench.home().join("images");
    let before = names(&images);
    let db = rusqlite::Connection::open(bench.home().join("state.db")).unwrap();
    let fail = |bench: &Bench| {
        let options = CommitOptions::default();
        let refused = commit::commit(bench.workspace(), &options, &NoProgress).unwrap_err();
        expected.assert_is(&Tree::read(bench.union()));
        refused.to_string()
    };

    // The COMMIT of the transaction fails, not one of its statements.
    db.execute_batch(
        "CREATE TABLE others (key REFERENCES tag (name) DEFERRABLE INITIALLY DEFERRED); \
         CREATE TRIGGER no_commit BEFORE INSERT ON revision \
         BEGIN INSERT INTO others VALUES ('no tag'); END",
    )
    .unwrap();
    assert!(fail(&bench).contains("publish"));
    assert_eq!(
        names(&images),
        before,
        "the unpublished image was not removed"
    );

    // The database cannot tell whether the transaction was committed.
    let last: i64 = db
        .query_row("SELECT serial FROM environment", [], |row| row.get(0))
        .unwrap();
    // A commit reserves a layer, rotates, reserves an image and publishes.
    db.execute_batch(&format!(
        "CREATE TRIGGER no_serial BEFORE UPDATE OF serial ON environment \
         WHEN new.serial > {last} + 4 \
         BEGIN SELECT RAISE(ABORT, 'no serial'); END"
    ))
    .unwrap();
    let refused = fail(&bench);
    assert!(refused.contains("not known"), "{refused}");
    assert_eq!(names(&images).len(), before.len() + 1);
    let refused = bench.union().rmdir(Ino::ROOT, b"empty").unwrap_err();
    assert!(refused.to_string().contains("not known"), "{refused}");

    db.execute_batch("DROP TRIGGER no_commit; DROP TRIGGER no_serial; DROP TABLE others")
        .unwrap();
    drop(db);
    bench.kill();
    bench.open();
    assert_eq!(
        names(&images),
        before,
        "the next open did not remove the image"
    );
    expected.assert_is(&Tree::read(bench.union()));
    bench.commit(&CommitOptions::default()).unwrap();
    find(bench.union(), "a/new");
    assert_eq!(names(&images).len(), before.len() + 1);
}

#[test]
fn rollback_from_a_damaged_image_succeeds() {
    let mut bench = Bench::imported();
    let first = bench.current();
    let before = Tree::read(bench.union());
    make(bench.union(), "a", "new", b"new");
    bench.commit(&CommitOptions::default()).unwrap();
    let file = bench.current_image();
    bench.close();
    let opened = Image::open(&file, ReaderOptions::default()).unwrap();
    let listings = opened.superblock().directory_table as usize;
    let mut bytes = fs::read(&file).unwrap();
    bytes[listings + 2..listings + 40].fill(0xa5);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, bytes).unwrap();
    bench.open();
    let union = bench.union();
    assert!(union.lower().list(Ino::ROOT).is_err());
    let done = commit::rollback(
        bench.workspace(),
        Some(first.id),
        DiscardMode::IfUnchanged,
        "test",
    )
    .unwrap();
    assert_eq!(done.of, first.id);
    // Every name is invalidated, because the damaged image cannot be compared.
    let name = Box::from(b"many".as_slice());
    let dir = Ino::ROOT;
    assert!(done.stale.contains(&Invalidation::Entry { dir, name }));
    before.assert_is(&Tree::read(union));
}

#[test]
fn gc_refuses_to_sweep_while_an_image_is_missing_or_damaged() {
    let mut bench = Bench::imported();
    let union = bench.union();
    make(union, "a", "new", b"new");
    union.rotate().unwrap();
    // A reader of the frozen layers prevents their removal after the commit.
    let held = union.lower();
    bench.commit(&CommitOptions::default()).unwrap();
    drop(held);
    let expected = Tree::read(union);
    let db = bench.workspace().db();
    let image = db.current_revision().unwrap().unwrap().image;
    let row = db.image(image).unwrap().unwrap();
    let (images, layers) = (bench.home().join("images"), bench.home().join("layers"));
    let unknown = format!(".{}.sqfs.part", db.reserve_image().unwrap());
    fs::write(images.join(&unknown), b"of a commit that was killed").unwrap();
    let (file, away) = (images.join(row.file), bench.home().join("away"));
    bench.kill();

    let left = names(&layers);
    assert_eq!(left.len(), 2, "the frozen layer was removed");
    fs::rename(&file, &away).unwrap();
    let missing = file.to_str().unwrap();
    for (content, reason) in [
        (None, missing),
        (Some(b"not whole"), "not a SquashFS image"),
    ] {
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let refused = bench.try_open().unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
        assert_eq!(names(&layers), left);
        assert!(names(&images).contains(&unknown));
        let refused = gc(&bench).unwrap_err().to_string();
        assert!(refused.contains("nothing is removed"), "{refused}");
    }
    fs::rename(&away, &file).unwrap();
    bench.open();
    expected.assert_is(&Tree::read(bench.union()));
    assert_eq!(names(&layers), left, "an undo needs the committed layer");
    assert!(!names(&images).contains(&unknown));
    bench.close();
    gc(&bench).unwrap();
    assert_eq!(names(&layers).len(), 1);
}

/// Collects the garbage of a closed environment.
fn gc(bench: &Bench) -> commit::Result<Collected> {
    let layout = Layout::new(bench.home());
    let db = StateDb::open(&layout.state_db()).unwrap();
    let options = GcOptions {
        keep: 1,
        before: None,
        current_since: None,
        dry_run: false,
        scope: commit::Scope::Everything,
    };
    commit::gc(&db, &layout, options)
}

#[test]
fn gc_accepts_missing_images_of_old_revisions() {
    let mut bench = Bench::imported();
    let images = bench.home().join("images");
    let first = names(&images);
    make(bench.union(), "a", "new", b"new");
    bench.commit(&CommitOptions::default()).unwrap();
    bench.close();
    for name in first {
        fs::remove_file(images.join(name)).unwrap();
    }
    assert_eq!(gc(&bench).unwrap().images, 1);
    bench.open();
    find(bench.union(), "a/new");
}

#[test]
fn older_database_removes_and_overwrites_nothing() {
    let mut bench = Bench::imported();
    bench.close();
    let layout = Layout::new(bench.home());
    let (images, layers) = (layout.images(), layout.layers());
    let older = fs::read(layout.state_db()).unwrap();
    bench.open();
    let original = Tree::read(bench.union());
    for n in 0..3 {
        make(bench.union(), "a", &format!("new{n}"), b"new");
        bench.commit(&CommitOptions::default()).unwrap();
    }
    make(bench.union(), "b", "changed", b"changed");
    let newest = Tree::read(bench.union());
    bench.close();
    let newer = fs::read(layout.state_db()).unwrap();
    let (all_images, all_layers) = (names(&images), names(&layers));
    let files: Vec<_> = all_images.iter().map(|name| images.join(name)).collect();
    let content: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();

    fs::write(layout.state_db(), older).unwrap();
    let problems = || {
        let db = StateDb::open(&layout.state_db()).unwrap();
        let threads = NonZeroUsize::MIN;
        let found = commit::verify(&db, &layout, threads, &NoProgress).unwrap();
        found.problems
    };
    let told = problems();
    assert_eq!(
        told.len(),
        5,
        "three images, a layer, and one for an undo: {told:?}"
    );
    assert!(told[0].contains("newer than"), "{told:?}");
    bench.open();
    original.assert_is(&Tree::read(bench.union()));
    for n in 0..4 {
        make(bench.union(), "a", &format!("other{n}"), b"other");
        bench.commit(&CommitOptions::default()).unwrap();
        bench.remount();
        assert!(names(&images).is_superset(&all_images));
        assert!(names(&layers).is_superset(&all_layers));
    }
    assert_eq!(problems(), told, "the problems remain reported");
    let now: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(now == content);

    // With the newer database again, the other files are newer.
    bench.close();
    let all_images = names(&images);
    fs::write(layout.state_db(), newer).unwrap();
    bench.open();
    newest.assert_is(&Tree::read(bench.union()));
    bench.remount();
    assert_eq!(names(&images), all_images);
}

#[test]
fn unknown_entries_of_a_store_are_left_alone() {
    let mut bench = Bench::imported();
    let db = bench.workspace().db().clone();
    let (image, layer) = (db.reserve_image().unwrap(), db.reserve_layer().unwrap());
    let full = db.reserve_layer().unwrap();
    drop(db);
    bench.close();
    let layout = Layout::new(bench.home());
    let image = layout.image(&Layout::image_file_name(image));
    fs::create_dir(&image).unwrap();
    fs::write(layout.layer(layer), b"a file").unwrap();
    fs::create_dir_all(layout.upper(full)).unwrap();
    fs::write(layout.upper(full).join("kept"), b"kept").unwrap();
    let others = [".nfs0000000000000001", "notes.txt", "lost+found"];
    for name in others {
        fs::write(layout.images().join(name), b"").unwrap();
        fs::create_dir_all(layout.layers().join(name).join("in it")).unwrap();
    }
    let before = (names(&layout.images()), names(&layout.layers()));
    bench.open();
    make(bench.union(), "a", "new", b"new");
    bench.commit(&CommitOptions::default()).unwrap();
    bench.remount();
    assert!(names(&layout.images()).is_superset(&before.0));
    for name in ["notes.txt", &layer.to_string(), &full.to_string()] {
        assert!(names(&layout.layers()).contains(name), "{name}");
    }
    assert!(layout.upper(full).join("kept").exists());
}
