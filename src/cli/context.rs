//! The context of a command: the store, the output, and the environments that it names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::backend::{self, Facts};
use super::conda_list;
use super::error::{CommandError, Result};
use super::output::Output;
use super::{in_place, place, read_only};
use crate::commit::{Collected, GcOptions};
use crate::daemon::client::Client;
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle::{self, State, Target};
use crate::daemon::protocol::{Selection, Service, TagOptions};
use crate::daemon::runtime::RuntimeDir;
use crate::daemon::service::LOCK_TIMEOUT;
use crate::daemon::session::of_other_job;
use crate::environment::{EnvLock, EnvName, Environment, Store, refuse_replaceable};
use crate::progress::NoProgress;
use crate::sys::cgroup::Scope;
use crate::sys::mount::Rights;
use crate::sys::text::{Text, quoted};

/// The context in which a command runs.
#[derive(Debug)]
pub struct Context {
    /// The output.
    pub output: Output,
    home: Option<PathBuf>,
}

impl Context {
    /// Creates a context; `home` is the value of `--home`.
    pub fn new(output: Output, home: Option<PathBuf>) -> Context {
        Context { output, home }
    }

    /// Returns the store.
    pub fn store(&self) -> Result<Store> {
        match &self.home {
            Some(home) if !home.as_os_str().is_empty() => {
                let home = std::path::absolute(home).map_err(|error| {
                    CommandError::io(format!("cannot find {}", quoted(home)), &error)
                })?;
                Ok(Store::new(home))
            }
            _ => Ok(Store::of_user()?),
        }
    }

    /// Returns the environment that a word names, or the active one.
    pub fn environment(&self, name: Option<&str>) -> Result<Env> {
        let store = self.store()?;
        let environment = self.files_of(name)?;
        in_place::recover(&self.output, &store, &environment);
        // It is gone if an import was taken back.
        let environment = store.open(environment.name())?;
        Env::new(store, environment)
    }

    /// Returns the environment that `NAME@REV` names, and the revision if one is given, by number
    /// or by tag. Without a name, the active environment.
    pub fn environment_at(&self, word: Option<&str>) -> Result<(Env, Option<i64>)> {
        let (name, revision) = split(word)?;
        let env = self.environment(name)?;
        let revision = find_revision(&env, revision)?;
        Ok((env, revision))
    }

    /// Like [`environment_at`](Self::environment_at), but never writes to the store, even to
    /// recover an interrupted import.
    pub fn committed(&self, word: Option<&str>) -> Result<(Env, Option<i64>)> {
        let (name, revision) = split(word)?;
        let env = Env::new(self.store()?, self.files_of(name)?)?;
        let revision = find_revision(&env, revision)?;
        Ok((env, revision))
    }

    /// Returns the files of the environment that a word names, or of the active one, without
    /// reading its database. The word is a name, or a path that is the prefix of an environment or
    /// inside it. A word that can be both is a name, unless it contains a slash or is `.` or `..`.
    pub fn files_of(&self, name: Option<&str>) -> Result<Environment> {
        let Some(word) = name else {
            let active = active_name().ok_or_else(|| {
                CommandError::usage("no environment given and none is active")
                    .hint("give its name (envfs list shows them), or: envfs activate NAME")
            })?;
            return Ok(self.store()?.open(&EnvName::new(&active)?)?);
        };
        let store = self.store()?;
        let path = Path::new(word);
        let is_path = place::is_path(path);
        let name = EnvName::new(word);
        if !is_path
            && let Ok(name) = &name
            && store.exists(name)
        {
            return Ok(store.open(name)?);
        }
        if is_path || path.symlink_metadata().is_ok() {
            return match place::find(&store, path)? {
                Some((environment, _)) => Ok(environment),
                None if is_path || name.is_err() => Err(place::none_at(&store, path)),
                None => Err(store
                    .open(&name?)
                    .map_or_else(CommandError::from, |_| place::none_at(&store, path))),
            };
        }
        Ok(store.open(&name?)?)
    }

    /// Returns whether a word names an environment that exists.
    pub fn is_name(&self, word: &str) -> bool {
        self.files_of(Some(word)).is_ok()
    }

    /// Parses `[NAME] [PATH…]`. The first word is a name if an environment with that name exists,
    /// or if no environment is active. If it is a path in an environment other than the active one,
    /// it names that environment, and selects what it leads to unless that is the prefix.
    pub fn environment_and_paths(&self, words: &[OsString]) -> Result<(Env, Selection)> {
        let (environment, paths) = self.environment_and_rest(words)?;
        let selection = environment.select(paths)?;
        Ok((environment, selection))
    }

