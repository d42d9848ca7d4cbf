//! A tar archive as the source of an environment, such as conda-pack makes.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use tar::{Archive, EntryType};

use super::{Extent, ImportOptions};
use crate::commit::error::{CommitError, Context, Result};
use crate::commit::exclude::Exclude;
use crate::progress::{Progress, Report};
use crate::squashfs::Image;
use crate::squashfs::format::InodeBody;
use crate::squashfs::writer::{Content, ImageWriter, Meta, NodeId, OpenWith, WriteStats};

/// Content up to this size waits in memory for its turn, larger content in a temporary file.
const IN_MEMORY: u64 = 1 << 20;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
    Xz,
}

impl Packing {
    /// Recognises an archive by its first 512 bytes.
    pub(super) fn of(head: &[u8]) -> Option<Packing> {
        if head.starts_with(&[0x1f, 0x8b]) {
            Some(Packing::Gzip)
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Some(Packing::Zstd)
        } else if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            Some(Packing::Xz)
        } else if head.get(257..262) == Some(b"ustar") {
            Some(Packing::Plain)
        } else {
            None
        }
    }

    fn open(self, source: &Path) -> Result<Archive<Box<dyn Read>>> {
        let file = BufReader::new(File::open(source).context("open", source)?);
        let reader: Box<dyn Read> = match self {
            Packing::Plain => Box::new(file),
            Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
            Packing::Zstd => {
                Box::new(zstd::stream::read::Decoder::with_buffer(file).context("unpack", source)?)
            }
            Packing::Xz => Box::new(xz2::read::XzDecoder::new_multi_decoder(file)),
        };
        Ok(Archive::new(reader))
    }
}

/// A path inside an archive, as components; refuses what leads outside.
fn components(path: &Path, source: &Path) -> Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.as_bytes().to_vec()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                let why = format!("its entry {} leads outside", path.display());
                return Err(CommitError::Source {
                    path: source.to_owned(),
                    why,
                });
            }
        }
    }
    Ok(parts)
}

fn damaged(source: &Path, e: &io::Error) -> CommitError {
    // Only the system's own errors have a number: a full disk is not the archive's fault.
    if let Some(number) = e.raw_os_error() {
        return CommitError::Io {
            doing: "unpack",
            path: source.to_owned(),
            source: io::Error::from_raw_os_error(number),
        };
    }
    CommitError::Source {
        path: source.to_owned(),
        why: format!("the archive is damaged or cut short: {e}"),
    }
}

/// Packs an archive. It is read once here and once more to compare.
pub(super) fn pack(
    source: &Path,
    packing: Packing,
    options: &ImportOptions,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(WriteStats, Extent)> {
    let attempt = Attempt {
        source,
        packing,
        options,
        to,
        progress,
    };
    match attempt.run(None)? {
        Some(done) => Ok(done),
        None => {
            let superseded = superseded_entries(source, packing)?;
            attempt
                .run(Some(&superseded))?
                .ok_or_else(|| CommitError::Source {
                    path: source.to_owned(),
                    why: "it names a thing more than once in a way that cannot be followed"
                        .to_owned(),
                })
        }
    }
}

struct Attempt<'a> {
    source: &'a Path,
    packing: Packing,
    options: &'a ImportOptions,
    to: &'a Path,
    progress: &'a dyn Progress,
}

impl Attempt<'_> {
    /// Packs all entries but some. `None` where it is not known yet which are superseded, and a name
    /// is given more than once, as after `tar -r`: the last counts.
    fn run(&self, superseded: Option<&HashSet<usize>>) -> Result<Option<(WriteStats, Extent)>> {
        let spool = self.to.with_extension("spool");
        let source = self.source;
        let mut extent = Extent {
            entries: 1,
            bytes: 0,
        };
        let mut has_twins = false;
        let exclude = self.options.exclude()?;
        let packed = super::pack(
            self.options,
            self.to,
            Extent::default(),
            self.progress,
            |writer| {
                let mut tree = Pushed::new();
                let mut archive = self.packing.open(source)?;
                let entries = archive.entries().map_err(|e| damaged(source, &e))?;
                for (index, entry) in entries.enumerate() {
                    let mut entry = entry.map_err(|e| damaged(source, &e))?;
                    if superseded.is_some_and(|some| some.contains(&index))
                        || is_excluded(&entry, &exclude, source)?
                    {
                        continue;
                    }
                    // The root is counted already, named or not.
                    let path = entry.path().map_err(|e| damaged(source, &e))?;
                    extent.entries += u64::from(!components(&path, source)?.is_empty());
                    drop(path);
                    extent.bytes += entry.size();
                    push_entry(&mut entry, &mut tree, writer, source, &spool)?;
                    if tree.has_twins && superseded.is_none() {
                        has_twins = true;
                        return Err(CommitError::Cancelled);
                    }
                }
                tree.finish(writer)
            },
        );
        match packed {
            Err(_) if has_twins => Ok(None),
            packed => Ok(Some((packed?, extent))),
        }
    }
}

