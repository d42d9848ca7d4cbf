//! Private sessions of commands: this process enters a mount that only its own programs see.

use std::path::Path;

use super::backend;
use super::context::{Context, Env};
use super::error::{CommandError, Result};
use super::output::{ColorChoice, Output, Verbosity};
use super::session::{self, Entered, Request, SessionArgs, instead, wanted};
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle::{self, State};
use crate::daemon::prefix;
use crate::daemon::private::{self, Key, PrivateSpec, WRITABLE};
use crate::daemon::session::{self as sessions, SessionSource, Wanted};
use crate::environment::SessionKind;
use crate::sys::cgroup::Scope;
use crate::sys::mount::{self, Rights};
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::process;

/// How a command mounts what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounting {
    /// For all programs.
    Shared,
    /// Privately, as the user asked for.
    Private,
    /// Privately, since the user cannot mount otherwise.
    OnlyPrivate,
    /// Privately if that is possible: a batch system would end the daemon of a shared mount with
    /// the job.
    InJob,
}

impl Mounting {
    /// Returns how to mount if the user does not ask for a private session.
    pub(super) fn choose() -> Mounting {
        if !mount::is_shared_mount_possible() {
            Mounting::OnlyPrivate
        } else if Scope::own().is_job {
            Mounting::InJob
        } else {
            Mounting::Shared
        }
    }

    /// Mounts in one of the two ways.
    fn mount<T>(
        self,
        privately: impl FnOnce() -> Result<T>,
        shared: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match self {
            Mounting::Shared => shared(),
            Mounting::Private | Mounting::OnlyPrivate => privately(),
            Mounting::InJob => match privately() {
                // No supervisor could be started, so this process is where it was.
                Err(error) if error.kind == Kind::Fuse => {
                    backend::warn(format!("{}; mounting outside of the job", error.message));
                    shared()
                }
                done => done,
            },
        }
    }

    /// Tells why a session is private, unless that is expected.
    fn explain(self, env: &Env) {
        if self == Mounting::OnlyPrivate {
            // In the namespaces of the session, each user has all capabilities.
            let why = match process::user_id() == 0 {
                true => "this user namespace does not allow a mount for all programs",
                false => "fusermount3 is missing or not set-user-ID root",
            };
            let text = format!("{why}, so only this command sees {}", env.name());
            Output::new(ColorChoice::Auto, Verbosity::Normal).note(text);
        }
    }
}

/// Mounts the environment that a word names, as the options say: by default writable. Must be
/// called while there is only one thread, in a process that becomes the command.
pub(super) fn enter_or_mount(
    context: &Context,
    word: &str,
    args: &SessionArgs,
    how: Mounting,
) -> Result<Entered> {
    let word = Some(word);
    how.mount(
        || {
            let (env, kind, revision) = match args.kind(word) {
                Some(kind) => {
                    let (env, revision) = context.committed(word)?;
                    (env, kind, revision)
                }
                None => {
                    let env = context.environment(word)?;
                    let Err(error) = enter_writable(&env, how) else {
                        let revision = env.facts.revision.as_ref().map(|current| current.id.0);
                        return Ok(Entered { env, revision });
                    };
                    let kind = instead(&env, error)?;
                    (env, kind, None)
                }
            };
            let request = Request {
                kind,
                revision,
                path: None,
                rights: Rights::Own,
                ends_with: None,
            };
            let revision = Some(enter(&env, args, &request, how)?);
            Ok(Entered { env, revision })
        },
        // The command keeps the number of this process.
        || session::enter(context, word, args, Some(std::process::id())),
    )
}

