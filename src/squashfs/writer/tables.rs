//! Writes inodes, directories and all other tables in one sequential pass.
//!
//! A directory entry names its child's compressed inode block, and a directory inode its compressed
//! listing, so children come before parents. Directories are written depth first. The inodes of all
//! children of one directory are adjacent, in name order, and its listing follows in the other
//! table, so that a listing or `ls -l` reads as few metadata blocks as possible. The root inode is
//! the last one and the root listing the last listing, where mksquashfs expects them when it
//! appends.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::assembler::{Assembled, FileData};
use super::error::{Result, WriteError};
use super::metadata::{Codec, MetadataWriter};
use super::nodes::{Entry, Node, NodeId, Tree};
use super::old_tables::{OldTables, Part};
use crate::squashfs::format::{
    ABSENT, DIRECTORY_ENTRY_SIZE, DIRECTORY_HEADER_SIZE, DirectoryBody, DirectoryEntry,
    DirectoryHeader, DirectoryIndexEntry, FileBody, FragmentRef, Inode, InodeBody, InodeKind,
    InodeRef, MAX_ENTRIES_PER_HEADER, METADATA_SIZE, NO_XATTR, Superblock,
};

/// Not yet written.
const NOWHERE: InodeRef = InodeRef(u64::MAX);

/// All tables, one piece after another.
pub(super) struct Tables {
    pub(super) parts: Vec<Part>,
    /// The superblock that names them.
    pub(super) superblock: Superblock,
    /// When amending: stored bytes of inodes and listings that follow those of the old image.
    pub(super) appended: u64,
}

impl Tables {
    /// Returns the position of the next piece.
    fn end(&self) -> u64 {
        self.superblock.bytes_used
    }

    fn push(&mut self, part: Part) {
        self.superblock.bytes_used += part.len();
        self.parts.push(part);
    }

    fn push_lookup(&mut self, table: MetadataWriter, codec: &mut Codec) -> Result<u64> {
        let (bytes, at) = table.finish_lookup(self.end(), &[], codec)?;
        self.push(Part::Bytes(bytes));
        Ok(at)
    }
}

/// Builds all tables for the position behind the data. `superblock` has the fields that do not
/// depend on them. With `old`, the tables of the old image are continued.
pub(super) fn build(
    tree: &Tree,
    root: NodeId,
    order: &[(u32, Range<usize>)],
    data: &Assembled,
    superblock: Superblock,
    old: Option<&OldTables>,
    codec: &mut Codec,
) -> Result<Tables> {
    let written = Nodes::new(tree, data).write(root, order, old, codec)?;
    let mut tables = Tables {
        parts: Vec::new(),
        superblock: Superblock {
            inodes: tree.inodes(),
            root: written.root,
            bytes_used: data.end,
            ..superblock
        },
        appended: old.map_or(0, |_| written.inodes.len() + written.listings.len()) as u64,
    };
    tables.superblock.inode_table = tables.end();
    if let Some(old) = old {
        tables.push(old.inodes());
    }
    tables.push(Part::Bytes(written.inodes));
    tables.superblock.directory_table = tables.end();
    if let Some(old) = old {
        tables.push(old.listings());
    }
    tables.push(Part::Bytes(written.listings));

    tables.superblock.fragments = u32::try_from(data.fragments.len())
        .map_err(|_| WriteError::tree("fragments", "more than 2^32 fragment blocks"))?;
    // Without fragments, the position where the table would begin: unsquashfs before 4.5 requires
    // it.
    tables.superblock.fragment_table = tables.end();
    if !data.fragments.is_empty() {
        let mut table = MetadataWriter::default();
        for entry in &data.fragments {
            table.write(&entry.to_bytes(), codec)?;
        }
        tables.superblock.fragment_table = tables.push_lookup(table, codec)?;
    }

    let table = match old {
        Some(old) => old.export(tree.inodes(), &written.places.by_number(tree), codec)?,
        None => {
            let mut table = MetadataWriter::default();
            for reference in written.places.in_order(tree) {
                table.write(&reference.0.to_le_bytes(), codec)?;
            }
            table
        }
    };
    tables.superblock.export_table = tables.push_lookup(table, codec)?;

    tables.superblock.ids = tree.ids().len() as u16;
    let mut table = MetadataWriter::default();
    for id in tree.ids() {
        table.write(&id.to_le_bytes(), codec)?;
    }
    tables.superblock.id_table = tables.push_lookup(table, codec)?;

    tables.superblock.xattr_table = ABSENT;
    match old {
        Some(old) => {
            if let Some((blocks, header, at)) = old.xattrs(tables.end()) {
                tables.superblock.xattr_table = at;
                tables.push(blocks);
                tables.push(Part::Bytes(header));
            }
        }
        None => {
            if let Some((bytes, at)) = tree.xattrs.encode(tables.end(), codec)? {
                tables.superblock.xattr_table = at;
                tables.push(Part::Bytes(bytes));
            }
        }
    }
    Ok(tables)
}

