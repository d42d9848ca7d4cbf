//! Imports a tar archive, such as those of conda-pack. The image contains what GNU tar would
//! unpack.
//!
//! `reader.rs` reads entries from the bytes of `stream.rs`; `header.rs`, `pax.rs` and `sparse.rs`
//! parse their formats. `tree.rs` unpacks entries in memory, without their content. `content.rs`
//! provides the content to the image writer.

mod content;
mod error;
mod header;
mod pax;
mod reader;
mod sparse;
mod stream;
mod tree;

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::Path;

use super::{ImportOptions, TreeSize, is_storable};
use crate::commit::error::{CommitError, Result};
use crate::commit::exclude::Exclude;
use crate::progress::{Progress, Report};
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody, InodeRef, MAX_NAME, MAX_SYMLINK};
use crate::squashfs::writer::{Content, ImageWriter, Meta, NodeId, WriteStats};
use error::Error;
use header::{BLOCK, Header};
use reader::{Entry, Kind, Reader};
use tree::{Object, Tree, parts, shown};

/// A file of zeros up to this size, in bytes, is an archive without entries: tar pads its last
/// record with zeros.
pub(super) const MAX_EMPTY: u64 = 1 << 20;

/// The compression of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Plain,
    Gzip,
    Zstd,
    Xz,
}

impl Codec {
    /// Detects an archive and its compression from its first 512 bytes and its length. Returns
    /// `None` if it is not an archive.
    pub(super) fn detect(head: &[u8], len: u64) -> Option<Codec> {
        if head.starts_with(&[0x1f, 0x8b]) {
            Some(Codec::Gzip)
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Some(Codec::Zstd)
        } else if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            Some(Codec::Xz)
        } else {
            let block: [u8; BLOCK] = head.try_into().ok()?;
            let is_empty = len <= MAX_EMPTY && block.iter().all(|byte| *byte == 0);
            let has_magic = block.get(257..262) == Some(b"ustar");
            (is_empty || has_magic || Header::new(block).is_some()).then_some(Codec::Plain)
        }
    }
}

/// A packed archive.
pub(super) struct Packed {
    pub(super) stats: WriteStats,
    pub(super) size: TreeSize,
    /// Messages about names that were changed.
    pub(super) notes: Vec<String>,
    tree: Tree,
}

/// Packs an archive into the image file `to`.
///
/// If entries replace files of earlier entries, the archive is read again without these files,
/// since their content must not be in the image.
pub(super) fn pack(
    source: &Path,
    codec: Codec,
    options: &ImportOptions,
    to: &Path,
    progress: &dyn Progress,
) -> Result<Packed> {
    let mut replaced = HashSet::new();
    loop {
        let mut unpacking = Unpacking {
            source,
            codec,
            exclude: options.exclude()?,
            spool: to.with_extension("spool"),
            replaced: &replaced,
            tree: Tree::new(),
            bytes: 0,
            absolute_names: 0,
            trimmed_links: 0,
        };
        let mut names = 0;
        let mut found: HashSet<usize> = HashSet::new();
        let packed = super::pack(options, to, TreeSize::default(), progress, |writer| {
            unpacking.run(writer)?;
            found = unpacking.tree.replaced().collect();
            found.retain(|entry| !replaced.contains(entry));
            if !found.is_empty() {
                // Removes the unfinished image, and packs again without them.
                return Err(CommitError::Cancelled);
            }
            let (root, count) = unpacking.tree.push(&default_meta(), writer)?;
            names = count;
            Ok(root)
        });
        if !found.is_empty() {
            replaced = found;
            continue;
        }
        let stats = packed?;
        return Ok(Packed {
            stats,
            size: TreeSize {
                entries: names + 1,
                bytes: unpacking.bytes,
            },
            notes: unpacking.notes(),
            tree: unpacking.tree,
        });
    }
}

/// One pass over an archive.
struct Unpacking<'a> {
    source: &'a Path,
    codec: Codec,
    exclude: Exclude,
    spool: std::path::PathBuf,
    /// Indexes of entries whose content is not packed, because later entries replace them.
    replaced: &'a HashSet<usize>,
    tree: Tree,
    bytes: u64,
    /// Number of entries with an absolute name.
    absolute_names: u64,
    /// Number of hard links whose target is absolute or contains "..".
    trimmed_links: u64,
}

