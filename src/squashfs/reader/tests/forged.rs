//! Malicious images, built byte by byte without mksquashfs.

use std::{fs::File, io::Write, os::unix::fs::FileExt, sync::Arc};

use crate::squashfs::{
    CompressorId, Error, Result,
    format::{
        ABSENT, BlockSize, DirectoryBody, DirectoryEntry, DirectoryHeader, FileBody, Flags,
        FragmentEntry, FragmentRef, Inode, InodeBody, InodeKind, InodeRef, MetadataHeader,
        SUPERBLOCK_SIZE, Superblock,
    },
    reader::{Image, ReaderOptions, verify},
};

/// An image with one uncompressed metadata block per table.
struct Forge {
    /// Inodes, in order; the first is the root.
    inodes: Vec<Inode>,
    /// The directory table.
    listing: Vec<u8>,
    fragments: Vec<FragmentEntry>,
    data: Vec<u8>,
    claim_inodes: u32,
}

fn directory(number: u32, place: usize, len: usize) -> Inode {
    Inode {
        mode: 0o755,
        uid_idx: 0,
        gid_idx: 0,
        mtime: 0,
        number,
        nlink: 2,
        xattr: None,
        body: InodeBody::Directory(DirectoryBody {
            block_start: 0,
            offset: place as u16,
            listing_size: len as u32,
            parent: 1,
            index: Arc::from([]),
        }),
    }
}

fn file(number: u32, size: u64, fragment: Option<FragmentRef>, blocks: &[BlockSize]) -> Inode {
    let body = FileBody {
        start: 96,
        size,
        sparse: 0,
        fragment,
        blocks: blocks.into(),
    };
    Inode {
        body: InodeBody::File(body),
        nlink: 1,
        ..directory(number, 0, 0)
    }
}

