//! Records the access profile of a mount, and uses that of the mounts before.
//!
//! No operation waits for a profile or fails because of it.

use std::path::PathBuf;

use crate::commit::Profile;
use crate::union::{ImageLayer, Union};

/// The profile that a mount records.
#[derive(Debug)]
pub(super) struct Recording {
    path: PathBuf,
}

impl Recording {
    /// Starts recording what is used, and decompressing the blocks that were used first the last
    /// time.
    pub(super) fn start(path: PathBuf, union: &Union) -> Recording {
        with_image(union, |layer| {
            let image = layer.image();
            image.record_uses();
            match Profile::read(&path).map(|profile| profile.into_blocks_of(image)) {
                Ok(order) if !order.is_empty() => {
                    let ahead = image.decompress_ahead(order);
                    let started = std::thread::Builder::new()
                        .name(String::from("ahead"))
                        .spawn(ahead);
                    if let Err(error) = started {
                        tracing::debug!(%error, "cannot decompress blocks ahead of use");
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "no access profile"),
            }
        });
        Recording { path }
    }

    /// Writes what was used so far, followed by the previous profile.
    pub(super) fn save(&self, union: &Union) {
        with_image(union, |layer| {
            let recorded = Profile::recorded(layer);
            if recorded.is_empty() {
                return;
            }
            let earlier = Profile::read(&self.path).unwrap_or_default();
            if let Err(error) = recorded.followed_by(earlier).write(&self.path) {
                tracing::warn!(%error, "cannot write the access profile");
            }
        });
    }
}

/// Calls `work` with the image of a view that has exactly one.
fn with_image(union: &Union, work: impl FnOnce(&ImageLayer)) {
    let lower = union.lower();
    if let [layer] = lower.images() {
        work(layer);
    }
}
