//! Builds the new image of a commit: chooses how, writes it, and then names, syncs and checks it.
//!
//! The cheapest way that is possible is tried first: amending the tables of the old image, then
//! writing all tables on its data, then a rebuild.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::amend::Amendment;
use super::error::{CommitError, Result};
use super::import::{self, TreeSize};
use super::tree::{self, First, Target, Tree};
use super::workspace::Workspace;
use super::{
    CommitOptions, Counts, Phases, Unfinished, Way, check, digests, lap, mkfs_time, profile,
    rename_into_place, while_syncing, with_monitor,
};
use crate::environment::ProfileUse;
use crate::fault;
use crate::object::Ino;
use crate::progress::Progress;
use crate::squashfs::writer::{
    AmendOptions, AppendOptions, CarryMode, ImageAmender, ImageWriter, WriteError, WriteStats,
    WriterOptions,
};
use crate::squashfs::{Compression, CompressorId, Image};
use crate::state::{IdMap, ImageId, ImageRow, NewImage};
use crate::union::{self, ImageLayer, LowerStack};

/// The fault that fails the check of an amended image.
const FAIL_AMENDED: &str = "check.amended";

/// The inputs of a new image.
pub(super) struct Job<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) options: &'a CommitOptions,
    pub(super) view: Arc<LowerStack>,
    /// The current image.
    pub(super) old: &'a ImageLayer,
    /// The row of the current image.
    pub(super) old_row: ImageRow,
    /// The id of the new image.
    pub(super) id: ImageId,
    /// The file of the new image while it is written.
    pub(super) unfinished: Unfinished,
    /// The final path of the new image.
    pub(super) path: PathBuf,
    pub(super) progress: &'a dyn Progress,
}

/// A new image: complete, durable and checked, but not referenced by the database.
pub(super) struct Built {
    pub(super) image: NewImage,
    pub(super) layer: ImageLayer,
    /// The file, removed unless it is kept.
    pub(super) named: Unfinished,
    pub(super) stats: WriteStats,
    pub(super) way: Way,
    /// The reason for a rebuild that was not requested.
    pub(super) because: Option<String>,
}

/// Codec and block size of a rebuilt image, where the options do not specify them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RebuildFormat {
    /// Those of the settings.
    Configured,
    /// Those of the old image: its data should have been carried over, but could not.
    OfOldImage,
}

/// A new image, complete but not yet durable.
struct Written {
    stats: WriteStats,
    ids: IdMap,
    fresh: Vec<Ino>,
    /// The directories that were written; `None` for all.
    pushed: Option<HashSet<Ino>>,
    plan: Duration,
}

/// All tables are written when more than one part in this many was appended by earlier commits.
const APPENDED_PART: u64 = 4;