/// The position of each node's inode.
struct Places(Vec<InodeRef>);

impl Places {
    /// Returns the positions by inode number, for numbers that are 1..=n, each once.
    fn in_order(&self, tree: &Tree) -> Vec<InodeRef> {
        let mut table = vec![NOWHERE; self.0.len()];
        for (node, place) in tree.nodes().iter().zip(&self.0) {
            // The tree has been sealed.
            if let Some(slot) = (node.number as usize)
                .checked_sub(1)
                .and_then(|at| table.get_mut(at))
            {
                *slot = *place;
            }
        }
        table
    }

    /// Returns the positions of written inodes by number.
    fn by_number(&self, tree: &Tree) -> HashMap<u32, InodeRef> {
        let all = tree.nodes().iter().zip(&self.0);
        let mut written: HashMap<u32, InodeRef> =
            all.map(|(node, place)| (node.number, *place)).collect();
        for (kept, _) in tree.kept() {
            if let Some(node) = tree.nodes().get(kept as usize) {
                written.remove(&node.number);
            }
        }
        written
    }
}

/// The position of a directory's listing, kept until its inode is written.
#[derive(Clone)]
struct Listing {
    at: InodeRef,
    size: u32,
    subdirectories: u32,
    index: Arc<[DirectoryIndexEntry]>,
}

struct Nodes<'t> {
    tree: &'t Tree,
    data: &'t Assembled,
    places: Places,
    /// Listings whose inode is not written yet.
    listings: HashMap<u32, Listing>,
    bytes: Vec<u8>,
    no_index: Arc<[DirectoryIndexEntry]>,
}

/// The two tables that refer to each other.
struct Written {
    inodes: Vec<u8>,
    listings: Vec<u8>,
    places: Places,
    root: InodeRef,
}

impl<'t> Nodes<'t> {
    fn new(tree: &'t Tree, data: &'t Assembled) -> Self {
        let mut places = vec![NOWHERE; tree.nodes().len()];
        for (id, at) in tree.kept() {
            places[id as usize] = at;
        }
        Nodes {
            tree,
            data,
            places: Places(places),
            listings: HashMap::new(),
            bytes: Vec::new(),
            no_index: Arc::from([]),
        }
    }

    fn write(
        mut self,
        root: NodeId,
        order: &[(u32, Range<usize>)],
        old: Option<&OldTables>,
        codec: &mut Codec,
    ) -> Result<Written> {
        let tree = self.tree;
        let (mut inodes, mut directories) = old.map(OldTables::writers).unwrap_or_default();
        for (dir, range) in order {
            let entries = tree.entries(range.clone());
            let parent = tree.node(NodeId(*dir))?.number;
            for entry in entries {
                if self.places.0[entry.child as usize] == NOWHERE {
                    self.inode(entry.child, parent, &mut inodes, codec)?;
                }
            }
            let listing = self.listing(entries, &mut directories, codec)?;
            self.listings.insert(*dir, listing);
        }
        // The root's parent is, by convention, one more than the highest number.
        self.inode(root.0, tree.inodes().saturating_add(1), &mut inodes, codec)?;
        let root = self.places.0[root.0 as usize];
        Ok(Written {
            inodes: inodes.finish(codec)?,
            listings: directories.finish(codec)?,
            places: self.places,
            root,
        })
    }

