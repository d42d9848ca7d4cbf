//! The note of an environment that was imported in place: its original directory is kept beside the
//! prefix as a backup, until the import is finished or undone.
//!
//! The note is a file in the home. It identifies the original directory by its inode, so that no
//! other directory is ever taken for it, and says which operation has begun, so that the next
//! command can complete one that was interrupted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::error::{Context, Result};
use super::layout::Layout;
use super::process::HostProcess;
use crate::sys::{durable, regular};

/// Follows the name of the directory in the name of its backup.
const SUFFIX: &str = ".envfs-backup";

/// The longest note, in bytes.
const LIMIT: u64 = 64 << 10;

/// The operation that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The environment is complete. The original is still at its path, or was just moved away.
    Importing,
    /// The original is the backup, and the environment is in its place.
    Kept,
    /// The original is being put back; then the environment is removed.
    Undoing,
    /// The backup is being deleted.
    Finishing,
}

/// What identifies a directory on its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryId {
    inode: u64,
    /// Time of birth in nanoseconds since 1970; 0 where the file system does not keep it.
    born: i64,
}

impl DirectoryId {
    /// Returns the identity of the directory at a path. Fails for anything else, such as a symbolic
    /// link.
    pub fn of(path: &Path) -> io::Result<DirectoryId> {
        let meta = fs::symlink_metadata(path)?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let born = meta.created().ok();
        let born = born.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let born = born.and_then(|time| i64::try_from(time.as_nanos()).ok());
        Ok(DirectoryId {
            inode: meta.ino(),
            born: born.unwrap_or(0),
        })
    }
}

/// The note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPlace {
    /// The operation that has begun.
    pub stage: Stage,
    /// The original directory.
    pub original: DirectoryId,
    /// Digest of the names and attributes in the original when it was imported.
    pub listing: String,
    /// Number of entries in the original.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// The time of the import, in seconds since 1970.
    pub since: i64,
    /// The process that imports it.
    importer: HostProcess,
}

impl InPlace {
    /// Begins an import by this process. `listing`, `entries` and `bytes` describe the original.
    pub fn begin(
        original: DirectoryId,
        listing: String,
        entries: u64,
        bytes: u64,
        since: i64,
    ) -> InPlace {
        InPlace {
            stage: Stage::Importing,
            original,
            listing,
            entries,
            bytes,
            since,
            importer: HostProcess::current(),
        }
    }

    /// Returns the path of the backup of a directory.
    pub fn backup_of(prefix: &Path) -> PathBuf {
        let mut path = prefix.as_os_str().to_owned();
        path.push(SUFFIX);
        path.into()
    }

    /// Returns whether the original directory is at this path.
    pub fn is_at(&self, path: &Path) -> bool {
        DirectoryId::of(path).is_ok_and(|found| found == self.original)
    }

    /// Returns whether the process that imports it is known to be running.
    pub fn is_being_imported(&self) -> bool {
        let importer = &self.importer;
        self.stage == Stage::Importing && importer.is_local() && !importer.is_dead()
    }

    /// Reads the note of an environment, if it has one.
    pub fn read(layout: &Layout) -> Result<Option<InPlace>> {
        let path = layout.in_place();
        let text = match regular::read(&path, LIMIT) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context(&path, "read"),
        };
        let note = serde_json::from_slice(&text).map_err(io::Error::from);
        Ok(Some(note.context(&path, "read")?))
    }

    /// Writes the note, durably.
    pub fn write(&self, layout: &Layout) -> Result<()> {
        let path = layout.in_place();
        let write = || durable::replace(&path, &serde_json::to_vec(self)?);
        write().context(&path, "write")
    }

    /// Removes the note of an environment.
    pub fn remove(layout: &Layout) -> Result<()> {
        let path = layout.in_place();
        let remove = || {
            fs::remove_file(&path)?;
            durable::sync_name(&path)
        };
        remove().context(&path, "remove")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_knows_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        assert_eq!(InPlace::read(&layout).unwrap(), None);
        let (original, backup) = (dir.path().join("x"), dir.path().join("x.envfs-backup"));
        fs::create_dir(&original).unwrap();
        let id = DirectoryId::of(&original).unwrap();
        let mut note = InPlace::begin(id, "digest".to_owned(), 1, 2, 3);
        assert!(note.is_being_imported());
        note.write(&layout).unwrap();
        assert_eq!(InPlace::read(&layout).unwrap(), Some(note.clone()));
        note.stage = Stage::Kept;
        assert!(!note.is_being_imported());
        note.write(&layout).unwrap();
        assert_eq!(InPlace::read(&layout).unwrap().unwrap().stage, Stage::Kept);

        assert_eq!(InPlace::backup_of(&original), backup);
        assert!(note.is_at(&original) && !note.is_at(&backup));
        fs::rename(&original, &backup).unwrap();
        std::os::unix::fs::symlink(&backup, &original).unwrap();
        assert!(note.is_at(&backup) && !note.is_at(&original));

        InPlace::remove(&layout).unwrap();
        assert_eq!(InPlace::read(&layout).unwrap(), None);
        fs::write(layout.in_place(), "{}").unwrap();
        let refused = InPlace::read(&layout).unwrap_err().to_string();
        assert!(refused.contains("in-place"), "{refused}");
    }
}
