//! The operations on an open environment, in its daemon or in a command.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use super::failure::{Failure, Kind};
use super::private::MountRoot;
use super::profile::Recording;
use super::protocol::{
    AmendOptions, Amended, Committable, DiscardOptions, Discarded, RollbackOptions, Selection,
    Service, Since, Status, TagOptions,
};
use super::repairs::log_reconciled;
use super::selection::{paths_of, refuse_unknown};
use crate::commit::{
    self, CheckpointOptions, Checkpointed, Chosen, CommitError, CommitOptions, Committed, Ignored,
    QUIET, RolledBack, Syncing, TrialDone, TrialRequest, UndoOptions, Undone, Workspace,
};
use crate::environment::{Config, EnvLock, Environment, Hold, Layout, Poll};
use crate::fuse::session::Invalidator;
use crate::fuse::{Counters, invalidate};
use crate::packages::{self, Differences, Files};
use crate::progress::Progress;
use crate::state::{RevisionId, StackLayer, StackPart, StateDb, StateError};
use crate::sys::mount;
use crate::sys::text::{Text, quoted};
use crate::sys::walk;
use crate::union::{self, Change, DiscardMode, Reconciled, Restored, Summary, Tally};

/// The time limit for the lock of an environment that another command reads, or whose daemon is
/// ending.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// An environment that is open under its lock, and possibly mounted.
#[derive(Debug)]
pub(crate) struct Local {
    workspace: Workspace,
    /// The differences that were repaired on opening.
    reconciled: Reconciled,
    mount: OnceLock<ActiveMount>,
    /// Serializes operations on the whole environment.
    operation_lock: Mutex<()>,
    /// Held while the environment is open.
    lock: Mutex<Option<EnvLock>>,
}

/// The mount of an open environment.
#[derive(Debug)]
pub(super) struct ActiveMount {
    pub invalidator: Invalidator,
    pub mount_point: PathBuf,
    /// Its root, if it is private: the mount point does not lead to it then.
    pub root: Option<MountRoot>,
    pub counters: Arc<Counters>,
    pub poll: Poll,
    /// The access profile, if it is enabled.
    pub profile: Option<Recording>,
}

/// What to do if changes are lost while a view is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnLoss {
    /// Fail and name the lost files.
    Fail,
    /// Continue: the operation drops the changes anyway.
    Continue,
}

impl Local {
    /// Opens an environment, waiting up to `timeout` for its lock.
    pub(crate) fn open(
        environment: Environment,
        config: &Config,
        purpose: &str,
        timeout: Duration,
    ) -> Result<Local, Failure> {
        let lock = EnvLock::lock(environment.layout(), purpose, timeout)?;
        let (workspace, reconciled) = Workspace::open(environment, config)?;
        log_reconciled(&reconciled);
        Ok(Local {
            workspace,
            reconciled,
            mount: OnceLock::new(),
            operation_lock: Mutex::new(()),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Returns the open environment.
    pub(crate) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Returns the differences that were repaired on opening.
    pub(crate) fn reconciled(&self) -> &Reconciled {
        &self.reconciled
    }

    /// Connects the environment with its mount, once.
    pub(super) fn set_mount(&self, mount: ActiveMount) -> Result<(), Failure> {
        let message = "an environment was mounted twice";
        let set = self.mount.set(mount);
        set.map_err(|_| Failure::new(Kind::Internal, message))
    }

    /// Waits for other operations on the whole environment. Fails if the request was cancelled in
    /// the meantime.
    fn lock_operations(&self, progress: &dyn Progress) -> Result<MutexGuard<'_, ()>, Failure> {
        // The lock guards no data, so a panic under it does no harm.
        let guard = self
            .operation_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_lost() {
            return Err(Failure::new(
                Kind::Conflict,
                "the lock of this environment was not renewed in time, so another host may have taken \
                 it over: it is not changed here any more",
            )
            .hint("unmount it here; changes made here since then may be lost"));
        }
        unless_cancelled(progress)?;
        Ok(guard)
    }

    /// Makes a checkpoint in the request of a program. Waits for no operation on the whole
    /// environment, since that may wait for requests. Returns whether there is a new one.
    pub(super) fn try_checkpoint(
        &self,
        options: &CheckpointOptions,
        patience: Duration,
    ) -> Result<bool, Failure> {
        let _guard = match self.operation_lock.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let message = "another operation on the environment is running";
                return Err(Failure::new(Kind::Busy, message));
            }
        };
        if self.is_lost() {
            let message = "another host has taken over the lock of this environment";
            return Err(Failure::new(Kind::Conflict, message));
        }
        let made = commit::checkpoint_soon(&self.workspace, options, patience)?;
        made.ok_or_else(|| Failure::new(Kind::Busy, "content is being written"))
    }

