//! Details that only some readers tolerate, and input that must be rejected.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::readers::*;
use super::support::*;
use crate::squashfs::Compression;
use crate::squashfs::format::{ABSENT, InodeBody};
use crate::squashfs::writer::*;

fn dir_and_image() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    (dir, image)
}

fn start(image: &Path) -> (ImageWriter, NodeId) {
    let mut writer = ImageWriter::create(image, options(4096, 2)).unwrap();
    let root = writer.add_directory(&meta(0o755)).unwrap();
    (writer, root)
}

#[test]
fn an_empty_image_has_only_required_tables() {
    let (_dir, image) = dir_and_image();
    for compression in CODECS {
        let options = WriterOptions {
            compression,
            ..options(4096, 1)
        };
        let mut writer = ImageWriter::create(&image, options).unwrap();
        let root = writer.add_directory(&meta(0o755)).unwrap();
        let stats = writer.finish(root).unwrap();
        assert_eq!((stats.inodes, stats.image_size), (1, 4096));
        let read = open(&image);
        let superblock = read.superblock();
        assert_eq!(superblock.xattr_table, ABSENT);
        // unsquashfs before 4.5 requires an empty fragment table to begin at the next table.
        let bytes = fs::read(&image).unwrap();
        let next = &bytes[superblock.export_table as usize..][..8];
        assert_eq!(superblock.fragment_table.to_le_bytes(), next);
        let InodeBody::Directory(body) = inode_at(&read, "").body else {
            panic!()
        };
        // The stored size is exactly 3 (for unsquashfs). The root's parent is the highest number
        // plus 1.
        assert_eq!((body.listing_size, body.parent), (0, 2));
        check_everywhere(&image, &describe_image(&read));
    }
}

#[test]
fn long_tables_have_exact_indexes() {
    let (_dir, image) = dir_and_image();
    let (mut writer, root) = start(&image);
    // More than one metadata block of ids, fragments, xattr lists and xattr ids.
    for i in 0..2500u32 {
        let mut meta = meta(0o600);
        (meta.uid, meta.gid) = (i + 10, 70_000 + i);
        if i < 700 {
            meta.xattrs = vec![(b"user.n".to_vec(), noise(u64::from(i), 40))];
        }
        let bytes = if i < 600 {
            noise(u64::from(i), 3000)
        } else {
            Vec::new()
        };
        let file = writer
            .add_file(&meta, bytes.len() as u64, memory(&bytes))
            .unwrap();
        writer.link(root, format!("{i}").as_bytes(), file).unwrap();
    }
    let stats = writer.finish_synced(root).unwrap();
    assert!(stats.data.fragments >= 600);
    check_everywhere(&image, &describe_image(&open(&image)));
}

#[test]
fn inode_numbers_of_the_caller_may_be_in_any_order() {
    let (_dir, image) = dir_and_image();
    let (mut writer, count) = (
        ImageWriter::create(&image, options(4096, 2)).unwrap(),
        40_000u32,
    );
    let with = |number| Meta {
        number,
        ..meta(0o700)
    };
    let root = writer.add_directory(&with(1)).unwrap();
    // Deltas from -39,998 to 39,998, which exceed 16 bits in both directions.
    for i in 0..count {
        let number = if i % 2 == 0 { i + 2 } else { count + 2 - i };
        let fifo = writer.add_fifo(&with(number)).unwrap();
        writer
            .link(root, format!("{i:05}").as_bytes(), fifo)
            .unwrap();
        writer
            .link(root, format!("{i:05}.again").as_bytes(), fifo)
            .unwrap();
    }
    writer.finish(root).unwrap();
    let read = open(&image);
    for i in [0, 1, 2, 17, 39_998, 39_999] {
        let inode = inode_at(&read, &format!("{i:05}"));
        assert_eq!(inode.number, if i % 2 == 0 { i + 2 } else { count + 2 - i });
        assert_eq!(inode.nlink, 2);
        assert_eq!(inode_at(&read, &format!("{i:05}.again")), inode);
    }
    let Some(lines) = by_kernel(&image) else {
        return;
    };
    compare("the kernel", &lines, &describe_image(&read));
}

#[test]
fn duplicate_numbers_and_gaps_are_rejected() {
    for numbers in [[1, 3], [1, 1], [2, 0], [u32::MAX, 1]] {
        let (_dir, image) = dir_and_image();
        let mut writer = ImageWriter::create(&image, options(4096, 1)).unwrap();
        let root = writer
            .add_directory(&Meta {
                number: numbers[0],
                ..meta(0)
            })
            .unwrap();
        let child = writer
            .add_fifo(&Meta {
                number: numbers[1],
                ..meta(0)
            })
            .unwrap();
        writer.link(root, b"x", child).unwrap();
        assert!(
            matches!(writer.finish(root), Err(WriteError::Tree { .. })),
            "{numbers:?}"
        );
        assert!(!image.exists(), "the unfinished image is removed");
    }
}

