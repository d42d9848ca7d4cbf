//! Verification of an environment.

use std::num::NonZeroUsize;
use std::path::Path;

use super::error::{CommitError, Context, Result};
use super::{cleanup, digests};
use crate::environment::Layout;
use crate::progress::{Progress, Report};
use crate::squashfs::reader::{self, VerifyProgress, VerifyReport};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{ImageRow, RevisionId, StateDb};
use crate::sys::regular;

/// The result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerifyOutcome {
    /// Number of images without problems.
    pub images: u64,
    /// Bytes of these images on the disk.
    pub bytes: u64,
    /// A message for each problem found.
    pub problems: Vec<String>,
}

/// Verifies an environment: its database, and every block and digest of each image of its history.
/// Fails only if the database cannot be read or the user cancels; all else is a problem that it
/// reports.
pub fn verify(
    db: &StateDb,
    layout: &Layout,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<VerifyOutcome> {
    let mut outcome = VerifyOutcome {
        problems: db.integrity_check()?,
        ..VerifyOutcome::default()
    };
    outcome
        .problems
        .extend(layout.check_directories().err().map(|e| e.to_string()));
    // Unreadable rows are among the problems. Files cannot be checked without them.
    let (Ok(images), Ok(newer)) = (db.images(), cleanup::newer_than(db, layout)) else {
        return Ok(outcome);
    };
    for path in newer {
        outcome.problems.push(format!(
            "{} is newer than the state database, which may have been restored from an older copy: \
             restore the newer database, or move the file away",
            path.display()
        ));
    }
    for image in images {
        outcome.add(db, layout, &image, threads, progress)?;
    }
    Ok(outcome)
}

/// Verifies every block and digest of the image of one revision, and nothing else.
pub fn verify_revision(
    db: &StateDb,
    layout: &Layout,
    id: RevisionId,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<VerifyOutcome> {
    let revision = db.revision(id)?.ok_or(CommitError::NoRevision(id.0))?;
    let image = db.image(revision.image)?;
    let image = image.ok_or(CommitError::NoRevision(id.0))?;
    let mut outcome = VerifyOutcome::default();
    outcome.add(db, layout, &image, threads, progress)?;
    Ok(outcome)
}

impl VerifyOutcome {
    fn add(
        &mut self,
        db: &StateDb,
        layout: &Layout,
        image: &ImageRow,
        threads: NonZeroUsize,
        progress: &dyn Progress,
    ) -> Result<()> {
        let path = layout.image(&image.file);
        match verify_image(db, image, &path, threads, progress) {
            Ok(()) => {
                self.images += 1;
                self.bytes += image.size;
            }
            Err(CommitError::Cancelled) => return Err(CommitError::Cancelled),
            // It was removed by a garbage collection meanwhile.
            Err(_) if db.image(image.id)?.is_none() => {}
            Err(e) => self.problems.push(format!("{}: {e}", path.display())),
        }
        Ok(())
    }
}

/// Verifies one image: its size, its structure and blocks, and its digests.
fn verify_image(
    db: &StateDb,
    row: &ImageRow,
    path: &Path,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<()> {
    let file = regular::open(path).context("open", path)?;
    let len = file.metadata().context("stat", path)?.len();
    if len != row.size {
        let what = format!("{len} bytes instead of {}", row.size);
        return Err(CommitError::Changed(what));
    }
    let image = Image::open_file(file, ReaderOptions::default())?;
    verify_blocks(&image, threads, progress)?;
    // Blocks that can be decompressed may still differ from those that were written.
    let Some(digests) = db.image_digests(row.id)? else {
        return Ok(());
    };
    let damaged = digests::find_damage(path, &digests, threads, progress)?;
    let Some(first) = damaged.first() else {
        return Ok(());
    };
    let more = match damaged.len() {
        1 => String::new(),
        count => format!(" and {} other ranges", count - 1),
    };
    Err(CommitError::Changed(format!(
        "bytes {} to {}{more} differ from their digests",
        first.start, first.end
    )))
}

/// Opens an image of the store, which must be a regular file.
pub(super) fn open_regular(path: &Path) -> Result<Image> {
    let file = regular::open(path).context("open", path)?;
    Ok(Image::open_file(file, ReaderOptions::default())?)
}

/// Verifies the structure of an image and decompresses every block.
pub(super) fn verify_blocks(
    image: &Image,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<VerifyReport> {
    let report = |so_far: VerifyProgress| {
        progress.report(&Report {
            phase: "verifying".to_owned(),
            files_done: so_far.inodes,
            files_total: u64::from(image.superblock().inodes),
            bytes_done: so_far.stored_bytes,
            bytes_total: so_far.total_bytes,
        });
        !progress.is_cancelled()
    };
    Ok(reader::verify(image, threads.get(), report)?)
}
