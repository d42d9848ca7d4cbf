//! The access profile of an environment: which blocks of its image were used first at the last
//! mount, so that they are decompressed ahead of their use at the next.
//!
//! It is a hint in a file of its own. None, a damaged one, or one of another image is as good as an
//! empty one; nothing waits for it and nothing fails with it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::squashfs::Image;
use crate::squashfs::reader::{BlockUse, MAX_USES};
use crate::sys::regular;
use crate::union::Union;

/// First bytes of the file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"envprof1";
/// No profile is larger.
const MAX_BYTES: u64 = 32 * MAX_USES as u64;

/// Which image a profile is of: what two images of one environment do not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Of {
    made: u32,
    bytes: u64,
    inodes: u32,
}

impl Of {
    fn image(image: &Image) -> Of {
        let superblock = image.superblock();
        Of {
            made: superblock.mkfs_time,
            bytes: superblock.bytes_used,
            inodes: superblock.inodes,
        }
    }
}

/// The profile of a mount, being taken.
#[derive(Debug)]
pub(super) struct Profile {
    path: PathBuf,
}

impl Profile {
    /// Begins to note what is used of the image of a view, and to decompress ahead of use what was used
    /// the last time.
    pub(super) fn begin(path: PathBuf, union: &Union) -> Profile {
        with_image(union, |image| {
            image.note_uses();
            match read(&path, Of::image(image)) {
                Ok(order) if !order.is_empty() => {
                    let ahead = image.decompress_ahead(order);
                    let started = std::thread::Builder::new()
                        .name(String::from("ahead"))
                        .spawn(ahead);
                    if let Err(error) = started {
                        tracing::debug!(%error, "nothing is decompressed ahead of use");
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "no access profile"),
            }
        });
        Profile { path }
    }

    /// Writes what was used since. Where little was used, what was known before stays behind it.
    pub(super) fn end(&self, union: &Union) {
        with_image(union, |image| {
            let mut order = image.uses();
            if order.is_empty() {
                return;
            }
            let of = Of::image(image);
            if let Ok(before) = read(&self.path, of) {
                let known: std::collections::HashSet<BlockUse> = order.iter().copied().collect();
                order.extend(before.into_iter().filter(|block| !known.contains(block)));
                order.truncate(MAX_USES);
            }
            if let Err(error) = write(&self.path, of, &order) {
                tracing::warn!(%error, "cannot keep the access profile");
            }
        });
    }
}

/// Does something with the image of a view that has exactly one.
fn with_image(union: &Union, work: impl FnOnce(&Image)) {
    let lower = union.lower();
    if let [layer] = lower.images() {
        work(layer.image());
    }
}

/// Reads the profile of an image; empty where there is none of it.
fn read(path: &Path, of: Of) -> io::Result<Vec<BlockUse>> {
    let bytes = match regular::read(path, MAX_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let Some(body) = bytes.strip_prefix(MAGIC) else {
        return Ok(Vec::new());
    };
    match postcard::from_bytes::<(Of, Vec<BlockUse>)>(body) {
        Ok((found, order)) if found == of => Ok(order),
        _ => Ok(Vec::new()),
    }
}

/// Writes a profile in the place of the one before. It need not survive power loss.
fn write(path: &Path, of: Of, order: &[BlockUse]) -> io::Result<()> {
    let bytes = postcard::to_extend(&(of, order), MAGIC.to_vec()).map_err(io::Error::other)?;
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // What lies there by now is somebody else's and is not written to.
    let written = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // On a full disk not even its empty file is wanted; if it cannot go, it does no harm.
        fs::remove_file(&unfinished).ok();
    }
    written
}
