//! A directory listing, and a list of extended attributes.

use envfs::squashfs::format::{
    DirectoryEntry, DirectoryHeader, DirectoryIndexEntry, SliceSource, Source, XattrKey, check_name,
};

/// Runs the target.
pub fn run(data: &[u8]) {
    let mut source = SliceSource::new(data, "fuzz");
    let mut names = Vec::new();
    while let Ok(header) = DirectoryHeader::read(&mut source, 0) {
        assert!((1..=256).contains(&header.count));
        for _ in 0..header.count {
            let from = names.len();
            let Ok(entry) = DirectoryEntry::read(&mut source, 0, &mut names) else {
                return;
            };
            assert_eq!(usize::from(entry.name_len), names.len() - from);
            check_name(&names[from..]).unwrap();
        }
    }
    let mut source = SliceSource::new(data, "fuzz");
    while DirectoryIndexEntry::read(&mut source, 0).is_ok() {}
    let mut source = SliceSource::new(data, "fuzz");
    while let Ok(key) = XattrKey::read(&mut source, 0) {
        assert!(key.full_name().len() > 5);
        let Ok(len) = source.u32() else { return };
        if source.bytes(len as usize).is_err() {
            return;
        }
    }
}
