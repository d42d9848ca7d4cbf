//! Puts an environment in the place of the directory that it was imported from, and back.
//!
//! The original directory is kept beside its path as a backup. At every moment it is either at its
//! path or the backup, whole, and the note in the home ([`InPlace`]) says what has begun, so that
//! [`recover`] completes or reverts what was interrupted. `docs/commit.md` lists the steps.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::AccessFlags;

use super::error::{CommitError, Context, Result};
use crate::environment::{DirectoryId, EnvLock, Environment, InPlace, Layout, Stage};
use crate::fault;
use crate::object::Timestamp;
use crate::progress::{Progress, Report};
use crate::sys::walk::{self, CurrentDir, Visitor};
use crate::sys::{durable, mountinfo, process};

/// The names and attributes in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Digest of all names with their attributes. The modification times of directories are not
    /// included: what is in them is.
    digest: String,
    entries: u64,
    bytes: u64,
}

/// Surveys a directory.
pub fn survey(dir: &Path, progress: &dyn Progress) -> Result<Survey> {
    let mut survey = Surveyor {
        hasher: blake3::Hasher::new(),
        progress,
        entries: 1,
        bytes: 0,
    };
    walk::walk(dir, (), &mut survey)?;
    Ok(Survey {
        digest: survey.hasher.finalize().to_hex().to_string(),
        entries: survey.entries,
        bytes: survey.bytes,
    })
}

struct Surveyor<'a> {
    hasher: blake3::Hasher,
    progress: &'a dyn Progress,
    entries: u64,
    bytes: u64,
}

impl Visitor for Surveyor<'_> {
    type Tag = ();
    type Error = CommitError;

    fn enter(&mut self, here: &CurrentDir<'_>, (): ()) -> Result<walk::Subdirs<()>> {
        let mut below = Vec::new();
        self.hasher.update(&here.names().len().to_le_bytes());
        for (name, meta) in entries(here)? {
            self.hasher.update(&(name.len() as u64).to_le_bytes());
            self.hasher.update(&name);
            let (size, seconds, nanoseconds) = match meta.is_dir() {
                true => (0, 0, 0),
                false => (meta.len(), meta.mtime(), meta.mtime_nsec()),
            };
            let mode = u64::from(meta.mode());
            let owner = u64::from(meta.uid()) << 32 | u64::from(meta.gid());
            for number in [mode, owner, meta.rdev(), size] {
                self.hasher.update(&number.to_le_bytes());
            }
            for number in [seconds, nanoseconds] {
                self.hasher.update(&number.to_le_bytes());
            }
            self.entries += 1;
            if meta.is_file() {
                self.bytes += meta.len();
            }
            if meta.is_dir() {
                below.push((name, ()));
            }
        }
        if self.progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        self.progress.report(&Report {
            phase: "comparing".to_owned(),
            files_done: self.entries,
            files_total: 0,
            bytes_done: 0,
            bytes_total: 0,
        });
        Ok(below)
    }
}

