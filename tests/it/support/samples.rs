//! Sample trees and data.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, SFlag};

use super::TestEnv;

/// A small tree: a program, some text, links.
pub(crate) fn small(env: &TestEnv, root: &Path) {
    env.write(&root.join("bin/tool"), "#!/bin/sh\necho tool\n");
    fs::set_permissions(root.join("bin/tool"), PermissionsExt::from_mode(0o755)).unwrap();
    env.write(&root.join("lib/a.txt"), "alpha\nbeta\n");
    env.write(&root.join("lib/c.txt"), "gamma\n");
    env.write(&root.join("lib/deep/er/file"), noise(200_000, 7));
    env.write(&root.join("lib/deep/x"), "x");
    fs::hard_link(root.join("lib/a.txt"), root.join("lib/b.txt")).unwrap();
    symlink("a.txt", root.join("lib/link")).unwrap();
    env.user().give(&root.join("lib/link"));
}

/// A tree with everything that an image can store and this user can create.
pub(crate) fn rich(env: &TestEnv, root: &Path) {
    small(env, root);
    let odd = root.join("odd");
    env.write(&odd.join("empty"), "");
    env.write(&odd.join(OsStr::from_bytes(b"not \xff utf-8\n")), "bytes");
    env.write(&odd.join("n".repeat(255)), "long name");
    env.write(&odd.join(".wh.name"), "no whiteout");
    env.write(&odd.join("two-blocks"), noise(131_072 * 2, 1));
    env.write(&odd.join("and-a-tail"), noise(131_072 + 5, 2));
    let sparse = File::create(odd.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"island", 1 << 20).unwrap();
    symlink("t".repeat(900), odd.join("long-link")).unwrap();
    symlink("../lib/nowhere", odd.join("dangling")).unwrap();
    let fifo = odd.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o640)).unwrap();
    fs::hard_link(odd.join("two-blocks"), root.join("lib/linked")).unwrap();
    for index in 0..300 {
        let file = root.join(format!("many/file-{index:03}"));
        env.write(&file, format!("content {index}\n"));
    }
    for (name, value) in [
        ("user.short", "v".to_owned()),
        ("user.long", "w".repeat(3000)),
    ] {
        xattr::set(odd.join("empty"), name, value.as_bytes()).unwrap();
    }
    xattr::set(&odd, "user.on-dir", b"\0\xff").unwrap();
    if env.user().is_root() {
        for (name, minor) in [("null", 3), ("whiteout-like", 0)] {
            let device = nix::sys::stat::makedev(u64::from(minor > 0), minor);
            let mode = Mode::from_bits_truncate(0o600);
            nix::sys::stat::mknod(&odd.join(name), SFlag::S_IFCHR, mode, device).unwrap();
        }
        lchown(odd.join("empty"), Some(1234), Some(70_000)).unwrap();
        lchown(odd.join("dangling"), Some(1), Some(2)).unwrap();
        env.write(&odd.join("closed"), "closed");
        fs::set_permissions(odd.join("closed"), PermissionsExt::from_mode(0o0)).unwrap();
    }
    env.user().give_tree(root);
    // Last: changing the owner clears these bits.
    let modes = [("odd/empty", 0o4751), ("odd", 0o2775), ("many", 0o1777)];
    for (path, mode) in modes {
        fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    let times = [
        ("lib/c.txt", 1),
        ("odd/sparse", 4_000_000_000),
        ("many", 86_400),
    ];
    for (path, seconds) in times {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::open(root.join(path)).unwrap();
        file.set_modified(time).unwrap();
    }
}

/// Returns incompressible bytes that depend only on the seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| step()).collect()
}
