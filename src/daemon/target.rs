//! The environment that a command acts on.

use std::path::PathBuf;

use crate::environment::Layout;

/// An environment to mount or unmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Globally unique id of the environment.
    pub id: String,
    /// Name of the environment, for the daemon's command line and for messages.
    pub name: String,
    /// The path where it is mounted, absolute.
    pub prefix: PathBuf,
    /// Its files, such as the daemon's log and the lock.
    pub layout: Layout,
    /// The root of the store, for the daemon's command line.
    pub home: PathBuf,
}

impl Target {
    /// Returns the daemon's log.
    pub fn log(&self) -> PathBuf {
        self.layout.daemon_log()
    }
}
