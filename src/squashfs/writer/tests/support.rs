//! Trees to write, and descriptions of trees and images.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::squashfs::Compression;
use crate::squashfs::format::{Inode, InodeBody, InodeKind};
use crate::squashfs::reader::{Image, ReaderOptions};
use crate::squashfs::writer::*;

pub(super) const CODECS: [Compression; 5] = [
    Compression::Zstd { level: 3 },
    Compression::Gzip { level: 6 },
    Compression::Xz { level: 1 },
    Compression::Lz4,
    Compression::None,
];

pub(super) fn options(block_size: u32, threads: usize) -> WriterOptions {
    WriterOptions {
        block_size,
        threads: threads.try_into().unwrap(),
        mkfs_time: 1_700_000_000,
        ..WriterOptions::default()
    }
}

/// Returns bytes that compress about as well as code.
pub(super) fn text(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = [
        "def ", "self.", "return ", "import ", "(x, y)", ":\n    ", "None", "= 0x",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(WORDS[(state % 8) as usize].as_bytes());
        out.push(b'a' + (state >> 40) as u8 % 26);
    }
    out.truncate(len);
    out
}

/// Returns bytes that do not compress.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

pub(super) fn meta(mode: u16) -> Meta {
    Meta {
        mode,
        uid: 0,
        gid: 0,
        mtime: 1_600_000_000,
        ..Meta::default()
    }
}

pub(super) fn memory(bytes: &[u8]) -> Box<dyn Source> {
    Box::new(bytes.to_vec())
}

/// Writes an image with these files in its root.
pub(super) fn flat(path: &Path, options: WriterOptions, files: &[(&str, Vec<u8>)]) -> WriteStats {
    let mut writer = ImageWriter::create(path, options).unwrap();
    let root = writer.add_directory(&meta(0o755)).unwrap();
    for (name, bytes) in files {
        let file = writer
            .add_file(&meta(0o644), bytes.len() as u64, memory(bytes))
            .unwrap();
        writer.link(root, name.as_bytes(), file).unwrap();
    }
    writer.finish(root).unwrap()
}

/// Pushes a directory of the host, in path order, with hard links and xattrs.
pub(super) fn push_host(writer: &mut ImageWriter, path: &Path) -> NodeId {
    let mut seen = BTreeMap::new();
    push_host_dir(writer, path, &mut seen)
}

pub(super) fn host_meta(path: &Path) -> Meta {
    let stat = fs::symlink_metadata(path).unwrap();
    let mut xattrs = Vec::new();
    if stat.is_file() || stat.is_dir() {
        for name in xattr::list(path).into_iter().flatten() {
            let value = xattr::get(path, &name).unwrap().unwrap();
            xattrs.push((name.as_bytes().to_vec(), value));
        }
    }
    Meta {
        number: 0,
        mode: (stat.mode() & 0o7777) as u16,
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: stat.mtime() as u32,
        xattrs,
    }
}

fn push_host_dir(
    writer: &mut ImageWriter,
    path: &Path,
    seen: &mut BTreeMap<u64, NodeId>,
) -> NodeId {
    let dir = writer.add_directory(&host_meta(path)).unwrap();
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    for name in names {
        let path = path.join(&name);
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        let node = if let Some(node) = seen.get(&stat.ino()) {
            *node
        } else if kind.is_dir() {
            push_host_dir(writer, &path, seen)
        } else {
            let meta = host_meta(&path);
            let node = if kind.is_file() {
                writer.add_file(&meta, stat.len(), Box::new(path.clone()))
            } else if kind.is_symlink() {
                writer.add_symlink(&meta, fs::read_link(&path).unwrap().as_os_str().as_bytes())
            } else if kind.is_fifo() {
                writer.add_fifo(&meta)
            } else if kind.is_socket() {
                writer.add_socket(&meta)
            } else if kind.is_block_device() {
                writer.add_block_device(&meta, stat.rdev())
            } else {
                writer.add_char_device(&meta, stat.rdev())
            };
            node.unwrap()
        };
        if stat.nlink() > 1 && !kind.is_dir() {
            seen.insert(stat.ino(), node);
        }
        writer.link(dir, name.as_bytes(), node).unwrap();
    }
    dir
}

