//! What overlayfs stores in its upper directories, and therefore in images made from them:
//! whiteouts and reserved attributes.

use super::Result;
use crate::squashfs::Image;
use crate::squashfs::format::{Inode, InodeBody};

/// The prefixes of attributes that overlayfs reserves.
const RESERVED: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Returns true for an attribute that overlayfs reserves.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    RESERVED.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns true for the device that is a whiteout.
pub(super) fn is_whiteout(inode: &Inode) -> bool {
    matches!(inode.body, InodeBody::CharDevice(0))
}

/// Returns the value of an attribute of overlayfs by its name without the prefix, if it is set.
pub(super) fn mark(image: &Image, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let all = image.xattrs(inode)?;
    let is_it = |found: &[u8]| {
        RESERVED
            .iter()
            .any(|prefix| found.strip_prefix(*prefix) == Some(name))
    };
    Ok(all
        .into_iter()
        .find(|(found, _)| is_it(found))
        .map(|(_, value)| value))
}
