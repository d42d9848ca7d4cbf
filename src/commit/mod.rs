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
mod digests;
mod error;
mod exclude;
mod export;
mod history;
mod import;
mod tree;
mod workspace;

use std::collections::HashSet;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::environment::Layout;
use crate::fault;
use crate::object::Ino;
use crate::progress::{Progress, Report};
use crate::squashfs::writer::{
    AppendOptions, CarryMode, ImageWriter, Monitor, WriteError, WriteStats, WriterOptions,
};
use crate::squashfs::{Compression, CompressorId, Image};
use crate::state::{ImageRow, LayerId, NewImage, PublishCommit, RevisionId, StateError};
use crate::sys::durable::sync_name;
use crate::union::{self, ImageLayer, Invalidation, LowerStack};
use amend::Amendment;
use error::Context;
use import::Extent;
use tree::Tree;

pub use error::{CommitError, Result};
pub use export::export_without;
pub use history::{
    Collected, GcOptions, RolledBack, VerifyOutcome, committed_content, discard, gc, rollback,
    verify,
};
pub use import::{ImportOptions, Imported, Packed, adopted, create_empty, import, pack_directory};
pub use workspace::{Settings, Workspace, command_line, new_revision, paths};

/// How to commit.
#[derive(Debug, Clone, Default)]
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

/// How long the parts of a commit took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Freezing the writable layer.
    pub rotate: Duration,
    /// Looking over the view, and numbering what is in it.
    pub plan: Duration,
    /// Reading, comparing, compressing and copying data.
    pub data: Duration,
    /// Inodes, listings and all other tables.
    pub tables: Duration,
    /// Waiting until the image is durable, after all else was done with it.
    pub sync: Duration,
    /// Reading what is new in the image for its digests.
    pub digest: Duration,
    /// Reading it back.
    pub check: Duration,
    /// The transaction that makes it current, and the change of the view.
    pub publish: Duration,
    /// Removing what went into it.
    pub clean: Duration,
}

/// What a commit did.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The new revision.
    pub revision: RevisionId,
    /// What was done to get the image.
    pub stats: WriteStats,
    /// Bytes of the data area that belong to nothing, with those of earlier commits.
    pub dead_bytes: u64,
    /// Which of the three ways was taken.
    pub way: Way,
    /// Why it is a rebuild, where that was not asked for.
    pub because: Option<String>,
    /// How long it took.
    pub phases: Phases,
    /// What the kernel must forget, if the view is mounted.
    pub stale: Vec<Invalidation>,
}