impl Job<'_> {
    /// Builds the image in the cheapest possible way.
    pub(super) fn run(&self, phases: &mut Phases) -> Result<Built> {
        let mut way = self.choose_way();
        let mut because: Option<String> = None;
        let mut amendment = self.amendment(way)?;
        loop {
            let is_amended = amendment.is_some();
            let written = match amendment.take() {
                Some(amendment) => self.write_amendment(amendment),
                None => {
                    let format = match because {
                        Some(_) => RebuildFormat::OfOldImage,
                        None => RebuildFormat::Configured,
                    };
                    self.write(way, format)
                }
            };
            match written.and_then(|written| self.finish(written, way, phases)) {
                Err(CommitError::Write(WriteError::Amend(why))) if is_amended => {
                    tracing::info!("writing all tables: {why}");
                }
                Err(e) if is_amended && may_be_caused_by_amending(&e) => {
                    tracing::warn!("writing all tables, since amending them failed: {e}");
                }
                // Every later commit would fail in the same way.
                Err(CommitError::Write(WriteError::Carry(why))) if way != Way::Rebuild => {
                    tracing::info!(
                        "rebuilding the image, since its data cannot be carried over: {why}"
                    );
                    way = Way::Rebuild;
                    because = Some(why);
                }
                Err(e) => return Err(e),
                Ok(built) => return Ok(Built { because, ..built }),
            }
        }
    }

    /// Names the written image, makes it durable, and compares it with the view.
    fn finish(&self, written: Written, way: Way, phases: &mut Phases) -> Result<Built> {
        let Written {
            stats,
            ids,
            fresh,
            pushed,
            plan,
        } = written;
        let (mut dead_bytes, mut tables_appended) = (stats.data.dead_bytes, stats.tables_appended);
        if pushed.is_some() {
            dead_bytes += self.old_row.dead_bytes;
            tables_appended += self.old_row.tables_appended.unwrap_or(0);
        }
        phases.plan = plan;
        phases.data = stats.data_time;
        phases.tables = stats.table_time;
        fault::point("commit.written");
        let (path, progress) = (&self.path, self.progress);
        let mut began = Instant::now();
        let file = rename_into_place(&self.unfinished, path)?;
        let named = Unfinished(path.clone());
        fault::point("commit.named");
        let kept = match way {
            Way::Append => {
                let until = self.old.image().data_area().end;
                let digests = self.workspace.db().image_digests(self.old_row.id)?;
                digests.map(|digests| digests::Kept { digests, until })
            }
            _ => None,
        };
        let (image, layer) = while_syncing(file, path, progress, || {
            let digests = digests::compute(path, kept.as_ref(), self.threads(), progress)?;
            phases.digest = lap(&mut began);
            let options = self.workspace.open_options();
            let image = Image::open(path, options.reader.clone())?;
            let new_image = NewImage {
                dead_bytes,
                tables_appended: Some(tables_appended),
                ..import::describe_image(
                    self.id,
                    &image,
                    ids.clone(),
                    stats.image_size,
                    Some(digests),
                )
            };
            let layer = ImageLayer::new(image, ids);
            check::same_tree(&self.view, &layer, pushed.as_ref(), &fresh, progress)?;
            if cfg!(debug_assertions) && pushed.is_some() {
                check::same_tree(&self.view, &layer, None, &[], progress)?;
                if fault::is_enabled(FAIL_AMENDED) {
                    return Err(CommitError::Check("injected fault".to_owned()));
                }
            }
            phases.check = lap(&mut began);
            Ok((new_image, layer))
        })?;
        phases.sync = lap(&mut began);
        Ok(Built {
            image,
            layer,
            named,
            stats,
            way,
            because: None,
        })
    }

    /// Chooses how much of the old image is carried over.
    fn choose_way(&self) -> Way {
        let (workspace, options) = (self.workspace, self.options);
        let (row, layer) = (&self.old_row, self.old);
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
        // An empty image has nothing to carry over, and the settings may have changed.
        let is_empty = superblock.inodes == 1;
        if options.rebuild || is_empty || other_codec || other_block || unwritable {
            return Way::Rebuild;
        }
        // For an amended image this is an upper bound, since files may share data. That is rare.
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

    /// Returns what to write if the tables of the old image are amended, and `None` if all tables
    /// are written.
    fn amendment(&self, way: Way) -> Result<Option<Amendment>> {
        if way != Way::Append {
            return Ok(None);
        }
        let (row, old) = (&self.old_row, self.old);
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
        let ids = amendment.ids.clone();
        self.push((ids, &[]), Duration::ZERO, |monitor| {
            let amender = self.amender(monitor)?;
            Ok(Target::amended(amender, self.old, amendment))
        })
    }

    /// Writes the new image with all its tables. `format` applies to a rebuild.
    fn write(&self, way: Way, format: RebuildFormat) -> Result<Written> {
        let began = Instant::now();
        let old = (way != Way::Rebuild).then_some(self.old);
        let (ids, first) = tree::number(&self.view, &self.files_used_first(way))?;
        self.push((ids, &first), began.elapsed(), |monitor| {
            let writer = match way {
                Way::Rebuild => self.create(format, monitor)?,
                _ => self.append(way, monitor)?,
            };
            Ok(Target::Whole { writer, old })
        })
    }

    /// Returns the files whose data the new image begins with, from the access profile. Data that
    /// is appended has no choice of place.
    fn files_used_first(&self, way: Way) -> Vec<Ino> {
        let wanted = [self.options.profile, self.workspace.settings().profile];
        match way {
            Way::Compact | Way::Rebuild if wanted == [ProfileUse::On; 2] => {
                profile::files_of(self.workspace.env().layout())
            }
            _ => Vec::new(),
        }
    }

    fn push<'a>(
        &self,
        (ids, first): (IdMap, &[First]),
        plan: Duration,
        open: impl FnOnce(Arc<Counts>) -> Result<Target<'a>>,
    ) -> Result<Written> {
        let total = TreeSize {
            entries: ids.len(),
            bytes: 0,
        };
        let pushed = with_monitor("packing", total, self.progress, |monitor| {
            Tree::new(self.view.clone(), &ids, open(monitor)?).write(first)
        })?;
        Ok(Written {
            stats: pushed.stats,
            ids,
            fresh: pushed.fresh,
            pushed: pushed.dirs,
            plan,
        })
    }

    fn threads(&self) -> NonZeroUsize {
        let configured = self.workspace.settings().threads;
        self.options.threads.unwrap_or(configured)
    }

    fn append(&self, way: Way, monitor: Arc<Counts>) -> Result<ImageWriter> {
        let carry = if way == Way::Compact {
            CarryMode::Compact
        } else {
            CarryMode::Append
        };
        let options = AppendOptions {
            carry,
            // The dead data that compaction leaves must not suffice to trigger the next one.
            repack_percent: self.workspace.settings().compact_percent.min(25),
            compression: self.options.compression,
            threads: self.threads(),
            mkfs_time: mkfs_time(),
            monitor,
        };
        Ok(ImageWriter::append(
            &self.unfinished.0,
            self.old.image(),
            options,
        )?)
    }

    fn amender(&self, monitor: Arc<Counts>) -> Result<ImageAmender> {
        let options = AmendOptions {
            compression: self.options.compression,
            threads: self.threads(),
            mkfs_time: mkfs_time(),
            monitor,
        };
        let (path, old) = (&self.unfinished.0, self.old.image());
        Ok(ImageAmender::create(path, old, options)?)
    }

    fn create(&self, format: RebuildFormat, monitor: Arc<Counts>) -> Result<ImageWriter> {
        let settings = self.workspace.settings();
        let (mut compression, mut block_size) = (settings.compression, settings.block_size);
        if format == RebuildFormat::OfOldImage {
            let superblock = self.old.image().superblock();
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
        Ok(ImageWriter::create(&self.unfinished.0, options)?)
    }
}

/// Returns true if writing all tables may succeed after amending failed with this error: the cause
/// is the new image or the old tables, and not the disk.
fn may_be_caused_by_amending(error: &CommitError) -> bool {
    use crate::squashfs::Error::{Cancelled, Io};
    // In debug builds it is an error, so that tests detect it.
    if cfg!(debug_assertions) && !fault::is_enabled(FAIL_AMENDED) {
        return false;
    }
    match error {
        CommitError::Check(_) | CommitError::Union(union::Error::Inconsistent(_)) => true,
        CommitError::Image(error) | CommitError::Union(union::Error::Image(error)) => {
            !matches!(error, Io { .. } | Cancelled)
        }
        _ => false,
    }
}
