//! Appending to images that another program wrote, or that are damaged.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use super::append::*;
use super::readers::*;
use super::support::*;
use crate::squashfs::Compression;
use crate::squashfs::writer::*;

#[test]
fn data_of_mksquashfs_images_is_carried_over() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    varied_tree(&tree, BLOCK);
    let expected = describe(&tree);
    for codec in ["gzip", "xz", "zstd", "lz4"] {
        for more in [
            &["-always-use-fragments"][..],
            &["-no-fragments"],
            &["-Xbcj", "x86"],
        ] {
            if more[0] == "-Xbcj" && codec != "xz" {
                continue;
            }
            let path = dir.path().join("old");
            run(Command::new("mksquashfs")
                .arg(&tree)
                .arg(&path)
                .args([
                    "-comp",
                    codec,
                    "-b",
                    "4096",
                    "-noappend",
                    "-no-progress",
                    "-quiet",
                ])
                .args(more));
            let old = open(&path);
            let large = old.file_layout(&inode_at(&old, "large")).unwrap();
            let mut bytes = content(&old, &inode_at(&old, "large"));
            bytes[BLOCK] ^= 1;
            for mode in [CarryMode::Append, CarryMode::Compact] {
                let image = dir.path().join("new");
                let mut writer = ImageWriter::append(&image, &old, carry(mode)).unwrap();
                let root = push_old(&mut writer, &old, &BTreeMap::new());
                let changed = writer
                    .add_partly_carried(
                        &meta(0o644),
                        &large,
                        bytes.len() as u64,
                        &mut |block| block == 1,
                        memory(&bytes),
                    )
                    .unwrap();
                writer.link(root, b"zz_changed", changed).unwrap();
                let stats = writer.finish(root).unwrap();
                assert_eq!(
                    stats.data.blocks_compressed, 1,
                    "{codec} {more:?} {stats:?}"
                );
                let read = open(&image);
                assert!(content(&read, &inode_at(&read, "zz_changed")) == bytes);
                let mut found = describe_image(&read);
                if more[0] == "-Xbcj" {
                    // Some kernels are built without these filters.
                    check_by_unsquashfs(&image, &found);
                } else {
                    check_everywhere(&image, &found);
                }
                found.pop();
                compare("our reader", &found, &expected);
            }
        }
    }
}

#[test]
fn an_xz_dictionary_smaller_than_a_block_is_rejected() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, path) = (dir.path().join("tree"), dir.path().join("old"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("f"), text(1, 100_000)).unwrap();
    run(Command::new("mksquashfs").arg(&tree).arg(&path).args([
        "-comp",
        "xz",
        "-Xdict-size",
        "8192",
        "-b",
        "65536",
        "-noappend",
        "-no-progress",
        "-quiet",
    ]));
    // The kernel would allocate too small a dictionary for new blocks.
    let refused = ImageWriter::append(
        &dir.path().join("new"),
        &open(&path),
        carry(CarryMode::Append),
    );
    assert!(matches!(refused, Err(WriteError::Carry(_))));
}

#[test]
fn data_that_would_make_a_damaged_image_is_not_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let (small, large) = (dir.path().join("small"), dir.path().join("large"));
    flat(&small, options(4096, 1), &[("f", text(1, 20_000))]);
    flat(
        &large,
        options(8192, 1),
        &[("f", text(1, 20_000)), ("g", text(2, 500_000))],
    );
    let (small, large) = (open(&small), open(&large));
    let new = dir.path().join("new");
    let mut writer = ImageWriter::append(&new, &small, AppendOptions::default()).unwrap();
    for name in ["f", "g"] {
        let layout = large.file_layout(&inode_at(&large, name)).unwrap();
        assert!(
            matches!(
                writer.add_carried(&meta(0), &layout),
                Err(WriteError::Carry(_))
            ),
            "{name}"
        );
    }
    drop(writer);
    let other = AppendOptions {
        compression: Some(Compression::Lz4),
        ..AppendOptions::default()
    };
    assert!(matches!(
        ImageWriter::append(&new, &small, other),
        Err(WriteError::Carry(_))
    ));
    let mut writer = ImageWriter::create(&new, options(4096, 1)).unwrap();
    let layout = small.file_layout(&inode_at(&small, "f")).unwrap();
    assert!(matches!(
        writer.add_carried(&meta(0), &layout),
        Err(WriteError::Carry(_))
    ));
    drop(writer);
    assert!(!new.exists());
}
