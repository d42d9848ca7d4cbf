//! Calls into the modules below that several commands share.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{CommandError, Result};
use super::output::{ColorChoice, Output, Verbosity};
use crate::commit;
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::log;
use crate::daemon::protocol::{Selection, Service, StartReport, TagOptions};
use crate::daemon::repairs::LOST;
use crate::daemon::selection;
use crate::daemon::service::{self, Local};
use crate::environment::{EnvLock, EnvName, Environment, Garbage, Store};
use crate::packages::{self, Differences, Files};
use crate::progress::Progress;
use crate::state::{
    ImageRow, Layer, LockState, Operation, Revision, RevisionId, StackPart, StateDb, Tag,
};
use crate::sys::process::error_text;
use crate::sys::text::quoted;
use crate::union;

/// The contents of an environment's database that most commands need.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Identity of the environment.
    pub id: String,
    /// Identity of its history, which copies keep.
    pub origin: String,
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
pub(super) fn open_read_only(environment: &Environment) -> Result<StateDb> {
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
        origin: db.origin()?.ok_or_else(|| missing("its origin"))?,
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
pub(super) fn report_lost(environment: &Environment, lost: &[PathBuf]) {
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

/// Returns the files that were read first after the mounts of an environment, in order. Empty if
/// none were recorded.
pub(super) fn used_first(environment: &Environment) -> Result<Vec<PathBuf>> {
    let db = open_read_only(environment)?;
    Ok(commit::paths_used_first(environment.layout(), &db).map_err(Failure::from)?)
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

/// Prepares the archive of a history.
pub(super) fn prepare_history(
    environment: &Environment,
    revision: Option<i64>,
    progress: &dyn Progress,
) -> Result<commit::HistoryExport> {
    let (layout, name) = (environment.layout(), environment.name());
    let db = open_read_only(environment)?;
    let revision = revision.map(RevisionId);
    let history = commit::HistoryExport::of(&db, layout, name, revision, progress);
    Ok(history.map_err(Failure::from)?)
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

/// Returns the bytes on the disk that are freed if the revision with this image is removed.
pub(super) fn frees(environment: &Environment, all: &[Revision], image: &ImageRow) -> u64 {
    let users = all.iter().filter(|revision| revision.image == image.id);
    match users.count() {
        1 => commit::own_bytes(environment.layout(), image),
        _ => 0,
    }
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
    let db = open_read_only(environment)?;
    let found = commit::difference(&db, environment.layout(), &old, &new).map_err(Failure::from)?;
    among(found, &old, &new, selection)
}

/// Returns the selected differences from a revision of an environment to one of another.
pub(super) fn differences_between(
    old: &commit::OpenRevision,
    new: &commit::OpenRevision,
    selection: &Selection,
) -> Result<Differences> {
    let found = commit::difference_between(old, new).map_err(Failure::from)?;
    among(found, old, new, selection)
}

fn among(
    found: union::Difference,
    old: &commit::OpenRevision,
    new: &commit::OpenRevision,
    selection: &Selection,
) -> Result<Differences> {
    tracing::debug!(inodes_read = found.inodes_read, "compared");
    let (old, new) = (old.stack(), new.stack());
    let (before, after) = (Files::of(&old), Files::of(&new));
    let chosen = selection::paths_of(selection);
    selection::refuse_unknown(&chosen, &[&before, &after])?;
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

/// Determines the space that a revision takes, by default the current one. Returns its number, too.
pub(super) fn space(
    environment: &Environment,
    revision: Option<i64>,
    progress: &dyn Progress,
) -> Result<(i64, commit::Space)> {
    let opened = open_revision(environment, revision)?;
    let space = commit::space(&opened, progress).map_err(Failure::from)?;
    Ok((opened.revision.id.0, space))
}

/// Returns the files with content that is not committed.
pub(super) fn uncommitted(environment: &Environment) -> Result<Vec<commit::Uncommitted>> {
    let db = open_read_only(environment)?;
    let found = commit::uncommitted(&db, environment.layout());
    Ok(found.map_err(Failure::from)?)
}

/// Returns the files and the bytes on disk that the changes of an environment use.
pub(super) fn upper_use(environment: &Environment) -> Result<(u64, u64)> {
    let db = open_read_only(environment)?;
    Ok(service::upper_use(&db, environment.layout())?)
}
