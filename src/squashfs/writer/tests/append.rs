//! Data that is carried over: in place, compacted, and block by block.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::readers::*;
use super::support::*;
use crate::squashfs::Compression;
use crate::squashfs::format::{Inode, InodeBody};
use crate::squashfs::reader::Image;
use crate::squashfs::writer::*;

pub(super) const BLOCK: usize = 4096;

/// Pushes an old tree and carries all files over except those in `changed`, which get new content
/// or are removed (`None`).
pub(super) fn push_old(
    writer: &mut ImageWriter,
    old: &Image,
    changed: &BTreeMap<&str, Option<Vec<u8>>>,
) -> NodeId {
    let mut seen = BTreeMap::new();
    let root = old.inode(old.root()).unwrap();
    push_old_node(writer, old, &root, Path::new(""), changed, &mut seen).unwrap()
}

fn push_old_node(
    writer: &mut ImageWriter,
    old: &Image,
    inode: &Inode,
    at: &Path,
    changed: &BTreeMap<&str, Option<Vec<u8>>>,
    seen: &mut BTreeMap<u32, NodeId>,
) -> Option<NodeId> {
    if let Some(node) = seen.get(&inode.number) {
        return Some(*node);
    }
    let meta = Meta {
        number: 0,
        mode: inode.mode,
        uid: old.uid(inode).unwrap(),
        gid: old.gid(inode).unwrap(),
        mtime: inode.mtime,
        xattrs: old.xattrs(inode).unwrap(),
    };
    let device = |device: &u32| {
        let (major, minor) = (
            (device >> 8) & 0xfff,
            (device & 0xff) | ((device >> 12) & 0xfff00),
        );
        nix::sys::stat::makedev(major.into(), minor.into())
    };
    let node = match &inode.body {
        InodeBody::Directory(_) => {
            let dir = writer.add_directory(&meta).unwrap();
            let listing = old.read_dir(inode).unwrap();
            for (name, entry) in listing.iter() {
                let path = at.join(std::str::from_utf8(name).unwrap());
                let child = old.entry_inode(&entry).unwrap();
                if let Some(node) = push_old_node(writer, old, &child, &path, changed, seen) {
                    writer.link(dir, name, node).unwrap();
                }
            }
            Ok(dir)
        }
        InodeBody::File(_) => match changed.get(at.to_str().unwrap()) {
            Some(None) => return None,
            Some(Some(bytes)) => writer.add_file(&meta, bytes.len() as u64, memory(bytes)),
            None => writer.add_carried(&meta, &old.file_layout(inode).unwrap()),
        },
        InodeBody::Symlink(target) => writer.add_symlink(&meta, target),
        InodeBody::BlockDevice(number) => writer.add_block_device(&meta, device(number)),
        InodeBody::CharDevice(number) => writer.add_char_device(&meta, device(number)),
        InodeBody::Fifo => writer.add_fifo(&meta),
        InodeBody::Socket => writer.add_socket(&meta),
    };
    let node = node.unwrap();
    seen.insert(inode.number, node);
    Some(node)
}

pub(super) fn carry(mode: CarryMode) -> AppendOptions {
    AppendOptions {
        carry: mode,
        threads: 2.try_into().unwrap(),
        mkfs_time: 1_700_000_000,
        ..AppendOptions::default()
    }
}

/// Writes an old image of the varied tree. Returns its statistics and its description.
fn old_image(dir: &Path, compression: Compression) -> (PathBuf, Vec<String>) {
    let tree = dir.join("tree");
    if !tree.exists() {
        fs::create_dir(&tree).unwrap();
        varied_tree(&tree, BLOCK);
    }
    let image = dir.join("old");
    import(
        &image,
        WriterOptions {
            compression,
            ..options(BLOCK as u32, 2)
        },
        &tree,
    );
    let expected = describe(&tree);
    check_everywhere(&image, &expected);
    (image, expected)
}

