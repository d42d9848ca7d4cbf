//! The objects of a tree: listing and reading them, and the kinds of files that their paths tell.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Error;
use super::search::Pattern;
use super::tree::{Node, Tree};
use crate::object::Kind;
use crate::progress::Progress;

/// Larger files are searched in pieces before they are read as a whole.
pub(super) const PIECE: usize = 8 << 20;

/// An object of the tree.
pub(super) struct Item {
    pub(super) node: Node,
    pub(super) kind: Kind,
    pub(super) size: u64,
}

/// Lists the whole tree.
pub(super) fn list(tree: &dyn Tree, progress: &dyn Progress) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    let mut pending = vec![Node::root()];
    while let Some(dir) = pending.pop() {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        for entry in tree.list(&dir).map_err(reading(&dir))? {
            let node = dir.child(&entry.name, entry.id);
            match entry.kind {
                Kind::Directory => pending.push(node),
                kind => items.push(Item {
                    node,
                    kind,
                    size: entry.size,
                }),
            }
        }
    }
    Ok(items)
}

/// Returns whether a large file contains a prefix, or may contain one.
pub(super) fn contains(tree: &dyn Tree, item: &Item, patterns: &[Pattern]) -> Result<bool, Error> {
    let longest = patterns.iter().map(|pattern| pattern.old.len()).max();
    let overlap = longest.unwrap_or(0) + 64;
    let mut offset = 0;
    loop {
        let read = tree.read(&item.node, offset, PIECE + overlap);
        let piece = read.map_err(reading(&item.node))?;
        if patterns.iter().any(|pattern| pattern.is_in(&piece)) {
            return Ok(true);
        }
        if piece.len() < PIECE + overlap {
            return Ok(false);
        }
        offset += PIECE as u64;
    }
}

/// Reads a whole file.
pub(super) fn read(tree: &dyn Tree, item: &Item) -> Result<Vec<u8>, Error> {
    let mut data = Vec::new();
    loop {
        let read = tree.read(&item.node, data.len() as u64, PIECE);
        let piece = read.map_err(reading(&item.node))?;
        if piece.is_empty() {
            return Ok(data);
        }
        data.extend_from_slice(&piece);
        if data.len() as u64 >= item.size {
            return Ok(data);
        }
    }
}

pub(super) fn reading(node: &Node) -> impl Fn(io::Error) -> Error + '_ {
    |error| Error::Read {
        path: Path::new(OsStr::from_bytes(&node.path)).to_owned(),
        error,
    }
}

pub(super) fn of_root(error: io::Error) -> Error {
    reading(&Node::root())(error)
}

pub(super) fn parent(path: &[u8]) -> &[u8] {
    let at = path.iter().rposition(|&byte| byte == b'/');
    path.get(..at.unwrap_or(0)).unwrap_or_default()
}

pub(super) fn is_record(path: &[u8]) -> bool {
    path.ends_with(b".dist-info/RECORD")
}

pub(super) fn is_conda_meta(path: &[u8]) -> bool {
    path.strip_prefix(b"conda-meta/")
        .is_some_and(|name| name.ends_with(b".json") && !name.contains(&b'/'))
}

/// The script of conda-pack, whose table must stay as it is.
pub(super) fn is_unpacker(path: &[u8]) -> bool {
    path == b"bin/conda-unpack" || path == b"bin/conda_unpack_progress.py"
}

pub(super) fn is_bytecode(path: &[u8]) -> bool {
    path.ends_with(b".pyc") || path.ends_with(b".pyo")
}

/// Returns the path of the source of a compiled module, without `.py`.
pub(super) fn source_of(path: &[u8]) -> Vec<u8> {
    let (dir, name) = path.split_at(parent(path).len());
    let name = name.strip_prefix(b"/").unwrap_or(name);
    match dir.strip_suffix(b"__pycache__") {
        // `x.cpython-312.opt-1.pyc`
        Some(above) => {
            let stem = name.split(|&byte| byte == b'.').next().unwrap_or_default();
            [above, stem].concat()
        }
        None => path.get(..path.len() - 4).unwrap_or_default().to_vec(),
    }
}