/// How a new image is made of an old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    let nothing = union.changes()?.is_empty() && !options.rebuild && !options.compact;
    if nothing {
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
    let parent = db.current_revision()?;
    let old_image = parent.as_ref().and_then(|revision| revision.image);
    let old_layer = view
        .layers()
        .iter()
        .find_map(|layer| layer.as_any().downcast_ref::<ImageLayer>());
    if frozen.is_empty() && old_layer.is_none() {
        // A rebuild of an environment in which there never was anything.
        return Ok(None);
    }
    let id = db.reserve_image()?;
    let layout = workspace.env().layout();
    let unfinished = Unfinished(layout.unfinished_image(id));

    let old_row = old_image.map(|id| db.image(id)).transpose()?.flatten();
    let mut way = choose_way(workspace, options, old_row.as_ref(), old_layer);
    let mut because = None;
    let job = Job {
        workspace,
        options,
        view: view.clone(),
        old: old_layer,
        path: &unfinished.0,
        progress,
    };
    let amended = match job.amendment(way, old_row.as_ref())? {
        Some(amendment) => match job.write_amendment(amendment) {
            Err(CommitError::Write(WriteError::Amend(why))) => {
                tracing::info!("all tables are written: {why}");
                None
            }
            written => Some(written),
        },
        None => None,
    };
    let written = match amended.unwrap_or_else(|| job.write(way, false)) {
        // What is refused before it begins would be refused at every commit to come.
        Err(CommitError::Write(WriteError::Carry(why))) if way != Way::Rebuild => {
            tracing::info!("the old image cannot be carried on ({why}): building it anew");
            way = Way::Rebuild;
            because = Some(why);
            job.write(way, true)?
        }
        written => written?,
    };
    let Written {
        stats,
        ids,
        fresh,
        pushed,
        plan,
    } = written;
    let before = old_row.filter(|_| pushed.is_some());
    let dead_bytes = stats.data.dead_bytes + before.as_ref().map_or(0, |row| row.dead_bytes);
    let tables_appended =
        stats.tables_appended + before.and_then(|row| row.tables_appended).unwrap_or(0);
    phases.plan = plan;
    phases.data = stats.data_time;
    phases.tables = stats.table_time;
    fault::point("commit.written");
    let file_name = Layout::image_file_name(id);
    let path = layout.image(&file_name);
    let mut began = Instant::now();
    let file = name(&unfinished, &path)?;
    let named = Unfinished(path.clone());
    fault::point("commit.named");
    let kept = match (way, old_image, old_layer) {
        (Way::Append, Some(old_image), Some(old)) => {
            let until = old.image().data_area().end;
            db.image_digests(old_image)?
                .map(|digests| digests::Kept { digests, until })
        }
        _ => None,
    };
    let (new_image, layer) = while_syncing(&file, &path, || {
        let digests = digests::of_file(&path, kept.as_ref(), job.threads(), progress)?;
        phases.digest = lap(&mut began);
        let open_options = workspace.open_options();
        let image = Image::open(&path, open_options.reader.clone())?;
        let new_image = NewImage {
            dead_bytes,
            tables_appended: Some(tables_appended),
            ..import::adopted(id, &image, ids.clone(), stats.image_size, Some(digests))
        };
        let layer = ImageLayer::new(image, ids);
        check::same_tree(&view, &layer, pushed.as_ref(), &fresh, progress)?;
        if cfg!(debug_assertions) && pushed.is_some() {
            check::same_tree(&view, &layer, None, &[], progress)?;
        }
        phases.check = lap(&mut began);
        Ok((new_image, layer))
    })?;
    phases.sync = lap(&mut began);

    fault::point("commit.checked");
    let mut replaces: Vec<_> = frozen;
    for part in db.stack()? {
        if matches!(part.part, crate::state::StackPart::Image(_)) {
            replaces.push(part.id);
        }
    }
    let publish = PublishCommit {
        parent: parent
            .map(|revision| revision.id)
            .ok_or(CommitError::NoEarlier)?,
        image: new_image,
        replaces: replaces.clone(),
        revision: new_revision(&options.message, &options.command),
    };
    let lower = Arc::new(LowerStack::new(vec![Arc::new(layer)]));
    // From here on the image may be the current one, whatever comes back.
    named.keep();
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
        stats,
        dead_bytes,
        way,
        because,
        phases,
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

fn choose_way(
    workspace: &Workspace,
    options: &CommitOptions,
    old_row: Option<&ImageRow>,
    old_layer: Option<&ImageLayer>,
) -> Way {
    let (Some(row), Some(layer)) = (old_row, old_layer) else {
        return Way::Rebuild;
    };
    let superblock = layer.image().superblock();
    let other_codec = options
        .compression
        .is_some_and(|wanted| wanted.id() != superblock.compressor);
    let other_block = options
        .block_size
        .is_some_and(|wanted| wanted != superblock.block_size);
    let unwritable = matches!(
        superblock.compressor,
        CompressorId::Lzma | CompressorId::Lzo
    );
    if options.rebuild || other_codec || other_block || unwritable {
        return Way::Rebuild;
    }
    // In an amended image this is an upper bound. Files that share data are too few for that to matter.
    let data = layer.image().data_area();
    let percent = u64::from(workspace.settings().compact_percent);
    let is_too_much =
        row.dead_bytes > 0 && row.dead_bytes > (data.end - data.start) / 100 * percent;
    if options.compact || is_too_much {
        Way::Compact
    } else {
        Way::Append
    }
}

/// All that is needed to write the new image.
struct Job<'a> {
    workspace: &'a Workspace,
    options: &'a CommitOptions,
    view: Arc<LowerStack>,
    old: Option<&'a ImageLayer>,
    path: &'a Path,
    progress: &'a dyn Progress,
}

/// A new image, complete but not yet durable.
struct Written {
    stats: WriteStats,
    ids: crate::state::IdMap,
    fresh: Vec<Ino>,
    /// Directories that were pushed, where not all were.
    pushed: Option<HashSet<Ino>>,
    plan: Duration,
}

/// Tables are written whole when more than this part of them was appended.
const APPENDED_PART: u64 = 4;

