//! Regression tests.

use std::process::Command;

use envfs::commit::{self, CommitOptions};
use envfs::object::{Ino, Kind};
use envfs::union::{
    AllocateMode, Aspect, ChangeKind, Creator, Error, NewObject, RenameMode, SetAttr, SetIdBits,
    Union, XattrMode,
};
use nix::errno::Errno;

use super::bench::{BLOCK, Bench, noise};
use super::crash::{find, make, make_dir, rename, write};
use super::discard::{assert_unchanged, discard};
use super::tree::Tree;
use crate::support::has;

pub(super) fn content(union: &Union, path: &str) -> Vec<u8> {
    let ino = find(union, path);
    let size = union.attr(ino).unwrap().size;
    let bytes = union.read_at(ino, 0, size as usize).unwrap();
    (*bytes).as_ref().to_vec()
}

#[test]
fn empty_environment_can_be_rebuilt_with_other_settings() {
    let bench = Bench::empty();
    assert!(bench.commit(&CommitOptions::default()).is_none());
    let options = CommitOptions {
        rebuild: true,
        block_size: Some(4096),
        ..CommitOptions::default()
    };
    let before = Tree::read(bench.union());
    assert!(bench.commit(&options).is_some());
    before.assert_is(&Tree::read(bench.union()));
    let lower = bench.union().lower();
    let superblock = lower.images()[0].image().superblock().clone();
    assert_eq!((superblock.block_size, superblock.inodes), (4096, 1));
    assert!(lower.frozen().is_empty());
}

#[test]
fn renamed_directory_is_one_change() {
    let bench = Bench::imported();
    rename(
        bench.union(),
        ("", "many"),
        ("b", "few"),
        RenameMode::Replace,
    );
    let changes = bench.union().changes().unwrap();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0].path, b"b/few");
    assert_eq!(
        changes[0].what,
        ChangeKind::Renamed {
            from: b"many".to_vec()
        }
    );
}

#[test]
fn change_of_mode_alone_is_committed() {
    let bench = Bench::imported();
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    bench
        .union()
        .set_attr(find(bench.union(), "big"), &set)
        .unwrap();
    let changes = bench.union().changes().unwrap();
    assert_eq!(
        changes[0].what,
        ChangeKind::Modified {
            aspect: Aspect::Attributes
        }
    );
    assert!(bench.commit(&CommitOptions::default()).is_some());
    assert!(bench.commit(&CommitOptions::default()).is_none());
    assert_eq!(
        bench.union().attr(find(bench.union(), "big")).unwrap().mode,
        0o600
    );
}

#[test]
fn unlinked_file_is_readable_after_commits() {
    let bench = Bench::imported();
    let union = bench.union();
    let data = noise(5, 2 * BLOCK + 10);
    let ino = make(union, "a", "held", &data);
    union.rotate().unwrap();
    union.unlink(find(union, "a"), b"held").unwrap();
    for n in 0..3 {
        make(union, "a", &format!("other{n}"), b"x");
        assert!(bench.commit(&CommitOptions::default()).is_some());
        let read = union.read_at(ino, 0, data.len()).unwrap();
        assert_eq!((*read).as_ref(), data);
    }
    union.write_at(ino, 0, b"changed", SetIdBits::Keep).unwrap();
    let read = union.read_at(ino, 0, 7).unwrap();
    assert_eq!((*read).as_ref(), b"changed");
}

#[test]
fn unsquashfs_reads_a_committed_image() {
    if !has("unsquashfs") {
        return;
    }
    let bench = Bench::imported();
    let union = bench.union();
    make_dir(union, "b", "made");
    make(union, "b/made", "file", &noise(7, 3 * BLOCK + 5));
    rename(union, ("", "many"), ("b/made", "many"), RenameMode::Replace);
    union
        .write_at(
            find(union, "big"),
            BLOCK as u64 + 7,
            b"dirty",
            SetIdBits::Keep,
        )
        .unwrap();
    bench.commit(&CommitOptions::default()).unwrap();
    let tree = Tree::read(union);
    let file = bench.current_image();
    let out = tempfile::tempdir().unwrap();
    let root = out.path().join("root");
    let done = Command::new("unsquashfs")
        .arg("-no-progress")
        .arg("-d")
        .arg(&root)
        .arg(&file)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    for (path, ino) in tree.paths() {
        use std::os::unix::ffi::OsStrExt;
        let path = root.join(std::ffi::OsStr::from_bytes(&path));
        let meta = path.symlink_metadata().unwrap();
        if let super::tree::Body::File(content) = &tree.node(ino).body {
            assert!(
                &std::fs::read(&path).unwrap() == content,
                "{}",
                path.display()
            );
        }
        assert_eq!(meta.is_dir(), tree.node(ino).kind() == Kind::Directory);
    }
}

