//! Images with malicious xattrs, metadata blocks or sizes; see also `forged.rs`.

use std::{fs::File, io::Write, path::Path};

use crate::squashfs::{
    Compression, Error, Result,
    compress::compressor,
    format::{InodeKind, MetadataHeader, SUPERBLOCK_SIZE, Superblock},
    reader::{Image, ReaderOptions, verify},
    writer::{ImageWriter, Meta, WriterOptions},
};

fn open(bytes: &[u8]) -> Result<Image> {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Image::open_file(file, ReaderOptions::default())
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn superblock(bytes: &[u8]) -> Superblock {
    Superblock::parse(bytes.first_chunk::<SUPERBLOCK_SIZE>().unwrap()).unwrap()
}

fn options() -> WriterOptions {
    WriterOptions {
        compression: Compression::None,
        block_size: 4096,
        threads: 1.try_into().unwrap(),
        ..WriterOptions::default()
    }
}

type Xattrs<'a> = &'a [(&'a str, &'a [u8])];

/// An uncompressed image with a root and one file with xattrs.
fn with_xattrs(path: &Path, xattrs: Xattrs) -> Vec<u8> {
    let mut writer = ImageWriter::create(path, options()).unwrap();
    let root = writer.add_directory(&Meta::default()).unwrap();
    for (name, xattrs) in [("a", xattrs), ("b", &xattrs[..1])] {
        let own = |(name, value): &(&str, &[u8])| (name.as_bytes().to_vec(), value.to_vec());
        let meta = Meta {
            xattrs: xattrs.iter().map(own).collect(),
            ..Meta::default()
        };
        let node = writer.add_fifo(&meta).unwrap();
        writer.link(root, name.as_bytes(), node).unwrap();
    }
    writer.finish(root).unwrap();
    std::fs::read(path).unwrap()
}

/// Returns the positions of the lists, of the id table and of the table's header in such an image.
fn places(bytes: &[u8]) -> (usize, usize, usize) {
    let header = superblock(bytes).xattr_table as usize;
    let (lists, table) = (word(bytes, header), word(bytes, header + 16));
    (lists as usize + 2, table as usize + 2, header)
}

#[test]
fn xattrs_that_extend_past_their_table_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let long = [b'v'; 100];
    let all: Xattrs = &[("user.a", b"1"), ("user.b", &long), ("user.c", &long)];
    let sound = with_xattrs(&path, all);
    verify(&open(&sound).unwrap(), 1, |_| true).unwrap();
    let (lists, table, header) = places(&sound);
    // The first list: key {prefix u16, length u16, "a"}, u32 length, "1"; key, "b", u32, 100 bytes;
    // key with 0x100, "c", u32 8, u64 reference.
    let b = lists + 5 + 5;
    let c = b + 5 + 4 + 100;
    assert_eq!(sound[c..c + 5], [0, 1, 1, 0, b'c']);
    let cases: [(&str, usize, &[u8]); 17] = [
        ("an unknown namespace", lists, &[3]),
        ("unknown bits of a namespace", lists + 1, &[2]),
        ("a name without an end", lists + 2, &[0xff, 0xff]),
        ("an empty name", lists + 2, &[0]),
        ("a value without an end", lists + 5, &[0xff; 4]),
        ("a negative length", lists + 5, &[0, 0, 0, 0x80]),
        ("a value of more than 64 KiB", lists + 5, &[1, 0, 1, 0]),
        ("a reference of 7 bytes", c + 5, &[7]),
        ("a reference past its block", c + 9, &[0xff, 0x7f]),
        ("a reference past the table", c + 9 + 2, &[0xff, 0xff]),
        ("a reference past everything", c + 9, &[0xff; 8]),
        ("a reference to the middle of a value", c + 9, &[20]),
        ("a list past its block", table, &[0xff, 0x7f]),
        ("a list past the table", table + 2, &[0xff, 0xff]),
        ("a list without an end", table + 8, &[0xff; 4]),
        ("lists after their table", header, &[0xff, 0xff]),
        ("more lists than there are", header + 8, &[0xff, 0xff, 0xff]),
    ];
    for (what, at, bytes) in cases {
        let mut bad = sound.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        let result = open(&bad).and_then(|image| verify(&image, 1, |_| true));
        let error = result.expect_err(what);
        assert!(error.is_corrupt(), "{what}: {error}");
    }
    // An inode with an invalid list index. Two pipes of 16 + 4 + 4 bytes precede it.
    let mut bad = sound;
    let index = superblock(&bad).inode_table as usize + 2 + 20;
    for beyond in [2u32, 1000, u32::MAX - 1] {
        bad[index..index + 4].copy_from_slice(&beyond.to_le_bytes());
        let error = verify(&open(&bad).unwrap(), 1, |_| true).unwrap_err();
        assert!(error.is_corrupt(), "list {beyond}: {error}");
    }
}

#[test]
fn the_size_of_values_out_of_line_is_limited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let value = [7u8; 60_000];
    let names: Vec<String> = (0..200).map(|i| format!("user.{i}")).collect();
    let all: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &value[..])).collect();
    let bytes = with_xattrs(&path, &all);
    assert!(
        bytes.len() < 200_000,
        "one value, and references: {}",
        bytes.len()
    );
    let error = verify(&open(&bytes).unwrap(), 1, |_| true).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
}

