//! Images of mksquashfs with every codec and every option that changes the layout.

use std::{path::Path, thread};

use super::support::{
    SPARSE_DATA, SPARSE_SIZE, compare, compare_exactly, content, have, have_mksquashfs, mksquashfs,
    source, tree,
};
use crate::squashfs::{
    CompressorId, Error,
    format::{Flags, InodeKind},
    reader::{Image, ReaderOptions, verify},
};

fn check(options: &[&str]) -> Option<Image> {
    check_source(source(), options)
}

fn check_source(source: &Path, options: &[&str]) -> Option<Image> {
    if !have_mksquashfs(&options.join(" ")) {
        return None;
    }
    let made = mksquashfs(source, options);
    let image = made.open();
    compare(&image, source, !options.contains(&"-no-xattrs"));
    let report = verify(&image, 2, |_| true).unwrap();
    assert_eq!(report.unreached, 0, "{options:?}");
    assert_eq!(report.wrong_links.len(), 0, "{options:?}");
    assert_eq!(report.wrong_directory_links.len(), 0, "{options:?}");
    assert_eq!(report.fragments, u64::from(image.fragment_count()));
    Some(image)
}

#[test]
fn gzip() {
    if let Some(image) = check(&["-comp", "gzip", "-b", "128K"]) {
        assert_eq!(image.superblock().compressor, CompressorId::Gzip);
        assert_eq!(image.options_bytes(), None);
        assert_eq!(image.data_area().start, 96);
    }
    if let Some(image) = check(&["-comp", "gzip", "-Xcompression-level", "2", "-b", "4K"]) {
        assert_eq!(image.options_bytes().map(<[u8]>::len), Some(8));
    }
}

#[test]
fn xz() {
    check(&["-comp", "xz", "-b", "1M"]);
}

/// Calls of one address from many places, as compiled code has them. A branch filter turns the
/// distances into the address, which compresses far better.
fn calls(filter: &str) -> Vec<u8> {
    const TARGET: u32 = 0x0040_0000;
    let call = |at: u32| -> Vec<u8> {
        let distance = |ahead: u32| TARGET - (at + ahead);
        match filter {
            "x86" => [&[0xe8], &distance(5).to_le_bytes()[..], &[0x90; 3]].concat(),
            "arm" => (0xeb00_0000 | (distance(8) >> 2)).to_le_bytes().into(),
            "armthumb" => {
                let half = distance(4) >> 1;
                let words = [0xf000 | (half >> 11), 0xf800 | (half & 0x7ff)];
                words.map(|word| (word as u16).to_le_bytes()).concat()
            }
            "powerpc" => (0x4800_0001 | distance(0)).to_be_bytes().into(),
            "sparc" => (0x4000_0000 | (distance(0) >> 2)).to_be_bytes().into(),
            other => panic!("{other}"),
        }
    };
    let mut code = Vec::new();
    while code.len() < 200_000 {
        code.extend(call(code.len() as u32));
    }
    code
}

#[test]
fn xz_with_branch_filters() {
    for filter in ["x86", "arm", "armthumb", "powerpc", "sparc"] {
        let small = tempfile::tempdir().unwrap();
        std::fs::write(small.path().join("program"), calls(filter)).unwrap();
        let plain = ["-comp", "xz", "-b", "64K"];
        let filtered = [&plain[..], &["-Xbcj", filter, "-Xdict-size", "50%"]].concat();
        let (Some(plain), Some(filtered)) = (
            check_source(small.path(), &plain),
            check_source(small.path(), &filtered),
        ) else {
            return;
        };
        assert_eq!(filtered.options_bytes().map(<[u8]>::len), Some(8));
        // mksquashfs uses a filter only where it helps.
        let data = |image: &Image| image.data_area().end - image.data_area().start;
        assert!(data(&filtered) < data(&plain) / 2, "{filter}");
    }
}

