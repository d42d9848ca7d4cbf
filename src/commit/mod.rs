//! Operations on whole environments: import, commit, discard, rollback, undo, export, garbage
//! collection, verification and repair.
//!
//! # The steps of a commit
//!
//! 1. **Rotate**: one transaction freezes the writable layer and puts an empty one on top.
//! 2. **Write** the new image from the frozen layers and the old image, under an unfinished name.
//! 3. **Name**: the image is renamed to its final name, which no row contains yet.
//! 4. **Sync and check**, concurrently: `fsync` of the file and its directory, while the image is
//!    opened with the reader and compared with the frozen view.
//! 5. **Flip**: one transaction makes the new image and a new revision current, and retires the
//!    layers that were committed. The view in use is switched under the same lock.
//! 6. **Clean up**: the retired layers are removed. This can be repeated, and the next open does.
//!
//! A crash before step 5 leaves all changes in a stack that may have one more layer and shows the
//! same view. A crash after it leaves files to be removed. `docs/commit.md` lists every step.
//!
//! # Invariants
//!
//! - An operation becomes visible by one transaction. If it fails before, its files are removed;
//!   what follows the transaction can be repeated.
//! - An image is complete, read-only, durable and verified before a row refers to it.
//! - The caller of an operation that changes an environment holds the environment's lock.

mod amend;
mod check;
mod cleanup;
mod clone;
mod compare;
mod copy;
mod creation;
mod digests;
mod disk_wait;
mod error;
mod exclude;
mod export;
mod gc;
mod history;
mod history_archive;
mod import;
pub mod in_place;
mod job;
mod part;
mod preview;
mod profile;
mod relocate;
mod repair;
mod retired;
mod space;
mod tree;
mod trial;
mod undo;
mod verify;
mod workspace;

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::environment::{Layout, ProfileUse};
use crate::fault;
use crate::packages::{self, Files, PackageChanges};
use crate::progress::{Progress, Report};
use crate::squashfs::Compression;
use crate::squashfs::writer::{Monitor, WriteStats};
use crate::state::{LayerId, NewRevision, PublishCommit, RevisionId, StackPart, StateError};
use crate::sys::durable::{sync_file, sync_name};
use crate::sys::text::Text;
use crate::union::{self, Invalidation, LowerStack, Summary};
pub(crate) use disk_wait::{QUIET, Syncing};
use error::Context;
use import::TreeSize;
use job::{Built, Job};
use part::Taken;

pub use crate::state::CommitPlace;
pub use clone::{CloneOptions, Cloned, clone};
pub use compare::{OpenRevision, difference, difference_between, difference_since, restore};
pub use copy::Sharing;
pub use copy::{copy_file, copy_stream};
pub use error::{CommitError, Result};
pub use export::export_without;
pub use gc::{Collected, Frees, GcOptions, Scope, gc, own_bytes};
pub use history::{RolledBack, discard, rollback};
pub use history_archive::{
    ExportedHistory, Forwarded, HistoryArchive, HistoryExport, ImportHistoryOptions,
    ImportedHistory, Incoming, Relation, forward, import_history, is_history_archive, relation,
};
pub use import::{
    ImportOptions, Imported, Packed, create_empty, describe_image, import, pack_directory,
};
pub use part::{Chosen, Ignored};
pub use preview::{Preview, preview};
pub use profile::{Profile, paths_used_first};
pub use relocate::{Force, Relocate, Relocated, Relocation, plan_relocation, relocate, searched};
pub use repair::{
    newer_files, recreate_missing_uppers, set_unexpected_aside, unexpected_files, verify_uppers,
};
pub use space::{Object, Space, Uncommitted, space, uncommitted};
pub use trial::remains::{is_tried, leave_undecided};
pub use trial::{TrialDone, TrialOutcome, TrialRequest, TrialStep, open_trial, trial};
pub use undo::{
    CheckpointOptions, Checkpointed, UndoOptions, Undone, checkpoint, checkpoint_soon, undo,
    undo_moves_to,
};
pub use verify::{VerifyOutcome, verify, verify_revision};
pub use workspace::{Settings, Workspace, command_line, new_revision, paths, reader_options};

