//! Images of whole trees, compared as all readers see them.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::readers::*;
use super::support::*;
use crate::squashfs::Compression;
use crate::squashfs::writer::*;

/// All combinations of codec, layout and reader.
#[test]
fn every_reader_sees_the_tree_in_every_codec() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    varied_tree(&tree, 16 << 10);
    let expected = describe(&tree);
    let layouts = [
        (16 << 10, true),
        (4 << 10, true),
        (16 << 10, false),
        (1 << 20, true),
    ];
    for compression in CODECS {
        for (block_size, fragments) in layouts {
            let is_usual = compression == Compression::default();
            if !is_usual && block_size == 1 << 20 {
                continue;
            }
            let image = dir.path().join("image");
            let stats = import(
                &image,
                WriterOptions {
                    compression,
                    fragments,
                    ..options(block_size, 2)
                },
                &tree,
            );
            assert_eq!(stats.image_size, fs::metadata(&image).unwrap().len());
            assert_eq!(stats.image_size % 4096, 0);
            assert!(stats.data.duplicates >= 3, "{stats:?}");
            eprintln!("{compression} {block_size} {fragments}: {stats:?}");
            check_everywhere(&image, &expected);
            check_by_tools_ng(&image, &tree, &expected);
        }
    }
}

fn check_by_tools_ng(image: &Path, tree: &Path, expected: &[String]) {
    // It unpacks hard links as separate files, and does not change its target directory.
    let without_links = |lines: &[String]| -> Vec<String> {
        let cut = |line: &String| {
            let (before, rest) = line.split_once(" links ").unwrap();
            let (_, after) = rest.split_once(" {").unwrap();
            format!("{before} {{{after}")
        };
        lines.iter().skip(1).map(cut).collect()
    };
    if let Some(lines) = by_rdsquashfs(image) {
        compare(
            "rdsquashfs",
            &without_links(&lines),
            &without_links(expected),
        );
    }
    if let Some(paths) = by_sqfs2tar(image) {
        let mut wanted: Vec<Vec<u8>> = walkdir::WalkDir::new(tree)
            .min_depth(1)
            .into_iter()
            .map(|entry| entry.unwrap())
            // A tar archive cannot contain sockets.
            .filter(|entry| !std::os::unix::fs::FileTypeExt::is_socket(&entry.file_type()))
            .map(|entry| entry.path().strip_prefix(tree).unwrap().to_owned())
            .map(|path| path.into_os_string().into_encoded_bytes())
            .collect();
        wanted.sort();
        assert_eq!(paths, wanted, "by sqfs2tar");
    }
}

