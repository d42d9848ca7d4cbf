//! Removes layers that have left the stack.

use std::fs;
use std::path::PathBuf;

use super::Result;
use super::error::Context;
use crate::environment::Layout;
use crate::state::{ImageRow, LayerId, LayerRole, RecordedLayer, StackPart, StateDb};
use crate::sys::walk;

/// Returns the first image of the stack that is missing or shorter than its row says.
pub(super) fn missing_image(db: &StateDb, layout: &Layout) -> Result<Option<PathBuf>> {
    for part in db.stack()? {
        let StackPart::Image(id) = part.part else {
            continue;
        };
        let row = db.image(id)?;
        let path = |row: &ImageRow| layout.image(&row.file);
        let is_whole = |row: &ImageRow| {
            let found = fs::symlink_metadata(path(row));
            found.is_ok_and(|meta| meta.is_file() && meta.len() >= row.size)
        };
        if !row.as_ref().is_some_and(is_whole) {
            let unknown = || layout.image(&Layout::image_file_name(id));
            return Ok(Some(row.as_ref().map_or_else(unknown, path)));
        }
    }
    Ok(None)
}

/// Removes the layers whose content is in an image, unless an undo needs them. Returns false if
/// nothing can be removed safely.
pub(super) fn sweep_retired(db: &StateDb, layout: &Layout) -> Result<bool> {
    if let Some(image) = missing_image(db, layout)? {
        // Opening the view reports the problem.
        tracing::warn!(
            image = %image.display(),
            "an image of the stack is missing or truncated: nothing is removed"
        );
        return Ok(false);
    }
    let recorded = db.recorded()?;
    let (below_trials, _) = db.below_trials()?;
    for layer in db.layers()? {
        if layer.role == LayerRole::Retired
            && !recorded.contains(&layer.id)
            && !below_trials.contains(&RecordedLayer::Upper(layer.id))
            && let Err(e) = remove_layer(db, layout, layer.id)
        {
            tracing::warn!(layer = layer.id.0, "cannot remove a retired layer: {e}");
        }
    }
    Ok(true)
}

/// Removes an upper that is not in the stack: its files, then its rows.
pub(super) fn remove_layer(db: &StateDb, layout: &Layout, layer: LayerId) -> Result<()> {
    remove_layer_files(layout, layer)?;
    Ok(db.forget_layer(layer)?)
}

/// Removes the files of an upper that is not in the stack.
pub(super) fn remove_layer_files(layout: &Layout, layer: LayerId) -> Result<()> {
    let path = layout.layer(layer);
    walk::remove_tree(&path).context("remove", &path)
}
