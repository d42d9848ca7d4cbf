//! What can be done with an open environment: the same in its daemon and without one.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::failure::{Failure, Kind, MAKE_ROOM, kind_of_io, with_causes};
use super::host::Mounted;
use super::profile::Profile;
use super::protocol::{Discarded, RollbackOptions, Selection, Served, Service, Status, TagOptions};
use crate::commit::{self, CommitError, CommitOptions, Committed, RolledBack, Workspace};
use crate::environment::{Config, EnvLock, Environment, Layout, ProfileUse};
use crate::fuse::session::{Invalidator, Session};
use crate::fuse::{Counters, EnvFs, Owners, invalidate};
use crate::progress::Progress;
use crate::squashfs;
use crate::state::{RevisionId, StackLayer, StackPart, StateDb, StateError};
use crate::sys::mount::{self, MountRequest};
use crate::sys::text::Text;
use crate::sys::walk;
use crate::union::{self, Change, Reconciled, Summary};

/// How long an environment is waited for that another command looks at, or whose daemon ends.
pub const BRIEF: Duration = Duration::from_secs(3);

/// What is said of a file in [`Reconciled::lost`].
pub const LOST: &str = "its content was not there, and what was committed shows again";

/// Notes in the log what an unclean end had left.
pub(super) fn note(reconciled: &Reconciled) {
    if !reconciled.is_nothing() {
        tracing::warn!(
            moved = reconciled.moved,
            set_aside = reconciled.set_aside,
            renumbered = reconciled.renumbered,
            lost = reconciled.lost.len(),
            "rows and files differed, and agree again"
        );
    }
    for path in &reconciled.lost {
        tracing::warn!(path = %path.display(), "{LOST}");
    }
}

/// An environment, open under its lock, with or without a mount in front.
#[derive(Debug)]
pub struct Local {
    workspace: Workspace,
    /// What was found and done when it was opened.
    reconciled: Reconciled,
    mounted: OnceLock<Front>,
    /// Serializes operations on the whole environment.
    operation_lock: Mutex<()>,
    /// Held as long as the environment is open.
    lock: Mutex<Option<EnvLock>>,
}

/// The mount in front of an open environment.
#[derive(Debug)]
struct Front {
    invalidator: Invalidator,
    mount_point: PathBuf,
    counters: Arc<Counters>,
    /// What is used of the image, if that is to be known.
    profile: Option<Profile>,
}