    /// Calls `operation`. If it fails because files of the upper directory are missing or replaced,
    /// repairs the view. Then fails with the names of the lost files or calls `operation` again, as
    /// `on_loss` specifies.
    fn with_repair<T>(
        &self,
        on_loss: OnLoss,
        operation: impl Fn() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let failure = match operation() {
            Err(failure) if matches!(failure.kind, Kind::System | Kind::Damaged) => failure,
            done => return done,
        };
        let repaired = match self.workspace.union().repair() {
            Ok(repaired) if !repaired.is_empty() => repaired,
            Ok(_) => return Err(failure),
            Err(error) => {
                tracing::error!("cannot repair the view: {error}");
                return Err(failure);
            }
        };
        log_reconciled(&repaired);
        self.invalidate(&repaired.stale);
        if on_loss == OnLoss::Continue || repaired.lost.is_empty() {
            return operation();
        }
        let shown = repaired.lost.iter().take(10);
        let mut message = String::from(
            "the content of changed files was missing; the committed versions are visible again:",
        );
        for path in shown {
            message.push_str(&format!("\n  {}", path.display()));
        }
        if repaired.lost.len() > 10 {
            message.push_str(&format!("\n  and {} more", repaired.lost.len() - 10));
        }
        Err(Failure::new(Kind::Damaged, message).hint("try again: all other changes are intact"))
    }

    fn list_changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure> {
        let chosen = paths_of(selection);
        let union = self.workspace.union();
        let (changes, base) = union.changes_and_base().map_err(CommitError::from)?;
        refuse_unknown(&chosen, &[&Files::of(&*base), &Files::of(&**union)])?;
        let is_chosen =
            |change: &Change| chosen.is_empty() || union::is_among(&change.path, &chosen);
        Ok(changes.into_iter().filter(is_chosen).collect())
    }

    fn find_differences(&self, selection: &Selection) -> Result<Differences, Failure> {
        let union = self.workspace.union();
        let (changes, base) = union.changes_and_base().map_err(CommitError::from)?;
        let (before, after) = (Files::of(&*base), Files::of(&**union));
        let chosen = paths_of(selection);
        refuse_unknown(&chosen, &[&before, &after])?;
        Ok(packages::differences(changes, &before, &after).among(&chosen))
    }