/// Returns an image whose inode table is the given metadata block, followed by the directory table.
fn with_inode_block(header: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; SUPERBLOCK_SIZE];
    let inode_table = out.len() as u64;
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    let directory_table = out.len() as u64;
    let ids = out.len() as u64;
    out.extend_from_slice(&[4, 0x80, 0, 0, 0, 0]);
    let id_table = out.len() as u64;
    out.extend_from_slice(&ids.to_le_bytes());
    let superblock = Superblock {
        inodes: 1,
        mkfs_time: 0,
        block_size: 4096,
        fragments: 0,
        compressor: crate::squashfs::CompressorId::Zstd,
        flags: Default::default(),
        ids: 1,
        root: Default::default(),
        bytes_used: out.len() as u64,
        id_table,
        xattr_table: u64::MAX,
        inode_table,
        directory_table,
        fragment_table: u64::MAX,
        export_table: u64::MAX,
    };
    out[..SUPERBLOCK_SIZE].copy_from_slice(&superblock.to_bytes());
    out
}

#[test]
fn invalid_metadata_blocks_are_rejected() {
    let mut codec = compressor(&Compression::default(), 4096).unwrap().unwrap();
    let mut compress = |len: usize| {
        let mut out = Vec::new();
        assert!(codec.compress(&vec![0; len], &mut out).unwrap());
        out
    };
    let header = |stored: usize, compressed| {
        MetadataHeader {
            stored: stored as u16,
            compressed,
        }
        .to_bytes()
    };
    let (bomb, fits) = (compress(1 << 20), compress(8192));
    let cases = [
        ("empty", header(0, false), vec![]),
        ("empty and compressed", [0, 0], vec![0; 100]),
        ("more than 8 KiB stored", [0x01, 0xa0], vec![0; 8193]),
        ("32 KiB stored", [0xff, 0xff], vec![0; 32_767]),
        ("into the next table", header(5000, false), vec![0; 100]),
        ("a bomb", header(bomb.len(), true), bomb),
        (
            "one byte more than 8 KiB",
            header(compress(8193).len(), true),
            compress(8193),
        ),
        ("not compressed at all", header(100, true), vec![1; 100]),
        (
            "cut short",
            header(fits.len() - 1, true),
            fits[..fits.len() - 1].to_vec(),
        ),
    ];
    for (what, header, payload) in cases {
        let result = open(&with_inode_block(header, &payload))
            .and_then(|image| image.inode(image.root()).map(|_| image));
        let error = result.expect_err(what);
        assert!(error.is_corrupt(), "{what}: {error}");
    }
}

#[test]
fn data_blocks_that_exceed_their_size_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for compression in ["zstd:3", "gzip:9", "xz:1", "lz4"] {
        let options = WriterOptions {
            compression: compression.parse().unwrap(),
            fragments: false,
            ..options()
        };
        let mut writer = ImageWriter::create(&path, options).unwrap();
        let root = writer.add_directory(&Meta::default()).unwrap();
        let content = vec![b'x'; 4096];
        let node = writer
            .add_file(&Meta::default(), 4096, Box::new(content))
            .unwrap();
        writer.link(root, b"f", node).unwrap();
        writer.finish(root).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let image = open(&bytes).unwrap();
        let inode = image.inode_by_number(1).unwrap();
        assert_eq!(inode.kind(), InodeKind::File);
        let layout = image.file_layout(&inode).unwrap();
        let (at, size) = layout.position(0).unwrap();
        assert!(size.is_compressed());
        // A decompression bomb of the codec, cut to the stored length: an error, or at most a
        // block.
        for len in [4097, 1 << 20] {
            let codec = compression.parse().unwrap();
            let mut codec = compressor(&codec, 1 << 20).unwrap().unwrap();
            let mut bomb = Vec::new();
            assert!(codec.compress(&vec![b'x'; len], &mut bomb).unwrap());
            bomb.resize(size.stored() as usize, 0);
            let place = at as usize..at as usize + bomb.len();
            bytes[place].copy_from_slice(&bomb);
            let error = verify(&open(&bytes).unwrap(), 1, |_| true).unwrap_err();
            assert!(error.is_corrupt(), "{compression} {len}: {error}");
        }
    }
}

#[test]
fn deep_paths_need_no_stack() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut writer = ImageWriter::create(&path, options()).unwrap();
    let root = writer.add_directory(&Meta::default()).unwrap();
    let mut above = root;
    for _ in 0..50_000 {
        let below = writer.add_directory(&Meta::default()).unwrap();
        writer.link(above, b"d", below).unwrap();
        above = below;
    }
    writer.finish(root).unwrap();
    let image = Image::open(&path, ReaderOptions::default()).unwrap();
    let small = std::thread::Builder::new().stack_size(128 << 10);
    let report = small.spawn(move || verify(&image, 1, |_| true).unwrap());
    assert_eq!(report.unwrap().join().unwrap().directories, 50_001);
}
