//! A whole image: verifies, walks and reads it within a budget.

use std::{io::Write, sync::Arc};

use envfs::squashfs::{
    format::{Inode, InodeBody},
    reader::{Image, ReaderOptions, verify},
};

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let options = ReaderOptions {
        metadata_cache_bytes: 1 << 20,
        data_cache_bytes: 1 << 20,
        data_cache_limit: None,
    };
    let Ok(image) = Image::open_file(file, options) else {
        return;
    };
    let sound = verify(&image, 1, |_| true).is_ok();
    let mut pending: Vec<Inode> = (0..=image.superblock().inodes.saturating_add(1).min(70))
        .filter_map(|number| image.inode_by_number(number).ok())
        .collect();
    pending.extend(image.inode(image.root()));
    let mut budget = 500;
    while let Some(inode) = pending.pop() {
        budget -= 1;
        if budget == 0 {
            break;
        }
        let known = image.uid(&inode).is_ok() && image.gid(&inode).is_ok();
        assert!(known, "parsing has checked the ids");
        let xattrs = image.xattrs(&inode);
        assert!(xattrs.map_or(true, |list| list.iter().all(|(name, _)| name.len() <= 255)));
        match &inode.body {
            InodeBody::Directory(_) => {
                let Ok(listing) = image.read_dir(&inode) else {
                    continue;
                };
                for (name, entry) in listing.iter() {
                    assert_eq!(listing.find(name), Some(entry));
                    pending.extend(image.entry_inode(&entry));
                }
            }
            InodeBody::File(_) => read(&image, &inode, sound),
            _ => {}
        }
    }
}

fn read(image: &Image, inode: &Inode, sound: bool) {
    let Ok(layout) = image.file_layout(inode).map(Arc::new) else {
        return;
    };
    let size = layout.size();
    let mut buffer = [0; 5000];
    for offset in [0, size / 2, size.saturating_sub(100), size, u64::MAX - 5] {
        match image.read_at(&layout, offset, &mut buffer) {
            Ok(len) => assert!(len as u64 <= size.saturating_sub(offset)),
            // A successful verification has read every block of the files that it reached.
            Err(error) => assert!(!sound || image.superblock().inodes > 1, "{error}"),
        }
        if let Some(found) = layout.next_data(offset) {
            assert!(found >= offset && found < size);
        }
        if let Some(found) = layout.next_hole(offset) {
            assert!(found >= offset && found <= size);
        }
    }
    for index in [0, 1, layout.block_count().saturating_sub(1), u64::MAX] {
        if let Ok(block) = image.block(&layout, index) {
            assert_eq!(block.len(), layout.block_len(index));
        }
    }
}
