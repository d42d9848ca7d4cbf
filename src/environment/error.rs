//! What can go wrong with a store, an environment's files, its lock or the configuration.

use std::io;
use std::path::{Path, PathBuf};

use super::lock::Holder;

/// A result whose error is an [`EnvironmentError`].
pub type Result<T, E = EnvironmentError> = std::result::Result<T, E>;

/// Why an environment could not be found, made, locked or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// The name breaks the rule for names.
    #[error(
        "'{name}' cannot name an environment: {why} (1 to 64 letters, digits, '.', '_' or '-', \
         beginning with a letter, a digit or '_')"
    )]
    BadName {
        /// What was given.
        name: String,
        /// Which part of the rule it breaks.
        why: &'static str,
    },
    /// There is no environment with the name.
    #[error("there is no environment '{name}'{}", did_you_mean(.similar))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that exist and look like it, best first.
        similar: Vec<String>,
    },
    /// There is an environment with the name.
    #[error("there is an environment '{name}' already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The path cannot be the prefix of an environment.
    #[error("{path}: cannot be the prefix of an environment: {why}")]
    BadPrefix {
        /// The path.
        path: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// Somebody else holds the lock.
    #[error("{path}: in use: {}", held_by(.holder))]
    Held {
        /// Home of the environment.
        path: PathBuf,
        /// Who, as far as known.
        holder: Option<Box<Holder>>,
    },
    /// Another user could put something else in the place of a store or a prefix.
    #[error("{path}: not used: {who} may replace what is in {dir}")]
    Replaceable {
        /// The store or the prefix.
        path: PathBuf,
        /// The directory that others may change.
        dir: PathBuf,
        /// Who may.
        who: String,
    },
    /// The configuration file is wrong.
    #[error("{path}: {detail}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Where and what.
        detail: String,
    },
    /// It is not known where the store is to be.
    #[error("no home directory is known: set ENVFS_HOME to where environments are to be kept")]
    NoHome,
    /// A file operation failed.
    #[error("{path}: cannot {doing}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Names the path and the step of an I/O error.
pub(super) trait Context<T> {
    fn context(self, path: &Path, doing: &'static str) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, path: &Path, doing: &'static str) -> Result<T> {
        self.map_err(|source| EnvironmentError::Io {
            path: path.to_owned(),
            doing,
            source,
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
        None => "held by a process that did not leave its name".to_owned(),
    }
}
