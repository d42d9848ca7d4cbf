//! Operations on whole environments: making one, committing its changes, bringing revisions back.
//!
//! # The steps of a commit
//!
//! 1. **Rotate**: one transaction freezes the writable layer and puts a fresh one on top.
//! 2. **Write** the new image from the frozen layers and the old image, under an unfinished name.
//! 3. **Name**: the image gets its name, which no row knows yet.
//! 4. **Sync and check**, at the same time: `fsync` of the file and the directory; and the image is
//!    opened again by our own reader and compared with the frozen view.
//! 5. **The flip**: one transaction makes the new image and a new revision current and retires the
//!    layers that went into it. The view that is in use changes over in the same breath.
//! 6. **Clean up**: retired layers go. Repeatable, and repeated at the next open.
//!
//! A crash before 5 leaves the changes where they were, in a stack that is one layer taller and shows
//! the same; a crash after it leaves garbage. `docs/commit.md` has the table.

mod amend;
mod check;
mod cleanup;
mod clone;
mod digests;
mod embedded;
mod error;
mod exclude;
mod export;
mod history;
mod import;
pub mod in_place;
mod job;
mod repair;
mod tree;
mod workspace;

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::environment::Layout;
use crate::fault;
use crate::progress::{Progress, Report};
use crate::squashfs::Compression;
use crate::squashfs::writer::{Monitor, WriteStats};
use crate::state::{LayerId, PublishCommit, RevisionId, StateError};
use crate::sys::durable::{sync_file, sync_name};
use crate::union::{self, Invalidation, LowerStack, Summary};
use error::Context;
use import::Extent;
use job::{Job, Made};

pub use clone::{Cloned, Sharing, clone};
pub use embedded::{Embedded, find as find_embedded};
pub use error::{CommitError, Result};
pub use export::export_without;
pub use history::{
    Collected, GcOptions, RolledBack, VerifyOutcome, committed_content, discard, gc, rollback,
    verify,
};
pub use import::{ImportOptions, Imported, Packed, adopted, create_empty, import, pack_directory};
pub use repair::{
    newer_files, recreate_missing_uppers, set_unexpected_aside, unexpected_files, verify_uppers,
};
pub use workspace::{Settings, Workspace, command_line, new_revision, paths};

/// How to commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommitOptions {
    /// What the user says about the change.
    pub message: String,
    /// The command line that asks for it, for the history.
    pub command: String,
    /// Build the image from nothing instead of on the old one.
    pub rebuild: bool,
    /// Leave dead space out, however little there is.
    pub compact: bool,
    /// Codec and level, for a rebuild; otherwise those of the old image stay.
    pub compression: Option<Compression>,
    /// Block size in bytes, for a rebuild.
    pub block_size: Option<u32>,
    /// Threads that compress, if not the configured number.
    pub threads: Option<NonZeroUsize>,
}

/// How long the parts of a commit took; as JSON, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phases {
    /// Freezing the writable layer.
    #[serde(with = "millis")]
    pub rotate: Duration,
    /// Looking over the view, and numbering what is in it.
    #[serde(with = "millis")]
    pub plan: Duration,
    /// Reading, comparing, compressing and copying data.
    #[serde(with = "millis")]
    pub data: Duration,
    /// Inodes, listings and all other tables.
    #[serde(with = "millis")]
    pub tables: Duration,
    /// Waiting until the image is durable, after all else was done with it.
    #[serde(with = "millis")]
    pub sync: Duration,
    /// Reading what is new in the image for its digests.
    #[serde(with = "millis")]
    pub digest: Duration,
    /// Reading it back.
    #[serde(with = "millis")]
    pub check: Duration,
    /// The transaction that makes it current, and the change of the view.
    #[serde(with = "millis")]
    pub publish: Duration,
    /// Removing what went into it.
    #[serde(with = "millis")]
    pub clean: Duration,
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// What a commit did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Committed {
    /// The new revision.
    pub revision: RevisionId,
    /// How the image was made of the old one.
    pub way: Way,
    /// Why it is a rebuild that was not asked for.
    pub because: Option<String>,
    /// Stored bytes of the data area that no file refers to, with those of earlier commits.
    pub dead_bytes: u64,
    /// What was written and carried over.
    pub image: WriteStats,
    /// How long it took.
    pub millis: Phases,
    /// What the new revision changes.
    pub changes: Summary,
    /// What the kernel must forget, if the view is mounted.
    #[serde(skip)]
    pub stale: Vec<Invalidation>,
}

/// How a new image is made of an old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Old data stays where it is, new data follows.
    Append,
    /// Old data that is still used is copied, still compressed.
    Compact,
    /// Everything is compressed anew.
    Rebuild,
}

/// Commits all changes; returns `None` when there are none. Readers and writers of the view go on
/// meanwhile. On failure the changes are all still there.
pub fn commit(
    workspace: &Workspace,
    options: &CommitOptions,
    progress: &dyn Progress,
) -> Result<Option<Committed>> {
    let union = workspace.union();
    if !options.rebuild && !options.compact && !union.has_changes()? {
        return Ok(None);
    }
    let began = Instant::now();
    let frozen = union.rotate()?;
    let phases = Phases {
        rotate: began.elapsed(),
        ..Phases::default()
    };
    let done = commit_frozen(workspace, options, frozen, phases, progress);
    if done.is_err()
        && let Err(e) = union.unrotate()
    {
        tracing::warn!(
            "after a commit that failed: {e}; the next one takes the frozen changes along"
        );
    }
    done
}