    /// Returns what a commit of a part would take.
    fn chosen(&self, part: &Committable) -> Result<Chosen<'_>, Failure> {
        let paths: Vec<Text> = paths_of(&part.selection)
            .iter()
            .map(|path| OsStr::from_bytes(path).into())
            .collect();
        Ok(Chosen::new(&self.workspace, &paths, part.ignored)?)
    }

    pub(super) fn hold(&self) -> Option<Hold> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.as_ref().map(EnvLock::hold)
    }

    /// Returns whether another host may have taken over the lock.
    fn is_lost(&self) -> bool {
        self.hold().is_some_and(|hold| !hold.is_certain())
    }

    /// Flushes data written through mappings from the kernel's cache to the upper directory.
    fn flush_mount(&self, progress: &dyn Progress) -> Result<(), Failure> {
        if let Some(active) = self.mount.get() {
            let (root, at) = (active.root.clone(), active.mount_point.clone());
            let flush = move || match root {
                Some(root) => root.sync(),
                None => mount::sync(&at),
            };
            let synced = Syncing::start(flush).wait(progress, QUIET)?;
            synced.map_err(|error| {
                Failure::io("cannot flush the kernel's cache of the mount", &error)
            })?;
        }
        unless_cancelled(progress)
    }

    /// Writes the access profile of the mount so far.
    fn save_profile(&self) {
        if let Some(profile) = self.mount.get().and_then(|active| active.profile.as_ref()) {
            profile.save(self.workspace.union());
        }
    }

    /// Invalidates stale entries of the kernel's caches.
    fn invalidate(&self, stale: &[union::Invalidation]) {
        if let Some(active) = self.mount.get() {
            invalidate(&active.invalidator, stale);
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.close();
    }
}

/// Returns the failure for an undo that moves a mounted environment.
fn cannot_move(environment: &Environment, from: &Path, to: &Path) -> Failure {
    let name = environment.name();
    let message = format!(
        "this moves {name} to {}, but it is mounted at {}",
        quoted(to),
        quoted(from)
    );
    Failure::new(Kind::Busy, message).hint(format!("envfs unmount {name}, then try again"))
}

impl Service for Local {
    fn close(&self) {
        let lock = self
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(lock) = lock else { return };
        if !lock.hold().is_certain() {
            tracing::error!(
                "another host may have taken over the lock: closing without any change"
            );
            return;
        }
        self.save_profile();
        if let Err(error) = self.workspace.close() {
            tracing::error!(
                "cannot close the environment: {error}; it will be reconciled on the next open"
            );
        }
    }

