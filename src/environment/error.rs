//! Errors of stores, environments as files, locks and the configuration.

use std::io;
use std::path::{Path, PathBuf};

use super::holder::Holder;

/// A result whose error is an [`EnvironmentError`].
pub type Result<T, E = EnvironmentError> = std::result::Result<T, E>;

/// The reason why an environment could not be found, created, locked or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// The name violates the rule for names.
    #[error(
        "invalid environment name '{name}': {why} (use 1 to 64 letters, digits, '.', '_' or '-', \
         starting with a letter, a digit or '_')"
    )]
    BadName {
        /// The name, printable.
        name: String,
        /// The part of the rule that it violates.
        why: &'static str,
    },
    /// No environment has the name.
    #[error("there is no environment '{name}'{}", did_you_mean(.similar))]
    Unknown {
        /// The name.
        name: String,
        /// Existing names that are similar, best first.
        similar: Vec<String>,
    },
    /// The name is taken.
    #[error("environment '{name}' already exists")]
    Exists {
        /// The name.
        name: String,
    },
    /// The path cannot be the prefix of an environment.
    #[error("invalid prefix {path}: {why}")]
    BadPrefix {
        /// The path.
        path: PathBuf,
        /// The reason and the next step.
        why: String,
    },
    /// Another process holds the lock.
    #[error("{path}: in use: {}", held_by(.holder))]
    Held {
        /// Home of the environment.
        path: PathBuf,
        /// The holder, if known.
        holder: Option<Box<Holder>>,
    },
    /// Another user could replace a store or a prefix.
    #[error("refusing to use {path}: {others} can replace files in {dir}")]
    Replaceable {
        /// The store or the prefix.
        path: PathBuf,
        /// The directory that others can change.
        dir: PathBuf,
        /// The users that can change it.
        others: String,
    },
    /// The configuration file is invalid.
    #[error("{path}: {detail}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The position and the problem.
        detail: String,
    },
    /// The directory of the store cannot be determined.
    #[error("cannot find your home directory: set ENVFS_HOME to the directory for environments")]
    NoHome,
    /// A file operation failed.
    #[error("{path}: cannot {doing}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operation, as in "cannot open the lock".
        doing: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

/// Adds the path and the operation to an I/O error.
pub(super) trait Context<T> {
    fn context(self, path: &Path, doing: &'static str) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, path: &Path, doing: &'static str) -> Result<T> {
        self.map_err(|error| EnvironmentError::Io {
            path: path.to_owned(),
            doing,
            error,
        })
    }
}

fn did_you_mean(similar: &[String]) -> String {
    match similar.first() {
        Some(name) => format!("; did you mean '{name}'?"),
        None => String::new(),
    }
}

fn held_by(holder: &Option<Box<Holder>>) -> String {
    match holder {
        Some(holder) => format!("held by {holder}"),
        None => "held by an unknown process".to_owned(),
    }
}
