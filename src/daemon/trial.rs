//! The session of a trial: a private mount of the current state of an environment with further
//! changes, which are kept or dropped at the end (`commit::trial`).
//!
//! It reads the images and the frozen layers of the environment in place, and writes to the layer
//! of the trial. Its database, log and lock are in a directory of the trial.

use std::path::Path;
use std::time::Duration;

use super::failure::{Failure, Kind};
use super::repairs::log_reconciled;
use super::runtime::RuntimeDir;
use super::session::SessionSource;
use super::spec::{DirectMount, SessionSpec, TrialSpec};
use super::target::Target;
use crate::commit::{self, CommitError};
use crate::environment::{CacheConfig, Config, EnvLock, Layout, SessionKind};
use crate::fuse::Owners;
use crate::packages::{self, Differences, Files};
use crate::state::{StackPart, StateDb};
use crate::sys::mount::MountFlags;
use crate::sys::process;
use crate::sys::text::Text;
use crate::union::Union;

/// The time limit for the lock of a session that is beginning or ending.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The open view of a trial, under the lock of its session.
#[derive(Debug)]
pub(super) struct View {
    pub(super) union: Union,
    pub(super) owners: Owners,
    /// The number of changed files whose content was found to be lost on opening.
    pub(super) lost: usize,
    pub(super) lock: EnvLock,
}

/// What a trial has changed.
#[derive(Debug)]
pub(crate) struct Tried {
    /// The differences from the state in which it began.
    pub differences: Differences,
    /// Whether its daemon was killed.
    pub was_killed: bool,
}

impl TrialSpec {
    /// Returns the trial with this token.
    pub(crate) fn find(layout: &Layout, token: &str) -> Result<TrialSpec, Failure> {
        let session = layout.trial(token).session_of_trial();
        let db = StateDb::open(&session.state_db())?;
        let mut stack = db.stack()?.into_iter();
        let top = stack.next().filter(|top| top.part == StackPart::Writable);
        let top = top
            .ok_or_else(|| Failure::new(Kind::Damaged, "the database of the trial has no layer"))?;
        Ok(TrialSpec {
            home: layout.home().into(),
            token: token.to_owned(),
            layer: top.id.0,
            cache: CacheConfig::default(),
        })
    }

    /// Returns the description of its private mount.
    pub(crate) fn mount(
        &self,
        target: &Target,
        runtime: &RuntimeDir,
        revision: i64,
        image: &Path,
        mount_point: &Path,
        config: &Config,
    ) -> DirectMount {
        let source = SessionSource {
            kind: SessionKind::Try,
            name: target.name.clone(),
            revision,
            environment: target.id.clone(),
        };
        let file = image.file_name().unwrap_or_default();
        let notes = runtime.sessions().into_iter();
        let notes = notes.chain([target.layout.sessions()]);
        DirectMount {
            images: Vec::new(),
            offset: None,
            upper: Some(self.session().home().into()),
            state: None,
            mount_point: mount_point.into(),
            source: source.to_string(),
            subtype: String::from("envfs"),
            flags: MountFlags::default(),
            allow_other: process::user_id() == 0,
            fakeroot: false,
            session: Some(SessionSpec {
                kind: SessionKind::Try,
                name: target.name.clone(),
                environment: target.id.clone(),
                revision,
                image: file.to_string_lossy().into_owned(),
                notes: notes.map(Text::from).collect(),
                ends_with: None,
                idle_seconds: None,
                limit: None,
                is_private: true,
                cache: config.cache.clone(),
                poll: config.daemon.poll,
            }),
            trial: Some(TrialSpec {
                cache: config.cache.clone(),
                ..self.clone()
            }),
        }
    }

    /// Opens its view.
    pub(super) fn open(&self) -> Result<View, Failure> {
        let lock = EnvLock::lock(&self.session(), "try", LOCK_TIMEOUT)?;
        let opened = commit::open_trial(&self.layout(), &self.token, &self.cache);
        let (union, reconciled) = opened.map_err(Failure::from)?;
        let owners = union.db().image_owner()?;
        let owners = owners.map_or_else(Owners::default, |owner| Owners::of_images(&[owner]));
        log_reconciled(&reconciled);
        Ok(View {
            union,
            owners,
            lost: reconciled.lost.len(),
            lock,
        })
    }

    /// Returns the process that serves it, if there is one on this host.
    pub(crate) fn server(&self) -> Option<u32> {
        let holder = EnvLock::current_holder(&self.session())?;
        holder.is_local().then_some(holder.process.pid)
    }

    /// Returns whether no process serves it.
    pub(crate) fn has_ended(&self) -> Result<bool, Failure> {
        match EnvLock::try_lock(&self.session(), "try") {
            Ok(_) => Ok(true),
            Err(crate::environment::EnvironmentError::Held { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Determines what it has changed, and closes its database. It must have ended.
    pub(crate) fn changed(&self) -> Result<Tried, Failure> {
        let was_killed = !StateDb::open(&self.session().state_db())?.was_clean()?;
        let view = self.open()?;
        let failed = |error| Failure::from(CommitError::from(error));
        let (changes, base) = view.union.top_changes().map_err(failed)?;
        let differences =
            packages::differences(changes, &Files::of(&*base), &Files::of(&view.union));
        view.union.close().map_err(failed)?;
        Ok(Tried {
            differences,
            was_killed,
        })
    }
}
