//! [`ImageWriter`], which receives the nodes of an image.

use std::path::Path;

use super::carry::{Carry, OldData};
use super::content::Source;
use super::error::{Result, WriteError};
use super::feed::{Durability, Feed, Start};
use super::nodes::{Meta, NodeId, Tree};
use super::{AmendOptions, AppendOptions, CarryMode, WriteStats, WriterOptions};
use crate::squashfs::compress::{Compression, options_block};
use crate::squashfs::format::{
    ABSENT, Flags, InodeKind, InodeRef, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, Superblock,
};
use crate::squashfs::reader::{FileLayout, Image};

/// Builds one image: add nodes, link them, then call [`finish`](ImageWriter::finish). A writer that
/// is dropped before that, or after an error, removes its file.
#[derive(Debug)]
pub struct ImageWriter {
    pub(super) feed: Box<Feed>,
}

impl ImageWriter {
    /// Starts a new image in a file that is created or emptied.
    pub fn create(path: &Path, options: WriterOptions) -> Result<Self> {
        Self::create_with_gap(path, options, 0)
    }

    pub(super) fn create_with_gap(path: &Path, options: WriterOptions, gap: u64) -> Result<Self> {
        let block_size = options.block_size;
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
        {
            return Err(WriteError::tree("block size", block_size.to_string()));
        }
        let mut flags = Flags::EXPORTABLE | Flags::DUPLICATES;
        if !options.fragments {
            flags |= Flags::NO_FRAGMENTS;
        }
        if options.compression == Compression::None {
            flags |= Flags::UNCOMPRESSED_INODES
                | Flags::UNCOMPRESSED_DATA
                | Flags::UNCOMPRESSED_FRAGMENTS
                | Flags::UNCOMPRESSED_XATTRS
                | Flags::UNCOMPRESSED_IDS;
        }
        let codec_options = options_block(&options.compression, block_size);
        if codec_options.is_some() {
            flags |= Flags::COMPRESSOR_OPTIONS;
        }
        let start = Start {
            compression: options.compression,
            superblock: Superblock {
                mkfs_time: options.mkfs_time,
                block_size,
                compressor: options.compression.id(),
                flags: Flags(flags),
                ..blank()
            },
            fragments: options.fragments,
            codec_options: codec_options.unwrap_or_default(),
            tree: Tree::default(),
            old: None,
            gap,
            threads: options.threads,
            monitor: options.monitor,
        };
        Ok(ImageWriter {
            feed: Box::new(Feed::start(path, start)?),
        })
    }

    /// Starts a new image with data of an old one, in a file that is created or emptied.
    pub fn append(path: &Path, old: &Image, options: AppendOptions) -> Result<Self> {
        let carry = match options.carry {
            CarryMode::Append => Carry::Append,
            CarryMode::Compact => Carry::Compact {
                repack_percent: options.repack_percent,
            },
        };
        let common = AmendOptions {
            compression: options.compression,
            threads: options.threads,
            mkfs_time: options.mkfs_time,
            monitor: options.monitor,
        };
        Self::build_on(path, OldData::new(old, carry)?, Tree::default(), common)
    }

    /// Starts a new image with data of an old one.
    pub(super) fn build_on(
        path: &Path,
        old: OldData,
        tree: Tree,
        options: AmendOptions,
    ) -> Result<Self> {
        let image = &old.image;
        let id = image.superblock().compressor;
        let compression = match options.compression {
            Some(compression) if compression == Compression::None || compression.id() == id => {
                compression
            }
            Some(other) => {
                return Err(WriteError::Carry(format!(
                    "the old image has {id}, not {other}"
                )));
            }
            None => Compression::for_id(id)
                .ok_or_else(|| WriteError::Carry(format!("{id} is only read, never written")))?,
        };
        let codec_options = image.options_bytes().unwrap_or_default().to_vec();
        let mut superblock = image.superblock().clone();
        superblock.mkfs_time = options.mkfs_time;
        superblock.flags.0 |= Flags::EXPORTABLE | Flags::DUPLICATES;
        superblock.flags.0 &= !Flags::NO_XATTRS;
        let fragments = !superblock.flags.has(Flags::NO_FRAGMENTS);
        let start = Start {
            compression,
            superblock,
            fragments,
            codec_options,
            tree,
            old: Some(old),
            gap: 0,
            threads: options.threads,
            monitor: options.monitor,
        };
        Ok(ImageWriter {
            feed: Box::new(Feed::start(path, start)?),
        })
    }

    /// Adds a file of `size` bytes with fresh content, which is opened and read later, during this
    /// and further calls. Fails if the content has another length.
    pub fn add_file(&mut self, meta: &Meta, size: u64, source: Box<dyn Source>) -> Result<NodeId> {
        let node = self.feed.add_file_node(meta, size)?;
        let pushed = self.feed.push_file(size, source);
        self.feed.stop_on_failure(pushed)?;
        Ok(node)
    }

