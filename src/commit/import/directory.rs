//! A directory as the source of an environment.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Extent, ImportOptions, is_storable};
use crate::commit::error::{CommitError, Context, Result};
use crate::commit::exclude::Exclude;
use crate::progress::{Progress, Report};
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody};
use crate::squashfs::writer::{Content, ImageWriter, Meta, NodeId, Source, WriteStats};
use crate::sys::walk::{self, CurrentDir, Visitor};

/// One entry of a source directory.
struct Entry {
    name: Vec<u8>,
    /// Where it can be reached while the walk is in its directory.
    place: PathBuf,
    meta: Metadata,
}

/// A file of the source, whose path may be longer than the system takes.
struct SourceFile(PathBuf);

impl Source for SourceFile {
    fn open(&self) -> io::Result<Box<dyn Content>> {
        Ok(Box::new(walk::open_long(&self.0)?))
    }

    fn label(&self) -> String {
        self.0.display().to_string()
    }
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
    let mut count = Count {
        exclude: &exclude,
        progress,
        extent: Extent {
            entries: 1,
            bytes: 0,
        },
    };
    walk::walk(source, (), &mut count)?;
    let extent = count.extent;
    let stats = super::pack(options, to, extent, progress, |writer| {
        push(source, &exclude, writer)
    })?;
    Ok((stats, extent))
}

/// Counts what will be packed.
struct Count<'a> {
    exclude: &'a Exclude,
    progress: &'a dyn Progress,
    extent: Extent,
}

impl Visitor for Count<'_> {
    type Tag = ();
    type Error = CommitError;

    fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> Result<Vec<(Vec<u8>, ())>> {
        let mut below = Vec::new();
        for entry in read_dir(here, self.exclude)? {
            self.extent.entries += 1;
            if entry.meta.is_dir() {
                below.push((entry.name, ()));
            } else if entry.meta.is_file() {
                self.extent.bytes += entry.meta.len();
            }
        }
        if self.progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        self.progress.report(&Report {
            phase: "counting".to_owned(),
            files_done: self.extent.entries,
            files_total: 0,
            bytes_done: self.extent.bytes,
            bytes_total: 0,
        });
        Ok(below)
    }
}

/// Reads a directory in the order of names, without what is excluded.
fn read_dir(here: &CurrentDir<'_>, exclude: &Exclude) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let failed = |source| CommitError::Io {
        doing: "read",
        path: here.full_path(),
        source,
    };
    for entry in fs::read_dir(here.path()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().as_bytes().to_vec();
        if !exclude.is_empty() {
            let mut path: Vec<&[u8]> = here.names().iter().map(Vec::as_slice).collect();
            path.push(&name);
            if exclude.matches(&path) {
                continue;
            }
        }
        let meta = entry.metadata();
        entries.push(Entry {
            place: entry.path(),
            meta: meta.or_else(|e| Err(e).context("look at", &shown(here, &name)))?,
            name,
        });
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The path of an entry in messages.
fn shown(here: &CurrentDir<'_>, name: &[u8]) -> PathBuf {
    here.full_path().join(std::ffi::OsStr::from_bytes(name))
}

fn push(source: &Path, exclude: &Exclude, writer: &mut ImageWriter) -> Result<NodeId> {
    let root_meta = fs::metadata(source).context("look at", source)?;
    let xattrs = xattrs_of(source).context("read the attributes of", source)?;
    let root = writer.add_directory(&meta_of(&root_meta, xattrs))?;
    let mut push = Push {
        exclude,
        writer,
        linked: HashMap::new(),
    };
    walk::walk(source, root, &mut push)?;
    Ok(root)
}

/// Pushes directory by directory, each with its entries in the order of names.
struct Push<'a> {
    exclude: &'a Exclude,
    writer: &'a mut ImageWriter,
    /// Files with several names, by device and inode number.
    linked: HashMap<(u64, u64), NodeId>,
}

impl Visitor for Push<'_> {
    type Tag = NodeId;
    type Error = CommitError;

    fn enter(&mut self, here: &CurrentDir<'_>, dir: NodeId) -> Result<Vec<(Vec<u8>, NodeId)>> {
        let mut below = Vec::new();
        for entry in read_dir(here, self.exclude)? {
            let key = (entry.meta.dev(), entry.meta.ino());
            let node = match self.linked.get(&key) {
                Some(node) => *node,
                None => push_entry(here, &entry, self.writer)?,
            };
            self.writer.link(dir, &entry.name, node)?;
            if entry.meta.is_dir() {
                below.push((entry.name, node));
            } else if entry.meta.nlink() > 1 {
                self.linked.insert(key, node);
            }
        }
        Ok(below)
    }
}