impl Job<'_> {
    /// What has to be written if the tables of the old image are amended; `None` if they are to be
    /// written whole.
    fn amendment(&self, way: Way, row: Option<&ImageRow>) -> Result<Option<Amendment>> {
        let (Way::Append, Some(old), Some(row)) = (way, self.old, row) else {
            return Ok(None);
        };
        let superblock = old.image().superblock();
        let tables = superblock.bytes_used - superblock.inode_table;
        let few = row
            .tables_appended
            .is_some_and(|so_far| so_far <= tables / APPENDED_PART);
        match few {
            true => Amendment::find(&self.view, old),
            false => Ok(None),
        }
    }

    fn write_amendment(&self, amendment: Amendment) -> Result<Written> {
        let old = self.old.ok_or(CommitError::NoEarlier)?;
        let tree = Tree::amending(self.view.clone(), old, amendment);
        self.push(tree, Instant::now(), |monitor| {
            self.append(old, Way::Append, true, monitor)
        })
    }

    /// Writes the new image. With `alike` a rebuild keeps the old codec and block size, as carrying on
    /// would have done.
    fn write(&self, way: Way, alike: bool) -> Result<Written> {
        let began = Instant::now();
        let old = self.old.filter(|_| way != Way::Rebuild);
        let tree = Tree::new(self.view.clone(), old)?;
        self.push(tree, began, |monitor| match old {
            Some(old) => self.append(old, way, false, monitor),
            None => self.create(alike, monitor),
        })
    }

    fn push(
        &self,
        mut tree: Tree<'_>,
        began: Instant,
        writer: impl FnOnce(Arc<Counts>) -> Result<ImageWriter>,
    ) -> Result<Written> {
        let plan = began.elapsed();
        let total = Extent {
            entries: tree.ids().len(),
            bytes: 0,
        };
        let stats = with_monitor("packing", total, self.progress, |monitor| {
            let mut writer = writer(monitor)?;
            let root = tree.push(&mut writer)?;
            Ok(writer.finish(root)?)
        })?;
        Ok(Written {
            stats,
            ids: tree.ids().clone(),
            fresh: std::mem::take(&mut tree.fresh),
            pushed: tree.pushed().cloned(),
            plan,
        })
    }

    fn threads(&self) -> NonZeroUsize {
        let configured = self.workspace.settings().threads;
        self.options.threads.unwrap_or(configured)
    }

    fn append(
        &self,
        old: &ImageLayer,
        way: Way,
        amend: bool,
        monitor: Arc<Counts>,
    ) -> Result<ImageWriter> {
        let carry = if way == Way::Compact {
            CarryMode::Compact
        } else {
            CarryMode::Append
        };
        let options = AppendOptions {
            carry,
            // What compaction leaves dead must not be reason enough to compact again.
            repack_percent: self.workspace.settings().compact_percent.min(25),
            amend,
            compression: self.options.compression,
            threads: self.threads(),
            mkfs_time: mkfs_time(),
            monitor,
        };
        Ok(ImageWriter::append(self.path, old.image(), options)?)
    }

    fn create(&self, alike: bool, monitor: Arc<Counts>) -> Result<ImageWriter> {
        let settings = self.workspace.settings();
        let (mut compression, mut block_size) = (settings.compression, settings.block_size);
        if let Some(old) = self.old.filter(|_| alike) {
            let superblock = old.image().superblock();
            compression = Compression::for_id(superblock.compressor).unwrap_or(compression);
            block_size = superblock.block_size;
        }
        let options = WriterOptions {
            compression: self.options.compression.unwrap_or(compression),
            block_size: self.options.block_size.unwrap_or(block_size),
            threads: self.threads(),
            mkfs_time: mkfs_time(),
            fragments: true,
            monitor,
        };
        Ok(ImageWriter::create(self.path, options)?)
    }
}

/// The time that new images carry: now, or what `SOURCE_DATE_EPOCH` says.
fn mkfs_time() -> u32 {
    let set = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| u32::try_from(crate::object::Timestamp::now().secs).unwrap_or(u32::MAX))
}

/// A file that is removed again unless it is kept.
struct Unfinished(std::path::PathBuf);

impl Unfinished {
    fn keep(mut self) {
        self.0.clear();
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
            file.sync_all().context("sync", path)?;
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
