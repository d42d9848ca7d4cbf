//! The files of an environment that a view uses.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use crate::state::{HomeId, LayerId};

/// The files of an environment.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The directory of image files.
    pub images: PathBuf,
    /// Whether the files there are symbolic links that this process created, to images elsewhere.
    pub images_are_links: bool,
    /// The directory of upper layers. Each is a directory named by its number.
    pub layers: PathBuf,
    /// The directory for files without a row, which are moved aside.
    pub strays: PathBuf,
}

impl Paths {
    /// Returns the directory of an upper layer.
    pub fn layer(&self, layer: LayerId) -> PathBuf {
        self.layers.join(layer.to_string())
    }

    /// Returns the spare directory of a layer, for a full disk.
    pub(super) fn spare(&self) -> PathBuf {
        self.strays.with_file_name("spare")
    }

    /// Returns the identity of the environment's directory. A copy has another: no copying tool can
    /// preserve the time of birth.
    pub(super) fn identity(&self) -> std::io::Result<HomeId> {
        let meta = self.layers.join("..").metadata();
        let meta = meta.map_err(|e| {
            std::io::Error::new(e.kind(), format!("{}: {e}", self.layers.display()))
        })?;
        let made = meta.created().ok();
        let made = made.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(HomeId {
            ino: meta.ino(),
            // Only compared, so an overflow in the year 2262 is harmless.
            born: made.map_or(0, |since| since.as_nanos() as i64),
        })
    }
}
