//! Making environments and images: import, create, clone and pack, and the choice of a prefix.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::backend;
use super::context::Env;
use super::error::{CommandError, Result};
use super::output::Output;
use super::relocation::{self, Moved};
use crate::commit::{self, Force, HistoryArchive, Relocate};
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::prefix::try_prefix;
use crate::environment::{
    Config, EnvName, Environment, EnvironmentError, Prefix, Store, real_path,
};
use crate::progress::Progress;
use crate::squashfs::Compression;
use crate::state::RevisionId;
use crate::sys::text::{Text, quoted};

/// The options of a new environment.
#[derive(Debug, Clone, Default)]
pub(super) struct NewOptions {
    /// The prefix, if not the default one.
    pub prefix: Option<PathBuf>,
    /// Codec and level (`zstd:3`), if not the configured one.
    pub compression: Option<Compression>,
    /// Block size in bytes, if not the configured one.
    pub block_size: Option<u32>,
    /// Compressor threads, if not the configured number.
    pub threads: Option<NonZeroUsize>,
    /// Message for the history.
    pub message: String,
    /// Patterns of paths to exclude.
    pub exclude: Vec<PathBuf>,
    /// Where the image begins in the source, where it cannot be found.
    pub offset: Option<u64>,
    /// Files whose data comes first in the image.
    pub first: Vec<PathBuf>,
    /// What to do with files that cannot be rewritten for the prefix; `None` to rewrite none.
    pub relocate: Option<Force>,
}

/// The result of an import.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Imported {
    /// Name of the environment.
    pub name: String,
    /// The path where it will be mounted.
    pub prefix: Text,
    /// Entries in the image.
    pub files: u64,
    /// Content of the files in bytes.
    pub content_bytes: u64,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// What is not as the source says.
    pub notes: Vec<String>,
    /// The path of the original directory, if the environment is in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Text>,
    /// How files were rewritten, if they contained another prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relocated: Option<Moved>,
}

impl Imported {
    /// Describes what was made.
    pub(super) fn of(
        name: &EnvName,
        options: &commit::ImportOptions,
        done: &commit::Imported,
    ) -> Imported {
        Imported {
            name: name.to_string(),
            prefix: options.prefix.as_path().into(),
            files: done.entries,
            content_bytes: done.content_bytes,
            image_bytes: done.image_bytes,
            notes: done.notes.clone(),
            backup: None,
            relocated: (done.relocated.as_ref()).map(|done| Moved::of(done, &options.prefix)),
        }
    }
}

/// Packs a directory, an archive or an image into a new environment.
pub(super) fn import(
    store: &Store,
    name: &EnvName,
    source: &Path,
    options: &NewOptions,
    output: &Output,
    progress: &dyn Progress,
) -> Result<Imported> {
    refuse_existing(store, name)?;
    let force = options.relocate;
    let mut options = import_options(store, name, options, output)?;
    let given = source;
    let source = match source.is_dir() {
        true => named(source, "import")?,
        false => source.to_owned(),
    };
    if let Some(force) = force {
        // Files may contain the path as the user knows it.
        let given = std::path::absolute(given).unwrap_or_else(|_| source.clone());
        let old = match source.is_dir() {
            true => vec![given.components().collect(), source.clone()],
            false => Vec::new(),
        };
        options.relocate = Relocate::Yes { old, force };
    }
    let new = store.create(name)?;
    // Fail before the long work rather than after it.
    try_prefix(&options.prefix)?;
    let done = commit::import(&source, new, &options, progress).map_err(Failure::from)?;
    Ok(Imported::of(name, &options, &done))
}

/// Makes an environment of the archive of a history. Returns its prefix, too.
pub(super) fn import_history(
    store: &Store,
    name: &EnvName,
    archive: &HistoryArchive,
    options: &NewOptions,
    output: &Output,
    progress: &dyn Progress,
) -> Result<(commit::ImportedHistory, PathBuf)> {
    refuse_existing(store, name)?;
    let threads = settings(&store.config()?, options).threads;
    let prefix = choose_prefix(store, name, options.prefix.as_deref())?;
    for warning in &prefix.warnings {
        output.warn(warning);
    }
    let new = store.create(name)?;
    try_prefix(&prefix.path)?;
    let relocate = match options.relocate {
        Some(force) if prefix.path != archive.prefix() => Relocate::Yes {
            old: vec![archive.prefix().to_owned()],
            force,
        },
        _ => Relocate::No,
    };
    let options = commit::ImportHistoryOptions {
        prefix: prefix.path,
        relocate,
        threads,
    };
    let done = commit::import_history(archive, new, &options, progress);
    Ok((done.map_err(Failure::from)?, options.prefix))
}

/// Creates an empty environment.
pub(super) fn create(
    store: &Store,
    name: &EnvName,
    options: &NewOptions,
    output: &Output,
) -> Result<Environment> {
    refuse_existing(store, name)?;
    let options = import_options(store, name, options, output)?;
    let new = store.create(name)?;
    try_prefix(&options.prefix)?;
    Ok(commit::create_empty(new, &options).map_err(Failure::from)?)
}

/// What to clone.
#[derive(Debug, Clone, Copy)]
pub(super) struct CloneOf<'a> {
    /// The prefix, if not the default one.
    pub prefix: Option<&'a Path>,
    /// The revision, if not the current one.
    pub revision: Option<&'a str>,
    /// The message, if not the default one.
    pub message: Option<&'a str>,
    /// What to do with files that cannot be rewritten for the prefix; `None` to rewrite none.
    pub relocate: Option<Force>,
}

