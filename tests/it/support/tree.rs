//! Reading and comparing trees of files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{TestEnv, User};

/// Everything visible of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Whole seconds, as images store them.
    pub(crate) mtime: i64,
    pub(crate) nlink: u64,
    /// The first path in order that names the same object.
    pub(crate) same_as: PathBuf,
    pub(crate) rdev: u64,
    pub(crate) size: u64,
    /// Hash of the content, or the target of a symbolic link.
    pub(crate) content: String,
    /// Values as text, or their hash if they are long.
    pub(crate) xattrs: BTreeMap<String, String>,
}

/// A tree, by path relative to its root, which is "".
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

/// Which parts of entries a comparison includes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) owners: bool,
    /// The set-user-id and set-group-id bits.
    pub(crate) set_ids: bool,
    pub(crate) xattrs: bool,
    pub(crate) root: bool,
}

impl Look {
    /// Compares everything.
    pub(crate) const ALL: Look = Look {
        owners: true,
        set_ids: true,
        xattrs: true,
        root: true,
    };
}

/// Returns the value of an attribute in readable form.
fn abbreviated(value: &[u8]) -> String {
    match value.len() {
        0..=64 => value.escape_ascii().to_string(),
        len => format!("{len} bytes, {}", blake3::hash(value).to_hex()),
    }
}

/// Reads a whole tree.
#[track_caller]
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let walk = walkdir::WalkDir::new(root).sort_by_file_name();
    for entry in walk {
        let entry = entry.unwrap();
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let meta = fs::symlink_metadata(path).unwrap();
        let kind = meta.file_type();
        let is_plain = kind.is_file() || kind.is_dir();
        let content = if kind.is_file() {
            let bytes = fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            blake3::hash(&bytes).to_hex().to_string()
        } else if kind.is_symlink() {
            let target = fs::read_link(path).unwrap();
            String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned()
        } else {
            String::new()
        };
        let mut xattrs = BTreeMap::new();
        if is_plain {
            // Some readers return this error for an image without any.
            let names = match xattr::list(path) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => None,
                names => Some(names.unwrap()),
            };
            for name in names.into_iter().flatten() {
                let value = xattr::get(path, &name).unwrap().unwrap_or_default();
                xattrs.insert(name.to_string_lossy().into_owned(), abbreviated(&value));
            }
        }
        let same_as = first.entry(meta.ino()).or_insert_with(|| relative.clone());
        let has_rdev = !is_plain && !kind.is_symlink();
        let seen = Entry {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: meta.mtime(),
            nlink: if kind.is_dir() { 0 } else { meta.nlink() },
            same_as: same_as.clone(),
            rdev: if has_rdev { meta.rdev() } else { 0 },
            size: if kind.is_dir() { 0 } else { meta.size() },
            content,
            xattrs,
        };
        tree.insert(relative, seen);
    }
    tree
}

/// Fails the test with the differences unless two trees are equal.
#[track_caller]
pub(crate) fn assert_same(left: &Tree, right: &Tree, look: Look, what: &str) {
    let mut differences = Vec::new();
    let paths: std::collections::BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
    for path in paths {
        if !look.root && path.as_os_str().is_empty() {
            continue;
        }
        match (left.get(path), right.get(path)) {
            (Some(a), Some(b)) => {
                let (mut a, mut b) = (a.clone(), b.clone());
                for entry in [&mut a, &mut b] {
                    if !look.owners {
                        (entry.uid, entry.gid) = (0, 0);
                    }
                    if !look.set_ids {
                        entry.mode &= !0o6000;
                    }
                    if !look.xattrs {
                        entry.xattrs.clear();
                    }
                }
                if a != b {
                    differences.push(format!("{path:?}:\n   {a:?}\n   {b:?}"));
                }
            }
            (Some(_), None) => differences.push(format!("{path:?}: only in the first")),
            (None, _) => differences.push(format!("{path:?}: only in the second")),
        }
    }
    let count = differences.len();
    differences.truncate(8);
    assert!(
        differences.is_empty(),
        "{what}: {count} differences\n{}",
        differences.join("\n")
    );
}

/// Returns what to compare of a tree extracted by `unsquashfs`, which as an ordinary user does not
/// restore owners.
pub(crate) fn of_unsquashfs() -> Look {
    if User::current().is_root() {
        return Look::ALL;
    }
    Look {
        owners: false,
        set_ids: false,
        ..Look::ALL
    }
}

/// Reads two trees and compares them.
#[track_caller]
pub(crate) fn assert_same_at(left: &Path, right: &Path, look: Look, what: &str) {
    assert_same(&read(left), &read(right), look, what);
}

/// Describes the tree as its user sees it: types, modes, sizes, links, times and content.
pub(crate) fn digest(env: &TestEnv, dir: &Path) -> String {
    let script = format!(
        "cd '{}'; find . ! -type d -printf '%p %y %m %U %G %n %s %Ts %l\\n' | sort; \
         find . -type d -printf '%p %m %U %G\\n' | sort; \
         find . -type f -print0 | sort -z | xargs -0 sha256sum",
        dir.display()
    );
    env.sh(&script).ok().out
}