fn push_entry(here: &CurrentDir<'_>, entry: &Entry, writer: &mut ImageWriter) -> Result<NodeId> {
    let xattrs = xattrs_of(&entry.place);
    let xattrs =
        xattrs.or_else(|e| Err(e).context("read the attributes of", &shown(here, &entry.name)))?;
    let meta = meta_of(&entry.meta, xattrs);
    let kind = entry.meta.file_type();
    Ok(if kind.is_dir() {
        writer.add_directory(&meta)?
    } else if kind.is_symlink() {
        writer.add_symlink(&meta, &target_of(here, entry)?)?
    } else if kind.is_file() {
        let path = shown(here, &entry.name);
        writer.add_file(&meta, entry.meta.len(), Box::new(SourceFile(path)))?
    } else if kind.is_block_device() || kind.is_char_device() {
        writer.add_device(&meta, kind.is_block_device(), entry.meta.rdev())?
    } else if kind.is_fifo() {
        writer.add_fifo(&meta)?
    } else {
        writer.add_socket(&meta)?
    })
}

fn target_of(here: &CurrentDir<'_>, entry: &Entry) -> Result<Vec<u8>> {
    match fs::read_link(&entry.place) {
        Ok(target) => Ok(target.as_os_str().as_bytes().to_vec()),
        Err(e) => Err(e).context("read the link", &shown(here, &entry.name)),
    }
}

fn meta_of(meta: &Metadata, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Meta {
    Meta {
        number: 0,
        mode: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: u32::try_from(meta.mtime().max(0)).unwrap_or(u32::MAX),
        xattrs,
    }
}

/// The extended attributes that an image can hold.
fn xattrs_of(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for name in names {
        if is_storable(name.as_bytes())
            && let Some(value) = xattr::get(path, &name)?
        {
            all.push((name.as_bytes().to_vec(), value));
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
        let mut compare = Compare {
            exclude: &options.exclude()?,
            image,
            progress,
            done: Report {
                phase: "verifying".to_owned(),
                files_done: 1,
                files_total: total,
                bytes_done: 0,
                bytes_total: 0,
            },
            files: &files,
        };
        let root = image.inode(image.root());
        let walked = root
            .map_err(CommitError::from)
            .and_then(|root| walk::walk(source, root, &mut compare));
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

/// Compares directory by directory, and hands the files to threads that compare content.
struct Compare<'a> {
    exclude: &'a Exclude,
    image: &'a Image,
    progress: &'a dyn Progress,
    done: Report,
    files: &'a crossbeam_channel::Sender<(PathBuf, Inode)>,
}

impl Visitor for Compare<'_> {
    type Tag = Inode;
    type Error = CommitError;

    fn enter(&mut self, here: &CurrentDir<'_>, inode: Inode) -> Result<Vec<(Vec<u8>, Inode)>> {
        let ours = read_dir(here, self.exclude)?;
        let theirs = self.image.read_dir(&inode)?;
        if ours.len() != theirs.len() {
            return Err(CommitError::SourceChanged(here.full_path()));
        }
        let mut below = Vec::new();
        for (entry, (name, found)) in ours.into_iter().zip(theirs.iter()) {
            let inode = self.image.entry_inode(&found)?;
            if entry.name != name || !same_meta(here, &entry, self.image, &inode)? {
                return Err(CommitError::SourceChanged(shown(here, &entry.name)));
            }
            self.done.files_done += 1;
            match &inode.body {
                InodeBody::Directory(_) => below.push((entry.name, inode)),
                InodeBody::File(body) => {
                    self.done.bytes_done += body.size;
                    // A reader that failed is gone; its error is what counts then.
                    if self.files.send((shown(here, &entry.name), inode)).is_err() {
                        return Err(CommitError::Cancelled);
                    }
                }
                _ => {}
            }
        }
        if self.progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        self.progress.report(&self.done);
        Ok(below)
    }
}

fn same_meta(here: &CurrentDir<'_>, entry: &Entry, image: &Image, inode: &Inode) -> Result<bool> {
    let meta = &entry.meta;
    let mtime = u32::try_from(meta.mtime().max(0)).unwrap_or(u32::MAX);
    let kind = meta.file_type();
    let body = match &inode.body {
        InodeBody::Directory(_) => kind.is_dir(),
        InodeBody::File(body) => kind.is_file() && body.size == meta.len(),
        InodeBody::Symlink(target) => kind.is_symlink() && target_of(here, entry)? == **target,
        InodeBody::BlockDevice(_) => kind.is_block_device(),
        InodeBody::CharDevice(_) => kind.is_char_device(),
        InodeBody::Fifo => kind.is_fifo(),
        InodeBody::Socket => kind.is_socket(),
    };
    let mut theirs = image.xattrs(inode)?;
    theirs.sort_unstable();
    let xattrs = xattrs_of(&entry.place);
    let xattrs =
        xattrs.or_else(|e| Err(e).context("read the attributes of", &shown(here, &entry.name)))?;
    Ok(body
        && u32::from(inode.mode & 0o7777) == meta.mode() & 0o7777
        && image.uid(inode)? == meta.uid()
        && image.gid(inode)? == meta.gid()
        && inode.mtime == mtime
        && theirs == xattrs)
}

fn same_content(path: &Path, image: &Image, inode: &Inode) -> Result<()> {
    let layout = image.file_layout(inode)?;
    let mut ours = Vec::new();
    let mut file = walk::open_long(path).context("read", path)?;
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