#[test]
fn directories_count_their_subdirectories() {
    let (_dir, image) = dir_and_image();
    let (mut writer, root) = start(&image);
    for name in ["b", "a", "c"] {
        let dir = writer.add_directory(&meta(0o755)).unwrap();
        writer.link(root, name.as_bytes(), dir).unwrap();
    }
    let fifo = writer.add_fifo(&meta(0o600)).unwrap();
    writer.link(root, b"fifo", fifo).unwrap();
    writer.finish(root).unwrap();
    let read = open(&image);
    assert_eq!(inode_at(&read, "").nlink, 5);
    assert_eq!(inode_at(&read, "a").nlink, 2);
}

#[test]
fn names_sort_as_unsigned_bytes() {
    let (_dir, image) = dir_and_image();
    let (mut writer, root) = start(&image);
    let names: [&[u8]; 9] = [
        b"\xff",
        b"a\xc3\xa9",
        b"\x01",
        b"a",
        b"\x80x",
        b"B",
        b"a.",
        b"a\x01",
        b"~",
    ];
    for name in names {
        let file = writer.add_file(&meta(0o644), 1, memory(b"x")).unwrap();
        writer.link(root, name, file).unwrap();
    }
    writer.finish(root).unwrap();
    let read = open(&image);
    let listing = read.read_dir(&inode_at(&read, "")).unwrap();
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    assert_eq!(
        listing.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        sorted
    );
    check_everywhere(&image, &describe_image(&read));
}

#[test]
fn invalid_trees_are_rejected() {
    let (_dir, image) = dir_and_image();
    let (mut writer, root) = start(&image);
    let dir = writer.add_directory(&meta(0)).unwrap();
    let fifo = writer.add_fifo(&meta(0)).unwrap();
    let long = vec![b'n'; 256];
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
        assert!(
            matches!(writer.link(root, name, fifo), Err(WriteError::Tree { .. })),
            "{name:?}"
        );
    }
    assert!(writer.link(fifo, b"x", dir).is_err(), "no directory");
    writer.link(root, b"dir", dir).unwrap();
    assert!(writer.link(root, b"dir2", dir).is_err(), "two names");
    for target in [&b""[..], &[b'x'; 4096], b"a\0"] {
        assert!(writer.add_symlink(&meta(0), target).is_err());
    }
    for name in ["system.posix_acl_access", "user.", "plain"] {
        let meta = Meta {
            xattrs: vec![(name.into(), b"v".to_vec())],
            ..meta(0)
        };
        assert!(writer.add_fifo(&meta).is_err(), "{name}");
    }
    // The writer is still usable.
    writer.link(root, b"fifo", fifo).unwrap();
    writer.finish(root).unwrap();

    let twice = |writer: &mut ImageWriter, root| {
        for _ in 0..2 {
            let fifo = writer.add_fifo(&meta(0)).unwrap();
            writer.link(root, b"same", fifo).unwrap();
        }
    };
    let nameless = |writer: &mut ImageWriter, _| {
        writer.add_fifo(&meta(0)).unwrap();
    };
    let ring = |writer: &mut ImageWriter, _| {
        let (a, b) = (
            writer.add_directory(&meta(0)).unwrap(),
            writer.add_directory(&meta(0)).unwrap(),
        );
        writer.link(a, b"b", b).unwrap();
        writer.link(b, b"a", a).unwrap();
    };
    let rooted = |writer: &mut ImageWriter, root| writer.link(root, b"root", root).unwrap();
    type Case<'a> = &'a dyn Fn(&mut ImageWriter, NodeId);
    let cases: [Case; 4] = [&twice, &nameless, &ring, &rooted];
    for (i, case) in cases.into_iter().enumerate() {
        let (mut writer, root) = start(&image);
        case(&mut writer, root);
        assert!(
            matches!(writer.finish(root), Err(WriteError::Tree { .. })),
            "case {i}"
        );
        assert!(!image.exists());
    }
}

