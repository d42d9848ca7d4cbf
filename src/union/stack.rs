//! The merged view of the layers below the writable upper.
//!
//! A stack never changes: an operation that changes the layers replaces it. So merged listings are
//! cached without invalidation. The lock of this cache is taken last and not held while layers are
//! read.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use nix::errno::Errno;

use super::layer::{
    Bytes, HeldIn, Layer, LayerListing, Listing, Lookup, SeekTarget, SharedListing, Xattr,
};
use super::{Error, FrozenLayer, ImageLayer, Result};
use crate::object::{Attr, Ino};

/// Limits of the cache of merged listings: their number, and their size in bytes.
const LISTINGS_KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
const LISTINGS_WEIGHT: usize = 8 << 20;

/// An immutable stack of read-only layers: frozen uppers over at least one image.
#[derive(Debug)]
pub struct LowerStack {
    frozen: Vec<Arc<FrozenLayer>>,
    images: Vec<Arc<ImageLayer>>,
    listings: Mutex<Listings>,
}

/// The layer that holds the content of a file.
#[derive(Debug, Clone)]
pub(crate) enum ContentLayer {
    /// A frozen upper.
    Frozen(Arc<FrozenLayer>),
    /// An image.
    Image(Arc<ImageLayer>),
}

impl Deref for ContentLayer {
    type Target = dyn Layer;

    fn deref(&self) -> &(dyn Layer + 'static) {
        match self {
            ContentLayer::Frozen(layer) => &**layer,
            ContentLayer::Image(layer) => &**layer,
        }
    }
}

#[derive(Debug)]
struct Listings {
    known: LruCache<Ino, SharedListing>,
    weight: usize,
}

impl LowerStack {
    /// Returns a stack of these layers. Both lists are ordered from the top.
    pub fn new(frozen: Vec<Arc<FrozenLayer>>, images: Vec<Arc<ImageLayer>>) -> LowerStack {
        LowerStack {
            frozen,
            images,
            listings: Mutex::new(Listings {
                known: LruCache::new(LISTINGS_KEPT),
                weight: 0,
            }),
        }
    }

    /// Returns the frozen uppers, top first. They hold changes that are not in an image yet.
    pub fn frozen(&self) -> &[Arc<FrozenLayer>] {
        &self.frozen
    }

    /// Returns the images, top first. They are the committed view.
    pub fn images(&self) -> &[Arc<ImageLayer>] {
        &self.images
    }

    /// Returns the stack without the frozen uppers: the committed view.
    pub(crate) fn committed(self: &Arc<Self>) -> Arc<LowerStack> {
        match self.frozen.last() {
            Some(lowest) => lowest.below().clone(),
            None => self.clone(),
        }
    }

    /// Returns the images as layers, top first.
    fn image_layers(&self) -> impl Iterator<Item = &dyn Layer> {
        self.images.iter().map(|layer| &**layer as &dyn Layer)
    }

    /// Iterates over all layers, top first.
    fn layers(&self) -> impl Iterator<Item = &dyn Layer> {
        let frozen = self.frozen.iter().map(|layer| &**layer as &dyn Layer);
        frozen.chain(self.image_layers())
    }