#[test]
fn zstd() {
    check(&["-comp", "zstd", "-Xcompression-level", "1", "-b", "4K"]);
    check(&["-comp", "zstd", "-Xcompression-level", "3", "-b", "1M"]);
    check(&["-comp", "zstd", "-Xcompression-level", "19"]);
}

#[test]
fn lz4() {
    if let Some(image) = check(&["-comp", "lz4", "-b", "128K"]) {
        assert_eq!(
            image.options_bytes(),
            Some([1, 0, 0, 0, 0, 0, 0, 0].as_slice())
        );
        assert_eq!(image.data_area().start, 96 + 2 + 8);
    }
    check(&["-comp", "lz4", "-Xhc", "-b", "4K", "-always-use-fragments"]);
}

#[test]
fn lzo() {
    if let Some(image) = check(&["-comp", "lzo"]) {
        assert_eq!(image.superblock().compressor, CompressorId::Lzo);
    }
    for algorithm in ["lzo1x_1", "lzo1x_1_11", "lzo1x_1_12", "lzo1x_1_15"] {
        check_source(plain().path(), &["-comp", "lzo", "-Xalgorithm", algorithm]);
    }
    check(&["-comp", "lzo", "-b", "4K", "-always-use-fragments"]);
}

#[test]
fn lzma() {
    if let Some(image) = check(&["-comp", "lzma", "-b", "1M"]) {
        assert_eq!(image.superblock().compressor, CompressorId::Lzma);
    }
    check(&["-comp", "lzma", "-b", "4K", "-noF"]);
}

/// Files of many sizes, of text and of noise.
fn plain() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source().join("sizes")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

#[test]
fn every_block_size_in_every_codec() {
    let small = plain();
    for codec in ["gzip", "xz", "zstd", "lz4", "lzo", "lzma"] {
        for log in 12..=20 {
            let block_size = (1 << log).to_string();
            // All nine block sizes of one codec and a few of each other.
            if codec == "lz4" || [12, 17, 20].contains(&log) {
                check_source(small.path(), &["-comp", codec, "-b", &block_size]);
            }
        }
    }
}

/// The options that conda-pack passes to mksquashfs for each level.
#[test]
fn the_levels_of_conda_pack() {
    let small = plain();
    for level in 0..=9u32 {
        let zstd = (level * 20 / 8).to_string();
        let options = match level {
            0 => vec!["-noI", "-noD", "-noF", "-noX"],
            9 => vec!["-comp", "xz"],
            _ => vec!["-comp", "zstd", "-b", "256K", "-Xcompression-level", &zstd],
        };
        check_source(small.path(), &options);
    }
}

/// Compares an image as the reader sees it with what `unsquashfs` and the kernel see.
fn check_by(path: &Path, by_kernel: bool) {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("out");
    let mut command = std::process::Command::new("unsquashfs");
    command
        .args(["-no-progress", "-quiet", "-d"])
        .args([&to, path]);
    if by_kernel {
        std::fs::create_dir(&to).unwrap();
        command = std::process::Command::new("mount");
        command
            .args(["-t", "squashfs", "-o", "loop,ro"])
            .args([path, &to]);
    }
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{path:?} {said}");
    let image = Image::open(path, ReaderOptions::default()).unwrap();
    let compared = std::panic::catch_unwind(|| compare_exactly(&image, &to));
    if by_kernel {
        std::process::Command::new("umount")
            .arg(&to)
            .status()
            .unwrap();
    }
    compared.unwrap();
    // They count the links of directories differently.
    let report = verify(&image, 2, |_| true).unwrap();
    assert_eq!((report.unreached, report.wrong_links.len()), (0, 0));
}

