//! An environment that a command works on.

use std::ffi::OsString;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::AccessFlags;

use super::backend::{self, Facts};
use super::error::{CommandError, Result};
use super::place;
use crate::daemon::lifecycle::{self, State};
use crate::daemon::protocol::Selection;
use crate::daemon::runtime::RuntimeDir;
use crate::daemon::target::Target;
use crate::environment::{Environment, Store};
use crate::sys::text::{Text, quoted};

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
        is_read_only(self.environment.layout().home())
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

/// Returns whether the directory cannot be written to because its file system is read-only.
pub(super) fn is_read_only(dir: &Path) -> bool {
    nix::unistd::access(dir, AccessFlags::W_OK) == Err(Errno::EROFS)
}
