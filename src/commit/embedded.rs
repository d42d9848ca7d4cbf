//! Finds files of an image that contain the prefix of their environment, as the tools that make
//! environments write them.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::Result;
use crate::environment::real_path;
use crate::squashfs::format::{Inode, InodeKind};
use crate::squashfs::{Image, ReaderOptions};

/// The number of bytes at the beginning of a file in `bin` that are searched.
const HEAD: usize = 4096;

/// Files that contain a prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Embedded {
    /// Scripts in `bin` whose first line names an interpreter in the prefix.
    pub scripts: u64,
    /// Other text in `bin`, such as `activate`.
    pub texts: u64,
    /// `pyvenv.cfg` contains it.
    pub pyvenv: bool,
    /// Packages of conda, whose files may contain it anywhere (`conda-meta`).
    pub conda_packages: u64,
}

impl Embedded {
    /// Returns whether no such file was found.
    pub fn is_empty(&self) -> bool {
        *self == Embedded::default()
    }
}

/// Searches `bin`, `pyvenv.cfg` and `conda-meta` of an image for a prefix.
pub fn find(file: &Path, prefix: &Path) -> Result<Embedded> {
    let image = &Image::open(file, ReaderOptions::default())?;
    let real = real_path(prefix).unwrap_or_else(|_| prefix.to_owned());
    let spellings = [prefix.as_os_str().as_bytes(), real.as_os_str().as_bytes()];
    let contains = |text: &[u8]| {
        spellings.iter().any(|prefix| {
            text.windows(prefix.len().max(1))
                .any(|part| part == *prefix)
        })
    };
    let mut found = Embedded::default();
    let root = image.inode(image.root())?;
    if let Some(inode) = lookup(image, &root, b"pyvenv.cfg")? {
        found.pyvenv = contains(&head(image, &inode)?);
    }
    if let Some(meta) = lookup(image, &root, b"conda-meta")?
        && meta.kind() == InodeKind::Directory
    {
        for (name, _) in image.read_dir(&meta)?.iter() {
            found.conda_packages += u64::from(name.ends_with(b".json"));
        }
    }
    if let Some(bin) = lookup(image, &root, b"bin")?
        && bin.kind() == InodeKind::Directory
    {
        for (_, entry) in image.read_dir(&bin)?.iter() {
            let head = head(image, &image.entry_inode(&entry)?)?;
            let first = head.split(|&byte| byte == b'\n').next();
            if first.is_some_and(|line| line.starts_with(b"#!") && contains(line)) {
                found.scripts += 1;
            } else if !head.contains(&0) && contains(&head) {
                found.texts += 1;
            }
        }
    }
    Ok(found)
}

fn lookup(image: &Image, dir: &Inode, name: &[u8]) -> Result<Option<Inode>> {
    match image.lookup(dir, name)? {
        Some(entry) => Ok(Some(image.entry_inode(&entry)?)),
        None => Ok(None),
    }
}

/// Reads the beginning of a regular file; empty for anything else.
fn head(image: &Image, inode: &Inode) -> Result<Vec<u8>> {
    if inode.kind() != InodeKind::File {
        return Ok(Vec::new());
    }
    let layout = image.file_layout(inode)?;
    let mut head = vec![0; HEAD];
    let read = image.read_at(&layout, 0, &mut head)?;
    head.truncate(read);
    Ok(head)
}