#[test]
fn an_unchanged_tree_is_carried_over_without_compressing() {
    let dir = tempfile::tempdir().unwrap();
    for compression in CODECS {
        let (path, expected) = old_image(dir.path(), compression);
        let old = open(&path);
        for mode in [CarryMode::Append, CarryMode::Compact] {
            let image = dir.path().join("new");
            let mut options = carry(mode);
            if compression == Compression::None {
                options.compression = Some(compression);
            }
            let mut writer = ImageWriter::append(&image, &old, options).unwrap();
            let root = push_old(&mut writer, &old, &BTreeMap::new());
            let stats = writer.finish(root).unwrap();
            let data = &stats.data;
            assert_eq!(
                (
                    data.blocks_compressed,
                    data.blocks_stored_raw,
                    data.fresh_bytes
                ),
                (0, 0, 0)
            );
            assert_eq!(data.dead_bytes, 0);
            // Nothing is decompressed except the last fragment block: it is mostly unused, and only
            // frames of zstd declare their length.
            let tells = matches!(compression, Compression::Zstd { .. } | Compression::None);
            let decompressed = old.counts().data_blocks;
            assert!(
                decompressed <= u64::from(!tells),
                "{compression}: {decompressed} decompressed"
            );
            assert_eq!(
                data.fragments_carried,
                u64::from(old.superblock().fragments)
            );
            let area = old.data_area();
            assert_eq!(data.bytes_carried, area.end - area.start);
            let (before, after) = (fs::read(&path).unwrap(), fs::read(&image).unwrap());
            if mode == CarryMode::Append {
                let kept = 96..area.end as usize;
                assert!(before[kept.clone()] == after[kept], "data area in place");
                assert!(
                    stats.bytes_written < 40_000 && data.data_written == 0,
                    "{stats:?}"
                );
            } else {
                // The image was written in the order of paths, so the copy is identical.
                assert_eq!(open(&image).superblock().inode_table, area.end);
            }
            check_everywhere(&image, &expected);
        }
    }
}

#[test]
fn only_the_blocks_of_a_changed_file_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (path, expected) = old_image(dir.path(), Compression::default());
    let old = open(&path);
    let area = old.data_area();
    let new = text(999, 3 * BLOCK + 10);
    let changed = BTreeMap::from([
        ("three_blocks", Some(new.clone())),
        ("pkg/mod07.py", Some(b"import new\n".repeat(20))),
        ("block_and_one", None),
    ]);
    let image = dir.path().join("new");
    let mut writer = ImageWriter::append(&image, &old, carry(CarryMode::Append)).unwrap();
    let root = push_old(&mut writer, &old, &changed);
    let stats = writer.finish(root).unwrap();
    assert_eq!(
        stats.data.blocks_compressed + stats.data.blocks_stored_raw,
        4 + 1,
        "{stats:?}"
    );
    assert_eq!(stats.data.fresh_bytes, 3 * BLOCK as u64 + 10 + 220);
    let gone = old
        .file_layout(&inode_at(&old, "three_blocks"))
        .unwrap()
        .stored()
        + old
            .file_layout(&inode_at(&old, "block_and_one"))
            .unwrap()
            .stored();
    assert_eq!(stats.data.dead_bytes - stats.data.dead_in_fragments, gone);
    // The tails of pkg/mod07.py and of the other removed files.
    assert!(stats.data.dead_in_fragments > 0);
    let read = open(&image);
    assert_eq!(content(&read, &inode_at(&read, "three_blocks")), new);
    let kept = |line: &&String| {
        !["\"three_blocks\"", "\"pkg/mod07.py\"", "\"block_and_one\""]
            .iter()
            .any(|n| line.starts_with(n))
    };
    let expected: Vec<_> = expected.iter().filter(kept).cloned().collect();
    let found: Vec<_> = describe_image(&read).iter().filter(kept).cloned().collect();
    compare("our reader", &found, &expected);
    check_everywhere(&image, &describe_image(&read));
    let (before, after) = (fs::read(&path).unwrap(), fs::read(&image).unwrap());
    assert!(before[96..area.end as usize] == after[96..area.end as usize]);

    if have("mksquashfs") {
        let (again, more) = (dir.path().join("again"), dir.path().join("more"));
        fs::copy(&image, &again).unwrap();
        fs::write(&more, text(5, 10_000)).unwrap();
        run(Command::new("mksquashfs").arg(&more).arg(&again).args([
            "-no-progress",
            "-quiet",
            "-no-recovery",
        ]));
        let found = describe_image(&open(&again));
        check_everywhere(&again, &found);
        assert_eq!(found.len(), describe_image(&read).len() + 1);
    }

    // Compacting an appended image drops the dead data.
    let compacted = dir.path().join("compacted");
    let mut writer = ImageWriter::append(&compacted, &read, carry(CarryMode::Compact)).unwrap();
    let root = push_old(&mut writer, &read, &BTreeMap::new());
    let compact = writer.finish(root).unwrap();
    assert_eq!(
        compact.data.blocks_compressed + compact.data.blocks_stored_raw,
        0
    );
    assert_eq!(
        compact.data.dead_bytes, stats.data.dead_in_fragments,
        "too little dead data to repack"
    );
    assert_eq!(compact.data.fragments_repacked, 0);
    let again = open(&compacted);
    let len = |image: &Image| image.data_area().end - image.data_area().start;
    assert_eq!(len(&again), len(&read) - gone);
    check_everywhere(&compacted, &describe_image(&read));
}