impl Unpacking<'_> {
    fn run(&mut self, writer: &mut ImageWriter) -> Result<()> {
        let in_archive = |e: Error| e.of(self.source);
        let mut reader = Reader::open(self.source, self.codec).map_err(in_archive)?;
        while let Some(entry) = reader.next().map_err(|e| e.of(self.source))? {
            self.take(entry, &mut reader, writer)?;
        }
        Ok(())
    }

    fn take(&mut self, entry: Entry, reader: &mut Reader, writer: &mut ImageWriter) -> Result<()> {
        let in_archive = |e: Error| e.of(self.source);
        let path = components(&entry.path).map_err(in_archive)?;
        if self.exclude.covers(&path) {
            return Ok(());
        }
        self.absolute_names += u64::from(entry.path.starts_with(b"/"));
        let object = match entry.kind {
            Kind::HardLink => {
                let (target, is_trimmed) = link_target(&entry.link);
                self.trimmed_links += u64::from(is_trimmed);
                return self.tree.link(&path, &target).map_err(in_archive);
            }
            Kind::Directory => Object::Directory(Default::default(), Some(meta_of(&entry))),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    let why = format!("the symbolic link {} has no target", shown(&path));
                    return Err(in_archive(Error::Refused(why)));
                }
                if entry.link.len() > MAX_SYMLINK {
                    let why = format!(
                        "the target of the symbolic link {} is longer than {MAX_SYMLINK} bytes",
                        shown(&path)
                    );
                    return Err(in_archive(Error::Refused(why)));
                }
                let meta = Meta {
                    mode: 0o777,
                    ..meta_of(&entry)
                };
                Object::Symlink(meta, entry.link.as_slice().into())
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let number = nix::sys::stat::makedev(entry.device.0, entry.device.1);
                match entry.kind {
                    Kind::BlockDevice => Object::BlockDevice(meta_of(&entry), number),
                    _ => Object::CharDevice(meta_of(&entry), number),
                }
            }
            Kind::Fifo => Object::Fifo(meta_of(&entry)),
            // It still replaces what earlier entries left at its path.
            Kind::File if self.replaced.contains(&entry.index) => {
                Object::File(entry.index, NodeId::default())
            }
            Kind::File => {
                let source = reader
                    .source(&entry, shown(&path), &self.spool)
                    .map_err(in_archive)?;
                let size = entry.map.size;
                let node = writer.add_file(&meta_of(&entry), size, Box::new(source))?;
                self.bytes = self.bytes.saturating_add(size);
                Object::File(entry.index, node)
            }
        };
        self.tree.add(&path, object).map_err(|e| e.of(self.source))
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.absolute_names > 0 {
            notes.push(format!(
                "names in the archive that begin with /, which was removed: {}",
                self.absolute_names
            ));
        }
        if self.trimmed_links > 0 {
            notes.push(format!(
                "hard links with an absolute target or one with .., which was shortened to a path in the archive: {}",
                self.trimmed_links
            ));
        }
        notes
    }
}

/// Returns the components of a path. Rejects a path with "..", which could lead outside the root.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let path: Vec<&[u8]> = parts(path).collect();
    let refuse = |why: &str| {
        let path = shown(&path);
        Err(Error::Refused(format!("entry {path} {why}")))
    };
    if path.contains(&&b".."[..]) {
        return refuse("contains ..");
    }
    if path.iter().any(|name| name.len() > MAX_NAME) {
        return refuse("has a name longer than 255 bytes");
    }
    Ok(path)
}

/// Returns the components of a hard link's target after the last "..", and true if any were
/// removed.
fn link_target(link: &[u8]) -> (Vec<&[u8]>, bool) {
    let path: Vec<&[u8]> = parts(link).collect();
    let from = path.iter().rposition(|part| *part == b"..");
    let from = from.map_or(0, |at| at + 1);
    let is_trimmed = from > 0 || link.starts_with(b"/");
    (path.get(from..).unwrap_or_default().to_vec(), is_trimmed)
}

/// Returns the user and group of this process, which own what an ordinary user unpacks, as with
/// `tar -x`.
fn owner() -> (u32, u32) {
    (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    )
}

/// Returns the attributes of directories without an entry.
fn default_meta() -> Meta {
    let (uid, gid) = owner();
    Meta {
        mode: 0o755,
        uid,
        gid,
        mtime: super::super::mkfs_time(),
        ..Meta::default()
    }
}

fn meta_of(entry: &Entry) -> Meta {
    let (mut uid, mut gid) = owner();
    if uid == 0 {
        uid = u32::try_from(entry.uid).unwrap_or(uid);
        gid = u32::try_from(entry.gid).unwrap_or(gid);
    }
    let xattrs = entry.xattrs.iter();
    Meta {
        number: 0,
        mode: entry.mode,
        uid,
        gid,
        // SquashFS stores whole seconds from 1970 to 2106.
        mtime: u32::try_from(entry.mtime.max(0)).unwrap_or(u32::MAX),
        xattrs: xattrs
            .filter(|(name, _)| is_storable(name))
            .cloned()
            .collect(),
    }
}

