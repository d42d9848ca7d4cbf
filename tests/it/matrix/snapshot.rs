//! Everything visible of a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// The attributes of one entry that are equal on every file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    mode: u32,
    owner: (u32, u32),
    nlink: u64,
    size: u64,
    rdev: u64,
    mtime: Option<(i64, i64)>,
    content: String,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

/// A directory and everything below it, by relative path; the directory itself is "".
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    entries: BTreeMap<String, Seen>,
    /// Inode numbers and device numbers.
    numbers: BTreeMap<String, (u64, u64)>,
    inconsistencies: Vec<String>,
}

impl Snapshot {
    pub(super) fn read(root: &Path) -> Snapshot {
        let mut all = Snapshot::default();
        all.visit(root, "");
        all
    }

    fn visit(&mut self, path: &Path, name: &str) {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) => {
                self.inconsistencies
                    .push(format!("{name}: listed, but {error}"));
                return;
            }
        };
        let kind = meta.file_type();
        let mut content = String::new();
        if kind.is_file() {
            let bytes = fs::read(path);
            content = match bytes {
                Ok(bytes) => OsString::from_vec(bytes).to_string_lossy().into_owned(),
                Err(error) => format!("unreadable: {error}"),
            };
        } else if kind.is_symlink() {
            content = fs::read_link(path).unwrap().to_string_lossy().into_owned();
        }
        let mut xattrs: Vec<(OsString, Vec<u8>)> = Vec::new();
        if kind.is_file() || kind.is_dir() {
            for key in xattr::list(path).unwrap() {
                let value = xattr::get(path, &key).unwrap().unwrap_or_default();
                xattrs.push((key, value));
            }
            xattrs.sort();
        }
        // Only times that were set are compared; the current time differs between both sides.
        let has_set_time = meta.mtime() < 1_600_000_000;
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            nlink: meta.nlink(),
            size: if kind.is_dir() { 0 } else { meta.size() },
            rdev: if kind.is_char_device() || kind.is_block_device() {
                meta.rdev()
            } else {
                0
            },
            mtime: has_set_time.then(|| (meta.mtime(), meta.mtime_nsec())),
            content,
            xattrs,
        };
        self.entries.insert(name.to_owned(), seen);
        self.numbers
            .insert(name.to_owned(), (meta.ino(), meta.dev()));
        if !kind.is_dir() {
            return;
        }
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let own = entry.file_name().to_string_lossy().into_owned();
            let below = if name.is_empty() {
                own
            } else {
                format!("{name}/{own}")
            };
            let listed_as = entry.file_type().unwrap();
            if self.entries.contains_key(&below) {
                self.inconsistencies
                    .push(format!("{below} is listed twice"));
                continue;
            }
            self.visit(&entry.path(), &below);
            if let (Some(number), Some(seen)) = (self.numbers.get(&below), self.entries.get(&below))
            {
                if number.0 != entry.ino() {
                    self.inconsistencies.push(format!(
                        "{below}: d_ino {} is st_ino {}",
                        entry.ino(),
                        number.0
                    ));
                }
                let kind = seen.mode & nix::libc::S_IFMT;
                let is_same = match kind {
                    nix::libc::S_IFDIR => listed_as.is_dir(),
                    nix::libc::S_IFREG => listed_as.is_file(),
                    nix::libc::S_IFLNK => listed_as.is_symlink(),
                    nix::libc::S_IFIFO => listed_as.is_fifo(),
                    nix::libc::S_IFSOCK => listed_as.is_socket(),
                    _ => listed_as.is_char_device() || listed_as.is_block_device(),
                };
                if !is_same {
                    self.inconsistencies
                        .push(format!("{below}: d_type is another type than st_mode"));
                }
            }
        }
    }

    /// Returns the inode numbers of files with several names.
    pub(super) fn linked(&self) -> BTreeSet<u64> {
        let entries = self.entries.iter();
        let several = entries.filter(|(_, seen)| {
            seen.mode & nix::libc::S_IFMT != nix::libc::S_IFDIR && seen.nlink > 1
        });
        several.filter_map(|(name, _)| self.number(name)).collect()
    }

    /// Returns the inode number of a name.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.numbers.get(name).map(|number| number.0)
    }

    /// Returns contradictions that no file system may show.
    pub(super) fn inconsistencies(&self) -> Vec<String> {
        let mut found = self.inconsistencies.clone();
        let mut devices: Vec<u64> = self.numbers.values().map(|number| number.1).collect();
        devices.dedup();
        if devices.len() > 1 {
            found.push(format!("several devices: {devices:?}"));
        }
        found
    }

    /// Returns, for each name, the names that referred to the same object before.
    pub(super) fn origins(&self, before: &Snapshot) -> BTreeMap<String, Vec<String>> {
        let of = |number: &(u64, u64)| {
            let same = before.numbers.iter().filter(|(_, old)| *old == number);
            same.map(|(name, _)| name.clone()).collect()
        };
        let all = self.numbers.iter();
        all.map(|(name, number)| (name.clone(), of(number)))
            .collect()
    }

    /// Returns differences from an earlier snapshot, inode numbers included.
    pub(super) fn changes_since(&self, before: &Snapshot) -> Vec<String> {
        let mut found = differences(self, before);
        for (name, number) in &self.numbers {
            if let Some(old) = before.numbers.get(name)
                && old.0 != number.0
            {
                found.push(format!("{name}: object {} was {}", number.0, old.0));
            }
        }
        found
    }
}