fn is_excluded<R: Read>(
    entry: &tar::Entry<'_, R>,
    exclude: &Exclude,
    source: &Path,
) -> Result<bool> {
    if exclude.is_empty() {
        return Ok(false);
    }
    let path = components(&entry.path().map_err(|e| damaged(source, &e))?, source)?;
    let path: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
    Ok(exclude.covers(&path))
}

/// Finds the entries of which nothing is left when all have been unpacked in order: later ones of the
/// same path have replaced every name that they had.
///
/// A link keeps what its target was when the link was made, though the target is replaced later.
fn superseded_entries(source: &Path, packing: Packing) -> Result<HashSet<usize>> {
    // Which entry's object each name has.
    let mut names: HashMap<Vec<Vec<u8>>, usize> = HashMap::new();
    let mut directories: HashSet<usize> = HashSet::new();
    // And which each entry gave to its name.
    let mut objects: Vec<Option<usize>> = Vec::new();
    let mut archive = packing.open(source)?;
    let entries = archive.entries().map_err(|e| damaged(source, &e))?;
    for (index, entry) in entries.enumerate() {
        let entry = entry.map_err(|e| damaged(source, &e))?;
        let path = components(&entry.path().map_err(|e| damaged(source, &e))?, source)?;
        let object = match entry.header().entry_type() {
            EntryType::Link => {
                let target = entry.link_name().map_err(|e| damaged(source, &e))?;
                // What names nothing is refused when it is packed.
                match target {
                    Some(target) => names.get(&components(&target, source)?).copied(),
                    None => None,
                }
            }
            // A directory that is there already stays, with what is in it.
            EntryType::Directory => {
                let there = names.get(&path).copied();
                let there = there.filter(|there| directories.contains(there));
                directories.insert(there.unwrap_or(index));
                Some(there.unwrap_or(index))
            }
            _ => Some(index),
        };
        if let Some(object) = object {
            names.insert(path, object);
        }
        objects.push(object);
    }
    let left: HashSet<usize> = names.into_values().collect();
    let entries = objects.into_iter().enumerate();
    Ok(entries
        .filter_map(|(index, object)| (!left.contains(&object?)).then_some(index))
        .collect())
}

/// The directories and names of what has been pushed.
struct Pushed {
    /// The archive's own ".", where it has one.
    root: Option<Meta>,
    nodes: HashMap<Vec<Vec<u8>>, NodeId>,
    /// Names are linked at the end, when all directories are known.
    names: HashMap<Vec<Vec<u8>>, NodeId>,
    order: Vec<Vec<Vec<u8>>>,
    /// Whether a name was given twice. What the first had may have no name any more: all has to be
    /// packed again without the entries of which nothing is left.
    has_twins: bool,
}

impl Pushed {
    fn new() -> Pushed {
        Pushed {
            root: None,
            nodes: HashMap::new(),
            names: HashMap::new(),
            order: Vec::new(),
            has_twins: false,
        }
    }

    /// The node of a directory, made with its parents where the archive has not named it.
    fn dir(&mut self, path: &[Vec<u8>], writer: &mut ImageWriter) -> Result<NodeId> {
        if let Some(node) = self.nodes.get(path) {
            return Ok(*node);
        }
        if let Some((_, above)) = path.split_last() {
            self.dir(above, writer)?;
        }
        let named = if path.is_empty() {
            self.root.take()
        } else {
            None
        };
        let meta = named.unwrap_or_else(|| Meta {
            mode: 0o755,
            uid: owner().0,
            gid: owner().1,
            mtime: super::super::mkfs_time(),
            ..Meta::default()
        });
        let node = writer.add_directory(&meta)?;
        self.put(path.to_vec(), node);
        Ok(node)
    }

