//! Damaged images of mksquashfs: for any change of a byte, reading returns an error or a bounded
//! result and never panics.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use super::support::{have_mksquashfs, mksquashfs, noise};
use crate::squashfs::{
    Result,
    format::{InodeBody, SUPERBLOCK_SIZE, Superblock},
    reader::{Image, ReaderOptions, verify},
};

/// Calls all functions of the reader, each until its first error. Returns whether all succeeded.
pub(super) fn exercise(file: &File) -> bool {
    let Ok(image) = Image::open_file(file.try_clone().unwrap(), ReaderOptions::default()) else {
        return false;
    };
    let verified = verify(&image, 1, |_| true).is_ok();
    let walked = walk(&image).is_ok();
    for index in 0..image.fragment_count().min(20) {
        drop(image.fragment(index));
    }
    verified && walked
}

fn walk(image: &Image) -> Result<()> {
    let mut budget = 2000;
    let mut result = Ok(());
    let mut keep = |new: Result<()>| {
        if result.is_ok() {
            result = new;
        }
    };
    let mut pending = vec![image.inode(image.root())?];
    for number in 0..=image.superblock().inodes.saturating_add(1).min(60) {
        if let Ok(inode) = image.inode_by_number(number) {
            pending.push(inode);
        }
    }
    while let Some(inode) = pending.pop() {
        budget -= 1;
        if budget == 0 {
            break;
        }
        keep(image.uid(&inode).and(image.gid(&inode)).map(drop));
        keep(image.xattrs(&inode).map(drop));
        match &inode.body {
            InodeBody::Directory(_) => {
                keep(image.lookup(&inode, b"m").map(drop));
                match image.read_dir(&inode) {
                    Ok(listing) => {
                        for (_, entry) in listing.iter() {
                            match image.entry_inode(&entry) {
                                Ok(child) => pending.push(child),
                                Err(error) => keep(Err(error)),
                            }
                        }
                    }
                    Err(error) => keep(Err(error)),
                }
            }
            InodeBody::File(_) => match image.file_layout(&inode) {
                Ok(layout) => {
                    let mut buffer = vec![0; 100_000];
                    let size = layout.size();
                    for offset in [0, size / 2, size.saturating_sub(100), size, u64::MAX - 5] {
                        keep(image.read_at(&layout, offset, &mut buffer).map(drop));
                        let (_, _) = (layout.next_data(offset), layout.next_hole(offset));
                    }
                    let count = layout.block_count();
                    for index in [0, 1, count / 2, count.saturating_sub(1), count, u64::MAX] {
                        if index < count {
                            keep(image.block(&layout, index).map(drop));
                        } else {
                            assert!(image.block(&layout, index).is_err());
                        }
                    }
                }
                Err(error) => keep(Err(error)),
            },
            _ => {}
        }
    }
    result
}

pub(super) fn small_source() -> tempfile::TempDir {
    let source = tempfile::tempdir_in(env_target()).unwrap();
    let root = source.path();
    fs::write(root.join("a"), b"a small file").unwrap();
    fs::write(root.join("b"), noise(9000, 3)).unwrap();
    fs::hard_link(root.join("a"), root.join("also-a")).unwrap();
    std::os::unix::fs::symlink("a", root.join("link")).unwrap();
    fs::create_dir_all(root.join("m/n")).unwrap();
    for n in 0..8 {
        fs::write(
            root.join(format!("m/file-{n}")),
            vec![n; usize::from(n) * 3],
        )
        .unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 50_000).unwrap();
    let shared = noise(300, 4);
    for name in ["a", "b", "m"] {
        for (key, value) in [("user.k", b"v".as_slice()), ("user.shared", &shared)] {
            if let Err(error) = xattr::set(root.join(name), key, value) {
                eprintln!("no xattrs in this test: {error}");
            }
        }
    }
    source
}

fn env_target() -> std::path::PathBuf {
    super::support::source()
        .parent()
        .unwrap_or(Path::new("/tmp"))
        .to_path_buf()
}