    /// Adds a file whose data stays at its position in the old image (or is copied still
    /// compressed, when compacting). `layout` comes from an inode of the old image.
    pub fn add_carried(&mut self, meta: &Meta, layout: &FileLayout) -> Result<NodeId> {
        let layout = self.feed.checked(layout)?;
        let node = self.feed.add_file_node(meta, layout.size)?;
        let pushed = self.feed.push_carried(&layout);
        self.feed.stop_on_failure(pushed)?;
        Ok(node)
    }

    /// Adds a file some of whose blocks have changed since the old image. `source` has the new
    /// content of `size` bytes. Blocks for whose number `dirty` returns false are copied from
    /// `layout`, still compressed; the others are read from `source`.
    pub fn add_partly_carried(
        &mut self,
        meta: &Meta,
        layout: &FileLayout,
        size: u64,
        dirty: &mut dyn FnMut(u64) -> bool,
        source: Box<dyn Source>,
    ) -> Result<NodeId> {
        let layout = self.feed.checked(layout)?;
        let node = self.feed.add_file_node(meta, size)?;
        let pushed = self.feed.push_partly_carried(&layout, size, dirty, source);
        self.feed.stop_on_failure(pushed)?;
        Ok(node)
    }

    /// Ends the current fragment block, so that the small files pushed so far share no block with
    /// later ones, and all their data comes before that of later files.
    pub fn end_fragment(&mut self) -> Result<()> {
        let pushed = self.feed.push_flush();
        self.feed.stop_on_failure(pushed)
    }

    /// Adds a directory.
    pub fn add_directory(&mut self, meta: &Meta) -> Result<NodeId> {
        self.feed.tree.add(InodeKind::Directory, meta, 0)
    }

    /// Adds a symbolic link with a target of 1 to 4095 bytes.
    pub fn add_symlink(&mut self, meta: &Meta, target: &[u8]) -> Result<NodeId> {
        self.feed.tree.add_symlink(meta, target)
    }

    /// Adds a block device node. `device` is as in `st_rdev`.
    pub fn add_block_device(&mut self, meta: &Meta, device: u64) -> Result<NodeId> {
        self.add_device(InodeKind::BlockDevice, meta, device)
    }

    /// Adds a character device node. `device` is as in `st_rdev`.
    pub fn add_char_device(&mut self, meta: &Meta, device: u64) -> Result<NodeId> {
        self.add_device(InodeKind::CharDevice, meta, device)
    }

    fn add_device(&mut self, kind: InodeKind, meta: &Meta, device: u64) -> Result<NodeId> {
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(WriteError::tree(
                "device number",
                format!("{major}:{minor}"),
            ));
        }
        // As the kernel encodes it in 32 bits.
        let encoded = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        self.feed.tree.add(kind, meta, encoded as u32)
    }

    /// Adds a named pipe.
    pub fn add_fifo(&mut self, meta: &Meta) -> Result<NodeId> {
        self.feed.tree.add(InodeKind::Fifo, meta, 0)
    }

    /// Adds a socket.
    pub fn add_socket(&mut self, meta: &Meta) -> Result<NodeId> {
        self.feed.tree.add(InodeKind::Socket, meta, 0)
    }

    /// Gives a node a name in a directory. Names may come in any order. Every node except the root
    /// needs a name; a directory must have exactly one.
    pub fn link(&mut self, dir: NodeId, name: &[u8], child: NodeId) -> Result<()> {
        self.feed.tree.link(dir, name, child)
    }

    /// Completes the image with `root` as its root directory: waits for all data, then writes the
    /// tables, and the superblock last. The file is not synced.
    pub fn finish(self, root: NodeId) -> Result<WriteStats> {
        self.feed.finish(root, Durability::Unsynced, None)
    }

    /// Completes the image and syncs the file: everything before the superblock first, then the
    /// superblock. The caller must sync the directory.
    pub fn finish_synced(self, root: NodeId) -> Result<WriteStats> {
        self.feed.finish(root, Durability::Synced, None)
    }
}

/// Returns a superblock without any tables.
fn blank() -> Superblock {
    Superblock {
        inodes: 0,
        mkfs_time: 0,
        block_size: 0,
        fragments: 0,
        compressor: crate::squashfs::CompressorId::Gzip,
        flags: Flags(0),
        ids: 0,
        root: InodeRef(0),
        bytes_used: 0,
        id_table: ABSENT,
        xattr_table: ABSENT,
        inode_table: ABSENT,
        directory_table: ABSENT,
        fragment_table: ABSENT,
        export_table: ABSENT,
    }
}