/// Compares an image with the archive that it was made from: every name, and the content of every
/// file. Fails with [`CommitError::Check`] at the first difference.
pub(super) fn compare(
    source: &Path,
    codec: Codec,
    packed: &Packed,
    image: &Image,
    progress: &dyn Progress,
) -> Result<()> {
    let files = same_names(&packed.tree, image)?;
    let mut reader = Reader::open(source, codec).map_err(|e| e.of(source))?;
    while let Some(entry) = reader.next().map_err(|e| e.of(source))? {
        if let Some(inode) = files.get(&entry.index) {
            let label = shown(&parts(&entry.path).collect::<Vec<_>>());
            let mut content = reader.once(&entry, label.clone()).content();
            let is_cancelled = || progress.is_cancelled();
            match same_content(&mut content, image, &image.inode(*inode)?, is_cancelled) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(CommitError::Check(format!(
                        "the content of {label} differs"
                    )));
                }
                Err(Incomparable::Image(e)) => return Err(e.into()),
                Err(Incomparable::Archive(e)) => return Err(Error::Io(e).of(source)),
                Err(Incomparable::Cancelled) => return Err(CommitError::Cancelled),
            }
        }
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        progress.report(&Report {
            phase: "verifying".to_owned(),
            files_done: entry.index as u64 + 1,
            files_total: packed.size.entries,
            bytes_done: 0,
            bytes_total: 0,
        });
    }
    Ok(())
}

/// Compares names and kinds in an image with the tree that it was made from. Returns the inode of
/// each file by the index of its entry.
fn same_names(tree: &Tree, image: &Image) -> Result<HashMap<usize, InodeRef>> {
    let mut files = HashMap::new();
    let mut pending = vec![(0, image.inode(image.root())?)];
    while let Some((index, dir)) = pending.pop() {
        let listing = image.read_dir(&dir)?;
        let mut theirs = listing.iter();
        for (name, index) in tree.entries(index) {
            let wrong = || {
                let name = String::from_utf8_lossy(name);
                CommitError::Check(format!("the entry {name:?} differs"))
            };
            let (_, entry) = theirs
                .next()
                .filter(|(their, _)| *their == name)
                .ok_or_else(wrong)?;
            let inode = image.entry_inode(&entry)?;
            match (tree.object(index), &inode.body) {
                (Some(Object::Directory(..)), InodeBody::Directory(_)) => {
                    pending.push((index, inode));
                }
                (Some(Object::File(number, _)), InodeBody::File(_)) => {
                    files.insert(*number, entry.inode);
                }
                (Some(Object::Symlink(_, target)), InodeBody::Symlink(found))
                    if **target == **found => {}
                (Some(Object::BlockDevice(..)), InodeBody::BlockDevice(_))
                | (Some(Object::CharDevice(..)), InodeBody::CharDevice(_))
                | (Some(Object::Fifo(_)), InodeBody::Fifo) => {}
                _ => return Err(wrong()),
            }
        }
        if theirs.next().is_some() {
            return Err(CommitError::Check(
                "a directory has an additional name".to_owned(),
            ));
        }
    }
    Ok(files)
}

/// The reason why content could not be compared.
enum Incomparable {
    Image(crate::squashfs::Error),
    Archive(io::Error),
    Cancelled,
}

fn same_content(
    content: &mut content::FileContent,
    image: &Image,
    inode: &Inode,
    is_cancelled: impl Fn() -> bool,
) -> Result<bool, Incomparable> {
    let layout = image.file_layout(inode).map_err(Incomparable::Image)?;
    let mut ours = Vec::new();
    for index in 0..layout.block_count() {
        if index % 1024 == 0 && is_cancelled() {
            return Err(Incomparable::Cancelled);
        }
        let is_hole = usize::try_from(index)
            .ok()
            .and_then(|index| layout.blocks().get(index))
            .is_some_and(|word| word.is_hole());
        let len = layout.block_len(index) as u64;
        if is_hole && content.hole_ahead().map_err(Incomparable::Archive)? >= len {
            content.skip(len).map_err(Incomparable::Archive)?;
            continue;
        }
        let block = image.block(&layout, index).map_err(Incomparable::Image)?;
        ours.resize(block.len(), 0);
        content
            .read_exact(&mut ours)
            .map_err(Incomparable::Archive)?;
        if ours[..] != block[..] {
            return Ok(false);
        }
    }
    let more = content.read(&mut [0]).map_err(Incomparable::Archive)?;
    Ok(more == 0)
}