    /// Parses `[NAME] [WORD…]` in the same way. Returns the words after the name.
    pub fn environment_and_rest<'a>(&self, words: &'a [OsString]) -> Result<(Env, &'a [OsString])> {
        let store = self.store()?;
        let active = active_name();
        let is_name = |word: &OsString| {
            !place::is_path(Path::new(word))
                && word
                    .to_str()
                    .and_then(|text| EnvName::new(text).ok())
                    .is_some_and(|name| store.exists(&name))
        };
        let mut is_guessed = false;
        let (name, paths) = match words.split_first() {
            None => (None, words),
            Some((first, rest)) if is_name(first) => {
                (Some(first.to_string_lossy().into_owned()), rest)
            }
            Some((first, rest)) => {
                let path = Path::new(first);
                let found = match place::is_path(path) || path.symlink_metadata().is_ok() {
                    true => place::find(&store, path)?,
                    false => None,
                };
                match found {
                    Some((found, inner)) if active.as_deref() != Some(found.name().as_str()) => {
                        let paths = if inner.as_os_str().is_empty() {
                            rest
                        } else {
                            words
                        };
                        (Some(found.name().to_string()), paths)
                    }
                    None if active.is_none() => {
                        is_guessed = true;
                        (Some(first.to_string_lossy().into_owned()), rest)
                    }
                    _ => (None, words),
                }
            }
        };
        let environment = self.environment(name.as_deref());
        let environment = environment.map_err(|error| match is_guessed {
            true => error.hint(
                "no environment is active, so a name comes first: NAME before any other word",
            ),
            false => error,
        });
        Ok((environment?, paths))
    }
}

/// Splits `NAME@REV`. Without a name, the active environment is meant.
fn split(word: Option<&str>) -> Result<(Option<&str>, Option<&str>)> {
    let Some((name, revision)) = word.map(place::split_revision) else {
        return Ok((None, None));
    };
    if revision == Some("") {
        return Err(CommandError::usage("no revision given after '@'")
            .hint("give its number or tag (envfs log shows them), as in NAME@3"));
    }
    let name = (revision.is_none() || !name.is_empty()).then_some(name);
    Ok((name, revision))
}

/// Returns the number of an existing revision.
fn find_revision(env: &Env, revision: Option<&str>) -> Result<Option<i64>> {
    let Some(text) = revision else {
        return Ok(None);
    };
    let number = backend::revision(&env.environment, text)?;
    backend::image_file(&env.environment, Some(number))?;
    Ok(Some(number))
}

/// Returns the name of the environment that is active in the calling shell.
pub(super) fn active_name() -> Option<String> {
    std::env::var("ENVFS_ENV")
        .ok()
        .filter(|name| !name.is_empty())
}

/// An environment that a command works on.
#[derive(Debug)]
pub struct Env {
    /// The store that contains it.
    pub store: Store,
    /// Its files.
    pub environment: Environment,
    /// The contents of its database that most commands need.
    pub facts: Facts,
    /// Its mount.
    pub target: Target,
    /// The directory of control sockets.
    pub runtime: RuntimeDir,
}

impl Env {
    /// Reads the facts about an environment.
    pub fn new(store: Store, environment: Environment) -> Result<Env> {
        let facts = backend::facts(&environment)?;
        let target = Target {
            id: facts.id.clone(),
            name: environment.name().to_string(),
            prefix: facts.prefix.clone(),
            layout: environment.layout().clone(),
            home: store.layout().root().to_path_buf(),
        };
        Ok(Env {
            store,
            environment,
            facts,
            target,
            runtime: RuntimeDir::open(),
        })
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        self.environment.name().as_str()
    }

    /// Returns the state of its mount, with a client of its daemon if there is one.
    pub fn state(&self) -> Result<State> {
        Ok(lifecycle::state(&self.runtime, &self.target)?)
    }

    /// Returns whether there is something at a path relative to its prefix, if it is mounted.
    pub fn has_entry(&self, path: &Path) -> bool {
        let is_mounted = self.state().is_ok_and(|state| state.is_mounted());
        is_mounted && self.target.prefix.join(path).symlink_metadata().is_ok()
    }

    /// Returns whether its store is on a read-only file system.
    pub fn is_read_only(&self) -> bool {
        read_only::is_read_only(self.environment.layout().home())
    }

    /// Returns whether its store is on a read-only file system and no daemon has it open.
    fn cannot_be_opened(&self) -> Result<bool> {
        Ok(self.is_read_only() && matches!(self.state()?, State::Unmounted))
    }

    /// Mounts it unless it is mounted. Replaces a dead mount.
    pub fn ensure_mounted(&self) -> Result<Option<Client>> {
        self.ensure_mounted_with(Rights::Own)
    }