#[test]
fn positions_and_sizes_beyond_4_gib_are_extended() {
    let (dir, image) = dir_and_image();
    let options = WriterOptions {
        block_size: 1 << 20,
        ..options(1 << 20, 2)
    };
    let mut writer = ImageWriter::create_with_gap(&image, options, 5 << 30).unwrap();
    let root = writer.add_directory(&meta(0o755)).unwrap();
    let huge = dir.path().join("huge");
    let file = fs::File::create(&huge).unwrap();
    file.set_len(6 << 30).unwrap();
    file.write_all_at(b"here", (5 << 30) + 123).unwrap();
    let huge_node = writer
        .add_file(&meta(0o644), 6 << 30, Box::new(huge))
        .unwrap();
    writer.link(root, b"huge", huge_node).unwrap();
    let bytes = text(1, 3 << 20);
    let far = writer
        .add_file(&meta(0o644), bytes.len() as u64, memory(&bytes))
        .unwrap();
    writer.link(root, b"far", far).unwrap();
    let small = writer
        .add_file(&meta(0o644), 9, memory(b"in a frag"))
        .unwrap();
    writer.link(root, b"small", small).unwrap();
    let stats = writer.finish(root).unwrap();
    // One block of the huge file and three of the other. Holes are not stored, and 9 bytes do not
    // compress.
    assert_eq!(
        (stats.data.blocks_compressed, stats.data.blocks_stored_raw),
        (4, 1)
    );
    assert!(
        fs::metadata(&image).unwrap().blocks() < 20_000,
        "the gap is a hole"
    );
    let read = open(&image);
    assert_eq!(content(&read, &inode_at(&read, "far")), bytes);
    if have("unsquashfs") {
        let cat = Command::new("unsquashfs")
            .arg("-cat")
            .arg(&image)
            .arg("far")
            .output()
            .unwrap();
        assert!(!cat.status.success() || cat.stdout == bytes);
    }
    if is_root() {
        let mounted = tempfile::tempdir().unwrap();
        run(Command::new("mount")
            .args(["-t", "squashfs", "-o", "loop,ro"])
            .arg(&image)
            .arg(mounted.path()));
        let far = fs::read(mounted.path().join("far")).unwrap();
        let small = fs::read(mounted.path().join("small")).unwrap();
        let huge = fs::File::open(mounted.path().join("huge")).unwrap();
        let mut here = [0; 8];
        huge.read_exact_at(&mut here, (5 << 30) + 121).unwrap();
        let stat = huge.metadata().unwrap();
        drop(huge);
        unmount(mounted.path());
        assert!(far == bytes && small == b"in a frag");
        assert_eq!(&here, b"\0\0here\0\0");
        assert_eq!((stat.len(), stat.blocks()), (6 << 30, 2048));
    }
}

#[test]
fn only_files_with_equal_content_are_duplicates() {
    let (_dir, image) = dir_and_image();
    let one = text(1, 20_000);
    // Equal sizes and first blocks with different ends; equal ends with different sizes.
    let mut two = one.clone();
    two[19_999] ^= 1;
    let three = one[..19_000].to_vec();
    let files = [
        ("a", one.clone()),
        ("b", two.clone()),
        ("c", one.clone()),
        ("d", three.clone()),
        ("e", two.clone()),
        ("f", one[..100].to_vec()),
        ("g", one[..101].to_vec()),
        ("h", one[..100].to_vec()),
        ("i", vec![0; 20_000]),
        ("j", vec![0; 20_000]),
    ];
    let stats = flat(&image, options(4096, 2), &files);
    assert_eq!(stats.data.duplicates, 4, "{stats:?}");
    let read = open(&image);
    for (name, bytes) in &files {
        assert!(content(&read, &inode_at(&read, name)) == *bytes, "{name}");
    }
    let start = |name| read.file_layout(&inode_at(&read, name)).unwrap().start();
    assert!(start("a") == start("c") && start("b") == start("e") && start("a") != start("b"));
    check_everywhere(&image, &describe_image(&read));
}

#[test]
fn without_fragments_small_files_have_their_own_blocks() {
    let (_dir, image) = dir_and_image();
    let options = WriterOptions {
        fragments: false,
        ..options(4096, 2)
    };
    let files = [
        ("a", text(1, 100)),
        ("b", text(2, 5000)),
        ("c", Vec::new()),
        ("d", vec![0; 50]),
    ];
    let stats = flat(&image, options, &files);
    assert_eq!((stats.data.fragments, stats.data.blocks_compressed), (0, 3));
    check_everywhere(&image, &describe_image(&open(&image)));
}

