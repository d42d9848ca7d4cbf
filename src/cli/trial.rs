//! Entering the private session of a trial, for the command that is tried.

use std::path::Path;

use super::context::{Context, Env};
use super::error::{CommandError, Result};
use super::private::shown_by;
use super::session::Entered;
use super::{backend, place};
use crate::daemon::failure::Kind;
use crate::daemon::spec::TrialSpec;
use crate::daemon::{prefix, private};
use crate::environment::{SessionKind, refuse_replaceable};
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::text::quoted;

/// Starts and enters the session of a trial that has begun. Must be called while there is only one
/// thread, in a process that becomes the command.
pub(super) fn enter(context: &Context, word: &str, token: &str) -> Result<Entered> {
    let env = context.environment(Some(word))?;
    let mount_point = check_place(&env)?;
    let trial = TrialSpec::find(env.environment.layout(), token)?;
    let revision = env.facts.revision.as_ref().map(|revision| revision.id.0);
    let number = revision.unwrap_or_default();
    let image = backend::image_file(&env.environment, revision)?;
    let config = env.store.config()?;
    let what = trial.mount(
        &env.target,
        &env.runtime,
        number,
        &image,
        &mount_point,
        &config,
    );
    let start = |spec: &private::PrivateSpec, lock| {
        private::start_direct(&what, spec, lock, &backend::slow_start)
    };
    let entered = private::enter(&env.runtime, None, revision, &start)?;
    if let Some(report) = &entered.started {
        backend::print_start_warnings(env.name(), report, Path::new(""));
    }
    Ok(Entered { env, revision })
}

/// Checks that a trial can be mounted at the prefix of an environment, and returns that path as it
/// is in the mount table.
pub(super) fn check_place(env: &Env) -> Result<std::path::PathBuf> {
    let mount_point = place::resolve(&env.target.prefix)?;
    let present = mountinfo::at(&mount_point)
        .map_err(|error| CommandError::io("cannot read the mount table", &error))?;
    let shown = present.as_ref().and_then(|mount| shown_by(mount, env));
    if shown
        .as_ref()
        .is_some_and(|shown| shown.kind == SessionKind::Try)
    {
        let message = format!("this is in a try of {} already", env.name());
        return Err(CommandError::new(Kind::Conflict, message)
            .hint("leave it first, for example with exit"));
    }
    if let Some(parent) = mount_point.parent() {
        refuse_replaceable(parent)?;
    }
    // A mount of the environment may be covered, nothing else.
    let is_own = |mount: &MountEntry| mount.environment_id() == Some(&env.target.id);
    if shown.is_none() && !present.as_ref().is_some_and(is_own) {
        prefix::prepare_prefix(&mount_point).map_err(CommandError::from)?;
    }
    tracing::debug!(at = %quoted(&mount_point), "a place for a try");
    Ok(mount_point)
}
