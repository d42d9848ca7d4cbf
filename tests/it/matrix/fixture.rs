//! Creates objects of every type in every state.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    File,
    Directory,
    EmptyDirectory,
    LinkToFile,
    LinkToDirectory,
    DanglingLink,
    /// A file with a second name beside it.
    HardLink,
    Fifo,
    Socket,
    /// Device 0:0, which overlayfs uses for whiteouts.
    Device,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In the image, unchanged.
    Lower,
    /// New.
    Upper,
    /// In the image, and changed.
    Merged,
    /// In the image, removed, and created again.
    Recreated,
    /// In the image, and removed.
    Whiteout,
    /// Nowhere.
    Missing,
}

pub(super) const TYPES: [Type; 10] = [
    Type::File,
    Type::Directory,
    Type::EmptyDirectory,
    Type::LinkToFile,
    Type::LinkToDirectory,
    Type::DanglingLink,
    Type::HardLink,
    Type::Fifo,
    Type::Socket,
    Type::Device,
];

pub(super) const STATES: [State; 5] = [
    State::Lower,
    State::Upper,
    State::Merged,
    State::Recreated,
    State::Whiteout,
];

/// Sets all times of an entry to an old one, so that any change of them is visible.
pub(super) fn age(path: &Path) {
    let old = TimeSpec::new(1_000_000_000, 0);
    utimensat(AT_FDCWD, path, &old, &old, UtimensatFlags::NoFollowSymlink).unwrap();
}

fn file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    age(path);
}

fn node(path: &Path, kind: SFlag) {
    mknod(path, kind, Mode::from_bits_truncate(0o644), 0).unwrap();
    age(path);
}

fn symlink(path: &Path, target: &str) {
    std::os::unix::fs::symlink(target, path).unwrap();
    age(path);
}

fn directory(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Creates an object with its contents, targets and other names.
pub(super) fn make(base: &Path, name: &str, what: Type) {
    let path = base.join(name);
    match what {
        Type::File => file(&path, &format!("content of {name}\n")),
        Type::Directory => {
            directory(&path);
            directory(&path.join("sub"));
            file(&path.join("sub/deep"), "deep\n");
            age(&path.join("sub"));
            file(&path.join("in"), "in\n");
            age(&path);
        }
        Type::EmptyDirectory => {
            directory(&path);
            age(&path);
        }
        Type::LinkToFile => {
            if !base.join(format!("{name}.f")).exists() {
                file(&base.join(format!("{name}.f")), "the target\n");
            }
            symlink(&path, &format!("{name}.f"));
        }
        Type::LinkToDirectory => {
            if !base.join(format!("{name}.d")).exists() {
                make(base, &format!("{name}.d"), Type::Directory);
            }
            symlink(&path, &format!("{name}.d"));
        }
        Type::DanglingLink => symlink(&path, &format!("{name}.none")),
        Type::HardLink => {
            file(&path, "two names\n");
            fs::hard_link(&path, base.join(format!("{name}.link"))).unwrap();
        }
        Type::Fifo => node(&path, SFlag::S_IFIFO),
        Type::Socket => node(&path, SFlag::S_IFSOCK),
        Type::Device => node(&path, SFlag::S_IFCHR),
    }
}

fn remove(base: &Path, name: &str, what: Type) {
    let path = base.join(name);
    match what {
        Type::Directory | Type::EmptyDirectory => fs::remove_dir_all(path).unwrap(),
        _ => fs::remove_file(path).unwrap(),
    }
}

fn change(base: &Path, name: &str, what: Type) {
    let path = base.join(name);
    match what {
        Type::File | Type::HardLink => {
            let mut opened = fs::File::options().append(true).open(&path).unwrap();
            opened.write_all(b"more\n").unwrap();
        }
        Type::Directory => {
            file(&path.join("new"), "new\n");
            fs::remove_file(path.join("sub/deep")).unwrap();
            age(&path.join("sub"));
        }
        Type::EmptyDirectory => {
            file(&path.join("passing"), "");
            fs::remove_file(path.join("passing")).unwrap();
        }
        Type::LinkToFile | Type::LinkToDirectory | Type::DanglingLink => {}
        Type::Fifo | Type::Socket | Type::Device => {
            fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        }
    }
    age(&path);
}

/// Creates the part of an object that is in the image.
pub(super) fn make_lower(base: &Path, name: &str, what: Type, state: State) {
    match state {
        State::Upper | State::Missing => {}
        _ => make(base, name, what),
    }
}

/// Brings an object into its state, in the mount. Returns whether anything was changed.
pub(super) fn prepare(base: &Path, name: &str, what: Type, state: State) -> bool {
    match state {
        State::Lower | State::Missing => return false,
        State::Upper => make(base, name, what),
        State::Merged => change(base, name, what),
        State::Recreated => {
            remove(base, name, what);
            if what == Type::HardLink {
                fs::remove_file(base.join(format!("{name}.link"))).unwrap();
            }
            make(base, name, what);
        }
        State::Whiteout => remove(base, name, what),
    }
    true
}
