//! Directory listings, parsed once into a compact sorted table.

use std::{ops::Range, sync::Arc};

use super::{
    Image,
    cursor::{Cursor, Limited},
};
use crate::squashfs::{
    Error, Result,
    format::{
        DirectoryBody, DirectoryEntry, DirectoryHeader, DirectoryIndexEntry, Inode, InodeBody,
        InodeKind, InodeRef, METADATA_SIZE,
    },
};

const WHAT: &str = "directory";
/// Longest supported listing: tens of millions of entries.
const MAX_LISTING: u32 = 1 << 30;
/// From this size on, a lookup in a listing that is not cached uses the directory's index and
/// parses a few KiB instead of the whole listing.
const INDEX_FROM: u32 = 256 << 10;

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry {
    /// Reference of the inode.
    pub inode: InodeRef,
    /// Inode number.
    pub number: u32,
    /// Kind of the inode.
    pub kind: InodeKind,
}

/// A whole listing, sorted by the bytes of the names, without "." and "..".
#[derive(Debug, Default)]
pub struct Directory {
    /// All names, one after another.
    names: Vec<u8>,
    entries: Vec<Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    inode: InodeRef,
    number: u32,
    /// Where the name begins in `names`; it ends where the next one begins. Listings are smaller
    /// than 1 GiB, and names are part of them.
    name: u32,
    kind: InodeKind,
}

impl Directory {
    /// Returns the number of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Returns true if there are no names.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// Returns the name and entry at a position in the order.
    pub fn get(&self, index: usize) -> Option<(&[u8], DirEntry)> {
        let slot = self.entries.get(index)?;
        let entry = DirEntry {
            inode: slot.inode,
            number: slot.number,
            kind: slot.kind,
        };
        Some((self.name(index)?, entry))
    }
    /// Returns all names and entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], DirEntry)> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
    /// Finds the entry with a name.
    pub fn find(&self, name: &[u8]) -> Option<DirEntry> {
        let mut left = 0..self.len();
        while !left.is_empty() {
            let middle = left.start + left.len() / 2;
            match self.name(middle)?.cmp(name) {
                std::cmp::Ordering::Less => left.start = middle + 1,
                std::cmp::Ordering::Greater => left.end = middle,
                std::cmp::Ordering::Equal => return self.get(middle).map(|(_, entry)| entry),
            }
        }
        None
    }

    fn name_range(&self, index: usize) -> Option<Range<usize>> {
        let start = self.entries.get(index)?.name as usize;
        let end = self
            .entries
            .get(index + 1)
            .map_or(self.names.len(), |next| next.name as usize);
        Some(start..end)
    }
    fn name(&self, index: usize) -> Option<&[u8]> {
        self.names.get(self.name_range(index)?)
    }
    fn memory(&self) -> usize {
        size_of::<Self>() + self.names.len() + self.entries.len() * size_of::<Slot>()
    }
}

/// Reads one run of entries at a time, starting at a position in a listing.
struct Runs<'a> {
    image: &'a Image,
    source: Limited<Cursor<'a>>,
    at: u64,
    /// Names read so far, and the start of the last one.
    names: Vec<u8>,
    last: Option<usize>,
}

impl<'a> Runs<'a> {
    fn new(image: &'a Image, place: InodeRef, len: u64) -> Result<Self> {
        let cursor = Cursor::new(image.blocks(), WHAT, image.directory_table(), place)?;
        let source = Limited::new(cursor, len, WHAT, place.0);
        Ok(Runs {
            image,
            source,
            at: place.0,
            names: Vec::new(),
            last: None,
        })
    }

