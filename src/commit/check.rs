//! Compares a new image with the view that it was made from, before the database refers to it.

use std::collections::HashSet;

use super::error::{CommitError, Result};
use crate::object::{Ino, Kind};
use crate::progress::{Progress, Report};
use crate::state::DataPlace;
use crate::union::{ImageLayer, Layer, LowerStack, Xattr};

/// Compares a view with the image made from it: every name, identity and attribute in the `pushed`
/// directories (in all with `None`), and the content of the `fresh` files. Data that was carried
/// over is not read. Link counts are not compared, since those of imported images may be wrong.
///
/// Fails with [`CommitError::Check`] at the first difference.
pub(super) fn same_tree(
    view: &LowerStack,
    image: &ImageLayer,
    pushed: Option<&HashSet<Ino>>,
    fresh: &[Ino],
    progress: &dyn Progress,
) -> Result<()> {
    match pushed {
        Some(dirs) => {
            for dir in dirs {
                same_attributes(view, image, *dir)?;
                same_directory(view, image, *dir, &mut |_| ())?;
            }
        }
        None => {
            same_attributes(view, image, Ino::ROOT)?;
            let mut pending = vec![Ino::ROOT];
            while let Some(dir) = pending.pop() {
                same_directory(view, image, dir, &mut |below| pending.push(below))?;
                if progress.is_cancelled() {
                    return Err(CommitError::Cancelled);
                }
            }
        }
    }
    let total = fresh.len() as u64;
    for (done, ino) in fresh.iter().enumerate() {
        same_content(view, image, *ino)?;
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        progress.report(&Report {
            phase: "checking".to_owned(),
            files_done: done as u64 + 1,
            files_total: total,
            bytes_done: 0,
            bytes_total: 0,
        });
    }
    Ok(())
}

/// Compares the frozen layers of a view with an image that was made from it earlier: every name,
/// identity, attribute and content that they have. Data below them is not read.
pub(super) fn same_layers(
    view: &LowerStack,
    image: &ImageLayer,
    progress: &dyn Progress,
) -> Result<()> {
    for frozen in view.frozen() {
        let delta = frozen.delta();
        for (dir, _) in delta.dirs()? {
            // Removed directories leave rows.
            if image.inode(dir)?.is_some() {
                same_directory(view, image, dir, &mut |_| ())?;
            }
        }
        for (ino, row) in delta.inodes()? {
            if image.inode(ino)?.is_none() {
                continue;
            }
            same_attributes(view, image, ino)?;
            if row.kind == Kind::File && row.data == DataPlace::Upper {
                same_content(view, image, ino)?;
            }
            if progress.is_cancelled() {
                return Err(CommitError::Cancelled);
            }
        }
    }
    Ok(())
}

/// Compares the names of a directory and the attributes of their objects. Calls `below` with each
/// subdirectory.
fn same_directory(
    view: &LowerStack,
    image: &ImageLayer,
    dir: Ino,
    below: &mut dyn FnMut(Ino),
) -> Result<()> {
    let wrong = |what: String| Err(CommitError::Check(what));
    let (ours, theirs) = (view.list(dir)?, image.list(dir)?.unwrap_or_default());
    if ours.len() != theirs.len() {
        return wrong(format!(
            "directory {dir} has {} names instead of {}",
            theirs.len(),
            ours.len()
        ));
    }
    for ((name, ino, kind), (their_name, target)) in ours.iter().zip(&theirs) {
        if name != &**their_name || *target != Some((ino, kind)) {
            return wrong(format!(
                "directory {dir} differs at the name {:?}",
                String::from_utf8_lossy(name)
            ));
        }
        same_attributes(view, image, ino)?;
        if kind == Kind::Directory {
            below(ino);
        }
    }
    image.check_entries(dir)?;
    Ok(())
}

fn same_attributes(view: &LowerStack, image: &ImageLayer, ino: Ino) -> Result<()> {
    let missing = || CommitError::Check(format!("object {ino} is missing"));
    let ours = view.attr(ino)?.ok_or_else(missing)?;
    let theirs = image.inode(ino)?.ok_or_else(missing)?.attr;
    // SquashFS stores whole seconds from 1970 to 2106.
    let seconds = ours.mtime.secs.clamp(0, i64::from(u32::MAX));
    let same = (ours.kind, ours.mode, ours.uid, ours.gid, ours.rdev, seconds)
        == (
            theirs.kind,
            theirs.mode,
            theirs.uid,
            theirs.gid,
            theirs.rdev,
            theirs.mtime.secs,
        )
        && (ours.kind == Kind::Directory || ours.size == theirs.size);
    let sorted = |mut all: Vec<Xattr>| {
        all.sort_unstable();
        all
    };
    if same && sorted(view.xattrs(ino)?) == sorted(image.xattrs(ino)?) {
        return Ok(());
    }
    Err(CommitError::Check(format!(
        "object {ino} has the attributes {theirs:?} instead of {ours:?}"
    )))
}

fn same_content(view: &LowerStack, image: &ImageLayer, ino: Ino) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut at = 0;
    loop {
        let theirs = image.read(ino, at, CHUNK)?;
        let theirs = (*theirs).as_ref();
        let ours = view.read(ino, at, theirs.len().max(1))?;
        let ours = (*ours).as_ref();
        if ours.is_empty() && theirs.is_empty() {
            return Ok(());
        }
        let len = ours.len().min(theirs.len());
        if len == 0 || ours.get(..len) != theirs.get(..len) {
            return Err(CommitError::Check(format!(
                "the content of object {ino} differs at or after byte {at}"
            )));
        }
        at += len as u64;
    }
}
