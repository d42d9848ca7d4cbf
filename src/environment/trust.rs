//! Checks that a directory belongs to the caller and that no other user can replace it.
//!
//! A command that changed another user's store would leave files there that the owner cannot use,
//! and root would follow any links that the owner had put there. So only the owner changes a store.
//! A store or a prefix that another user can replace is not used at all: programs in it would run
//! with the caller's rights.
//!
//! These checks are skipped below the directories in `ENVFS_TRUST`, a list separated by colons.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{Context, EnvironmentError, Result};
use crate::sys::process;

/// The environment variable that lists trusted directories.
pub const TRUST: &str = "ENVFS_TRUST";

/// Mode bits that allow the group, and all others, to change the entries of a directory.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Returns user and group of the store's owner, or `None` if the caller may change the store.
///
/// If the caller is root and the store does not exist, the owner of the directory in which it would
/// be created counts: it may be a home directory that `sudo` has kept.
pub fn other_owner(root: &Path) -> Result<Option<(u32, u32)>> {
    let me = process::user_id();
    if is_trusted(root) {
        return Ok(None);
    }
    for dir in root.ancestors() {
        let meta = match fs::metadata(dir) {
            Ok(meta) => meta,
            Err(e) if is_absent(&e) => continue,
            // The operations that follow fail with a better message.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(e) => return Err(e).context(dir, "determine the owner"),
        };
        let is_store = dir == root;
        if meta.uid() == me || process::is_overflow_user(meta.uid()) && !is_store {
            return Ok(None);
        }
        return Ok((is_store || me == 0).then_some((meta.uid(), meta.gid())));
    }
    Ok(None)
}

/// Fails if another user could replace the path: because a directory above it is writable for
/// others or belongs to another user.
pub fn refuse_replaceable(path: &Path) -> Result<()> {
    refuse_others(path, process::user_id())
}

/// Like [`refuse_replaceable`], but allows the owner of the store at `root` to replace the path:
/// the programs of an environment that is used read-only are the owner's in any case.
pub fn refuse_replaceable_except(path: &Path, root: &Path) -> Result<()> {
    let owner = fs::metadata(root).map_or(process::user_id(), |meta| meta.uid());
    refuse_others(path, owner)
}

/// Fails if a user other than the caller, root and `owner` could replace the path.
fn refuse_others(path: &Path, owner: u32) -> Result<()> {
    if is_trusted(path) {
        return Ok(());
    }
    for dir in existing(path)?.ancestors() {
        let meta = match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => meta,
            _ => continue,
        };
        if let Some(others) = others_who_can_write(&meta, owner) {
            return Err(EnvironmentError::Replaceable {
                path: path.to_owned(),
                dir: dir.to_owned(),
                others,
            });
        }
    }
    Ok(())
}

/// Describes the users other than the caller, root and `owner` that can replace entries of a
/// directory.
fn others_who_can_write(meta: &Metadata, owner: u32) -> Option<String> {
    let (uid, mode) = (meta.uid(), meta.mode());
    let is_known = uid == process::user_id() || uid == owner;
    if !is_known && uid != 0 && !process::is_overflow_user(uid) {
        return Some(format!("its owner, {},", process::user_name(uid)));
    }
    if mode & STICKY != 0 {
        return None;
    }
    if mode & OTHERS_WRITE != 0 {
        return Some("any user".to_owned());
    }
    if mode & GROUP_WRITES != 0 && !process::is_private_group(meta.gid()) {
        let group = process::group_name(meta.gid());
        return Some(format!("any user in the group {group}"));
    }
    None
}

/// Returns the part of a path that exists, with symbolic links resolved.
fn existing(path: &Path) -> Result<PathBuf> {
    for dir in path.ancestors() {
        match fs::canonicalize(dir) {
            Ok(real) => return Ok(real),
            Err(e) if is_absent(&e) || e.kind() == io::ErrorKind::PermissionDenied => {}
            // A mount whose daemon has died.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOTCONN) => {}
            Err(e) => return Err(e).context(dir, "resolve the directory"),
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
