//! Making an environment: of a directory, an archive, an image that exists, or of nothing.

mod archive;
mod directory;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};

use super::error::{CommitError, Context, Result};
use super::exclude::Exclude;
use super::history::verify_blocks;
use super::workspace::{Settings, command_line, new_revision};
use super::{Unfinished, digests, name, while_syncing};
use crate::environment::{Environment, Layout, NewEnvironment};
use crate::fault;
use crate::object::Ino;
use crate::progress::{NoProgress, Progress, Report};
use crate::squashfs::format::InodeBody;
use crate::squashfs::writer::{ImageWriter, Meta, NodeId, WriteStats, WriterOptions};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{IdMap, ImageId, InitEnvironment, NewImage, RevisionKind, StateDb};
use crate::union;

/// How to make an environment.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Where it will be mounted.
    pub prefix: PathBuf,
    /// What the user says about it.
    pub message: String,
    /// How the image is written.
    pub settings: Settings,
    /// Patterns of what to leave out (`*.pyc`, `pkgs/cache`, `share/**/*.h`): without a slash the name of
    /// an entry wherever it is, with one its path below the source.
    pub exclude: Vec<PathBuf>,
    /// Where the image begins in the source, where it cannot be found.
    pub offset: Option<u64>,
}

impl ImportOptions {
    fn exclude(&self) -> Result<Exclude> {
        Exclude::new(&self.exclude)
    }
}

/// What was made.
#[derive(Debug)]
pub struct Imported {
    /// The environment.
    pub environment: Environment,
    /// Entries in the image, its root included.
    pub entries: u64,
    /// Bytes of content.
    pub content_bytes: u64,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// What the image writer did; `None` where an image was adopted.
    pub stats: Option<WriteStats>,
    /// What is not as the source says, in words.
    pub notes: Vec<String>,
}

/// What a source has, counted before it is packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// What a source is.
enum SourceKind {
    Directory,
    Image,
    Archive(archive::Packing),
}

/// An image that was made of a source, with what comparing them needs.
enum Made {
    Directory(WriteStats, Extent),
    Archive(archive::Packed, archive::Packing),
    Image,
}

/// Makes an environment of a directory, a SquashFS image or a tar archive. The image is compared with
/// its source before the environment exists; on failure nothing is left.
pub fn import(
    source: &Path,
    new: NewEnvironment,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<Imported> {
    let kind = recognise(source, options.offset)?;
    if matches!(kind, SourceKind::Image) && !options.exclude()?.is_empty() {
        return Err(CommitError::Unsuitable {
            path: source.to_owned(),
            why: "an image is taken as it is, so nothing of it can be left out".to_owned(),
        });
    }
    let layout = new.layout();
    let db = StateDb::create(&layout.state_db())?;
    let id = db.reserve_image()?;
    let unfinished = Unfinished(layout.unfinished_image(id));
    let made = match kind {
        SourceKind::Directory => {
            let (stats, extent) = directory::pack(source, options, &unfinished.0, progress)?;
            Made::Directory(stats, extent)
        }
        SourceKind::Archive(packing) => {
            let to = &unfinished.0;
            Made::Archive(
                archive::pack(source, packing, options, to, progress)?,
                packing,
            )
        }
        SourceKind::Image => {
            adopt(source, options.offset, &unfinished.0, progress)?;
            Made::Image
        }
    };
    fault::point("import.packed");
    let (mut entries, mut content_bytes) = (0, 0);
    let first = First {
        db,
        id,
        unfinished,
        kind: RevisionKind::Import,
    };
    let (environment, image_bytes) = first.begin(new, options, progress, |image| {
        (entries, content_bytes) = match &made {
            Made::Directory(_, extent) => (extent.entries, extent.bytes),
            Made::Archive(packed, _) => (packed.extent.entries, packed.extent.bytes),
            Made::Image => measure(image)?,
        };
        match &made {
            Made::Directory(..) => directory::compare(source, options, image, progress)?,
            Made::Archive(packed, packing) => {
                archive::compare(source, *packing, packed, image, progress)?;
            }
            Made::Image => {
                let found = verify_blocks(image, options.settings.threads, progress)?;
                let mut wrong_links = found.wrong_links;
                wrong_links.extend(found.wrong_directory_links);
                return Ok(wrong_links);
            }
        }
        Ok(BTreeMap::new())
    })?;
    let (stats, notes) = match made {
        Made::Directory(stats, _) => (Some(stats), Vec::new()),
        Made::Archive(packed, _) => (Some(packed.stats), packed.notes),
        Made::Image => (None, Vec::new()),
    };
    Ok(Imported {
        environment,
        entries,
        content_bytes,
        image_bytes,
        stats,
        notes,
    })
}

/// The first image of a new environment, written but without a name yet.
struct First {
    db: StateDb,
    id: ImageId,
    unfinished: Unfinished,
    kind: RevisionKind,
}

impl First {
    /// Makes the image durable, checks it with `check`, which returns the true link counts of the
    /// inodes that have wrong ones, and makes the environment. Returns the environment and the size
    /// of the image.
    fn begin(
        self,
        new: NewEnvironment,
        options: &ImportOptions,
        progress: &dyn Progress,
        check: impl FnOnce(&Image) -> Result<BTreeMap<u32, u32>>,
    ) -> Result<(Environment, u64)> {
        let First {
            db,
            id,
            unfinished,
            kind,
        } = self;
        let layout = new.layout();
        let path = layout.image(&Layout::image_file_name(id));
        let file = name(&unfinished, &path)?;
        fault::point("import.named");
        let image = Image::open(&path, ReaderOptions::default())?;
        let superblock = image.superblock();
        let root = image.inode(image.root())?;
        let (owner, group) = (image.uid(&root)?, image.gid(&root)?);
        let bad_ids = |e: crate::state::BadIdMap| CommitError::Check(e.to_string());
        let ids = IdMap::identity(superblock.inodes, root.number).map_err(bad_ids)?;
        let mut wrong_links = BTreeMap::new();
        let digests = while_syncing(&file, &path, || {
            wrong_links = check(&image)?;
            digests::of_file(&path, None, options.settings.threads, progress)
        })?;
        fault::point("import.checked");
        let image_bytes = fs::metadata(&path).context("look at", &path)?.len();
        let names = wrong_links
            .iter()
            .filter_map(|(number, names)| Some((ids.ino_of(*number)?, *names)));
        union::count_links(&db, id, names.collect())?;
        let row = NewImage {
            // An image that does not count its links cannot be amended name by name.
            tables_appended: wrong_links.is_empty().then_some(0),
            ..adopted(id, &image, ids, image_bytes, Some(digests))
        };
        db.init_environment(&InitEnvironment {
            uuid: new_uuid(&layout)?,
            prefix: options.prefix.clone(),
            images: vec![row],
            kind,
            revision: new_revision(&options.message, &command_line()),
        })?;
        db.set_image_owner(owner, group)?;
        fault::point("import.initialised");
        Ok((finish(new, db)?, image_bytes))
    }
}

/// Describes an image that is taken as it is.
pub fn adopted(
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

/// What [`pack_directory`] did.
#[derive(Debug)]
pub struct Packed {
    /// Entries in the image, its root included.
    pub entries: u64,
    /// Bytes of content.
    pub content_bytes: u64,
    /// What the image writer did.
    pub stats: WriteStats,
}

/// Packs a directory into an image file, which is replaced if it exists; it is neither synced nor
/// compared with the source.
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
    };
    let (stats, extent) = directory::pack(source, &options, to, progress)?;
    Ok(Packed {
        entries: extent.entries,
        content_bytes: extent.bytes,
        stats,
    })
}

