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

use std::num::NonZeroUsize;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::commit::{Collected, GcOptions, Way};
use crate::environment::{HomeId, Layout};
use crate::progress::{Progress, Report};
use crate::sys::holders::{Holder, NamespaceCopy};
use crate::sys::text::Text;

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

/// How to commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitOptions {
    /// What the user says about the change.
    #[serde(default)]
    pub message: String,
    /// The user's command line, for the history.
    #[serde(default)]
    pub command: String,
    /// Build the image from nothing instead of on the old one.
    #[serde(default)]
    pub rebuild: bool,
    /// Leave dead space out of the image, however little there is.
    #[serde(default)]
    pub compact: bool,
    /// Codec and level as on the command line (`zstd:3`), for a rebuild.
    #[serde(default)]
    pub compression: Option<String>,
    /// Block size in bytes, for a rebuild.
    #[serde(default)]
    pub block_size: Option<u32>,
    /// Threads that compress, if not the configured number.
    #[serde(default)]
    pub threads: Option<NonZeroUsize>,
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

/// Number and size of some entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Number of entries (files, directories, links).
    pub entries: u64,
    /// Content in bytes.
    pub bytes: u64,
}

impl Tally {
    /// Counts one entry more.
    pub fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }
}

/// How much of an environment differs from its current revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// New entries.
    pub added: Tally,
    /// Entries whose content or attributes changed.
    pub modified: Tally,
    /// Entries of which nothing but the modification time changed.
    #[serde(default)]
    pub touched: Tally,
    /// Entries that are gone (size of what they were).
    pub removed: Tally,
    /// Entries that moved.
    pub renamed: Tally,
}

impl Summary {
    /// Returns the counts of a list of changes.
    pub fn of(changes: &[Change]) -> Summary {
        let mut summary = Summary::default();
        for change in changes {
            match change.change {
                ChangeKind::Added => summary.added.add(change.size),
                ChangeKind::Modified => summary.modified.add(change.size),
                ChangeKind::Touched => summary.touched.add(change.size),
                ChangeKind::Removed => summary.removed.add(change.size),
                ChangeKind::Renamed => summary.renamed.add(change.size),
            }
        }
        summary
    }

    /// Returns whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Summary {
            added,
            modified,
            touched,
            removed,
            renamed,
        } = self;
        [added, modified, touched, removed, renamed]
            .iter()
            .all(|tally| tally.entries == 0)
    }
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

/// How an entry differs from the current revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// Its content or attributes changed.
    Modified,
    /// Its modification time changed, and nothing else.
    Touched,
    /// It is gone.
    Removed,
    /// It has another path; it may have changed too.
    Renamed,
}

impl ChangeKind {
    /// Returns the letter that stands for it in a list.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Modified => 'M',
            ChangeKind::Touched => 't',
            ChangeKind::Removed => 'D',
            ChangeKind::Renamed => 'R',
        }
    }
}

/// One difference from the current revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// How it differs.
    pub change: ChangeKind,
    /// Path relative to the prefix.
    pub path: Text,
    /// Where it was before, if it moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Text>,
    /// The committed path, unless there was nothing; below a renamed directory it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<Text>,
    /// What it is: `file`, `directory`, `symlink`, …
    pub object: String,
    /// Size of its content in bytes; of a removed entry, what it was.
    pub size: u64,
}

/// What became of the blocks of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blocks {
    /// Data and fragment blocks that were compressed.
    pub compressed: u64,
    /// Data and fragment blocks stored as they were, since compression gained nothing.
    pub stored: u64,
    /// Data blocks carried over still compressed.
    pub data_carried: u64,
    /// Fragment blocks carried over still compressed.
    pub fragments_carried: u64,
    /// Fragment blocks, mostly dead, of which the rest was packed anew.
    pub fragments_repacked: u64,
    /// Content that was packed, in bytes before compression; duplicates and what was carried over
    /// are not in it.
    pub fresh_bytes: u64,
    /// Files that share the data of an equal file.
    pub duplicates: u64,
    /// Dead bytes that are parts of fragment blocks that are still used.
    pub dead_in_fragments: u64,
}

/// How long each part of a commit took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Millis {
    /// Freezing the changes.
    pub rotate: u64,
    /// Looking over the tree.
    pub plan: u64,
    /// Reading, comparing, compressing and copying data.
    pub data: u64,
    /// Inodes, listings and other tables.
    pub tables: u64,
    /// Making the image durable.
    pub sync: u64,
    /// Reading what is new in it for its digests.
    pub digest: u64,
    /// Reading it back.
    pub check: u64,
    /// Making it current.
    pub publish: u64,
    /// Removing what went into it.
    pub clean: u64,
}

/// What a commit did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The new revision; none when nothing had changed.
    pub revision: Option<i64>,
    /// Size of the new image in bytes.
    pub image_bytes: u64,
    /// How much of it was carried over from the old one as it was, in bytes.
    pub carried_bytes: u64,
    /// How much was written besides, in bytes.
    #[serde(default)]
    pub written_bytes: u64,
    /// How much of it belongs to nothing any more, in bytes.
    #[serde(default)]
    pub dead_bytes: u64,
    /// Stored bytes of tables that were taken over as they are; none when all were written.
    #[serde(default)]
    pub tables_carried: u64,
    /// Stored bytes of inodes and listings that follow them.
    #[serde(default)]
    pub tables_appended: u64,
    /// Blocks that were compressed.
    #[serde(default)]
    pub blocks_compressed: u64,
    /// Blocks that were carried over still compressed.
    #[serde(default)]
    pub blocks_carried: u64,
    /// How the image was made of the old one.
    #[serde(default)]
    pub way: Option<Way>,
    /// Why it was built anew, where that was not asked for.
    #[serde(default)]
    pub because: Option<String>,
    /// The blocks in detail.
    #[serde(default)]
    pub blocks: Blocks,
    /// How long each part took.
    #[serde(default)]
    pub millis: Millis,
    /// What the commit took in.
    pub changes: Summary,
}

/// What a discard did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// What was dropped.
    pub changes: Summary,
}

/// What a rollback did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The revision that is current now (appended to the history).
    pub revision: i64,
    /// The revision whose content it has.
    pub of: i64,
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
    ) -> Result<Committed, Failure>;

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
