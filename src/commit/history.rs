//! The other operations on the history of an environment: discarding, going back, collecting
//! garbage, exporting, verifying.

use std::collections::HashSet;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::cleanup;
use super::error::{CommitError, Context, Result};
use super::workspace::{Workspace, new_revision};
use crate::environment::Layout;
use crate::object::{Ino, Kind};
use crate::progress::{Progress, Report};
use crate::squashfs::Image;
use crate::squashfs::reader::{VerifyProgress, VerifyReport};
use crate::state::{LayerRole, RevisionId, StateDb};
use crate::union::{
    Change, EmptyLayer, FrozenLayer, Invalidation, Layer, LowerStack, Union, open_image,
};

/// The images of a stack, as a stack of their own.
fn images_of(union: &Union) -> Arc<LowerStack> {
    let lower = union.lower();
    let images = lower
        .layers()
        .iter()
        .filter(|layer| !layer.as_any().is::<FrozenLayer>());
    Arc::new(LowerStack::new(images.cloned().collect()))
}

/// Throws away changes: all, or those at and below some paths (relative to the prefix). Returns what
/// they were and what the kernel must forget.
///
/// Discarded content is kept in the trash until [`gc`] when everything is discarded.
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
    let stale = union.drop_uppers(images_of(union), |fresh| {
        db.discard_all(fresh)?;
        Ok(())
    })?;
    Ok((changes, stale))
}

/// What a rollback did.
#[derive(Debug)]
pub struct RolledBack {
    /// The revision that is current now, appended to the history.
    pub revision: RevisionId,
    /// The revision whose content it has.
    pub of: RevisionId,
    /// What the kernel must forget.
    pub stale: Vec<Invalidation>,
}