#[test]
fn unused_fragment_blocks_are_removed_from_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old");
    let files: Vec<_> = (0..6u64)
        .map(|i| (["a", "b", "c", "d", "e", "f"][i as usize], text(i, 3000)))
        .collect();
    flat(&path, options(4096, 2), &files);
    let old = open(&path);
    assert_eq!(old.superblock().fragments, 6);
    for mode in [CarryMode::Append, CarryMode::Compact] {
        let image = dir.path().join("new");
        let changed = BTreeMap::from([
            ("a", None),
            ("c", None),
            ("d", None),
            ("e", Some(text(50, 2500))),
            ("f", None),
        ]);
        let mut writer = ImageWriter::append(&image, &old, carry(mode)).unwrap();
        let root = push_old(&mut writer, &old, &changed);
        let stats = writer.finish(root).unwrap();
        assert_eq!((stats.data.fragments, stats.data.fragments_carried), (2, 1));
        let read = open(&image);
        let fragment = |name| {
            let InodeBody::File(body) = inode_at(&read, name).body else {
                panic!()
            };
            body.fragment.unwrap().index
        };
        assert_eq!((fragment("b"), fragment("e")), (0, 1));
        assert_eq!(content(&read, &inode_at(&read, "b")), text(1, 3000));
        // unsquashfs rejects images with more fragments than inodes.
        check_everywhere(&image, &describe_image(&read));
    }
}

/// Fragment blocks with 4 tails of 1000 bytes each. Three tails are removed from each of the first
/// three, one from the fourth, none from the fifth.
#[test]
fn mostly_dead_fragment_blocks_are_repacked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old");
    let names: Vec<String> = (0..20).map(|i| format!("f{i:02}")).collect();
    let files: Vec<_> = (0..20)
        .map(|i| (names[i].as_str(), text(i as u64, 1000)))
        .collect();
    for compression in CODECS {
        let with = WriterOptions {
            compression,
            ..options(4096, 2)
        };
        flat(&path, with, &files);
        let old = open(&path);
        assert_eq!(old.superblock().fragments, 5);
        let gone = [0, 1, 3, 4, 5, 6, 9, 10, 11, 13];
        let changed: BTreeMap<_, _> = gone.iter().map(|i| (names[*i].as_str(), None)).collect();
        let stored: Vec<u64> = (0..5)
            .map(|i| u64::from(old.fragment(i).unwrap().size.stored()))
            .collect();
        let dead = |parts: [u64; 5]| -> u64 { (0..5).map(|i| stored[i] * parts[i] / 4).sum() };
        let mut dead_at_50 = 0;
        for (mode, percent, repacked) in [
            (CarryMode::Append, 25, 0),
            (CarryMode::Compact, 25, 4),
            (CarryMode::Compact, 50, 3),
            (CarryMode::Compact, 0, 4),
        ] {
            let image = dir.path().join("new");
            let mut options = AppendOptions {
                repack_percent: percent,
                ..carry(mode)
            };
            if compression == Compression::None {
                options.compression = Some(compression);
            }
            let mut writer = ImageWriter::append(&image, &old, options).unwrap();
            let root = push_old(&mut writer, &old, &changed);
            let stats = writer.finish(root).unwrap();
            let data = &stats.data;
            assert_eq!(data.fragments_repacked, repacked, "{compression} {percent}");
            assert_eq!(data.dead_bytes, data.dead_in_fragments);
            let left = [0, 0, 0, 3000, 6000];
            assert_eq!(data.repacked_bytes, left[repacked as usize]);
            let fresh = if repacked == 0 {
                0
            } else {
                1 + u64::from(repacked == 4)
            };
            assert_eq!(data.blocks_compressed + data.blocks_stored_raw, fresh);
            assert_eq!(data.fragments, 5 - repacked + fresh);
            assert_eq!(data.fragments_carried, 5 - repacked);
            match (mode, percent) {
                (CarryMode::Append, _) => {
                    assert_eq!(data.dead_bytes, dead([3, 3, 3, 1, 0]), "{compression}");
                }
                (_, 50) => {
                    assert_eq!(data.dead_bytes, dead([0, 0, 0, 1, 0]), "{compression}");
                    dead_at_50 = data.dead_bytes;
                }
                _ => assert_eq!(data.dead_bytes, 0),
            }
            let read = open(&image);
            for (i, (name, bytes)) in files.iter().enumerate() {
                if !gone.contains(&i) {
                    assert!(content(&read, &inode_at(&read, name)) == *bytes, "{name}");
                }
            }
            check_everywhere(&image, &describe_image(&read));
        }
        assert!(dead_at_50 > 0);
    }
}