/// Writes an image of a host directory.
pub(super) fn import(image: &Path, options: WriterOptions, tree: &Path) -> WriteStats {
    let mut writer = ImageWriter::create(image, options).unwrap();
    let root = push_host(&mut writer, tree);
    writer.finish(root).unwrap()
}

/// Describes a mounted or unpacked tree, one line for each name. Entries that share an inode
/// contain the first of their names.
pub(super) fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first_names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    describe_into(root, Path::new(""), &mut first_names, &mut lines);
    lines
}

fn describe_into(
    root: &Path,
    at: &Path,
    first_names: &mut BTreeMap<u64, PathBuf>,
    lines: &mut Vec<String>,
) {
    let path = if at.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(at)
    };
    let stat = fs::symlink_metadata(&path).unwrap();
    let kind = stat.file_type();
    let detail = if kind.is_file() {
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, stat.len());
        format!("{} {}", stat.len(), blake3::hash(&bytes).to_hex())
    } else if kind.is_symlink() {
        format!("-> {:?}", fs::read_link(&path).unwrap())
    } else {
        format!("{:x}", stat.rdev())
    };
    let same = first_names
        .entry(stat.ino())
        .or_insert_with(|| at.to_owned())
        .clone();
    let links = if kind.is_dir() { 0 } else { stat.nlink() };
    let meta = host_meta(&path);
    let xattrs: BTreeMap<String, String> = meta
        .xattrs
        .iter()
        .map(|(name, value)| {
            (
                String::from_utf8_lossy(name).into_owned(),
                blake3::hash(value).to_hex().to_string(),
            )
        })
        .collect();
    lines.push(format!(
        "{at:?} {:o} {}:{} {} links {links} as {same:?} {xattrs:?} {detail}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.mtime(),
    ));
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        for name in names {
            describe_into(root, &at.join(name), first_names, lines);
        }
    }
}

/// Describes an image, as the reader sees it.
pub(super) fn describe_image(image: &Image) -> Vec<String> {
    let mut lines = Vec::new();
    let root = image.inode(image.root()).unwrap();
    describe_inode(
        image,
        &root,
        Path::new(""),
        &mut BTreeMap::new(),
        &mut lines,
    );
    lines
}

pub(super) fn content(image: &Image, inode: &Inode) -> Vec<u8> {
    let layout = image.file_layout(inode).unwrap();
    let mut bytes = vec![0; layout.size() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let more = image.read_at(&layout, at as u64, &mut bytes[at..]).unwrap();
        assert!(more > 0);
        at += more;
    }
    bytes
}

fn describe_inode(
    image: &Image,
    inode: &Inode,
    at: &Path,
    first_names: &mut BTreeMap<u32, PathBuf>,
    lines: &mut Vec<String>,
) {
    let detail = match &inode.body {
        InodeBody::File(body) => {
            format!(
                "{} {}",
                body.size,
                blake3::hash(&content(image, inode)).to_hex()
            )
        }
        InodeBody::Symlink(target) => format!("-> {:?}", Path::new(OsStr::from_bytes(target))),
        InodeBody::BlockDevice(device) | InodeBody::CharDevice(device) => {
            let (major, minor) = (
                (device >> 8) & 0xfff,
                (device & 0xff) | ((device >> 12) & 0xfff00),
            );
            format!("{:x}", nix::sys::stat::makedev(major.into(), minor.into()))
        }
        _ => "0".into(),
    };
    let same = first_names
        .entry(inode.number)
        .or_insert_with(|| at.to_owned())
        .clone();
    let kind = inode.kind();
    let links = if kind == InodeKind::Directory {
        0
    } else {
        inode.nlink
    };
    let xattrs: BTreeMap<String, String> = image
        .xattrs(inode)
        .unwrap()
        .iter()
        .map(|(name, value)| {
            (
                String::from_utf8_lossy(name).into_owned(),
                blake3::hash(value).to_hex().to_string(),
            )
        })
        .collect();
    lines.push(format!(
        "{at:?} {:o} {}:{} {} links {links} as {same:?} {xattrs:?} {detail}",
        kind.mode_bits() | u32::from(inode.mode),
        image.uid(inode).unwrap(),
        image.gid(inode).unwrap(),
        inode.mtime,
    ));
    if kind == InodeKind::Directory {
        let listing = image.read_dir(inode).unwrap();
        for (name, entry) in listing.iter() {
            let child = image.entry_inode(&entry).unwrap();
            assert_eq!(
                image.inode_by_number(child.number).unwrap(),
                child,
                "export table"
            );
            if let InodeBody::Directory(body) = &child.body {
                assert_eq!(body.parent, inode.number);
            }
            describe_inode(
                image,
                &child,
                &at.join(OsStr::from_bytes(name)),
                first_names,
                lines,
            );
        }
    }
}

