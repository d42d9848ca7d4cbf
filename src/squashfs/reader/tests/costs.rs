//! The costs of opening, looking up and reading, in blocks.

use std::{path::Path, sync::Barrier, thread};

use crate::squashfs::{
    format::{BlockSize, InodeBody, InodeKind},
    reader::{BlockUse, Image, ReaderOptions},
    writer::{ImageWriter, Meta, WriterOptions},
};

fn options() -> WriterOptions {
    WriterOptions {
        threads: 2.try_into().unwrap(),
        ..WriterOptions::default()
    }
}

/// Writes an image with a directory "big" of many small files.
fn image_of(path: &Path, files: u32) {
    let mut writer = ImageWriter::create(path, options()).unwrap();
    let root = writer.add_directory(&Meta::default()).unwrap();
    let big = writer.add_directory(&Meta::default()).unwrap();
    writer.link(root, b"big", big).unwrap();
    for i in 0..files {
        let bytes = (i % 5000).to_le_bytes().to_vec();
        let node = writer
            .add_file(&Meta::default(), 4, Box::new(bytes))
            .unwrap();
        writer.link(big, name(i).as_bytes(), node).unwrap();
    }
    writer.finish(root).unwrap();
}

fn name(i: u32) -> String {
    format!("module_{:08x}.py", i.wrapping_mul(2_654_435_761))
}

fn open(path: &Path) -> Image {
    Image::open(path, ReaderOptions::default()).unwrap()
}

#[test]
fn the_cost_of_opening_does_not_depend_on_the_number_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut costs = Vec::new();
    for files in [10, 100_000] {
        let path = dir.path().join("image");
        image_of(&path, files);
        let counts = open(&path).counts();
        // Only the id table is read.
        assert_eq!((counts.metadata_blocks, counts.data_blocks), (1, 0));
        costs.push(counts);
    }
    assert_eq!(costs[0].reads, costs[1].reads);
    // The positions of the export table's blocks: 8 bytes for each 1024 files.
    assert_eq!(costs[1].bytes_read - costs[0].bytes_read, 97 * 8);
}

#[test]
fn a_name_in_a_huge_directory_costs_a_few_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let files = 100_000;
    image_of(&path, files);
    let image = open(&path);
    let root = image.inode(image.root()).unwrap();
    let entry = image.lookup(&root, b"big").unwrap().unwrap();
    let big = image.entry_inode(&entry).unwrap();
    let InodeBody::Directory(body) = &big.body else {
        panic!()
    };
    assert!(body.index.len() > 200, "{}", body.index.len());
    for i in [0, 1, 777, 50_000, 99_999] {
        let before = image.counts();
        let entry = image.lookup(&big, name(i).as_bytes()).unwrap().unwrap();
        assert_eq!(entry.kind, InodeKind::File);
        let after = image.counts();
        // A run between two index entries spans at most two blocks, and may continue in the next.
        let blocks = after.metadata_blocks - before.metadata_blocks;
        assert!(blocks <= 3, "{blocks} blocks for one name");
    }
    assert_eq!(image.lookup(&big, b"module_zz").unwrap(), None);
    for i in (0..files).step_by(1009) {
        assert!(image.lookup(&big, name(i).as_bytes()).unwrap().is_some());
    }
    // After a listing nothing more is read.
    assert_eq!(image.read_dir(&big).unwrap().len(), files as usize);
    let before = image.counts();
    assert_eq!(image.read_dir(&big).unwrap().len(), files as usize);
    assert!(image.lookup(&big, name(5).as_bytes()).unwrap().is_some());
    assert_eq!(image.counts(), before);
}

