//! The context of a command: the store, the output, and the environments that it names.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use super::backend::{self, Facts};
use super::error::{CommandError, Result};
use super::output::Output;
use super::read_only;
use crate::commit::{Collected, GcOptions};
use crate::daemon::client::Client;
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle::{self, State, Target};
use crate::daemon::protocol::{Selection, Service, TagOptions};
use crate::daemon::runtime::RuntimeDir;
use crate::daemon::service::LOCK_TIMEOUT;
use crate::environment::{EnvName, Environment, Store, refuse_replaceable};
use crate::progress::NoProgress;
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

    /// Returns the environment with this name, or the active one.
    pub fn environment(&self, name: Option<&str>) -> Result<Env> {
        Env::new(self.store()?, self.files_of(name)?)
    }

    /// Returns the files of the environment with this name, or of the active one, without reading
    /// its database.
    pub fn files_of(&self, name: Option<&str>) -> Result<Environment> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => active_name().ok_or_else(|| {
                CommandError::usage("no environment given and none is active")
                    .hint("give its name (envfs list shows them), or: envfs activate NAME")
            })?,
        };
        Ok(self.store()?.open(&EnvName::new(&name)?)?)
    }

    /// Returns whether an environment with this name exists.
    pub fn is_name(&self, word: &str) -> bool {
        EnvName::new(word).is_ok_and(|name| self.store().is_ok_and(|store| store.exists(&name)))
    }

    /// Parses `[NAME] [PATH…]`: the first word is a name if an environment with that name exists,
    /// or if no environment is active.
    pub fn environment_and_paths(&self, words: &[OsString]) -> Result<(Env, Selection)> {
        let store = self.store()?;
        let is_name = |word: &OsString| {
            word.to_str()
                .and_then(|text| EnvName::new(text).ok())
                .is_some_and(|name| store.exists(&name))
        };
        let (name, paths) = match words.split_first() {
            Some((first, rest)) if is_name(first) || active_name().is_none() => {
                (Some(first.to_string_lossy().into_owned()), rest)
            }
            _ => (None, words),
        };
        let environment = self.environment(name.as_deref())?;
        let selection = environment.select(paths)?;
        Ok((environment, selection))
    }
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

    /// Returns whether its store is on a read-only file system.
    pub fn is_read_only(&self) -> bool {
        read_only::is_read_only(self.environment.layout().home())
    }

    /// Returns whether its store is on a read-only file system and no daemon has it open.
    fn cannot_be_opened(&self) -> Result<bool> {
        Ok(self.is_read_only() && matches!(self.state()?, State::Unmounted))
    }

    /// Unmounts it if it is mounted from a read-only store. Returns whether it was.
    pub fn unmount_read_only(&self, lazy: bool) -> Result<bool> {
        read_only::unmount(self, lazy)
    }

    /// Mounts it unless it is mounted. Replaces a dead mount.
    pub fn ensure_mounted(&self) -> Result<Option<Client>> {
        self.ensure_mounted_with(false)
    }

    /// Mounts it, with `fakeroot` so that the user has root's rights in it. Fails if it is mounted
    /// with another setting.
    pub fn ensure_mounted_with(&self, fakeroot: bool) -> Result<Option<Client>> {
        backend::warn_of_newer(&self.environment, &self.facts);
        if let Some(parent) = self.target.prefix.parent() {
            refuse_replaceable(parent)?;
        }
        if self.cannot_be_opened()? {
            read_only::mount(self)?;
            return Ok(None);
        }
        let client =
            lifecycle::ensure_mounted(&self.target, &self.runtime, fakeroot, &backend::slow_start)?;
        if let Some(client) = &client {
            let log = self.environment.layout().daemon_log();
            backend::print_start_warnings(self.name(), client.start_report(), &log);
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
                    Err(error) if error.kind == Kind::Busy && Instant::now() < deadline => {
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

    /// Makes paths relative to the prefix. They may be absolute, relative to a working directory
    /// inside the environment, or relative to the prefix.
    pub fn select(&self, paths: &[OsString]) -> Result<Selection> {
        let prefix = &self.target.prefix;
        let inside = std::env::current_dir()
            .ok()
            .and_then(|dir| dir.strip_prefix(prefix).map(Path::to_path_buf).ok());
        let mut selection = Selection::default();
        for path in paths {
            let path = Path::new(path);
            let relative = if path.is_absolute() {
                path.strip_prefix(prefix)
                    .map(Path::to_path_buf)
                    .map_err(|_| {
                        CommandError::usage(format!(
                            "{} is outside of {} ({})",
                            quoted(path),
                            self.name(),
                            quoted(prefix)
                        ))
                    })?
            } else {
                inside.clone().unwrap_or_default().join(path)
            };
            let Some(clean) = normalize(&relative) else {
                return Err(CommandError::usage(format!(
                    "{} is outside of the environment",
                    quoted(path)
                )));
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

/// Resolves `.` and `..` lexically. Returns `None` if they lead above the start.
fn normalize(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_lead_out_of_the_environment() {
        assert_eq!(
            normalize(Path::new("a/./b/../c")),
            Some(PathBuf::from("a/c"))
        );
        assert_eq!(normalize(Path::new("./")), Some(PathBuf::new()));
        assert_eq!(normalize(Path::new("a/../../b")), None);
    }
}
