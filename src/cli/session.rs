//! Sessions of commands: which kind is wanted, of which revision, and where it is mounted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::backend;
use super::context::{Context, Env};
use super::error::{CommandError, Result};
use super::{conda_list, place};
use crate::daemon::failure::Kind;
use crate::daemon::session::{self, Begun, SHARED_MEMORY, Wanted};
use crate::environment::{
    Age, EnvLock, Holder, InJob, SessionKind, WhenBusy, refuse_replaceable_except,
};
use crate::sys::cgroup::Scope;
use crate::sys::medium;
use crate::sys::memory::Memory;
use crate::sys::mount::Rights;
use crate::sys::text::quoted;

/// The free space from which it is used for changes: containers often have 64 MiB there.
const ENOUGH_MEMORY: u64 = 1 << 30;

/// The smallest limit of changes in memory: a session needs some space for itself.
const MIN_LIMIT: u64 = 1 << 20;

/// The options that choose a session.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(super) struct SessionArgs {
    /// Use the committed revision, without changes and without the environment's lock: while it is
    /// in use elsewhere, or from a store that you can only read.
    #[arg(long, conflicts_with = "ephemeral")]
    read_only: bool,
    /// Use the committed revision, and drop all changes at the end.
    #[arg(long)]
    ephemeral: bool,
    /// Keep the changes of --ephemeral in this directory until the end [default: /dev/shm if it has
    /// 1 GiB, else $TMPDIR].
    #[arg(
        long,
        value_name = "DIR",
        requires = "ephemeral",
        conflicts_with = "read_only"
    )]
    upper_dir: Option<PathBuf>,
    /// Whether it is read-only because of a batch job.
    #[arg(skip)]
    is_for_job: bool,
}

/// The options of `run`, `shell`, `activate` and `mount` that choose a session.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(super) struct DefaultSessionArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Use the current revision with its changes, and keep further changes. This is the default,
    /// except in jobs of Slurm, PBS, LSF, Grid Engine and Flux, where --read-only is.
    #[arg(long, conflicts_with_all = ["read_only", "ephemeral"])]
    writable: bool,
}

impl DefaultSessionArgs {
    /// Returns the kind that the options choose, if any.
    pub(super) fn kind(&self, word: Option<&str>) -> Option<SessionKind> {
        self.session.kind(word)
    }

    /// Returns the options as words of a command line, with absolute paths.
    pub(super) fn words(&self) -> Result<Vec<OsString>> {
        let mut words: Vec<OsString> = Vec::new();
        for (is_given, option) in [
            (self.session.read_only, "--read-only"),
            (self.session.ephemeral, "--ephemeral"),
            (self.writable, "--writable"),
        ] {
            if is_given {
                words.push(option.into());
            }
        }
        if self.session.upper_dir.is_some() {
            words.extend(["--upper-dir".into(), self.session.upper_base()?.into()]);
        }
        Ok(words)
    }

    /// Returns the options for an environment given as this word, with the default for this place.
    pub(super) fn resolve(&self, context: &Context, word: Option<&str>) -> Result<SessionArgs> {
        let mut args = self.session.clone();
        if args.kind(word).is_some() {
            return match self.writable {
                true => Err(
                    CommandError::usage("a revision cannot be used with --writable")
                        .hint("to keep changes, restore it: envfs rollback NAME REV"),
                ),
                false => Ok(args),
            };
        }
        if !self.writable
            && Scope::own().is_job
            && context.store()?.config()?.session.in_job == InJob::ReadOnly
        {
            (args.read_only, args.is_for_job) = (true, true);
        }
        Ok(args)
    }
}

impl SessionArgs {
    /// Returns the kind that the options choose for an environment given as this word, if any: a
    /// revision is read-only unless it is ephemeral.
    pub(super) fn kind(&self, word: Option<&str>) -> Option<SessionKind> {
        let has_revision = || word.is_some_and(|word| place::split_revision(word).1.is_some());
        match (self.read_only, self.ephemeral) {
            (_, true) => Some(SessionKind::Ephemeral),
            (true, _) => Some(SessionKind::ReadOnly),
            _ => has_revision().then_some(SessionKind::ReadOnly),
        }
    }

