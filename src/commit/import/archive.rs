//! A tar archive as the source of an environment, such as conda-pack makes.
//!
//! `reader.rs` turns headers into entries (`header.rs`, `pax.rs` and `sparse.rs` know the formats), `tree.rs`
//! unpacks them in memory, all but content; `content.rs` hands content to the image writer. GNU tar is the
//! measure: what it would unpack is what the image has.

mod content;
mod error;
mod header;
mod pax;
mod reader;
mod sparse;
mod tree;

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::Path;

use super::{Extent, ImportOptions, is_storable};
use crate::commit::error::{CommitError, Result};
use crate::commit::exclude::Exclude;
use crate::progress::{Progress, Report};
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody, MAX_NAME, MAX_SYMLINK};
use crate::squashfs::writer::{Content, ImageWriter, Meta, WriteStats};
use error::Error;
use header::{BLOCK, Header};
use reader::{Entry, Kind, Reader};
use tree::{Object, Tree, parts, shown};

/// A file of zeros up to this size is an archive without entries; tar fills its last record with zeros.
const MAX_EMPTY: u64 = 1 << 20;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
    Xz,
}

impl Packing {
    /// Recognises an archive by its first 512 bytes and its length.
    pub(super) fn of(head: &[u8], len: u64) -> Option<Packing> {
        if head.starts_with(&[0x1f, 0x8b]) {
            Some(Packing::Gzip)
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Some(Packing::Zstd)
        } else if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            Some(Packing::Xz)
        } else {
            let block: [u8; BLOCK] = head.try_into().ok()?;
            let is_empty = len <= MAX_EMPTY && block.iter().all(|byte| *byte == 0);
            let has_magic = block.get(257..262) == Some(b"ustar");
            (is_empty || has_magic || Header::new(block).is_some()).then_some(Packing::Plain)
        }
    }
}

/// What an archive became.
pub(super) struct Packed {
    pub(super) stats: WriteStats,
    pub(super) extent: Extent,
    /// What the user should know.
    pub(super) notes: Vec<String>,
    tree: Tree,
}

