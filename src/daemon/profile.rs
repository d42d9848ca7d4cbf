//! The access profile of an environment: the blocks of its image that were used first after the
//! last mount, so that they can be decompressed ahead of use after the next.
//!
//! It is a hint in a file of its own. A profile that is missing, damaged or of another image counts
//! as empty. No operation waits for it or fails because of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::squashfs::Image;
use crate::squashfs::reader::{BlockUse, MAX_USES};
use crate::sys::regular;
use crate::union::Union;

/// The first bytes of the file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"envprof1";
/// The size limit of a profile, in bytes.
const MAX_BYTES: u64 = 32 * MAX_USES as u64;

/// Identifies an image among those of one environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ImageKey {
    created: u32,
    bytes: u64,
    inodes: u32,
}

impl ImageKey {
    fn of(image: &Image) -> ImageKey {
        let superblock = image.superblock();
        ImageKey {
            created: superblock.mkfs_time,
            bytes: superblock.bytes_used,
            inodes: superblock.inodes,
        }
    }
}

/// The profile that a mount records.
#[derive(Debug)]
pub(super) struct Profile {
    path: PathBuf,
}

impl Profile {
    /// Starts recording the blocks that are used, and decompressing those that were used first the
    /// last time.
    pub(super) fn start(path: PathBuf, union: &Union) -> Profile {
        with_image(union, |image| {
            image.record_uses();
            match read(&path, ImageKey::of(image)) {
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
        Profile { path }
    }

    /// Writes the recorded blocks, followed by those of the previous profile up to the limit.
    pub(super) fn finish(&self, union: &Union) {
        with_image(union, |image| {
            let mut order = image.uses();
            if order.is_empty() {
                return;
            }
            let key = ImageKey::of(image);
            if let Ok(before) = read(&self.path, key) {
                let known: std::collections::HashSet<BlockUse> = order.iter().copied().collect();
                order.extend(before.into_iter().filter(|block| !known.contains(block)));
                order.truncate(MAX_USES);
            }
            if let Err(error) = write(&self.path, key, &order) {
                tracing::warn!(%error, "cannot write the access profile");
            }
        });
    }
}

/// Calls `work` with the image of a view that has exactly one.
fn with_image(union: &Union, work: impl FnOnce(&Image)) {
    let lower = union.lower();
    if let [layer] = lower.images() {
        work(layer.image());
    }
}

/// Reads the profile of an image. It is empty if there is none.
fn read(path: &Path, key: ImageKey) -> io::Result<Vec<BlockUse>> {
    let bytes = match regular::read(path, MAX_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let Some(body) = bytes.strip_prefix(MAGIC) else {
        return Ok(Vec::new());
    };
    match postcard::from_bytes::<(ImageKey, Vec<BlockUse>)>(body) {
        Ok((found, order)) if found == key => Ok(order),
        _ => Ok(Vec::new()),
    }
}

/// Replaces the profile. It need not survive power loss.
fn write(path: &Path, key: ImageKey, order: &[BlockUse]) -> io::Result<()> {
    let bytes = postcard::to_extend(&(key, order), MAGIC.to_vec()).map_err(io::Error::other)?;
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // create_new: another process may have created the file in between.
    let written = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // Do not leave an incomplete file on a full disk. If this fails, the file does no harm.
        fs::remove_file(&unfinished).ok();
    }
    written
}
