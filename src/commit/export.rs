//! Exports an image without the files that match patterns.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::error::{CommitError, Result};
use super::exclude::Exclude;
use super::import::TreeSize;
use crate::progress::Progress;
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody};
use crate::squashfs::writer::{AppendOptions, CarryMode, ImageWriter, Meta, NodeId};

/// Writes an image without the entries that match the patterns to the file `to`, which is created
/// or truncated. Data is copied still compressed. The new image is durable.
pub fn export_without(
    source: &Path,
    exclude: &[PathBuf],
    to: &Path,
    threads: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<()> {
    let image = super::verify::open_regular(source)?;
    let exclude = Exclude::new(exclude)?;
    let total = TreeSize {
        entries: u64::from(image.superblock().inodes),
        bytes: 0,
    };
    super::with_monitor("packing", total, progress, |monitor| {
        let options = AppendOptions {
            carry: CarryMode::Compact,
            threads,
            mkfs_time: super::mkfs_time(),
            monitor,
            ..AppendOptions::default()
        };
        let mut writer = ImageWriter::append(to, &image, options)?;
        let root = push(&image, &exclude, &mut writer)?;
        writer.finish_synced(root)?;
        Ok(())
    })
}

/// A directory whose entries have not been pushed yet.
struct Pending {
    path: Vec<Vec<u8>>,
    inode: Inode,
    node: NodeId,
}

fn push(image: &Image, exclude: &Exclude, writer: &mut ImageWriter) -> Result<NodeId> {
    let root = image.inode(image.root())?;
    let root_node = writer.add_directory(&meta(image, &root)?)?;
    let mut directories = HashSet::from([root.number]);
    let mut linked: HashMap<u32, NodeId> = HashMap::new();
    let mut pending = vec![Pending {
        path: Vec::new(),
        inode: root,
        node: root_node,
    }];
    while let Some(dir) = pending.pop() {
        let mut below = Vec::new();
        for (name, entry) in image.read_dir(&dir.inode)?.iter() {
            let mut path: Vec<&[u8]> = dir.path.iter().map(Vec::as_slice).collect();
            path.push(name);
            if exclude.matches(&path) {
                continue;
            }
            let inode = image.entry_inode(&entry)?;
            let known = linked.get(&inode.number).copied();
            let node = match known {
                Some(node) => node,
                None => push_one(image, &inode, writer)?,
            };
            writer.link(dir.node, name, node)?;
            if matches!(inode.body, InodeBody::Directory(_)) {
                if !directories.insert(inode.number) {
                    let what = format!("directory {} has two names", inode.number);
                    return Err(CommitError::Check(what));
                }
                below.push(Pending {
                    path: path.into_iter().map(<[u8]>::to_vec).collect(),
                    inode,
                    node,
                });
            } else {
                // Link counts are not used, since those of some writers are wrong.
                linked.insert(inode.number, node);
            }
        }
        pending.extend(below.into_iter().rev());
    }
    Ok(root_node)
}

fn meta(image: &Image, inode: &Inode) -> Result<Meta> {
    Ok(Meta {
        number: 0,
        mode: inode.mode,
        uid: image.uid(inode)?,
        gid: image.gid(inode)?,
        mtime: inode.mtime,
        xattrs: image.xattrs(inode)?,
    })
}

fn push_one(image: &Image, inode: &Inode, writer: &mut ImageWriter) -> Result<NodeId> {
    let meta = meta(image, inode)?;
    Ok(match &inode.body {
        InodeBody::Directory(_) => writer.add_directory(&meta)?,
        InodeBody::File(_) => writer.add_carried(&meta, &image.file_layout(inode)?)?,
        InodeBody::Symlink(target) => writer.add_symlink(&meta, target)?,
        InodeBody::BlockDevice(raw) => writer.add_block_device(&meta, u64::from(*raw))?,
        InodeBody::CharDevice(raw) => writer.add_char_device(&meta, u64::from(*raw))?,
        InodeBody::Fifo => writer.add_fifo(&meta)?,
        InodeBody::Socket => writer.add_socket(&meta)?,
    })
}
