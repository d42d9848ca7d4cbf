//! Reads an archive, and makes an environment of it.
//!
//! The archive may come from anyone. Its headers are compared with those that the manifest implies,
//! so there is one archive for each manifest and its blobs. No name in it becomes the name of a
//! file, and nothing is written before all sizes are known to be right.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::image_digest;
use super::manifest::{
    Blob, CHECKSUM, CHECKSUM_LEN, ImageEntry, MANIFEST, MAX_MANIFEST, Manifest, checksum, hex,
};
use super::tar;
use crate::commit::creation::{complete, new_uuid};
use crate::commit::error::{CommitError, Context, Result};
use crate::commit::import::describe_image;
use crate::commit::relocate::{Relocate, Relocated, relocate_unfinished};
use crate::commit::verify::verify_blocks;
use crate::commit::{Unfinished, digests, rename_into_place, while_syncing};
use crate::environment::{Environment, Layout, NewEnvironment};
use crate::fault;
use crate::object::Ino;
use crate::progress::{Progress, Report};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{
    IdMap, ImageId, ImportedImage, NewHistory, NewIdentity, NewImage, RevisionId, StateDb, Tag,
};
use crate::sys::{durable, reflink};

/// Bytes that are copied at once.
const COPIED: usize = 1 << 20;
/// Blocks of all common file systems begin at multiples of this.
const ALIGNMENT: u64 = 4096;
/// The highest identity of an object that leaves enough for new ones.
const MAX_INO: u64 = 1 << 62;

/// An archive, checked as far as that is possible without reading its blobs.
#[derive(Debug)]
pub struct HistoryArchive {
    file: File,
    path: PathBuf,
    pub(super) manifest: Manifest,
    /// Where the content of each blob begins.
    places: Vec<u64>,
    /// The positions of blobs in the manifest, by digest.
    by_digest: HashMap<String, usize>,
}

/// What was imported.
#[derive(Debug)]
pub struct ImportedHistory {
    /// The new environment.
    pub environment: Environment,
    /// How files were rewritten, if they contained another prefix, in one more revision.
    pub relocated: Option<Relocated>,
}

/// How a history is imported.
#[derive(Debug, Clone)]
pub struct ImportHistoryOptions {
    /// The path where the environment will be mounted.
    pub prefix: PathBuf,
    /// What happens to the prefix that files contain.
    pub relocate: Relocate,
    /// Threads that read and verify.
    pub threads: NonZeroUsize,
}

/// Returns whether a file begins like the archive of a history.
pub fn is_history_archive(path: &Path) -> bool {
    let mut block = Vec::new();
    let is_file = fs::metadata(path).is_ok_and(|meta| meta.is_file());
    let mut read =
        || File::open(path).and_then(|file| file.take(tar::BLOCK).read_to_end(&mut block));
    is_file && read().is_ok() && tar::is_named(&block, MANIFEST)
}

impl HistoryArchive {
    /// Opens an archive.
    pub fn open(path: &Path) -> Result<HistoryArchive> {
        let refuse = |why: String| CommitError::Source {
            path: path.to_owned(),
            why,
        };
        let file = File::open(path).context("open", path)?;
        let len = file.metadata().context("stat", path)?.len();
        let header = |at: u64, name: &str| -> Result<u64> {
            let mut block = [0; tar::BLOCK as usize];
            let is_there = at.checked_add(tar::BLOCK).is_some_and(|end| end <= len);
            if is_there {
                file.read_exact_at(&mut block, at).context("read", path)?;
            }
            tar::size_in(&block, name)
                .filter(|_| is_there)
                .ok_or_else(|| {
                    let what = format!("at byte {at}, the header of {name} is expected");
                    refuse(format!(
                        "truncated, or changed since it was exported: {what}"
                    ))
                })
        };
        let size = header(0, MANIFEST)?;
        if size > MAX_MANIFEST {
            return Err(refuse(format!("a manifest of {size} bytes")));
        }
        if size > len - tar::BLOCK {
            return Err(refuse("truncated: its manifest is incomplete".to_owned()));
        }
        let mut text = vec![0; size as usize];
        let read = file.read_exact_at(&mut text, tar::BLOCK);
        read.context("read the manifest of", path)?;
        let at = tar::member(size).unwrap_or(u64::MAX);
        let mut found = [0; CHECKSUM_LEN as usize];
        let is_whole = header(at, CHECKSUM)? == CHECKSUM_LEN
            && file.read_exact_at(&mut found, at + tar::BLOCK).is_ok();
        if !is_whole || found != checksum(&text).as_bytes() {
            return Err(refuse("its manifest differs from its checksum".to_owned()));
        }
        let manifest = Manifest::parse(&text).map_err(refuse)?;
        let huge = || refuse("sizes beyond 64 bits".to_owned());
        let (places, end) = manifest.places(size).ok_or_else(huge)?;
        for (blob, place) in manifest.blobs.iter().zip(&places) {
            if header(place - tar::BLOCK, &blob.member())? != blob.size {
                let what = format!("the size of {} differs from the manifest", blob.member());
                return Err(refuse(what));
            }
        }
        if end != len {
            let what = format!("{len} bytes instead of {end}");
            return Err(refuse(format!(
                "truncated, or changed since it was exported: {what}"
            )));
        }
        let blobs = manifest.blobs.iter().enumerate();
        Ok(HistoryArchive {
            by_digest: blobs
                .map(|(index, blob)| (blob.sha256.clone(), index))
                .collect(),
            file,
            path: path.to_owned(),
            manifest,
            places,
        })
    }