/// Packs an archive. It is read once here and once more to compare; and once more in between if entries
/// replace files of earlier ones, whose content must not be in the image.
pub(super) fn pack(
    source: &Path,
    packing: Packing,
    options: &ImportOptions,
    to: &Path,
    progress: &dyn Progress,
) -> Result<Packed> {
    let mut replaced = HashSet::new();
    loop {
        let mut unpacking = Unpacking {
            source,
            packing,
            exclude: options.exclude()?,
            spool: to.with_extension("spool"),
            replaced: &replaced,
            tree: Tree::new(),
            bytes: 0,
            rooted: 0,
            climbing: 0,
        };
        let mut names = 0;
        let mut found: HashSet<usize> = HashSet::new();
        let packed = super::pack(options, to, Extent::default(), progress, |writer| {
            unpacking.run(writer)?;
            found = unpacking.tree.replaced().collect();
            found.retain(|entry| !replaced.contains(entry));
            if !found.is_empty() {
                // Begins again without them.
                return Err(CommitError::Cancelled);
            }
            let (root, count) = unpacking.tree.push(&usual_meta(), writer)?;
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
            extent: Extent {
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
    packing: Packing,
    exclude: Exclude,
    spool: std::path::PathBuf,
    /// Entries whose content is not wanted: later ones replace them.
    replaced: &'a HashSet<usize>,
    tree: Tree,
    bytes: u64,
    /// Entries with an absolute name, and links to something above their root.
    rooted: u64,
    climbing: u64,
}

impl Unpacking<'_> {
    fn run(&mut self, writer: &mut ImageWriter) -> Result<()> {
        let of = |e: Error| e.of(self.source);
        let mut reader = Reader::open(self.source, self.packing).map_err(of)?;
        while let Some(entry) = reader.next().map_err(|e| e.of(self.source))? {
            self.take(entry, &mut reader, writer)?;
        }
        Ok(())
    }

    fn take(&mut self, entry: Entry, reader: &mut Reader, writer: &mut ImageWriter) -> Result<()> {
        let of = |e: Error| e.of(self.source);
        let path = inside(&entry.path).map_err(of)?;
        if self.exclude.covers(&path) {
            return Ok(());
        }
        self.rooted += u64::from(entry.path.starts_with(b"/"));
        let object = match entry.kind {
            Kind::HardLink => {
                let (target, climbs) = link_target(&entry.link);
                self.climbing += u64::from(climbs);
                return self.tree.link(&path, &target).map_err(of);
            }
            Kind::Directory => Object::Directory(Default::default(), Some(meta_of(&entry))),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    let why = format!("its symbolic link {} has no target", shown(&path));
                    return Err(of(Error::Refused(why)));
                }
                if entry.link.len() > MAX_SYMLINK {
                    let why = format!(
                        "the target of its symbolic link {} is too long",
                        shown(&path)
                    );
                    return Err(of(Error::Refused(why)));
                }
                let meta = Meta {
                    mode: 0o777,
                    ..meta_of(&entry)
                };
                Object::Symlink(meta, entry.link.as_slice().into())
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let number = nix::sys::stat::makedev(entry.device.0, entry.device.1);
                Object::Device(meta_of(&entry), entry.kind == Kind::BlockDevice, number)
            }
            Kind::Fifo => Object::Fifo(meta_of(&entry)),
            // A file that is replaced later still replaces what was there.
            Kind::File if self.replaced.contains(&entry.index) => {
                Object::File(entry.index, crate::squashfs::writer::NodeId::default())
            }
            Kind::File => {
                let source = reader
                    .source(&entry, shown(&path), &self.spool)
                    .map_err(of)?;
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
        if self.rooted > 0 {
            notes.push(format!(
                "names in the archive that begin with / ({}) were taken without it",
                self.rooted
            ));
        }
        if self.climbing > 0 {
            notes.push(format!(
                "hard links to absolute names or through .. ({}) were taken as links below the root",
                self.climbing
            ));
        }
        notes
    }
}

/// The names of a path below the root; refuses what leads outside.
fn inside(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let path: Vec<&[u8]> = parts(path).collect();
    let refuse = |why: &str| {
        let path = shown(&path);
        Err(Error::Refused(format!("its entry {path} {why}")))
    };
    if path.contains(&&b".."[..]) {
        return refuse("leads outside");
    }
    if path.iter().any(|name| name.len() > MAX_NAME) {
        return refuse("has a name of more than 255 bytes");
    }
    Ok(path)
}

/// The target of a hard link: what is left of it behind the last "..", and whether anything was cut.
fn link_target(link: &[u8]) -> (Vec<&[u8]>, bool) {
    let path: Vec<&[u8]> = parts(link).collect();
    let from = path.iter().rposition(|part| *part == b"..");
    let from = from.map_or(0, |at| at + 1);
    let climbs = from > 0 || link.starts_with(b"/");
    (path.get(from..).unwrap_or_default().to_vec(), climbs)
}

/// Who unpacks: an ordinary user owns what they import, as with `tar -x`.
fn owner() -> (u32, u32) {
    (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    )
}

/// The attributes of directories that have no entry of their own.
fn usual_meta() -> Meta {
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
        // SquashFS keeps whole seconds from 1970 to 2106.
        mtime: u32::try_from(entry.mtime.max(0)).unwrap_or(u32::MAX),
        xattrs: xattrs
            .filter(|(name, _)| is_storable(name))
            .cloned()
            .collect(),
    }
}

/// Compares an image with the archive it was made of: every name, and every file's content.
pub(super) fn compare(
    source: &Path,
    packing: Packing,
    packed: &Packed,
    image: &Image,
    progress: &dyn Progress,
) -> Result<()> {
    let files = same_names(&packed.tree, image)?;
    let mut reader = Reader::open(source, packing).map_err(|e| e.of(source))?;
    while let Some(entry) = reader.next().map_err(|e| e.of(source))? {
        if let Some(inode) = files.get(&entry.index) {
            let label = shown(&parts(&entry.path).collect::<Vec<_>>());
            let mut content = reader.once(&entry, label.clone()).content();
            let is_cancelled = || progress.is_cancelled();
            match same_content(&mut content, image, &image.inode(*inode)?, is_cancelled) {
                Ok(true) => {}
                Ok(false) => return Err(CommitError::Check(format!("content of {label}"))),
                Err(Different::Image(e)) => return Err(e.into()),
                Err(Different::Archive(e)) => return Err(Error::Io(e).of(source)),
                Err(Different::Cancelled) => return Err(CommitError::Cancelled),
            }
        }
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        progress.report(&Report {
            phase: "verifying".to_owned(),
            files_done: entry.index as u64 + 1,
            files_total: packed.extent.entries,
            bytes_done: 0,
            bytes_total: 0,
        });
    }
    Ok(())
}

/// Compares the names and kinds in an image with the tree it was made of. Returns where the file of each entry
/// is.
fn same_names(
    tree: &Tree,
    image: &Image,
) -> Result<HashMap<usize, crate::squashfs::format::InodeRef>> {
    let mut files = HashMap::new();
    let mut pending = vec![(0, image.inode(image.root())?)];
    while let Some((index, dir)) = pending.pop() {
        let listing = image.read_dir(&dir)?;
        let mut theirs = listing.iter();
        for (name, index) in tree.entries(index) {
            let wrong = || CommitError::Check(format!("name {:?}", String::from_utf8_lossy(name)));
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
                (Some(Object::Device(_, true, _)), InodeBody::BlockDevice(_))
                | (Some(Object::Device(_, false, _)), InodeBody::CharDevice(_))
                | (Some(Object::Fifo(_)), InodeBody::Fifo) => {}
                _ => return Err(wrong()),
            }
        }
        if theirs.next().is_some() {
            return Err(CommitError::Check("a name too many".to_owned()));
        }
    }
    Ok(files)
}

/// Why two contents could not be compared.
enum Different {
    Image(crate::squashfs::Error),
    Archive(io::Error),
    Cancelled,
}

fn same_content(
    content: &mut content::FileContent,
    image: &Image,
    inode: &Inode,
    is_cancelled: impl Fn() -> bool,
) -> Result<bool, Different> {
    let layout = image.file_layout(inode).map_err(Different::Image)?;
    let mut ours = Vec::new();
    for index in 0..layout.block_count() {
        if index % 1024 == 0 && is_cancelled() {
            return Err(Different::Cancelled);
        }
        let is_hole = usize::try_from(index)
            .ok()
            .and_then(|index| layout.blocks().get(index))
            .is_some_and(|word| word.is_hole());
        let len = layout.block_len(index) as u64;
        if is_hole && content.hole_ahead().map_err(Different::Archive)? >= len {
            content.skip(len).map_err(Different::Archive)?;
            continue;
        }
        let block = image.block(&layout, index).map_err(Different::Image)?;
        ours.resize(block.len(), 0);
        content.read_exact(&mut ours).map_err(Different::Archive)?;
        if ours[..] != block[..] {
            return Ok(false);
        }
    }
    // There must be no more.
    let more = content.read(&mut [0]).map_err(Different::Archive)?;
    Ok(more == 0)
}