/// Steps 2 to 6: everything after the rotation.
fn commit_frozen(
    workspace: &Workspace,
    options: &CommitOptions,
    frozen: Vec<LayerId>,
    mut phases: Phases,
    progress: &dyn Progress,
) -> Result<Option<Committed>> {
    let (union, db) = (workspace.union(), workspace.db());
    fault::point("commit.rotated");
    let view = union.lower();
    // What was frozen, and not what was there a moment before.
    let changes = union::frozen_changes(&view)?;
    let parent = db.current_revision()?.ok_or(CommitError::NoEarlier)?;
    let old_layer = view.images().first().ok_or(CommitError::NoEarlier)?;
    let id = db.reserve_image()?;
    let layout = workspace.env().layout();
    let old_row = db.image(parent.image)?.ok_or(CommitError::NoEarlier)?;
    let job = Job {
        workspace,
        options,
        view: view.clone(),
        old: old_layer,
        old_row,
        id,
        unfinished: Unfinished(layout.unfinished_image(id)),
        path: layout.image(&Layout::image_file_name(id)),
        progress,
    };
    let Made {
        image,
        layer,
        named,
        stats,
        way,
        because,
    } = job.run(&mut phases)?;
    let mut began = Instant::now();

    fault::point("commit.checked");
    let mut replaces: Vec<_> = frozen;
    for part in db.stack()? {
        if matches!(part.part, crate::state::StackPart::Image(_)) {
            replaces.push(part.id);
        }
    }
    let publish = PublishCommit {
        parent: parent.id,
        image,
        replaces: replaces.clone(),
        revision: new_revision(&options.message, &options.command),
    };
    let dead_bytes = publish.image.dead_bytes;
    let lower = Arc::new(LowerStack::new(Vec::new(), vec![Arc::new(layer)]));
    // From here on the image may be the current one, whatever comes back.
    let path = named.keep();
    let published = union.replace_lower(lower, || Ok(db.publish_commit(&publish)?));
    let (revision, stale) = published.inspect_err(|e| match e {
        // The next open knows whether it is needed.
        union::Error::State(StateError::InDoubt { .. }) => {}
        _ => drop(Unfinished(path)),
    })?;
    phases.publish = lap(&mut began);
    fault::point("commit.flipped");
    // The layers to remove are read through it.
    drop(job);
    // From here on the commit has happened; what is left to do is done at the next open if not now.
    if !is_free(view) {
        tracing::debug!("the committed layers are still being read; they go at the next open");
    } else if let Err(e) = cleanup::sweep_retired(db, layout) {
        tracing::warn!("cleaning up after the commit: {e}");
    }
    phases.clean = lap(&mut began);
    fault::point("commit.cleaned");
    Ok(Some(Committed {
        revision,
        way,
        because,
        dead_bytes,
        image: stats,
        millis: phases,
        changes: Summary::of(&changes),
        stale,
    }))
}

/// The time since `began`, which is set to now.
fn lap(began: &mut Instant) -> Duration {
    let now = Instant::now();
    now.duration_since(std::mem::replace(began, now))
}

/// Waits a moment until nobody reads the replaced stack any more: its files are about to go.
fn is_free(view: Arc<LowerStack>) -> bool {
    for _ in 0..100 {
        if Arc::strong_count(&view) == 1 {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    false
}

/// The time that new images carry: now, or what `SOURCE_DATE_EPOCH` says.
fn mkfs_time() -> u32 {
    let set = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| u32::try_from(crate::object::Timestamp::now().secs).unwrap_or(u32::MAX))
}

/// A file that is removed again unless it is kept.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Unfinished {
    /// Leaves the file where it is, and returns the path.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(e) = fs::remove_file(&self.0)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.0.display(), "an unfinished image is left: {e}");
        }
    }
}

/// Makes a written image read-only, and gives it its name. It is not durable yet.
fn name(unfinished: &Unfinished, path: &Path) -> Result<File> {
    let file = File::open(&unfinished.0).context("open", &unfinished.0)?;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o444);
    nix::sys::stat::fchmod(&file, mode).context("make read-only", &unfinished.0)?;
    fs::rename(&unfinished.0, path).context("name", path)?;
    Ok(file)
}

/// Makes a file and its name durable while `work` is done, which may read it. Fails if either does.
fn while_syncing<T>(file: &File, path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| {
            sync_file(file).context("sync", path)?;
            sync_name(path).context("sync the directory of", path)
        });
        let done = work();
        match sync.join() {
            Ok(synced) => synced.and(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Counts for the writer's threads; read by the one thread that reports.
#[derive(Debug, Default)]
struct Counts {
    files: AtomicU64,
    bytes: AtomicU64,
    cancelled: std::sync::atomic::AtomicBool,
}

impl Monitor for Counts {
    fn advance(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Runs `work` with a monitor, while another thread reports its counts and asks about cancellation.
fn with_monitor<T>(
    phase: &str,
    extent: Extent,
    progress: &dyn Progress,
    work: impl FnOnce(Arc<Counts>) -> Result<T>,
) -> Result<T> {
    let counts = Arc::new(Counts::default());
    let (done, ended) = crossbeam_channel::bounded::<()>(0);
    std::thread::scope(|scope| {
        let watched = counts.clone();
        scope.spawn(move || {
            loop {
                let over = ended.recv_timeout(std::time::Duration::from_millis(100));
                progress.report(&Report {
                    phase: phase.to_owned(),
                    files_done: watched.files.load(Ordering::Relaxed),
                    files_total: extent.entries,
                    bytes_done: watched.bytes.load(Ordering::Relaxed),
                    bytes_total: extent.bytes,
                });
                if progress.is_cancelled() {
                    watched.cancelled.store(true, Ordering::Relaxed);
                }
                if over != Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let result = work(counts.clone());
        drop(done);
        result
    })
}