impl Local {
    /// Opens an environment that nobody else has open, or will have when `patience` ends.
    pub fn open(
        environment: Environment,
        config: &Config,
        purpose: &str,
        patience: Duration,
    ) -> Result<Local, Failure> {
        let lock = EnvLock::lock(environment.layout(), purpose, patience)?;
        let (workspace, reconciled) = Workspace::open(environment, config)?;
        note(&reconciled);
        Ok(Local {
            workspace,
            reconciled,
            mounted: OnceLock::new(),
            operation_lock: Mutex::new(()),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The environment, open.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// What an unclean end had left when it was opened.
    pub fn reconciled(&self) -> &Reconciled {
        &self.reconciled
    }

    /// Waits until no other operation on the whole environment is in progress. Fails if the client
    /// has disconnected meanwhile.
    fn lock_operations(&self, progress: &dyn Progress) -> Result<MutexGuard<'_, ()>, Failure> {
        // The mutex guards no data.
        let guard = self
            .operation_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_lost() {
            return Err(Failure::new(
                Kind::Conflict,
                "another host took over the lock of this environment, which was not renewed for \
                 too long: nothing more is changed here",
            )
            .hint("unmount it here; what was changed here since may be lost"));
        }
        unless_cancelled(progress)?;
        Ok(guard)
    }

    /// Does something with the view. Where that fails because files of the upper directory are not there, or
    /// something else is in their place, the view is repaired: the failure names what was lost, unless it
    /// `may_go` anyway, and the next attempt goes on.
    fn repairing<T>(
        &self,
        may_go: bool,
        doing: impl Fn() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let failure = match doing() {
            Err(failure) if matches!(failure.kind, Kind::System | Kind::Damaged) => failure,
            done => return done,
        };
        let repaired = match self.workspace.union().repair() {
            Ok(repaired) if !repaired.is_nothing() => repaired,
            Ok(_) => return Err(failure),
            Err(error) => {
                tracing::error!("the view cannot be repaired: {error}");
                return Err(failure);
            }
        };
        note(&repaired);
        self.invalidate(&repaired.stale);
        if may_go || repaired.lost.is_empty() {
            return doing();
        }
        let shown = repaired.lost.iter().take(10);
        let mut message = String::from(
            "the content of changed files was not there, and what was committed shows again:",
        );
        for path in shown {
            message.push_str(&format!("\n  {}", path.display()));
        }
        if repaired.lost.len() > 10 {
            message.push_str(&format!("\n  and {} more", repaired.lost.len() - 10));
        }
        Err(Failure::new(Kind::Damaged, message).hint("try again: the rest is as it was"))
    }

    fn list_changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure> {
        let chosen = paths_of(selection);
        let changes = self
            .workspace
            .union()
            .changes()
            .map_err(CommitError::from)?;
        let changes = changes
            .into_iter()
            .filter(|change| chosen.is_empty() || union::is_among(&change.path, &chosen));
        Ok(changes.collect())
    }

    fn is_lost(&self) -> bool {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.as_ref().is_some_and(EnvLock::is_lost)
    }

    /// Makes the kernel write back its dirty pages, so that the upper directory has them.
    fn flush_mount(&self, progress: &dyn Progress) -> Result<(), Failure> {
        if let Some(front) = self.mounted.get() {
            mount::sync(&front.mount_point).map_err(|error| {
                Failure::io("cannot flush the kernel's cache of the mount", &error)
            })?;
        }
        unless_cancelled(progress)
    }

    fn invalidate(&self, stale: &[union::Invalidation]) {
        if let Some(front) = self.mounted.get() {
            invalidate(&front.invalidator, stale);
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.end();
    }
}

/// Opens an environment and mounts it at its prefix.
///
/// With `fakeroot` whoever does it may do there what root may, and sees who owns what as it is kept.
pub fn mount_environment(
    environment: Environment,
    config: &Config,
    fakeroot: bool,
) -> Result<Mounted, Failure> {
    let home = Served::of(environment.layout())
        .map_err(|error| Failure::io("cannot look at the environment's home", &error))?;
    let local = Arc::new(Local::open(environment, config, "mounted", BRIEF)?);
    let db = local.workspace.db();
    let missing =
        |what: &str| Failure::new(Kind::Damaged, format!("the database does not say {what}"));
    let request = MountRequest {
        mount_point: db.prefix()?.ok_or_else(|| missing("where to mount"))?,
        id: db
            .uuid()?
            .ok_or_else(|| missing("who the environment is"))?,
        // What root mounts is as visible as a plain directory; permissions decide, as there.
        allow_other: nix::unistd::geteuid().is_root(),
        fakeroot,
        options: Default::default(),
    };
    let owners = match local.workspace.image_owner()? {
        Some(owner) if !fakeroot => Owners::of_images(&[owner]),
        _ => Owners::default(),
    };
    let filesystem = EnvFs::new(local.workspace.union().clone(), owners)?;
    let counters = filesystem.counters();
    let notices = filesystem.notices();
    let session = Session::start(filesystem, &request)?;
    notices.connect(session.invalidator());
    let workspace = local.workspace();
    let profile = (config.profile == ProfileUse::On)
        .then(|| Profile::begin(workspace.env().layout().profile(), workspace.union()));
    let front = Front {
        invalidator: session.invalidator(),
        mount_point: request.mount_point,
        counters,
        profile,
    };
    if local.mounted.set(front).is_err() {
        return Err(Failure::new(
            Kind::Internal,
            "an environment was mounted twice",
        ));
    }
    Ok(Mounted {
        session,
        lost: local.reconciled.lost.len(),
        service: local,
        home,
    })
}

impl Service for Local {
    fn end(&self) {
        let lock = self
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(lock) = lock else { return };
        if lock.is_lost() {
            tracing::error!("the lock is another's: the environment is left as it is");
            return;
        }
        if let Some(profile) = self.mounted.get().and_then(|front| front.profile.as_ref()) {
            profile.end(self.workspace.union());
        }
        if let Err(error) = self.workspace.close() {
            tracing::error!(
                "closing the environment: {error}; it will be checked when it is opened next"
            );
        }
    }

    fn listens_at(&self, socket: &Path) -> Result<(), Failure> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        match lock.as_mut() {
            Some(lock) => Ok(lock.set_socket(socket)?),
            None => Ok(()),
        }
    }

    fn status(&self) -> Result<Status, Failure> {
        let changes = self.changes(&Selection::default())?;
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
            changes: Summary::of(&changes),
        })
    }

    fn changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure> {
        self.repairing(false, || self.list_changes(selection))
    }

    fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<Option<Committed>, Failure> {
        let _operation = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let committed = self.repairing(false, || {
            Ok(commit::commit(&self.workspace, options, progress)?)
        })?;
        if let Some(committed) = &committed {
            self.invalidate(&committed.stale);
        }
        Ok(committed)
    }

