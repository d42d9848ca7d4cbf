//! Imports a directory in place, and finishes or undoes such an import.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::backend;
use super::context::{Context, Env};
use super::creation::{self, Imported, NewOptions};
use super::error::{CommandError, Result};
use super::output::{changes, count, objects, size};
use super::{place, recovery};
use crate::commit::{self, CommitError, in_place};
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::protocol::Selection;
use crate::daemon::service::LOCK_TIMEOUT;
use crate::daemon::{lifecycle, prefix};
use crate::environment::{
    EnvLock, EnvName, Environment, EnvironmentError, InPlace, Prefix, Stage, Store,
    refuse_replaceable,
};
use crate::progress::Progress;
use crate::shell::render::word;
use crate::sys::holders;
use crate::sys::mount::UnmountMode;
use crate::sys::text::{Text, quoted};
use crate::union::Summary;

/// The original directory of an environment, while it is kept.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Backup {
    /// Where it is.
    pub path: Text,
    /// Number of entries in it when it was imported.
    pub files: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether it is still there.
    pub exists: bool,
}

/// Returns the original directory of an environment that was imported in place.
pub(super) fn backup(env: &Env) -> Result<Option<Backup>> {
    let Some(note) = InPlace::read(env.environment.layout())? else {
        return Ok(None);
    };
    let path = InPlace::backup_of(&env.target.prefix);
    Ok(Some(Backup {
        files: note.entries,
        bytes: note.bytes,
        exists: note.is_at(&path),
        path: path.into(),
    }))
}

/// What to do if processes use a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfUsed {
    /// Fail.
    Refuse,
    /// Go on: they use the original until they end.
    Proceed,
}

/// What to do if something was changed since the import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfChanged {
    /// Fail.
    Refuse,
    /// Go on: the changes are lost.
    Proceed,
}

/// What to import.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// The directory, as the user gave it.
    pub dir: &'a Path,
    /// The name, if the user gave one.
    pub name: Option<&'a str>,
    /// How the image is made.
    pub options: NewOptions,
    /// What to do if processes use the directory.
    pub if_used: IfUsed,
}

