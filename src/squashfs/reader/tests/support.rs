//! A source tree, mksquashfs, and a comparison of images with the tree.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::squashfs::{
    format::{Inode, InodeBody, InodeKind},
    reader::{DirEntry, Image, ReaderOptions},
};

pub(super) fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()));
    if !found {
        eprintln!("SKIP {program}: not installed");
        assert!(
            std::env::var_os("CI").is_none(),
            "this must be there in CI: {program}"
        );
    }
    found
}

pub(super) fn have_mksquashfs(test: &str) -> bool {
    let found = Command::new("mksquashfs")
        .arg("-version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        eprintln!("SKIP {test}: mksquashfs is not installed");
    }
    found
}

pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 64);
    let mut n = seed;
    while out.len() < len {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        out.extend_from_slice(format!("    value_{} = lookup({})\n", n >> 50, n >> 60).as_bytes());
    }
    out.truncate(len);
    out
}

/// Holes at the front, in the middle and at the end, on 1 MiB boundaries.
pub(super) const SPARSE_DATA: [(u64, usize); 2] = [(1 << 20, 1 << 20), (3 << 20, 5000)];
pub(super) const SPARSE_SIZE: u64 = (5 << 20) + 123;

/// Returns the source tree, which is created once and never changed. It is not removed, since
/// statics are not dropped.
pub(super) fn source() -> &'static Path {
    static SOURCE: OnceLock<PathBuf> = OnceLock::new();
    SOURCE.get_or_init(|| {
        // In the build directory, which supports user xattrs more often than /tmp.
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let base = std::env::var_os("CARGO_TARGET_DIR").map_or(base, PathBuf::from);
        fs::create_dir_all(&base).unwrap();
        let root = base.join(format!("reader-source-{}", SOURCE_VERSION));
        if !root.join("complete").exists() {
            let fresh = tempfile::tempdir_in(&base).unwrap();
            make_source(fresh.path());
            fs::write(fresh.path().join("complete"), b"").unwrap();
            let fresh = fresh.keep();
            if fs::rename(&fresh, &root).is_err() {
                // Another process has created it meanwhile.
                fs::remove_dir_all(&fresh).unwrap();
            }
        }
        root
    })
}

/// Must be changed together with `make_source`.
const SOURCE_VERSION: u32 = 1;