    /// Returns the path of the archive.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name of the environment.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Returns the identity of the history.
    pub fn origin(&self) -> &str {
        &self.manifest.origin
    }

    /// Returns the path where the environment was mounted.
    pub fn prefix(&self) -> &Path {
        self.manifest.prefix.as_path()
    }

    /// Returns the current revision.
    pub fn current(&self) -> i64 {
        self.manifest.current
    }

    /// Returns all revisions, oldest first.
    pub fn revisions(&self) -> Vec<i64> {
        let entries = self.manifest.revisions.iter();
        entries.map(|entry| entry.revision).collect()
    }

    pub(super) fn refuse(&self, why: impl Into<String>) -> CommitError {
        CommitError::Source {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    /// Returns a blob and its position.
    fn blob(&self, sha256: &str) -> Result<(usize, &Blob, u64)> {
        let found = self.by_digest.get(sha256).and_then(|index| {
            let (blob, place) = (self.manifest.blobs.get(*index)?, self.places.get(*index)?);
            Some((*index, blob, *place))
        });
        found.ok_or_else(|| self.refuse(format!("there is no blob {sha256}")))
    }

    /// Reads the map of an image.
    fn ids(&self, entry: &ImageEntry, of: i64) -> Result<IdMap> {
        let wrong = |why: String| self.refuse(format!("the map of revision {of}: {why}"));
        let (_, blob, place) = self.blob(&entry.ids)?;
        let mut bytes = vec![0; blob.size as usize];
        let read = self.file.read_exact_at(&mut bytes, place);
        read.context("read", &self.path)?;
        if hex(&Sha256::digest(&bytes)) != blob.sha256 {
            return Err(wrong("it differs from its digest".to_owned()));
        }
        let ids = IdMap::from_bytes(&bytes).map_err(|error| wrong(error.to_string()))?;
        match ids.max_ino() {
            Some(ino) if ino.0 <= MAX_INO => Ok(ids),
            _ => Err(wrong("its identities".to_owned())),
        }
    }
}

/// An image that exists already, from which a new one may take blocks.
#[derive(Debug, Clone)]
pub(super) struct Existing {
    /// Its position in the manifest.
    pub(super) index: usize,
    pub(super) path: PathBuf,
    pub(super) digests: Vec<u8>,
}

/// Rebuilds images from their blobs.
pub(super) struct Rebuilder<'a> {
    pub(super) archive: &'a HistoryArchive,
    pub(super) layout: &'a Layout,
    pub(super) db: &'a StateDb,
    pub(super) threads: NonZeroUsize,
    pub(super) progress: &'a dyn Progress,
    /// Images that exist.
    pub(super) existing: Vec<Existing>,
    /// Blobs that were compared with their digests.
    pub(super) verified: HashSet<usize>,
    pub(super) total: u64,
    pub(super) done: u64,
}

impl Rebuilder<'_> {
    /// Makes the file of an image, durable and under its final name. The file is removed with the
    /// second value, unless that is kept.
    pub(super) fn rebuild(&mut self, index: usize) -> Result<(ImportedImage, Unfinished)> {
        let archive = self.archive;
        let manifest = &archive.manifest;
        let of = manifest.revision_of(index);
        let wrong = |why: String| archive.refuse(format!("the image of revision {of}: {why}"));
        let entry = manifest.images.get(index);
        let entry = entry.ok_or_else(|| wrong("it is missing".to_owned()))?;
        let ids = archive.ids(entry, of)?;
        let id = self.db.reserve_image()?;
        let unfinished = Unfinished(self.layout.unfinished_image(id));
        let (base, until) = self.base(entry);
        let base = base.cloned();
        self.write(
            entry,
            of,
            &unfinished.0,
            base.as_ref().map(|base| (base, until)),
        )?;
        let path = self.layout.image(&Layout::image_file_name(id));
        let file = rename_into_place(&unfinished, &path)?;
        let named = Unfinished(path.clone());
        let kept = base.map(|base| digests::Kept {
            digests: base.digests,
            until,
        });
        let (threads, progress) = (self.threads, self.progress);
        let (image, digests) = while_syncing(file, &path, progress, || {
            let digests = digests::compute(&path, kept.as_ref(), threads, progress)?;
            if image_digest(&digests) != entry.digest {
                return Err(wrong("it differs from its digest".to_owned()));
            }
            let image = Image::open(&path, ReaderOptions::default())
                .map_err(|error| wrong(error.to_string()))?;
            if manifest.revision(manifest.current).map(|one| one.image) == Some(index) {
                verify_blocks(&image, threads, progress)?;
            }
            Ok((image, digests))
        })?;
        let new = self
            .describe(id, entry, &image, ids, digests.clone())
            .map_err(wrong)?;
        self.existing.push(Existing {
            index,
            path,
            digests,
        });
        Ok((new, named))
    }

