//! What comes after a flip, and after a crash: removing what nothing refers to. Repeatable.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::Result;
use super::error::Context;
use crate::environment::Layout;
use crate::state::{ImageRow, LayerRole, StackPart, StateDb};

/// Removes retired layers, unfinished and unknown images. Never touches the stack, the trash, or an
/// image of the history. Removes nothing while an image of the stack is not there: what is left over
/// may then be all there is.
pub(super) fn sweep(db: &StateDb, layout: &Layout) -> Result<()> {
    if !sweep_retired(db, layout)? {
        return Ok(());
    }
    let known: HashSet<String> = db.images()?.into_iter().map(|image| image.file).collect();
    let images = layout.images();
    for entry in fs::read_dir(&images).context("read", &images)? {
        let entry = entry.context("read", &images)?;
        if !known.contains(&*entry.file_name().to_string_lossy()) {
            tracing::info!(file = %entry.path().display(), "removing an image that was not finished");
            fs::remove_file(entry.path()).context("remove", &entry.path())?;
        }
    }
    let layers: HashSet<String> = db
        .layers()?
        .into_iter()
        .map(|layer| layer.id.to_string())
        .collect();
    let dir = layout.layers();
    for entry in fs::read_dir(&dir).context("read", &dir)? {
        let entry = entry.context("read", &dir)?;
        if !layers.contains(&*entry.file_name().to_string_lossy()) {
            // Made for a rotation that did not happen: nothing was ever written to it.
            fs::remove_dir_all(entry.path()).context("remove", &entry.path())?;
        }
    }
    Ok(())
}

/// Returns the first image of the stack that is not there, or is shorter than its row says.
pub(super) fn missing_image(db: &StateDb, layout: &Layout) -> Result<Option<PathBuf>> {
    for part in db.stack()? {
        let StackPart::Image(id) = part.part else {
            continue;
        };
        let row = db.image(id)?;
        let path = |row: &ImageRow| layout.image(&row.file);
        let is_whole = |row: &ImageRow| {
            let found = fs::metadata(path(row));
            found.is_ok_and(|meta| meta.len() >= row.size)
        };
        if !row.as_ref().is_some_and(is_whole) {
            let unknown = || layout.image(&Layout::image_file_name(id));
            return Ok(Some(row.as_ref().map_or_else(unknown, path)));
        }
    }
    Ok(None)
}

/// Removes the layers whose content went into an image. Returns false if nothing may be removed.
pub(super) fn sweep_retired(db: &StateDb, layout: &Layout) -> Result<bool> {
    if let Some(image) = missing_image(db, layout)? {
        // Who opens the view says what is wrong with it.
        tracing::warn!(
            image = %image.display(),
            "an image of the stack is not there, or not whole: nothing is removed"
        );
        return Ok(false);
    }
    for layer in db.layers()? {
        if layer.role == LayerRole::Retired {
            remove_layer(db, layout, layer.id)?;
        }
    }
    Ok(true)
}

/// Removes an upper that is not in the stack: its files, then its rows.
pub(super) fn remove_layer(
    db: &StateDb,
    layout: &Layout,
    layer: crate::state::LayerId,
) -> Result<()> {
    let path = layout.layer(layer);
    match fs::remove_dir_all(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context("remove", &path),
    }
    db.drop_layer_rows(layer)?;
    Ok(db.forget_layer(layer)?)
}
