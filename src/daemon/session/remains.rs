//! Directories for the changes of ephemeral sessions, and the removal of what killed daemons left
//! behind.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::noted_here;
use crate::daemon::failure::Failure;
use crate::daemon::runtime::RuntimeDir;
use crate::environment::{EnvLock, Layout, SessionNotes};
use crate::sys::process;
use crate::sys::walk;

/// The file system in memory that every user may write to.
pub(crate) const SHARED_MEMORY: &str = "/dev/shm";

/// The prefix of the name of a directory for the changes of an ephemeral session.
const UPPER_PREFIX: &str = "envfs-session-";

/// The age up to which such a directory without a lock is assumed to belong to a session that is
/// just starting.
const LOCK_GRACE: Duration = Duration::from_secs(60);

/// Creates a directory for the changes of an ephemeral session.
pub(super) fn create_upper(base: &Path) -> Result<PathBuf, Failure> {
    let created = tempfile::Builder::new()
        .prefix(UPPER_PREFIX)
        .tempdir_in(base)
        .map_err(|error| {
            let doing = format!(
                "cannot create a directory for changes in {}",
                base.display()
            );
            Failure::of_named(doing, &error).hint("choose another directory: --upper-dir DIR")
        })?;
    let path = fs::canonicalize(created.path())
        .map_err(|error| Failure::io(format!("cannot find {}", base.display()), &error))?;
    drop(created.keep());
    Ok(path)
}

/// Removes what daemons on this host left behind because they were killed: directories for changes,
/// and notes here and in the home of an environment.
pub(crate) fn remove_remains(runtime: &RuntimeDir, layout: &Layout) {
    remove_left_here(runtime);
    // Another process may be removing them as well, and the home may not be writable.
    for noted in SessionNotes::new(layout.sessions())
        .read()
        .unwrap_or_default()
    {
        if !noted.is_live && noted.note.is_visible() {
            drop(fs::remove_file(&noted.path));
        }
    }
}

pub(super) fn remove_left_here(runtime: &RuntimeDir) {
    for noted in noted_here(runtime) {
        if noted.is_live || !noted.note.is_visible() {
            continue;
        }
        if let Some(upper) = &noted.note.upper
            && let Err(error) = remove_left(upper.as_path())
        {
            tracing::warn!(%error, path = %upper.as_path().display(), "cannot remove the changes of a session");
            continue;
        }
        if let Err(error) = fs::remove_file(&noted.path) {
            tracing::debug!(%error, path = %noted.path.display(), "cannot remove a note");
        }
    }
    for base in [PathBuf::from(SHARED_MEMORY), std::env::temp_dir()] {
        remove_unnoted(&base);
    }
}

/// Removes directories for changes that no session uses and no note names: the command was killed
/// before its daemon wrote a note.
fn remove_unnoted(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.as_bytes().starts_with(UPPER_PREFIX.as_bytes()) {
            continue;
        }
        let changed = entry.metadata().and_then(|meta| meta.modified());
        // A daemon that starts now has just created its lock, and may not have taken it.
        let is_old = changed.is_ok_and(|time| {
            let age = SystemTime::now().duration_since(time);
            age.is_ok_and(|age| age >= LOCK_GRACE)
        });
        if is_old && let Err(error) = remove_left(&entry.path()) {
            tracing::debug!(%error, path = %entry.path().display(), "cannot remove the changes of a session");
        }
    }
}

/// Removes a directory for changes, unless a process uses it.
fn remove_left(upper: &Path) -> std::io::Result<()> {
    let meta = match fs::symlink_metadata(upper) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    let is_ours = meta.is_dir()
        && meta.uid() == process::user_id()
        && upper
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(UPPER_PREFIX));
    if !is_ours {
        return Ok(());
    }
    let layout = Layout::new(upper);
    let is_new = || {
        let age = meta
            .modified()
            .map(|time| SystemTime::now().duration_since(time));
        !layout.lock().exists() && age.is_ok_and(|age| age.is_ok_and(|age| age < LOCK_GRACE))
    };
    if is_new() {
        return Ok(());
    }
    // Held until the files are gone.
    let Ok(_lock) = EnvLock::try_lock(&layout, "clean") else {
        return Ok(());
    };
    walk::remove_tree(upper)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn old_directories_that_no_note_names_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let [new, old, used] = [(), (), ()].map(|()| create_upper(dir.path()).unwrap());
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        let _lock = EnvLock::try_lock(&Layout::new(&used), "mounted").unwrap();
        for path in [&old, &used, &other] {
            let file = fs::File::open(path).unwrap();
            file.set_modified(SystemTime::now() - LOCK_GRACE * 2)
                .unwrap();
        }
        remove_unnoted(dir.path());
        let left = [&new, &old, &used, &other].map(|path| path.exists());
        assert_eq!(left, [true, false, true, true]);
    }

    #[test]
    fn only_directories_that_no_daemon_uses_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("precious");
        fs::create_dir(&other).unwrap();
        remove_left(&other).unwrap();
        assert!(other.exists());
        let upper = create_upper(dir.path()).unwrap();
        remove_left(&upper).unwrap();
        assert!(upper.exists(), "it is new");
        let lock = EnvLock::try_lock(&Layout::new(&upper), "mounted").unwrap();
        remove_left(&upper).unwrap();
        assert!(upper.exists(), "it is in use");
        drop(lock);
        remove_left(&upper).unwrap();
        assert!(!upper.exists());
        remove_left(&upper).unwrap();
        std::os::unix::fs::symlink(&other, &upper).unwrap();
        remove_left(&upper).unwrap();
        assert!(other.exists() && upper.is_symlink());
    }
}
