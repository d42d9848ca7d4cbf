//! The seeds of the fuzz targets, written by the writer and by mksquashfs, and all inputs that a
//! target has failed on.
//!
//! `ENVFS_FUZZ_SEEDS=fuzz/corpus/open_walk_read cargo test seeds` stores the seeds in that
//! directory.

use std::{fs, path::Path, path::PathBuf};

use super::mutated::{exercise, small_source};
use super::support::{have_mksquashfs, mksquashfs};
use crate::squashfs::{
    Compression,
    writer::{ImageWriter, Meta, WriterOptions},
};

/// Small images of the writer with all kinds of objects, one for each codec.
fn ours(dir: &Path) -> Vec<PathBuf> {
    let mut made = Vec::new();
    for compression in ["none", "zstd:3", "gzip:9", "xz:6", "lz4"] {
        for fragments in [true, false] {
            let path = dir.join(format!("ours-{compression}-{fragments}"));
            let compression: Compression = compression.parse().unwrap();
            let options = WriterOptions {
                compression,
                block_size: 4096,
                threads: 1.try_into().unwrap(),
                fragments,
                ..WriterOptions::default()
            };
            let mut writer = ImageWriter::create(&path, options).unwrap();
            let plain = Meta {
                mode: 0o644,
                ..Meta::default()
            };
            let marked = Meta {
                xattrs: vec![
                    (b"user.a".to_vec(), vec![b'v'; 20]),
                    (b"trusted.b".to_vec(), vec![b'v'; 20]),
                    (b"security.c".to_vec(), b"x".to_vec()),
                ],
                ..plain.clone()
            };
            let root = writer.add_directory(&plain).unwrap();
            let below = writer.add_directory(&marked).unwrap();
            let content: Vec<u8> = (0..9000u32).map(|n| (n / 100) as u8).collect();
            let file = |writer: &mut ImageWriter, meta: &Meta, bytes: &[u8]| {
                let source = Box::new(bytes.to_vec());
                writer.add_file(meta, bytes.len() as u64, source).unwrap()
            };
            let large = file(&mut writer, &plain, &content);
            let small = file(&mut writer, &marked, b"small");
            let holes = file(&mut writer, &plain, &[0; 9000]);
            let link = writer.add_symlink(&plain, b"below/small").unwrap();
            let device = nix::sys::stat::makedev(1, 3);
            let device = writer.add_char_device(&plain, device).unwrap();
            let fifo = writer.add_fifo(&marked).unwrap();
            let socket = writer.add_socket(&plain).unwrap();
            for (dir, name, node) in [
                (root, "below", below),
                (root, "large", large),
                (below, "large-too", large),
                (below, "small", small),
                (root, "holes", holes),
                (root, "link", link),
                (root, "device", device),
                (below, "fifo", fifo),
                (below, "socket", socket),
            ] {
                writer.link(dir, name.as_bytes(), node).unwrap();
            }
            writer.finish(root).unwrap();
            // Without padding, which is useless to a fuzzer.
            let mut bytes = fs::read(&path).unwrap();
            let used = u64::from_le_bytes(*bytes[40..].first_chunk().unwrap());
            bytes.truncate(used as usize);
            fs::write(&path, bytes).unwrap();
            made.push(path);
        }
    }
    made
}

fn theirs(dir: &Path) -> Vec<PathBuf> {
    if !have_mksquashfs("seeds") {
        return Vec::new();
    }
    let source = small_source();
    let mut made = Vec::new();
    for codec in ["gzip", "xz", "lz4", "zstd", "lzo", "lzma"] {
        for (kind, more) in [
            ("plain", &["-noI", "-noId", "-noX"][..]),
            ("packed", &["-always-use-fragments", "-no-exports"]),
        ] {
            let options = [&["-comp", codec, "-b", "4K", "-nopad"], more].concat();
            let path = dir.join(format!("mksquashfs-{codec}-{kind}"));
            fs::copy(&mksquashfs(source.path(), &options).path, &path).unwrap();
            made.push(path);
        }
    }
    made
}

#[test]
fn seeds_are_valid_and_their_mutations_cause_no_panic() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("ENVFS_FUZZ_SEEDS").map_or(scratch.path().to_owned(), PathBuf::from);
    fs::create_dir_all(&dir).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for path in ours(&dir).into_iter().chain(theirs(&dir)) {
        let sound = fs::read(&path).unwrap();
        assert!(exercise(&fs::File::open(&path).unwrap()), "{path:?}");
        let changed = scratch.path().join("changed");
        for _ in 0..60 {
            let mut bytes = sound.clone();
            for _ in 0..1 + next(4) {
                let (at, kind) = (next(bytes.len()), next(4));
                match kind {
                    0 => bytes[at] = next(256) as u8,
                    1 => bytes[at] ^= 1 << next(8),
                    2 => bytes[at] = [0, 0xff, 0x7f, 0x80][next(4)],
                    _ => {
                        // A field copied to another position.
                        let from = next(bytes.len());
                        let len = 8.min(bytes.len() - at.max(from));
                        bytes.copy_within(from..from + len, at);
                    }
                }
            }
            fs::write(&changed, &bytes).unwrap();
            exercise(&fs::File::open(&changed).unwrap());
        }
    }
}

#[test]
fn inputs_that_failed_before_cause_no_panic() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions");
    let mut count = 0;
    for entry in walkdir::WalkDir::new(all) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() && entry.file_name() != "README.md" {
            exercise(&fs::File::open(entry.path()).unwrap());
            count += 1;
        }
    }
    eprintln!("{count} inputs");
}
