//! Comparing objects: attributes at once, content where it has to be read.

use nix::errno::Errno;

use super::Aspect;
use super::view::{Content, View};
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::union::{Error, LowerStack, Result, SeekTarget, Xattr};

/// Content that is read at once.
const CHUNK: usize = 1 << 20;

/// What is known of the difference between an object and a committed one before content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// In what they differ, as far as that is known.
    pub(super) aspect: Option<Aspect>,
    /// Whether content must be read: if it differs, so does [`Aspect::Content`].
    pub(super) is_open: bool,
}

/// Compares an object of a view with a committed one of the same kind.
pub(super) fn compare(
    view: &dyn View,
    base: &LowerStack,
    (ino, now): (Ino, &Attr),
    (committed, before): (Ino, &Attr),
) -> Result<Found> {
    let is_other = ino != committed;
    let mut is_open = false;
    let content = match now.kind {
        Kind::File if now.size != before.size => true,
        Kind::File => {
            is_open = now.size > 0 && view.may_have_other_content(ino, committed)?;
            false
        }
        Kind::Symlink => is_other && view.read_link(ino)? != base.read_link(committed)?,
        Kind::BlockDevice | Kind::CharDevice => now.rdev != before.rdev,
        Kind::Directory | Kind::Fifo | Kind::Socket => false,
    };
    if content {
        return Ok(Found {
            aspect: Some(Aspect::Content),
            is_open: false,
        });
    }
    let attributes = (now.mode, now.uid, now.gid) != (before.mode, before.uid, before.gid)
        || view.may_have_other_xattrs(ino, committed)?
            && sorted(view.xattrs(ino)?) != sorted(base.xattrs(committed)?);
    let times = now.kind != Kind::Directory && kept(now.mtime) != kept(before.mtime);
    let aspect = match (attributes, times) {
        (true, _) => Some(Aspect::Attributes),
        (false, true) => Some(Aspect::Times),
        (false, false) => None,
    };
    Ok(Found { aspect, is_open })
}

/// What an image keeps of a time: whole seconds from 1970 to 2106.
pub(in crate::union) fn kept(time: Timestamp) -> i64 {
    time.secs.clamp(0, i64::from(u32::MAX))
}

fn sorted(mut all: Vec<Xattr>) -> Vec<Xattr> {
    all.sort_unstable();
    all
}

/// Compares the content of a file with that of a committed one of `size` bytes. A file that has
/// gone meanwhile has other content.
pub(super) fn is_same(
    content: &dyn Content,
    ino: Ino,
    base: &LowerStack,
    committed: Ino,
    size: u64,
) -> Result<bool> {
    match read_both(content, ino, base, committed, size) {
        Err(Error::Posix(Errno::ESTALE | Errno::ENOENT)) => Ok(false),
        done => done,
    }
}

fn read_both(
    content: &dyn Content,
    ino: Ino,
    base: &LowerStack,
    committed: Ino,
    size: u64,
) -> Result<bool> {
    let mut at = 0;
    while at < size {
        // Holes of both are equal.
        let ours = content.next_data(ino, at)?.unwrap_or(size);
        let theirs = base.seek(committed, at, SeekTarget::Data)?.unwrap_or(size);
        at = at.max(ours.min(theirs));
        if at >= size {
            break;
        }
        let theirs = base.read(committed, at, CHUNK)?;
        let theirs = (*theirs).as_ref();
        let ours = content.read(ino, at, theirs.len())?;
        let ours = (*ours).as_ref();
        if ours.is_empty() || theirs.get(..ours.len()) != Some(ours) {
            return Ok(false);
        }
        at += ours.len() as u64;
    }
    Ok(true)
}
