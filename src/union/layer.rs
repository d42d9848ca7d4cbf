//! The trait of the two kinds of read-only layers, and the merged listing of a directory.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::{Error, Result};
use crate::object::{Attr, Ino, Kind};

/// What a layer contains under a name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Nothing; the layers below decide.
    Unknown,
    /// A whiteout: the name does not exist, whatever the layers below contain.
    Whiteout,
    /// A link to this object.
    Found(Ino),
}

/// Which layer has the content or the extended attributes of an object whose attributes are in this
/// layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldIn {
    /// This layer.
    ThisLayer,
    /// The next layer below that has the object.
    LowerLayer,
    /// The images. Frozen uppers do not count.
    Images,
}

/// An object in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerInode {
    /// Attributes. Size and blocks are valid only if `content` is [`HeldIn::ThisLayer`].
    pub(crate) attr: Attr,
    /// Where the content (of a regular file) is.
    pub(crate) content: HeldIn,
    /// Where the extended attributes are.
    pub(crate) xattrs: HeldIn,
}

/// Bytes of a file; they are not copied if they are in a cache.
pub trait Bytes: AsRef<[u8]> + Send {}
impl<T: AsRef<[u8]> + Send> Bytes for T {}

/// What a seek searches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTarget {
    /// Data, as `SEEK_DATA` of `lseek(2)`.
    Data,
    /// A hole, as `SEEK_HOLE`.
    Hole,
}

/// A read-only layer of a stack. Objects are addressed by identity, so a layer does not depend on
/// their paths in the merged tree, and a rename in a layer above does not affect it.
pub(crate) trait Layer: Send + Sync + Debug {
    /// Looks a name up in a directory.
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Lookup>;

    /// Returns this layer's own listing of a directory, or `None` if it has none.
    fn list(&self, dir: Ino) -> Result<Option<LayerListing>>;

    /// Returns an object, or `None` if the layer does not have it.
    fn inode(&self, ino: Ino) -> Result<Option<LayerInode>>;

    /// Returns the parent of a directory and its name there, if this layer has them.
    fn parent(&self, dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>>;

    /// Reads at most `len` bytes at `offset`. A short read does not mean the end of the file, an
    /// empty one does.
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>>;

    /// Returns false if a read of `len` bytes at `offset` has to decompress a block.
    fn is_ready(&self, ino: Ino, offset: u64, len: usize) -> bool;

    /// Returns the start of the first data or hole at or after `offset`, or `None` past the end.
    fn seek(&self, ino: Ino, offset: u64, target: SeekTarget) -> Result<Option<u64>>;

    /// Returns the target of a symbolic link.
    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>>;

    /// Returns all extended attributes.
    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>>;
}

/// A directory and a name in it.
pub(crate) type Place = (Ino, Box<[u8]>);

/// Where the directories of a view are.
pub(crate) trait Parents: Send + Sync + Debug {
    /// Returns the parent of a directory and its name there.
    fn parent(&self, dir: Ino) -> Result<Option<Place>>;
}

/// Returns the path of a directory from the root, outermost first: each directory with its name.
///
/// `ESTALE` if the directory, or one above it, has no parent.
pub(super) fn chain(dir: Ino, parent: impl Fn(Ino) -> Result<Option<Place>>) -> Result<Vec<Place>> {
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

/// An extended attribute: its full name and its value.
pub(crate) type Xattr = (Box<[u8]>, Box<[u8]>);

/// A layer's listing: names in byte order, each a link or a whiteout.
pub(crate) type LayerListing = Vec<(Box<[u8]>, Option<(Ino, Kind)>)>;

/// The merged listing of a directory over all read-only layers, in byte order of names.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<u8>,
    entries: Vec<ListingEntry>,
}

#[derive(Debug, Clone)]
struct ListingEntry {
    name: Range<u32>,
    ino: Ino,
    kind: Kind,
}

impl Listing {
    /// Appends an entry. Names must be pushed in ascending order.
    pub fn push(&mut self, name: &[u8], ino: Ino, kind: Kind) {
        let start = self.names.len() as u32;
        self.names.extend_from_slice(name);
        self.entries.push(ListingEntry {
            name: start..self.names.len() as u32,
            ino,
            kind,
        });
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if the directory has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn name_of(&self, entry: &ListingEntry) -> &[u8] {
        self.names
            .get(entry.name.start as usize..entry.name.end as usize)
            .unwrap_or_default()
    }

    /// Returns the entry at a position.
    pub fn get(&self, position: usize) -> Option<(&[u8], Ino, Kind)> {
        let entry = self.entries.get(position)?;
        Some((self.name_of(entry), entry.ino, entry.kind))
    }

    /// Returns the entry with a name.
    pub fn find(&self, name: &[u8]) -> Option<(Ino, Kind)> {
        let at = self
            .entries
            .binary_search_by(|e| self.name_of(e).cmp(name))
            .ok()?;
        self.entries.get(at).map(|e| (e.ino, e.kind))
    }

    /// Iterates over all entries in byte order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Ino, Kind)> {
        self.entries
            .iter()
            .map(|e| (self.name_of(e), e.ino, e.kind))
    }

    /// Returns the memory that the listing takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        self.names.capacity() + self.entries.capacity() * size_of::<ListingEntry>() + 64
    }
}

/// A shared merged listing.
pub(crate) type SharedListing = Arc<Listing>;
