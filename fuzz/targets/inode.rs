//! One inode. An inode that parses must survive a round trip through the encoder.

use envfs::squashfs::format::{Inode, InodeContext};

/// Runs the target.
pub fn run(data: &[u8]) {
    let context = InodeContext {
        block_size: 4096,
        inodes: 1 << 20,
        ids: 1 << 8,
        data_end: 1 << 40,
        fragments: 1 << 16,
    };
    let Ok(inode) = Inode::parse(data, &context) else {
        return;
    };
    let mut bytes = Vec::new();
    inode.encode(&mut bytes);
    assert_eq!(Inode::parse(&bytes, &context).unwrap(), inode);
}