#[test]
fn threads_that_wait_for_a_block_share_one_decompression() {
    const THREADS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut writer = ImageWriter::create(&path, options()).unwrap();
    let root = writer.add_directory(&Meta::default()).unwrap();
    let bytes: Vec<u8> = (0..1u32 << 18)
        .flat_map(|n| (n / 3).to_le_bytes())
        .collect();
    let large = writer
        .add_file(
            &Meta::default(),
            bytes.len() as u64,
            Box::new(bytes.clone()),
        )
        .unwrap();
    writer.link(root, b"large", large).unwrap();
    for i in 0..100u8 {
        let small = writer
            .add_file(&Meta::default(), 1000, Box::new(vec![i; 1000]))
            .unwrap();
        writer
            .link(root, format!("s{i}").as_bytes(), small)
            .unwrap();
    }
    writer.finish(root).unwrap();
    let image = Image::open(
        &path,
        ReaderOptions {
            data_cache_bytes: 64 << 20,
            ..ReaderOptions::default()
        },
    )
    .unwrap();
    let root = image.inode(image.root()).unwrap();
    let find = |name: &[u8]| image.lookup(&root, name).unwrap().unwrap().inode;
    let large = image.file(find(b"large")).unwrap();
    let small: Vec<_> = (0..100u8)
        .map(|i| image.file(find(format!("s{i}").as_bytes())).unwrap())
        .collect();
    let before = image.counts();
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for index in 0..large.block_count() {
                    barrier.wait();
                    let block = image.block(&large, index).unwrap();
                    let from = index as usize * (128 << 10);
                    assert!(block[..] == bytes[from..from + block.len()]);
                }
                barrier.wait();
                for (i, file) in small.iter().enumerate() {
                    assert!(image.block(file, 0).unwrap()[..] == [i as u8; 1000]);
                }
            });
        }
    });
    let after = image.counts();
    let fragments = u64::from(image.fragment_count());
    assert_eq!(
        after.data_blocks - before.data_blocks,
        large.block_count() + fragments
    );
    // Their positions are in one metadata block of the fragment table.
    assert!(after.metadata_blocks - before.metadata_blocks <= 1);
}

#[test]
fn recorded_blocks_are_decompressed_ahead_of_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut writer = ImageWriter::create(&path, options()).unwrap();
    let root = writer.add_directory(&Meta::default()).unwrap();
    // Distinct blocks, and a tail in a fragment.
    let bytes: Vec<u8> = (0..5 * (128 << 10) + 500u32)
        .flat_map(|i| (i / 77).to_le_bytes())
        .collect();
    let size = bytes.len() as u64;
    let node = writer
        .add_file(&Meta::default(), size, Box::new(bytes.clone()))
        .unwrap();
    writer.link(root, b"file", node).unwrap();
    writer.finish(root).unwrap();

    let file = |image: &Image| {
        let root = image.inode(image.root()).unwrap();
        let entry = image.lookup(&root, b"file").unwrap().unwrap();
        image.file(entry.inode).unwrap()
    };
    let read = |image: &Image, index: u64| {
        let block = image.block(&file(image), index).unwrap();
        let from = index as usize * (128 << 10);
        assert!(block[..] == bytes[from..from + block.len()]);
    };
    let first = open(&path);
    let last = file(&first).block_count() - 1;
    read(&first, 5);
    first.record_uses();
    for index in (0..=last).rev().chain(0..=last) {
        read(&first, index);
    }
    let order = first.uses();
    assert_eq!(order.len() as u64, last + 1);

    let decompressed = |image: &Image| image.counts().data_blocks;
    let second = open(&path);
    second.record_uses();
    let ahead = thread::spawn(second.decompress_ahead(order.clone()));
    assert_eq!(decompressed(&second), 0, "nothing is used yet");
    read(&second, last);
    ahead.join().unwrap();
    assert_eq!(decompressed(&second), last + 1);
    for index in 0..=last {
        read(&second, index);
    }
    assert_eq!(decompressed(&second), last + 1);
    assert_eq!(second.uses().first(), order.first());

    // A wrong profile does not change the content that is read.
    let third = open(&path);
    third.record_uses();
    let wrong = [
        BlockUse::new(u64::MAX - 5, BlockSize(100), 131_072),
        BlockUse::new(0, BlockSize(0), 131_072),
        BlockUse::new(96, BlockSize(1 << 24 | 5000), 0),
        BlockUse::new(file(&third).start(), file(&third).blocks()[0], 0),
        BlockUse::new(file(&third).start(), file(&third).blocks()[0], 77),
    ];
    let ahead = thread::spawn(third.decompress_ahead(wrong.into()));
    read(&third, last);
    ahead.join().unwrap();
    for index in 0..=last {
        read(&third, index);
    }

    // An unused image is closed too.
    let fourth = open(&path);
    fourth.record_uses();
    let ahead = thread::spawn(fourth.decompress_ahead(order));
    drop(fourth);
    ahead.join().unwrap();
}