#[test]
fn unchanged_blocks_of_a_changed_file_are_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old");
    let block = BLOCK;
    let mut bytes = text(1, 10 * block + 100);
    bytes[4 * block..5 * block].fill(0);
    flat(
        &path,
        options(BLOCK as u32, 2),
        &[("before", text(2, 9000)), ("file", bytes.clone())],
    );
    let old = open(&path);
    let layout = old.file_layout(&inode_at(&old, "file")).unwrap();
    type Change = fn(&mut Vec<u8>) -> Vec<u64>;
    let cases: [(&str, Change, u64, u64); 5] = [
        (
            "one block",
            |b| {
                b[2 * BLOCK] ^= 1;
                vec![2]
            },
            1,
            9,
        ),
        (
            "the tail",
            |b| {
                b[10 * BLOCK + 50] ^= 1;
                vec![10]
            },
            1,
            9,
        ),
        (
            "longer",
            |b| {
                b.extend(text(3, 2 * BLOCK));
                vec![]
            },
            3,
            9,
        ),
        (
            "shorter",
            |b| {
                b.truncate(3 * BLOCK + 1);
                vec![]
            },
            1,
            3,
        ),
        (
            "a new hole",
            |b| {
                b[..BLOCK].fill(0);
                vec![0]
            },
            0,
            9,
        ),
    ];
    for mode in [CarryMode::Append, CarryMode::Compact] {
        for (what, change, fresh, carried) in cases {
            let mut new = bytes.clone();
            let dirty = change(&mut new);
            let image = dir.path().join("new");
            let mut writer = ImageWriter::append(&image, &old, carry(mode)).unwrap();
            let root = writer.add_directory(&meta(0o755)).unwrap();
            let file = writer
                .add_partly_carried(
                    &meta(0o644),
                    &layout,
                    new.len() as u64,
                    &mut |block| dirty.contains(&block),
                    memory(&new),
                )
                .unwrap();
            writer.link(root, b"file", file).unwrap();
            let stats = writer.finish(root).unwrap();
            let data = &stats.data;
            assert_eq!(
                data.blocks_compressed + data.blocks_stored_raw,
                fresh,
                "{what}"
            );
            assert_eq!(data.blocks_carried, carried, "{what}");
            let read = open(&image);
            assert!(content(&read, &inode_at(&read, "file")) == new, "{what}");
            check_everywhere(&image, &describe_image(&read));
        }
    }
}

#[test]
fn extents_are_shared_where_the_file_system_can() {
    let makers = [
        ("mkfs.btrfs", &["-q"][..]),
        ("mkfs.xfs", &["-q", "-m", "reflink=1"]),
    ];
    let maker = makers.into_iter().find(|(program, _)| have(program));
    let Some((program, arguments)) = maker.filter(|_| is_root()) else {
        eprintln!("SKIP shared extents: needs root, and mkfs.btrfs or mkfs.xfs");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (disk, mounted) = (dir.path().join("disk"), dir.path().join("mounted"));
    fs::File::create(&disk).unwrap().set_len(400 << 20).unwrap();
    fs::create_dir(&mounted).unwrap();
    run(Command::new(program).args(arguments).arg(&disk));
    run(Command::new("mount")
        .args(["-o", "loop"])
        .arg(&disk)
        .arg(&mounted));
    let (old_path, new) = (mounted.join("old"), mounted.join("new"));
    flat(
        &old_path,
        options(128 << 10, 2),
        &[("f", noise(1, 64 << 20))],
    );
    run(Command::new("sync").arg("-f").arg(&mounted));
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&mounted).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    let before = free();
    {
        let old = open(&old_path);
        let mut writer = ImageWriter::append(&new, &old, carry(CarryMode::Append)).unwrap();
        let root = push_old(&mut writer, &old, &BTreeMap::new());
        writer.finish(root).unwrap();
    }
    run(Command::new("sync").arg("-f").arg(&mounted));
    let used = before.saturating_sub(free());
    unmount(&mounted);
    assert!(used < 8 << 20, "{used} bytes more for a copy of 64 MiB");
}