    fn set_socket(&self, socket: &Path) -> Result<(), Failure> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        match lock.as_mut() {
            Some(lock) => Ok(lock.set_socket(socket)?),
            None => Ok(()),
        }
    }

    fn status(&self) -> Result<Status, Failure> {
        let found = self.differences(&Selection::default())?;
        let chosen = self.chosen(&Committable {
            ignored: Ignored::LeaveOut,
            ..Committable::default()
        })?;
        let (mut ignored, mut ignored_paths) = (Tally::default(), Vec::new());
        for one in &found.changes {
            let change = &one.change;
            if !chosen.contains(change) {
                ignored.add(change.size);
                ignored_paths.push(OsStr::from_bytes(&change.path).into());
            }
        }
        let found = match ignored.entries {
            0 => found,
            _ => found.only(|change| chosen.contains(change)),
        };
        let db = self.workspace.db();
        let revision = db.current_revision()?;
        let image = match &revision {
            Some(revision) => db.image(revision.image)?,
            None => None,
        };
        let (upper_files, upper_bytes) = upper_use(db, self.workspace.env().layout())?;
        Ok(Status {
            revision: revision.map(|revision| revision.id.0),
            image_bytes: image.map_or(0, |image| image.size),
            upper_bytes,
            upper_files,
            changes: Summary::of(found.changes.iter().map(|one| &one.change)),
            packages: found.packages,
            ignored,
            ignored_paths,
        })
    }

    fn changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure> {
        self.with_repair(OnLoss::Fail, || self.list_changes(selection))
    }

    fn differences(&self, selection: &Selection) -> Result<Differences, Failure> {
        self.with_repair(OnLoss::Fail, || self.find_differences(selection))
    }

    fn differences_since(&self, since: &Since) -> Result<Differences, Failure> {
        let old = RevisionId(since.revision);
        let (db, layout) = (self.workspace.db(), self.workspace.env().layout());
        self.with_repair(OnLoss::Fail, || {
            let found = commit::difference_since(&self.workspace, old)?;
            tracing::debug!(inodes_read = found.inodes_read, "compared");
            let old = commit::OpenRevision::open(db, layout, Some(old))?.stack();
            let (before, after) = (Files::of(&old), Files::of(&**self.workspace.union()));
            let chosen = paths_of(&since.selection);
            refuse_unknown(&chosen, &[&before, &after])?;
            Ok(packages::differences(found.changes, &before, &after).among(&chosen))
        })
    }

    fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<Option<Committed>, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let chosen = Selection {
            paths: options.paths.clone(),
        };
        let chosen = paths_of(&chosen);
        let union = self.workspace.union();
        let base = union.lower().committed();
        refuse_unknown(&chosen, &[&Files::of(&*base), &Files::of(&**union)])?;
        let options = CommitOptions {
            paths: chosen
                .iter()
                .map(|path| OsStr::from_bytes(path).into())
                .collect(),
            ..options.clone()
        };
        // The new image may be ordered by it, and the recording ends with the old image.
        self.save_profile();
        let committed = self.with_repair(OnLoss::Fail, || {
            Ok(commit::commit(&self.workspace, &options, progress)?)
        })?;
        if let Some(committed) = &committed {
            self.invalidate(&committed.stale);
        }
        Ok(committed)
    }

    fn preview(
        &self,
        part: &Committable,
        progress: &dyn Progress,
    ) -> Result<commit::Preview, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let chosen = self.chosen(part)?;
        self.with_repair(OnLoss::Fail, || {
            let found = self.find_differences(&part.selection)?;
            let found = found.only(|change| chosen.contains(change));
            Ok(commit::preview(&self.workspace, found, progress)?)
        })
    }

    fn committable(&self, part: &Committable) -> Result<Vec<Change>, Failure> {
        let chosen = self.chosen(part)?;
        let mut changes = self.changes(&part.selection)?;
        changes.retain(|change| chosen.contains(change));
        Ok(changes)
    }

    fn amend(&self, options: &AmendOptions, progress: &dyn Progress) -> Result<Amended, Failure> {
        let _guard = self.lock_operations(progress)?;
        let old = self.workspace.db().amend_message(&options.message)?;
        Ok(Amended {
            revision: old.id.0,
            from: old.message,
            message: options.message.clone(),
        })
    }

    fn discard(
        &self,
        options: &DiscardOptions,
        progress: &dyn Progress,
    ) -> Result<Discarded, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let chosen = paths_of(&options.selection);
        let union = self.workspace.union();
        let base = union.lower().committed();
        refuse_unknown(&chosen, &[&Files::of(&*base), &Files::of(&**union)])?;
        let (changes, stale) = self.with_repair(OnLoss::Continue, || {
            Ok(commit::discard(&self.workspace, &chosen, &options.command)?)
        })?;
        self.invalidate(&stale);
        Ok(Discarded {
            changes: Summary::of(&changes),
        })
    }

    fn rollback(
        &self,
        options: &RollbackOptions,
        progress: &dyn Progress,
    ) -> Result<RolledBack, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let target = options.revision.map(RevisionId);
        let (mode, on_loss) = match options.discard_changes {
            true => (DiscardMode::Always, OnLoss::Continue),
            false => (DiscardMode::IfUnchanged, OnLoss::Fail),
        };
        let done = self.with_repair(on_loss, || {
            Ok(commit::rollback(
                &self.workspace,
                target,
                mode,
                &options.command,
            )?)
        })?;
        self.invalidate(&done.stale);
        Ok(done)
    }

    fn restore(&self, from: &Since, progress: &dyn Progress) -> Result<Restored, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let (revision, paths) = (RevisionId(from.revision), paths_of(&from.selection));
        let (db, layout) = (self.workspace.db(), self.workspace.env().layout());
        let old = commit::OpenRevision::open(db, layout, Some(revision))?.stack();
        let views = [&Files::of(&old), &Files::of(&**self.workspace.union())];
        refuse_unknown(&paths, &views).map_err(|failure| {
            let message = format!("{}, nor in revision {revision}", failure.message);
            Failure::new(failure.kind, message)
        })?;
        let (restored, stale) = self.with_repair(OnLoss::Continue, || {
            let command = &from.command;
            Ok(commit::restore(&self.workspace, revision, &paths, command)?)
        })?;
        self.invalidate(&stale);
        Ok(restored)
    }

    fn undo(&self, options: &UndoOptions, progress: &dyn Progress) -> Result<Undone, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        if let Some(active) = self.mount.get()
            && !options.dry_run
            && let Some(prefix) = commit::undo_moves_to(&self.workspace, options)?
        {
            return Err(cannot_move(
                self.workspace.env(),
                &active.mount_point,
                &prefix,
            ));
        }
        let done = self.with_repair(OnLoss::Fail, || {
            Ok(commit::undo(&self.workspace, options, progress)?)
        })?;
        self.invalidate(&done.stale);
        Ok(done)
    }

    fn checkpoint(
        &self,
        options: &CheckpointOptions,
        progress: &dyn Progress,
    ) -> Result<Checkpointed, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        Ok(commit::checkpoint(&self.workspace, options)?)
    }

    fn trial(&self, request: &TrialRequest, progress: &dyn Progress) -> Result<TrialDone, Failure> {
        let _guard = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let done = commit::trial(&self.workspace, request)?;
        self.invalidate(&done.stale);
        Ok(done)
    }

    fn tag(&self, options: &TagOptions, progress: &dyn Progress) -> Result<(), Failure> {
        let _guard = self.lock_operations(progress)?;
        tag(self.workspace.db(), options)
    }

    fn gc(
        &self,
        options: commit::GcOptions,
        progress: &dyn Progress,
    ) -> Result<commit::Collected, Failure> {
        let _guard = self.lock_operations(progress)?;
        let layout = self.workspace.env().layout();
        let collected = commit::gc(self.workspace.db(), layout, options)?;
        if !options.dry_run {
            self.workspace.union().create_spare_upper();
        }
        Ok(collected)
    }

    fn stats(&self) -> Result<serde_json::Value, Failure> {
        let Some(active) = self.mount.get() else {
            return Ok(serde_json::Map::new().into());
        };
        let stats = super::stats::of(&active.counters, active.poll, self.workspace.union());
        serde_json::to_value(stats).map_err(|error| Failure::of(Kind::Internal, &error))
    }
}