/// The options of a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommitOptions {
    /// The message of the revision.
    pub message: String,
    /// The command line of the user, recorded in the history.
    pub command: String,
    /// Compress all content again instead of carrying blocks over from the old image.
    pub rebuild: bool,
    /// Drop all unreferenced data of the old image.
    pub compact: bool,
    /// Codec and level. Another codec than that of the old image implies a rebuild.
    pub compression: Option<Compression>,
    /// Block size in bytes. Another one than that of the old image implies a rebuild.
    pub block_size: Option<u32>,
    /// Number of compressing threads; `None` for the configured number.
    pub threads: Option<NonZeroUsize>,
    /// Whether a rebuilt or compacted image begins with the files of the access profile.
    pub profile: ProfileUse,
    /// The place of the commit in the history.
    pub place: CommitPlace,
    /// Commits only the changes at and below these paths, relative to the prefix; none for all.
    pub paths: Vec<Text>,
    /// What happens to ignored paths.
    pub ignored: Ignored,
}

/// Durations of the phases of a commit, in milliseconds when serialized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phases {
    /// Freezing the writable layer.
    #[serde(with = "millis")]
    pub rotate: Duration,
    /// Walking the view and assigning inode numbers.
    #[serde(with = "millis")]
    pub plan: Duration,
    /// Reading, comparing, compressing and copying content.
    #[serde(with = "millis")]
    pub data: Duration,
    /// Writing inodes, directory listings and all other tables.
    #[serde(with = "millis")]
    pub tables: Duration,
    /// Waiting until the image is durable, after it was checked.
    #[serde(with = "millis")]
    pub sync: Duration,
    /// Computing the digests of new parts of the image.
    #[serde(with = "millis")]
    pub digest: Duration,
    /// Comparing the image with the view.
    #[serde(with = "millis")]
    pub check: Duration,
    /// The transaction that makes the image current, and switching the view.
    #[serde(with = "millis")]
    pub publish: Duration,
    /// Removing the retired layers.
    #[serde(with = "millis")]
    pub clean: Duration,
}

/// Serializes durations as whole milliseconds.
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

/// The result of a commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Committed {
    /// The new revision.
    pub revision: RevisionId,
    /// How the new image was built from the old one.
    pub way: Way,
    /// The reason for a rebuild that was not requested.
    pub because: Option<String>,
    /// Stored bytes of the data area that no file refers to, including those of earlier commits.
    pub dead_bytes: u64,
    /// Counts of the image writer.
    pub image: WriteStats,
    /// Durations of the phases.
    pub millis: Phases,
    /// Counts of the committed changes.
    pub changes: Summary,
    /// The same in terms of packages.
    #[serde(default)]
    pub packages: PackageChanges,
    /// Old revisions that were forgotten after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgot: Option<Collected>,
    /// Cache entries that the kernel must drop if the view is mounted.
    #[serde(skip)]
    pub stale: Vec<Invalidation>,
}

/// How a new image is built from the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The data area is carried over as a whole; new data is appended.
    Append,
    /// Only referenced data is carried over, still compressed.
    Compact,
    /// All content is compressed again.
    Rebuild,
}

/// Commits all changes. Returns `None` if there are none.
///
/// The view can be read and written meanwhile. A failed commit loses no change: the rotation is
/// reverted, or the next commit includes the frozen layers.
pub fn commit(
    workspace: &Workspace,
    options: &CommitOptions,
    progress: &dyn Progress,
) -> Result<Option<Committed>> {
    commit_at(workspace, options, None, progress)
}