fn make_source(root: &Path) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o751)).unwrap();
    let sizes = [
        0, 1, 2, 4095, 4096, 4097, 8191, 131_071, 131_072, 131_073, 300_000,
    ];
    fs::create_dir(root.join("sizes")).unwrap();
    for (seed, size) in sizes.into_iter().enumerate() {
        fs::write(
            root.join(format!("sizes/text-{size}")),
            text(size, seed as u64),
        )
        .unwrap();
        fs::write(
            root.join(format!("sizes/noise-{size}")),
            noise(size, seed as u64 + 7),
        )
        .unwrap();
    }
    fs::write(root.join("large-text"), text((1 << 20) + 777, 99)).unwrap();
    fs::write(root.join("large-noise"), noise((1 << 20) + 1, 98)).unwrap();
    fs::write(root.join("zeros"), vec![0; 600_000]).unwrap();
    fs::copy(root.join("large-text"), root.join("copy-of-large-text")).unwrap();

    fs::create_dir(root.join("links")).unwrap();
    fs::hard_link(root.join("large-text"), root.join("links/hard-1")).unwrap();
    fs::hard_link(root.join("large-text"), root.join("links/hard-2")).unwrap();
    fs::hard_link(root.join("sizes/text-1"), root.join("links/hard-small")).unwrap();
    symlink("../large-text", root.join("links/relative")).unwrap();
    symlink("/absolute/nowhere", root.join("links/absolute")).unwrap();
    symlink("x".repeat(4000), root.join("links/long")).unwrap();
    let status = Command::new("mkfifo")
        .arg(root.join("links/fifo"))
        .status()
        .unwrap();
    assert!(status.success());
    std::os::unix::net::UnixListener::bind(root.join("sock"))
        .map_or_else(|e| eprintln!("no socket in the source tree: {e}"), drop);

    let sparse = File::create(root.join("sparse")).unwrap();
    for (at, len) in SPARSE_DATA {
        sparse.write_all_at(&noise(len, at), at).unwrap();
    }
    sparse.set_len(SPARSE_SIZE).unwrap();
    File::create(root.join("all-hole"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();

    fs::create_dir(root.join("many")).unwrap();
    for n in 0..3000 {
        let name = format!(
            "many/module_with_a_rather_long_name_{:x}.py",
            n * 7919 % 65_536
        );
        fs::write(root.join(name), text(n % 50, n as u64)).unwrap();
    }
    fs::create_dir(root.join("empty-directory")).unwrap();
    let mut deep = root.join("deep");
    for level in 0..40 {
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("file"), text(level, 5)).unwrap();
        deep.push("d");
    }
    fs::create_dir(root.join("names")).unwrap();
    let longest = "n".repeat(255);
    for name in [
        b"with space".as_slice(),
        b"\xff\xfe\x01",
        b"new\nline",
        "ü–😀".as_bytes(),
        longest.as_bytes(),
    ] {
        fs::write(root.join("names").join(OsStr::from_bytes(name)), name).unwrap();
    }
    // Only root could read it for the comparison.
    let none = if nix::unistd::geteuid().is_root() {
        0o000
    } else {
        0o400
    };
    for (mode, name) in [
        (0o4755, "suid"),
        (0o2711, "sgid"),
        (none, "none"),
        (0o1777, "sticky"),
    ] {
        let path = root.join("names").join(name);
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
    let file = File::options()
        .write(true)
        .open(root.join("names/suid"))
        .unwrap();
    file.set_modified(old).unwrap();

    let shared = noise(3000, 1);
    for name in [
        "sizes/text-1",
        "sizes/text-4096",
        "empty-directory",
        "many",
        "large-noise",
    ] {
        let path = root.join(name);
        for (key, value) in [
            ("user.short", b"v".as_slice()),
            ("user.empty", b""),
            ("user.shared", &shared),
        ] {
            if let Err(error) = xattr::set(&path, key, value) {
                eprintln!("no xattrs in the source tree: {error}");
                return;
            }
        }
        xattr::set(&path, "user.own", name.as_bytes()).unwrap();
        if let Err(error) = xattr::set(&path, "trusted.t", b"root only") {
            eprintln!("no trusted xattrs in the source tree: {error}");
        }
    }
    // A symlink and a pipe can have trusted xattrs, but no user xattrs.
    for name in ["links/relative", "links/fifo"] {
        if let Err(error) = xattr::set(root.join(name), "trusted.t", b"on a special file") {
            eprintln!("no xattrs on special files in the source tree: {error}");
        }
    }
}

pub(super) struct Made {
    pub(super) _directory: TempDir,
    pub(super) path: PathBuf,
}

impl Made {
    pub(super) fn open(&self) -> Image {
        Image::open(&self.path, ReaderOptions::default()).unwrap()
    }
}

/// Creates an image of `source` with two additional device nodes.
pub(super) fn mksquashfs(source: &Path, options: &[&str]) -> Made {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let output = Command::new("mksquashfs")
        .arg(source)
        .arg(&path)
        .args(["-noappend", "-no-progress", "-quiet"])
        .args([
            "-p",
            "char-device c 620 3 4 5 77",
            "-p",
            "block-device b 600 0 0 8 300",
        ])
        .args(options)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{options:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Made {
        _directory: directory,
        path,
    }
}

/// Returns all paths of an image with their inodes.
pub(super) fn tree(image: &Image) -> BTreeMap<Vec<u8>, (Option<DirEntry>, Inode)> {
    let mut all = BTreeMap::new();
    let mut pending = vec![(Vec::new(), None, image.inode(image.root()).unwrap())];
    while let Some((path, entry, inode)) = pending.pop() {
        if inode.kind() == InodeKind::Directory {
            let listing = image.read_dir(&inode).unwrap();
            let InodeBody::Directory(body) = &inode.body else {
                unreachable!()
            };
            let by_index = |name: &[u8]| {
                if body.index.is_empty() {
                    return listing.find(name);
                }
                image.lookup_by_index(body, name).unwrap()
            };
            assert!(
                listing.len() < 1000 || body.index.len() > 5,
                "no index to test with"
            );
            for (name, entry) in listing.iter() {
                assert_eq!(image.lookup(&inode, name).unwrap(), Some(entry));
                assert_eq!(by_index(name), Some(entry));
                assert_eq!(
                    by_index(&[name, b"x"].concat()),
                    listing.find(&[name, b"x"].concat())
                );
                let child = [path.as_slice(), b"/", name].concat();
                pending.push((child, Some(entry), image.entry_inode(&entry).unwrap()));
            }
            assert_eq!(image.lookup(&inode, b"").unwrap(), None);
            assert_eq!(image.lookup(&inode, b"no such name").unwrap(), None);
            assert_eq!(image.lookup(&inode, &[0xff; 255]).unwrap(), None);
            assert_eq!((by_index(b"\x01"), by_index(&[0xff; 255])), (None, None));
        }
        all.insert(path, (entry, inode));
    }
    all
}

pub(super) fn content(image: &Image, inode: &Inode) -> Vec<u8> {
    let layout = image.file_layout(inode).unwrap();
    let mut out = vec![1; layout.size() as usize + 10];
    let len = image.read_at(&layout, 0, &mut out).unwrap();
    out.truncate(len);
    out
}

/// Compares an image of [`mksquashfs`] with the source.
pub(super) fn compare(image: &Image, source: &Path, xattrs: bool) {
    let mut theirs = tree(image);
    let device = |path: &[u8]| theirs.get(path).map(|(_, inode)| inode.clone()).unwrap();
    assert_eq!(
        device(b"/char-device").body,
        InodeBody::CharDevice(5 << 8 | 77)
    );
    assert_eq!(
        device(b"/block-device").body,
        InodeBody::BlockDevice(8 << 8 | 300 & 0xff | 1 << 20)
    );
    assert_eq!(image.uid(&device(b"/char-device")).unwrap(), 3);
    assert_eq!(device(b"/char-device").mode, 0o620);
    theirs.retain(|path, _| path != b"/char-device" && path != b"/block-device");
    compare_tree(image, source, xattrs, theirs, 2);
}

/// Compares an image with a directory, without additional nodes.
pub(super) fn compare_exactly(image: &Image, source: &Path) {
    compare_tree(image, source, true, tree(image), 0);
}

fn compare_tree(
    image: &Image,
    source: &Path,
    xattrs: bool,
    mut theirs: BTreeMap<Vec<u8>, (Option<DirEntry>, Inode)>,
    more_in_root: usize,
) {
    let mut numbers: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    for item in walkdir::WalkDir::new(source) {
        let item = item.unwrap();
        let relative = item.path().strip_prefix(source).unwrap();
        let path = relative.as_os_str().as_bytes();
        let key = if path.is_empty() {
            Vec::new()
        } else {
            [b"/", path].concat()
        };
        let shown = String::from_utf8_lossy(&key).into_owned();
        let (entry, inode) = theirs
            .remove(&key)
            .unwrap_or_else(|| panic!("{shown} is missing"));
        let meta = fs::symlink_metadata(item.path()).unwrap();
        let mode = inode.kind().mode_bits() | u32::from(inode.mode);
        assert_eq!(mode, meta.mode(), "{shown}: mode {mode:o}");
        assert_eq!(image.uid(&inode).unwrap(), meta.uid(), "{shown}");
        assert_eq!(image.gid(&inode).unwrap(), meta.gid(), "{shown}");
        assert_eq!(i64::from(inode.mtime), meta.mtime(), "{shown}");
        if let Some(entry) = entry {
            assert_eq!(
                image.inode_ref(inode.number).unwrap(),
                entry.inode,
                "{shown}"
            );
        }
        assert_eq!(
            image.inode_by_number(inode.number).unwrap(),
            inode,
            "{shown}"
        );
        if meta.is_dir() {
            let names = image.read_dir(&inode).unwrap().len();
            let extra = if path.is_empty() { more_in_root } else { 0 };
            assert_eq!(
                names,
                fs::read_dir(item.path()).unwrap().count() + extra,
                "{shown}"
            );
        } else {
            assert_eq!(u64::from(inode.nlink), meta.nlink(), "{shown}");
            let number = *numbers
                .entry((meta.dev(), meta.ino()))
                .or_insert(inode.number);
            assert_eq!(inode.number, number, "{shown}: hard links");
        }
        match &inode.body {
            InodeBody::File(_) => {
                assert_eq!(inode.size(), meta.len(), "{shown}");
                compare_content(image, &inode, &fs::read(item.path()).unwrap(), &shown);
            }
            InodeBody::Symlink(_) => {
                let target = fs::read_link(item.path()).unwrap();
                assert_eq!(
                    image.read_link(&inode).unwrap(),
                    target.as_os_str().as_bytes()
                );
                assert_eq!(inode.size(), meta.len(), "{shown}");
            }
            _ => {}
        }
        let mut ours = image.xattrs(&inode).unwrap();
        ours.sort();
        let mut wanted: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if xattrs && let Ok(names) = xattr::list(item.path()) {
            for name in names {
                if let Ok(Some(value)) = xattr::get(item.path(), &name) {
                    wanted.push((name.as_bytes().to_vec(), value));
                }
            }
        }
        wanted.sort();
        assert_eq!(ours, wanted, "{shown}: xattrs");
    }
    assert!(
        theirs.is_empty(),
        "more than the source has: {:?}",
        theirs.keys()
    );
}

fn compare_content(image: &Image, inode: &Inode, wanted: &[u8], shown: &str) {
    assert!(content(image, inode) == wanted, "{shown}: content");
    let layout = image.file_layout(inode).unwrap();
    let mut by_block = Vec::new();
    for index in 0..layout.block_count() {
        let block = image.block(&layout, index).unwrap();
        assert_eq!(
            block.len(),
            layout.block_len(index),
            "{shown}: block {index}"
        );
        by_block.extend_from_slice(&block);
    }
    assert!(by_block == wanted, "{shown}: content by blocks");
    assert!(image.block(&layout, layout.block_count()).is_err());
    for step in 0..8 {
        let from = wanted.len() * step / 8;
        let mut part = vec![0; (wanted.len() / 3).min(5000) + step];
        let len = image.read_at(&layout, from as u64, &mut part).unwrap();
        assert_eq!(len, part.len().min(wanted.len() - from));
        assert!(
            part[..len] == wanted[from..from + len],
            "{shown}: {len} bytes at {from}"
        );
    }
    assert_eq!(
        image
            .read_at(&layout, wanted.len() as u64, &mut [0; 9])
            .unwrap(),
        0
    );
    assert_eq!(image.read_at(&layout, u64::MAX, &mut [0; 9]).unwrap(), 0);
}