    /// Returns the kind of the session to mount at the prefix, unless the writable mount is wanted:
    /// in a job, one that is there already is what the user asked for before.
    pub(super) fn kind_at_prefix(
        &self,
        env: &Env,
        word: Option<&str>,
    ) -> Result<Option<SessionKind>> {
        match self.kind(word) {
            Some(_) if self.is_for_job && env.state()?.is_mounted() => Ok(None),
            kind => Ok(kind),
        }
    }

    /// Returns the directory in which an ephemeral session keeps its changes.
    fn upper_base(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.upper_dir {
            return std::fs::canonicalize(dir).map_err(|error| {
                CommandError::of_named(format!("cannot use {}", quoted(dir)), &error)
            });
        }
        let memory = Path::new(SHARED_MEMORY);
        let may_write = nix::unistd::access(memory, nix::unistd::AccessFlags::W_OK).is_ok();
        Ok(
            match may_write && medium::free_bytes(memory) >= ENOUGH_MEMORY {
                true => memory.to_path_buf(),
                false => std::env::temp_dir(),
            },
        )
    }
}

/// A session that a command needs.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// Read-only or ephemeral.
    pub kind: SessionKind,
    /// The revision, if not the current one.
    pub revision: Option<i64>,
    /// The mount point, if not the prefix.
    pub path: Option<&'a Path>,
    /// The rights of the user in the mount.
    pub rights: Rights,
    /// The process with which it ends.
    pub ends_with: Option<u32>,
}

/// An environment that is mounted for a command.
#[derive(Debug)]
pub(super) struct Entered {
    /// The environment.
    pub env: Env,
    /// The revision that is shown.
    pub revision: Option<i64>,
}

/// Mounts the environment that a word names at its prefix, as the options say: by default writable.
/// An ephemeral session ends with the process `ends_with`, if that is given.
pub(super) fn enter(
    context: &Context,
    word: Option<&str>,
    args: &SessionArgs,
    ends_with: Option<u32>,
) -> Result<Entered> {
    if args.kind(word).is_some() {
        let (env, revision) = context.committed(word)?;
        if let Some(kind) = args.kind_at_prefix(&env, word)? {
            return enter_session(env, args, kind, revision, ends_with);
        }
    }
    let env = context.environment(word)?;
    if let Some(joined) = joined_by_reactivation(&env, word)? {
        return Ok(Entered {
            env,
            revision: Some(joined),
        });
    }
    let Err(error) = env.ensure_mounted() else {
        let revision = env.facts.revision.as_ref().map(|revision| revision.id.0);
        return Ok(Entered { env, revision });
    };
    let kind = instead(&env, error)?;
    enter_session(env, args, kind, None, ends_with)
}

fn enter_session(
    env: Env,
    args: &SessionArgs,
    kind: SessionKind,
    revision: Option<i64>,
    ends_with: Option<u32>,
) -> Result<Entered> {
    let request = Request {
        kind,
        revision,
        path: None,
        rights: Rights::Own,
        ends_with: ends_with.filter(|_| kind == SessionKind::Ephemeral),
    };
    begin(&env, args, &request)?;
    let current = env.facts.revision.as_ref().map(|revision| revision.id.0);
    Ok(Entered {
        revision: revision.or(current),
        env,
    })
}

/// Returns the revision of the session at the prefix of the active environment: reactivation keeps
/// it.
fn joined_by_reactivation(env: &Env, word: Option<&str>) -> Result<Option<i64>> {
    if word.is_some() {
        return Ok(None);
    }
    let found = session::at(&place::resolve(&env.target.prefix)?)?;
    let found = found.filter(|found| found.source.environment == env.target.id);
    Ok(found
        .filter(|found| !found.entry.is_dead())
        .map(|found| found.source.revision))
}

/// Decides what to do if an environment cannot be mounted writable: returns the kind of session to
/// use instead, or the error. If the environment is in use on another host, the error says by which
/// process, and what works now.
pub(super) fn instead(env: &Env, error: CommandError) -> Result<SessionKind> {
    let holder = EnvLock::current_holder(env.environment.layout());
    let when_busy = env.store.config()?.session.when_busy;
    let holder = match (holder.filter(|holder| !holder.is_local()), error.kind) {
        (Some(holder), Kind::Busy) => holder,
        // An earlier command has mounted such a session.
        (Some(holder), Kind::Conflict) if when_busy != WhenBusy::Fail => holder,
        _ => return Err(error),
    };
    let kind = match when_busy {
        WhenBusy::Fail => return Err(in_use(env, &holder)),
        WhenBusy::ReadOnly => SessionKind::ReadOnly,
        WhenBusy::Ephemeral => SessionKind::Ephemeral,
    };
    backend::warn(format!(
        "{}; using a session of the committed revision, {} (session.when_busy)",
        held_by(env, &holder),
        kind.word()
    ));
    Ok(kind)
}

