//! The inode and directory tables of an otherwise valid image.

use envfs::squashfs::{
    CompressorId,
    format::{
        ABSENT, BlockSize, Flags, FragmentEntry, InodeRef, METADATA_SIZE, MetadataHeader,
        SUPERBLOCK_SIZE, Superblock,
    },
};

fn table(out: &mut Vec<u8>, bytes: &[u8]) -> u64 {
    let at = out.len() as u64;
    for block in bytes.chunks(METADATA_SIZE) {
        let header = MetadataHeader {
            stored: block.len() as u16,
            compressed: false,
        };
        out.extend_from_slice(&header.to_bytes());
        out.extend_from_slice(block);
    }
    at
}

/// Runs the target. The first two bytes are the size of the inode table; the directory table
/// follows it.
pub fn run(data: &[u8]) {
    let Some((split, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let split = usize::from(u16::from_le_bytes(*split)).clamp(1, rest.len().max(1));
    let Some((inodes, listings)) = rest.split_at_checked(split) else {
        return;
    };
    let mut image = vec![0; SUPERBLOCK_SIZE + 8192];
    let inode_table = table(&mut image, inodes);
    let directory_table = table(&mut image, listings);
    let fragment = FragmentEntry {
        start: 96,
        size: BlockSize::uncompressed(4096),
    };
    let at = table(&mut image, &fragment.to_bytes());
    let fragment_table = image.len() as u64;
    image.extend_from_slice(&at.to_le_bytes());
    let at = table(&mut image, &[0; 16]);
    let id_table = image.len() as u64;
    image.extend_from_slice(&at.to_le_bytes());
    let superblock = Superblock {
        inodes: 64,
        mkfs_time: 0,
        block_size: 4096,
        fragments: 1,
        compressor: CompressorId::Zstd,
        flags: Flags(0),
        ids: 4,
        root: InodeRef::default(),
        bytes_used: image.len() as u64,
        id_table,
        xattr_table: ABSENT,
        inode_table,
        directory_table,
        fragment_table,
        export_table: ABSENT,
    };
    image[..SUPERBLOCK_SIZE].copy_from_slice(&superblock.to_bytes());
    super::open_walk_read::run(&image);
}