    /// Mounts it with these rights unless it is mounted. Fails if [`Rights::Root`] is requested and
    /// it is mounted without.
    pub fn ensure_mounted_with(&self, rights: Rights) -> Result<Option<Client>> {
        backend::warn_of_newer(&self.environment, &self.facts);
        if let Some(parent) = self.target.prefix.parent() {
            refuse_replaceable(parent)?;
        }
        if self.cannot_be_opened()? {
            read_only::mount(self)?;
            conda_list::add(&self.target.prefix);
            return Ok(None);
        }
        let client =
            lifecycle::ensure_mounted(&self.target, &self.runtime, rights, &backend::slow_start)?;
        if let Some(client) = &client
            && client.start_report().is_none()
            && Scope::is_of_other_job(client.hello().pid)
        {
            let shown = format!("the mount of {}", self.name());
            return Err(of_other_job(&shown, self.name(), client.hello().pid).into());
        }
        if let Some(report) = client.as_ref().and_then(Client::start_report) {
            let log = self.environment.layout().daemon_log();
            backend::print_start_warnings(self.name(), report, &log);
            conda_list::add(&self.target.prefix);
        }
        Ok(client)
    }

    /// Returns a client of its daemon if there is one, else a service in this process.
    pub fn service(&self) -> Result<Box<dyn Service>> {
        if self.cannot_be_opened()? {
            return Ok(Box::new(read_only::Unchanged::of(self)?));
        }
        self.with_daemon_or_locally(
            || backend::local(&self.environment),
            |client| Ok(Box::new(client)),
        )
    }

    /// Removes old revisions, and images and discarded changes that are no longer needed.
    pub fn gc(&self, options: GcOptions) -> Result<Collected> {
        if options.dry_run {
            // A dry run only reads, so it does not need the lock.
            return backend::gc(&self.environment, options);
        }
        self.with_daemon_or_locally(
            || backend::gc(&self.environment, options),
            |client| Ok(client.gc(options, &NoProgress)?),
        )
    }

    /// Sets or deletes a tag.
    pub fn tag(&self, options: &TagOptions) -> Result<()> {
        self.with_daemon_or_locally(
            || backend::tag(&self.environment, options),
            |client| Ok(client.tag(options, &NoProgress)?),
        )
    }

    /// Returns whether another host has the environment mounted writable.
    fn is_mounted_elsewhere(&self) -> bool {
        let holder = EnvLock::current_holder(self.environment.layout());
        holder.is_some_and(|holder| holder.is_mount_of_other_host())
    }

    /// Calls `by_daemon` if the environment has a daemon, else `locally`, which takes the lock.
    fn with_daemon_or_locally<T>(
        &self,
        locally: impl Fn() -> Result<T>,
        by_daemon: impl FnOnce(Client) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match self.state()? {
                State::Unmounted | State::Dead(_) => match locally() {
                    // Another command holds the lock, or a daemon is starting or ending.
                    Err(error)
                        if error.kind == Kind::Busy
                            && Instant::now() < deadline
                            && !self.is_mounted_elsewhere() =>
                    {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    done => return done,
                },
                State::Mounted(client) | State::Elsewhere(client) => return by_daemon(client),
                State::Copy(from) => {
                    return Err(lifecycle::copied(&self.target, from.as_deref()).into());
                }
                State::Unreachable => {
                    return Err(CommandError::new(
                        Kind::Daemon,
                        format!(
                            "the daemon of {} is unreachable: its socket no longer exists",
                            self.name()
                        ),
                    )
                    .hint(format!("envfs unmount {0} && envfs mount {0}", self.name())));
                }
            }
        }
    }

    /// Makes paths relative to the prefix. They may lead into the environment from the root or from
    /// the working directory, or be relative to the prefix.
    pub fn select(&self, paths: &[OsString]) -> Result<Selection> {
        let prefix = &self.target.prefix;
        let mut selection = Selection::default();
        for path in paths {
            let path = Path::new(path);
            let outside = || {
                CommandError::usage(format!(
                    "{} is outside of {} ({})",
                    quoted(path),
                    self.name(),
                    quoted(prefix)
                ))
            };
            let clean = match place::below(prefix, path) {
                Some(clean) => clean,
                // A working directory in the prefix is where the path begins, even if it leads out.
                None if path.is_absolute() || place::below(prefix, Path::new(".")).is_some() => {
                    return Err(outside());
                }
                None => place::normalize(path).ok_or_else(outside)?,
            };
            if clean.as_os_str().is_empty() {
                // The prefix itself selects everything.
                return Ok(Selection::default());
            }
            selection.paths.push(Text::from(clean));
        }
        Ok(selection)
    }
}
