//! A directory as the source of an environment.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Extent, ImportOptions};
use crate::commit::error::{CommitError, Context, Result};
use crate::commit::exclude::Exclude;
use crate::progress::{Progress, Report};
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody};
use crate::squashfs::writer::{ImageWriter, Meta, NodeId, WriteStats};

/// One entry of a source directory.
struct Entry {
    name: Vec<u8>,
    path: PathBuf,
    meta: Metadata,
}

/// Packs a directory.
pub(super) fn pack(
    source: &Path,
    options: &ImportOptions,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(WriteStats, Extent)> {
    if to.starts_with(fs::canonicalize(source).context("resolve", source)?) {
        let why = "the image would be written inside it".to_owned();
        return Err(CommitError::Unsuitable {
            path: source.to_owned(),
            why,
        });
    }
    let exclude = options.exclude()?;
    let extent = count(source, &exclude, progress)?;
    let stats = super::pack(options, to, extent, progress, |writer| {
        push(source, &exclude, writer)
    })?;
    Ok((stats, extent))
}

fn count(source: &Path, exclude: &Exclude, progress: &dyn Progress) -> Result<Extent> {
    let mut extent = Extent {
        entries: 1,
        bytes: 0,
    };
    let mut pending = vec![source.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in read_dir(source, &dir, exclude)? {
            extent.entries += 1;
            if entry.meta.is_dir() {
                pending.push(entry.path);
            } else if entry.meta.is_file() {
                extent.bytes += entry.meta.len();
            }
        }
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        progress.report(&Report {
            phase: "counting".to_owned(),
            files_done: extent.entries,
            files_total: 0,
            bytes_done: extent.bytes,
            bytes_total: 0,
        });
    }
    Ok(extent)
}

/// Reads a directory in the order of names, without what is excluded.
fn read_dir(source: &Path, dir: &Path, exclude: &Exclude) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).context("read", dir)? {
        let entry = entry.context("read", dir)?;
        let path = entry.path();
        let below = path.strip_prefix(source).unwrap_or(&path);
        let below: Vec<&[u8]> = below.iter().map(|part| part.as_bytes()).collect();
        if exclude.matches(&below) {
            continue;
        }
        let meta = fs::symlink_metadata(&path).context("look at", &path)?;
        entries.push(Entry {
            name: entry.file_name().as_bytes().to_vec(),
            path,
            meta,
        });
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn push(source: &Path, exclude: &Exclude, writer: &mut ImageWriter) -> Result<NodeId> {
    let root_meta = fs::metadata(source).context("look at", source)?;
    let root = writer.add_directory(&meta_of(source, &root_meta)?)?;
    let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut pending = vec![(source.to_owned(), root)];
    while let Some((dir, dir_node)) = pending.pop() {
        let mut below = Vec::new();
        for entry in read_dir(source, &dir, exclude)? {
            let key = (entry.meta.dev(), entry.meta.ino());
            let node = match linked.get(&key) {
                Some(node) => *node,
                None => push_entry(&entry, writer)?,
            };
            if entry.meta.is_dir() {
                below.push((entry.path, node));
            } else if entry.meta.nlink() > 1 {
                linked.insert(key, node);
            }
            writer.link(dir_node, &entry.name, node)?;
        }
        pending.extend(below.into_iter().rev());
    }
    Ok(root)
}

fn push_entry(entry: &Entry, writer: &mut ImageWriter) -> Result<NodeId> {
    let meta = meta_of(&entry.path, &entry.meta)?;
    let kind = entry.meta.file_type();
    Ok(if kind.is_dir() {
        writer.add_directory(&meta)?
    } else if kind.is_symlink() {
        let target = fs::read_link(&entry.path).context("read the link", &entry.path)?;
        writer.add_symlink(&meta, target.as_os_str().as_bytes())?
    } else if kind.is_file() {
        writer.add_file(&meta, entry.meta.len(), Box::new(entry.path.clone()))?
    } else if kind.is_block_device() || kind.is_char_device() {
        writer.add_device(&meta, kind.is_block_device(), entry.meta.rdev())?
    } else if kind.is_fifo() {
        writer.add_fifo(&meta)?
    } else {
        writer.add_socket(&meta)?
    })
}

fn meta_of(path: &Path, meta: &Metadata) -> Result<Meta> {
    Ok(Meta {
        number: 0,
        mode: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: u32::try_from(meta.mtime().max(0)).unwrap_or(u32::MAX),
        xattrs: xattrs_of(path)?,
    })
}

/// The extended attributes that an image can hold. Labels of a security module belong to the machine,
/// not to the environment, and POSIX ACLs have no place in SquashFS.
fn xattrs_of(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::Unsupported => return Ok(Vec::new()),
        Err(e) => return Err(e).context("list the attributes of", path),
    };
    let mut all = Vec::new();
    for name in names {
        let bytes = name.as_bytes();
        let storable = [&b"user."[..], b"trusted.", b"security."]
            .iter()
            .any(|p| bytes.starts_with(p));
        if !storable || bytes == b"security.selinux" {
            continue;
        }
        if let Some(value) = xattr::get(path, &name).context("read an attribute of", path)? {
            all.push((bytes.to_vec(), value));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Compares an image with the directory it was made of: every name, attribute and byte.
pub(super) fn compare(
    source: &Path,
    options: &ImportOptions,
    image: &Image,
    progress: &dyn Progress,
) -> Result<()> {
    let (files, queue) = crossbeam_channel::bounded::<(PathBuf, Inode)>(1024);
    let total = u64::from(image.superblock().inodes);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..options.settings.threads.get())
            .map(|_| {
                let queue = queue.clone();
                scope.spawn(move || -> Result<()> {
                    for (path, inode) in queue {
                        same_content(&path, image, &inode)?;
                    }
                    Ok(())
                })
            })
            .collect();
        drop(queue);
        let walked = walk(
            source,
            &options.exclude()?,
            image,
            total,
            progress,
            &mut |path, inode| {
                // A reader that failed is gone; its error is what counts then.
                files.send((path, inode)).is_ok()
            },
        );
        drop(files);
        for reader in readers {
            match reader.join() {
                Ok(result) => result?,
                Err(_) => return Err(CommitError::Check("the comparison died".to_owned())),
            }
        }
        walked
    })
}

