//! The other operations on the history of an environment: discarding, going back, collecting
//! garbage, exporting, verifying.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{CommitError, Context, Result};
use super::workspace::{Workspace, new_revision};
use super::{cleanup, digests};
use crate::environment::Layout;
use crate::fault;
use crate::object::{Ino, Kind};
use crate::progress::{Progress, Report};
use crate::squashfs::format::InodeKind;
use crate::squashfs::reader::{VerifyProgress, VerifyReport};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{ImageRow, LayerRole, RevisionId, StackPart, StateDb};
use crate::sys::{regular, walk};
use crate::union::{Change, DiscardMode, Invalidation, LowerStack, SharedListing, open_image};

/// Throws away changes: all, or those at and below some paths (relative to the prefix). Returns what
/// they were and what the kernel must forget.
///
/// Discarded content is kept until [`gc`]: in the trash when everything is discarded, else as strays.
pub fn discard(
    workspace: &Workspace,
    paths: &[Vec<u8>],
) -> Result<(Vec<Change>, Vec<Invalidation>)> {
    let union = workspace.union();
    if !paths.is_empty() {
        return Ok(union.discard_paths(paths)?);
    }
    let changes = union.changes()?;
    let db = workspace.db();
    fault::point("discard.begun");
    let dropped =
        union.discard_uppers(union.lower().committed(), DiscardMode::Always, |fresh| {
            db.discard_all(fresh)?;
            fault::point("discard.flipped");
            Ok(())
        })?;
    Ok((
        changes,
        dropped.map(|((), stale)| stale).unwrap_or_default(),
    ))
}

/// What a rollback did.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolledBack {
    /// The revision that is current now, appended to the history.
    pub revision: RevisionId,
    /// The revision whose content it has.
    pub of: RevisionId,
    /// What the kernel must forget.
    #[serde(skip)]
    pub stale: Vec<Invalidation>,
}

/// Brings a revision back, as a new one: nothing becomes unreachable. Without a `target` it is the one
/// before the current. Refuses when there are uncommitted changes, unless they may be discarded.
pub fn rollback(
    workspace: &Workspace,
    target: Option<RevisionId>,
    discard_changes: bool,
    command: &str,
) -> Result<RolledBack> {
    let (db, union) = (workspace.db(), workspace.union());
    if !discard_changes && union.has_changes()? {
        return Err(CommitError::Uncommitted);
    }
    let target = match target {
        Some(id) => db.revision(id)?.ok_or(CommitError::NoRevision(id.0))?,
        None => {
            let current = db.current_revision()?.ok_or(CommitError::NoEarlier)?;
            let parent = current.parent.ok_or(CommitError::NoEarlier)?;
            db.revision(parent)?
                .ok_or(CommitError::NoRevision(parent.0))?
        }
    };
    let layer = open_image(db, union.paths(), target.image, workspace.open_options())?;
    let before = union.lower().committed();
    let after = Arc::new(LowerStack::new(Vec::new(), vec![Arc::new(layer)]));
    fault::point("rollback.begun");
    let note = new_revision(&format!("roll back to revision {}", target.id), command);
    let mode = match discard_changes {
        true => DiscardMode::Always,
        // Checked again under the lock: something may have been written since the check above.
        false => DiscardMode::IfUnchanged,
    };
    let dropped = union.discard_uppers(after.clone(), mode, |fresh| {
        let revision = db.rollback_to(target.id, fresh, &note)?.revision;
        fault::point("rollback.flipped");
        Ok(revision)
    })?;
    // From here on it has happened, whatever else fails.
    let (revision, mut stale) = dropped.ok_or(CommitError::Uncommitted)?;
    different_names(&before, &after, &mut stale);
    // Which content differs would have to be read to be known.
    stale.extend(union.nodes().held().into_iter().map(Invalidation::Object));
    Ok(RolledBack {
        revision,
        of: target.id,
        stale,
    })
}

