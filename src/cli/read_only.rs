//! Environments in a store on a read-only file system: a snapshot, a remounted disk, a published
//! store.
//!
//! The lock cannot be taken there, so nothing is opened for writing. Commands read the committed
//! state, and the image is mounted read-only without a store. Uncommitted changes cannot be shown.

use super::backend;
use super::env::Env;
use super::error::{CommandError, Result};
use super::session::{self, Request, SessionArgs};
use crate::commit::{
    CheckpointOptions, Checkpointed, Collected, CommitOptions, Committed, GcOptions, Preview,
    RolledBack, TrialDone, TrialRequest, UndoOptions, Undone,
};
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::protocol::{
    AmendOptions, Amended, Committable, DiscardOptions, Discarded, RollbackOptions, Selection,
    Service, Since, Status, TagOptions,
};
use crate::environment::{Environment, SessionKind};
use crate::packages::Differences;
use crate::progress::Progress;
use crate::sys::mount::Rights;
use crate::sys::mountinfo;
use crate::sys::text::quoted;
use crate::union::{Change, Restored};

/// Mounts the current image at the prefix, unless it is mounted there.
pub(super) fn mount(env: &Env) -> Result<()> {
    refuse_changes(env)?;
    let prefix = &env.target.prefix;
    if !prefix.is_dir() && mountinfo::at(prefix).is_ok_and(|at| at.is_none()) {
        let message = format!(
            "cannot mount {}: the store is read-only, and the mount point {} does not exist",
            env.name(),
            quoted(prefix)
        );
        return Err(CommandError::new(Kind::System, message).hint(elsewhere(env)));
    }
    let request = Request {
        kind: SessionKind::ReadOnly,
        revision: None,
        path: None,
        rights: Rights::Own,
        ends_with: None,
    };
    session::begin(env, &SessionArgs::default(), &request)?;
    backend::warn(format!(
        "the store is read-only, so {} is mounted read-only",
        env.name()
    ));
    Ok(())
}

const COPY_STORE: &str = "copy the store to a writable file system with cp -a";

fn refuse_changes(env: &Env) -> Result<()> {
    if !backend::has_changes(&env.environment)? {
        return Ok(());
    }
    let message = format!(
        "the store is read-only, and {} has uncommitted changes, which only a writable store can show",
        env.name()
    );
    Err(CommandError::new(Kind::System, message)
        .hint(COPY_STORE)
        .hint(elsewhere(env)))
}

fn elsewhere(env: &Env) -> String {
    format!(
        "or mount what is committed elsewhere: envfs mount --read-only {} PATH",
        env.name()
    )
}

/// The service of an environment that has no changes and cannot be opened.
#[derive(Debug)]
pub(super) struct Unchanged {
    environment: Environment,
    status: Status,
}

impl Unchanged {
    pub(super) fn of(env: &Env) -> Result<Unchanged> {
        refuse_changes(env)?;
        Ok(Unchanged {
            environment: env.environment.clone(),
            status: Status {
                revision: env.facts.revision.as_ref().map(|revision| revision.id.0),
                image_bytes: env.facts.image.as_ref().map_or(0, |image| image.size),
                ..Status::default()
            },
        })
    }
}

fn refused<T>() -> Result<T, Failure> {
    let failure = Failure::new(Kind::System, "the store is read-only");
    Err(failure.hint(COPY_STORE))
}

impl Service for Unchanged {
    fn status(&self) -> Result<Status, Failure> {
        Ok(self.status.clone())
    }

    fn changes(&self, _: &Selection) -> Result<Vec<Change>, Failure> {
        Ok(Vec::new())
    }

    fn differences(&self, _: &Selection) -> Result<Differences, Failure> {
        Ok(Differences::default())
    }

    fn differences_since(&self, since: &Since) -> Result<Differences, Failure> {
        let (old, selection) = (since.revision, &since.selection);
        let found = backend::differences(&self.environment, old, None, selection);
        found.map_err(|error| Failure {
            hints: error.hints,
            ..Failure::new(error.kind, error.message)
        })
    }

    fn commit(&self, _: &CommitOptions, _: &dyn Progress) -> Result<Option<Committed>, Failure> {
        refused()
    }

    fn preview(&self, _: &Committable, _: &dyn Progress) -> Result<Preview, Failure> {
        Ok(Preview::default())
    }

    fn committable(&self, _: &Committable) -> Result<Vec<Change>, Failure> {
        Ok(Vec::new())
    }

    fn amend(&self, _: &AmendOptions, _: &dyn Progress) -> Result<Amended, Failure> {
        refused()
    }

    fn discard(&self, _: &DiscardOptions, _: &dyn Progress) -> Result<Discarded, Failure> {
        refused()
    }

    fn rollback(&self, _: &RollbackOptions, _: &dyn Progress) -> Result<RolledBack, Failure> {
        refused()
    }

    fn restore(&self, _: &Since, _: &dyn Progress) -> Result<Restored, Failure> {
        refused()
    }

    fn undo(&self, _: &UndoOptions, _: &dyn Progress) -> Result<Undone, Failure> {
        refused()
    }

    fn checkpoint(&self, _: &CheckpointOptions, _: &dyn Progress) -> Result<Checkpointed, Failure> {
        refused()
    }

    fn trial(&self, _: &TrialRequest, _: &dyn Progress) -> Result<TrialDone, Failure> {
        refused()
    }

    fn tag(&self, _: &TagOptions, _: &dyn Progress) -> Result<(), Failure> {
        refused()
    }

    fn gc(&self, _: GcOptions, _: &dyn Progress) -> Result<Collected, Failure> {
        refused()
    }

    fn stats(&self) -> Result<serde_json::Value, Failure> {
        Ok(serde_json::json!({}))
    }
}
