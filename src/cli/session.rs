//! Sessions of commands: which kind is wanted, of which revision, and where it is mounted.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::backend;
use super::context::Env;
use super::error::{CommandError, Result};
use super::{conda_list, place};
use crate::daemon::failure::Kind;
use crate::daemon::session::{self, Begun, Wanted};
use crate::environment::{SessionKind, refuse_replaceable_except};
use crate::sys::mount::Rights;
use crate::sys::text::quoted;

/// The file system in memory that every user may write to.
const SHARED_MEMORY: &str = "/dev/shm";

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
    /// Keep the changes of --ephemeral in this directory until the end [default: /dev/shm, else
    /// $TMPDIR].
    #[arg(long, value_name = "DIR", requires = "ephemeral")]
    upper_dir: Option<PathBuf>,
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

    /// Returns the directory in which an ephemeral session keeps its changes.
    fn upper_base(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.upper_dir {
            return std::fs::canonicalize(dir).map_err(|error| {
                CommandError::of_named(format!("cannot use {}", quoted(dir)), &error)
            });
        }
        let memory = Path::new(SHARED_MEMORY);
        let may_write = nix::unistd::access(memory, nix::unistd::AccessFlags::W_OK).is_ok();
        Ok(match memory.is_dir() && may_write {
            true => memory.to_path_buf(),
            false => std::env::temp_dir(),
        })
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

/// Mounts a session of an environment, unless it is mounted there already. Returns the mount point.
pub(super) fn begin(env: &Env, args: &SessionArgs, request: &Request<'_>) -> Result<PathBuf> {
    let revision = match (request.revision, &env.facts.revision) {
        (Some(number), _) => number,
        (None, Some(current)) => current.id.0,
        (None, None) => {
            let message = format!("{} has no revision", env.name());
            return Err(CommandError::new(Kind::Damaged, message));
        }
    };
    let wanted = Wanted {
        kind: request.kind,
        revision,
        image: backend::image_file(&env.environment, Some(revision))?,
        mount_point: place::resolve(request.path.unwrap_or(&env.target.prefix))?,
        upper_base: args.upper_base()?,
        rights: request.rights,
        ends_with: request.ends_with,
    };
    if let Some(parent) = wanted.mount_point.parent() {
        refuse_replaceable_except(parent, env.store.layout().root())?;
    }
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
    }
    if wanted.mount_point == env.target.prefix {
        conda_list::add(&env.target.prefix);
    }
    Ok(wanted.mount_point)
}
