//! A SquashFS image as a read-only layer: translates inode numbers to identities.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::layer::{Bytes, HeldIn, Layer, LayerInode, LayerListing, Lookup, SeekTarget};
use super::overlay_marks as marks;
use super::{Error, Result};
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody, InodeKind, InodeRef};
use crate::squashfs::reader::{Block, DirEntry, FileLayout};
use crate::state::IdMap;
use nix::errno::Errno;

/// The maximum number of cached places of directories: about 1 MiB.
const PLACES_LIMIT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(8191);

/// The parent of a directory, and the name of the directory there.
type Place = (Ino, Box<[u8]>);

/// Link counts of objects that differ from those in the images.
pub(crate) type Links = BTreeMap<Ino, u32>;

/// An image with the identities of its inodes.
pub struct ImageLayer {
    image: Image,
    ids: IdMap,
    /// Whether the image is one of several in a stack. Only then do the devices and attributes that
    /// overlayfs reserves have a meaning.
    is_stacked: bool,
    /// Link counts of objects for which the image has another.
    links: Arc<Links>,
    /// The link counts of directories by inode number, if the image may have wrong ones: some
    /// writers count all entries. Cached, because counting reads the whole directory.
    counted_links: Option<Mutex<LruCache<u32, u32>>>,
    /// The places of directories. An image stores the parent of a directory, but its name must be
    /// searched for in the parent. Cached, because many operations need the path of a directory.
    places: Mutex<LruCache<Ino, Place>>,
}

impl fmt::Debug for ImageLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageLayer")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl ImageLayer {
    /// Returns an image as a layer.
    pub fn new(image: Image, ids: IdMap) -> ImageLayer {
        ImageLayer {
            image,
            ids,
            is_stacked: false,
            links: Arc::default(),
            counted_links: None,
            places: Mutex::new(LruCache::new(PLACES_LIMIT)),
        }
    }

    /// Makes the layer one of several images in a stack.
    pub(super) fn in_stack(self, links: Arc<Links>) -> ImageLayer {
        ImageLayer {
            is_stacked: true,
            ..self.with_links(links)
        }
    }

    /// Overrides the link counts of these objects.
    pub(super) fn with_links(self, links: Arc<Links>) -> ImageLayer {
        ImageLayer { links, ..self }
    }

    /// Makes the layer count subdirectories instead of using the link counts of directories in the
    /// image.
    pub(super) fn counting_subdirectories(self) -> ImageLayer {
        ImageLayer {
            counted_links: Some(Mutex::new(LruCache::new(PLACES_LIMIT))),
            ..self
        }
    }

    /// Returns the link count of a directory: 2 and the number of its subdirectories. A count of 2
    /// in the image is used as it is, so that directories without subdirectories need not be read.
    fn directory_links(&self, inode: &Inode) -> Result<u32> {
        let Some(counted) = self.counted_links.as_ref().filter(|_| inode.nlink != 2) else {
            return Ok(inode.nlink);
        };
        // A cache: after a panic its entries are still complete.
        let counted = || counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(links) = counted().get(&inode.number) {
            return Ok(*links);
        }
        let listing = self.image.read_dir(inode)?;
        let directories = listing
            .iter()
            .filter(|(_, entry)| entry.kind == InodeKind::Directory);
        let count = u32::try_from(directories.count()).unwrap_or(u32::MAX);
        let links = count.saturating_add(2);
        counted().put(inode.number, links);
        Ok(links)
    }

    /// Returns true if the entry is a whiteout of overlayfs.
    fn is_whiteout(&self, entry: &DirEntry) -> Result<bool> {
        Ok(self.is_stacked
            && entry.kind == InodeKind::CharDevice
            && marks::is_whiteout(&self.image.entry_inode(entry)?))
    }

    /// Returns the image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Returns the identities of the image's inodes.
    pub(crate) fn ids(&self) -> &IdMap {
        &self.ids
    }

    /// Returns the index of an object's extended attributes in the image, or `None` if it has none.
    pub(crate) fn xattr_index(&self, ino: Ino) -> Result<Option<u32>> {
        Ok(self.find(ino)?.and_then(|inode| inode.xattr))
    }

    /// Returns the inode of an object in the image, or `None` if the image does not have it.
    pub(crate) fn inode_ref(&self, ino: Ino) -> Result<Option<InodeRef>> {
        match self.ids.number_of(ino) {
            Some(number) => Ok(Some(self.image.inode_ref(number)?)),
            None => Ok(None),
        }
    }

    /// Checks that each entry of a directory refers to the inode with its number.
    pub(crate) fn check_entries(&self, dir: Ino) -> Result<()> {
        for (_, entry) in self.image.read_dir(&self.get(dir)?)?.iter() {
            self.image.entry_inode(&entry)?;
        }
        Ok(())
    }

    fn find(&self, ino: Ino) -> Result<Option<Inode>> {
        match self.inode_ref(ino)? {
            Some(place) => Ok(Some(self.image.inode(place)?)),
            None => Ok(None),
        }
    }

    fn get(&self, ino: Ino) -> Result<Inode> {
        self.find(ino)?.ok_or(Error::Posix(Errno::ESTALE))
    }

    /// Returns the location of a regular file's data, for reading it or carrying it into another
    /// image.
    pub fn layout(&self, ino: Ino) -> Result<std::sync::Arc<FileLayout>> {
        let place = self.inode_ref(ino)?.ok_or(Error::Posix(Errno::ESTALE))?;
        Ok(self.image.file(place)?)
    }

    /// Returns true if the object is a regular file of the image.
    pub fn is_file(&self, ino: Ino) -> Result<bool> {
        Ok(self
            .find(ino)?
            .is_some_and(|inode| matches!(inode.body, InodeBody::File(_))))
    }

    /// Returns the identity of an inode number of the image.
    pub(crate) fn ino_of(&self, number: u32) -> Result<Ino> {
        self.ids.ino_of(number).ok_or_else(|| {
            Error::Inconsistent(format!("inode {number} of the image has no identity"))
        })
    }

    fn attr_of(&self, inode: &Inode) -> Result<Attr> {
        let time = Timestamp {
            secs: i64::from(inode.mtime),
            nanos: 0,
        };
        let (size, blocks, rdev) = match &inode.body {
            InodeBody::Directory(_) => (4096, 0, 0),
            InodeBody::File(file) => (
                file.size,
                (file.size - file.sparse.min(file.size)).div_ceil(512),
                0,
            ),
            InodeBody::Symlink(target) => (target.len() as u64, 0, 0),
            InodeBody::BlockDevice(rdev) | InodeBody::CharDevice(rdev) => (0, 0, u64::from(*rdev)),
            InodeBody::Fifo | InodeBody::Socket => (0, 0, 0),
        };
        Ok(Attr {
            kind: inode.kind().into(),
            mode: inode.mode & 0o7777,
            uid: self.image.uid(inode)?,
            gid: self.image.gid(inode)?,
            rdev,
            nlink: inode.nlink,
            size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
        })
    }
}