/// Imports a directory and mounts the environment in its place. On failure the directory is as
/// before.
pub(super) fn import(
    context: &Context,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Imported> {
    let (output, store) = (&context.output, context.store()?);
    recovery::recover_all(output, &store)?;
    refuse_known(&store, request.dir)?;
    let prefix = Prefix::in_place(store.layout(), request.dir)?;
    creation::refuse_overlap(&store, &prefix.path)?;
    let dir = prefix.path.clone();
    let name = choose_name(&store, request, &dir)?;
    let words = format!("--in-place {}", word(request.dir));
    let original = in_place::check_original(&dir).map_err(Failure::from)?;
    refuse_used(&dir, request.if_used, &words)?;
    prefix::require_mount(&InPlace::backup_of(&dir))?;

    let options = creation::options_at(&store, prefix, &request.options, output)?;
    let survey = in_place::survey(&dir, progress).map_err(Failure::from)?;
    let new = store.create(&name)?;
    let mut note = in_place::begin(&new.layout(), original, &survey).map_err(Failure::from)?;
    let done = commit::import(&dir, new, &options, progress).map_err(Failure::from)?;
    let environment = done.environment.clone();

    let swapped = (|| {
        let lock = EnvLock::lock(environment.layout(), "import", LOCK_TIMEOUT)?;
        refuse_used(&dir, request.if_used, &words)?;
        let found = in_place::survey(&dir, progress).map_err(Failure::from)?;
        if !in_place::is_same(&note, &found) {
            return Err(Failure::from(CommitError::SourceChanged(dir.clone())).into());
        }
        in_place::swap_in(&dir, &note).map_err(Failure::from)?;
        drop(lock);
        Env::new(store.clone(), environment.clone())?.ensure_mounted()?;
        Ok(())
    })();
    if let Err(error) = swapped {
        return Err(take_back(environment, &dir, &mut note, error));
    }
    if let Err(error) = in_place::complete(&environment, &mut note) {
        output.warn(format!("the next command completes the import: {error}"));
    }
    Ok(Imported::of(&name, &options, &done))
}

/// Puts the original back after a failure, which it returns.
fn take_back(
    environment: Environment,
    dir: &Path,
    note: &mut InPlace,
    error: CommandError,
) -> CommandError {
    let name = environment.name().to_string();
    let undone = EnvLock::lock(environment.layout(), "import", LOCK_TIMEOUT)
        .map_err(Failure::from)
        .and_then(|lock| in_place::undo(environment, lock, dir, note).map_err(Failure::from));
    match undone {
        Ok(()) => error.hint(format!(
            "nothing was changed: {} is at its path",
            quoted(dir)
        )),
        Err(second) => error.hint(format!(
            "the directory could not be put back ({}): envfs import --undo {name}",
            second.message
        )),
    }
}

/// Fails if a path is in an environment of the store.
fn refuse_known(store: &Store, dir: &Path) -> Result<()> {
    let Some((known, inside)) = place::find(store, dir)? else {
        return Ok(());
    };
    let name = known.name();
    let what = match inside.as_os_str().is_empty() {
        true => format!("{} is the environment {name} already", quoted(dir)),
        false => format!("{} is inside the environment {name}", quoted(dir)),
    };
    Err(CommandError::new(Kind::Conflict, what)
        .hint(format!("envfs status {name} shows its state")))
}

fn choose_name(store: &Store, request: &Request<'_>, dir: &Path) -> Result<EnvName> {
    let again = format!("envfs import --in-place {} NAME", word(request.dir));
    let name = match request.name {
        Some(name) => EnvName::new(name)?,
        None => EnvName::for_directory(dir).map_err(|error| {
            CommandError::from(error).hint(format!("give the environment a name: {again}"))
        })?,
    };
    if store.exists(&name) {
        let exists = EnvironmentError::Exists {
            name: name.to_string(),
        };
        let mut error = CommandError::from(exists);
        error.hints = vec![format!("give another name: {again}")];
        return Err(error);
    }
    Ok(name)
}

/// Fails if processes use a directory, unless the user wants to go on. `words` are those
/// of the import to repeat.
fn refuse_used(dir: &Path, if_used: IfUsed, words: &str) -> Result<()> {
    let Ok(real) = fs::canonicalize(dir) else {
        return Ok(());
    };
    let users = holders::of_directory(&real);
    if if_used == IfUsed::Proceed || users.is_empty() {
        return Ok(());
    }
    let message = format!("{} is in use", quoted(dir));
    let mut error = CommandError::new(Kind::Busy, message);
    let shown = users.iter().take(10).map(ToString::to_string);
    error.details.extend(shown);
    if users.len() > 10 {
        error.details.push(format!("and {} more", users.len() - 10));
    }
    Err(error
        .hint("end these processes or leave the directory, then try again")
        .hint(format!(
            "or go on, and they use the original until they end: envfs import {words} --lazy"
        )))
}

/// Returns the note of an environment, or the error for one without a backup.
fn note_of(env: &Env) -> Result<InPlace> {
    InPlace::read(env.environment.layout())?.ok_or_else(|| {
        let message = format!(
            "{} has no backup: it was not imported in place, or that import is finished",
            env.name()
        );
        CommandError::new(Kind::Conflict, message)
    })
}

/// Deletes the original directory, which may have been changed since the import.
pub(super) fn finish(
    context: &Context,
    env: &Env,
    if_changed: IfChanged,
    if_used: IfUsed,
) -> Result<Backup> {
    let mut note = note_of(env)?;
    let prefix = &env.target.prefix;
    let path = InPlace::backup_of(prefix);
    if let Some(parent) = prefix.parent() {
        refuse_replaceable(parent)?;
    }
    // The environment can be read: it is about to be the only copy.
    env.service()?.status()?;
    let _lock = env
        .runtime
        .lock(&env.target.id, env.environment.layout().home())?;
    refuse_used(&path, if_used, &format!("--finish {}", env.name()))?;
    let progress = context.output.progress();
    let is_unchanged = match if_changed {
        IfChanged::Proceed => true,
        IfChanged::Refuse => {
            in_place::is_unchanged(prefix, &note, &progress).map_err(Failure::from)?
        }
    };
    progress.finish();
    if !is_unchanged {
        return Err(changed(env.name(), &path, &note));
    }
    in_place::finish(&env.environment, prefix, &mut note).map_err(Failure::from)?;
    Ok(Backup {
        path: path.into(),
        files: note.entries,
        bytes: note.bytes,
        exists: false,
    })
}

/// Returns the error for a backup that was changed since the import.
fn changed(name: &str, path: &Path, note: &InPlace) -> CommandError {
    let message = format!(
        "{} was changed since it was imported; the environment lacks these changes",
        quoted(path)
    );
    let mut error = CommandError::new(Kind::Conflict, message);
    let paths = in_place::changed_since(path, note.since, 10).unwrap_or_default();
    error.details.extend(paths.iter().map(quoted));
    error
        .hint("copy what you need from it into the environment")
        .hint(format!(
            "then delete it: envfs import --finish {name} --force"
        ))
}

/// Puts the original directory back and removes the environment, which may have been changed since
/// the import. Returns the path of the directory.
pub(super) fn undo(env: Env, if_changed: IfChanged) -> Result<PathBuf> {
    note_of(&env)?;
    if if_changed == IfChanged::Refuse {
        refuse_changed(&env)?;
    }
    lifecycle::ensure_unmounted(&env.target, &env.runtime, UnmountMode::Plain, &|| {})?;
    if if_changed == IfChanged::Refuse {
        // It may have been changed until it was unmounted.
        refuse_changed(&env)?;
    }
    let lock = EnvLock::lock(env.environment.layout(), "undo", LOCK_TIMEOUT)?;
    let mut note = note_of(&env)?;
    let prefix = env.target.prefix;
    if note.stage == Stage::Finishing {
        let message = format!("the backup of {} is being deleted", env.environment.name());
        return Err(CommandError::new(Kind::Conflict, message));
    }
    in_place::undo(env.environment, lock, &prefix, &mut note).map_err(Failure::from)?;
    Ok(prefix)
}

/// Fails if an environment has uncommitted changes other than Python's bytecode, or revisions after
/// the first.
fn refuse_changed(env: &Env) -> Result<()> {
    let name = env.name();
    let (revisions, _) = backend::history(&env.environment)?;
    let found = env.service()?.changes(&Selection::default())?;
    let lost = found
        .into_iter()
        .filter(|change| !is_bytecode(&change.path));
    let uncommitted = Summary::of(&lost.collect::<Vec<_>>());
    let mut what = Vec::new();
    if revisions.len() > 1 {
        what.push(format!(
            "{} after the import",
            count(revisions.len() as u64 - 1, "revision")
        ));
    }
    if !uncommitted.is_empty() {
        what.push(format!("uncommitted changes: {}", changes(&uncommitted)));
    }
    if what.is_empty() {
        return Ok(());
    }
    let message = format!("{name} has {}", what.join(" and "));
    let mut error = CommandError::new(Kind::Conflict, message);
    if !uncommitted.is_empty() {
        error = error.hint(format!("envfs diff {name} shows the uncommitted changes"));
    }
    Err(error
        .hint(format!(
            "to keep all of it: envfs commit {name} && envfs export {name} FILE.sqfs"
        ))
        .hint(format!(
            "then drop it and put the original back: envfs import --undo {name} --force"
        )))
}

/// Returns whether a path is bytecode that Python writes again when it is needed.
fn is_bytecode(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/')
        .any(|name| name == b"__pycache__")
}

/// Describes a backup and what can be done with it.
pub(super) fn describe(name: &str, backup: &Backup) -> String {
    let path = quoted(&backup.path.0);
    match backup.exists {
        true => format!(
            "{path} ({}, {}); delete it: envfs import --finish {name}",
            objects(backup.files),
            size(backup.bytes)
        ),
        false => format!("{path} is missing"),
    }
}
