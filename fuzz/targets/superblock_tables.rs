//! A superblock, then the index of a lookup table.

use envfs::squashfs::format::{LookupTable, MetadataHeader, SUPERBLOCK_SIZE, Superblock};

/// Runs the target.
pub fn run(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<SUPERBLOCK_SIZE>() else {
        return;
    };
    let Ok(superblock) = Superblock::parse(head) else {
        return;
    };
    assert_eq!(
        Superblock::parse(&superblock.to_bytes()).unwrap(),
        superblock
    );
    let sound = superblock.validate(superblock.bytes_used).is_ok();
    if let Some(raw) = rest.first_chunk::<2>()
        && let Some(header) = MetadataHeader::parse(*raw)
    {
        assert_eq!(header.to_bytes(), *raw);
    }
    let (from, end) = (superblock.directory_table, superblock.id_table);
    for (count, size) in [
        (u64::from(superblock.inodes), 8),
        (u64::from(superblock.ids), 4),
    ] {
        if let Ok(table) = LookupTable::parse("fuzz", rest, count, size, from, end) {
            assert!(table.locate(count).is_none());
            let last = table.locate(count.saturating_sub(1));
            assert!(!sound || last.is_none_or(|(at, offset)| at < end && offset < 8192));
        }
    }
}