impl From<InodeKind> for Kind {
    fn from(kind: InodeKind) -> Kind {
        match kind {
            InodeKind::Directory => Kind::Directory,
            InodeKind::File => Kind::File,
            InodeKind::Symlink => Kind::Symlink,
            InodeKind::BlockDevice => Kind::BlockDevice,
            InodeKind::CharDevice => Kind::CharDevice,
            InodeKind::Fifo => Kind::Fifo,
            InodeKind::Socket => Kind::Socket,
        }
    }
}

impl From<Kind> for InodeKind {
    fn from(kind: Kind) -> InodeKind {
        match kind {
            Kind::Directory => InodeKind::Directory,
            Kind::File => InodeKind::File,
            Kind::Symlink => InodeKind::Symlink,
            Kind::BlockDevice => InodeKind::BlockDevice,
            Kind::CharDevice => InodeKind::CharDevice,
            Kind::Fifo => InodeKind::Fifo,
            Kind::Socket => InodeKind::Socket,
        }
    }
}

/// A block, or a part of one, as bytes.
struct BlockBytes(Block);

impl AsRef<[u8]> for BlockBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Layer for ImageLayer {
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Lookup> {
        let Some(inode) = self.find(dir)? else {
            return Ok(Lookup::Unknown);
        };
        Ok(match self.image.lookup(&inode, name)? {
            Some(entry) if self.is_whiteout(&entry)? => Lookup::Whiteout,
            Some(entry) => Lookup::Found(self.ino_of(entry.number)?),
            None => Lookup::Unknown,
        })
    }