#[test]
fn changes_of_content_or_owner_drop_capabilities() {
    const CAPABILITY: &[u8] = b"security.capability";
    let bench = Bench::imported();
    let union = bench.union();
    let files = [
        "big", "sparse", "b/text", "b/c/deep", "many/m1", "many/m2", "many/m3",
    ];
    for file in files {
        let ino = find(union, file);
        for name in [CAPABILITY, b"user.kept"] {
            union
                .set_xattr(ino, name, b"value", XattrMode::Create)
                .unwrap();
        }
    }
    bench.commit(&CommitOptions::default()).unwrap();
    let owner = |uid| SetAttr {
        uid: Some(uid),
        ..SetAttr::default()
    };
    let size = SetAttr {
        size: Some(3),
        ..SetAttr::default()
    };
    let mode = SetAttr {
        mode: Some(0o700),
        ..SetAttr::default()
    };
    write(union, "big", b"changed");
    union.set_attr(find(union, "sparse"), &size).unwrap();
    union.set_attr(find(union, "b/text"), &owner(12)).unwrap();
    let (from, to) = (find(union, "big"), find(union, "b/c/deep"));
    union
        .copy_range(from, 0, to, 0, 4, SetIdBits::Clear)
        .unwrap();
    let reserve = AllocateMode::Reserve { keep_size: false };
    union
        .allocate(find(union, "many/m1"), 0, 10, reserve, SetIdBits::Clear)
        .unwrap();
    // These keep capabilities.
    union.set_attr(find(union, "many/m2"), &mode).unwrap();
    union.read_at(find(union, "many/m3"), 0, 10).unwrap();
    for file in files {
        let ino = find(union, file);
        let is_kept = file == "many/m2" || file == "many/m3";
        assert_eq!(union.xattr(ino, CAPABILITY).is_ok(), is_kept, "{file}");
        assert_eq!(
            &*union.xattr(ino, b"user.kept").unwrap(),
            b"value",
            "{file}"
        );
    }
    // Also if the attributes were copied up before.
    let m2 = find(union, "many/m2");
    union
        .set_xattr(m2, b"user.more", b"", XattrMode::Create)
        .unwrap();
    write(union, "many/m2", b"x");
    assert!(union.xattr(m2, CAPABILITY).is_err());
}

#[test]
fn concurrent_xattr_creation_succeeds_once() {
    let bench = Bench::imported();
    let union = bench.union();
    let ino = find(union, "big");
    for round in 0..200 {
        let name = format!("user.round{round}").into_bytes();
        let made: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| union.set_xattr(ino, &name, b"", XattrMode::Create).is_ok())
                })
                .collect();
            let done = threads.into_iter().map(|thread| thread.join().unwrap());
            done.filter(|done| *done).count()
        });
        assert_eq!(made, 1);
    }
}

#[test]
fn changed_file_is_listed_by_a_name_in_a_renamed_directory() {
    let bench = Bench::imported();
    let union = bench.union();
    // The file is changed by a name that is then removed; only the image has its other names.
    write(union, "a/one", b"changed");
    union.unlink(find(union, "a"), b"one").unwrap();
    union.unlink(find(union, "a"), b"two").unwrap();
    rename(union, ("", "b"), ("many", "b2"), RenameMode::Replace);
    let ino = find(union, "many/b2/three");
    let changes = union.changes().unwrap();
    assert!(
        changes
            .iter()
            .any(|c| c.ino == ino && c.path == b"many/b2/three"),
        "{changes:?}"
    );
}

#[test]
fn upper_image_adds_replaces_and_hides_entries() {
    let bench = Bench::stacked();
    let union = bench.union();
    let tree = Tree::read(union);
    let paths: Vec<String> = tree
        .paths()
        .keys()
        .map(|path| super::tree::show(path))
        .collect();
    let expected = "a a/above a/one a/two b b/c b/c/d b/c/d/e b/c/d/e/deepest b/c/deep b/c/more b/text b/three \
                    beside big big/in empty link many many/m0 many/m2 many/m3 many/m4 many/m5 many/m6 many/m7 \
                    many/sub many/sub/new";
    let expected: Vec<&str> = expected.split_whitespace().collect();
    assert_eq!(paths, expected);
    assert_eq!(content(union, "a/one"), b"another one");
    assert_eq!(content(union, "a/two"), b"one");
    // Tree::read has compared all link counts with the names there are.
    assert_eq!(union.attr(find(union, "a/two")).unwrap().nlink, 2);
    assert_eq!(union.changes().unwrap(), Vec::new());
    // Overlay attributes are hidden.
    assert!(union.xattr_names(find(union, "b/c/d")).unwrap().is_empty());
    assert_eq!(
        &*union.xattr(find(union, "a/two"), b"user.colour").unwrap(),
        b"red"
    );
}

