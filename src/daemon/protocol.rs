//! The messages on the control socket: JSON, one object a line.
//!
//! ```text
//! server: {"protocol":1,"version":"0.1.0","pid":4711,"environment":"6f1c…","home":{…}}
//! client: {"request":"commit","message":"add polars"}
//! server: {"progress":{"phase":"writing",…}}        any number of times
//! server: {"ok":{…}}  or  {"error":{"kind":…,"message":…,"hints":[…]}}
//! ```
//!
//! One request a connection. A client that hangs up cancels what it asked for. After the answer
//! to an unmount the server keeps the connection open until the daemon has ended.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::commit::{Collected, CommitOptions, Committed, GcOptions, RolledBack};
use crate::environment::{HomeId, Layout};
use crate::progress::{Progress, Report};
use crate::sys::holders::{Holder, NamespaceCopy};
use crate::sys::text::Text;
use crate::union::{Change, Summary};

/// The version of these messages; a client speaks with no other.
pub const VERSION: u32 = 1;

/// What the server says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the messages.
    pub protocol: u32,
    /// Version of the daemon's program.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Id of the environment it serves.
    pub environment: String,
    /// Where that environment's files are. A copy of them has the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Served>,
}

/// The home that a daemon serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Which directory it is.
    pub place: HomeId,
    /// Where it was when the daemon started.
    pub path: Text,
}

impl Served {
    /// Looks which directory a home is.
    pub fn of(layout: &Layout) -> std::io::Result<Served> {
        Ok(Served {
            place: layout.home_id()?,
            path: Text::from(layout.home().as_os_str()),
        })
    }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Says that the daemon is alive.
    Ping,
    /// Asks for [`Status`].
    Status,
    /// Asks for the list of [`Change`]s.
    Changes(Selection),
    /// Asks for a new revision.
    Commit(CommitOptions),
    /// Asks to drop changes.
    Discard(Selection),
    /// Asks to bring back a revision.
    Rollback(RollbackOptions),
    /// Asks to name a revision.
    Tag(TagOptions),
    /// Asks to remove what nothing needs any more.
    Gc(GcOptions),
    /// Asks for the end of the daemon.
    Unmount {
        /// Detach also while it is used.
        lazy: bool,
    },
    /// Asks for the counters of the daemon, whatever they are.
    Stats,
}

/// What a server says to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// How far it is.
    Progress(Report),
    /// The result; the last message.
    Ok(serde_json::Value),
    /// Why there is none; the last message.
    Error(Failure),
}

/// Which part of an environment is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Paths relative to the prefix, with all below them; none means everything.
    #[serde(default)]
    pub paths: Vec<Text>,
}

/// Which revision to bring back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackOptions {
    /// The revision; none means the one before the current.
    #[serde(default)]
    pub revision: Option<i64>,
    /// Drop uncommitted changes instead of refusing.
    #[serde(default)]
    pub discard_changes: bool,
    /// The user's command line, for the history.
    #[serde(default)]
    pub command: String,
}

/// Which revision gets or loses a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagOptions {
    /// The name.
    pub tag: String,
    /// The revision that gets it; none takes the name away.
    pub revision: Option<i64>,
}

/// What an environment's files are like now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The current revision; none before the first commit.
    pub revision: Option<i64>,
    /// Size of the current image in bytes.
    pub image_bytes: u64,
    /// Space taken by files in the upper directories, in bytes.
    pub upper_bytes: u64,
    /// Number of files in the upper directories.
    pub upper_files: u64,
    /// What differs from the current revision.
    pub changes: Summary,
}

/// What a discard did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// What was dropped.
    pub changes: Summary,
}

/// What an unmount found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmounted {
    /// Who used it, where it was detached nevertheless.
    #[serde(default)]
    pub holders: Vec<Holder>,
    /// Processes in other mount namespaces that had a copy of the mount, one for each namespace. The copies
    /// end with the daemon.
    #[serde(default)]
    pub copies: Vec<NamespaceCopy>,
    /// Why the daemon could not be asked, where the mount was detached without it.
    #[serde(default)]
    pub trouble: Option<Failure>,
}

/// What can be done with an environment, here or in its daemon: the same calls with the same
/// results. [`super::client::Client`] is one; the other works on the store.
pub trait Service: Send + Sync {
    /// Closes the environment and gives its lock up: whoever still has the service, such as a
    /// thread that waits for the end of the process, must not keep others from opening it.
    fn end(&self) {}

    /// Notes where it can be spoken with, for those who find the environment's lock held.
    fn listens_at(&self, _socket: &Path) -> Result<(), Failure> {
        Ok(())
    }

    /// Returns sizes and counts.
    fn status(&self) -> Result<Status, Failure>;

    /// Returns what differs from the current revision, in order of paths.
    fn changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure>;

    /// Makes a new revision of what there is, unless nothing changed.
    fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<Option<Committed>, Failure>;

    /// Drops changes.
    fn discard(&self, selection: &Selection, progress: &dyn Progress)
    -> Result<Discarded, Failure>;

    /// Brings back a revision.
    fn rollback(
        &self,
        options: &RollbackOptions,
        progress: &dyn Progress,
    ) -> Result<RolledBack, Failure>;

    /// Names a revision, or takes a name away.
    fn tag(&self, options: &TagOptions, progress: &dyn Progress) -> Result<(), Failure>;

    /// Forgets old revisions, and removes what nothing needs any more.
    fn gc(&self, options: GcOptions, progress: &dyn Progress) -> Result<Collected, Failure>;

    /// Returns counters for people who look into the daemon.
    fn stats(&self) -> Result<serde_json::Value, Failure>;
}

/// What a daemon says on its standard output, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Started {
    /// The mount can be used.
    Ready {
        /// Process id of the daemon.
        pid: u32,
        /// Where it is mounted.
        mount_point: Text,
        /// Changed files that were found to have lost their content; the log names them.
        #[serde(default)]
        lost: usize,
        /// What the user should know about the mount.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// There is no mount, and the daemon ends.
    Error(Failure),
}
