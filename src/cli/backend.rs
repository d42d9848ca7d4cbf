//! Calls into the modules below that several commands share.

use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::context::Env;
use super::error::{CommandError, Result};
use super::output::{ColorChoice, Output, Verbosity};
use super::relocation::{self, Moved};
use crate::commit::{self, Force, Relocate};
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::host::Mounted;
use crate::daemon::lifecycle::{StartReport, Target};
use crate::daemon::private::PrivateSpec;
use crate::daemon::protocol::{Selection, Service, TagOptions};
use crate::daemon::service::{self, LOCK_TIMEOUT, LOST, Local, mount_environment};
use crate::daemon::{lifecycle, log};
use crate::environment::{
    Config, EnvLock, EnvName, Environment, EnvironmentError, Garbage, Prefix, Store, real_path,
};
use crate::packages::{self, Differences, Files};
use crate::progress::Progress;
use crate::squashfs::Compression;
use crate::state::{
    ImageRow, Layer, LockState, Operation, Revision, RevisionId, StackPart, StateDb, Tag,
};
use crate::sys::mount::Rights;
use crate::sys::process::error_text;
use crate::sys::text::{Text, quoted};
use crate::union::Reconciled;

/// The contents of an environment's database that most commands need.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Identity of the environment.
    pub id: String,
    /// The path where it is mounted.
    pub prefix: PathBuf,
    /// The first file that is newer than the database, if any.
    pub newer: Option<PathBuf>,
    /// The current revision.
    pub revision: Option<Revision>,
    /// Its image.
    pub image: Option<ImageRow>,
}

/// Opens the database of an environment for reading. Changes nothing if the caller may not write
/// there: the note of the lock may not be readable then.
fn open_read_only(environment: &Environment) -> Result<StateDb> {
    let layout = environment.layout();
    let may_write = nix::unistd::access(layout.home(), nix::unistd::AccessFlags::W_OK).is_ok();
    let lock = match EnvLock::current_holder(layout) {
        None if may_write => LockState::Free,
        _ => LockState::Held,
    };
    Ok(StateDb::open_read_only(&layout.state_db(), lock)?)
}

/// Reads the database of an environment.
pub(super) fn facts(environment: &Environment) -> Result<Facts> {
    let db = open_read_only(environment)?;
    let missing = |what: &str| {
        CommandError::new(
            Kind::Damaged,
            format!("the database of {} lacks {what}", environment.name()),
        )
    };
    let revision = db.current_revision()?;
    let image = match &revision {
        Some(revision) => db.image(revision.image)?,
        None => None,
    };
    let newer = commit::newer_files(&db, environment.layout()).map_err(Failure::from)?;
    Ok(Facts {
        id: db.uuid()?.ok_or_else(|| missing("its identity"))?,
        prefix: db.prefix()?.ok_or_else(|| missing("its prefix"))?,
        newer: newer.into_iter().next(),
        revision,
        image,
    })
}

/// Warns if files of an environment are newer than its database.
pub(super) fn warn_of_newer(environment: &Environment, facts: &Facts) {
    if let Some(newer) = &facts.newer {
        warn(format!(
            "{}: files are newer than the state database, which may be an older copy ({}); envfs verify \
             lists them",
            environment.name(),
            quoted(newer)
        ));
    }
}

/// Opens an environment that is not mounted, as a service in this process.
pub(super) fn local(environment: &Environment) -> Result<Box<dyn Service>> {
    let config = environment.store().config()?;
    let local = Local::open(environment.clone(), &config, "command", Duration::ZERO)?;
    report_lost(environment, &local.reconciled().lost);
    Ok(Box::new(local))
}

/// Writes the names of files that lost their content to the log, as a daemon does, and prints a
/// warning. So they are on record even if the warning is overlooked.
fn report_lost(environment: &Environment, lost: &[PathBuf]) {
    if lost.is_empty() {
        return;
    }
    let layout = environment.layout();
    let noted = log::open(layout, log::LIMIT).and_then(|mut log| {
        lost.iter()
            .try_for_each(|path| writeln!(log, "{}: {LOST}", quoted(path)))
    });
    let name = environment.name().as_str();
    match noted {
        Ok(()) => warn_of_lost(name, lost.len(), &layout.daemon_log()),
        Err(error) => {
            for path in lost {
                warn(format!("{name}: {}: {LOST}", quoted(path)));
            }
            warn(format!(
                "cannot write this to the log: {}",
                error_text(&error)
            ));
        }
    }
}