/// Reads a directory in the order of names.
fn entries(here: &CurrentDir<'_>) -> Result<Vec<(Vec<u8>, fs::Metadata)>> {
    let failed = |source| CommitError::Io {
        doing: "read",
        path: here.full_path(),
        error: source,
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(here.path()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let meta = entry.metadata().map_err(failed)?;
        entries.push((entry.file_name().as_bytes().to_vec(), meta));
    }
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

/// Returns up to `limit` files and directories that were changed at or after a time, in seconds
/// since 1970.
pub fn changed_since(dir: &Path, since: i64, limit: usize) -> Result<Vec<PathBuf>> {
    let mut changed = Changed {
        since,
        limit,
        paths: Vec::new(),
    };
    walk::walk(dir, (), &mut changed)?;
    Ok(changed.paths)
}

struct Changed {
    since: i64,
    limit: usize,
    paths: Vec<PathBuf>,
}

impl Visitor for Changed {
    type Tag = ();
    type Error = CommitError;

    fn enter(&mut self, here: &CurrentDir<'_>, (): ()) -> Result<walk::Subdirs<()>> {
        let mut below = Vec::new();
        for (name, meta) in entries(here)? {
            if self.paths.len() == self.limit {
                break;
            }
            if meta.ctime() >= self.since {
                self.paths.push(here.below(&name));
            }
            if meta.is_dir() {
                below.push((name, ()));
            }
        }
        Ok(below)
    }
}

/// Checks that a directory can be moved away from its path, and returns its identity. An empty
/// directory that an earlier import left at the path of the backup is removed.
pub fn check_original(dir: &Path) -> Result<DirectoryId> {
    let unsuitable = |why: String| {
        Err(CommitError::Unsuitable {
            path: dir.to_owned(),
            why,
        })
    };
    let mounts = mountinfo::read().context("read the mounts in", dir)?;
    let real = fs::canonicalize(dir).context("find", dir)?;
    for mount in mounts {
        if mount.mount_point == real {
            return unsuitable(format!(
                "it is a mount point ({}); only a directory of a file system can be moved away",
                mount.fs_type
            ));
        }
        if mount.mount_point.starts_with(&real) {
            return unsuitable(format!(
                "another file system is mounted in it, at {}; unmount it first",
                mount.mount_point.display()
            ));
        }
    }
    let meta = fs::symlink_metadata(dir).context("look at", dir)?;
    let me = process::user_id();
    if meta.uid() != me && me != 0 {
        let (owner, me) = (process::user_name(meta.uid()), process::user_name(me));
        return unsuitable(format!("it belongs to {owner}, not to {me}"));
    }
    let parent = dir.parent().unwrap_or(dir);
    if let Err(e) = nix::unistd::access(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
        return unsuitable(format!(
            "it cannot be renamed, because {} is not writable: {}",
            parent.display(),
            process::error_text(&e.into())
        ));
    }
    let backup = InPlace::backup_of(dir);
    match fs::remove_dir(&backup) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(_) => {
            return unsuitable(format!(
                "its backup would be {}, which exists; remove or rename that",
                backup.display()
            ));
        }
    }
    DirectoryId::of(dir).context("look at", dir)
}

/// Notes in a home under construction that it is for an import in place of `original`.
pub fn begin(layout: &Layout, original: DirectoryId, survey: &Survey) -> Result<InPlace> {
    let note = InPlace::begin(
        original,
        survey.digest.clone(),
        survey.entries,
        survey.bytes,
        Timestamp::now().secs,
    );
    note.write(layout)?;
    Ok(note)
}

/// Moves the original away, so that an empty directory is at its path. The caller holds the
/// environment's lock. On failure the original is at its path.
pub fn swap_in(prefix: &Path, note: &InPlace) -> Result<()> {
    fault::hang("hang.in-place");
    fault::point("in-place.created");
    let backup = InPlace::backup_of(prefix);
    if !note.is_at(prefix) {
        return Err(CommitError::SourceChanged(prefix.to_owned()));
    }
    create_empty(&backup)?;
    fault::point("in-place.placed");
    if let Err(error) = exchange(prefix, &backup) {
        remove_empty(&backup);
        return Err(error);
    }
    fault::point("in-place.swapped");
    if let Err(error) = durable::sync_name(prefix).context("sync the directory of", prefix) {
        swap_back(prefix, note)?;
        return Err(error);
    }
    Ok(())
}

/// Completes an import: the original is the backup, and the environment is mounted in its place.
pub fn complete(environment: &Environment, note: &mut InPlace) -> Result<()> {
    fault::point("in-place.mounted");
    note.stage = Stage::Kept;
    Ok(note.write(environment.layout())?)
}

/// Exchanges a directory with an empty one.
fn exchange(dir: &Path, empty: &Path) -> Result<()> {
    let done = match fault::is_enabled("rename.no-exchange") {
        true => Err(Errno::EINVAL),
        false => renameat2(AT_FDCWD, dir, AT_FDCWD, empty, RenameFlags::RENAME_EXCHANGE),
    };
    match done {
        // File systems that cannot exchange names. After a crash in between, the directory exists
        // only at its new name, where `recover` finds it.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            // It replaces an empty directory.
            fs::rename(dir, empty).context("rename", dir)?;
            fault::point("in-place.renamed");
            if let Err(error) = create_empty(dir) {
                fs::rename(empty, dir).context("rename", empty)?;
                return Err(error);
            }
            Ok(())
        }
        done => done.context("rename", dir),
    }
}

fn create_empty(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .context("make", dir)
}

/// Removes a directory if it is empty.
fn remove_empty(dir: &Path) {
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %dir.display(), %error, "cannot remove an empty directory");
    }
}

/// Puts the original back, in one step. Fails unless its path is an empty directory.
fn swap_back(prefix: &Path, note: &InPlace) -> Result<()> {
    let backup = InPlace::backup_of(prefix);
    if !note.is_at(&backup) {
        return Err(CommitError::Unsuitable {
            path: backup,
            why: "this is not the directory that was imported, or there is none".to_owned(),
        });
    }
    match fs::rename(&backup, prefix) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) =>
        {
            return Err(CommitError::Unsuitable {
                path: prefix.to_owned(),
                why: format!(
                    "it is not empty, so {} cannot be put back; move away what is in it",
                    backup.display()
                ),
            });
        }
        done => done.context("rename", &backup)?,
    }
    durable::sync_name(prefix).context("sync the directory of", prefix)
}

