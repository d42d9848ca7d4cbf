//! Validates rows, whether they come from the database or the redo log.
//!
//! Both are untrusted data. Names in them become names of files, ids become names of directories,
//! and directories are walked. So every row is checked once, when it is read. The errors describe
//! the bad value.

use std::path::{Component, Path};

use super::ids::{ImageId, LayerId};
use super::rows::{DataPlace, InodeRow, RowChange};
use crate::object::{Ino, Kind};

/// The longest name that an image or a file system can hold, in bytes.
const MAX_NAME: usize = 256;
/// The longest name of an extended attribute that the kernel takes, in bytes.
const MAX_XATTR_NAME: usize = 255;
/// The longest path that the kernel takes, in bytes.
const MAX_PATH: usize = 4096;
/// The longest identity of an environment: a UUID as text. It is part of socket names.
const MAX_UUID: usize = 36;

/// Checks the name of an entry in a directory.
pub(super) fn name(name: &[u8]) -> Result<(), String> {
    let wrong = |why: &str| {
        let start = name.get(..64).unwrap_or(name);
        Err(format!("name \"{}\" ({why})", start.escape_ascii()))
    };
    match name {
        b"" => wrong("it is empty"),
        b"." | b".." => wrong("it is no name of an entry"),
        _ if name.contains(&b'/') => wrong("it is a path"),
        _ if name.contains(&0) => wrong("it contains NUL"),
        _ if name.len() > MAX_NAME => wrong("it is too long"),
        _ => Ok(()),
    }
}

/// Checks the token of a trial, which names a directory.
pub(super) fn token(token: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match token.len() {
        1..=MAX_UUID if token.chars().all(is_plain) => Ok(()),
        _ => Err("token".to_owned()),
    }
}

/// Checks the id of an object: positive as SQLite stores it, and not the largest.
pub(super) fn object(ino: Ino) -> Result<(), String> {
    if (1..i64::MAX as u64).contains(&ino.0) {
        Ok(())
    } else {
        Err(format!("object id {}", ino.0 as i64))
    }
}

/// Checks the row of an object.
pub(super) fn inode(ino: Ino, row: &InodeRow) -> Result<(), String> {
    object(ino)?;
    if row.mode > 0o7777 {
        return Err(format!("mode {:#o}", row.mode));
    }
    if [row.atime, row.mtime, row.ctime]
        .iter()
        .any(|time| time.nanos >= 1_000_000_000)
    {
        return Err("time".to_owned());
    }
    if row
        .target
        .as_ref()
        .is_some_and(|target| target.contains(&0))
    {
        return Err("target of a symbolic link (it contains NUL)".to_owned());
    }
    if row.data == DataPlace::Upper && !matches!(row.kind, Kind::File | Kind::Symlink) {
        return Err(format!("place of the data of a {:?}", row.kind));
    }
    if ino == Ino::ROOT && (row.kind != Kind::Directory || row.place.is_some()) {
        return Err("root that is not a directory, or has a place".to_owned());
    }
    if let Some((dir, at)) = &row.place {
        object(*dir)?;
        name(at)?;
    }
    Ok(())
}

/// Checks the name of an extended attribute.
pub(super) fn xattr(name: &[u8]) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
        let start = name.get(..64).unwrap_or(name);
        return Err(format!("attribute name \"{}\"", start.escape_ascii()));
    }
    Ok(())
}

/// Checks one change of a row.
pub(super) fn change(change: &RowChange<'_>) -> Result<(), String> {
    match change {
        RowChange::PutInode(ino, row) => inode(*ino, row),
        RowChange::PutEntry {
            dir,
            name: at,
            target,
        } => entry(*dir, at, *target),
        RowChange::DropEntry { dir, name: at } => entry(*dir, at, None),
        RowChange::PutXattr { ino, name: at, .. } | RowChange::DropXattr { ino, name: at } => {
            object(*ino)?;
            xattr(at)
        }
        RowChange::DropInode(ino) | RowChange::DropEntriesOf(ino) | RowChange::DropXattrs(ino) => {
            object(*ino)
        }
    }
}

/// Checks a name in a directory and its target. The root has no name.
pub(super) fn entry(dir: Ino, at: &[u8], target: Option<Ino>) -> Result<(), String> {
    object(dir)?;
    name(at)?;
    match target {
        Some(Ino::ROOT) => Err("name of the root".to_owned()),
        Some(ino) => object(ino),
        None => Ok(()),
    }
}

/// Checks the id of a layer, which names a directory.
pub(super) fn layer(id: LayerId) -> Result<(), String> {
    if id.0 > 0 {
        Ok(())
    } else {
        Err(format!("id {id}"))
    }
}

/// Checks the name of an image's file, which follows from its id.
pub(super) fn image_file(id: ImageId, file: &str) -> Result<(), String> {
    if id.0 <= 0 {
        return Err(format!("id {id}"));
    }
    if file != id.file_name() {
        let file: String = file.chars().take(64).collect();
        return Err(format!(
            "file name \"{}\" of image {id} (it can only be {})",
            file.escape_debug(),
            id.file_name()
        ));
    }
    Ok(())
}

/// Checks the identity of an environment, which names sockets and locks.
pub(super) fn uuid(uuid: &[u8]) -> Result<(), String> {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    if (1..=MAX_UUID).contains(&uuid.len()) && uuid.iter().all(is_allowed) {
        Ok(())
    } else {
        Err("value of uuid".to_owned())
    }
}

/// Checks the path where an environment is mounted.
pub(super) fn prefix(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let is_plain = path.is_absolute()
        && path.parent().is_some()
        && !bytes.contains(&0)
        && bytes.len() < MAX_PATH
        && !path.components().any(|part| part == Component::ParentDir);
    if is_plain {
        Ok(())
    } else {
        Err("value of prefix".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        for bad in [
            &b""[..],
            b".",
            b"..",
            b"a/b",
            b"/",
            b"../../../secret",
            b"/etc/passwd",
            b"a\0b",
            &[b'x'; 257],
        ] {
            let why = name(bad).unwrap_err();
            assert!(why.len() < 400 && why.starts_with("name \""), "{why}");
        }
        for good in [&b"a"[..], b"...", b"..a", b"\xff\n\x1b", &[b'x'; 256]] {
            name(good).unwrap();
        }
    }

    #[test]
    fn an_image_is_named_by_its_id() {
        image_file(ImageId(7), "7.sqfs").unwrap();
        for (id, file) in [
            (7, "8.sqfs"),
            (7, "/etc/shadow"),
            (7, "../7.sqfs"),
            (7, ".7.sqfs.part"),
            (7, ""),
            (0, "0.sqfs"),
            (-1, "-1.sqfs"),
        ] {
            image_file(ImageId(id), file).unwrap_err();
        }
    }

    #[test]
    fn an_identity_names_a_socket_and_a_prefix_a_directory() {
        uuid(b"0f8fad5b-d9cb-469f-a165-70867728950e").unwrap();
        for bad in [&b""[..], b"../../x", b"a/b", b"a\0", b".", &[b'a'; 37]] {
            uuid(bad).unwrap_err();
        }
        prefix(Path::new("/home/me/env")).unwrap();
        for bad in ["", "env", "/", "/a/../etc", "/a\0b"] {
            prefix(Path::new(bad)).unwrap_err();
        }
    }
}
