//! Stacks of several images, with the semantics of overlayfs's lower directories.
//!
//! A stack merges by identity, but independent images have no common identities. So before the
//! first mount the directories of each upper image are walked together with the view below it. A
//! directory at the path of a lower directory that is not opaque gets the identity of the lower
//! one; all other objects get new identities. After that a merged directory is like any other.
//!
//! The link counts in an image do not include names that an image above hides, or subdirectories
//! that it adds. The walk also computes the correct counts and stores those that differ.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use nix::errno::Errno;

use super::image_layer::{ImageLayer, Links};
use super::overlay_marks::mark;
use super::stack::LowerStack;
use super::{Error, Result};
use crate::object::{Ino, Kind};
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeKind, InodeRef};
use crate::state::{BadIdMap, IdMap, IdRun, ImageId, LinksIn, StateDb};

/// Assigns identities to the objects of images, top first, and returns the map of each image. Link
/// counts that differ from those in the images are stored in the database. The caller then adds the
/// images to the stack.
///
/// [`Error::Redirected`] if a directory that would be merged has the attribute `overlay.redirect`.
pub fn identify(db: &StateDb, images: &[Image]) -> Result<Vec<IdMap>> {
    let (maps, links) = merge(images)?;
    if images.len() > 1 {
        db.set_link_counts(LinksIn::Stack, &links)?;
    }
    Ok(maps)
}

/// Returns the link counts that [`identify`] stored.
pub(super) fn links(db: &StateDb) -> Result<Links> {
    Ok(db.link_counts(LinksIn::Stack)?)
}

/// Stores link counts of objects of a single image for which the image has another. They must be
/// correct, because an object is removed with its last name.
pub(crate) fn count_links(db: &StateDb, image: ImageId, links: Links) -> Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    Ok(db.set_link_counts(LinksIn::Image(image), &links)?)
}

/// Returns the link counts that [`count_links`] stored.
pub(super) fn counted_links(db: &StateDb, image: ImageId) -> Result<Links> {
    Ok(db.link_counts(LinksIn::Image(image))?)
}

fn merge(images: &[Image]) -> Result<(Vec<IdMap>, Links)> {
    let mut links = Links::new();
    let mut maps: Vec<IdMap> = Vec::new();
    let mut layers: Vec<Arc<ImageLayer>> = Vec::new();
    let mut free = 1;
    for image in images.iter().rev() {
        let root = image.inode(image.root())?.number;
        let inodes = image.superblock().inodes;
        let map = if layers.is_empty() {
            IdMap::identity(inodes, root).map_err(bad_map)?
        } else {
            let mut walk = Walk {
                image,
                below: LowerStack::new(layers.clone()),
                merged: BTreeMap::new(),
                hidden: HashSet::new(),
                links: &mut links,
            };
            walk.run()?;
            map_of(&walk.merged, inodes, free).map_err(bad_map)?
        };
        free = free.max(map.max_ino().map_or(0, |ino| ino.0) + 1);
        let layer = ImageLayer::new(image.clone(), map.clone()).in_stack(Arc::default());
        layers.insert(0, Arc::new(layer));
        maps.insert(0, map);
    }
    Ok((maps, links))
}

/// Returns the map of an image: `merged` numbers have the given identities, all others new ones
/// from `free` on.
fn map_of(merged: &BTreeMap<u32, Ino>, inodes: u32, mut free: u64) -> Result<IdMap, BadIdMap> {
    let mut runs = Vec::with_capacity(merged.len() * 2 + 1);
    let mut next: u32 = 1;
    let mut fill = |runs: &mut Vec<IdRun>, from: u32, end: u32| {
        if let Some(count) = end.checked_sub(from).filter(|count| *count > 0) {
            runs.push(IdRun {
                first_number: from,
                first_ino: free,
                count,
            });
            free += u64::from(count);
        }
    };
    for (&number, ino) in merged {
        fill(&mut runs, next, number);
        runs.push(IdRun {
            first_number: number,
            first_ino: ino.0,
            count: 1,
        });
        next = number.saturating_add(1);
    }
    fill(&mut runs, next, inodes.saturating_add(1));
    IdMap::from_runs(runs)
}

