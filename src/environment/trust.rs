//! Whose directories are used, and who else could replace them.
//!
//! A command that changes a store of another user would leave files there that the owner cannot use, and
//! root would follow whatever links the owner has put in its way. So only the owner changes a store. And
//! a store or a prefix that another user may replace is not used at all: its content would be run with
//! the caller's rights.
//!
//! `ENVFS_TRUST` names directories, separated by colons, below which none of this is asked.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{Context, EnvironmentError, Result};
use crate::sys::process;

/// The variable that names trusted directories.
pub const TRUST: &str = "ENVFS_TRUST";

/// Bits of a directory's mode by which its group, and all others, may change names in it.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Returns the other user to whom the store at `root` belongs; `None` where the caller may change it.
///
/// For root that is also the owner of the directory in which a store would be made: a home directory
/// that `sudo` has kept.
pub fn other_owner(root: &Path) -> Result<Option<(u32, u32)>> {
    let me = process::user_id();
    if is_trusted(root) {
        return Ok(None);
    }
    for dir in root.ancestors() {
        let meta = match fs::metadata(dir) {
            Ok(meta) => meta,
            Err(e) if is_absent(&e) => continue,
            // Where one may not even look, the rest fails with its own words.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(e) => return Err(e).context(dir, "look at the owner"),
        };
        let is_store = dir == root;
        if meta.uid() == me || process::is_root_elsewhere(meta.uid()) && !is_store {
            return Ok(None);
        }
        return Ok((is_store || me == 0).then_some((meta.uid(), meta.gid())));
    }
    Ok(None)
}

/// Refuses a path that another user could replace: by a name in a directory that others may write to, or
/// as the owner of a directory above.
pub fn refuse_replaceable(path: &Path) -> Result<()> {
    if is_trusted(path) {
        return Ok(());
    }
    for dir in existing(path)?.ancestors() {
        let meta = match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => meta,
            _ => continue,
        };
        if let Some(who) = who_may_rename(&meta) {
            return Err(EnvironmentError::Replaceable {
                path: path.to_owned(),
                dir: dir.to_owned(),
                who,
            });
        }
    }
    Ok(())
}

/// Returns who, besides the caller and root, may rename entries of a directory.
fn who_may_rename(meta: &Metadata) -> Option<String> {
    let (uid, mode) = (meta.uid(), meta.mode());
    if uid != process::user_id() && uid != 0 && !process::is_root_elsewhere(uid) {
        return Some(format!("its owner, {},", process::user_name(uid)));
    }
    if mode & STICKY != 0 {
        return None;
    }
    if mode & OTHERS_WRITE != 0 {
        return Some("everybody".to_owned());
    }
    if mode & GROUP_WRITES != 0 && !process::is_private_group(meta.gid()) {
        let group = process::group_name(meta.gid());
        return Some(format!("everybody in the group {group}"));
    }
    None
}

/// Returns the part of a path that exists, without symbolic links.
fn existing(path: &Path) -> Result<PathBuf> {
    for dir in path.ancestors() {
        match fs::canonicalize(dir) {
            Ok(real) => return Ok(real),
            Err(e) if is_absent(&e) || e.kind() == io::ErrorKind::PermissionDenied => {}
            // A dead mount, for one.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOTCONN) => {}
            Err(e) => return Err(e).context(dir, "look at the directory"),
        }
    }
    Ok(PathBuf::from("/"))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn is_trusted(path: &Path) -> bool {
    std::env::var_os(TRUST).is_some_and(|list| {
        std::env::split_paths(&list).any(|dir| dir.is_absolute() && path.starts_with(dir))
    })
}
