//! Names on disk. No other file knows them.
//!
//! ```text
//! ROOT/                       $ENVFS_HOME, else ~/.local/share/envfs
//!   config.toml               optional
//!   envs/NAME/                default prefix (mount point)
//!   store/NAME/               home of an environment, 0700
//!     state.db (-journal, -redo)     see docs/state.md
//!     images/ID.sqfs          immutable, 0444
//!     layers/ID/upper         content of a layer's files, in the shape of the merged tree
//!     layers/ID/work          files on their way into it; same file system
//!     strays/                 what reconciliation could not place, and what was discarded by path
//!     spare/                  directories of a layer, for a disk that has no room for others
//!     lock                    locked with flock, never removed
//!     lock.holder             who holds it, for messages and leases
//!     lock.lease              the lock itself where flock does not work
//!     daemon.log              and daemon.log.old, the one before
//!     profile                 what of the image is used first after a mount; a hint
//!     id                      of a mount without a store only: the database's identity
//!   store/.new-NAME-TOKEN/    a home that is being built; garbage if its lock is free
//!   store/.gone-NAME-TOKEN/   a home that is being removed
//! ```

use std::fmt::Display;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Context, Result};
use super::name::EnvName;
use crate::sys::regular;

pub(super) const NEW: &str = ".new-";
pub(super) const GONE: &str = ".gone-";

/// Where things are in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLayout {
    root: PathBuf,
}

impl StoreLayout {
    /// The layout of the store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> StoreLayout {
        StoreLayout { root: root.into() }
    }

    /// The store itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration file, which need not exist.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The directory of homes.
    pub fn homes(&self) -> PathBuf {
        self.root.join("store")
    }

    /// The directory of default prefixes.
    pub fn prefixes(&self) -> PathBuf {
        self.root.join("envs")
    }

    /// The prefix of an environment for which none was chosen.
    pub fn default_prefix(&self, name: &EnvName) -> PathBuf {
        self.prefixes().join(name.as_str())
    }

    /// The home of an environment.
    pub fn home(&self, name: &EnvName) -> Layout {
        Layout::new(self.homes().join(name.as_str()))
    }

    pub(super) fn new_home(&self, name: &EnvName, token: &str) -> Layout {
        Layout::new(self.homes().join(format!("{NEW}{name}-{token}")))
    }

    pub(super) fn gone_home(&self, name: &EnvName, token: &str) -> PathBuf {
        self.homes().join(format!("{GONE}{name}-{token}"))
    }
}

/// Which directory a home is, on this host and since it was started: the same wherever the home is
/// moved to on its file system, and another for a copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    device: u64,
    inode: u64,
}

/// Where things are in the home of one environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    home: PathBuf,
}

impl Layout {
    /// The layout of the environment whose home is `home`.
    pub fn new(home: impl Into<PathBuf>) -> Layout {
        Layout { home: home.into() }
    }

    /// The home itself.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Which directory the home is.
    pub fn place(&self) -> io::Result<Place> {
        let meta = std::fs::metadata(&self.home)?;
        Ok(Place {
            device: meta.dev(),
            inode: meta.ino(),
        })
    }

    /// Refuses a home in which something else, such as a link that leads out of it, lies in the place of
    /// a directory. Files below are read, written and removed through these.
    pub fn check_directories(&self) -> Result<()> {
        for dir in [self.images(), self.layers(), self.strays()] {
            match regular::open_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                opened => drop(opened.context(&dir, "open the directory")?),
            }
        }
        Ok(())
    }

    /// The state database.
    pub fn state_db(&self) -> PathBuf {
        self.home.join("state.db")
    }

    /// The directory of images.
    pub fn images(&self) -> PathBuf {
        self.home.join("images")
    }

    /// Name of an image's file in [`images`](Self::images).
    pub fn image_file_name(id: impl Display) -> String {
        format!("{id}.sqfs")
    }

    /// An image by the name of its file.
    pub fn image(&self, file_name: &str) -> PathBuf {
        self.images().join(file_name)
    }

    /// An image that is being written, in the directory where it will be renamed.
    pub fn unfinished_image(&self, id: impl Display) -> PathBuf {
        self.images().join(format!(".{id}.sqfs.part"))
    }

    /// The directory of layers.
    pub fn layers(&self) -> PathBuf {
        self.home.join("layers")
    }

    /// The directory of one layer, which is all that it has on disk.
    pub fn layer(&self, id: impl Display) -> PathBuf {
        self.layers().join(id.to_string())
    }

    /// The upper directory of a layer.
    pub fn upper(&self, id: impl Display) -> PathBuf {
        self.layer(id).join("upper")
    }

    /// The directory for files that are on their way into the upper.
    pub fn work(&self, id: impl Display) -> PathBuf {
        self.layer(id).join("work")
    }

    /// Where reconciliation puts what it cannot place.
    pub fn strays(&self) -> PathBuf {
        self.home.join("strays")
    }

    /// The file that is locked.
    pub fn lock(&self) -> PathBuf {
        self.home.join("lock")
    }

    /// Who holds the lock, for messages.
    pub fn lock_holder(&self) -> PathBuf {
        self.home.join("lock.holder")
    }

    /// The lock itself where `flock` does not work.
    pub fn lease(&self) -> PathBuf {
        self.home.join("lock.lease")
    }

    /// Says whose changes these are, where the database may lie elsewhere.
    pub fn id(&self) -> PathBuf {
        self.home.join("id")
    }

    /// What of the image is used first after a mount, which need not exist.
    pub fn profile(&self) -> PathBuf {
        self.home.join("profile")
    }

    /// The log of the daemon.
    pub fn daemon_log(&self) -> PathBuf {
        self.home.join("daemon.log")
    }

    /// The log before it.
    pub fn old_daemon_log(&self) -> PathBuf {
        self.home.join("daemon.log.old")
    }
}