/// Commits all changes, and changes the path where the environment is mounted if `prefix` is given.
fn commit_at(
    workspace: &Workspace,
    options: &CommitOptions,
    prefix: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Option<Committed>> {
    let union = workspace.union();
    let chosen = Chosen::of(workspace, options)?;
    if !options.rebuild && !options.compact && !chosen.has_changes(workspace)? {
        return Ok(None);
    }
    let began = Instant::now();
    union.rotate()?;
    let phases = Phases {
        rotate: began.elapsed(),
        ..Phases::default()
    };
    fault::point("commit.rotated");
    let taken = chosen.take(workspace);
    let is_part = taken.as_ref().is_ok_and(|taken| taken.rest > 0);
    let has_image = options.rebuild || options.compact;
    let done = match taken {
        // Nothing of the part has changed any more.
        Ok(taken) if taken.view.frozen().is_empty() && !has_image => Ok(None),
        Ok(taken) => commit_frozen(workspace, options, prefix, taken, phases, progress),
        Err(e) => Err(e),
    };
    if (done.is_err() || is_part)
        && let Err(e) = union.unrotate()
    {
        tracing::warn!(
            "cannot make a frozen layer writable again after a commit: {e}; the next commit includes \
             its changes"
        );
    }
    done
}

/// Executes steps 2 to 6, which follow the rotation.
fn commit_frozen(
    workspace: &Workspace,
    options: &CommitOptions,
    prefix: Option<&Path>,
    taken: Taken,
    mut phases: Phases,
    progress: &dyn Progress,
) -> Result<Option<Committed>> {
    let (union, db) = (workspace.union(), workspace.db());
    let Taken { view, rest, old } = taken;
    // The changes that were frozen: others may have happened since the caller checked.
    let changes = union::frozen_changes(&view)?;
    let summary = Summary::of(&changes);
    let packages = match prefix {
        // A relocation edits files of all packages, but changes no package.
        Some(_) => PackageChanges::default(),
        None => packages_in(&view, changes),
    };
    let parent = db.current_revision()?.ok_or(CommitError::NoEarlier)?;
    let old_layer = view.images().first().ok_or(CommitError::NoEarlier)?;
    let id = db.reserve_image()?;
    let layout = workspace.env().layout();
    let old_row = db.image(parent.image)?.ok_or(CommitError::NoEarlier)?;
    let old_file = old_row.file.clone();
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
    let Built {
        image,
        layer,
        named,
        stats,
        way,
        because,
    } = job.run(&mut phases)?;
    let mut began = Instant::now();

    fault::point("commit.checked");
    let mut replaces: Vec<LayerId> = view.frozen().iter().map(|layer| layer.id).collect();
    for part in db.stack()? {
        if matches!(part.part, StackPart::Image(_)) {
            replaces.push(part.id);
        }
    }
    let publish = PublishCommit {
        parent: parent.id,
        image,
        replaces,
        prefix: prefix.map(Path::to_owned),
        revision: NewRevision {
            packages: packages.record(),
            ..new_revision(&options.message, &options.command)
        },
        place: options.place,
    };
    let dead_bytes = publish.image.dead_bytes;
    let lower = Arc::new(union.rest_over(rest, vec![Arc::new(layer)])?);
    // The transaction may have been committed even if it returns an error, so the file stays.
    let path = named.keep();
    let published = union.replace_lower(lower, || Ok(db.publish_commit(&publish)?));
    let (revision, stale) = published.inspect_err(|e| match e {
        // Only the next open can tell whether the image is referenced.
        union::Error::State(StateError::InDoubt { .. }) => {}
        _ => drop(Unfinished(path)),
    })?;
    phases.publish = lap(&mut began);
    fault::point("commit.flipped");
    // It holds a reference to the replaced stack.
    drop(job);
    // The commit is done. The next open removes what is not removed here.
    if let Err(e) = db.limit_recorded(workspace.settings().undo) {
        tracing::warn!("cannot forget the layers of older commits: {e}");
    }
    // Both may be the same stack. None may be read when its files are removed.
    let was_split = !Arc::ptr_eq(&old, &view);
    let old = was_split.then_some(old);
    let is_unused = old.is_none_or(wait_until_unused) && wait_until_unused(view);
    if !is_unused {
        tracing::debug!("the retired layers are still being read; the next open removes them");
    } else if let Err(e) = retired::sweep_retired(db, layout) {
        tracing::warn!("cannot remove the retired layers: {e}");
    }
    if db.image(parent.image).is_ok_and(|row| row.is_none()) {
        drop(Unfinished(layout.image(&old_file)));
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
        changes: summary,
        packages,
        forgot: gc::forget_old(workspace),
        stale,
    }))
}

