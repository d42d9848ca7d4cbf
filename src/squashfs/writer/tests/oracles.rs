//! Whole trees, read back by everybody.

use std::fs;
use std::process::Command;

use super::support::*;
use crate::squashfs::writer::*;

#[test]
fn every_reader_sees_the_tree_in_every_codec() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    varied_tree(&tree, 16 << 10);
    let expected = describe(&tree);
    for compression in CODECS {
        let image = dir.path().join("image");
        let stats = import(
            &image,
            WriterOptions {
                compression,
                ..options(16 << 10, 2)
            },
            &tree,
        );
        assert_eq!(stats.image_size, fs::metadata(&image).unwrap().len());
        assert_eq!(stats.image_size % 4096, 0);
        assert!(stats.data.duplicates >= 3, "{stats:?}");
        eprintln!("{compression}: {stats:?}");
        check_everywhere(&image, &expected);
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    varied_tree(&tree, 4 << 10);
    for compression in CODECS {
        let mut images = Vec::new();
        for threads in [1, 2, 5, 5] {
            let image = dir.path().join("image");
            import(
                &image,
                WriterOptions {
                    compression,
                    ..options(4 << 10, threads)
                },
                &tree,
            );
            images.push(fs::read(&image).unwrap());
        }
        assert!(images.windows(2).all(|w| w[0] == w[1]), "{compression}");
    }
}

#[test]
fn mksquashfs_makes_nothing_smaller() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    varied_tree(&tree, 128 << 10);
    for i in 0..300 {
        fs::write(
            tree.join(format!("pkg/more{i}")),
            text(1000 + i, 2000 + 91 * i as usize),
        )
        .unwrap();
    }
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    import(&ours, options(128 << 10, 2), &tree);
    run(Command::new("mksquashfs").arg(&tree).arg(&theirs).args([
        "-comp",
        "zstd",
        "-Xcompression-level",
        "3",
        "-noappend",
        "-no-progress",
        "-quiet",
    ]));
    let (ours, theirs) = (
        fs::metadata(ours).unwrap().len(),
        fs::metadata(theirs).unwrap().len(),
    );
    eprintln!("ours {ours}, theirs {theirs}");
    assert!(
        ours <= theirs + theirs / 100 + 4096,
        "ours {ours}, theirs {theirs}"
    );
}

#[test]
fn mksquashfs_can_append_to_our_images() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, more) = (dir.path().join("tree"), dir.path().join("more"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&more).unwrap();
    varied_tree(&tree, 16 << 10);
    fs::write(more.join("appended"), text(77, 40_000)).unwrap();
    fs::write(more.join("zz"), b"small").unwrap();
    for compression in CODECS {
        let image = dir.path().join("image");
        import(
            &image,
            WriterOptions {
                compression,
                ..options(16 << 10, 2)
            },
            &tree,
        );
        run(Command::new("mksquashfs").arg(&more).arg(&image).args([
            "-no-progress",
            "-quiet",
            "-no-recovery",
        ]));
        let expected = describe(&tree);
        let found = describe_image(&open(&image));
        let (added, kept): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|line| line.starts_with("\"appended\"") || line.starts_with("\"zz\""));
        assert_eq!(added.len(), 2);
        // The root itself may have got new times.
        compare("mksquashfs", &kept[1..], &expected[1..]);
        if let Some(lines) = by_kernel(&image) {
            assert_eq!(lines.len(), expected.len() + 2);
        }
    }
}

#[test]
fn a_huge_directory_has_an_index_that_finds_every_name() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut writer = ImageWriter::create(&image, options(4096, 2)).unwrap();
    let root = writer.add_directory(&meta(0o755)).unwrap();
    let big = writer.add_directory(&meta(0o755)).unwrap();
    writer.link(root, b"big", big).unwrap();
    let count = 70_000;
    for i in (0..count).rev() {
        let fifo = writer.add_fifo(&meta(0o600)).unwrap();
        writer
            .link(big, format!("{i:05x}").as_bytes(), fifo)
            .unwrap();
    }
    writer.finish(root).unwrap();
    let read = open(&image);
    let inode = inode_at(&read, "big");
    let listing = read.read_dir(&inode).unwrap();
    assert_eq!(listing.len(), count);
    let crate::squashfs::format::InodeBody::Directory(body) = &inode.body else {
        panic!()
    };
    assert!(
        body.listing_size > 65_535 && body.index.len() > 90,
        "{}",
        body.index.len()
    );
    for i in (0..count).step_by(997) {
        inode_at(&read, &format!("big/{i:05x}"));
    }
    if is_root() {
        let mounted = tempfile::tempdir().unwrap();
        run(Command::new("mount")
            .args(["-t", "squashfs", "-o", "loop,ro"])
            .arg(&image)
            .arg(mounted.path()));
        // One by one, so that the kernel goes by the index.
        let missing: Vec<_> = (0..count)
            .step_by(331)
            .filter(|i| fs::symlink_metadata(mounted.path().join(format!("big/{i:05x}"))).is_err())
            .collect();
        let listed = fs::read_dir(mounted.path().join("big")).unwrap().count();
        unmount(mounted.path());
        assert_eq!((missing, listed), (vec![], count));
    } else {
        eprintln!("SKIP kernel: not root");
    }
    if have("unsquashfs") {
        let listing = run(Command::new("unsquashfs").arg("-lln").arg(&image));
        assert!(
            listing
                .lines()
                .filter(|line| line.contains("/big/"))
                .count()
                == count
        );
    }
}