    fn list(&self, dir: Ino) -> Result<Option<LayerListing>> {
        let Some(inode) = self.find(dir)? else {
            return Ok(None);
        };
        let directory = self.image.read_dir(&inode)?;
        let mut listing = Vec::with_capacity(directory.len());
        for (name, entry) in directory.iter() {
            let target = match self.is_whiteout(&entry)? {
                true => None,
                false => Some((self.ino_of(entry.number)?, entry.kind.into())),
            };
            listing.push((Box::from(name), target));
        }
        Ok(Some(listing))
    }

    fn inode(&self, ino: Ino) -> Result<Option<LayerInode>> {
        let Some(inode) = self.find(ino)? else {
            return Ok(None);
        };
        let mut attr = self.attr_of(&inode)?;
        if let Some(links) = self.links.get(&ino) {
            attr.nlink = *links;
        } else if attr.kind == Kind::Directory {
            attr.nlink = self.directory_links(&inode)?;
        }
        Ok(Some(LayerInode {
            attr,
            content: HeldIn::ThisLayer,
            xattrs: HeldIn::ThisLayer,
        }))
    }

    fn parent(&self, dir: Ino) -> Result<Option<Place>> {
        if dir == Ino::ROOT {
            return Ok(None);
        }
        // A cache: after a panic its entries are still complete.
        let places = || self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = places().get(&dir) {
            return Ok(Some(known.clone()));
        }
        let Some(inode) = self.find(dir)? else {
            return Ok(None);
        };
        let InodeBody::Directory(body) = &inode.body else {
            return Ok(None);
        };
        let above = self.image.inode_by_number(body.parent)?;
        let parent = self.ino_of(body.parent)?;
        let listing = self.image.read_dir(&above)?;
        let mut found = None;
        // Also cache the directories after it: they are usually needed next.
        let mut followed = 0;
        for (name, entry) in listing.iter() {
            if entry.kind != InodeKind::Directory {
                continue;
            }
            let place = (parent, Box::from(name));
            if entry.number == inode.number {
                found = Some(place);
            } else if found.is_some() {
                places().put(self.ino_of(entry.number)?, place);
                followed += 1;
                if followed == PLACES_LIMIT.get() / 2 {
                    break;
                }
            }
        }
        match found {
            Some(place) => {
                places().put(dir, place.clone());
                Ok(Some(place))
            }
            None => Err(Error::Inconsistent(format!(
                "directory {dir} is not in its parent"
            ))),
        }
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        if self.is_stacked && marks::mark(&self.image, &self.get(ino)?, b"metacopy")?.is_some() {
            // The content is in another layer; here are only zeros.
            return Err(Errno::EPERM.into());
        }
        let layout = self.layout(ino)?;
        if offset >= layout.size() || len == 0 {
            return Ok(Box::new([0u8; 0]));
        }
        let block_size = u64::from(self.image.superblock().block_size);
        let block = self.image.block(&layout, offset / block_size)?;
        let start = (offset % block_size) as usize;
        let end = start.saturating_add(len).min(block.len());
        Ok(Box::new(BlockBytes(block.slice(start..end))))
    }

    fn is_ready(&self, ino: Ino, offset: u64, len: usize) -> bool {
        let Ok(layout) = self.layout(ino) else {
            // The read returns the error.
            return true;
        };
        let block_size = u64::from(self.image.superblock().block_size);
        let last = offset.saturating_add(len.saturating_sub(1) as u64);
        let mut blocks = offset / block_size..=last / block_size;
        blocks.all(|index| self.image.is_decompressed(&layout, index))
    }

    fn seek(&self, ino: Ino, offset: u64, target: SeekTarget) -> Result<Option<u64>> {
        let layout = self.layout(ino)?;
        Ok(match target {
            SeekTarget::Data => layout.next_data(offset),
            SeekTarget::Hole => layout.next_hole(offset),
        })
    }

    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        let inode = self.get(ino)?;
        Ok(Box::from(self.image.read_link(&inode)?))
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Box<[u8]>, Box<[u8]>)>> {
        let inode = self.get(ino)?;
        let all = self.image.xattrs(&inode)?;
        Ok(all
            .into_iter()
            .filter(|(name, _)| !self.is_stacked || !marks::is_reserved(name))
            .map(|(name, value)| (name.into_boxed_slice(), value.into_boxed_slice()))
            .collect())
    }
}
