//! Paths on disk. No other module spells these file names.
//!
//! ```text
//! ROOT/                       $ENVFS_HOME, else ~/.local/share/envfs
//!   config.toml               optional
//!   envs/NAME/                default prefix (mount point)
//!   store/NAME/               home of an environment, 0700
//!     state.db (-journal, -redo)     see docs/state.md
//!     images/ID.sqfs          immutable, 0444
//!     layers/ID/upper         content of a layer's files, in the shape of the merged tree
//!     layers/ID/work          content without a name in upper; same file system
//!     strays/                 files without a row, and files discarded by path
//!     spare/                  preallocated directories of a layer, used when the disk is full
//!     lock                    locked with flock, never removed
//!     lock.holder             the holder of the lock, for messages and leases
//!     lock.lease              the lock itself where flock does not work
//!     daemon.log              and daemon.log.old, the previous one
//!     in-place                where the original of an import in place is kept
//!     trials/TOKEN/           a trial (envfs try) in progress: the lock of its command
//!     trials/TOKEN/session    its database, lock and log, as of a home; its files are in layers/
//!     sessions/               notes of read-only and ephemeral sessions, see docs/sessions.md
//!     launchers               the directories with launchers, see docs/launchers.md
//!     profile                 the blocks and files read first after a mount; a hint
//!     id                      only for a mount without a store: identity of the database
//!   store/.new-NAME-TOKEN/    a home under construction; garbage if its lock is free
//!   store/.gone-NAME-TOKEN/   a home that is being removed
//! ```

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{Context, Result};
use super::home_id::HomeId;
use super::name::EnvName;
use crate::sys::regular;

pub(super) const NEW: &str = ".new-";
pub(super) const REMOVED: &str = ".gone-";

/// The paths in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLayout {
    root: PathBuf,
}

impl StoreLayout {
    /// Returns the layout of the store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> StoreLayout {
        StoreLayout { root: root.into() }
    }

    /// Returns the root directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the configuration file, which need not exist.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// Returns the directory of homes.
    pub fn homes(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Returns the directory of default prefixes.
    pub fn prefixes(&self) -> PathBuf {
        self.root.join("envs")
    }

    /// Returns the default prefix of an environment.
    pub fn default_prefix(&self, name: &EnvName) -> PathBuf {
        self.prefixes().join(name.as_str())
    }

    /// Returns the layout of an environment's home.
    pub fn home(&self, name: &EnvName) -> Layout {
        Layout::new(self.homes().join(name.as_str()))
    }

    pub(super) fn new_home(&self, name: &EnvName, token: &str) -> Layout {
        Layout::new(self.homes().join(format!("{NEW}{name}-{token}")))
    }

    pub(super) fn removed_home(&self, name: &EnvName, token: &str) -> PathBuf {
        self.homes().join(format!("{REMOVED}{name}-{token}"))
    }
}

/// The paths in the home of one environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    home: PathBuf,
}

impl Layout {
    /// Returns the layout of the environment whose home is `home`.
    pub fn new(home: impl Into<PathBuf>) -> Layout {
        Layout { home: home.into() }
    }

    /// Returns the home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the identity of the home's directory.
    pub fn home_id(&self) -> io::Result<HomeId> {
        Ok(HomeId::of(&std::fs::metadata(&self.home)?))
    }

    /// Fails if a directory of the home is something else, such as a symbolic link that leads out
    /// of it: files are read, written and removed through these paths.
    pub fn check_directories(&self) -> Result<()> {
        for dir in [
            self.images(),
            self.layers(),
            self.strays(),
            self.sessions(),
            self.trials(),
        ] {
            match regular::open_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                opened => drop(opened.context(&dir, "open the directory")?),
            }
        }
        Ok(())
    }

    /// Returns the state database.
    pub fn state_db(&self) -> PathBuf {
        self.home.join("state.db")
    }

    /// Returns the directory of images.
    pub fn images(&self) -> PathBuf {
        self.home.join("images")
    }

    /// Returns the name of an image's file in [`images`](Self::images).
    pub fn image_file_name(id: impl Display) -> String {
        format!("{id}.sqfs")
    }

    /// Returns the path of an image by the name of its file.
    pub fn image(&self, file_name: &str) -> PathBuf {
        self.images().join(file_name)
    }

    /// Returns the path of an image that is being written; it is renamed when it is complete.
    pub fn unfinished_image(&self, id: impl Display) -> PathBuf {
        self.images().join(format!(".{id}.sqfs.part"))
    }

    /// Returns the directory of layers.
    pub fn layers(&self) -> PathBuf {
        self.home.join("layers")
    }

    /// Returns the directory of one layer, which holds all its files.
    pub fn layer(&self, id: impl Display) -> PathBuf {
        self.layers().join(id.to_string())
    }

    /// Returns the upper directory of a layer.
    pub fn upper(&self, id: impl Display) -> PathBuf {
        self.layer(id).join("upper")
    }

    /// Returns the directory for content that has no name in the upper directory.
    pub fn work(&self, id: impl Display) -> PathBuf {
        self.layer(id).join("work")
    }

    /// Returns the directory for files that have no row.
    pub fn strays(&self) -> PathBuf {
        self.home.join("strays")
    }

    /// Returns the directory of the notes of sessions, which need not exist.
    pub fn sessions(&self) -> PathBuf {
        self.home.join("sessions")
    }

    /// Returns the directory of trials, which need not exist.
    pub fn trials(&self) -> PathBuf {
        self.home.join("trials")
    }

    /// Returns the directory of one trial, which has the lock of the command that made it.
    pub fn trial(&self, token: &str) -> Layout {
        Layout::new(self.trials().join(token))
    }

    /// Returns the directory of the session in the directory of a trial.
    pub fn session_of_trial(&self) -> Layout {
        Layout::new(self.home.join("session"))
    }

    /// Returns the file that is locked.
    pub fn lock(&self) -> PathBuf {
        self.home.join("lock")
    }

    /// Returns the file that names the holder of the lock, for messages.
    pub fn lock_holder(&self) -> PathBuf {
        self.home.join("lock.holder")
    }

    /// Returns the lease, which is the lock where `flock` does not work.
    pub fn lease(&self) -> PathBuf {
        self.home.join("lock.lease")
    }

    /// Returns the file with the identity of the database, for homes whose database may be
    /// elsewhere.
    pub fn id(&self) -> PathBuf {
        self.home.join("id")
    }

    /// Returns the note of an import in place, which need not exist.
    pub fn in_place(&self) -> PathBuf {
        self.home.join("in-place")
    }

    /// Returns the record of the directories with launchers, which need not exist.
    pub fn launchers(&self) -> PathBuf {
        self.home.join("launchers")
    }

    /// Returns the access profile, which need not exist.
    pub fn profile(&self) -> PathBuf {
        self.home.join("profile")
    }

    /// Returns the log of the daemon.
    pub fn daemon_log(&self) -> PathBuf {
        self.home.join("daemon.log")
    }

    /// Returns the previous log of the daemon.
    pub fn old_daemon_log(&self) -> PathBuf {
        self.home.join("daemon.log.old")
    }
}