/// Adds every name in which two trees differ. Of a directory that cannot be read in one of them, all
/// names differ that it has in the other: what a revision is brought back from may be damaged.
fn different_names(before: &LowerStack, after: &LowerStack, stale: &mut Vec<Invalidation>) {
    let list = |stack: &LowerStack, dir| {
        stack.list(dir).unwrap_or_else(|e| {
            tracing::warn!(%dir, "the kernel may not be told of every name that is another now: {e}");
            SharedListing::default()
        })
    };
    let mut pending = vec![Ino::ROOT];
    let mut seen: HashSet<Ino> = HashSet::new();
    while let Some(dir) = pending.pop() {
        if !seen.insert(dir) {
            continue;
        }
        let (old, new) = (list(before, dir), list(after, dir));
        for (name, ino, kind) in old.iter() {
            if new.find(name).is_none_or(|(now, _)| now != ino) {
                stale.push(Invalidation::Entry {
                    dir,
                    name: Box::from(name),
                });
            }
            if kind == Kind::Directory {
                pending.push(ino);
            }
        }
        for (name, ino, kind) in new.iter() {
            if old.find(name).is_none() {
                stale.push(Invalidation::Entry {
                    dir,
                    name: Box::from(name),
                });
            }
            if kind == Kind::Directory {
                pending.push(ino);
            }
        }
    }
}

/// What `gc` is to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GcOptions {
    /// Revisions to keep, the current one among them; at least 1.
    pub keep: u32,
    /// Forget only revisions made before this time, seconds since 1970.
    pub before: Option<i64>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What `gc` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Collected {
    /// Revisions forgotten.
    pub revisions: Vec<i64>,
    /// Images removed.
    pub images: u64,
    /// Bytes of them.
    pub image_bytes: u64,
    /// Discarded uppers removed.
    pub uppers: u64,
    /// Bytes of their files, and of files that no row knew.
    pub upper_bytes: u64,
}

/// Removes old revisions, images nobody refers to, discarded changes, and strays.
///
/// Unless it only looks, the caller holds the environment's lock, and nothing else changes the
/// history meanwhile: what is not needed now could be made current.
pub fn gc(db: &StateDb, layout: &Layout, options: GcOptions) -> Result<Collected> {
    layout.check_directories()?;
    // An older image may be all that is left then.
    if let Some(image) = cleanup::missing_image(db, layout)? {
        return Err(CommitError::NotWhole(image));
    }
    let mut done = Collected::default();
    let revisions = db.revisions()?;
    let current = db.current_revision()?.map(|revision| revision.id);
    let tagged: HashSet<RevisionId> = db.tags()?.into_iter().map(|tag| tag.revision).collect();
    let mut newest_first = revisions;
    newest_first.sort_unstable_by_key(|revision| std::cmp::Reverse(revision.id));
    let mut kept_images = HashSet::new();
    let mut gone = Vec::new();
    for (age, revision) in newest_first.iter().enumerate() {
        let keep = age < options.keep.max(1) as usize
            || options.before.is_some_and(|limit| revision.time >= limit)
            || Some(revision.id) == current
            || tagged.contains(&revision.id);
        if keep {
            kept_images.insert(revision.image);
        } else {
            gone.push(revision.id);
        }
    }
    for layer in db.stack()? {
        if let StackPart::Image(image) = layer.part {
            kept_images.insert(image);
        }
    }
    done.revisions = gone.iter().map(|id| id.0).collect();
    let images: Vec<_> = db
        .images()?
        .into_iter()
        .filter(|image| !kept_images.contains(&image.id))
        .collect();
    done.images = images.len() as u64;
    // An image that a clone shares takes as much room as before.
    let is_shared = |image: &ImageRow| {
        let meta = fs::metadata(layout.image(&image.file));
        meta.is_ok_and(|meta| meta.nlink() > 1)
    };
    let freed = images.iter().filter(|image| !is_shared(image));
    done.image_bytes = freed.map(|image| image.size).sum();
    let trash: Vec<_> = db
        .layers()?
        .into_iter()
        .filter(|layer| layer.role == LayerRole::Trash)
        .collect();
    done.uppers = trash.len() as u64;
    for layer in &trash {
        done.upper_bytes += size_of_tree(&layout.layer(layer.id));
    }
    let strays = layout.strays();
    done.upper_bytes += size_of_tree(&strays);
    if options.dry_run {
        return Ok(done);
    }
    // First what needs no change of rows, which a full disk has no room for.
    walk::remove_tree(&strays).context("remove", &strays)?;
    // What was discarded frees the most, and needs no room while its files go.
    for layer in &trash {
        cleanup::remove_layer_files(layout, layer.id)?;
    }
    for id in gone {
        db.forget_revision(id)?;
    }
    for image in images {
        // The row first: a file without a row is garbage, a row without a file would be a loss.
        db.forget_image(image.id)?;
        let path = layout.image(&image.file);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).context("remove", &path);
            }
            _ => {}
        }
    }
    for layer in trash {
        cleanup::remove_layer(db, layout, layer.id)?;
    }
    db.restore_reserve();
    Ok(done)
}