fn held_by(env: &Env, holder: &Holder) -> String {
    format!("{} is in use for writing: held by {holder}", env.name())
}

/// Returns the error for an environment that a process on another host has mounted.
fn in_use(env: &Env, holder: &Holder) -> CommandError {
    let name = env.name();
    CommandError::new(Kind::Busy, held_by(env, holder))
        .hint(format!(
            "use the committed revision: envfs run --read-only {name} CMD"
        ))
        .hint(format!(
            "or use it with changes that are dropped at the end: envfs run --ephemeral {name} CMD"
        ))
        .hint(format!(
            "or unmount it on {}: envfs unmount {name}",
            holder.process.host
        ))
}

/// Returns what to say instead of the error of a command that needs the lock, if another host has
/// the environment mounted: by which process, and what works now.
pub(super) fn in_use_elsewhere(env: &Env, error: &CommandError) -> Option<CommandError> {
    let holder = EnvLock::current_holder(env.environment.layout())?;
    let is_cause = error.kind == Kind::Busy && holder.is_mount_of_other_host();
    is_cause.then(|| in_use(env, &holder))
}

/// Returns the limit of the changes of a session, in bytes. Those of an ephemeral session that are
/// in memory may take what is configured, or half of what is free: other programs need memory too.
fn limit(kind: SessionKind, base: &Path, configured: Option<u64>) -> Option<u64> {
    if kind != SessionKind::Ephemeral || !medium::is_in_memory(base) {
        return None;
    }
    let half_of_free = || {
        let available = Memory::now().map_or(u64::MAX, |memory| memory.available);
        medium::free_bytes(base).min(available) / 2
    };
    Some(configured.unwrap_or_else(half_of_free).max(MIN_LIMIT))
}

/// Returns the session that a command needs.
pub(super) fn wanted(env: &Env, args: &SessionArgs, request: &Request<'_>) -> Result<Wanted> {
    let revision = match (request.revision, &env.facts.revision) {
        (Some(number), _) => number,
        (None, Some(current)) => current.id.0,
        (None, None) => {
            let message = format!("{} has no revision", env.name());
            return Err(CommandError::new(Kind::Damaged, message));
        }
    };
    let config = env.store.config()?;
    let upper_base = args.upper_base()?;
    let wanted = Wanted {
        kind: request.kind,
        revision,
        image: backend::image_file(&env.environment, Some(revision))?,
        mount_point: place::resolve(request.path.unwrap_or(&env.target.prefix))?,
        limit: limit(request.kind, &upper_base, config.session.memory_limit),
        upper_base,
        rights: request.rights,
        ends_with: request.ends_with,
        idle: config.session.idle.map(Age::duration),
        cache: config.cache,
        poll: config.daemon.poll,
    };
    if let Some(parent) = wanted.mount_point.parent() {
        refuse_replaceable_except(parent, env.store.layout().root())?;
    }
    Ok(wanted)
}

/// Mounts a session of an environment, unless it is mounted there already. Returns the mount point.
pub(super) fn begin(env: &Env, args: &SessionArgs, request: &Request<'_>) -> Result<PathBuf> {
    let wanted = wanted(env, args, request)?;
    if let Some(dead) = session::at(&wanted.mount_point)?.filter(|found| found.entry.is_dead()) {
        backend::warn(format!(
            "detaching {} at {}, whose daemon was killed",
            dead.describe(),
            quoted(&wanted.mount_point)
        ));
    }
    let begun = session::begin(&env.target, &env.runtime, &wanted, &backend::slow_start)?;
    if let Begun::New(report) = &begun {
        backend::print_start_warnings(env.name(), report, Path::new(""));
        if wanted.mount_point == env.target.prefix {
            conda_list::add(&env.target.prefix);
        }
    }
    Ok(wanted.mount_point)
}
