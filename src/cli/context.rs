//! The context of a command: the store, the output, and the environments that it names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::error::{CommandError, Result};
use super::output::Output;
use super::{backend, place, recovery};
use crate::daemon::protocol::Selection;
use crate::environment::{EnvName, Environment, Store};
use crate::sys::text::quoted;

pub(super) use super::env::Env;

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
        recovery::recover(&self.output, &store, &environment);
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

/// Splits `NAME@REV`. Without a name, the active environment is used.
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
