//! Calls of commands into the modules below that more than one command makes or that need their types.

use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::error::{CommandError, Result};
use super::output::{ColorChoice, Output};
use crate::commit;
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::host::Mounted;
use crate::daemon::lifecycle::Served;
use crate::daemon::protocol::{Service, TagOptions};
use crate::daemon::service::{self, BRIEF, LOST, Local, mount_environment};
use crate::daemon::{lifecycle, log};
use crate::environment::{
    Config, EnvLock, EnvName, Environment, EnvironmentError, Garbage, Prefix, Store,
};
use crate::progress::Progress;
use crate::squashfs::Compression;
use crate::state::{ImageRow, Revision, RevisionId, StackPart, StateDb, Tag};
use crate::sys::process::error_text;
use crate::sys::text::{Text, quoted};
use crate::union::Reconciled;

/// What an environment's database says of it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Identity of the environment.
    pub id: String,
    /// Where it is mounted.
    pub prefix: PathBuf,
    /// The first of the files that are newer than the database.
    pub newer: Option<PathBuf>,
    /// The current revision.
    pub revision: Option<Revision>,
    /// Its image.
    pub image: Option<ImageRow>,
}

/// Opens the database of an environment for a look.
fn look(environment: &Environment) -> Result<StateDb> {
    let layout = environment.layout();
    let is_held = EnvLock::current_holder(layout).is_some();
    Ok(StateDb::open_read_only(&layout.state_db(), is_held)?)
}

/// Reads the database of an environment.
pub fn facts(environment: &Environment) -> Result<Facts> {
    let db = look(environment)?;
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

/// Warns where files of an environment are newer than its database.
pub fn warn_of_newer(environment: &Environment, facts: &Facts) {
    if let Some(newer) = &facts.newer {
        warn(format!(
            "{}: files are newer than the state database, which seems to be an older copy ({}); envfs verify \
             names them all",
            environment.name(),
            quoted(newer)
        ));
    }
}

/// Opens an environment that is not mounted, to work on it in this process.
pub fn local(environment: &Environment) -> Result<Box<dyn Service>> {
    let config = environment.store().config()?;
    let local = Local::open(environment.clone(), &config, "command", Duration::ZERO)?;
    tell_of_lost(environment, &local.reconciled().lost);
    Ok(Box::new(local))
}

/// Notes files whose content is lost where a daemon that finds such notes them, in its log, and warns of
/// them: what is not looked at now must not be forgotten.
fn tell_of_lost(environment: &Environment, lost: &[PathBuf]) {
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
                "this cannot be noted in its log: {}",
                error_text(&error)
            ));
        }
    }
}

/// Warns of files whose content is lost, and which a log names.
fn warn_of_lost(name: &str, count: usize, log: &Path) {
    if count > 0 {
        warn(format!(
            "{name}: changed files have lost their content: {count}; {} names them",
            quoted(log)
        ));
    }
}

/// Warns of what a daemon told about its mount when it began to serve.
pub fn warn_of_served(name: &str, served: &Served, log: &Path) {
    warn_of_lost(name, served.lost, log);
    for warning in &served.warnings {
        warn(warning.clone());
    }
}

/// Says why a mount takes long.
pub fn slow_start() {
    Output::new(ColorChoice::Auto, false).note(
        "waiting until the daemon has opened it (after an unclean end it compares rows and files)",
    );
}

pub(super) fn warn(text: String) {
    Output::new(ColorChoice::Auto, true).warn(text);
}

/// Opens and mounts an environment; called in its daemon.
pub fn mount(environment: &Environment, fakeroot: bool) -> Result<Mounted, Failure> {
    let config = environment.store().config()?;
    mount_environment(environment.clone(), &config, fakeroot)
}

/// How to make a new environment.
#[derive(Debug, Clone, Default)]
pub struct NewOptions {
    /// Where it is to be mounted, if not at the default place.
    pub prefix: Option<PathBuf>,
    /// Codec and level (`zstd:3`), if not the configured one.
    pub compression: Option<Compression>,
    /// Block size in bytes, if not the configured one.
    pub block_size: Option<u32>,
    /// Threads that compress, if not the configured number.
    pub threads: Option<NonZeroUsize>,
    /// Message for the history.
    pub message: String,
    /// Patterns of paths to exclude.
    pub exclude: Vec<PathBuf>,
    /// Where the image begins in the source, where it cannot be found.
    pub offset: Option<u64>,
}

