//! The access profile of an environment: what was used first after its mounts.
//!
//! It has two parts. The *blocks* of one image, so that they can be decompressed ahead of use after
//! the next mount; they count only for that image. The *files* by identity, which is the same in
//! every image of the environment; a new image begins with their data.
//!
//! It is a hint in a file of its own. A profile that is missing or damaged counts as empty, and
//! nothing fails because of it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::Hash;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{CommitError, Result};
use crate::environment::Layout;
use crate::object::{Ino, Kind};
use crate::squashfs::reader::{BlockUse, MAX_FILE_USES, MAX_USES};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::StateDb;
use crate::sys::regular;
use crate::union::{ImageLayer, LowerStack};

/// The first bytes of the file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"envprof1";
/// The size limit of a profile, in bytes.
const MAX_BYTES: u64 = 32 * MAX_USES as u64 + 10 * MAX_FILE_USES as u64;

/// Identifies an image among those of one environment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What was used first, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The image that has the blocks.
    image: ImageKey,
    blocks: Vec<BlockUse>,
    files: Vec<Ino>,
}

impl Profile {
    /// Returns what was used of an image since [`Image::record_uses`].
    pub fn recorded(layer: &ImageLayer) -> Profile {
        let (image, ids) = (layer.image(), layer.ids());
        let files = image.file_uses();
        Profile {
            image: ImageKey::of(image),
            blocks: image.uses(),
            files: files
                .iter()
                .filter_map(|number| ids.ino_of(*number))
                .collect(),
        }
    }

    /// Returns whether nothing was used.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.files.is_empty()
    }

    /// Returns the files, which need not exist any more.
    pub fn files(&self) -> &[Ino] {
        &self.files
    }

    /// Returns the blocks of an image. Empty if they are of another one.
    pub fn into_blocks_of(self, image: &Image) -> Vec<BlockUse> {
        match self.image == ImageKey::of(image) {
            true => self.blocks,
            false => Vec::new(),
        }
    }

    /// Adds what an earlier profile has in addition, up to the limits.
    pub fn followed_by(mut self, earlier: Profile) -> Profile {
        if earlier.image == self.image {
            append(&mut self.blocks, earlier.blocks, MAX_USES);
        }
        append(&mut self.files, earlier.files, MAX_FILE_USES);
        self
    }

    /// Reads the profile in a file. It is empty if the file does not exist or is damaged.
    pub fn read(path: &Path) -> io::Result<Profile> {
        let bytes = match regular::read(path, MAX_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Profile::default()),
            read => read?,
        };
        let body = bytes.strip_prefix(MAGIC).unwrap_or_default();
        Ok(postcard::from_bytes(body).unwrap_or_default())
    }

    /// Replaces the file. It need not survive power loss.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let bytes = postcard::to_extend(self, MAGIC.to_vec()).map_err(io::Error::other)?;
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
}

/// Appends the elements that are not there yet, up to a length of `limit`.
fn append<T: Copy + Eq + Hash>(to: &mut Vec<T>, more: Vec<T>, limit: usize) {
    let known: HashSet<T> = to.iter().copied().collect();
    to.extend(more.into_iter().filter(|one| !known.contains(one)));
    to.truncate(limit);
}

/// Returns the files of an environment's profile, without an error if it cannot be read.
pub(super) fn files_of(layout: &Layout) -> Vec<Ino> {
    match Profile::read(&layout.profile()) {
        Ok(profile) => profile.files,
        Err(error) => {
            tracing::debug!(%error, "no access profile");
            Vec::new()
        }
    }
}

/// Returns the paths of the files in an environment's profile, in order, as the current revision
/// has them. Of a file with several names, the first found.
pub fn paths_used_first(layout: &Layout, db: &StateDb) -> Result<Vec<PathBuf>> {
    let files = files_of(layout);
    let current = db.current_revision()?.ok_or(CommitError::NoEarlier)?;
    let row = db.image(current.image)?.ok_or(CommitError::NoEarlier)?;
    let ids = db.id_map(row.id)?.ok_or(CommitError::NoEarlier)?;
    let path = layout.image(&row.file);
    let image = match row.offset {
        Some(offset) => Image::open_at(path, offset, ReaderOptions::default())?,
        None => Image::open(path, ReaderOptions::default())?,
    };
    let layer = Arc::new(ImageLayer::new(image, ids));
    let view = LowerStack::new(vec![layer]);
    let rank = files.iter().enumerate().map(|(at, ino)| (*ino, at));
    let mut wanted: HashMap<Ino, usize> = rank.collect();
    let mut found: Vec<(usize, PathBuf)> = Vec::new();
    let mut pending = vec![(Ino::ROOT, PathBuf::new())];
    while let Some((dir, path)) = pending.pop() {
        if wanted.is_empty() {
            break;
        }
        let listing = view.list(dir)?;
        let mut below = Vec::new();
        for (name, ino, kind) in listing.iter() {
            if kind == Kind::Directory {
                below.push((ino, path.join(OsStr::from_bytes(name))));
            } else if kind == Kind::File
                && let Some(at) = wanted.remove(&ino)
            {
                found.push((at, path.join(OsStr::from_bytes(name))));
            }
        }
        pending.extend(below.into_iter().rev());
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn files(numbers: &[u64]) -> Profile {
        Profile {
            files: numbers.iter().copied().map(Ino).collect(),
            ..Profile::default()
        }
    }

    #[test]
    fn files_of_earlier_mounts_follow_once_up_to_the_limit() {
        let both = files(&[5, 3]).followed_by(files(&[3, 9, 5, 2]));
        assert_eq!(both, files(&[5, 3, 9, 2]));
        let many: Vec<u64> = (0..2 * MAX_FILE_USES as u64).collect();
        assert_eq!(both.followed_by(files(&many)).files.len(), MAX_FILE_USES);
    }

    #[test]
    fn a_damaged_profile_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile");
        assert_eq!(Profile::read(&path).unwrap(), Profile::default());
        files(&[7, 8]).write(&path).unwrap();
        assert_eq!(Profile::read(&path).unwrap(), files(&[7, 8]));
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(Profile::read(&path).unwrap(), Profile::default());
        }
        // A length that no memory could hold.
        fs::write(
            &path,
            [&MAGIC[..], &[0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat(),
        )
        .unwrap();
        assert_eq!(Profile::read(&path).unwrap(), Profile::default());
    }
}