fn walk(
    source: &Path,
    exclude: &Exclude,
    image: &Image,
    total: u64,
    progress: &dyn Progress,
    file: &mut dyn FnMut(PathBuf, Inode) -> bool,
) -> Result<()> {
    let mut done = Report {
        phase: "verifying".to_owned(),
        files_done: 1,
        files_total: total,
        bytes_done: 0,
        bytes_total: 0,
    };
    let mut pending = vec![(source.to_owned(), image.inode(image.root())?)];
    while let Some((dir, inode)) = pending.pop() {
        let (ours, theirs) = (read_dir(source, &dir, exclude)?, image.read_dir(&inode)?);
        if ours.len() != theirs.len() {
            return Err(CommitError::SourceChanged(dir));
        }
        for (entry, (name, found)) in ours.into_iter().zip(theirs.iter()) {
            let inode = image.entry_inode(&found)?;
            if entry.name != name || !same_meta(&entry, image, &inode)? {
                return Err(CommitError::SourceChanged(entry.path));
            }
            done.files_done += 1;
            match &inode.body {
                InodeBody::Directory(_) => pending.push((entry.path, inode)),
                InodeBody::File(body) => {
                    done.bytes_done += body.size;
                    if !file(entry.path, inode) {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        progress.report(&done);
    }
    Ok(())
}

fn same_meta(entry: &Entry, image: &Image, inode: &Inode) -> Result<bool> {
    let meta = &entry.meta;
    let mtime = u32::try_from(meta.mtime().max(0)).unwrap_or(u32::MAX);
    let kind = meta.file_type();
    let body = match &inode.body {
        InodeBody::Directory(_) => kind.is_dir(),
        InodeBody::File(body) => kind.is_file() && body.size == meta.len(),
        InodeBody::Symlink(target) => {
            kind.is_symlink() && {
                let ours = fs::read_link(&entry.path).context("read the link", &entry.path)?;
                ours.as_os_str().as_bytes() == &**target
            }
        }
        InodeBody::BlockDevice(_) => kind.is_block_device(),
        InodeBody::CharDevice(_) => kind.is_char_device(),
        InodeBody::Fifo => kind.is_fifo(),
        InodeBody::Socket => kind.is_socket(),
    };
    let mut theirs = image.xattrs(inode)?;
    theirs.sort_unstable();
    Ok(body
        && u32::from(inode.mode & 0o7777) == meta.mode() & 0o7777
        && image.uid(inode)? == meta.uid()
        && image.gid(inode)? == meta.gid()
        && inode.mtime == mtime
        && theirs == xattrs_of(&entry.path)?)
}

fn same_content(path: &Path, image: &Image, inode: &Inode) -> Result<()> {
    let layout = image.file_layout(inode)?;
    let mut ours = Vec::new();
    let mut file = File::open(path).context("read", path)?;
    for index in 0..layout.block_count() {
        let block = image.block(&layout, index)?;
        ours.resize(block.len(), 0);
        let same = file.read_exact(&mut ours).is_ok() && ours[..] == block[..];
        if !same {
            return Err(CommitError::SourceChanged(path.to_owned()));
        }
    }
    Ok(())
}