/// Warns of files that lost their content; their names are in the log.
fn warn_of_lost(name: &str, count: usize, log: &Path) {
    if count > 0 {
        warn(format!(
            "{name}: changed files have lost their content: {count}; see {}",
            quoted(log)
        ));
    }
}

/// Prints the warnings that a daemon reported when it was started.
pub(super) fn print_start_warnings(name: &str, report: &StartReport, log: &Path) {
    warn_of_lost(name, report.lost, log);
    for warning in &report.warnings {
        warn(warning.clone());
    }
}

/// Explains why mounting takes long.
pub(super) fn slow_start() {
    Output::new(ColorChoice::Auto, Verbosity::Normal).note(
        "waiting for the daemon to open the environment (after an unclean shutdown it repairs it)",
    );
}

pub(super) fn warn(text: String) {
    Output::new(ColorChoice::Auto, Verbosity::Quiet).warn(text);
}

/// Opens and mounts an environment, privately if that is described. Called in its daemon.
pub(super) fn mount(
    env: &Env,
    rights: Rights,
    private: Option<&PrivateSpec>,
) -> Result<Mounted, Failure> {
    let Target { prefix, id, .. } = &env.target;
    let request = || service::mount_request(prefix.clone(), id.clone(), rights);
    // Before anything is opened: there must be no thread yet.
    let private = private.map(|spec| spec.mount(&request())).transpose()?;
    let config = env.environment.store().config()?;
    mount_environment(env.environment.clone(), &config, rights, private)
}

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
    let source = named(source, "import")?;
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
    lifecycle::try_prefix(&options.prefix)?;
    let done = commit::import(&source, new, &options, progress).map_err(Failure::from)?;
    Ok(Imported::of(name, &options, &done))
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
    lifecycle::try_prefix(&options.prefix)?;
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
        Some(text) => Some(revision(&source.environment, text)?),
        None => None,
    };
    // Fails if there is no such revision.
    image_file(&source.environment, number)?;
    let db = open_read_only(&source.environment)?;
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
    lifecycle::try_prefix(&prefix.path)?;
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

/// Returns the files that were read first after the mounts of an environment, in order. Empty if
/// none were recorded.
pub(super) fn used_first(environment: &Environment) -> Result<Vec<PathBuf>> {
    let db = open_read_only(environment)?;
    Ok(commit::paths_used_first(environment.layout(), &db).map_err(Failure::from)?)
}

/// Resolves a path given by the user.
fn named(path: &Path, doing: &str) -> Result<PathBuf> {
    fs::canonicalize(path)
        .map_err(|error| CommandError::of_named(format!("cannot {doing} {}", quoted(path)), &error))
}