    /// Reads the next run and calls `each` with its entries (and the position of the name) until it
    /// returns false. Returns false at the end.
    fn next(&mut self, mut each: impl FnMut(&[u8], usize, DirEntry) -> bool) -> Result<bool> {
        if self.source.left == 0 {
            return Ok(false);
        }
        let bad = |detail: String| Err(Error::corrupt(WHAT, self.at, detail));
        let header = DirectoryHeader::read(&mut self.source, self.at)?;
        let inode_table = self.image.inode_table();
        if u64::from(header.inode_block) >= inode_table.end - inode_table.start {
            return bad(format!(
                "inodes in block {:#x}, beyond their table",
                header.inode_block
            ));
        }
        for _ in 0..header.count {
            let from = self.names.len();
            let raw = DirectoryEntry::read(&mut self.source, self.at, &mut self.names)?;
            let number = header.base_number.wrapping_add_signed(i32::from(raw.delta));
            if number == 0 || number > self.image.superblock().inodes {
                return bad(format!("an entry for inode number {number}"));
            }
            if usize::from(raw.offset) >= METADATA_SIZE {
                return bad(format!("an inode at offset {} of a block", raw.offset));
            }
            if let Some(last) = self.last
                && self.names[last..from] >= self.names[from..]
            {
                return bad("names that do not ascend".into());
            }
            self.last = Some(from);
            let inode = InodeRef::new(u64::from(header.inode_block), raw.offset);
            let entry = DirEntry {
                inode,
                number,
                kind: raw.kind,
            };
            if !each(&self.names[from..], from, entry) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn body(directory: &Inode) -> Result<&DirectoryBody> {
    match &directory.body {
        InodeBody::Directory(body) => Ok(body),
        _ => Err(Error::invalid(
            "reading a directory",
            format!("inode {} is not one", directory.number),
        )),
    }
}

/// Returns where the run of an index entry begins.
fn indexed_place(body: &DirectoryBody, entry: &DirectoryIndexEntry) -> InodeRef {
    let offset = (u64::from(body.offset) + u64::from(entry.position)) % METADATA_SIZE as u64;
    InodeRef::new(u64::from(entry.block), offset as u16)
}

pub(super) type Key = (u64, u32);

fn key(body: &DirectoryBody) -> (InodeRef, Key) {
    let place = InodeRef::new(u64::from(body.block_start), body.offset);
    (place, (place.0, body.listing_size))
}

impl Image {
    /// Returns the whole listing of a directory through the cache.
    pub fn read_dir(&self, directory: &Inode) -> Result<Arc<Directory>> {
        let body = body(directory)?;
        if body.listing_size == 0 {
            return Ok(Arc::new(Directory::default()));
        }
        let (_, key) = key(body);
        self.directories().get(key, || {
            let listing = self.parse_dir(body)?;
            let bytes = listing.memory();
            Ok((Arc::new(listing), bytes))
        })
    }

    /// Parses the whole listing of a directory without the cache.
    pub(super) fn parse_dir(&self, body: &DirectoryBody) -> Result<Directory> {
        if body.listing_size == 0 {
            return Ok(Directory::default());
        }
        if body.listing_size > MAX_LISTING {
            return Err(Error::Unsupported(format!(
                "a directory of {} bytes",
                body.listing_size
            )));
        }
        let (place, _) = key(body);
        let mut runs = Runs::new(self, place, u64::from(body.listing_size))?;
        let mut entries = Vec::new();
        while runs.next(|_, name, entry| {
            // The listing is at most 1 GiB, so a position in it fits.
            let name = name as u32;
            entries.push(Slot {
                inode: entry.inode,
                number: entry.number,
                name,
                kind: entry.kind,
            });
            true
        })? {}
        let mut names = runs.names;
        names.shrink_to_fit();
        entries.shrink_to_fit();
        Ok(Directory { names, entries })
    }

    /// Looks up a name in a directory.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<DirEntry>> {
        let body = body(directory)?;
        if body.listing_size >= INDEX_FROM && !body.index.is_empty() {
            let (_, key) = key(body);
            return match self.directories().peek(key) {
                Some(listing) => Ok(listing.find(name)),
                None => self.lookup_by_index(body, name),
            };
        }
        Ok(self.read_dir(directory)?.find(name))
    }

    /// Checks that every entry of a directory's index leads to the run that it names. Otherwise a
    /// reader that uses the index would miss names.
    pub(super) fn check_index(&self, body: &DirectoryBody) -> Result<()> {
        let bad = |detail: String| Error::corrupt("directory index", key(body).1.0, detail);
        let mut last: Option<&DirectoryIndexEntry> = None;
        for entry in body.index.iter() {
            let name = String::from_utf8_lossy(&entry.name);
            if last.is_some_and(|last| last.name >= entry.name || last.position >= entry.position) {
                return Err(bad(format!("{name:?} is out of order")));
            }
            last = Some(entry);
            let left = body.listing_size.checked_sub(entry.position);
            let left = left.ok_or_else(|| bad(format!("{name:?} is past the end")))?;
            let mut led_to_it = false;
            Runs::new(self, indexed_place(body, entry), u64::from(left))?.next(|here, _, _| {
                led_to_it = here == entry.name;
                false
            })?;
            if !led_to_it {
                return Err(bad(format!("{name:?} is not at its position")));
            }
        }
        Ok(())
    }

    pub(super) fn lookup_by_index(
        &self,
        body: &DirectoryBody,
        name: &[u8],
    ) -> Result<Option<DirEntry>> {
        let (start, _) = key(body);
        let before = body
            .index
            .partition_point(|entry| entry.name.as_slice() <= name);
        let (place, skipped) = match before.checked_sub(1).and_then(|last| body.index.get(last)) {
            None => (start, 0),
            Some(entry) => (indexed_place(body, entry), entry.position),
        };
        let left = body.listing_size.checked_sub(skipped).ok_or_else(|| {
            Error::corrupt(
                "directory index",
                start.0,
                format!("an entry at {skipped}, past the end"),
            )
        })?;
        let mut found = None;
        let mut runs = Runs::new(self, place, u64::from(left))?;
        while runs.next(|here, _, entry| {
            if here == name {
                found = Some(entry);
            }
            here < name
        })? {}
        Ok(found)
    }
}