/// The result of an import.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Imported {
    /// Name of the environment.
    pub name: String,
    /// Where it will be mounted.
    pub prefix: Text,
    /// Entries in the image.
    pub files: u64,
    /// Content of the files in bytes.
    pub content_bytes: u64,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// What is not as the source says.
    pub notes: Vec<String>,
}

/// Packs a directory, an archive or an image into a new environment.
pub fn import(
    store: &Store,
    name: &EnvName,
    source: &Path,
    options: &NewOptions,
    output: &Output,
    progress: &dyn Progress,
) -> Result<Imported> {
    refuse_existing(store, name)?;
    let options = import_options(store, name, options, output)?;
    let source = named(source, "import")?;
    let new = store.create(name)?;
    // Before the long work rather than after it.
    lifecycle::try_prefix(&options.prefix)?;
    let done = commit::import(&source, new, &options, progress).map_err(Failure::from)?;
    Ok(Imported {
        name: name.to_string(),
        prefix: options.prefix.into(),
        files: done.entries,
        content_bytes: done.content_bytes,
        image_bytes: done.image_bytes,
        notes: done.notes,
    })
}

/// Makes an empty environment.
pub fn create(
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

/// Resolves a path that the user gave.
fn named(path: &Path, doing: &str) -> Result<PathBuf> {
    fs::canonicalize(path)
        .map_err(|error| CommandError::of_named(format!("cannot {doing} {}", quoted(path)), &error))
}

/// Checked first: its prefix would be in the way, too.
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
    for warning in &prefix.warnings {
        output.warn(warning);
    }
    Ok(commit::ImportOptions {
        prefix: prefix.path,
        message: options.message.clone(),
        settings: settings(&store.config()?, options),
        exclude: options.exclude.clone(),
        offset: options.offset,
    })
}

/// Packs a directory into an image file, of which no environment is made.
pub fn pack(
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

/// Checks the prefix of a new environment, which must be no other's.
pub fn choose_prefix(store: &Store, name: &EnvName, wanted: Option<&Path>) -> Result<Prefix> {
    let prefix = Prefix::choose(store.layout(), name, wanted)?;
    for other in store.list()? {
        // A broken environment must not keep others from being made.
        let Ok(facts) = store
            .open(&other)
            .map_err(CommandError::from)
            .and_then(|other| facts(&other))
        else {
            continue;
        };
        let how = if facts.prefix == prefix.path {
            "is the prefix"
        } else if prefix.path.starts_with(&facts.prefix) {
            "is inside the prefix"
        } else if facts.prefix.starts_with(&prefix.path) {
            "is around the prefix"
        } else {
            continue;
        };
        return Err(CommandError::new(
            Kind::Conflict,
            format!(
                "{} {how} of {other} ({})",
                quoted(&prefix.path),
                quoted(&facts.prefix)
            ),
        )
        .hint("choose another path with --prefix"));
    }
    Ok(prefix)
}

/// Returns the history of an environment, oldest first.
pub fn history(environment: &Environment) -> Result<(Vec<Revision>, Vec<ImageRow>)> {
    let db = look(environment)?;
    Ok((db.revisions()?, db.images()?))
}

/// Returns the names of revisions.
pub fn tags(environment: &Environment) -> Result<Vec<Tag>> {
    let db = look(environment)?;
    Ok(db.tags()?)
}

/// Names a revision of an environment without a daemon, or takes a name away.
pub fn tag(environment: &Environment, options: &TagOptions) -> Result<()> {
    let _lock = EnvLock::try_lock(environment.layout(), "tag")?;
    let db = StateDb::open(&environment.layout().state_db())?;
    Ok(service::tag(&db, options)?)
}

/// Returns the number of a revision, `3` or `@3`.
pub fn number(text: &str) -> Option<i64> {
    text.strip_prefix('@').unwrap_or(text).parse().ok()
}

/// Returns the revision that is meant by a number, `@` and a number, or a name.
pub fn revision(environment: &Environment, text: &str) -> Result<i64> {
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

/// Copies an image without the paths that match the patterns.
pub fn export_without(
    source: &Path,
    exclude: &[PathBuf],
    to: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let done = commit::export_without(source, exclude, to, threads, progress);
    Ok(done.map_err(Failure::from)?)
}

/// Returns the image file of a revision, the current one if none is named.
pub fn image_file(environment: &Environment, revision: Option<i64>) -> Result<PathBuf> {
    let db = look(environment)?;
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
            format!("the image of revision {} is unknown", found.id),
        )
    })?;
    Ok(environment.layout().image(&row.file))
}

