//! The holder of a lock, as its note describes it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::age::span;
use super::home_id::HomeId;
use super::process::HostProcess;
use crate::object::Timestamp;
use crate::sys::text::Text;

/// The purpose of the lock of a daemon that has the environment mounted.
pub const MOUNTED: &str = "mounted";

/// The holder of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    #[serde(flatten)]
    pub process: HostProcess,
    /// The purpose of the lock, for messages.
    pub purpose: String,
    /// The time of acquisition, in seconds since 1970.
    pub since: i64,
    /// The home that is locked: a note that was copied along with its home is not about the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) home_id: Option<HomeId>,
    /// The control socket of the holder, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<Text>,
    /// Unique to each acquisition.
    pub(super) token: String,
}

impl Holder {
    /// Returns whether envfs could have written this note: the path of a socket is absolute.
    pub(super) fn is_valid(&self) -> bool {
        let socket = self.socket.as_ref();
        socket.is_none_or(|socket| socket.as_path().is_absolute())
    }

    /// Returns whether it is a process on this host.
    pub fn is_local(&self) -> bool {
        self.process.is_local()
    }

    /// Returns whether it is a daemon on another host, which keeps the lock until it is unmounted.
    pub fn is_mount_of_other_host(&self) -> bool {
        !self.is_local() && self.purpose == MOUNTED
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = span(Timestamp::now().secs.saturating_sub(self.since));
        write!(f, "{} ({}) for {held}", self.process, self.purpose)
    }
}