/// All readers read images of each level of conda-pack.
#[test]
fn every_level_of_conda_pack_is_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir_all(tree.join("lib")).unwrap();
    for i in 0..30 {
        fs::write(tree.join(format!("lib/{i}.py")), text(i, 3000 * i as usize)).unwrap();
    }
    fs::write(tree.join("noise"), noise(1, 300_000)).unwrap();
    let expected = describe(&tree);
    for level in 0..=9 {
        let compression = Compression::from_conda_pack_level(level).unwrap();
        let options = WriterOptions {
            compression,
            ..options(256 << 10, 2)
        };
        import(&image, options, &tree);
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
fn images_are_not_larger_than_those_of_mksquashfs() {
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
        // The times of the root may have changed.
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
    let count = 100_000;
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
        // One by one, so that the kernel uses the index.
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

/// Returns the peak memory of this process in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

const MANY: &str = "ENVFS_TEST_FILES";

/// Runs in a separate process to measure its peak: with 100,000 files, or the number in
/// `ENVFS_TEST_FILES` (1000000 for the name of the test).
#[test]
fn a_million_files_take_bounded_memory() {
    const INSIDE: &str = "ENVFS_TEST_INSIDE";
    let asked = std::env::var(MANY)
        .ok()
        .map(|text| text.parse::<u32>().unwrap());
    let count = asked.unwrap_or(100_000);
    if let Some(image) = std::env::var_os(INSIDE) {
        write_many(Path::new(&image), count);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut inside = Command::new(std::env::current_exe().unwrap());
    inside.args(["--exact", "--nocapture"]);
    inside.arg("squashfs::writer::tests::oracles::a_million_files_take_bounded_memory");
    let said = run(inside.env(INSIDE, &image).env(MANY, count.to_string()));
    let peak: u64 = said
        .lines()
        .find_map(|line| line.split_once("peak ")?.1.parse().ok())
        .unwrap();
    let each = peak.saturating_sub(FIXED) / u64::from(count);
    eprintln!("{count} files: {peak} bytes at most, {each} for each beyond {FIXED}");
    assert!(
        peak <= FIXED + u64::from(count) * EACH,
        "{peak} bytes, {each} for each file"
    );

    let read = open(&image);
    let opened = read.counts();
    assert_eq!((opened.metadata_blocks, opened.data_blocks), (1, 0));
    assert_eq!(read.superblock().inodes, count + count / 1000 + 1);
    for i in (0..count).step_by(count as usize / 50) {
        let path = format!("d{:04}/module_{i:07}.py", i / 1000);
        let inode = inode_at(&read, &path);
        assert_eq!(content(&read, &inode), many_content(i), "{path}");
    }
    if asked.is_some() {
        let report = crate::squashfs::reader::verify(&read, 2, |_| true).unwrap();
        assert_eq!(report.files, u64::from(count));
        if is_root() {
            let lines = by_kernel(&image).unwrap();
            assert_eq!(lines.len() as u32, count + count / 1000 + 1);
        }
    }
}

/// The limits in `docs/image.md`: a constant, and a number of bytes for each file.
const FIXED: u64 = 24 << 20;
const EACH: u64 = 160;

fn many_content(i: u32) -> Vec<u8> {
    format!("value = {}\n", i % 20_000).into_bytes()
}

fn write_many(image: &Path, count: u32) {
    let mut writer = ImageWriter::create(image, options(128 << 10, 2)).unwrap();
    let root = writer.add_directory(&meta(0o755)).unwrap();
    for dir in 0..count / 1000 {
        let node = writer.add_directory(&meta(0o755)).unwrap();
        writer
            .link(root, format!("d{dir:04}").as_bytes(), node)
            .unwrap();
        for i in dir * 1000..(dir + 1) * 1000 {
            let bytes = many_content(i);
            let file = writer
                .add_file(&meta(0o644), bytes.len() as u64, memory(&bytes))
                .unwrap();
            let name = format!("module_{i:07}.py");
            writer.link(node, name.as_bytes(), file).unwrap();
        }
    }
    writer.finish(root).unwrap();
    println!("peak {}", peak());
}

/// Offsets beyond 32 bits in files of the writer and of mksquashfs. `traps.rs` tests such positions
/// in the image.
#[test]
fn all_readers_read_a_file_of_more_than_four_gib() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    let size = (5 << 30) + 12_345;
    let places: Vec<(u64, Vec<u8>)> = [0, (4 << 30) - 7, (4 << 30) + (1 << 20) + 1, size - 5000]
        .into_iter()
        .map(|at| (at, noise(at, 5000)))
        .collect();
    let file = fs::File::create(tree.join("large")).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in &places {
        file.write_all_at(bytes, *at).unwrap();
    }
    let check = |who: &str, image: &Path| {
        let read = open(image);
        let inode = inode_at(&read, "large");
        let layout = read.file_layout(&inode).unwrap();
        assert_eq!(layout.size(), size, "{who}");
        for (at, bytes) in &places {
            let mut found = vec![0; bytes.len()];
            let mut got = 0;
            while got < found.len() {
                got += read
                    .read_at(&layout, at + got as u64, &mut found[got..])
                    .unwrap();
            }
            assert!(found == *bytes, "{who}: {at}");
            let before = at.saturating_sub(4096);
            let mut zero = [1; 1];
            if *at > 0 {
                read.read_at(&layout, before, &mut zero).unwrap();
                assert_eq!(zero, [0], "{who}: {before}");
            }
        }
        // Nearly all of it is a hole.
        let blocks = layout.blocks().iter().filter(|block| !block.is_hole());
        assert!(blocks.count() <= 2 * places.len(), "{who}");
    };
    import(&image, options(128 << 10, 2), &tree);
    check("ours", &image);
    if have("unsquashfs") {
        let out = dir.path().join("out");
        let mut command = Command::new("unsquashfs");
        run(command
            .args(["-no-progress", "-quiet", "-d"])
            .arg(&out)
            .arg(&image));
        let file = fs::File::open(out.join("large")).unwrap();
        for (at, bytes) in &places {
            let mut found = vec![0; bytes.len()];
            file.read_exact_at(&mut found, *at).unwrap();
            assert!(found == *bytes, "unsquashfs: {at}");
        }
    }
    if have("mksquashfs") {
        let foreign = dir.path().join("foreign");
        let mut command = Command::new("mksquashfs");
        run(command
            .arg(&tree)
            .arg(&foreign)
            .args(["-no-progress", "-quiet"]));
        check("mksquashfs", &foreign);
    }
}
