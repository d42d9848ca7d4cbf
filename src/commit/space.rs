//! What the space of an environment is used for.
//!
//! The image of a revision says where each file's content is, so its bytes are distributed without
//! decompressing any content: the cost is that of reading all inodes, names and records of
//! packages. Uncommitted changes are files of the upper directories, at their paths in the merged
//! tree.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use super::compare::OpenRevision;
use super::error::Result;
use crate::environment::Layout;
use crate::object::Kind;
use crate::packages::{self, Files, Inventory, Package};
use crate::progress::{Progress, Report};
use crate::squashfs::format::{Inode, InodeKind};
use crate::squashfs::reader::{Parts, Usage};
use crate::squashfs::{self, Image};
use crate::state::{StackPart, StateDb};
use crate::sys::walk::{self, CurrentDir, Subdirs, Visitor, WalkError};

/// An object of a revision with the space that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Path below the root, without a leading slash.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of content. Of a file with several names, the first has them.
    pub bytes: u64,
    /// Bytes of the image that hold this content.
    pub image_bytes: u64,
    /// The package that it belongs to, by its place in [`Space::packages`].
    pub package: Option<usize>,
}

/// The use of the image of a revision.
#[derive(Debug, Clone, Default)]
pub struct Space {
    /// The bytes of the file.
    pub parts: Parts,
    /// Its packages.
    pub packages: Vec<Package>,
    /// Everything except the root, each directory before what is in it.
    pub objects: Vec<Object>,
}

/// Determines what the bytes of a revision's image are used for.
pub fn space(revision: &OpenRevision, progress: &dyn Progress) -> Result<Space> {
    let (parts, mut objects) = read(revision.image(), progress)?;
    let stack = revision.stack();
    let paths = objects.iter().map(|one| (&one.path[..], one.kind));
    let Inventory { packages, owners } = packages::inventory(paths, &Files::of(&stack));
    for (object, owner) in objects.iter_mut().zip(owners) {
        object.package = owner;
    }
    Ok(Space {
        parts,
        packages,
        objects,
    })
}

/// Reads the tree of an image, in byte order of the names.
fn read(image: &Image, progress: &dyn Progress) -> squashfs::Result<(Parts, Vec<Object>)> {
    let mut objects: Vec<Object> = Vec::new();
    let mut usage = Usage::of(image);
    // The object of each file in `usage`.
    let mut files = Vec::new();
    let root = image.inode(image.root())?;
    let mut seen = HashSet::from([root.number]);
    let mut report = Report {
        phase: "reading".to_owned(),
        files_done: 0,
        files_total: u64::from(image.superblock().inodes),
        bytes_done: 0,
        bytes_total: 0,
    };
    // Directories still to be read, the next one last. Its path is that of an object.
    let mut pending: Vec<(Option<usize>, Inode)> = vec![(None, root)];
    while let Some((at, dir)) = pending.pop() {
        let above = at.and_then(|at| objects.get(at));
        let above = above.map_or_else(Vec::new, |dir| [&dir.path, &b"/"[..]].concat());
        let mut below = Vec::new();
        for (name, entry) in image.read_dir(&dir)?.iter() {
            let inode = image.entry_inode(&entry)?;
            let is_first = seen.insert(inode.number);
            let at = objects.len();
            let mut object = Object {
                path: [&above, name].concat(),
                kind: inode.kind().into(),
                bytes: 0,
                image_bytes: 0,
                package: None,
            };
            match inode.kind() {
                InodeKind::Directory if is_first => below.push((Some(at), inode)),
                InodeKind::Directory => {
                    let detail = format!("directory {} occurs twice", inode.number);
                    return Err(squashfs::Error::corrupt("directory", entry.inode.0, detail));
                }
                InodeKind::File if is_first => {
                    let layout = image.file_layout(&inode)?;
                    object.bytes = layout.size();
                    usage.add(&layout);
                    files.push(at);
                }
                _ => {}
            }
            objects.push(object);
        }
        below.reverse();
        pending.append(&mut below);
        report.files_done = objects.len() as u64;
        progress.report(&report);
        if progress.is_cancelled() {
            return Err(squashfs::Error::Cancelled);
        }
    }
    let (parts, stored) = usage.finish()?;
    for (at, bytes) in files.into_iter().zip(stored) {
        if let Some(object) = objects.get_mut(at) {
            object.image_bytes = bytes;
        }
    }
    Ok((parts, objects))
}

/// A file of an upper directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncommitted {
    /// Path below the root, without a leading slash.
    pub path: Vec<u8>,
    /// Its space on disk in bytes.
    pub disk_bytes: u64,
}

/// Returns the files with uncommitted content. A file may be in several layers.
pub fn uncommitted(db: &StateDb, layout: &Layout) -> Result<Vec<Uncommitted>> {
    let mut found = Found(Vec::new());
    for layer in db.stack()? {
        if matches!(layer.part, StackPart::Image(_)) {
            continue;
        }
        match walk::walk(&layout.upper(layer.id), (), &mut found) {
            // The daemon may remove a layer meanwhile.
            Err(failed) if failed.error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed.into());
            }
            _ => {}
        }
    }
    Ok(found.0)
}

struct Found(Vec<Uncommitted>);

impl Visitor for Found {
    type Tag = ();
    type Error = WalkError;

    fn enter(
        &mut self,
        here: &CurrentDir<'_>,
        (): (),
    ) -> std::result::Result<Subdirs<()>, WalkError> {
        let mut below = Vec::new();
        // What cannot be read has been removed or renamed meanwhile.
        for entry in std::fs::read_dir(here.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => below.push((name.as_bytes().to_vec(), ())),
                Ok(meta) => self.0.push(Uncommitted {
                    path: here.below(name.as_bytes()).as_os_str().as_bytes().to_vec(),
                    disk_bytes: meta.blocks() * 512,
                }),
                Err(_) => {}
            }
        }
        Ok(below)
    }

    fn on_error(&mut self, _: WalkError) -> std::result::Result<(), WalkError> {
        Ok(())
    }
}