    /// Returns the row of an image, if the manifest is right about it.
    fn describe(
        &self,
        id: ImageId,
        entry: &ImageEntry,
        image: &Image,
        ids: IdMap,
        digests: Vec<u8>,
    ) -> std::result::Result<ImportedImage, String> {
        let superblock = image.superblock();
        let codec = entry.compression.split(':').next().unwrap_or_default();
        if image.offset() != 0 || superblock.bytes_used > entry.size {
            return Err("it is not a plain image".to_owned());
        }
        // All text of a codec comes from here; what follows is a level.
        let level = entry.compression.get(codec.len()..).unwrap_or_default();
        let is_level = level.len() <= 3 && level.bytes().skip(1).all(|c| c.is_ascii_digit());
        if codec != superblock.compressor.to_string() && codec != "none" || !is_level {
            return Err("its compression differs from the manifest".to_owned());
        }
        let root = image
            .inode(image.root())
            .map_err(|error| error.to_string())?;
        let inodes = u64::from(superblock.inodes);
        let is_amended = entry.tables_appended.is_some_and(|bytes| bytes > 0);
        let last = ids.runs().last();
        let numbers = last.map_or(0, |run| {
            u64::from(run.first_number) + u64::from(run.count) - 1
        });
        if ids.ino_of(root.number) != Some(Ino::ROOT)
            || numbers > inodes
            || ids.len() < inodes && !is_amended
        {
            return Err("the map of its inodes does not fit".to_owned());
        }
        let links = entry.link_counts.iter();
        let links: BTreeMap<Ino, u32> = links.map(|(ino, count)| (Ino(*ino), *count)).collect();
        if links.keys().any(|ino| ids.number_of(*ino).is_none()) {
            return Err("link counts of objects that it does not have".to_owned());
        }
        Ok(ImportedImage {
            image: NewImage {
                compression: entry.compression.clone(),
                dead_bytes: entry.dead_bytes,
                tables_appended: entry.tables_appended,
                ..describe_image(id, image, ids, entry.size, Some(digests))
            },
            links,
        })
    }

    /// Returns the existing image that has the most in common with another one after the first
    /// blob, and the position up to which.
    fn base(&self, entry: &ImageEntry) -> (Option<&Existing>, u64) {
        let size = |sha256: &str| {
            self.archive
                .blob(sha256)
                .map_or(0, |(_, blob, _)| blob.size)
        };
        let common = |existing: &Existing| -> u64 {
            let other = self.archive.manifest.images.get(existing.index);
            let other = other
                .map(|other| other.blobs.as_slice())
                .unwrap_or_default();
            let (Some(first), Some(head)) = (entry.blobs.first(), other.first()) else {
                return 0;
            };
            if size(first) != size(head) {
                return 0;
            }
            let pairs = entry.blobs.iter().zip(other).skip(1);
            let same = pairs.take_while(|(one, other)| one == other);
            same.map(|(one, _)| size(one)).sum::<u64>() + size(first)
        };
        let best = self.existing.iter().map(|one| (common(one), one));
        match best.max_by_key(|(bytes, _)| *bytes) {
            Some((until, base)) if until > 0 => (Some(base), until),
            _ => (None, 0),
        }
    }