fn bad_map(error: BadIdMap) -> Error {
    Error::Inconsistent(error.to_string())
}

/// The walk of one image together with the view below it.
struct Walk<'a> {
    image: &'a Image,
    below: LowerStack,
    /// The inode numbers of directories that are merged, with their identities.
    merged: BTreeMap<u32, Ino>,
    /// Lower directories that can no longer be reached.
    hidden: HashSet<Ino>,
    links: &'a mut Links,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        // Like overlayfs: the roots are merged even if one is marked opaque.
        let mut pending = vec![(self.image.root(), Ino::ROOT)];
        while let Some((place, ino)) = pending.pop() {
            self.directory(place, ino, &mut pending)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        place: InodeRef,
        ino: Ino,
        pending: &mut Vec<(InodeRef, Ino)>,
    ) -> Result<()> {
        let dir = self.image.inode(place)?;
        if self.merged.insert(dir.number, ino).is_some() {
            let text = format!("directory {} of the image has two names", dir.number);
            return Err(Error::Inconsistent(text));
        }
        let old = self.below.list(ino)?;
        let is_dir = |(_, _, kind): &(&[u8], Ino, Kind)| *kind == Kind::Directory;
        let mut subdirectories = old.iter().filter(is_dir).count();
        // The count without the layers below.
        let mut own: u32 = 2;
        for (name, entry) in self.image.read_dir(&dir)?.iter() {
            let was = old.find(name);
            if entry.kind == InodeKind::Directory {
                own = own.saturating_add(1);
                let inode = self.image.entry_inode(&entry)?;
                if mark(self.image, &inode, b"redirect")?.is_some() {
                    let name = String::from_utf8_lossy(name);
                    return Err(Error::Redirected(name.into_owned()));
                }
                match was {
                    Some((ino, Kind::Directory)) if !self.is_opaque(&inode)? => {
                        pending.push((entry.inode, ino));
                        continue;
                    }
                    _ => subdirectories += 1,
                }
            }
            if let Some((gone, kind)) = was {
                if kind == Kind::Directory {
                    subdirectories = subdirectories.saturating_sub(1);
                }
                self.hide(gone, kind)?;
            }
        }
        let links = u32::try_from(subdirectories)
            .unwrap_or(u32::MAX)
            .saturating_add(2);
        if links == dir.nlink && links == own {
            self.links.remove(&ino);
        } else {
            self.links.insert(ino, links);
        }
        Ok(())
    }

    fn is_opaque(&self, inode: &Inode) -> Result<bool> {
        Ok(mark(self.image, inode, b"opaque")?.is_some_and(|value| value == b"y"))
    }

    /// Subtracts a name from a lower object. For a directory, all names in it are subtracted too.
    fn hide(&mut self, ino: Ino, kind: Kind) -> Result<()> {
        let mut pending = vec![(ino, kind)];
        while let Some((ino, kind)) = pending.pop() {
            if kind == Kind::Directory {
                if self.hidden.insert(ino) {
                    let listing = self.below.list(ino)?;
                    pending.extend(listing.iter().map(|(_, ino, kind)| (ino, kind)));
                }
                continue;
            }
            let links = match self.links.get(&ino) {
                Some(links) => *links,
                None => {
                    let attr = self.below.attr(ino)?;
                    attr.ok_or(Error::Posix(Errno::ESTALE))?.nlink
                }
            };
            if links > 1 {
                self.links.insert(ino, links - 1);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_between_merged_directories_get_new_identities() {
        let merged = BTreeMap::from([(2, Ino(7)), (3, Ino(1)), (6, Ino(4))]);
        let map = map_of(&merged, 7, 100).unwrap();
        let inos: Vec<u64> = (1..=7)
            .map(|number| map.ino_of(number).unwrap().0)
            .collect();
        assert_eq!(inos, [100, 7, 1, 101, 102, 4, 103]);
        assert_eq!(map.max_ino(), Some(Ino(103)));
        assert_eq!(
            map_of(&BTreeMap::from([(1, Ino(1))]), 1, 9).unwrap().len(),
            1
        );
    }
}
