//! Cuts images into blobs where revisions were cut: the parts that a commit carried over from an
//! older image are the blobs of that image.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::manifest::{Blob, hex};
use crate::commit::digests::{self, CHUNK};
use crate::commit::error::{CommitError, Context, Result};
use crate::progress::{Progress, Report};
use crate::squashfs::{Image, ReaderOptions};

/// Bytes of files that are compared at once.
const COMPARED: u64 = 64 << 10;

/// The file of an image.
pub(super) struct ImageFile {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    /// BLAKE3 of each MiB.
    pub(super) digests: Vec<u8>,
}

/// A blob at a position of an image.
#[derive(Debug, Clone)]
struct Piece {
    blob: usize,
    at: Range<u64>,
}

/// An image as blobs.
pub(super) struct CutImage {
    pub(super) file: ImageFile,
    /// Blobs in order.
    pub(super) blobs: Vec<usize>,
    /// The pieces of the three sections that a later image may begin with.
    sections: [Vec<Piece>; 3],
}

/// The content of a blob.
pub(super) enum Content {
    Bytes(Vec<u8>),
    /// A range of an image.
    Range(Arc<File>, PathBuf, Range<u64>),
}

/// All blobs of an archive, in order.
#[derive(Default)]
pub(super) struct Blobs {
    known: HashMap<String, usize>,
    pub(super) list: Vec<Blob>,
    pub(super) contents: Vec<Content>,
}

impl Blobs {
    /// Adds a blob unless it is known; returns its position.
    pub(super) fn add(&mut self, sha256: String, size: u64, content: Content) -> usize {
        if let Some(index) = self.known.get(&sha256) {
            return *index;
        }
        let index = self.list.len();
        self.known.insert(sha256.clone(), index);
        self.list.push(Blob { sha256, size });
        self.contents.push(content);
        index
    }

    pub(super) fn add_bytes(&mut self, bytes: Vec<u8>) -> usize {
        let digest = hex(&Sha256::digest(&bytes));
        let size = bytes.len() as u64;
        self.add(digest, size, Content::Bytes(bytes))
    }

    /// Returns the digest of a blob.
    pub(super) fn digest(&self, index: usize) -> String {
        let blob = self.list.get(index);
        blob.map(|blob| blob.sha256.clone()).unwrap_or_default()
    }
}

/// A part of an image in the order of positions.
enum Part {
    Known(Piece, usize),
    New(Range<u64>, Option<usize>),
}

/// Cuts an image. `base` is an image that it may continue. What both have in common is neither read
/// again, where the digests tell that it is equal, nor stored again.
pub(super) fn cut(
    file: ImageFile,
    base: Option<&CutImage>,
    blobs: &mut Blobs,
    progress: &dyn Progress,
) -> Result<CutImage> {
    let copy = file.file.try_clone().context("open", &file.path)?;
    let image = Image::open_file(copy, ReaderOptions::default())?;
    let Some(sections) = image.sections().filter(|all| all.listings.end <= file.size) else {
        let whole = vec![Part::New(0..file.size, None)];
        return name(file, whole, blobs, progress);
    };
    let mut parts = Vec::new();
    let mut at = 0;
    let ranges = [sections.data, sections.inodes, sections.listings];
    for (index, range) in ranges.into_iter().enumerate() {
        if at < range.start {
            parts.push(Part::New(at..range.start, None));
        }
        at = range.start;
        let known = base.and_then(|base| Some((base, base.sections.get(index)?)));
        for piece in known.into_iter().flat_map(|(_, pieces)| pieces) {
            let len = piece.at.end - piece.at.start;
            let here = at..at.saturating_add(len);
            let base = base.map(|base| &base.file);
            let is_inside = here.end <= range.end;
            if !is_inside || !base.is_some_and(|base| is_equal(base, &piece.at, &file, &here)) {
                break;
            }
            at = here.end;
            let blob = piece.blob;
            parts.push(Part::Known(Piece { blob, at: here }, index));
        }
        if at < range.end {
            parts.push(Part::New(at..range.end, Some(index)));
        }
        at = range.end;
    }
    if at < file.size {
        parts.push(Part::New(at..file.size, None));
    }
    name(file, parts, blobs, progress)
}