    fn discard(
        &self,
        selection: &Selection,
        progress: &dyn Progress,
    ) -> Result<Discarded, Failure> {
        let _operation = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let (changes, stale) = self.repairing(true, || {
            Ok(commit::discard(&self.workspace, &paths_of(selection))?)
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
        let _operation = self.lock_operations(progress)?;
        self.flush_mount(progress)?;
        let target = options.revision.map(RevisionId);
        let done = self.repairing(options.discard_changes, || {
            Ok(commit::rollback(
                &self.workspace,
                target,
                options.discard_changes,
                &options.command,
            )?)
        })?;
        self.invalidate(&done.stale);
        Ok(done)
    }

    fn tag(&self, options: &TagOptions, progress: &dyn Progress) -> Result<(), Failure> {
        let _operation = self.lock_operations(progress)?;
        tag(self.workspace.db(), options)
    }

    fn gc(
        &self,
        options: commit::GcOptions,
        progress: &dyn Progress,
    ) -> Result<commit::Collected, Failure> {
        let _operation = self.lock_operations(progress)?;
        let layout = self.workspace.env().layout();
        let collected = commit::gc(self.workspace.db(), layout, options)?;
        if !options.dry_run {
            self.workspace.union().keep_spare();
        }
        Ok(collected)
    }

    fn stats(&self) -> Result<serde_json::Value, Failure> {
        let Some(front) = self.mounted.get() else {
            return Ok(serde_json::Map::new().into());
        };
        let stats = super::stats::of(&front.counters, self.workspace.union());
        serde_json::to_value(stats).map_err(|error| Failure::of(Kind::Internal, &error))
    }
}

fn unless_cancelled(progress: &dyn Progress) -> Result<(), Failure> {
    match progress.is_cancelled() {
        true => Err(CommitError::Cancelled.into()),
        false => Ok(()),
    }
}

/// Names a revision, or takes a name away. The caller holds the environment's lock.
pub fn tag(db: &StateDb, options: &TagOptions) -> Result<(), Failure> {
    let Some(revision) = options.revision.map(RevisionId) else {
        if db.remove_tag(&options.tag)? {
            return Ok(());
        }
        let message = format!("no revision is called {}", options.tag);
        return Err(Failure::new(Kind::NotFound, message).hint("envfs tag lists the names"));
    };
    if db.revision(revision)?.is_none() {
        return Err(CommitError::NoRevision(revision.0).into());
    }
    Ok(db.set_tag(&options.tag, revision)?)
}

/// Files and bytes in the upper directories of the stack: not what was discarded, nor what an image
/// has meanwhile.
pub fn upper_use(db: &StateDb, layout: &Layout) -> Result<(u64, u64), StateError> {
    let is_upper = |layer: &StackLayer| !matches!(layer.part, StackPart::Image(_));
    let uppers = db.stack()?.into_iter().filter(is_upper);
    let (mut files, mut bytes) = (0, 0);
    for layer in uppers {
        walk::for_each_file(&layout.upper(layer.id), &mut |meta| {
            files += 1;
            bytes += meta.blocks() * 512;
            true
        });
    }
    Ok((files, bytes))
}

fn paths_of(selection: &Selection) -> Vec<Vec<u8>> {
    let trim = |path: &Text| {
        let bytes = path.as_bytes();
        let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
        bytes.strip_suffix(b"/").unwrap_or(bytes).to_vec()
    };
    selection
        .paths
        .iter()
        .map(trim)
        .map(|path| if path == b"." { Vec::new() } else { path })
        .collect()
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Failure {
        if error.is_no_space() {
            return Failure::new(
                Kind::NoSpace,
                format!("{}; everything is as it was", with_causes(&error)),
            )
            .hint(MAKE_ROOM);
        }
        match error {
            CommitError::State(error) | CommitError::Union(union::Error::State(error)) => {
                error.into()
            }
            CommitError::Environment(error) => error.into(),
            CommitError::Cancelled => Failure::new(Kind::Cancelled, error.to_string()),
            CommitError::Uncommitted => Failure::new(Kind::Conflict, error.to_string())
                .hint("commit them first (envfs commit), or drop them with -y"),
            CommitError::NoRevision(_) | CommitError::NoEarlier => {
                Failure::new(Kind::NotFound, error.to_string())
                    .hint("envfs log shows the revisions there are")
            }
            CommitError::SourceChanged(_) => Failure::new(Kind::Conflict, error.to_string()),
            CommitError::Source { .. } => Failure::new(Kind::Damaged, error.to_string()),
            CommitError::Unsuitable { .. } | CommitError::InvalidPattern { .. } => {
                Failure::new(Kind::Usage, error.to_string())
            }
            CommitError::Union(union::Error::CommitUnfinished) => {
                Failure::new(Kind::Busy, error.to_string())
            }
            CommitError::Union(union::Error::Replaced(_)) => {
                Failure::new(Kind::Conflict, error.to_string())
            }
            CommitError::Io { ref source, .. } => {
                Failure::new(kind_of_io(source), error.to_string())
            }
            CommitError::Image(ref image) | CommitError::Union(union::Error::Image(ref image)) => {
                let kind = match image {
                    // An image that should be there and is not is as bad as a damaged one.
                    squashfs::Error::Io { source, .. }
                        if source.kind() != std::io::ErrorKind::NotFound =>
                    {
                        Kind::System
                    }
                    _ => Kind::Damaged,
                };
                Failure::new(kind, with_causes(&error))
            }
            CommitError::Union(union::Error::Inconsistent(_)) => {
                Failure::new(Kind::Damaged, error.to_string())
            }
            CommitError::Check(_) | CommitError::Changed(_) | CommitError::NotWhole(_) => {
                Failure::new(Kind::Damaged, error.to_string())
            }
            other => Failure::new(Kind::System, with_causes(&other)),
        }
    }
}