/// Returns the differences of two directories, entry by entry.
pub(super) fn differences(left: &Snapshot, right: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    for (name, ours) in &left.entries {
        match right.entries.get(name) {
            None => found.push(format!("{name:?} is only in the first")),
            Some(theirs) if ours != theirs => {
                found.push(format!("{name:?}: {ours:?}\n      and {theirs:?}"));
            }
            Some(_) => {}
        }
    }
    for name in right.entries.keys() {
        if !left.entries.contains_key(name) {
            found.push(format!("{name:?} is only in the second"));
        }
    }
    found
}

/// Returns the differences of two directories, attribute by attribute, with the names of the
/// entries.
pub(super) fn details(left: &Snapshot, right: &Snapshot) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, ours) in &left.entries {
        let Some(theirs) = right.entries.get(name) else {
            found.push((name.clone(), "only in the first".to_owned()));
            continue;
        };
        let mut note = |what: &str, values: [&dyn std::fmt::Debug; 2]| {
            let text = format!("{what}: {:?} and {:?}", values[0], values[1]);
            found.push((name.clone(), text));
        };
        let is_dir = ours.mode & nix::libc::S_IFMT == nix::libc::S_IFDIR;
        if ours.mode != theirs.mode {
            note("mode", [&ours.mode, &theirs.mode]);
        }
        if ours.owner != theirs.owner {
            note("owner", [&ours.owner, &theirs.owner]);
        }
        if ours.nlink != theirs.nlink {
            let what = if is_dir {
                "nlink of a directory"
            } else {
                "nlink of a file"
            };
            note(what, [&ours.nlink, &theirs.nlink]);
        }
        if (ours.size, ours.rdev) != (theirs.size, theirs.rdev) {
            note(
                "size",
                [&(ours.size, ours.rdev), &(theirs.size, theirs.rdev)],
            );
        }
        if ours.mtime != theirs.mtime {
            note("mtime", [&ours.mtime, &theirs.mtime]);
        }
        if ours.content != theirs.content {
            note("content", [&ours.content.len(), &theirs.content.len()]);
        }
        if ours.xattrs != theirs.xattrs {
            note("attributes", [&ours.xattrs, &theirs.xattrs]);
        }
    }
    for name in right.entries.keys() {
        if !left.entries.contains_key(name) {
            found.push((name.clone(), "only in the second".to_owned()));
        }
    }
    found
}