/// Reads through the database and all images of an environment; and compares its rows and files if nobody
/// has it open. Changes nothing, but for what every open of an environment does after an unclean end.
pub fn verify(environment: &Environment, progress: &dyn Progress) -> Result<commit::VerifyOutcome> {
    let layout = environment.layout();
    let config = environment.store().config()?;
    let settings = commit::Settings::from_config(&config);
    let odd = commit::unexpected_files(layout);
    let db = match look(environment) {
        // It may be why the database cannot be read.
        Err(_) if !odd.is_empty() => {
            return Ok(commit::VerifyOutcome {
                problems: odd,
                ..Default::default()
            });
        }
        looked => looked?,
    };
    let mut outcome =
        commit::verify(&db, layout, settings.threads, progress).map_err(Failure::from)?;
    outcome.problems.extend(odd);
    // Without whole images there is no view to look over.
    if !outcome.problems.is_empty() || EnvLock::current_holder(layout).is_some() {
        return Ok(outcome);
    }
    if db.was_clean()? {
        let _lock = match EnvLock::lock(layout, "verify", BRIEF) {
            // Its holder found no room to leave its name.
            Err(EnvironmentError::Held { .. }) => return Ok(outcome),
            locked => locked?,
        };
        let found = commit::examine(&db, layout).map_err(Failure::from)?;
        outcome.problems.extend(found);
        return Ok(outcome);
    }
    drop(db);
    match Local::open(environment.clone(), &config, "verify", BRIEF) {
        Err(failure) if failure.kind == Kind::Busy => {}
        Err(failure) if failure.kind == Kind::Damaged => outcome.problems.push(failure.message),
        opened => outcome
            .problems
            .extend(told(environment, opened?.reconciled())),
    }
    Ok(outcome)
}

/// Repairs what can be repaired of an environment that nobody has open: moves what lies in the place of its
/// files aside, and gives up content that is not there. Returns what was done, in words.
pub fn repair(environment: &Environment) -> Result<Vec<String>> {
    let layout = environment.layout();
    let config = environment.store().config()?;
    let mut done = Vec::new();
    if EnvLock::current_holder(layout).is_none() {
        done.extend(commit::set_unexpected_aside(layout).map_err(Failure::from)?);
    }
    {
        let _lock = EnvLock::lock(layout, "verify --repair", BRIEF)?;
        let db = StateDb::open(&layout.state_db())?;
        done.extend(commit::recreate_missing_uppers(&db, layout).map_err(Failure::from)?);
    }
    let local = Local::open(environment.clone(), &config, "verify --repair", BRIEF)?;
    tell_of_lost(environment, &local.reconciled().lost);
    done.extend(told(environment, local.reconciled()));
    Ok(done)
}

/// What was found and done when an environment was opened, in words.
fn told(environment: &Environment, found: &Reconciled) -> Vec<String> {
    let lost = found.lost.iter();
    let mut lines: Vec<String> = lost
        .map(|path| format!("{}: {LOST}", quoted(path)))
        .collect();
    if found.set_aside > 0 {
        lines.push(format!(
            "files that belonged to nothing were set aside in {}: {}",
            quoted(environment.layout().strays()),
            found.set_aside
        ));
    }
    lines
}

/// Forgets old revisions, and removes images and discarded changes that nothing needs any more.
/// For an environment without a daemon.
pub fn gc(environment: &Environment, options: commit::GcOptions) -> Result<commit::Collected> {
    let layout = environment.layout();
    if options.dry_run {
        let db = look(environment)?;
        return Ok(commit::gc(&db, layout, options).map_err(Failure::from)?);
    }
    let _lock = EnvLock::try_lock(layout, "gc")?;
    let db = StateDb::open(&layout.state_db())?;
    Ok(commit::gc(&db, layout, options).map_err(Failure::from)?)
}

/// Returns what interrupted commands left in the store.
pub fn garbage(store: &Store) -> Result<Vec<Garbage>> {
    Ok(store.garbage()?)
}

/// Returns a file's content in the current revision, or `None` where it is no regular file there.
pub fn committed_content(environment: &Environment, path: &Path) -> Result<Option<Vec<u8>>> {
    let db = look(environment)?;
    Ok(commit::committed_content(&db, environment.layout(), path).map_err(Failure::from)?)
}

/// Returns whether an environment that is not open has uncommitted changes, or may have.
pub fn has_changes(environment: &Environment) -> Result<bool> {
    let db = look(environment)?;
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

/// Returns how much the changes of an environment hold: files and bytes on disk.
pub fn upper_use(environment: &Environment) -> Result<(u64, u64)> {
    let db = look(environment)?;
    Ok(service::upper_use(&db, environment.layout())?)
}