/// Enters the private session of a committed revision, and starts it unless it runs. Returns the
/// revision that it shows.
fn enter(env: &Env, args: &SessionArgs, request: &Request<'_>, how: Mounting) -> Result<i64> {
    let wanted = wanted(env, args, request)?;
    let present = mountinfo::at(&wanted.mount_point)
        .map_err(|error| CommandError::io("cannot read the mount table", &error))?;
    let shown = present.as_ref().and_then(|mount| shown_by(mount, env));
    if let (Some(present), Some(shown)) = (&present, &shown)
        && is_wanted(shown, &wanted, request.revision)
        && !present.is_dead()
    {
        return Ok(shown.revision);
    }
    // A mount of the environment may be covered, nothing else.
    let is_own = |mount: &MountEntry| mount.environment_id() == Some(&env.target.id);
    if shown.is_none() && !present.as_ref().is_some_and(is_own) {
        prefix::prepare_prefix(&wanted.mount_point)?;
    }
    let key = Key {
        target: &env.target,
        kind: wanted.kind.word(),
        pinned: request.revision,
        current: wanted.revision,
    };
    // The changes of an ephemeral session are those of one command.
    let key = (wanted.kind == SessionKind::ReadOnly).then_some(&key);
    let start = |spec: &PrivateSpec, lock| {
        let (target, runtime) = (&env.target, &env.runtime);
        sessions::start_private(target, runtime, &wanted, spec, lock, &backend::slow_start)
    };
    let entered = private::enter(&env.runtime, key, Some(wanted.revision), &start)?;
    if let Some(report) = &entered.started {
        backend::print_start_warnings(env.name(), report, Path::new(""));
        how.explain(env);
    }
    Ok(entered.greeting.revision.unwrap_or(wanted.revision))
}

/// Returns what a mount shows if it is a session of this environment.
pub(super) fn shown_by(mount: &MountEntry, env: &Env) -> Option<SessionSource> {
    let source = SessionSource::parse(mount.trusted_source()?)?;
    (source.environment == env.target.id).then_some(source)
}

/// Returns whether a session that this process is in already is the wanted one. In a job the
/// current revision is that of the session.
fn is_wanted(shown: &SessionSource, wanted: &Wanted, pinned: Option<i64>) -> bool {
    let is_revision = shown.revision == wanted.revision || pinned.is_none() && Scope::own().is_job;
    wanted.kind == SessionKind::ReadOnly && shown.kind == wanted.kind && is_revision
}

/// Enters the private session that shows and keeps the changes of an environment, and starts it
/// unless it runs. If the environment is mounted here already, that mount is used, unless it ends
/// with another job.
fn enter_writable(env: &Env, how: Mounting) -> Result<()> {
    let state = env.state()?;
    if state.is_mounted() {
        if let State::Mounted(client) = &state {
            refuse_other_job(env, client.hello().pid)?;
        }
        env.ensure_mounted()?;
        return Ok(());
    }
    let key = Key {
        target: &env.target,
        kind: WRITABLE,
        pinned: None,
        current: 0,
    };
    let start = |spec: &PrivateSpec, lock| {
        let (target, runtime) = (&env.target, &env.runtime);
        lifecycle::start_private(target, runtime, spec, lock, &backend::slow_start)
    };
    backend::warn_of_newer(&env.environment, &env.facts);
    let entered = private::enter(&env.runtime, Some(&key), None, &start)?;
    if let Some(report) = &entered.started {
        let log = env.environment.layout().daemon_log();
        backend::print_start_warnings(env.name(), report, &log);
        how.explain(env);
    }
    Ok(())
}

/// Fails if a daemon belongs to another job, with which it would end.
fn refuse_other_job(env: &Env, daemon: u32) -> Result<()> {
    let scopes = (
        Scope::of_process(daemon),
        Scope::of_process(std::process::id()),
    );
    match scopes {
        (Some(theirs), own) if theirs.is_job && Some(&theirs) != own.as_ref() => {
            let message = format!(
                "{} is mounted by another job (pid {daemon}), with which its mount ends",
                env.name()
            );
            Err(CommandError::new(Kind::Busy, message).hint(format!(
                "use the committed revision: envfs run --private --read-only {} CMD",
                env.name()
            )))
        }
        _ => Ok(()),
    }
}