/// Returns whether ranges of two images are equal. Not if one of them cannot be read.
fn is_equal(one: &ImageFile, a: &Range<u64>, other: &ImageFile, b: &Range<u64>) -> bool {
    let mut done = 0;
    let len = a.end - a.start;
    let (mut x, mut y) = (vec![0; COMPARED as usize], vec![0; COMPARED as usize]);
    while done < len {
        let at = a.start + done;
        let chunk = at / CHUNK * CHUNK..(at / CHUNK + 1) * CHUNK;
        let left = len - done;
        if a.start == b.start
            && at == chunk.start
            && left >= CHUNK
            && digests::are_equal(&one.digests, &other.digests, chunk)
        {
            done += CHUNK;
            continue;
        }
        // Up to the next chunk, whose digest may tell.
        let now = left.min(COMPARED).min(CHUNK - at % CHUNK) as usize;
        let (Some(x), Some(y)) = (x.get_mut(..now), y.get_mut(..now)) else {
            return false;
        };
        let read = one.file.read_exact_at(x, at).is_ok()
            && other.file.read_exact_at(y, b.start + done).is_ok();
        if !read || x != y {
            return false;
        }
        done += now as u64;
    }
    true
}

/// Names the new parts by their digests.
fn name(
    file: ImageFile,
    parts: Vec<Part>,
    blobs: &mut Blobs,
    progress: &dyn Progress,
) -> Result<CutImage> {
    let mut cut = CutImage {
        blobs: Vec::new(),
        sections: Default::default(),
        file,
    };
    let mut chunks = Chunks::of(&cut.file);
    for part in parts {
        let (piece, section) = match part {
            Part::Known(piece, section) => (piece, Some(section)),
            Part::New(at, section) => {
                let mut hasher = Sha256::new();
                chunks.read(at.clone(), progress, |bytes| hasher.update(bytes))?;
                let source = &cut.file;
                let content = Content::Range(source.file.clone(), source.path.clone(), at.clone());
                let blob = blobs.add(hex(&hasher.finalize()), at.end - at.start, content);
                (Piece { blob, at }, section)
            }
        };
        cut.blobs.push(piece.blob);
        if let Some(section) = section.and_then(|index| cut.sections.get_mut(index)) {
            section.push(piece);
        }
    }
    Ok(cut)
}

/// Reads parts of an image in ascending order, and compares every MiB with its digest.
struct Chunks<'a> {
    file: &'a ImageFile,
    buffer: Vec<u8>,
    loaded: Option<u64>,
}

impl<'a> Chunks<'a> {
    fn of(file: &'a ImageFile) -> Chunks<'a> {
        Chunks {
            file,
            buffer: Vec::new(),
            loaded: None,
        }
    }

    fn read(
        &mut self,
        range: Range<u64>,
        progress: &dyn Progress,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            if progress.is_cancelled() {
                return Err(CommitError::Cancelled);
            }
            let chunk = at / CHUNK;
            if self.loaded != Some(chunk) {
                self.load(chunk)?;
                progress.report(&Report {
                    phase: "reading".to_owned(),
                    files_done: 0,
                    files_total: 0,
                    bytes_done: at,
                    bytes_total: self.file.size,
                });
            }
            let end = range.end.min((chunk + 1) * CHUNK);
            let within = (at - chunk * CHUNK) as usize..(end - chunk * CHUNK) as usize;
            take(self.buffer.get(within).unwrap_or_default());
            at = end;
        }
        Ok(())
    }

    fn load(&mut self, chunk: u64) -> Result<()> {
        let start = chunk * CHUNK;
        let len = self.file.size.saturating_sub(start).min(CHUNK) as usize;
        self.buffer.resize(len, 0);
        let read = self.file.file.read_exact_at(&mut self.buffer, start);
        read.context("read", &self.file.path)?;
        if !digests::is_chunk(&self.file.digests, chunk, &self.buffer) {
            return Err(CommitError::Changed(format!(
                "{}: bytes {start} to {} differ from their digest",
                self.file.path.display(),
                start + len as u64
            )));
        }
        self.loaded = Some(chunk);
        Ok(())
    }
}