/// Makes an environment with nothing in it: its image has an empty root directory of the caller's.
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
    let extent = Extent {
        entries: 1,
        bytes: 0,
    };
    pack(options, &unfinished.0, extent, &NoProgress, |writer| {
        Ok(writer.add_directory(&root)?)
    })?;
    let first = First {
        db,
        id,
        unfinished,
        kind: RevisionKind::Create,
    };
    let begun = first.begin(new, options, &NoProgress, |_| Ok(BTreeMap::new()));
    Ok(begun?.0)
}

pub(super) fn new_uuid(layout: &Layout) -> Result<String> {
    crate::sys::process::new_uuid().context("name", layout.home())
}

pub(super) fn finish(new: NewEnvironment, db: StateDb) -> Result<Environment> {
    let layout = new.layout();
    for layer in db.stack()? {
        if layer.part == crate::state::StackPart::Writable {
            let upper = layout.layer(layer.id);
            crate::upper::UpperDir::create(&upper, &layout.strays()).context("make", &upper)?;
        }
    }
    db.close()?;
    Ok(new.finish()?)
}

fn recognise(source: &Path, offset: Option<u64>) -> Result<SourceKind> {
    let refuse = |why: &str| CommitError::Source {
        path: source.to_owned(),
        why: why.to_owned(),
    };
    let meta = match fs::metadata(source) {
        Ok(meta) => meta,
        Err(e) => return Err(e).context("look at", source),
    };
    if meta.is_dir() {
        return match offset {
            Some(_) => Err(refuse("a directory, in which there is no offset")),
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
    // An AppImage, or a container of Apptainer.
    if Image::open(source, ReaderOptions::default()).is_ok() {
        return Ok(SourceKind::Image);
    }
    match archive::Packing::of(&head, meta.len()) {
        Some(packing) => Ok(SourceKind::Archive(packing)),
        None if head.is_empty() => Err(refuse("an empty file")),
        None => Err(refuse(
            "neither a SquashFS image nor a tar archive (plain, gzip, zstd or xz); \
             if the image is inside another file, use envfs import --offset",
        )),
    }
}

/// Copies an image into the store, sharing its blocks where the file system can.
fn adopt(source: &Path, offset: Option<u64>, to: &Path, progress: &dyn Progress) -> Result<()> {
    // Opened by our reader first: what it refuses should not be copied.
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
    let mut copy = File::create_new(to).context("make", to)?;
    let copied = io::copy(&mut from.take(len), &mut copy).context("copy", source)?;
    if copied < len {
        return Err(CommitError::SourceChanged(source.to_owned()));
    }
    // As a loop device needs it.
    copy.set_len(len.next_multiple_of(4096))
        .context("write", to)
}

/// Counts the entries of an image and the bytes of its files.
fn measure(image: &Image) -> Result<(u64, u64)> {
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
    Ok((entries, bytes))
}

/// Returns true for an extended attribute that an image can hold. Labels of a security module belong to the
/// machine, not to the environment, and POSIX ACLs have no place in SquashFS.
fn is_storable(name: &[u8]) -> bool {
    let prefixes = [&b"user."[..], b"trusted.", b"security."];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) && name != b"security.selinux"
}

/// Packs with a fresh writer: `push` gives it the tree and returns the root.
fn pack(
    options: &ImportOptions,
    to: &Path,
    extent: Extent,
    progress: &dyn Progress,
    push: impl FnOnce(&mut ImageWriter) -> Result<NodeId>,
) -> Result<WriteStats> {
    super::with_monitor("packing", extent, progress, |monitor| {
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