fn unless_cancelled(progress: &dyn Progress) -> Result<(), Failure> {
    match progress.is_cancelled() {
        true => Err(CommitError::Cancelled.into()),
        false => Ok(()),
    }
}

/// Sets or deletes a tag. The caller must hold the environment's lock.
pub(crate) fn tag(db: &StateDb, options: &TagOptions) -> Result<(), Failure> {
    let Some(revision) = options.revision.map(RevisionId) else {
        if db.remove_tag(&options.tag)? {
            return Ok(());
        }
        let message = format!("there is no tag {}", options.tag);
        return Err(Failure::new(Kind::NotFound, message).hint("envfs tag lists all tags"));
    };
    if db.revision(revision)?.is_none() {
        return Err(CommitError::NoRevision(revision.0).into());
    }
    Ok(db.set_tag(&options.tag, revision)?)
}

/// Returns the number and the size of files in the upper directories of the stack. Discarded and
/// retired uppers do not count.
pub(crate) fn upper_use(db: &StateDb, layout: &Layout) -> Result<(u64, u64), StateError> {
    let is_upper = |layer: &StackLayer| !matches!(layer.part, StackPart::Image(_));
    let uppers = db.stack()?.into_iter().filter(is_upper);
    let (mut files, mut bytes) = (0, 0);
    for layer in uppers {
        let used = walk::disk_use(&layout.upper(layer.id));
        files += used.0;
        bytes += used.1;
    }
    Ok((files, bytes))
}