    fn put(&mut self, path: Vec<Vec<u8>>, node: NodeId) {
        self.nodes.insert(path.clone(), node);
        if self.names.insert(path.clone(), node).is_none() {
            self.order.push(path);
        } else {
            self.has_twins = true;
        }
    }

    fn finish(mut self, writer: &mut ImageWriter) -> Result<NodeId> {
        let root = self.dir(&[], writer)?;
        for path in self.order.clone() {
            if let Some((_, above)) = path.split_last() {
                self.dir(above, writer)?;
            }
        }
        for path in &self.order {
            let Some((name, above)) = path.split_last() else {
                continue;
            };
            if let (Some(dir), Some(node)) = (self.nodes.get(above), self.names.get(path)) {
                writer.link(*dir, name, *node)?;
            }
        }
        Ok(root)
    }
}

/// Who unpacks: an ordinary user owns what they import, as with `tar -x`.
fn owner() -> (u32, u32) {
    (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    )
}

fn meta_of<R: Read>(entry: &mut tar::Entry<'_, R>, source: &Path) -> Result<Meta> {
    let header = entry.header();
    let number = |value: io::Result<u64>| value.map_err(|e| damaged(source, &e));
    let (mut uid, mut gid) = owner();
    if uid == 0 {
        uid = u32::try_from(number(header.uid())?).unwrap_or(0);
        gid = u32::try_from(number(header.gid())?).unwrap_or(0);
    }
    let mode = header.mode().map_err(|e| damaged(source, &e))?;
    let mut mtime = u32::try_from(number(header.mtime())?).unwrap_or(u32::MAX);
    let mut xattrs = Vec::new();
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            if extension.key_bytes().starts_with(b"GNU.sparse.") {
                // Its content begins with a map of its holes, which would be taken for content.
                return Err(CommitError::Source {
                    path: source.to_owned(),
                    why: "it has sparse files in the pax format, which cannot be read; \
                          pack it with tar --format=gnu, or without --sparse"
                        .to_owned(),
                });
            }
            if extension.key_bytes() == b"mtime"
                && let Ok(text) = extension.value()
                && let Some(seconds) = text.split('.').next().and_then(|s| s.parse::<i64>().ok())
            {
                mtime = u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
            }
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.")
                && [&b"user."[..], b"trusted.", b"security."]
                    .iter()
                    .any(|p| name.starts_with(p))
            {
                xattrs.push((name.to_vec(), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(Meta {
        number: 0,
        mode: (mode & 0o7777) as u16,
        uid,
        gid,
        mtime,
        xattrs,
    })
}

fn push_entry<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    tree: &mut Pushed,
    writer: &mut ImageWriter,
    source: &Path,
    spool: &Path,
) -> Result<()> {
    let path = components(&entry.path().map_err(|e| damaged(source, &e))?, source)?;
    let shown = || {
        path.iter()
            .map(|c| String::from_utf8_lossy(c).into_owned())
            .collect::<Vec<_>>()
            .join("/")
    };
    let refuse = |why: String| CommitError::Source {
        path: source.to_owned(),
        why,
    };
    let kind = entry.header().entry_type();
    if path.is_empty() {
        if kind == EntryType::Directory {
            tree.root = Some(meta_of(entry, source)?);
        }
        return Ok(());
    }
    let node = match kind {
        EntryType::Directory => {
            if tree.nodes.contains_key(&path) {
                return Ok(());
            }
            let meta = meta_of(entry, source)?;
            writer.add_directory(&meta)?
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let meta = meta_of(entry, source)?;
            let size = entry.size();
            let label = shown();
            if size <= IN_MEMORY {
                let mut bytes = Vec::with_capacity(size as usize);
                entry
                    .read_to_end(&mut bytes)
                    .map_err(|e| damaged(source, &e))?;
                writer.add_file(&meta, bytes.len() as u64, Box::new(bytes))?
            } else {
                let mut file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(spool)
                    .context("make", spool)?;
                std::fs::remove_file(spool).context("remove", spool)?;
                let copied = io::copy(entry, &mut file).map_err(|e| damaged(source, &e))?;
                file.flush().context("write", spool)?;
                let open = move || {
                    let mut again = file.try_clone()?;
                    again.seek(SeekFrom::Start(0))?;
                    Ok(Box::new(again) as Box<dyn Content>)
                };
                writer.add_file(&meta, copied, Box::new(OpenWith { label, open }))?
            }
        }
        EntryType::Symlink => {
            let meta = meta_of(entry, source)?;
            let target = entry
                .link_name_bytes()
                .ok_or_else(|| refuse(format!("link {} has no target", shown())))?;
            writer.add_symlink(&meta, &target)?
        }
        EntryType::Link => {
            let target = entry.link_name().map_err(|e| damaged(source, &e))?;
            let target = target.ok_or_else(|| refuse(format!("link {} has no target", shown())))?;
            let target = components(&target, source)?;
            let known = tree.nodes.get(&target).copied();
            known.ok_or_else(|| {
                refuse(format!(
                    "link {} names something that is not there",
                    shown()
                ))
            })?
        }
        EntryType::Char | EntryType::Block => {
            let meta = meta_of(entry, source)?;
            let (major, minor) = (entry.header().device_major(), entry.header().device_minor());
            let (major, minor) = (
                major.ok().flatten().unwrap_or(0),
                minor.ok().flatten().unwrap_or(0),
            );
            let device = nix::sys::stat::makedev(u64::from(major), u64::from(minor));
            writer.add_device(&meta, kind == EntryType::Block, device)?
        }
        EntryType::Fifo => {
            let meta = meta_of(entry, source)?;
            writer.add_fifo(&meta)?
        }
        _ => return Ok(()), // Headers that describe other entries.
    };
    tree.put(path, node);
    Ok(())
}

/// Compares an image with the archive it was made of: every file's content.
pub(super) fn compare(
    source: &Path,
    packing: Packing,
    options: &ImportOptions,
    image: &Image,
    progress: &dyn Progress,
) -> Result<()> {
    let exclude = options.exclude()?;
    let mut archive = packing.open(source)?;
    let mut last: HashMap<Vec<Vec<u8>>, blake3::Hash> = HashMap::new();
    for (done, entry) in (1..).zip(archive.entries().map_err(|e| damaged(source, &e))?) {
        let mut entry = entry.map_err(|e| damaged(source, &e))?;
        let path = components(&entry.path().map_err(|e| damaged(source, &e))?, source)?;
        let kind = entry.header().entry_type();
        if is_excluded(&entry, &exclude, source)? {
            continue;
        }
        if kind.is_file() {
            let mut hasher = blake3::Hasher::new();
            hasher
                .update_reader(&mut entry)
                .map_err(|e| damaged(source, &e))?;
            last.insert(path, hasher.finalize());
        } else if kind.is_hard_link() {
            let target = entry.link_name().map_err(|e| damaged(source, &e))?;
            let hash = match target {
                Some(target) => last.get(&components(&target, source)?).copied(),
                None => None,
            };
            // A link to something that has no content has none either.
            match hash {
                Some(hash) => last.insert(path, hash),
                None => last.remove(&path),
            };
        } else if !kind.is_dir() {
            last.remove(&path);
        }
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        progress.report(&Report {
            phase: "verifying".to_owned(),
            files_done: done,
            files_total: u64::from(image.superblock().inodes),
            bytes_done: 0,
            bytes_total: 0,
        });
    }
    for (path, expected) in last {
        if hash_in_image(image, &path)? != Some(expected) {
            let shown = path
                .iter()
                .map(|c| String::from_utf8_lossy(c))
                .collect::<Vec<_>>()
                .join("/");
            return Err(CommitError::Check(format!("content of {shown}")));
        }
    }
    Ok(())
}

fn hash_in_image(image: &Image, path: &[Vec<u8>]) -> Result<Option<blake3::Hash>> {
    let mut inode = image.inode(image.root())?;
    for name in path {
        match image.lookup(&inode, name)? {
            Some(entry) => inode = image.entry_inode(&entry)?,
            None => return Ok(None),
        }
    }
    if !matches!(inode.body, InodeBody::File(_)) {
        return Ok(None);
    }
    let layout = image.file_layout(&inode)?;
    let mut hasher = blake3::Hasher::new();
    for index in 0..layout.block_count() {
        hasher.update(&image.block(&layout, index)?);
    }
    Ok(Some(hasher.finalize()))
}