/// One run of entries: name, kind, inode offset, inode number.
fn run(entries: &[(&[u8], InodeKind, u16, u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    let header = DirectoryHeader {
        count: entries.len() as u32,
        inode_block: 0,
        base_number: 1,
    };
    header.encode(&mut out);
    for &(name, kind, offset, number) in entries {
        let delta = number.wrapping_sub(1) as i16;
        DirectoryEntry {
            offset,
            delta,
            kind,
            name_len: 0,
        }
        .encode(name, &mut out);
    }
    out
}

impl Forge {
    fn new(inodes: Vec<Inode>, listing: Vec<u8>) -> Self {
        let claim_inodes = inodes.len() as u32;
        Forge {
            inodes,
            listing,
            fragments: Vec::new(),
            data: vec![b'd'; 5000],
            claim_inodes,
        }
    }

    fn build(&self) -> Vec<u8> {
        let mut out = vec![0; SUPERBLOCK_SIZE];
        out.extend_from_slice(&self.data);
        let block = |out: &mut Vec<u8>, bytes: &[u8]| {
            let at = out.len() as u64;
            let header = MetadataHeader {
                stored: bytes.len() as u16,
                compressed: false,
            };
            out.extend_from_slice(&header.to_bytes());
            out.extend_from_slice(bytes);
            at
        };
        let mut inodes = Vec::new();
        for inode in &self.inodes {
            inode.encode(&mut inodes);
        }
        let inode_table = block(&mut out, &inodes);
        let directory_table = out.len() as u64;
        if !self.listing.is_empty() {
            block(&mut out, &self.listing);
        }
        let mut fragment_table = ABSENT;
        if !self.fragments.is_empty() {
            let entries: Vec<u8> = self.fragments.iter().flat_map(|f| f.to_bytes()).collect();
            let at = block(&mut out, &entries);
            fragment_table = out.len() as u64;
            out.extend_from_slice(&at.to_le_bytes());
        }
        let ids = block(&mut out, &1000u32.to_le_bytes());
        let id_table = out.len() as u64;
        out.extend_from_slice(&ids.to_le_bytes());
        let superblock = Superblock {
            inodes: self.claim_inodes,
            mkfs_time: 0,
            block_size: 4096,
            fragments: self.fragments.len() as u32,
            compressor: CompressorId::Zstd,
            flags: Flags::default(),
            ids: 1,
            root: InodeRef::default(),
            bytes_used: out.len() as u64,
            id_table,
            xattr_table: ABSENT,
            inode_table,
            directory_table,
            fragment_table,
            export_table: ABSENT,
        };
        out[..SUPERBLOCK_SIZE].copy_from_slice(&superblock.to_bytes());
        out
    }

    fn open(&self) -> Result<Image> {
        open(&self.build())
    }
}

fn open(bytes: &[u8]) -> Result<Image> {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Image::open_file(file, ReaderOptions::default())
}

/// A root with one entry for the second inode, which the test supplies.
fn with(child: Inode, name: &[u8], kind: InodeKind) -> Forge {
    let listing = run(&[(name, kind, 32, child.number)]);
    Forge::new(vec![directory(1, 0, listing.len()), child], listing)
}

#[track_caller]
fn refused(image: &Image, what: &str) {
    let error = verify(image, 1, |_| true).unwrap_err();
    assert!(error.is_corrupt(), "{what}: {error}");
}

#[test]
fn unmodified_images_are_valid() {
    let blocks = [BlockSize::uncompressed(4096)];
    let mut forge = with(
        file(
            2,
            4096 + 50,
            Some(FragmentRef {
                index: 0,
                offset: 10,
            }),
            &blocks,
        ),
        b"f",
        InodeKind::File,
    );
    forge.fragments.push(FragmentEntry {
        start: 96 + 4096,
        size: BlockSize::uncompressed(60),
    });
    let image = forge.open().unwrap();
    let report = verify(&image, 1, |_| true).unwrap();
    assert_eq!(
        (report.inodes, report.unreached, report.bytes),
        (2, 0, 4146)
    );
    let inode = image.inode_by_number(2).unwrap();
    let layout = image.file_layout(&inode).unwrap();
    let mut buffer = [0; 5000];
    assert_eq!(image.read_at(&layout, 0, &mut buffer).unwrap(), 4146);
    assert!(buffer[..4146].iter().all(|b| *b == b'd'));
    assert_eq!(image.uid(&inode).unwrap(), 1000);
}

#[test]
fn names_that_could_escape_the_directory_are_rejected() {
    for name in [b"..".as_slice(), b".", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
        let image = with(file(2, 0, None, &[]), name, InodeKind::File)
            .open()
            .unwrap();
        refused(&image, &String::from_utf8_lossy(name));
        let root = image.inode(image.root()).unwrap();
        assert!(image.read_dir(&root).is_err());
        assert!(image.lookup(&root, name).is_err());
    }
}

#[test]
fn names_out_of_order_are_rejected() {
    for names in [[b"b", b"a"], [b"a", b"a"]] {
        let listing = run(&[
            (names[0], InodeKind::File, 32, 2),
            (names[1], InodeKind::File, 32, 2),
        ]);
        let inodes = vec![directory(1, 0, listing.len()), file(2, 0, None, &[])];
        refused(&Forge::new(inodes, listing).open().unwrap(), "order");
    }
}

#[test]
fn names_out_of_order_across_runs_are_rejected() {
    let mut listing = run(&[(b"b", InodeKind::File, 32, 2)]);
    listing.extend(run(&[(b"a", InodeKind::File, 32, 2)]));
    let inodes = vec![directory(1, 0, listing.len()), file(2, 0, None, &[])];
    refused(&Forge::new(inodes, listing).open().unwrap(), "order");
}

#[test]
fn directory_cycles_are_rejected() {
    let listing = run(&[(b"loop", InodeKind::Directory, 0, 1)]);
    refused(
        &Forge::new(vec![directory(1, 0, listing.len())], listing)
            .open()
            .unwrap(),
        "self",
    );
    // Two directories that contain each other.
    let one = run(&[(b"x", InodeKind::Directory, 32, 2)]);
    let two = run(&[(b"y", InodeKind::Directory, 0, 1)]);
    let inodes = vec![
        directory(1, 0, one.len()),
        directory(2, one.len(), two.len()),
    ];
    refused(
        &Forge::new(inodes, [one, two].concat()).open().unwrap(),
        "each other",
    );
    // A directory with two names.
    let listing = run(&[
        (b"x", InodeKind::Directory, 32, 2),
        (b"y", InodeKind::Directory, 32, 2),
    ]);
    let inodes = vec![directory(1, 0, listing.len()), directory(2, 0, 0)];
    refused(&Forge::new(inodes, listing).open().unwrap(), "twice");
}

#[test]
fn invalid_inode_numbers_are_rejected() {
    for number in [0, 3, u32::MAX] {
        let image = with(file(number, 0, None, &[]), b"f", InodeKind::File)
            .open()
            .unwrap();
        refused(&image, "inode number");
    }
    let mut forge = with(file(2, 0, None, &[]), b"f", InodeKind::File);
    forge.claim_inodes = u32::MAX;
    let image = forge.open().unwrap();
    assert!(
        image.inode_ref(u32::MAX).is_err(),
        "memory grows with the inodes found"
    );
    assert!(image.inode_ref(2).is_ok());
}

#[test]
fn an_entry_that_contradicts_its_inode_is_rejected() {
    let image = with(file(2, 0, None, &[]), b"f", InodeKind::Fifo)
        .open()
        .unwrap();
    refused(&image, "kind");
    let listing = run(&[(b"f", InodeKind::File, 32, 1)]);
    let inodes = vec![directory(1, 0, listing.len()), file(2, 0, None, &[])];
    refused(&Forge::new(inodes, listing).open().unwrap(), "number");
}

#[test]
fn references_past_the_end_of_a_table_are_rejected() {
    let bytes = with(file(2, 0, None, &[]), b"f", InodeKind::File).build();
    for root in [
        InodeRef::new(0, 5000),
        InodeRef::new(0, u16::MAX),
        InodeRef::new(1, 0),
        InodeRef::new(1 << 40, 0),
        InodeRef(u64::MAX),
    ] {
        let mut bad = bytes.clone();
        bad[32..40].copy_from_slice(&root.0.to_le_bytes());
        let image = open(&bad).unwrap();
        assert!(image.inode(image.root()).is_err(), "{root:?}");
        refused(&image, "root");
    }
    for offset in [100, 5000, u16::MAX] {
        let listing = run(&[(b"f", InodeKind::File, offset, 2)]);
        let inodes = vec![directory(1, 0, listing.len()), file(2, 0, None, &[])];
        refused(&Forge::new(inodes, listing).open().unwrap(), "entry offset");
    }
    // A listing that extends past the end of its table, or begins there.
    for (place, more) in [(0, 1), (0, 60_000), (5, 0), (9000, 0)] {
        let listing = run(&[(b"f", InodeKind::File, 32, 2)]);
        let inodes = vec![
            directory(1, place, listing.len() + more),
            file(2, 0, None, &[]),
        ];
        refused(&Forge::new(inodes, listing).open().unwrap(), "listing");
    }
}

#[test]
fn invalid_sizes_are_rejected() {
    let stored = BlockSize::uncompressed(4096);
    for (size, blocks) in [
        (u64::MAX, [stored].as_slice()),
        (1 << 62, &[stored]),
        (1 << 40, &[stored]),
        (4096 * 3, &[stored]),
        (100, &[stored]),
        (4096 * 2, &[stored, stored]),
        (4096, &[BlockSize::uncompressed(4097)]),
        (4096, &[BlockSize(1 << 25)]),
        (4096, &[BlockSize::uncompressed(4000)]),
    ] {
        let image = with(file(2, size, None, blocks), b"f", InodeKind::File)
            .open()
            .unwrap();
        let error = verify(&image, 1, |_| true).unwrap_err();
        assert!(
            error.is_corrupt() || matches!(error, Error::Unsupported(_)),
            "{size}: {error}"
        );
    }
    let mut early = file(2, 4096, None, &[stored]);
    if let InodeBody::File(body) = &mut early.body {
        body.start = 0;
    }
    refused(
        &with(early, b"f", InodeKind::File).open().unwrap(),
        "data in the superblock",
    );
    let mut late = file(2, 4096, None, &[stored]);
    if let InodeBody::File(body) = &mut late.body {
        body.start = u64::MAX - 100;
    }
    refused(
        &with(late, b"f", InodeKind::File).open().unwrap(),
        "data past the end of the world",
    );
}

#[test]
fn invalid_fragments_are_rejected() {
    let fine = FragmentEntry {
        start: 96,
        size: BlockSize::uncompressed(60),
    };
    for (size, index, offset, entry) in [
        (50, 0, 11, fine),
        (50, 0, u32::MAX, fine),
        (50, 0, 4090, fine),
        (50, 1, 0, fine),
        (4096, 0, 0, fine),
        (0, 0, 0, fine),
        (
            50,
            0,
            0,
            FragmentEntry {
                start: 5090,
                ..fine
            },
        ),
        (
            50,
            0,
            0,
            FragmentEntry {
                start: u64::MAX,
                ..fine
            },
        ),
        (50, 0, 0, FragmentEntry { start: 0, ..fine }),
        (
            50,
            0,
            0,
            FragmentEntry {
                size: BlockSize::HOLE,
                ..fine
            },
        ),
        (
            50,
            0,
            0,
            FragmentEntry {
                size: BlockSize::uncompressed(4097),
                ..fine
            },
        ),
        (
            50,
            0,
            0,
            FragmentEntry {
                size: BlockSize::compressed(60),
                ..fine
            },
        ),
    ] {
        let child = file(
            2,
            size,
            Some(FragmentRef { index, offset }),
            &vec![BlockSize::HOLE; size as usize / 4096],
        );
        let mut forge = with(child, b"f", InodeKind::File);
        forge.fragments.push(entry);
        let image = forge.open().unwrap();
        refused(&image, &format!("{size} {index} {offset} {entry:?}"));
        if let Ok(inode) = image.inode(InodeRef::new(0, 32)) {
            let layout = image.file_layout(&inode).unwrap();
            assert!(image.read_at(&layout, 0, &mut [0; 100]).is_err());
        }
    }
}

#[test]
fn seeking_in_a_huge_sparse_file_reads_nothing() {
    let blocks = vec![BlockSize::HOLE; 1900];
    let size = 1900 * 4096;
    let image = with(file(2, size, None, &blocks), b"f", InodeKind::File)
        .open()
        .unwrap();
    verify(&image, 1, |_| true).unwrap();
    let layout = image.file(InodeRef::new(0, 32)).unwrap();
    assert_eq!((layout.next_data(0), layout.next_hole(3)), (None, Some(3)));
    let mut buffer = [1; 10];
    assert_eq!(image.read_at(&layout, size - 5, &mut buffer).unwrap(), 5);
    assert_eq!(buffer, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
}

#[test]
fn files_that_are_no_images_are_rejected() {
    assert!(matches!(open(b""), Err(Error::NotSquashfs(_))));
    assert!(matches!(open(&[0; 4096]), Err(Error::NotSquashfs(_))));
    let directory = tempfile::tempdir().unwrap();
    assert!(Image::open(directory.path(), ReaderOptions::default()).is_err());
    assert!(matches!(
        Image::open(directory.path().join("none"), ReaderOptions::default()),
        Err(Error::Io { .. })
    ));
    let bytes = with(file(2, 0, None, &[]), b"f", InodeKind::File).build();
    let mut version = bytes.clone();
    version[28] = 3;
    assert!(matches!(open(&version), Err(Error::Unsupported(_))));
    let mut codec = bytes;
    codec[20] = 9;
    assert!(matches!(open(&codec), Err(Error::Unsupported(_))));
}

#[test]
fn the_position_of_the_file_descriptor_is_not_used() {
    let bytes = with(file(2, 0, None, &[]), b"f", InodeKind::File).build();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let image = Image::open_file(file, ReaderOptions::default()).unwrap();
    verify(&image, 3, |_| true).unwrap();
}