#[test]
fn content_of_unexpected_length_is_an_error() {
    for (announced, real) in [
        (10, 9),
        (10, 11),
        (0, 1),
        (9000, 8999),
        (9000, 9001),
        (4096, 4097),
        (8192, 0),
    ] {
        let (_dir, image) = dir_and_image();
        let (mut writer, root) = start(&image);
        let source = OpenWith {
            label: "the log".into(),
            open: move || Ok(Box::new(io::Cursor::new(text(1, real))) as Box<dyn Content>),
        };
        let error = match writer.add_file(&meta(0o644), announced, Box::new(source)) {
            Ok(file) => {
                writer.link(root, b"f", file).unwrap();
                writer.finish(root).unwrap_err()
            }
            Err(error) => {
                assert!(matches!(
                    writer.add_file(&meta(0), 1, memory(b"x")),
                    Err(WriteError::Failed)
                ));
                drop(writer);
                error
            }
        };
        assert!(
            matches!(&error, WriteError::SourceChanged { label, expected, .. }
                if label == "the log" && *expected == announced),
            "{announced} {real}: {error}"
        );
        assert!(!image.exists());
    }
}

#[test]
fn a_source_that_fails_or_panics_ends_the_writer() {
    struct Bad(bool);
    impl Source for Bad {
        fn open(&self) -> io::Result<Box<dyn Content>> {
            assert!(self.0, "on purpose");
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn label(&self) -> String {
            "bad".into()
        }
    }
    for fails in [true, false] {
        let (_dir, image) = dir_and_image();
        let (mut writer, root) = start(&image);
        let file = writer.add_file(&meta(0), 5, Box::new(Bad(fails))).unwrap();
        writer.link(root, b"f", file).unwrap();
        let error = writer.finish(root).unwrap_err();
        match fails {
            true => assert!(matches!(error, WriteError::Source { .. }), "{error}"),
            false => assert!(matches!(error, WriteError::Thread(_)), "{error}"),
        }
        assert!(!image.exists());
    }
}

#[test]
fn a_cancelled_writer_removes_its_file() {
    #[derive(Debug, Default)]
    struct After(AtomicU64);
    impl Monitor for After {
        fn advance(&self, files: u64, _bytes: u64) {
            self.0.fetch_add(files, Ordering::Relaxed);
        }
        fn is_cancelled(&self) -> bool {
            self.0.load(Ordering::Relaxed) > 500
        }
    }
    let (_dir, image) = dir_and_image();
    let monitor = Arc::new(After::default());
    let options = WriterOptions {
        monitor: monitor.clone(),
        ..options(4096, 2)
    };
    let mut writer = ImageWriter::create(&image, options).unwrap();
    let cancelled = (0..u64::MAX).find_map(|i| {
        let bytes = text(i, 2000);
        writer
            .add_file(&meta(0), bytes.len() as u64, memory(&bytes))
            .err()
    });
    assert!(matches!(cancelled, Some(WriteError::Cancelled)));
    drop(writer);
    assert!(!image.exists());
}

#[test]
fn content_in_flight_is_bounded() {
    // A worker is blocked by the first file, so pushing has to wait for budget.
    struct Stuck(Arc<std::sync::Barrier>);
    impl Read for Stuck {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.wait();
            Ok(0)
        }
    }
    impl Content for Stuck {}
    let (_dir, image) = dir_and_image();
    let mut writer = ImageWriter::create(&image, options(128 << 10, 1)).unwrap();
    let root = writer.add_directory(&meta(0)).unwrap();
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let inside = barrier.clone();
    let source = OpenWith {
        label: "stuck".into(),
        open: move || Ok(Box::new(Stuck(inside.clone())) as Box<dyn Content>),
    };
    let file = writer.add_file(&meta(0), 0, Box::new(source)).unwrap();
    writer.link(root, b"stuck", file).unwrap();
    let pushed = Arc::new(AtomicU64::new(0));
    let count = pushed.clone();
    let bytes = noise(1, 100 << 10);
    let pusher = std::thread::spawn(move || {
        for i in 0..400u32 {
            let mut bytes = bytes.clone();
            bytes[..4].copy_from_slice(&i.to_le_bytes());
            let file = writer
                .add_file(&meta(0), bytes.len() as u64, memory(&bytes))
                .unwrap();
            writer.link(root, i.to_string().as_bytes(), file).unwrap();
            count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
        writer.finish(root).unwrap()
    });
    let mut before = u64::MAX;
    while before != pushed.load(Ordering::SeqCst) {
        before = pushed.load(Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(before <= 3 * (4 << 20), "{before} bytes taken");
    barrier.wait();
    let stats = pusher.join().unwrap();
    assert_eq!(stats.data.fresh_bytes, 400 * (100 << 10));
}

#[test]
fn an_invalid_level_is_rejected_before_the_file_is_created() {
    let (_dir, image) = dir_and_image();
    let bad = WriterOptions {
        compression: Compression::Gzip { level: 99 },
        ..options(4096, 1)
    };
    assert!(ImageWriter::create(&image, bad).is_err());
    assert!(ImageWriter::create(&image, options(5000, 1)).is_err());
    assert!(!image.exists());
}
