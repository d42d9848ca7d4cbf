//! Imports a directory: packs it, and compares the image with it.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{ImportOptions, TreeSize, is_storable};
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
    /// A path that is valid while the walk is in its directory.
    path: PathBuf,
    meta: Metadata,
}

/// A file of the source. Its path may be longer than `PATH_MAX`.
struct SourceFile(PathBuf);

impl Source for SourceFile {
    fn open(&self) -> io::Result<Box<dyn Content>> {
        Ok(Box::new(walk::open_long(&self.0)?))
    }

    fn label(&self) -> String {
        self.0.display().to_string()
    }
}

/// Packs a directory into the image file `to`. Returns the size of the tree.
pub(super) fn pack(
    source: &Path,
    options: &ImportOptions,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(WriteStats, TreeSize)> {
    if to.starts_with(fs::canonicalize(source).context("resolve", source)?) {
        let why = "the image would be written inside it".to_owned();
        return Err(CommitError::Unsuitable {
            path: source.to_owned(),
            why,
        });
    }
    let exclude = options.exclude()?;
    let ranks = options.first.iter().enumerate();
    let mut count = Count {
        exclude: &exclude,
        progress,
        wanted: ranks.rev().map(|(at, path)| (clean(path), at)).collect(),
        first: Vec::new(),
        size: TreeSize {
            entries: 1,
            bytes: 0,
        },
    };
    walk::walk(source, (), &mut count)?;
    let (size, mut first) = (count.size, count.first);
    first.sort_by_key(|file| file.rank);
    let stats = super::pack(options, to, size, progress, |writer| {
        push(source, &exclude, first, writer)
    })?;
    Ok((stats, size))
}

/// Returns a path without `.` components and repeated slashes.
fn clean(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| !matches!(part, std::path::Component::CurDir))
        .collect()
}

/// A file whose data comes first.
struct First {
    /// Its place among them.
    rank: usize,
    path: PathBuf,
    stat: Metadata,
    meta: Meta,
}

/// Counts the entries and bytes to be packed, and finds the files whose data comes first.
struct Count<'a> {
    exclude: &'a Exclude,
    progress: &'a dyn Progress,
    size: TreeSize,
    /// Paths below the source with their ranks.
    wanted: HashMap<PathBuf, usize>,
    first: Vec<First>,
}

impl Count<'_> {
    fn find_first(&mut self, here: &CurrentDir<'_>, entry: Entry) -> Result<()> {
        let path = shown(here, &entry.name);
        if let Some(rank) = self.wanted.remove(&here.below(&entry.name)) {
            let meta = meta_of(&entry.meta, entry_xattrs(here, &entry)?);
            self.first.push(First {
                rank,
                path,
                stat: entry.meta,
                meta,
            });
        }
        Ok(())
    }
}

impl Visitor for Count<'_> {
    type Tag = ();
    type Error = CommitError;

    fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> Result<Vec<(Vec<u8>, ())>> {
        let mut below = Vec::new();
        for entry in read_dir(here, self.exclude)? {
            self.size.entries += 1;
            if entry.meta.is_dir() {
                below.push((entry.name, ()));
            } else if entry.meta.is_file() {
                self.size.bytes += entry.meta.len();
                if !self.wanted.is_empty() {
                    self.find_first(here, entry)?;
                }
            }
        }
        if self.progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        self.progress.report(&Report {
            phase: "counting".to_owned(),
            files_done: self.size.entries,
            files_total: 0,
            bytes_done: self.size.bytes,
            bytes_total: 0,
        });
        Ok(below)
    }
}

/// Reads the entries of a directory that are not excluded, in the order of names.
fn read_dir(here: &CurrentDir<'_>, exclude: &Exclude) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let failed = |error| CommitError::Io {
        doing: "read",
        path: here.full_path(),
        error,
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
            path: entry.path(),
            meta: meta.or_else(|e| Err(e).context("stat", &shown(here, &name)))?,
            name,
        });
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Returns the path of an entry for messages.
fn shown(here: &CurrentDir<'_>, name: &[u8]) -> PathBuf {
    here.full_path().join(std::ffi::OsStr::from_bytes(name))
}

fn push(
    source: &Path,
    exclude: &Exclude,
    first: Vec<First>,
    writer: &mut ImageWriter,
) -> Result<NodeId> {
    let root_meta = fs::metadata(source).context("stat", source)?;
    let xattrs = xattrs_of(source).context("read the extended attributes of", source)?;
    let root = writer.add_directory(&meta_of(&root_meta, xattrs))?;
    let mut push = Push {
        exclude,
        writer,
        linked: HashMap::new(),
    };
    let has_first = !first.is_empty();
    for file in first {
        let key = (file.stat.dev(), file.stat.ino());
        if !push.linked.contains_key(&key) {
            let content = Box::new(SourceFile(file.path));
            let node = push.writer.add_file(&file.meta, file.stat.len(), content)?;
            push.linked.insert(key, node);
        }
    }
    if has_first {
        push.writer.end_fragment()?;
    }
    walk::walk(source, root, &mut push)?;
    Ok(root)
}

/// Pushes the tree directory by directory, with the entries of each in the order of names.
struct Push<'a> {
    exclude: &'a Exclude,
    writer: &'a mut ImageWriter,
    /// Files that come first or have several names, by device and inode number.
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
    let meta = meta_of(&entry.meta, entry_xattrs(here, entry)?);
    let kind = entry.meta.file_type();
    Ok(if kind.is_dir() {
        writer.add_directory(&meta)?
    } else if kind.is_symlink() {
        writer.add_symlink(&meta, &target_of(here, entry)?)?
    } else if kind.is_file() {
        let path = shown(here, &entry.name);
        writer.add_file(&meta, entry.meta.len(), Box::new(SourceFile(path)))?
    } else if kind.is_block_device() {
        writer.add_block_device(&meta, entry.meta.rdev())?
    } else if kind.is_char_device() {
        writer.add_char_device(&meta, entry.meta.rdev())?
    } else if kind.is_fifo() {
        writer.add_fifo(&meta)?
    } else {
        writer.add_socket(&meta)?
    })
}

fn entry_xattrs(here: &CurrentDir<'_>, entry: &Entry) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let xattrs = xattrs_of(&entry.path);
    xattrs.or_else(|e| Err(e).context("read the extended attributes of", &shown(here, &entry.name)))
}

fn target_of(here: &CurrentDir<'_>, entry: &Entry) -> Result<Vec<u8>> {
    match fs::read_link(&entry.path) {
        Ok(target) => Ok(target.as_os_str().as_bytes().to_vec()),
        Err(e) => Err(e).context("read the symbolic link", &shown(here, &entry.name)),
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

/// Returns the extended attributes that are imported, sorted.
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

/// Compares an image with the directory that it was made from: every name, attribute and byte.
/// Fails with [`CommitError::SourceChanged`] at the first difference.
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
                Err(_) => return Err(CommitError::Check("a comparing thread panicked".to_owned())),
            }
        }
        walked
    })
}

/// Compares names and attributes directory by directory, and sends files to the threads that
/// compare content.
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
                    // Fails only if all readers have ended. Their error takes precedence.
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
    let xattrs = entry_xattrs(here, entry)?;
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