/// Bytes of the files in a directory tree; what cannot be looked at counts nothing.
fn size_of_tree(path: &Path) -> u64 {
    let mut bytes: u64 = 0;
    walk::for_each_file(path, &mut |meta| {
        bytes += if meta.is_file() { meta.len() } else { 0 };
        true
    });
    bytes
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerifyOutcome {
    /// Images whose every block was expanded.
    pub images: u64,
    /// Bytes that these take on the disk.
    pub bytes: u64,
    /// What is wrong, each in words; empty when all is well.
    pub problems: Vec<String>,
}

/// Verifies an environment: its database, and every block of every image of its history.
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
    // Rows that cannot be read are among the problems; what depends on them is not looked at.
    let (Ok(images), Ok(newer)) = (db.images(), cleanup::newer_than(db, layout)) else {
        return Ok(outcome);
    };
    for path in newer {
        outcome.problems.push(format!(
            "{} is newer than the state database, which seems to have been put back from an older copy; \
             it is left alone: put the newer database back, or move it away",
            path.display()
        ));
    }
    for image in images {
        let path = layout.image(&image.file);
        let checked = regular::open(&path)
            .context("open", &path)
            .and_then(|file| {
                let len = file.metadata().context("look at", &path)?.len();
                if len != image.size {
                    let what = format!("{len} bytes long instead of {}", image.size);
                    return Err(CommitError::Check(what));
                }
                Ok(Image::open_file(file, ReaderOptions::default())?)
            })
            .and_then(|image| verify_blocks(&image, threads, progress))
            .and_then(|_| {
                // What can be expanded may still be something else than what was written.
                let Some(digests) = db.image_digests(image.id)? else {
                    return Ok(());
                };
                let damaged = digests::damaged(&path, &digests, threads, progress)?;
                match damaged.first() {
                    None => Ok(()),
                    Some(first) => {
                        let more = match damaged.len() {
                            1 => String::new(),
                            count => format!(", and {} more places", count - 1),
                        };
                        Err(CommitError::Changed(format!(
                            "bytes {} to {}{more}",
                            first.start, first.end
                        )))
                    }
                }
            });
        match checked {
            Ok(()) => {
                outcome.images += 1;
                outcome.bytes += image.size;
            }
            Err(CommitError::Cancelled) => return Err(CommitError::Cancelled),
            // Collected as garbage since the list was read.
            Err(_) if db.image(image.id)?.is_none() => {}
            Err(e) => outcome.problems.push(format!("{}: {e}", path.display())),
        }
    }
    Ok(outcome)
}

/// Opens an image of the store, which is a file of its own.
pub(super) fn open_regular(path: &Path) -> Result<Image> {
    let file = regular::open(path).context("open", path)?;
    Ok(Image::open_file(file, ReaderOptions::default())?)
}

/// Returns a file's content in the current revision, or `None` where it is no regular file there.
pub fn committed_content(db: &StateDb, layout: &Layout, path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(revision) = db.current_revision()? else {
        return Ok(None);
    };
    let Some(row) = db.image(revision.image)? else {
        return Ok(None);
    };
    let image = open_regular(&layout.image(&row.file))?;
    let mut inode = image.inode(image.root())?;
    for name in path.components() {
        match image.lookup(&inode, name.as_os_str().as_bytes())? {
            Some(entry) => inode = image.entry_inode(&entry)?,
            None => return Ok(None),
        }
    }
    if inode.kind() != InodeKind::File {
        return Ok(None);
    }
    let layout = image.file_layout(&inode)?;
    let mut content = Vec::new();
    for index in 0..layout.block_count() {
        content.extend_from_slice(&image.block(&layout, index)?);
    }
    Ok(Some(content))
}

/// Expands every block of an image.
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
    Ok(crate::squashfs::reader::verify(
        image,
        threads.get(),
        report,
    )?)
}
