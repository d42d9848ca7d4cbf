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
    Bytes, HeldIn, Layer, LayerListing, Listing, Lookup, Parents, Place, SeekTarget, SharedListing,
    Xattr, chain,
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
    /// The stack without the topmost frozen upper.
    below: Option<Arc<LowerStack>>,
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
    /// Returns a stack of images, ordered from the top.
    pub fn new(images: Vec<Arc<ImageLayer>>) -> LowerStack {
        LowerStack::with(Vec::new(), images, None)
    }

    /// Returns the stack of a frozen upper over `below`.
    pub(crate) fn over(layer: Arc<FrozenLayer>, below: Arc<LowerStack>) -> LowerStack {
        let mut frozen = vec![layer];
        frozen.extend_from_slice(&below.frozen);
        let images = below.images.clone();
        LowerStack::with(frozen, images, Some(below))
    }

    fn with(
        frozen: Vec<Arc<FrozenLayer>>,
        images: Vec<Arc<ImageLayer>>,
        below: Option<Arc<LowerStack>>,
    ) -> LowerStack {
        LowerStack {
            frozen,
            images,
            below,
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
        match &self.below {
            Some(below) => below.committed(),
            None => self.clone(),
        }
    }

    /// Returns the images as layers, top first.
    fn image_layers(&self) -> impl Iterator<Item = &dyn Layer> {
        self.images.iter().map(|layer| &**layer as &dyn Layer)
    }

    /// Returns the topmost frozen upper and the stack below it.
    pub(super) fn top(&self) -> Option<(&Arc<FrozenLayer>, &Arc<LowerStack>)> {
        self.frozen.first().zip(self.below.as_ref())
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
    pub fn parent(&self, dir: Ino) -> Result<Option<Place>> {
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

/// Layers that are put on a stack from the bottom: images first.
#[derive(Debug, Default)]
pub(super) struct StackBuilder {
    /// From the top. Empty as soon as `stack` holds them.
    images: Vec<Arc<ImageLayer>>,
    stack: Option<Arc<LowerStack>>,
}

impl StackBuilder {
    /// Adds an image. Fails if there is an upper below it.
    pub(super) fn push_image(&mut self, image: ImageLayer) -> Result<()> {
        if self.stack.is_some() {
            let why = "the stack has an image above an upper";
            return Err(Error::Inconsistent(why.to_owned()));
        }
        self.images.insert(0, Arc::new(image));
        Ok(())
    }

    /// Adds a frozen upper over the stack so far.
    pub(super) fn push_frozen(&mut self, layer: FrozenLayer) -> Result<()> {
        let below = self.stack()?;
        self.stack = Some(Arc::new(LowerStack::over(Arc::new(layer), below)));
        Ok(())
    }

    /// Returns the stack so far, over which uppers can be put. Fails if there is no image.
    pub(super) fn stack(&mut self) -> Result<Arc<LowerStack>> {
        if self.stack.is_none() && self.images.is_empty() {
            let why = "the stack has no image";
            return Err(Error::Inconsistent(why.to_owned()));
        }
        let images = &mut self.images;
        let stack =
            (self.stack).get_or_insert_with(|| Arc::new(LowerStack::new(std::mem::take(images))));
        Ok(stack.clone())
    }
}

impl Parents for LowerStack {
    fn parent(&self, dir: Ino) -> Result<Option<Place>> {
        LowerStack::parent(self, dir)
    }
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