/// Makes an environment of a revision of another one, by default the current. Returns it with the
/// number of the revision, and its prefix.
pub(super) fn clone(
    source: &Env,
    name: &EnvName,
    wanted: &CloneOf<'_>,
    output: &Output,
    progress: &dyn Progress,
) -> Result<(commit::Cloned, i64, PathBuf)> {
    let store = &source.store;
    refuse_existing(store, name)?;
    let number = match wanted.revision {
        Some(text) => Some(backend::revision(&source.environment, text)?),
        None => None,
    };
    // Fails if there is no such revision.
    backend::image_file(&source.environment, number)?;
    let db = backend::open_read_only(&source.environment)?;
    let found = match number {
        Some(number) => db.revision(RevisionId(number))?,
        None => db.current_revision()?,
    };
    let found = found.ok_or_else(|| {
        CommandError::new(Kind::NotFound, format!("{} has no revision", source.name()))
    })?;
    let prefix = choose_prefix(store, name, wanted.prefix)?;
    for warning in &prefix.warnings {
        output.warn(warning);
    }
    let message = match wanted.message {
        Some(message) => message.to_owned(),
        None => format!("clone of {}, revision {}", source.name(), found.id),
    };
    let new = store.create(name)?;
    try_prefix(&prefix.path)?;
    let layout = source.environment.layout();
    let options = commit::CloneOptions {
        prefix: prefix.path,
        message,
        relocate: match wanted.relocate {
            None => Relocate::No,
            Some(force) => Relocate::Yes {
                old: relocation::spellings(&source.target.prefix),
                force,
            },
        },
    };
    let cloned = commit::clone(layout, &db, &found, new, &options, progress);
    Ok((cloned.map_err(Failure::from)?, found.id.0, options.prefix))
}

/// Packs a directory into an image file without creating an environment.
pub(super) fn pack(
    config: &Config,
    source: &Path,
    options: &NewOptions,
    to: &Path,
    progress: &dyn Progress,
) -> Result<commit::Packed> {
    let source = named(source, "pack")?;
    let to = fs::canonicalize(to)
        .map_err(|error| CommandError::io(format!("cannot write {}", quoted(to)), &error))?;
    let settings = settings(config, options);
    let done = commit::pack_directory(&source, settings, &options.exclude, &to, progress);
    Ok(done.map_err(Failure::from)?)
}

/// Resolves a path given by the user.
fn named(path: &Path, doing: &str) -> Result<PathBuf> {
    fs::canonicalize(path)
        .map_err(|error| CommandError::of_named(format!("cannot {doing} {}", quoted(path)), &error))
}

/// Fails if the environment exists. This check comes first, as its prefix would conflict as well.
pub(super) fn refuse_existing(store: &Store, name: &EnvName) -> Result<()> {
    if store.exists(name) {
        return Err(EnvironmentError::Exists {
            name: name.to_string(),
        }
        .into());
    }
    Ok(())
}

fn import_options(
    store: &Store,
    name: &EnvName,
    options: &NewOptions,
    output: &Output,
) -> Result<commit::ImportOptions> {
    let prefix = choose_prefix(store, name, options.prefix.as_deref())?;
    options_at(store, prefix, options, output)
}

/// Returns the options of an import for a prefix that was checked. Prints the warnings about it.
pub(super) fn options_at(
    store: &Store,
    prefix: Prefix,
    options: &NewOptions,
    output: &Output,
) -> Result<commit::ImportOptions> {
    for warning in &prefix.warnings {
        output.warn(warning);
    }
    Ok(commit::ImportOptions {
        prefix: prefix.path,
        message: options.message.clone(),
        settings: settings(&store.config()?, options),
        exclude: options.exclude.clone(),
        offset: options.offset,
        first: options.first.clone(),
        relocate: Relocate::No,
    })
}

fn settings(config: &Config, options: &NewOptions) -> commit::Settings {
    let mut settings = commit::Settings::from_config(config);
    settings.compression = options.compression.unwrap_or(settings.compression);
    settings.threads = options.threads.unwrap_or(settings.threads);
    settings.block_size = options.block_size.unwrap_or(settings.block_size);
    settings
}

/// Checks the prefix of a new environment. It must not overlap the prefix of another one.
pub(super) fn choose_prefix(
    store: &Store,
    name: &EnvName,
    wanted: Option<&Path>,
) -> Result<Prefix> {
    let prefix = Prefix::choose(store.layout(), name, wanted)?;
    refuse_overlap(store, &prefix.path)
        .map_err(|error| error.hint("choose another path with --prefix"))?;
    Ok(prefix)
}

/// Fails if a path overlaps the prefix of an environment.
pub(super) fn refuse_overlap(store: &Store, path: &Path) -> Result<()> {
    let real = |path: &Path| real_path(path).unwrap_or_else(|_| path.to_owned());
    let own = real(path);
    for (other, prefix) in backend::prefixes(store)? {
        // A mount whose daemon has died cannot be resolved.
        let other_parent = prefix.parent().map(real).unwrap_or_default();
        let theirs = other_parent.join(prefix.file_name().unwrap_or_default());
        let relation = if prefix == path || theirs == own {
            "is the prefix"
        } else if path.starts_with(&prefix) || own.starts_with(&theirs) {
            "is inside the prefix"
        } else if prefix.starts_with(path) || theirs.starts_with(&own) {
            "contains the prefix"
        } else {
            continue;
        };
        let message = format!(
            "{} {relation} of {other} ({})",
            quoted(path),
            quoted(&prefix)
        );
        return Err(CommandError::new(Kind::Conflict, message));
    }
    Ok(())
}
