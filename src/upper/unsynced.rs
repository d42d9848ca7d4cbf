//! The parts of an upper directory that may not be on disk yet.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::object::Ino;

/// Directories and files of one upper that were changed since they were last synced. It stays with
/// the upper when that is frozen.
#[derive(Debug, Default)]
pub(crate) struct Unsynced(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    dirs: HashSet<Ino>,
    files: HashSet<Ino>,
    /// Set if an earlier process may have left unsynced directories: any may be unsynced except
    /// these.
    synced_dirs: Option<HashSet<Ino>>,
    /// Whether an earlier process may have left unsynced files.
    is_any_file: bool,
}

impl Unsynced {
    fn marks(&self) -> MutexGuard<'_, Marks> {
        // A set whose element a panicking thread may have failed to add is still a set.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that names in a directory have changed.
    pub(crate) fn note_dir(&self, dir: Ino) {
        self.marks().dirs.insert(dir);
    }

    /// Records that the content of a file is about to change.
    pub(crate) fn note_file(&self, file: Ino) {
        self.marks().files.insert(file);
    }

    /// Records that anything may be unsynced, because an earlier process may have left it.
    pub(crate) fn note_everything(&self) {
        let mut marks = self.marks();
        marks.synced_dirs = Some(HashSet::new());
        marks.is_any_file = true;
    }

    /// Returns true if there is no directory to sync.
    pub(crate) fn has_no_dirs(&self) -> bool {
        let marks = self.marks();
        marks.dirs.is_empty() && marks.synced_dirs.is_none()
    }

    /// Returns true if a directory must be synced, which the caller then does.
    pub(crate) fn take_dir(&self, dir: Ino) -> bool {
        let mut marks = self.marks();
        let is_noted = marks.dirs.remove(&dir);
        let is_unknown = marks
            .synced_dirs
            .as_mut()
            .is_some_and(|synced| synced.insert(dir));
        is_noted || is_unknown
    }

    /// Returns which of these files must be synced, which the caller then does.
    pub(crate) fn take_files(&self, mut files: Vec<Ino>) -> Vec<Ino> {
        let mut marks = self.marks();
        let noted = std::mem::take(&mut marks.files);
        if !std::mem::take(&mut marks.is_any_file) {
            files.retain(|file| noted.contains(file));
        }
        files
    }
}