/// Returns what the frozen changes are in terms of packages.
fn packages_in(view: &Arc<LowerStack>, changes: Vec<union::Change>) -> PackageChanges {
    let base = view.committed();
    packages::differences(changes, &Files::of(&*base), &Files::of(&**view)).packages
}

/// Returns the time since `began`, and sets it to now.
fn lap(began: &mut Instant) -> Duration {
    let now = Instant::now();
    now.duration_since(std::mem::replace(began, now))
}

/// Waits up to a second until the replaced stack has no readers, since its files are to be removed.
/// Returns false if it still has some.
fn wait_until_unused(view: Arc<LowerStack>) -> bool {
    for _ in 0..100 {
        if Arc::strong_count(&view) == 1 {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Returns the creation time for new images, in seconds since 1970: `SOURCE_DATE_EPOCH`, or now.
fn mkfs_time() -> u32 {
    let set = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| u32::try_from(crate::object::Timestamp::now().secs).unwrap_or(u32::MAX))
}

/// A file that is removed on drop unless it is kept.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Unfinished {
    /// Keeps the file and returns its path.
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
            tracing::warn!(file = %self.0.display(), "cannot remove an unfinished image: {e}");
        }
    }
}

/// Makes a written image read-only and renames it to its final name. It is not durable yet.
fn rename_into_place(unfinished: &Unfinished, path: &Path) -> Result<File> {
    let file = File::open(&unfinished.0).context("open", &unfinished.0)?;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o444);
    nix::sys::stat::fchmod(&file, mode).context("make read-only", &unfinished.0)?;
    fs::rename(&unfinished.0, path).context("create", path)?;
    Ok(file)
}

/// Makes a file and its name durable, and runs `work`, which may read it, meanwhile. Fails if
/// either fails. If the disk takes long, it says so and can be cancelled.
fn while_syncing<T>(
    file: File,
    path: &Path,
    progress: &dyn Progress,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let name = path.to_path_buf();
    let syncing = Syncing::start(move || {
        sync_file(&file)?;
        sync_name(&name)
    });
    // If it fails, the image is not needed.
    let done = work()?;
    syncing.wait(progress, QUIET)?.context("sync", path)?;
    Ok(done)
}

/// Counts that the writer's threads add to, and the thread that reports progress reads.
#[derive(Debug, Default)]
struct Counts {
    files: AtomicU64,
    bytes: AtomicU64,
    cancelled: AtomicBool,
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

/// Runs `work` with a monitor. Another thread reports its counts every 100 ms and checks for
/// cancellation.
fn with_monitor<T>(
    phase: &str,
    total: TreeSize,
    progress: &dyn Progress,
    work: impl FnOnce(Arc<Counts>) -> Result<T>,
) -> Result<T> {
    let counts = Arc::new(Counts::default());
    let (done, ended) = crossbeam_channel::bounded::<()>(0);
    std::thread::scope(|scope| {
        let watched = counts.clone();
        scope.spawn(move || {
            loop {
                let over = ended.recv_timeout(Duration::from_millis(100));
                progress.report(&Report {
                    phase: phase.to_owned(),
                    files_done: watched.files.load(Ordering::Relaxed),
                    files_total: total.entries,
                    bytes_done: watched.bytes.load(Ordering::Relaxed),
                    bytes_total: total.bytes,
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
