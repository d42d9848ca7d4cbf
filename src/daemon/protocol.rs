//! The messages on the control socket: one JSON object per line.
//!
//! ```text
//! server: {"protocol":1,"version":"0.1.0","pid":4711,"environment":"6f1c…","home":{…}}
//! client: {"request":"commit","message":"add polars"}
//! server: {"progress":{"phase":"writing",…}}        any number of times
//! server: {"ok":{…}}  or  {"error":{"kind":…,"message":…,"hints":[…]}}
//! ```
//!
//! There is one request per connection. A client that disconnects cancels its request. After the
//! answer to an unmount, the server keeps the connection open until the daemon has ended.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::commit::{
    CheckpointOptions, Checkpointed, Collected, CommitOptions, Committed, GcOptions, Ignored,
    Preview, RolledBack, TrialDone, TrialRequest, UndoOptions, Undone,
};
use crate::environment::{HomeId, Layout};
use crate::packages::{Differences, PackageChanges};
use crate::progress::{Progress, Report};
use crate::sys::holders::{Holder, NamespaceCopy};
use crate::sys::text::Text;
use crate::union::{Change, Restored, Summary, Tally};

/// The version of the protocol. Client and server must have the same.
pub(crate) const VERSION: u32 = 1;

/// The greeting of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the protocol.
    pub protocol: u32,
    /// Version of the daemon's program.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Id of the environment it serves.
    pub environment: String,
    /// The home of that environment, which distinguishes it from a copy with the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<ServedHome>,
    /// Whether it is mounted privately, in namespaces that only some programs are in.
    #[serde(default)]
    pub is_private: bool,
}

/// The home that a daemon serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedHome {
    /// The identity of the directory.
    pub place: HomeId,
    /// Its path when the daemon started.
    pub path: Text,
}

impl ServedHome {
    /// Determines the identity of a home.
    pub fn of(layout: &Layout) -> std::io::Result<ServedHome> {
        Ok(ServedHome {
            place: layout.home_id()?,
            path: Text::from(layout.home().as_os_str()),
        })
    }
}

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Checks that the daemon responds.
    Ping,
    /// Returns [`Status`].
    Status,
    /// Returns the list of [`Change`]s.
    Changes(Selection),
    /// Returns the [`Differences`] from the current revision.
    Differences(Selection),
    /// Returns the [`Differences`] from a revision.
    DifferencesSince(Since),
    /// Creates a revision.
    Commit(CommitOptions),
    /// Returns what a commit would write.
    Preview(Committable),
    /// Returns the changes that a commit would record.
    Committable(Committable),
    /// Changes the message of the current revision.
    Amend(AmendOptions),
    /// Discards changes.
    Discard(DiscardOptions),
    /// Restores a revision.
    Rollback(RollbackOptions),
    /// Restores paths from a revision.
    Restore(Since),
    /// Takes back an operation.
    Undo(UndoOptions),
    /// Freezes the changes made so far.
    Checkpoint(CheckpointOptions),
    /// Begins or ends a trial.
    Trial(TrialRequest),
    /// Sets or deletes a tag.
    Tag(TagOptions),
    /// Removes old revisions and data that is no longer needed.
    Gc(GcOptions),
    /// Unmounts the environment and ends the daemon.
    Unmount {
        /// Detach the mount even if it is in use.
        lazy: bool,
    },
    /// Returns the daemon's counters.
    Stats,
}

/// A message of the server in response to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// Progress; more messages follow.
    Progress(Report),
    /// The result; the last message.
    Ok(serde_json::Value),
    /// The failure; the last message.
    Error(Failure),
}

/// The changes that a commit would record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committable {
    /// The part of the environment.
    #[serde(flatten)]
    pub selection: Selection,
    /// What happens to ignored paths.
    #[serde(default)]
    pub ignored: Ignored,
}

/// A part of an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Paths relative to the prefix, including everything below them. Empty selects everything.
    #[serde(default)]
    pub paths: Vec<Text>,
}

/// A revision, and paths to compare with it or to restore from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Its number.
    pub revision: i64,
    /// The part of the environment.
    #[serde(flatten)]
    pub selection: Selection,
    /// The command line of the user, recorded in the log.
    #[serde(default)]
    pub command: String,
}

/// The options of a discard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscardOptions {
    /// What to discard.
    #[serde(flatten)]
    pub selection: Selection,
    /// The user's command line, for the log of operations.
    #[serde(default)]
    pub command: String,
}

/// The options of a rollback.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackOptions {
    /// The revision to restore, by default the one before the current.
    #[serde(default)]
    pub revision: Option<i64>,
    /// Drop uncommitted changes instead of failing.
    #[serde(default)]
    pub discard_changes: bool,
    /// The user's command line, for the history.
    #[serde(default)]
    pub command: String,
}

/// The new message of the current revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmendOptions {
    /// The message.
    pub message: String,
}

/// The result of changing a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amended {
    /// The revision.
    pub revision: i64,
    /// Its message before.
    pub from: String,
    /// Its message now.
    pub message: String,
}

