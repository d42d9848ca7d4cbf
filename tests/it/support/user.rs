//! The users that commands of tests run as.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown};
use std::path::Path;

use super::skip_allowed;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl User {
    /// Returns the user that runs the tests.
    pub(crate) fn current() -> User {
        let uid = nix::unistd::geteuid().as_raw();
        let gid = nix::unistd::getegid().as_raw();
        let name = if uid == 0 { "root" } else { "me" };
        User {
            name: name.to_owned(),
            uid,
            gid,
        }
    }

    /// Returns the user `tester`. Reports a skip and returns None if it does not exist or cannot
    /// use FUSE.
    pub(crate) fn tester() -> Option<User> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("tester:"));
        let Some(line) = line else {
            skip_allowed("no user tester");
            return None;
        };
        let fields: Vec<&str> = line.split(':').collect();
        let device = fs::metadata("/dev/fuse").unwrap();
        if !device.file_type().is_char_device() || device.mode() & 0o006 != 0o006 {
            skip_allowed("/dev/fuse is not open to the user tester");
            return None;
        }
        Some(User {
            name: "tester".to_owned(),
            uid: fields[2].parse().unwrap(),
            gid: fields[3].parse().unwrap(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn gid(&self) -> u32 {
        self.gid
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Returns whether this is the user that runs the tests.
    pub(crate) fn is_current(&self) -> bool {
        *self == User::current()
    }

    /// Makes this user the owner of a file.
    pub(crate) fn give(&self, path: &Path) {
        if !self.is_current() {
            lchown(path, Some(self.uid), Some(self.gid)).unwrap();
        }
    }

    /// Makes this user the owner of a tree.
    pub(crate) fn give_tree(&self, path: &Path) {
        if !self.is_current() {
            for entry in walkdir::WalkDir::new(path) {
                self.give(entry.unwrap().path());
            }
        }
    }
}