#[test]
fn images_of_squashfs_tools_ng() {
    if !have("gensquashfs") || !have("tar2sqfs") || !have_mksquashfs("squashfs-tools-ng") {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP squashfs-tools-ng: owners and mounts need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, tar) = (dir.path().join("image"), dir.path().join("tar"));
    let run = |command: &mut std::process::Command| {
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{command:?}: {said}");
    };
    for (codec, more) in [
        ("gzip", &["-b", "4096", "-e"][..]),
        ("xz", &["-b", "131072"]),
        ("zstd", &["-b", "1048576", "-T", "-x"]),
        ("lz4", &["-b", "65536", "-x", "-e"]),
        ("lzo", &["-b", "131072"]),
        ("lzma", &["-b", "131072"]),
    ] {
        run(std::process::Command::new("gensquashfs")
            .args(["-q", "-f", "-k", "-c", codec, "-D"])
            .arg(source())
            .args(more)
            .arg(&image));
        // unsquashfs 4.5 does not find the ids in their lz4 images, but the kernel does.
        check_by(&image, codec == "lz4");
    }
    run(std::process::Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--sparse", "-cf"])
        .arg(&tar)
        .arg("-C")
        .arg(source())
        .arg("."));
    for codec in ["gzip", "zstd"] {
        let input = std::fs::File::open(&tar).unwrap();
        run(std::process::Command::new("tar2sqfs")
            .args(["-q", "-f", "-c", codec])
            .arg(&image)
            .stdin(input));
        check_by(&image, false);
    }
}

#[test]
fn fragments() {
    if let Some(image) = check(&["-comp", "lz4", "-no-fragments"]) {
        assert_eq!(image.fragment_count(), 0);
        assert!(image.fragment(0).is_err());
    }
    if let Some(image) = check(&["-comp", "zstd", "-always-use-fragments", "-no-duplicates"]) {
        assert!(image.fragment_count() > 0);
        assert!(image.fragment(image.fragment_count()).is_err());
    }
}

#[test]
fn uncompressed() {
    check(&["-noI", "-noD", "-noF", "-noX", "-noId"]);
    check(&["-comp", "zstd", "-noD", "-noF", "-b", "4K"]);
    check(&["-comp", "lz4", "-noI", "-noX"]);
}

#[test]
fn without_an_export_table() {
    if let Some(image) = check(&["-comp", "zstd", "-no-exports"]) {
        assert!(image.superblock().export_at().is_none());
        assert!(!image.superblock().flags.has(Flags::EXPORTABLE));
        assert!(image.inode_ref(0).is_err());
        assert!(image.inode_ref(image.superblock().inodes + 1).is_err());
    }
}

#[test]
fn without_xattrs_tail_ends_and_sparse_files() {
    check(&["-comp", "lz4", "-no-xattrs", "-no-sparse", "-nopad"]);
}