fn superblock(bytes: &[u8]) -> Superblock {
    Superblock::parse(bytes[..SUPERBLOCK_SIZE].try_into().unwrap()).unwrap()
}

#[test]
fn changed_bytes_cause_no_panic() {
    if !have_mksquashfs("flipped_bytes") {
        return;
    }
    let source = small_source();
    for options in [
        ["-noI", "-noX", "-noId", "-noF", "-b", "4K"].as_slice(),
        &[
            "-noI",
            "-noX",
            "-noId",
            "-no-exports",
            "-no-fragments",
            "-b",
            "4K",
        ],
    ] {
        let made = mksquashfs(source.path(), options);
        let bytes = fs::read(&made.path).unwrap();
        let superblock = superblock(&bytes);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&made.path)
            .unwrap();
        assert!(exercise(&file));
        let metadata = superblock.inode_table as usize..superblock.bytes_used as usize;
        let mut refused = 0;
        let mut tried = 0;
        for at in (0..SUPERBLOCK_SIZE).chain(metadata) {
            let was = bytes[at];
            let mut changes = vec![was ^ 1, was ^ 0x80, 0xff];
            changes.sort_unstable();
            changes.dedup();
            for now in changes.into_iter().filter(|now| *now != was) {
                file.write_all_at(&[now], at as u64).unwrap();
                tried += 1;
                refused += u32::from(!exercise(&file));
            }
            file.write_all_at(&[was], at as u64).unwrap();
        }
        assert!(exercise(&file), "restored");
        assert!(
            refused > tried / 4,
            "{refused} of {tried}: does the test see damage at all?"
        );
    }
}

#[test]
fn changed_bytes_in_compressed_images_cause_no_panic() {
    if !have_mksquashfs("flipped_bytes_in_compressed_images") {
        return;
    }
    let source = small_source();
    for codec in ["gzip", "xz", "lz4", "zstd"] {
        let made = mksquashfs(source.path(), &["-comp", codec, "-b", "8K"]);
        let bytes = fs::read(&made.path).unwrap();
        let used = superblock(&bytes).bytes_used as usize;
        let file = File::options()
            .read(true)
            .write(true)
            .open(&made.path)
            .unwrap();
        for at in (SUPERBLOCK_SIZE..used).step_by(used / 300 + 1) {
            file.write_all_at(&[bytes[at] ^ 0x5a], at as u64).unwrap();
            exercise(&file);
            file.write_all_at(&[bytes[at]], at as u64).unwrap();
        }
        assert!(exercise(&file), "{codec}: restored");
    }
}

#[test]
fn truncated_images_are_rejected() {
    if !have_mksquashfs("cut_short") {
        return;
    }
    let source = small_source();
    let made = mksquashfs(source.path(), &["-comp", "zstd", "-b", "4K", "-nopad"]);
    let bytes = fs::read(&made.path).unwrap();
    let used = superblock(&bytes).bytes_used;
    assert_eq!(used, bytes.len() as u64);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&made.path)
        .unwrap();
    for len in (0..used).rev().step_by(7).skip(1) {
        file.set_len(len).unwrap();
        assert!(!exercise(&file), "cut to {len}");
    }
    // With an adapted superblock, every table ends too early.
    for len in (SUPERBLOCK_SIZE as u64..used).rev().step_by(11).skip(1) {
        let mut all = bytes[..len as usize].to_vec();
        all[40..48].copy_from_slice(&len.to_le_bytes());
        file.set_len(0).unwrap();
        file.write_all_at(&all, 0).unwrap();
        assert!(!exercise(&file), "cut to {len}, and says so");
    }
}

#[test]
fn truncation_of_an_open_image_causes_no_panic() {
    if !have_mksquashfs("cut_short_while_open") {
        return;
    }
    let source = small_source();
    let made = mksquashfs(source.path(), &["-comp", "lz4"]);
    let image = made.open();
    File::options()
        .write(true)
        .open(&made.path)
        .unwrap()
        .set_len(200)
        .unwrap();
    assert!(walk(&image).is_err());
}