pub(super) fn open(path: &Path) -> Image {
    Image::open(path, ReaderOptions::default()).unwrap()
}

/// Returns the inode at a path in an image.
pub(super) fn inode_at(image: &Image, path: &str) -> Inode {
    let mut inode = image.inode(image.root()).unwrap();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let entry = image.lookup(&inode, name.as_bytes()).unwrap().expect(path);
        inode = image.entry_inode(&entry).unwrap();
    }
    inode
}

/// Creates a directory with all kinds of objects.
pub(super) fn varied_tree(root: &Path, block: usize) {
    let write = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        path
    };
    write("empty", b"");
    write("one", b"1");
    write("exactly_a_block", &text(1, block));
    write("block_less_one", &text(2, block - 1));
    write("block_and_one", &text(3, block + 1));
    write("three_blocks", &text(4, 3 * block));
    write("large", &text(5, 9 * block + 77));
    write("noise", &noise(6, 2 * block + 5));
    write("copies/of_large", &text(5, 9 * block + 77));
    write("copies/of_noise", &noise(6, 2 * block + 5));
    write("copies/of_one", b"1");
    let mut zeros = vec![0; 5 * block];
    write("sparse/all", &zeros);
    zeros[2 * block + 7] = 7;
    write("sparse/middle", &zeros);
    zeros.truncate(4 * block + 9);
    write("sparse/zero_tail", &zeros);
    write("sparse/small", &[0; 100]);
    for i in 0..40 {
        write(
            &format!("pkg/mod{i:02}.py"),
            &text(100 + i, 37 * i as usize),
        );
        write(
            &format!("pkg/sub{}/data{i}.txt", i % 3),
            &text(200 + i, 700),
        );
    }
    write(&format!("names/{}", "n".repeat(255)), b"long");
    write("names/\u{e9}\u{4e2d}", b"utf-8");
    write("names/a b\"'\\\n", b"odd");
    fs::create_dir(root.join("names/empty_dir")).unwrap();
    fs::hard_link(root.join("large"), root.join("a_link_before")).unwrap();
    fs::hard_link(root.join("one"), root.join("pkg/link")).unwrap();
    std::os::unix::fs::symlink("pkg/mod01.py", root.join("link")).unwrap();
    std::os::unix::fs::symlink("x".repeat(4000), root.join("long_link")).unwrap();
    let long = noise(9, 500);
    for name in ["one", "large", "pkg", "pkg/mod03.py", "names/empty_dir"] {
        let path = root.join(name);
        xattr::set(&path, "user.short", b"v").unwrap();
        xattr::set(&path, "user.long", &long).unwrap();
    }
    xattr::set(root.join("noise"), "user.long_too", &long).unwrap();
    if is_root() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let mode = Mode::from_bits_truncate(0o600);
        mknod(&root.join("char"), SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
        mknod(
            &root.join("block"),
            SFlag::S_IFBLK,
            mode,
            makedev(0xabc, 0xabcde),
        )
        .unwrap();
        mknod(&root.join("socket"), SFlag::S_IFSOCK, mode, 0).unwrap();
        std::os::unix::fs::chown(root.join("one"), Some(1234), Some(70_000)).unwrap();
        xattr::set(root.join("two"), "trusted.t", b"t").unwrap_err();
        xattr::set(root.join("noise"), "trusted.t", b"trust").unwrap();
        xattr::set(root.join("noise"), "security.s", b"secure").unwrap();
        fs::set_permissions(root.join("noise"), fs::Permissions::from_mode(0o6755)).unwrap();
    } else {
        eprintln!("SKIP devices, owners and trusted xattrs: not root");
    }
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
}

pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
