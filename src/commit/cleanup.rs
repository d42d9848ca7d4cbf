//! Removes unreferenced files after a flip and after a crash. Can be repeated.
//!
//! Files that cannot be removed are reported and kept: they must not prevent opening the
//! environment.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Result;
use super::error::Context;
use super::retired::sweep_retired;
use super::trial::remains::{Undecided, remove_ended};
use crate::environment::Layout;
use crate::state::{FileIds, StateDb};
use crate::sys::walk;
use crate::upper::UpperDir;

/// Removes retired layers that no operation refers to, trials that were killed, unfinished and
/// unknown images, and layer directories of rotations that were not committed. Never touches the
/// stack, the trash, an image of the history, or other file names.
///
/// Removes nothing while an image of the stack is missing, because the leftovers may be the only
/// copy, and nothing if the database is older than the files, because it does not know all of them.
pub(super) fn sweep(db: &StateDb, layout: &Layout) -> Result<()> {
    let found = Found::list(db, layout)?;
    found.warn_of_newer();
    if let Some(beyond) = found.beyond {
        // New files must not use these ids.
        db.skip_ids(beyond)?;
        return Ok(());
    }
    // Before the layers below them are judged.
    remove_ended(db, layout, Undecided::SetAside);
    if !sweep_retired(db, layout)? {
        return Ok(());
    }
    for path in &found.images {
        tracing::info!(file = %path.display(), "removing an unfinished image");
        if let Err(e) = fs::remove_file(path) {
            tracing::warn!(file = %path.display(), "cannot remove an unfinished image: {e}");
        }
    }
    for path in &found.layers {
        match remove_empty(path) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                directory = %path.display(),
                "keeping the files of a layer without a row"
            ),
            Err(e) => {
                tracing::warn!(directory = %path.display(), "cannot remove an unused layer: {e}");
            }
        }
    }
    Ok(())
}

/// Files and directories with names that envfs uses, but without a row.
struct Found {
    /// Images, finished or not.
    images: Vec<PathBuf>,
    /// Directories of layers.
    layers: Vec<PathBuf>,
    /// Those of both that are newer than the database. An id is reserved durably before it becomes
    /// a name, so a file with an id that was never reserved belongs to a later state.
    newer: Vec<PathBuf>,
    /// The ids above all existing ones, if the database would assign lower ones.
    beyond: Option<FileIds>,
}

impl Found {
    fn list(db: &StateDb, layout: &Layout) -> Result<Found> {
        // Files before rows, since other processes may be adding both.
        let images = entries(&layout.images(), image_id);
        let layers = entries(&layout.layers(), layer_id);
        let (given, skipped) = (db.next_ids()?, db.skipped_ids()?);
        let known: HashSet<String> = db.images()?.into_iter().map(|image| image.file).collect();
        let is_known = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| known.contains(name))
        };
        let mut found = Found {
            images: Vec::new(),
            layers: Vec::new(),
            newer: Vec::new(),
            beyond: None,
        };
        let above = |ids: &[(i64, PathBuf)]| ids.iter().map(|(id, _)| id + 1).max().unwrap_or(1);
        let beyond = FileIds {
            images: above(&images),
            layers: above(&layers),
        };
        if beyond.images > given.images || beyond.layers > given.layers {
            found.beyond = Some(beyond);
        }
        for (id, path) in images {
            if id >= given.images || skipped.images.contains(&id) {
                found.newer.push(path);
            } else if !is_known(&path) {
                found.images.push(path);
            }
        }
        let known: HashSet<i64> = db.layers()?.into_iter().map(|layer| layer.id.0).collect();
        for (id, path) in layers {
            if id >= given.layers || skipped.layers.contains(&id) {
                found.newer.push(path);
            } else if !known.contains(&id) {
                found.layers.push(path);
            }
        }
        found.newer.sort_unstable();
        Ok(found)
    }

    fn warn_of_newer(&self) {
        for path in &self.newer {
            tracing::warn!(path = %path.display(), "keeping a file that is newer than the state database");
        }
    }
}

/// Returns images and layer directories that are newer than the database, which was then restored
/// from an older copy.
pub(super) fn newer_than(db: &StateDb, layout: &Layout) -> Result<Vec<PathBuf>> {
    Ok(Found::list(db, layout)?.newer)
}

/// Returns the entries of a directory whose names envfs uses, with their ids. Other names are
/// ignored, such as those that NFS creates when a file is removed while it is open.
fn entries(dir: &Path, id_of: impl Fn(&str) -> Option<i64>) -> Vec<(i64, PathBuf)> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) => {
            // Opening the view reports the problem.
            tracing::warn!(directory = %dir.display(), "cannot read a directory of the store: {e}");
            return Vec::new();
        }
    };
    let found = listing.flatten().filter_map(|entry| {
        let id = id_of(entry.file_name().to_str()?)?;
        Some((id, entry.path()))
    });
    found.collect()
}

/// Returns the id of the image with this file name, finished or not.
fn image_id(name: &str) -> Option<i64> {
    let number = match name.strip_prefix('.') {
        Some(rest) => rest.strip_suffix(".sqfs.part")?,
        None => name.strip_suffix(".sqfs")?,
    };
    layer_id(number)
}

fn layer_id(name: &str) -> Option<i64> {
    let id: i64 = name.parse().ok()?;
    (id > 0 && id < i64::MAX && id.to_string() == name).then_some(id)
}

/// Removes a directory tree that contains only directories. Returns false and removes nothing if it
/// contains anything else.
fn remove_empty(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(false);
    }
    let mut is_empty = true;
    walk::for_each_file(path, &mut |_| {
        is_empty = false;
        false
    });
    if is_empty {
        walk::remove_directories(path)?;
    }
    Ok(is_empty)
}

/// Drops the changes of a relocation whose process died. Called before the view is opened.
pub(super) fn revert_relocation(db: &StateDb, layout: &Layout) -> Result<()> {
    if !db.is_relocating()? {
        return Ok(());
    }
    tracing::warn!("reverting a relocation that was interrupted");
    let fresh = db.reserve_layer()?;
    let path = layout.layer(fresh);
    UpperDir::create(&path, &layout.strays()).context("create", &path)?;
    Ok(db.revert_relocation(fresh)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_valid_names_have_ids() {
        for (name, id) in [
            ("7.sqfs", Some(7)),
            (".12.sqfs.part", Some(12)),
            ("12.sqfs.part", None),
            (".12.sqfs", None),
            ("07.sqfs", None),
            ("+7.sqfs", None),
            ("0.sqfs", None),
            ("-1.sqfs", None),
            (".nfs0000001", None),
            ("unknown", None),
        ] {
            assert_eq!(image_id(name), id, "{name}");
        }
        assert_eq!((layer_id("3"), layer_id("3.old")), (Some(3), None));
    }

    #[test]
    fn a_tree_with_a_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("3");
        let deep = layer.join("upper/a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir(layer.join("work")).unwrap();
        fs::write(deep.join("file"), "").unwrap();
        assert!(!remove_empty(&layer).unwrap());
        assert!(layer.join("work").exists());
        assert!(!remove_empty(&deep.join("file")).unwrap());
        fs::remove_file(deep.join("file")).unwrap();
        assert!(remove_empty(&layer).unwrap());
        assert!(!layer.exists());
    }
}