#[test]
fn directory_merged_from_two_images_is_one_object() {
    let mut bench = Bench::stacked();
    let before = Tree::read(bench.union());
    rename(
        bench.union(),
        ("", "b"),
        ("many", "moved"),
        RenameMode::Replace,
    );
    write(bench.union(), "many/moved/c/more", b"changed");
    write(bench.union(), "many/moved/three", b"changed");
    bench
        .union()
        .unlink(find(bench.union(), "a"), b"two")
        .unwrap();
    make_dir(bench.union(), "", "b");
    make(bench.union(), "b", "c", b"a file now");
    let now = Tree::read(bench.union());
    bench.union().rotate().unwrap();
    for name in [&b"deep"[..], b"more"] {
        let dir = find(bench.union(), "many/moved/c");
        bench.union().unlink(dir, name).unwrap();
    }
    bench.kill();
    assert!(bench.open().is_empty());
    commit::discard(bench.workspace(), &[], "").unwrap();
    assert_eq!(Tree::read(bench.union()).paths(), before.paths());
    assert_ne!(now.paths(), before.paths());
    // Without a frozen layer, path by path.
    let union = bench.union();
    rename(union, ("", "b"), ("many", "moved"), RenameMode::Replace);
    write(union, "many/moved/c/more", b"changed");
    write(union, "many/moved/c/deep", b"changed");
    discard(&bench, "many/moved/c/deep");
    assert_eq!(content(union, "many/moved/c/deep"), b"deep down");
    assert_eq!(&content(union, "many/moved/c/more")[..4], b"chan");
    discard(&bench, "b");
    assert_unchanged(union, "b");
    assert_eq!(Tree::read(union).paths(), before.paths());
    assert_eq!(content(union, "b/c/more"), b"more");
}

#[test]
fn removed_open_directory_is_empty() {
    let bench = Bench::imported();
    let union = bench.union();
    make_dir(union, "", "d");
    make(union, "d", "m1", b"frozen");
    union.rotate().unwrap();
    for path in ["d", "many"] {
        // The kernel knows the directory from here on.
        let dir = find(union, path);
        for (name, _, _) in super::tree::list(union, dir, Ino::ROOT) {
            union.unlink(dir, &name).unwrap();
        }
        union.rmdir(Ino::ROOT, path.as_bytes()).unwrap();
        assert!(union.lookup(dir, b"m1").unwrap().is_none());
        let creator = Creator { uid: 1, gid: 1 };
        let answers = [
            union
                .create(dir, b"m1", &NewObject::new(Kind::File, 0o644, creator))
                .map(drop),
            union.unlink(dir, b"m1"),
            union.link(find(union, "big"), dir, b"m1").map(drop),
            union.rename(dir, b"m1", Ino::ROOT, b"m1", RenameMode::Replace),
            union.rename(Ino::ROOT, b"big", dir, b"m1", RenameMode::NoReplace),
        ];
        for answer in answers {
            assert!(
                matches!(answer, Err(Error::Posix(Errno::ENOENT))),
                "{answer:?}"
            );
        }
    }
    Tree::read(union);
}

#[test]
fn removed_open_directory_stays_removed_after_a_commit() {
    let bench = Bench::empty();
    let union = bench.union();
    make_dir(union, "", "d");
    bench.commit(&CommitOptions::default()).unwrap();
    // The kernel knows the directory from here on. The tables of the next image still contain its
    // inode.
    let dir = find(union, "d");
    union.rmdir(Ino::ROOT, b"d").unwrap();
    bench.commit(&CommitOptions::default()).unwrap();
    let creator = Creator { uid: 1, gid: 1 };
    let new = NewObject::new(Kind::File, 0o644, creator);
    let made = union.create(dir, b"new", &new);
    assert!(matches!(made, Err(Error::Posix(Errno::ENOENT))), "{made:?}");
    assert_eq!(union.attr(dir).unwrap().nlink, 0);
    assert!(union.lookup(dir, b"new").unwrap().is_none());
    union.read_dir(dir, 0, 10).unwrap();
    Tree::read(union);
}

#[test]
fn removed_open_file_stays_removed_after_commit_and_discard() {
    let bench = Bench::empty();
    let union = bench.union();
    make(union, "", "f", b"content");
    bench.commit(&CommitOptions::default()).unwrap();
    // The kernel knows the file from here on.
    let file = find(union, "f");
    union.unlink(Ino::ROOT, b"f").unwrap();
    bench.commit(&CommitOptions::default()).unwrap();
    for _ in 0..2 {
        assert_eq!(union.attr(file).unwrap().nlink, 0);
        assert_eq!((*union.read_at(file, 0, 100).unwrap()).as_ref(), b"content");
        commit::discard(bench.workspace(), &[], "").unwrap();
    }
}

#[test]
fn privileges_are_dropped_before_the_write() {
    let bench = Bench::imported();
    let union = bench.union();
    for path in ["big", "new"] {
        let ino = match path {
            "new" => make(union, "", path, b"content"),
            _ => find(union, path),
        };
        let set = SetAttr {
            mode: Some(0o6755),
            ..SetAttr::default()
        };
        union.set_attr(ino, &set).unwrap();
        // Beyond the maximum file size.
        union
            .write_at(ino, 1 << 62, b"x", SetIdBits::Clear)
            .unwrap_err();
        assert_eq!(union.attr(ino).unwrap().mode, 0o755);
    }
}