    fn inode(
        &mut self,
        id: u32,
        parent: u32,
        table: &mut MetadataWriter,
        codec: &mut Codec,
    ) -> Result<()> {
        let node = self.tree.node(NodeId(id))?;
        let mut nlink = node.links;
        let body = match node.kind {
            InodeKind::Directory => {
                let listing = self.listings.remove(&id).ok_or(WriteError::Failed)?;
                // Counted as in mksquashfs, and as some programs expect: the entry in the parent,
                // ".", and ".." of every subdirectory.
                nlink = listing.subdirectories.saturating_add(2);
                InodeBody::Directory(DirectoryBody {
                    block_start: block(listing.at)?,
                    offset: listing.at.offset(),
                    listing_size: listing.size,
                    parent,
                    index: listing.index,
                })
            }
            InodeKind::File => {
                let file = self.data.file(node.payload).ok_or(WriteError::Failed)?;
                InodeBody::File(self.file(file)?)
            }
            InodeKind::Symlink => InodeBody::Symlink(self.tree.target(node).to_vec()),
            InodeKind::BlockDevice => InodeBody::BlockDevice(node.payload),
            InodeKind::CharDevice => InodeBody::CharDevice(node.payload),
            InodeKind::Fifo => InodeBody::Fifo,
            InodeKind::Socket => InodeBody::Socket,
        };
        let inode = Inode {
            mode: node.mode,
            uid_idx: node.uid,
            gid_idx: node.gid,
            mtime: node.mtime,
            number: node.number,
            nlink,
            xattr: (node.xattr != NO_XATTR).then_some(node.xattr),
            body,
        };
        self.bytes.clear();
        inode.encode(&mut self.bytes);
        self.places.0[id as usize] = table.position();
        table.write(&self.bytes, codec)
    }

    fn file(&self, file: &FileData) -> Result<FileBody> {
        let index = self.data.fragment(file);
        Ok(FileBody {
            start: file.start,
            size: file.size,
            sparse: file.sparse,
            fragment: index.map(|index| FragmentRef {
                index,
                offset: file.offset,
            }),
            blocks: self.data.blocks(file).into(),
        })
    }

    /// Writes a listing: runs of entries whose inodes are in one metadata block and whose numbers
    /// are close, and an index entry each time 8 KiB of listing are full.
    fn listing(
        &mut self,
        entries: &[Entry],
        table: &mut MetadataWriter,
        codec: &mut Codec,
    ) -> Result<Listing> {
        let at = table.position();
        let mut index: Vec<DirectoryIndexEntry> = Vec::new();
        let mut written = 0usize;
        let mut indexed_at = 0usize;
        let mut subdirectories = 0;
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let base: &Node = self.tree.node(NodeId(first.child))?;
            let inode_block = self.places.0[first.child as usize].block();
            let run_at = written;
            let first_name = self.tree.name(first);
            let needed = DIRECTORY_HEADER_SIZE + DIRECTORY_ENTRY_SIZE + first_name.len();
            if run_at + needed - indexed_at > METADATA_SIZE {
                indexed_at = run_at;
                index.push(DirectoryIndexEntry {
                    position: size(run_at)?,
                    block: block(table.position())?,
                    name: first_name.to_vec(),
                });
            }
            self.bytes.clear();
            let mut count = 0;
            let mut len = DIRECTORY_HEADER_SIZE;
            for entry in rest {
                let node = self.tree.node(NodeId(entry.child))?;
                let name = self.tree.name(entry);
                let place = self.places.0[entry.child as usize];
                let delta = i64::from(node.number) - i64::from(base.number);
                let (true, Ok(delta)) = (place.block() == inode_block, i16::try_from(delta)) else {
                    break;
                };
                let longer = len + DIRECTORY_ENTRY_SIZE + name.len();
                if count == MAX_ENTRIES_PER_HEADER || run_at + longer - indexed_at > METADATA_SIZE {
                    break;
                }
                len = longer;
                count += 1;
                subdirectories += u32::from(node.kind == InodeKind::Directory);
                let entry = DirectoryEntry {
                    offset: place.offset(),
                    delta,
                    kind: node.kind,
                    name_len: name.len() as u16,
                };
                entry.encode(name, &mut self.bytes);
            }
            let inode_block = block(self.places.0[first.child as usize])?;
            let mut header = Vec::with_capacity(DIRECTORY_HEADER_SIZE);
            DirectoryHeader {
                count,
                inode_block,
                base_number: base.number,
            }
            .encode(&mut header);
            table.write(&header, codec)?;
            table.write(&self.bytes, codec)?;
            written += len;
            rest = rest.get(count as usize..).unwrap_or_default();
        }
        let index = if index.is_empty() {
            self.no_index.clone()
        } else {
            index.into()
        };
        Ok(Listing {
            at,
            size: size(written)?,
            subdirectories,
            index,
        })
    }
}

fn block(at: InodeRef) -> Result<u32> {
    u32::try_from(at.block())
        .map_err(|_| WriteError::tree("tables", "more than 4 GiB of compressed inodes or listings"))
}

/// Converts a size or position in a listing. Its sum with `DIRECTORY_SIZE_BIAS` must fit too.
fn size(bytes: usize) -> Result<u32> {
    u32::try_from(bytes)
        .ok()
        .filter(|size| *size <= u32::MAX - 3)
        .ok_or_else(|| WriteError::tree("directory", "a listing of more than 4 GiB"))
}
