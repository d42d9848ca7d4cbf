//! The record of the directories in which an environment has launchers for its programs.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use fs2::FileExt;
use serde::{Deserialize, Serialize};

use super::error::{Context, Result};
use super::layout::Layout;
use crate::sys::text::Text;
use crate::sys::{durable, regular};

/// The size limit of the record, in bytes.
const LIMIT: u64 = 4 << 20;
/// The time limit for another command that changes the record.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A directory with launchers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// The directory, an absolute path.
    pub dir: Text,
    /// The revision, a number or a tag; `None` for the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The names of the programs; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Vec<Text>>,
    /// The options of `envfs run` that choose the session.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<Text>,
}

/// The record of an environment. While it is open, no other process changes it.
#[derive(Debug)]
pub struct LauncherRecord {
    /// The directories.
    pub exposures: Vec<Exposure>,
    layout: Layout,
    _lock: Option<File>,
}

impl LauncherRecord {
    /// Reads the directories, without a lock.
    pub fn read(layout: &Layout) -> Result<Vec<Exposure>> {
        let path = layout.launchers();
        let text = match regular::read(&path, LIMIT) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).context(&path, "read"),
        };
        let found = serde_json::from_slice(&text).map_err(io::Error::from);
        found.context(&path, "read")
    }

    /// Opens the record to change it, or to change the launchers.
    pub fn open(layout: &Layout) -> Result<LauncherRecord> {
        let lock = lock(layout.home()).context(&layout.launchers(), "lock")?;
        Ok(LauncherRecord {
            exposures: LauncherRecord::read(layout)?,
            layout: layout.clone(),
            _lock: lock,
        })
    }

    /// Writes the record, durably.
    pub fn write(&self) -> Result<()> {
        let path = self.layout.launchers();
        let write = || {
            if !self.exposures.is_empty() {
                return durable::replace(&path, &serde_json::to_vec(&self.exposures)?);
            }
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(e),
                Ok(()) => durable::sync_name(&path),
            }
        };
        write().context(&path, "write")
    }

    /// Returns the entry of a directory.
    pub fn of(&self, dir: &Path) -> Option<&Exposure> {
        self.exposures
            .iter()
            .find(|exposure| exposure.dir.as_path() == dir)
    }
}

/// Locks a directory. Returns `None` where the file system has no such locks.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = regular::open_dir(dir)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock_exclusive() {
            Ok(()) => return Ok(Some(file)),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::debug!(%error, path = %dir.display(), "not locked");
                return Ok(None);
            }
            Err(_) if Instant::now() > deadline => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another command has been changing launchers for more than 10 s",
                ));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_record_is_read_as_it_was_written_and_goes_with_its_last_entry() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let mut record = LauncherRecord::open(&layout).unwrap();
        assert_eq!(record.exposures, []);
        let exposure = Exposure {
            dir: Text::from("/opt/bin"),
            revision: Some("3".to_owned()),
            programs: Some(vec![Text::from("python")]),
            options: vec![Text::from("--read-only")],
        };
        record.exposures.push(exposure.clone());
        record.write().unwrap();
        drop(record);
        let mut record = LauncherRecord::open(&layout).unwrap();
        assert_eq!(record.of(Path::new("/opt/bin")), Some(&exposure));
        assert_eq!(record.of(Path::new("/opt")), None);
        record.exposures.clear();
        record.write().unwrap();
        assert!(!layout.launchers().exists());
        record.write().unwrap();
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        for text in ["", "{", "[{}]", "[{\"dir\": 3}]"] {
            fs::write(layout.launchers(), text).unwrap();
            let error = LauncherRecord::read(&layout).unwrap_err().to_string();
            assert!(error.contains("launchers"), "{error}");
        }
        fs::remove_file(layout.launchers()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", layout.launchers()).unwrap();
        LauncherRecord::read(&layout).unwrap_err();
    }
}
