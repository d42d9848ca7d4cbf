//! What opening, looking up and reading cost, in blocks.

use std::{path::Path, sync::Barrier, thread};

use crate::squashfs::{
    format::{InodeBody, InodeKind},
    reader::{Image, ReaderOptions},
    writer::{ImageWriter, Meta, WriterOptions},
};

fn options() -> WriterOptions {
    WriterOptions {
        threads: 2.try_into().unwrap(),
        ..WriterOptions::default()
    }
}

/// A directory "big" with so many files of a few bytes.
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
fn opening_costs_the_same_however_many_files_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut costs = Vec::new();
    for files in [10, 100_000] {
        let path = dir.path().join("image");
        image_of(&path, files);
        let counts = open(&path).counts();
        // The ids; nothing of inodes, names, data.
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
        // A run between two entries of the index lies in two blocks at most, and may go on in the next.
        let blocks = after.metadata_blocks - before.metadata_blocks;
        assert!(blocks <= 3, "{blocks} blocks for one name");
    }
    assert_eq!(image.lookup(&big, b"module_zz").unwrap(), None);
    for i in (0..files).step_by(1009) {
        assert!(image.lookup(&big, name(i).as_bytes()).unwrap().is_some());
    }
    // Listed once, nothing more is read.
    assert_eq!(image.read_dir(&big).unwrap().len(), files as usize);
    let before = image.counts();
    assert_eq!(image.read_dir(&big).unwrap().len(), files as usize);
    assert!(image.lookup(&big, name(5).as_bytes()).unwrap().is_some());
    assert_eq!(image.counts(), before);
}

#[test]
fn each_block_is_expanded_once_however_many_threads_wait() {
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
    // Their positions are in one block of the fragment table.
    assert!(after.metadata_blocks - before.metadata_blocks <= 1);
}