/// Brings a revision back, as a new one: nothing becomes unreachable. Without a `target` it is the one
/// before the current. Refuses when there are uncommitted changes, unless they may be discarded.
pub fn rollback(
    workspace: &Workspace,
    target: Option<RevisionId>,
    discard_changes: bool,
) -> Result<RolledBack> {
    let (db, union) = (workspace.db(), workspace.union());
    if !discard_changes && !union.changes()?.is_empty() {
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
    let layer: Arc<dyn Layer> = match target.image {
        Some(image) => Arc::new(open_image(
            db,
            union.paths(),
            image,
            workspace.open_options(),
        )?),
        None => Arc::new(EmptyLayer),
    };
    let before = images_of(union);
    let after = Arc::new(LowerStack::new(vec![layer]));
    let mut revision = None;
    let note = new_revision(&format!("roll back to revision {}", target.id));
    let mut stale = union.drop_uppers(after.clone(), |fresh| {
        revision = Some(db.rollback_to(target.id, fresh, &note)?.revision);
        Ok(())
    })?;
    different_names(&before, &after, &mut stale)?;
    // Which content differs would have to be read to be known.
    stale.extend(union.nodes().held().into_iter().map(Invalidation::Object));
    Ok(RolledBack {
        revision: revision.ok_or(CommitError::NoEarlier)?,
        of: target.id,
        stale,
    })
}

/// Adds every name in which two trees differ.
fn different_names(
    before: &LowerStack,
    after: &LowerStack,
    stale: &mut Vec<Invalidation>,
) -> Result<()> {
    let mut pending = vec![Ino::ROOT];
    let mut seen: HashSet<Ino> = HashSet::new();
    while let Some(dir) = pending.pop() {
        if !seen.insert(dir) {
            continue;
        }
        let (old, new) = (before.list(dir)?, after.list(dir)?);
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
    Ok(())
}

/// What `gc` is to keep.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// Revisions to keep, the current one among them; at least 1.
    pub keep: u32,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What `gc` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
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
pub fn gc(db: &StateDb, layout: &Layout, options: GcOptions) -> Result<Collected> {
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
            || Some(revision.id) == current
            || tagged.contains(&revision.id);
        if keep {
            kept_images.extend(revision.image);
        } else {
            gone.push(revision.id);
        }
    }
    done.revisions = gone.iter().map(|id| id.0).collect();
    let images: Vec<_> = db
        .images()?
        .into_iter()
        .filter(|image| !kept_images.contains(&image.id))
        .collect();
    done.images = images.len() as u64;
    done.image_bytes = images.iter().map(|image| image.size).sum();
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
    for id in gone {
        db.forget_revision(id)?;
    }
    for image in images {
        // The row first: a file without a row is garbage, a row without a file would be a loss.
        db.forget_image(image.id)?;
        let path = layout.image(&image.file);
        fs::remove_file(&path).context("remove", &path)?;
    }
    for layer in trash {
        cleanup::remove_layer(db, layout, layer.id)?;
    }
    if strays.exists() {
        fs::remove_dir_all(&strays).context("remove", &strays)?;
    }
    cleanup::sweep(db, layout)?;
    Ok(done)
}

/// Bytes of the files in a directory tree; what cannot be looked at counts nothing.
fn size_of_tree(path: &Path) -> u64 {
    let files = walkdir::WalkDir::new(path).into_iter().flatten();
    files
        .filter_map(|entry| entry.metadata().ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.len())
        .sum()
}

/// Copies the image of a revision (the current one by default) to a file that is not there yet.
pub fn export(
    db: &StateDb,
    layout: &Layout,
    revision: Option<RevisionId>,
    to: &Path,
) -> Result<u64> {
    let revision = match revision {
        Some(id) => db.revision(id)?.ok_or(CommitError::NoRevision(id.0))?,
        None => db.current_revision()?.ok_or(CommitError::NoEarlier)?,
    };
    let empty = || CommitError::Source {
        path: layout.home().to_owned(),
        why: "nothing was ever committed, so there is no image to export".to_owned(),
    };
    let image = db
        .image(revision.image.ok_or_else(empty)?)?
        .ok_or_else(empty)?;
    if to.symlink_metadata().is_ok() {
        return Err(CommitError::Source {
            path: to.to_owned(),
            why: "it exists already".to_owned(),
        });
    }
    // Under another name until it is whole: who finds the name finds the image.
    let mut partial = to.as_os_str().as_bytes().to_vec();
    partial.extend_from_slice(b".partial");
    let partial =
        super::Unfinished(std::ffi::OsString::from(std::ffi::OsStr::from_bytes(&partial)).into());
    let source = layout.image(&image.file);
    fs::copy(&source, &partial.0).context("copy", &source)?;
    let file = fs::File::open(&partial.0).context("open", &partial.0)?;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
    nix::sys::stat::fchmod(&file, mode).context("make writable", &partial.0)?;
    file.sync_all().context("sync", &partial.0)?;
    fs::rename(&partial.0, to).context("name", to)?;
    Ok(image.size)
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerifyOutcome {
    /// Images whose every block was expanded.
    pub images: u64,
    /// Bytes of content that were expanded.
    pub bytes: u64,
    /// What is wrong, each in words; empty when all is well.
    pub problems: Vec<String>,
}

/// Verifies an environment: its database, every image of its history, and the changes in it.
pub fn verify(workspace: &Workspace, progress: &dyn Progress) -> Result<VerifyOutcome> {
    let mut outcome = VerifyOutcome::default();
    let db = workspace.db();
    outcome.problems.extend(db.integrity_check()?);
    let threads = workspace.settings().threads;
    for image in db.images()? {
        let path = workspace.env().layout().image(&image.file);
        let checked = Image::open(&path, workspace.open_options().reader.clone())
            .map_err(CommitError::from)
            .and_then(|image| verify_blocks(&image, threads, progress));
        match checked {
            Ok(report) => {
                outcome.images += 1;
                outcome.bytes += report.bytes;
            }
            Err(CommitError::Cancelled) => return Err(CommitError::Cancelled),
            Err(e) => outcome.problems.push(format!("{}: {e}", path.display())),
        }
    }
    outcome.problems.extend(workspace.union().verify_upper()?);
    Ok(outcome)
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