    /// Looks up a name of a directory.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        for layer in self.layers() {
            match layer.lookup(dir, name)? {
                Lookup::Unknown => {}
                Lookup::Whiteout => return Ok(None),
                Lookup::Found(ino) => return Ok(Some(ino)),
            }
        }
        Ok(None)
    }

    /// Returns the attributes of an object, or `None` if no layer has it.
    pub fn attr(&self, ino: Ino) -> Result<Option<Attr>> {
        let mut found: Option<Attr> = None;
        let mut in_images = false;
        let frozen = self.frozen.len();
        for (depth, layer) in self.layers().enumerate() {
            if in_images && depth < frozen {
                continue;
            }
            let Some(inode) = layer.inode(ino)? else {
                continue;
            };
            in_images |= inode.content == HeldIn::Images;
            let attr = match found.take() {
                None => inode.attr,
                Some(above) => above.with_content_of(&inode.attr),
            };
            if inode.content == HeldIn::ThisLayer {
                return Ok(Some(attr));
            }
            found = Some(attr);
        }
        if found.is_some() {
            return Err(Error::Inconsistent(format!(
                "object {ino} has attributes but no content"
            )));
        }
        Ok(None)
    }

    /// Returns the merged listing of a directory, which is empty if no layer has the directory.
    pub fn list(&self, dir: Ino) -> Result<SharedListing> {
        if let Some(known) = self.listings().known.get(&dir) {
            return Ok(known.clone());
        }
        let mut parts = Vec::new();
        for layer in self.layers() {
            if let Some(part) = layer.list(dir)? {
                parts.push(part);
            }
        }
        let listing = Arc::new(merge(parts));
        let mut listings = self.listings();
        listings.weight += listing.weight();
        if let Some((_, old)) = listings.known.push(dir, listing.clone()) {
            listings.weight -= old.weight();
        }
        while listings.weight > LISTINGS_WEIGHT && listings.known.len() > 1 {
            match listings.known.pop_lru() {
                Some((_, old)) => listings.weight -= old.weight(),
                None => break,
            }
        }
        Ok(listing)
    }

    fn listings(&self) -> std::sync::MutexGuard<'_, Listings> {
        // A cache: after a panic its entries are still complete.
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the parent of a directory and its name there.
    pub fn parent(&self, dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        for layer in self.layers() {
            if let Some(found) = layer.parent(dir)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns the path of a directory from the root, outermost first.
    pub fn chain(&self, dir: Ino) -> Result<Vec<(Ino, Box<[u8]>)>> {
        chain(dir, |ino| self.parent(ino))
    }

    /// Returns the layer that has the content of a regular file.
    pub(crate) fn content(&self, ino: Ino) -> Result<ContentLayer> {
        let place = |layer: &dyn Layer| -> Result<Option<HeldIn>> {
            Ok(layer.inode(ino)?.map(|inode| inode.content))
        };
        for layer in &self.frozen {
            match place(&**layer)? {
                Some(HeldIn::ThisLayer) => return Ok(ContentLayer::Frozen(layer.clone())),
                Some(HeldIn::Images) => break,
                Some(HeldIn::LowerLayer) | None => {}
            }
        }
        for layer in &self.images {
            if place(&**layer)? == Some(HeldIn::ThisLayer) {
                return Ok(ContentLayer::Image(layer.clone()));
            }
        }
        Err(Errno::ESTALE.into())
    }

    /// Reads file content; see `Layer::read`.
    pub fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        self.content(ino)?.read(ino, offset, len)
    }

    /// Finds the next data or hole; see `Layer::seek`.
    pub fn seek(&self, ino: Ino, offset: u64, target: SeekTarget) -> Result<Option<u64>> {
        self.content(ino)?.seek(ino, offset, target)
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        for layer in self.layers() {
            if layer.inode(ino)?.is_some() {
                return layer.read_link(ino);
            }
        }
        Err(Errno::ESTALE.into())
    }

    /// Returns all extended attributes of an object.
    pub fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        for layer in self.layers() {
            if let Some(inode) = layer.inode(ino)?
                && inode.xattrs == HeldIn::ThisLayer
            {
                return layer.xattrs(ino);
            }
        }
        Ok(Vec::new())
    }
}

/// Returns the path of a directory from the root, outermost first: each directory with its name.
///
/// `ESTALE` if the directory, or one above it, has no parent.
pub(super) fn chain(
    dir: Ino,
    parent: impl Fn(Ino) -> Result<Option<(Ino, Box<[u8]>)>>,
) -> Result<Vec<(Ino, Box<[u8]>)>> {
    /// Deeper than any path that a file system can resolve: the rows are damaged and form a loop.
    const DEPTH_LIMIT: usize = 1 << 16;
    let mut chain = Vec::new();
    let mut at = dir;
    while at != Ino::ROOT {
        let Some((up, name)) = parent(at)? else {
            return Err(Errno::ESTALE.into());
        };
        chain.push((at, name));
        at = up;
        if chain.len() > DEPTH_LIMIT {
            return Err(Error::Inconsistent(format!(
                "directory {dir} is its own ancestor"
            )));
        }
    }
    chain.reverse();
    Ok(chain)
}

/// Merges the listings of layers, top first. For each name the topmost layer that has it decides.
fn merge(mut parts: Vec<LayerListing>) -> Listing {
    let mut listing = Listing::default();
    if parts.len() == 1 {
        for (name, target) in parts.remove(0) {
            if let Some((ino, kind)) = target {
                listing.push(&name, ino, kind);
            }
        }
        return listing;
    }
    let mut all = std::collections::BTreeMap::new();
    for part in parts.into_iter().rev() {
        all.extend(part);
    }
    for (name, target) in all {
        if let Some((ino, kind)) = target {
            listing.push(&name, ino, kind);
        }
    }
    listing
}
