//! The identity of a home's directory.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// The identity of a home's directory, valid on this host until it is rebooted. A home keeps it
/// when it is moved within its file system; a copy of the home has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeId {
    device: u64,
    inode: u64,
}

impl HomeId {
    pub(super) fn of(home: &Metadata) -> HomeId {
        HomeId {
            device: home.dev(),
            inode: home.ino(),
        }
    }
}