#[test]
fn appended_images() {
    if !have_mksquashfs("appended") {
        return;
    }
    let made = mksquashfs(source(), &["-comp", "zstd"]);
    let more = tempfile::tempdir().unwrap();
    std::fs::write(more.path().join("added"), b"later").unwrap();
    std::fs::create_dir(more.path().join("zz")).unwrap();
    let output = std::process::Command::new("mksquashfs")
        .args([
            more.path().join("added").as_path(),
            &more.path().join("zz"),
            &made.path,
        ])
        .args(["-no-progress", "-quiet", "-no-recovery"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let image = made.open();
    let all = tree(&image);
    assert_eq!(content(&image, &all[b"/added".as_slice()].1), b"later");
    assert!(all.contains_key(b"/zz".as_slice()) && all.len() > 3000);
    verify(&image, 2, |_| true).unwrap();
}

#[test]
fn holes_of_sparse_files_are_found() {
    if !have_mksquashfs("sparse") {
        return;
    }
    let image = mksquashfs(source(), &["-comp", "lz4", "-b", "128K"]).open();
    let all = tree(&image);
    let layout = image
        .file(all[b"/sparse".as_slice()].0.unwrap().inode)
        .unwrap();
    assert!(layout.sparse() > 2 << 20);
    let [(first, first_len), (second, _)] = SPARSE_DATA;
    assert_eq!(layout.next_data(0), Some(first));
    assert_eq!(layout.next_data(first + 5), Some(first + 5));
    assert_eq!(layout.next_hole(0), Some(0));
    assert_eq!(layout.next_hole(first), Some(first + first_len as u64));
    assert_eq!(layout.next_data(first + first_len as u64), Some(second));
    assert_eq!(layout.next_hole(SPARSE_SIZE), None);
    assert_eq!(layout.next_data(SPARSE_SIZE), None);
    let hole = image
        .file(all[b"/all-hole".as_slice()].0.unwrap().inode)
        .unwrap();
    assert_eq!((hole.next_data(0), hole.next_hole(77)), (None, Some(77)));
    assert_eq!(hole.stored(), 0);
    let text = image
        .file(all[b"/large-text".as_slice()].0.unwrap().inode)
        .unwrap();
    assert_eq!(
        (text.next_data(9), text.next_hole(9)),
        (Some(9), Some(text.size()))
    );
    // Served by the cache.
    let again = image
        .file(all[b"/sparse".as_slice()].0.unwrap().inode)
        .unwrap();
    assert!(std::sync::Arc::ptr_eq(&layout, &again));
}

#[test]
fn layouts_have_the_positions_of_stored_bytes() {
    if !have_mksquashfs("layout") {
        return;
    }
    let image = mksquashfs(source(), &["-comp", "zstd", "-b", "4K"]).open();
    let all = tree(&image);
    let inode = &all[b"/large-noise".as_slice()].1;
    let layout = image.file_layout(inode).unwrap();
    // Noise does not compress, so it is stored uncompressed.
    let (at, size) = layout.position(100).unwrap();
    assert!(!size.is_compressed());
    let mut raw = vec![0; size.stored() as usize];
    image.read_raw(at, &mut raw).unwrap();
    assert_eq!(raw, content(&image, inode)[100 * 4096..101 * 4096]);
    let sum: u64 = layout
        .blocks()
        .iter()
        .map(|block| u64::from(block.stored()))
        .sum();
    assert_eq!(layout.stored(), sum);
    let last = layout.blocks().len() as u64 - 1;
    let (at, size) = layout.position(last).unwrap();
    assert_eq!(at + u64::from(size.stored()), layout.start() + sum);
    assert_eq!(layout.position(last + 1), None);
    assert!(
        image
            .read_raw(image.superblock().bytes_used, &mut [0])
            .is_err()
    );
    assert!(image.read_raw(u64::MAX, &mut [0]).is_err());
}

#[test]
fn many_threads_share_a_tiny_cache() {
    if !have_mksquashfs("threads") {
        return;
    }
    let made = mksquashfs(source(), &["-comp", "zstd", "-b", "16K"]);
    let options = ReaderOptions {
        metadata_cache_bytes: 100,
        data_cache_bytes: 100,
        data_cache_limit: None,
    };
    let image = Image::open(&made.path, options).unwrap();
    let files: Vec<_> = tree(&image)
        .into_iter()
        .filter(|(_, (_, inode))| inode.kind() == InodeKind::File && inode.size() < 400_000)
        .map(|(path, (entry, _))| (path, entry.unwrap()))
        .collect();
    thread::scope(|scope| {
        for thread in 0..4 {
            let (image, files) = (image.clone(), &files);
            scope.spawn(move || {
                for (path, entry) in files.iter().skip(thread * 3).step_by(5) {
                    let relative = std::str::from_utf8(&path[1..]);
                    let Ok(relative) = relative else { continue };
                    let wanted = std::fs::read(source().join(relative)).unwrap();
                    assert!(content(&image, &image.inode(entry.inode).unwrap()) == wanted);
                }
            });
        }
    });
}

#[test]
fn verification_can_be_cancelled() {
    if !have_mksquashfs("stop") {
        return;
    }
    let image = mksquashfs(source(), &["-comp", "lz4"]).open();
    assert!(matches!(
        verify(&image, 2, |p| p.inodes < 100),
        Err(Error::Cancelled)
    ));
}
