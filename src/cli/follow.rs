//! Finds files of a revision through symbolic links inside the environment.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::Result;
use crate::commit::OpenRevision;
use crate::object::{Attr, Ino, Kind};

/// The most symbolic links that are followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Followed {
    /// To an object of the environment.
    Inside(Ino, Attr),
    /// Out of the environment, to this path; or nowhere, through too many links.
    Outside(Box<[u8]>),
    /// To nothing.
    Missing,
}

/// Follows a path relative to the prefix.
pub(super) fn follow(prefix: &Path, revision: &OpenRevision, path: &[u8]) -> Result<Followed> {
    let mut pending: Vec<Vec<u8>> = parts(path);
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == b".." {
            done.pop();
            continue;
        }
        done.push(part);
        let Some((ino, attr)) = revision.find(&done.join(&b'/'))? else {
            return Ok(Followed::Missing);
        };
        if attr.kind != Kind::Symlink {
            continue;
        }
        links += 1;
        let target = revision.read_link(ino)?;
        done.pop();
        let inside = match target.strip_prefix(prefix.as_os_str().as_bytes()) {
            Some(inside) if inside.starts_with(b"/") => {
                done.clear();
                Some(inside)
            }
            _ => (!target.starts_with(b"/")).then_some(&target[..]),
        };
        match inside {
            Some(inside) if links <= MAX_LINKS => pending.extend(parts(inside)),
            _ => return Ok(Followed::Outside(target)),
        }
    }
    let found = revision.find(&done.join(&b'/'))?;
    Ok(found.map_or(Followed::Missing, |(ino, attr)| Followed::Inside(ino, attr)))
}

/// Returns the components of a path, the first last.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}
