//! Writes an archive. First all images are cut and their new parts read and compared with their
//! digests, so that the manifest, which comes first, is complete; then the blobs are copied.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::cut::{Blobs, Content, CutImage, ImageFile, cut};
use super::image_digest;
use super::manifest::{
    About, CHECKSUM, CHECKSUM_LEN, ImageEntry, MANIFEST, Manifest, RevisionEntry, checksum, hex,
};
use super::tar;
use crate::commit::digests;
use crate::commit::error::{CommitError, Context, Result};
use crate::environment::{EnvName, Layout};
use crate::progress::{Progress, Report};
use crate::state::{ImageId, LinksIn, Revision, RevisionId, StateDb};
use crate::sys::regular;
use crate::sys::text::Text;

/// Bytes that are copied at once.
const COPIED: usize = 1 << 20;

/// A history that can be written.
pub struct HistoryExport {
    manifest: Manifest,
    contents: Vec<Content>,
}

impl std::fmt::Debug for HistoryExport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HistoryExport")
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ExportedHistory {
    /// Number of revisions.
    pub revisions: u64,
    /// Number of images.
    pub images: u64,
    /// Bytes of these images.
    pub image_bytes: u64,
    /// Bytes of the archive.
    pub bytes: u64,
}

impl HistoryExport {
    /// Prepares an archive of all revisions, or of one and its ancestors.
    pub fn of(
        db: &StateDb,
        layout: &Layout,
        name: &EnvName,
        revision: Option<RevisionId>,
        progress: &dyn Progress,
    ) -> Result<HistoryExport> {
        let missing = |what: &str| CommitError::Check(format!("the database lacks {what}"));
        let all = db.revisions()?;
        let chosen = match revision {
            Some(id) => ancestors(all, id)?,
            None => all,
        };
        let current = match revision {
            Some(id) => id,
            None => db.current_revision()?.ok_or(CommitError::NoEarlier)?.id,
        };
        let mut manifest = Manifest::new(About {
            origin: db.origin()?.ok_or_else(|| missing("the origin"))?,
            name: name.to_string(),
            prefix: Text::from(db.prefix()?.ok_or_else(|| missing("the prefix"))?),
            owner: db.image_owner()?,
            current,
        });
        let mut blobs = Blobs::default();
        let mut images: Vec<CutImage> = Vec::new();
        let mut known: HashMap<ImageId, usize> = HashMap::new();
        for revision in &chosen {
            let index = match known.get(&revision.image) {
                Some(index) => *index,
                None => {
                    // Its parent, or else the one before it, where gc has removed the parent.
                    let parent = chosen.iter().find(|one| Some(one.id) == revision.parent);
                    let parent = parent.and_then(|parent| known.get(&parent.image));
                    let base = match parent {
                        Some(index) => images.get(*index),
                        None => images.last(),
                    };
                    let (entry, image) = add(db, layout, revision, base, &mut blobs, progress)?;
                    manifest.images.push(entry);
                    images.push(image);
                    known.insert(revision.image, images.len() - 1);
                    images.len() - 1
                }
            };
            manifest.revisions.push(RevisionEntry::of(revision, index));
        }
        for tag in db.tags()? {
            if manifest.revision(tag.revision.0).is_some() {
                manifest.tags.insert(tag.name, tag.revision.0);
            }
        }
        manifest.blobs = blobs.list;
        Ok(HistoryExport {
            manifest,
            contents: blobs.contents,
        })
    }