/// Puts the original back and removes the environment, which is not mounted.
pub fn undo(
    environment: Environment,
    lock: EnvLock,
    prefix: &Path,
    note: &mut InPlace,
) -> Result<()> {
    let backup = InPlace::backup_of(prefix);
    if !note.is_at(&backup) && !note.is_at(prefix) {
        return Err(missing_backup(&backup));
    }
    let before = note.stage;
    note.stage = Stage::Undoing;
    note.write(environment.layout())?;
    fault::point("in-place-undo.begun");
    if !note.is_at(prefix)
        && let Err(error) = swap_back(prefix, note)
    {
        note.stage = before;
        note.write(environment.layout())?;
        return Err(error);
    }
    fault::point("in-place-undo.swapped");
    remove_empty_backup(prefix);
    environment.remove_files(lock)?;
    fault::point("in-place-undo.removed");
    Ok(())
}

/// Removes the empty directory that the import had made at the path of the backup.
fn remove_empty_backup(prefix: &Path) {
    let backup = InPlace::backup_of(prefix);
    if fs::symlink_metadata(&backup).is_ok_and(|meta| meta.is_dir()) {
        remove_empty(&backup);
    }
}

/// Returns the error for a backup that is not there.
fn missing_backup(backup: &Path) -> CommitError {
    CommitError::Unsuitable {
        path: backup.to_owned(),
        why: "the original directory is not there any more".to_owned(),
    }
}

/// Returns whether the backup still is as the original was when it was imported.
pub fn is_unchanged(prefix: &Path, note: &InPlace, progress: &dyn Progress) -> Result<bool> {
    let backup = InPlace::backup_of(prefix);
    if !note.is_at(&backup) {
        return Err(missing_backup(&backup));
    }
    Ok(survey(&backup, progress)?.digest == note.listing)
}

/// Returns whether a survey is what the note says.
pub fn is_same(note: &InPlace, survey: &Survey) -> bool {
    note.listing == survey.digest
}

/// Deletes the backup.
pub fn finish(environment: &Environment, prefix: &Path, note: &mut InPlace) -> Result<()> {
    let backup = InPlace::backup_of(prefix);
    if !note.is_at(&backup) {
        return Err(missing_backup(&backup));
    }
    note.stage = Stage::Finishing;
    note.write(environment.layout())?;
    fault::point("finish.begun");
    complete_finish(environment, prefix, note)
}

fn complete_finish(environment: &Environment, prefix: &Path, note: &InPlace) -> Result<()> {
    let backup = InPlace::backup_of(prefix);
    if note.is_at(&backup) {
        walk::remove_tree(&backup).context("remove", &backup)?;
        durable::sync_name(&backup).context("sync the directory of", &backup)?;
    }
    fault::point("finish.deleted");
    Ok(InPlace::remove(environment.layout())?)
}

/// What became of an operation that was interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// The original is at its path; the environment was removed.
    TakenBack,
    /// The original is the backup. The environment is to be mounted in its place; then the import
    /// can be [completed](complete).
    Swapped(Box<InPlace>),
    /// The backup was deleted.
    Finished,
}

/// Completes an operation in place that was interrupted, or takes it back. Returns `None` if there
/// is nothing to do, or if the process that began it is still at work.
pub fn recover(environment: &Environment, prefix: &Path) -> Result<Option<Recovered>> {
    let read = || InPlace::read(environment.layout());
    match read()? {
        Some(note) if note.stage != Stage::Kept && !note.is_being_imported() => {}
        _ => return Ok(None),
    }
    // The note may have changed while the lock was not held. A backup is also deleted while the
    // environment is mounted, whose daemon has the lock.
    let lock = EnvLock::try_lock(environment.layout(), "recover").ok();
    let Some(mut note) = read()? else {
        return Ok(None);
    };
    let is_original_back = note.is_at(prefix);
    match (note.stage, lock) {
        (Stage::Finishing, _) => {
            complete_finish(environment, prefix, &note)?;
            Ok(Some(Recovered::Finished))
        }
        // Whether it is mounted already, or not yet.
        (Stage::Importing, _) if !is_original_back => Ok(Some(Recovered::Swapped(Box::new(note)))),
        (Stage::Importing | Stage::Undoing, Some(lock)) => {
            undo(environment.clone(), lock, prefix, &mut note)?;
            Ok(Some(Recovered::TakenBack))
        }
        (Stage::Kept, _) | (_, None) => Ok(None),
    }
}
