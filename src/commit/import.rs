//! Creates environments from a directory, a tar archive or an image, and empty ones.
//!
//! The image is written in a home that has no name yet, and compared with its source. The home is
//! renamed to the environment's name last, so an interrupted import leaves only garbage.

mod archive;
mod directory;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};

use super::creation::{complete, new_uuid};
use super::error::{CommitError, Context, Result};
use super::exclude::Exclude;
use super::relocate::{Force, Relocate, Relocated, relocate_unfinished};
use super::verify::verify_blocks;
use super::workspace::{Settings, command_line, new_revision};
use super::{Unfinished, clone, digests, rename_into_place, while_syncing};
use crate::environment::{Environment, Layout, NewEnvironment};
use crate::fault;
use crate::object::Ino;
use crate::progress::{NoProgress, Progress, Report};
use crate::squashfs::format::InodeBody;
use crate::squashfs::writer::{ImageWriter, Meta, NodeId, WriteStats, WriterOptions};
use crate::squashfs::{Image, ReaderOptions, may_embed};
use crate::state::{BadIdMap, IdMap, ImageId, InitEnvironment, NewImage, RevisionKind, StateDb};
use crate::union;

/// The options of a new environment.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The path where it will be mounted.
    pub prefix: PathBuf,
    /// The message of the first revision.
    pub message: String,
    /// How the image is written.
    pub settings: Settings,
    /// Patterns of entries to exclude (`*.pyc`, `pkgs/cache`, `share/**/*.h`). A pattern without a
    /// slash matches names at any depth, one with a slash matches paths below the source.
    pub exclude: Vec<PathBuf>,
    /// The position of the image in the source, in bytes; `None` to detect it.
    pub offset: Option<u64>,
    /// Files of a directory whose data comes first in the image, in this order. Paths below the
    /// source; those that are no regular files there are ignored.
    pub first: Vec<PathBuf>,
    /// What happens to the prefix that files of the source contain.
    pub relocate: Relocate,
}

impl ImportOptions {
    fn exclude(&self) -> Result<Exclude> {
        Exclude::new(&self.exclude)
    }
}

/// The result of an import.
#[derive(Debug)]
pub struct Imported {
    /// The new environment.
    pub environment: Environment,
    /// Number of entries in the image, including its root.
    pub entries: u64,
    /// Bytes of content in its files.
    pub content_bytes: u64,
    /// Bytes of the image file.
    pub image_bytes: u64,
    /// Counts of the image writer; `None` if an image was copied.
    pub stats: Option<WriteStats>,
    /// Messages about differences between the source and the image.
    pub notes: Vec<String>,
    /// How files were rewritten, if they contained another prefix.
    pub relocated: Option<Relocated>,
}

/// The size of a tree to be packed; 0 for unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TreeSize {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// The kind of a source.
enum SourceKind {
    Directory,
    Image,
    Archive(archive::Codec),
}

/// The source that an image was written from, with what is needed to compare them.
enum Written {
    Directory(WriteStats, TreeSize),
    Archive(archive::Packed, archive::Codec),
    Image,
}