    /// Writes the archive to an empty file or a stream. It is not synced.
    pub fn write(
        &self,
        to: &mut dyn Write,
        path: &std::path::Path,
        progress: &dyn Progress,
    ) -> Result<ExportedHistory> {
        let mut manifest = serde_json::to_vec_pretty(&self.manifest)
            .map_err(|error| CommitError::Check(error.to_string()))?;
        manifest.push(b'\n');
        let mut out = Output {
            to,
            path,
            progress,
            done: 0,
            total: self.manifest.blobs.iter().map(|blob| blob.size).sum(),
        };
        out.put(&tar::header(MANIFEST, manifest.len() as u64))?;
        out.put(&manifest)?;
        out.pad(manifest.len() as u64)?;
        let checksum = checksum(&manifest);
        out.put(&tar::header(CHECKSUM, CHECKSUM_LEN))?;
        out.put(checksum.as_bytes())?;
        out.pad(CHECKSUM_LEN)?;
        for (blob, content) in self.manifest.blobs.iter().zip(&self.contents) {
            out.put(&tar::header(&blob.member(), blob.size))?;
            let digest = match content {
                Content::Bytes(bytes) => {
                    out.put(bytes)?;
                    Sha256::digest(bytes)
                }
                Content::Range(file, from, range) => {
                    let mut hasher = Sha256::new();
                    let (mut at, mut buffer) = (range.start, vec![0; COPIED]);
                    while at < range.end {
                        let len = (range.end - at).min(COPIED as u64) as usize;
                        let part = buffer.get_mut(..len).unwrap_or_default();
                        file.read_exact_at(part, at).context("read", from)?;
                        hasher.update(&*part);
                        out.put(part)?;
                        at += len as u64;
                    }
                    hasher.finalize()
                }
            };
            // It was read before, to compute the manifest.
            if hex(&digest) != blob.sha256 {
                let what = "an image changed while it was exported";
                return Err(CommitError::Changed(what.to_owned()));
            }
            out.pad(blob.size)?;
        }
        out.put(&[0; tar::END as usize])?;
        Ok(ExportedHistory {
            revisions: self.manifest.revisions.len() as u64,
            images: self.manifest.images.len() as u64,
            image_bytes: self.manifest.image_bytes(),
            bytes: out.done,
        })
    }
}

/// The archive that is being written.
struct Output<'a> {
    to: &'a mut dyn Write,
    path: &'a std::path::Path,
    progress: &'a dyn Progress,
    done: u64,
    total: u64,
}

impl Output<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        self.to.write_all(bytes).context("write", self.path)?;
        self.done += bytes.len() as u64;
        self.progress.report(&Report {
            phase: "copying".to_owned(),
            files_done: 0,
            files_total: 0,
            bytes_done: self.done.min(self.total),
            bytes_total: self.total,
        });
        Ok(())
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let rest = size.next_multiple_of(tar::BLOCK) - size;
        self.put(
            [0; tar::BLOCK as usize]
                .get(..rest as usize)
                .unwrap_or_default(),
        )
    }
}

/// Adds the image of a revision.
fn add(
    db: &StateDb,
    layout: &Layout,
    revision: &Revision,
    base: Option<&CutImage>,
    blobs: &mut Blobs,
    progress: &dyn Progress,
) -> Result<(ImageEntry, CutImage)> {
    let gone = || CommitError::NoRevision(revision.id.0);
    let row = db.image(revision.image)?.ok_or_else(gone)?;
    let ids = db.id_map(row.id)?.ok_or_else(gone)?.to_bytes();
    let path = layout.image(&row.file);
    let file = regular::open(&path).context("open", &path)?;
    let size = file.metadata().context("stat", &path)?.len();
    if size != row.size {
        return Err(CommitError::ImageLost(path));
    }
    let digests = match db.image_digests(row.id)? {
        Some(digests) => digests,
        None => {
            let threads = std::thread::available_parallelism();
            let threads = threads.unwrap_or(std::num::NonZeroUsize::MIN);
            digests::compute(&path, None, threads, progress)?
        }
    };
    let digest = image_digest(&digests);
    let file = ImageFile {
        file: Arc::new(file),
        path,
        size,
        digests,
    };
    let image = cut(file, base, blobs, progress)?;
    let ids = blobs.add_bytes(ids);
    let links = db.link_counts(LinksIn::Image(row.id))?;
    let entry = ImageEntry {
        size,
        digest,
        compression: row.compression,
        dead_bytes: row.dead_bytes,
        tables_appended: row.tables_appended,
        link_counts: links
            .into_iter()
            .map(|(ino, count)| (ino.0, count))
            .collect(),
        ids: blobs.digest(ids),
        blobs: image.blobs.iter().map(|blob| blobs.digest(*blob)).collect(),
    };
    Ok((entry, image))
}

/// Returns a revision and its ancestors, oldest first. Where gc has removed a parent, the newest
/// revision before it counts as the parent.
fn ancestors(all: Vec<Revision>, of: RevisionId) -> Result<Vec<Revision>> {
    let mut found = Vec::new();
    let mut wanted = of;
    for revision in all.into_iter().rev() {
        if revision.id <= wanted {
            wanted = revision.parent.unwrap_or(RevisionId(0));
            found.push(revision);
        }
    }
    if found.first().is_none_or(|first: &Revision| first.id != of) {
        return Err(CommitError::NoRevision(of.0));
    }
    found.reverse();
    Ok(found)
}