/// The tag to set or delete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagOptions {
    /// The tag.
    pub tag: String,
    /// The revision to tag, or `None` to delete the tag.
    pub revision: Option<i64>,
}

/// The status of an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The current revision.
    pub revision: Option<i64>,
    /// Size of the current image in bytes.
    pub image_bytes: u64,
    /// Disk space used by files in the upper directories, in bytes.
    pub upper_bytes: u64,
    /// Number of files in the upper directories.
    pub upper_files: u64,
    /// The differences from the current revision.
    pub changes: Summary,
    /// The same in terms of packages.
    #[serde(default)]
    pub packages: PackageChanges,
    /// Changes that a commit leaves out, because patterns of the configuration ignore them. They
    /// are not among the others.
    #[serde(default)]
    pub ignored: Tally,
    /// Their paths.
    #[serde(default)]
    pub ignored_paths: Vec<Text>,
}

/// The result of a discard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// The discarded changes.
    pub changes: Summary,
}

/// The result of an unmount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmounted {
    /// Processes that still use a mount that was detached.
    #[serde(default)]
    pub holders: Vec<Holder>,
    /// Processes in other mount namespaces that had a copy of the mount, one per namespace. The
    /// copies end with the daemon.
    #[serde(default)]
    pub copies: Vec<NamespaceCopy>,
    /// Why the daemon could not unmount, if the mount was detached without it.
    #[serde(default)]
    pub trouble: Option<Failure>,
}

/// The operations on an environment. [`super::client::Client`] requests them from the daemon;
/// [`super::service::Local`] performs them in this process.
pub trait Service: Send + Sync {
    /// Closes the environment and releases its lock, even if the service itself is still
    /// referenced, as by a thread that waits for the end of the process.
    fn close(&self) {}

    /// Adds the path of the control socket to the note of the environment's lock.
    fn set_socket(&self, _socket: &Path) -> Result<(), Failure> {
        Ok(())
    }

    /// Returns sizes and counts.
    fn status(&self) -> Result<Status, Failure>;

    /// Returns the differences from the current revision, sorted by path.
    fn changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure>;

    /// Returns the differences from the current revision, with the packages that they belong to.
    fn differences(&self, selection: &Selection) -> Result<Differences, Failure>;

    /// Returns the differences from a revision, with the packages that they belong to.
    fn differences_since(&self, since: &Since) -> Result<Differences, Failure>;

    /// Creates a revision from the current state. Returns `None` if nothing changed.
    fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<Option<Committed>, Failure>;

    /// Returns what a commit would write.
    fn preview(&self, part: &Committable, progress: &dyn Progress) -> Result<Preview, Failure>;

    /// Returns the changes that a commit would record.
    fn committable(&self, part: &Committable) -> Result<Vec<Change>, Failure>;

    /// Changes the message of the current revision.
    fn amend(&self, options: &AmendOptions, progress: &dyn Progress) -> Result<Amended, Failure>;

    /// Discards changes.
    fn discard(
        &self,
        options: &DiscardOptions,
        progress: &dyn Progress,
    ) -> Result<Discarded, Failure>;

    /// Restores a revision.
    fn rollback(
        &self,
        options: &RollbackOptions,
        progress: &dyn Progress,
    ) -> Result<RolledBack, Failure>;

    /// Restores paths as they were in a revision, as uncommitted changes.
    fn restore(&self, from: &Since, progress: &dyn Progress) -> Result<Restored, Failure>;

    /// Takes back an operation.
    fn undo(&self, options: &UndoOptions, progress: &dyn Progress) -> Result<Undone, Failure>;

    /// Freezes the changes made so far.
    fn checkpoint(
        &self,
        options: &CheckpointOptions,
        progress: &dyn Progress,
    ) -> Result<Checkpointed, Failure>;

    /// Begins or ends a trial.
    fn trial(&self, request: &TrialRequest, progress: &dyn Progress) -> Result<TrialDone, Failure>;

    /// Sets or deletes a tag.
    fn tag(&self, options: &TagOptions, progress: &dyn Progress) -> Result<(), Failure>;

    /// Removes old revisions and data that is no longer needed.
    fn gc(&self, options: GcOptions, progress: &dyn Progress) -> Result<Collected, Failure>;

    /// Returns counters, for diagnosis.
    fn stats(&self) -> Result<serde_json::Value, Failure>;
}

/// The report of a daemon after its start.
#[derive(Debug, Clone, Default)]
pub struct StartReport {
    /// The number of changed files whose content was lost; the log has their names.
    pub lost: usize,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The message that a daemon writes to its standard output after its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Started {
    /// The mount can be used.
    Ready {
        /// Process id of the daemon.
        pid: u32,
        /// The mount point.
        mount_point: Text,
        /// The number of changed files whose content was lost; the log has their names.
        #[serde(default)]
        lost: usize,
        /// Warnings for the user.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// There is no mount, and the daemon ends.
    Error(Failure),
}