/// Creates an environment from a directory, a SquashFS image or a tar archive. The image is
/// compared with its source before the environment exists. A failed import leaves nothing behind.
pub fn import(
    source: &Path,
    new: NewEnvironment,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<Imported> {
    let kind = source_kind(source, options.offset)?;
    let unsuitable = |why: &str| CommitError::Unsuitable {
        path: source.to_owned(),
        why: why.to_owned(),
    };
    if matches!(kind, SourceKind::Image) && !options.exclude()?.is_empty() {
        return Err(unsuitable(
            "an image is copied as a whole, so envfs import --exclude has no effect on it",
        ));
    }
    if !matches!(kind, SourceKind::Directory) && !options.first.is_empty() {
        return Err(unsuitable(
            "not a directory, so envfs import --profile cannot order its files; envfs commit \
             --rebuild orders them later",
        ));
    }
    let layout = new.layout();
    let db = StateDb::create(&layout.state_db())?;
    let id = db.reserve_image()?;
    let unfinished = Unfinished(layout.unfinished_image(id));
    let to = &unfinished.0;
    let written = match kind {
        SourceKind::Directory => {
            let (stats, size) = directory::pack(source, options, to, progress)?;
            Written::Directory(stats, size)
        }
        SourceKind::Archive(codec) => {
            let packed = archive::pack(source, codec, options, to, progress)?;
            Written::Archive(packed, codec)
        }
        SourceKind::Image => {
            copy_image(source, options.offset, to, progress)?;
            Written::Image
        }
    };
    fault::point("import.packed");
    let (mut entries, mut content_bytes) = (0, 0);
    let first = FirstImage {
        db,
        id,
        unfinished,
        kind: RevisionKind::Import,
    };
    let mut image_bytes = first.fill(&new, options, progress, |image| {
        let size = match &written {
            Written::Directory(_, size) => *size,
            Written::Archive(packed, _) => packed.size,
            Written::Image => measure(image)?,
        };
        (entries, content_bytes) = (size.entries, size.bytes);
        match &written {
            Written::Directory(..) => directory::compare(source, options, image, progress)?,
            Written::Archive(packed, codec) => {
                archive::compare(source, *codec, packed, image, progress)?;
            }
            Written::Image => {
                let found = verify_blocks(image, options.settings.threads, progress)?;
                let mut wrong_links = found.wrong_links;
                wrong_links.extend(found.wrong_directory_links);
                return Ok(wrong_links);
            }
        }
        Ok(BTreeMap::new())
    })?;
    let (new, relocated) = match &options.relocate {
        Relocate::No => (new, None),
        Relocate::Yes { old, force } => relocated(new, options, old, *force, progress)?,
    };
    let relocated = relocated.map(|(relocated, bytes)| {
        image_bytes = bytes;
        relocated
    });
    let environment = new.finish()?;
    let (stats, notes) = match written {
        Written::Directory(stats, _) => (Some(stats), Vec::new()),
        Written::Archive(packed, _) => (Some(packed.stats), packed.notes),
        Written::Image => (None, Vec::new()),
    };
    Ok(Imported {
        environment,
        entries,
        content_bytes,
        image_bytes,
        stats,
        notes,
        relocated,
    })
}

/// Replaces the prefix in the files of a new environment. The result is another one, whose first
/// image has the new content; returns it with the size of that image.
fn relocated(
    new: NewEnvironment,
    options: &ImportOptions,
    old: &[PathBuf],
    force: Force,
    progress: &dyn Progress,
) -> Result<(NewEnvironment, Option<(Relocated, u64)>)> {
    let (prefix, message) = (&options.prefix, &options.message);
    let done = relocate_unfinished(&new, prefix, old, force, progress, |workspace| {
        let (db, environment) = (workspace.db(), workspace.env());
        let revision = db.current_revision()?.ok_or(CommitError::NoEarlier)?;
        let other = environment.store().create(environment.name())?;
        let (_, bytes) = clone::fill(
            environment.layout(),
            db,
            &revision,
            &other,
            prefix,
            message,
            progress,
        )?;
        Ok((other, bytes))
    })?;
    Ok(match done {
        None => (new, None),
        Some((relocated, (other, bytes))) => (other, Some((relocated, bytes))),
    })
}

/// The first image of a new environment, written but not renamed to its final name.
struct FirstImage {
    db: StateDb,
    id: ImageId,
    unfinished: Unfinished,
    kind: RevisionKind,
}

impl FirstImage {
    /// Makes the image durable and initialises the environment. `check` verifies the image and
    /// returns the right link count of each inode whose count is wrong, by inode number. Returns
    /// the size of the image in bytes.
    fn fill(
        self,
        new: &NewEnvironment,
        options: &ImportOptions,
        progress: &dyn Progress,
        check: impl FnOnce(&Image) -> Result<BTreeMap<u32, u32>>,
    ) -> Result<u64> {
        let FirstImage {
            db,
            id,
            unfinished,
            kind,
        } = self;
        let layout = new.layout();
        let path = layout.image(&Layout::image_file_name(id));
        let file = rename_into_place(&unfinished, &path)?;
        fault::point("import.named");
        let image = Image::open(&path, ReaderOptions::default())?;
        let superblock = image.superblock();
        let root = image.inode(image.root())?;
        let (owner, group) = (image.uid(&root)?, image.gid(&root)?);
        let bad_ids = |e: BadIdMap| CommitError::Check(e.to_string());
        let ids = IdMap::identity(superblock.inodes, root.number).map_err(bad_ids)?;
        let mut wrong_links = BTreeMap::new();
        let digests = while_syncing(file, &path, progress, || {
            wrong_links = check(&image)?;
            digests::compute(&path, None, options.settings.threads, progress)
        })?;
        fault::point("import.checked");
        let image_bytes = fs::metadata(&path).context("stat", &path)?.len();
        let names = wrong_links
            .iter()
            .filter_map(|(number, names)| Some((ids.ino_of(*number)?, *names)));
        union::count_links(&db, id, names.collect())?;
        let row = NewImage {
            // An image with wrong link counts cannot be amended.
            tables_appended: wrong_links.is_empty().then_some(0),
            ..describe_image(id, &image, ids, image_bytes, Some(digests))
        };
        db.init_environment(&InitEnvironment {
            uuid: new_uuid(&layout)?,
            origin: None,
            prefix: options.prefix.clone(),
            images: vec![row],
            kind,
            revision: new_revision(&options.message, &command_line()),
        })?;
        db.set_image_owner(owner, group)?;
        fault::point("import.initialised");
        complete(new, db)?;
        Ok(image_bytes)
    }
}

/// Returns the row of an image without dead data, whose tables cannot be amended.
pub fn describe_image(
    id: ImageId,
    image: &Image,
    id_map: IdMap,
    size: u64,
    digests: Option<Vec<u8>>,
) -> NewImage {
    let superblock = image.superblock();
    NewImage {
        id,
        file: Layout::image_file_name(id),
        size,
        inodes: superblock.inodes,
        block_size: superblock.block_size,
        compression: superblock.compressor.to_string(),
        root_number: id_map.number_of(Ino::ROOT).unwrap_or(1),
        id_map,
        digests,
        dead_bytes: 0,
        tables_appended: None,
    }
}

/// The result of [`pack_directory`].
#[derive(Debug)]
pub struct Packed {
    /// Number of entries in the image, including its root.
    pub entries: u64,
    /// Bytes of content in its files.
    pub content_bytes: u64,
    /// Counts of the image writer.
    pub stats: WriteStats,
}

/// Packs a directory into an image file, which is replaced if it exists. The image is neither
/// synced nor compared with the source.
pub fn pack_directory(
    source: &Path,
    settings: Settings,
    exclude: &[PathBuf],
    to: &Path,
    progress: &dyn Progress,
) -> Result<Packed> {
    let options = ImportOptions {
        prefix: PathBuf::new(),
        message: String::new(),
        settings,
        exclude: exclude.to_vec(),
        offset: None,
        first: Vec::new(),
        relocate: Relocate::No,
    };
    let (stats, size) = directory::pack(source, &options, to, progress)?;
    Ok(Packed {
        entries: size.entries,
        content_bytes: size.bytes,
        stats,
    })
}

/// Creates an empty environment. Its image has only a root directory, owned by the caller.
pub fn create_empty(new: NewEnvironment, options: &ImportOptions) -> Result<Environment> {
    let layout = new.layout();
    let db = StateDb::create(&layout.state_db())?;
    let id = db.reserve_image()?;
    let unfinished = Unfinished(layout.unfinished_image(id));
    let root = Meta {
        number: 0,
        mode: 0o755,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        mtime: super::mkfs_time(),
        xattrs: Vec::new(),
    };
    let size = TreeSize {
        entries: 1,
        bytes: 0,
    };
    pack(options, &unfinished.0, size, &NoProgress, |writer| {
        Ok(writer.add_directory(&root)?)
    })?;
    let first = FirstImage {
        db,
        id,
        unfinished,
        kind: RevisionKind::Create,
    };
    first.fill(&new, options, &NoProgress, |_| Ok(BTreeMap::new()))?;
    Ok(new.finish()?)
}

/// Determines the kind of a source from its first bytes.
fn source_kind(source: &Path, offset: Option<u64>) -> Result<SourceKind> {
    let refuse = |why: &str| CommitError::Source {
        path: source.to_owned(),
        why: why.to_owned(),
    };
    let meta = match fs::metadata(source) {
        Ok(meta) => meta,
        Err(e) => return Err(e).context("stat", source),
    };
    if meta.is_dir() {
        return match offset {
            Some(_) => Err(refuse("a directory; envfs import --offset is for files")),
            None => Ok(SourceKind::Directory),
        };
    }
    if !meta.is_file() {
        return Err(refuse("neither a directory nor a file"));
    }
    let mut head = Vec::new();
    File::open(source)
        .and_then(|file| file.take(512).read_to_end(&mut head))
        .context("read", source)?;
    if head.starts_with(b"hsqs") || offset.is_some() {
        return Ok(SourceKind::Image);
    }
    // An AppImage or a SIF container.
    if Image::open(source, ReaderOptions::default()).is_ok() {
        return Ok(SourceKind::Image);
    }
    match archive::Codec::detect(&head, meta.len()) {
        Some(codec) => Ok(SourceKind::Archive(codec)),
        None if head.is_empty() => Err(refuse("an empty file")),
        None => Err(refuse(
            "neither a SquashFS image nor a tar archive (plain, gzip, zstd or xz); \
             if the image is inside another file, use envfs import --offset",
        )),
    }
}

/// Returns the largest length of a source that begins with these 512 bytes. `None` if no source
/// does.
pub(super) fn longest_stream(head: &[u8]) -> Option<u64> {
    let is_file = head.starts_with(b"hsqs") || may_embed(head);
    if is_file || archive::Codec::detect(head, u64::MAX).is_some() {
        return Some(u64::MAX);
    }
    // An archive without members.
    archive::Codec::detect(head, archive::MAX_EMPTY).map(|_| archive::MAX_EMPTY)
}

/// Copies an image, sharing its extents if the file system can.
fn copy_image(
    source: &Path,
    offset: Option<u64>,
    to: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    // Fails before copying if the reader rejects the image.
    let image = match offset {
        Some(offset) => Image::open_at(source, offset, ReaderOptions::default())?,
        None => Image::open(source, ReaderOptions::default())?,
    };
    let len = image.superblock().bytes_used;
    progress.report(&Report {
        phase: "copying".to_owned(),
        files_done: 0,
        files_total: 1,
        bytes_done: 0,
        bytes_total: len,
    });
    if image.offset() == 0 {
        fs::copy(source, to).context("copy", source)?;
        return Ok(());
    }
    let mut from = image.as_file();
    from.seek(SeekFrom::Start(image.offset()))
        .context("read", source)?;
    let mut copy = File::create_new(to).context("create", to)?;
    let copied = io::copy(&mut from.take(len), &mut copy).context("copy", source)?;
    if copied < len {
        return Err(CommitError::SourceChanged(source.to_owned()));
    }
    // A loop device can map only whole pages.
    copy.set_len(len.next_multiple_of(4096))
        .context("write", to)
}

/// Counts the entries of an image, including its root, and the bytes of its files.
fn measure(image: &Image) -> Result<TreeSize> {
    let (mut entries, mut bytes) = (1, 0);
    let mut pending = vec![image.inode(image.root())?];
    while let Some(dir) = pending.pop() {
        for (_, entry) in image.read_dir(&dir)?.iter() {
            let inode = image.entry_inode(&entry)?;
            entries += 1;
            match &inode.body {
                InodeBody::Directory(_) => pending.push(inode),
                InodeBody::File(file) => bytes += file.size,
                _ => {}
            }
        }
    }
    Ok(TreeSize { entries, bytes })
}

/// Returns true for an extended attribute that is imported. SELinux labels belong to the machine
/// and not to the environment, and SquashFS cannot store POSIX ACLs.
fn is_storable(name: &[u8]) -> bool {
    let prefixes = [&b"user."[..], b"trusted.", b"security."];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) && name != b"security.selinux"
}

/// Writes a new image. `push` adds the tree to the writer and returns the root.
fn pack(
    options: &ImportOptions,
    to: &Path,
    size: TreeSize,
    progress: &dyn Progress,
    push: impl FnOnce(&mut ImageWriter) -> Result<NodeId>,
) -> Result<WriteStats> {
    super::with_monitor("packing", size, progress, |monitor| {
        let mut writer = ImageWriter::create(
            to,
            WriterOptions {
                compression: options.settings.compression,
                block_size: options.settings.block_size,
                threads: options.settings.threads,
                mkfs_time: super::mkfs_time(),
                fragments: true,
                monitor,
            },
        )?;
        let root = push(&mut writer)?;
        Ok(writer.finish(root)?)
    })
}
