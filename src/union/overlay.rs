//! Several images one over another, read as overlayfs reads its lower directories.
//!
//! A stack merges by identity, while images made apart know nothing of each other. So before the
//! first mount the directories of an upper image are walked along the view below it: one that is at
//! the path of a directory there, and not opaque, *is* that directory and gets its identity. All
//! other objects get fresh ones. From then on nothing distinguishes a merged directory from any
//! other.
//!
//! Each image says how many names an object has, and cannot know of names that an image above
//! hides, or of subdirectories that it adds. Where that matters the true number is found in the
//! same walk.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use nix::errno::Errno;

use super::image_layer::ImageLayer;
use super::stack::LowerStack;
use super::{Error, Result};
use crate::object::{Ino, Kind};
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody, InodeKind, InodeRef};
use crate::state::{BadIdMap, IdMap, IdRun, ImageId, LinksIn, StateDb};

/// Where overlayfs keeps attributes of its own.
const RESERVED: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Number of names, of objects of which the images say another.
pub type Links = BTreeMap<Ino, u32>;

/// Returns true for an attribute that is overlayfs's own.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    RESERVED.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns true for a device that stands for "there is nothing here".
pub(super) fn is_whiteout(inode: &Inode) -> bool {
    matches!(inode.body, InodeBody::CharDevice(0))
}

/// Returns the value of an attribute of overlayfs, by its name without what all of them begin with.
pub(super) fn mark(image: &Image, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let all = image.xattrs(inode)?;
    let is_it = |found: &[u8]| {
        RESERVED
            .iter()
            .any(|prefix| found.strip_prefix(*prefix) == Some(name))
    };
    Ok(all
        .into_iter()
        .find(|(found, _)| is_it(found))
        .map(|(_, value)| value))
}

/// Gives the objects of images, top first, their identities, and returns the map of each. What else
/// must be known of them is stored; the images are to be put into the stack after this.
pub fn identify(db: &StateDb, images: &[Image]) -> Result<Vec<IdMap>> {
    let (maps, links) = merge(images)?;
    if images.len() > 1 {
        db.set_link_counts(LinksIn::Stack, &links)?;
    }
    Ok(maps)
}

/// Reads what [`identify`] stored.
pub(super) fn links(db: &StateDb) -> Result<Links> {
    Ok(db.link_counts(LinksIn::Stack)?)
}

/// Stores how many names objects of an image have, of which it says another number: the last name
/// to go takes the object along. For an image that is by itself.
pub fn count_links(db: &StateDb, image: ImageId, links: Links) -> Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    Ok(db.set_link_counts(LinksIn::Image(image), &links)?)
}

/// Reads what [`count_links`] stored.
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
                below: LowerStack::new(Vec::new(), layers.clone()),
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

/// The map of an image in which these numbers are these objects, and all others new ones from
/// `free` on.
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

/// The walk of one image along the view below it.
struct Walk<'a> {
    image: &'a Image,
    below: LowerStack,
    /// Numbers of directories that are there below, and which they are.
    merged: BTreeMap<u32, Ino>,
    /// Directories below that cannot be reached any more.
    hidden: HashSet<Ino>,
    links: &'a mut Links,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        // As overlayfs does it: the roots are merged, whatever they are marked with.
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
            let text = format!("directory {} of the image is in two places", dir.number);
            return Err(Error::Inconsistent(text));
        }
        let old = self.below.list(ino)?;
        let is_dir = |(_, _, kind): &(&[u8], Ino, Kind)| *kind == Kind::Directory;
        let mut subdirectories = old.iter().filter(is_dir).count();
        // What the layer shows by itself.
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

    /// Takes a name from an object below, and all names from what lies below that.
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

/// Stored form: an identity (64 bits) and a count (32 bits) after another, little-endian.
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_between_merged_directories_are_new_objects() {
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