    /// Writes the blobs of an image, one after another. Blocks that another image has are shared
    /// with it, where the file system can.
    fn write(
        &mut self,
        entry: &ImageEntry,
        of: i64,
        to: &Path,
        base: Option<(&Existing, u64)>,
    ) -> Result<()> {
        let file = File::create_new(to).context("create", to)?;
        let mut shared = 0;
        if let Some((base, until)) = base {
            let until = until / ALIGNMENT * ALIGNMENT;
            let from = File::open(&base.path).context("open", &base.path)?;
            if until > 0 && reflink::clone_range(&from, 0, until, &file, 0).is_ok() {
                shared = until;
            }
        }
        let mut at = 0;
        for (index, sha256) in entry.blobs.iter().enumerate() {
            // The first one has the superblock, which differs.
            let from = if index == 0 { 0 } else { shared };
            self.copy(sha256, of, (&file, to), at, from)?;
            at += self.archive.blob(sha256)?.1.size;
        }
        Ok(())
    }

    /// Copies a blob to a position of a file, except for what lies before `from`.
    fn copy(
        &mut self,
        sha256: &str,
        of: i64,
        (file, to): (&File, &Path),
        at: u64,
        from: u64,
    ) -> Result<()> {
        let archive = self.archive;
        let (index, blob, place) = archive.blob(sha256)?;
        let is_known = self.verified.contains(&index);
        let mut hasher = Sha256::new();
        let (mut done, mut buffer) = (0, vec![0; COPIED]);
        if is_known && from > at {
            done = (from - at).min(blob.size);
        }
        self.done += done;
        while done < blob.size {
            if self.progress.is_cancelled() {
                return Err(CommitError::Cancelled);
            }
            let len = (blob.size - done).min(COPIED as u64);
            let part = buffer.get_mut(..len as usize).unwrap_or_default();
            let read = archive.file.read_exact_at(part, place + done);
            read.context("read", &archive.path)?;
            if !is_known {
                hasher.update(&*part);
            }
            let skipped = from.saturating_sub(at + done).min(len);
            let rest = part.get(skipped as usize..).unwrap_or_default();
            let position = at + done + skipped;
            file.write_all_at(rest, position).context("write", to)?;
            if durable::completes_writeback_chunk(position, rest.len()) {
                durable::start_writeback(file);
            }
            done += len;
            self.done += len;
            self.progress.report(&Report {
                phase: "unpacking".to_owned(),
                files_done: 0,
                files_total: 0,
                bytes_done: self.done,
                bytes_total: self.total,
            });
        }
        if !is_known && hex(&hasher.finalize()) != blob.sha256 {
            return Err(archive.refuse(format!(
                "{} (of the image of revision {of}) differs from its digest",
                blob.member()
            )));
        }
        self.verified.insert(index);
        Ok(())
    }
}

/// Makes an environment of a history. Revisions keep their numbers. If files contain another
/// prefix, one more revision has the right one.
pub fn import_history(
    archive: &HistoryArchive,
    new: NewEnvironment,
    options: &ImportHistoryOptions,
    progress: &dyn Progress,
) -> Result<ImportedHistory> {
    let manifest = &archive.manifest;
    let layout = new.layout();
    let db = StateDb::create(&layout.state_db())?;
    let mut rebuilder = Rebuilder {
        archive,
        layout: &layout,
        db: &db,
        threads: options.threads,
        progress,
        existing: Vec::new(),
        verified: HashSet::new(),
        total: manifest.image_bytes(),
        done: 0,
    };
    let mut images = Vec::new();
    for index in 0..manifest.images.len() {
        let (image, named) = rebuilder.rebuild(index)?;
        // The whole home is removed if anything fails.
        named.keep();
        images.push(image);
    }
    fault::point("import-history.rebuilt");
    let ids: Vec<ImageId> = images.iter().map(|one| one.image.id).collect();
    let revisions = manifest.revisions.iter();
    let revisions = revisions.filter_map(|one| Some(one.to_revision(*ids.get(one.image)?)));
    let history = NewHistory {
        revisions: revisions.collect(),
        tags: tags(manifest),
        head: RevisionId(manifest.current),
        images,
    };
    let identity = NewIdentity {
        uuid: &new_uuid(&layout)?,
        origin: &manifest.origin,
        prefix: &options.prefix,
    };
    db.init_history(&identity, &history)?;
    if let Some((user, group)) = manifest.owner {
        db.set_image_owner(user, group)?;
    }
    fault::point("import-history.initialised");
    complete(&new, db)?;
    let relocated = match &options.relocate {
        Relocate::No => None,
        Relocate::Yes { old, force } => {
            relocate_unfinished(&new, &options.prefix, old, *force, progress, |_| Ok(()))?
        }
    };
    Ok(ImportedHistory {
        environment: new.finish()?,
        relocated: relocated.map(|(relocated, ())| relocated),
    })
}

/// Returns all tags of an archive.
pub(super) fn tags(manifest: &Manifest) -> Vec<Tag> {
    let tags = manifest.tags.iter().map(|(name, number)| Tag {
        name: name.clone(),
        revision: RevisionId(*number),
    });
    tags.collect()
}