/// Fails if the environment exists. This check comes first, as its prefix would conflict as well.
fn refuse_existing(store: &Store, name: &EnvName) -> Result<()> {
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
    for (other, prefix) in prefixes(store)? {
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

/// Returns the prefixes of all environments, without those whose database cannot be read.
pub(super) fn prefixes(store: &Store) -> Result<Vec<(EnvName, PathBuf)>> {
    let mut prefixes = Vec::new();
    for name in store.list()? {
        let opened = store.open(&name).map_err(CommandError::from);
        let prefix = opened.and_then(|environment| prefix(&environment));
        if let Ok(Some(prefix)) = prefix {
            prefixes.push((name, prefix));
        }
    }
    Ok(prefixes)
}

/// Returns the prefix of an environment.
pub(super) fn prefix(environment: &Environment) -> Result<Option<PathBuf>> {
    Ok(open_read_only(environment)?.prefix()?)
}

/// Returns the history of an environment, oldest first.
pub(super) fn history(environment: &Environment) -> Result<(Vec<Revision>, Vec<ImageRow>)> {
    let db = open_read_only(environment)?;
    Ok((db.revisions()?, db.images()?))
}

/// Returns the log of operations of an environment, oldest first, and its layers.
pub(super) fn operations(environment: &Environment) -> Result<(Vec<Operation>, Vec<Layer>)> {
    let db = open_read_only(environment)?;
    Ok((db.operations()?, db.layers()?))
}

/// Returns the tags of an environment.
pub(super) fn tags(environment: &Environment) -> Result<Vec<Tag>> {
    let db = open_read_only(environment)?;
    Ok(db.tags()?)
}

/// Sets or deletes a tag of an environment without a daemon.
pub(super) fn tag(environment: &Environment, options: &TagOptions) -> Result<()> {
    let _lock = EnvLock::try_lock(environment.layout(), "tag")?;
    let db = StateDb::open(&environment.layout().state_db())?;
    Ok(service::tag(&db, options)?)
}

/// Parses the number of a revision, `3` or `@3`.
pub(super) fn number(text: &str) -> Option<i64> {
    text.strip_prefix('@').unwrap_or(text).parse().ok()
}

/// Returns the revision given by number (`3` or `@3`) or by tag.
pub(super) fn revision(environment: &Environment, text: &str) -> Result<i64> {
    if let Some(number) = number(text) {
        return Ok(number);
    }
    let tags = tags(environment)?;
    let found = tags.iter().find(|tag| tag.name == text);
    found.map(|tag| tag.revision.0).ok_or_else(|| {
        let name = environment.name();
        let message = format!("{name} has no revision {}", quoted(text));
        CommandError::new(Kind::NotFound, message)
            .hint(format!("envfs log {name} shows numbers and tags"))
    })
}

/// Copies an image, except the paths that match the patterns.
pub(super) fn export_without(
    source: &Path,
    exclude: &[PathBuf],
    to: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let done = commit::export_without(source, exclude, to, threads, progress);
    Ok(done.map_err(Failure::from)?)
}

/// Returns the image file of a revision, by default the current one.
pub(super) fn image_file(environment: &Environment, revision: Option<i64>) -> Result<PathBuf> {
    let db = open_read_only(environment)?;
    let found = match revision {
        Some(number) => db.revision(RevisionId(number))?.ok_or_else(|| {
            CommandError::new(
                Kind::NotFound,
                format!("{} has no revision {number}", environment.name()),
            )
            .hint(format!("envfs log {} shows them", environment.name()))
        })?,
        None => db.current_revision()?.ok_or_else(|| {
            CommandError::new(
                Kind::Damaged,
                format!("{} has no revision", environment.name()),
            )
        })?,
    };
    let row = db.image(found.image)?.ok_or_else(|| {
        CommandError::new(
            Kind::Damaged,
            format!("the database lacks the image of revision {}", found.id),
        )
    })?;
    Ok(environment.layout().image(&row.file))
}

/// Verifies the database and all images of an environment, and compares rows and files unless
/// another process has it open. Changes nothing, except that opening an environment after an
/// unclean shutdown reconciles it.
pub(super) fn verify(
    environment: &Environment,
    progress: &dyn Progress,
) -> Result<commit::VerifyOutcome> {
    let layout = environment.layout();
    let config = environment.store().config()?;
    let settings = commit::Settings::from_config(&config);
    let unexpected = commit::unexpected_files(layout);
    let db = match open_read_only(environment) {
        // These may be the reason why the database cannot be read.
        Err(_) if !unexpected.is_empty() => {
            return Ok(commit::VerifyOutcome {
                problems: unexpected,
                ..Default::default()
            });
        }
        opened => opened?,
    };
    let mut outcome =
        commit::verify(&db, layout, settings.threads, progress).map_err(Failure::from)?;
    outcome.problems.extend(unexpected);
    // The merged view needs complete images.
    if !outcome.problems.is_empty() || EnvLock::current_holder(layout).is_some() {
        return Ok(outcome);
    }
    if db.was_clean()? {
        let _lock = match EnvLock::lock(layout, "verify", LOCK_TIMEOUT) {
            // The holder wrote no note, because the disk is full.
            Err(EnvironmentError::Held { .. }) => return Ok(outcome),
            locked => locked?,
        };
        let found = commit::verify_uppers(&db, layout).map_err(Failure::from)?;
        outcome.problems.extend(found);
        return Ok(outcome);
    }
    drop(db);
    match Local::open(environment.clone(), &config, "verify", LOCK_TIMEOUT) {
        Err(failure) if failure.kind == Kind::Busy => {}
        Err(failure) if failure.kind == Kind::Damaged => outcome.problems.push(failure.message),
        opened => outcome
            .problems
            .extend(describe_reconciled(environment, opened?.reconciled())),
    }
    Ok(outcome)
}

/// Verifies the image of one revision.
pub(super) fn verify_revision(
    environment: &Environment,
    number: i64,
    progress: &dyn Progress,
) -> Result<commit::VerifyOutcome> {
    let db = open_read_only(environment)?;
    let settings = commit::Settings::from_config(&environment.store().config()?);
    let (layout, id) = (environment.layout(), RevisionId(number));
    let done = commit::verify_revision(&db, layout, id, settings.threads, progress);
    Ok(done.map_err(Failure::from)?)
}

/// Repairs an environment that no process has open, as far as possible: moves unexpected files in
/// its home aside, and drops changes whose content is missing. Returns a description of each step.
pub(super) fn repair(environment: &Environment) -> Result<Vec<String>> {
    let layout = environment.layout();
    let config = environment.store().config()?;
    let mut done = Vec::new();
    if EnvLock::current_holder(layout).is_none() {
        done.extend(commit::set_unexpected_aside(layout).map_err(Failure::from)?);
    }
    {
        let _lock = EnvLock::lock(layout, "repair", LOCK_TIMEOUT)?;
        let db = StateDb::open(&layout.state_db())?;
        done.extend(commit::recreate_missing_uppers(&db, layout).map_err(Failure::from)?);
    }
    let local = Local::open(environment.clone(), &config, "repair", LOCK_TIMEOUT)?;
    report_lost(environment, &local.reconciled().lost);
    done.extend(describe_reconciled(environment, local.reconciled()));
    Ok(done)
}

/// Describes the problems found and repaired when an environment was opened.
fn describe_reconciled(environment: &Environment, found: &Reconciled) -> Vec<String> {
    let lost = found.lost.iter();
    let mut lines: Vec<String> = lost
        .map(|path| format!("{}: {LOST}", quoted(path)))
        .collect();
    if found.set_aside > 0 {
        lines.push(format!(
            "unreferenced files were moved to {}: {}",
            quoted(environment.layout().strays()),
            found.set_aside
        ));
    }
    lines
}

/// Removes old revisions, and images and discarded changes that are no longer needed, of an
/// environment without a daemon.
pub(super) fn gc(
    environment: &Environment,
    options: commit::GcOptions,
) -> Result<commit::Collected> {
    let layout = environment.layout();
    if options.dry_run {
        let db = open_read_only(environment)?;
        return Ok(commit::gc(&db, layout, options).map_err(Failure::from)?);
    }
    let _lock = EnvLock::try_lock(layout, "gc")?;
    let db = StateDb::open(&layout.state_db())?;
    Ok(commit::gc(&db, layout, options).map_err(Failure::from)?)
}

/// Returns remains of interrupted commands in the store.
pub(super) fn garbage(store: &Store) -> Result<Vec<Garbage>> {
    Ok(store.garbage()?)
}

/// Returns the selected differences from a revision to another, by default to the current one.
pub(super) fn differences(
    environment: &Environment,
    old: i64,
    new: Option<i64>,
    selection: &Selection,
) -> Result<Differences> {
    let old = open_revision(environment, Some(old))?;
    let new = open_revision(environment, new)?;
    let found = commit::difference(&old, &new).map_err(Failure::from)?;
    tracing::debug!(inodes_read = found.inodes_read, "compared");
    let (old, new) = (old.stack(), new.stack());
    let (before, after) = (Files::of(&old), Files::of(&new));
    let chosen = service::paths_of(selection);
    service::refuse_unknown(&chosen, &[&before, &after])?;
    Ok(packages::differences(found.changes, &before, &after).among(&chosen))
}

/// Opens a revision for reading, by default the current one.
pub(super) fn open_revision(
    environment: &Environment,
    number: Option<i64>,
) -> Result<commit::OpenRevision> {
    let db = open_read_only(environment)?;
    let id = number.map(RevisionId);
    let opened = commit::OpenRevision::open(&db, environment.layout(), id);
    Ok(opened.map_err(Failure::from)?)
}

/// Fails if an environment does not have a revision.
pub(super) fn check_revision(environment: &Environment, number: i64) -> Result<()> {
    image_file(environment, Some(number)).map(drop)
}

/// Returns whether an environment that is not open has uncommitted changes. After an unclean
/// shutdown it may have some, so the result is true.
pub(super) fn has_changes(environment: &Environment) -> Result<bool> {
    let db = open_read_only(environment)?;
    if !db.was_clean()? {
        return Ok(true);
    }
    for layer in db.stack()? {
        let is_upper = !matches!(layer.part, StackPart::Image(_));
        if is_upper && !db.load_layer(layer.id)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the files and the bytes on disk that the changes of an environment use.
pub(super) fn upper_use(environment: &Environment) -> Result<(u64, u64)> {
    let db = open_read_only(environment)?;
    Ok(service::upper_use(&db, environment.layout())?)
}
