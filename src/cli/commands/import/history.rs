//! `envfs import` of the archive of a history.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Args;
use crate::cli::commands::relocate::refuse_unless_idle;
use crate::cli::context::{Context, Env};
use crate::cli::creation;
use crate::cli::error::{CommandError, Result};
use crate::cli::launchers;
use crate::cli::output;
use crate::cli::relocation::{self, Moved};
use crate::commit::{self, HistoryArchive, Relation, command_line};
use crate::daemon::failure::{Failure, Kind};
use crate::environment::EnvName;
use crate::shell::render::word;
use crate::sys::text::{Text, quoted};

/// What was imported.
#[derive(Debug, Serialize)]
struct Imported {
    name: String,
    prefix: Text,
    /// Identity of the history.
    origin: String,
    /// The revisions that were added.
    revisions: Vec<i64>,
    /// The current revision.
    current: i64,
    /// Tags of the archive that the environment has on other revisions, and that were not moved.
    other_tags: Vec<String>,
    /// How files were rewritten, if they contained another prefix.
    relocated: Option<Moved>,
}

/// Makes an environment of the archive, or adds its new revisions to one of the same origin.
/// `shown` is the name of the source for messages.
pub(super) fn import(context: &Context, args: &Args, source: &Path, shown: &str) -> Result<()> {
    refuse_options(args)?;
    let source = std::path::absolute(source).unwrap_or_else(|_| source.to_owned());
    let archive = HistoryArchive::open(&source).map_err(Failure::from)?;
    let name = EnvName::new(args.name.as_deref().unwrap_or(archive.name()))?;
    let imported = match context.store()?.exists(&name) {
        true => forward(
            context,
            args,
            &archive,
            &context.environment(Some(name.as_str()))?,
            shown,
        )?,
        false => create(context, args, &archive, &name)?,
    };
    let Some(imported) = imported else {
        return Ok(());
    };
    let out = &context.output;
    if let Some(moved) = &imported.relocated {
        moved.warn(out);
    }
    if !imported.other_tags.is_empty() {
        out.warn(format!(
            "tags that {name} has on other revisions were not moved: {}",
            imported.other_tags.join(", ")
        ));
    }
    if args.json {
        return out.json(&imported);
    }
    out.note(format!(
        "{name}: imported {}; revision {} is current",
        output::count(imported.revisions.len() as u64, "revision"),
        imported.current
    ));
    if let Some(moved) = &imported.relocated {
        out.note(format!(
            "  relocated from {} to {}: {}",
            moved.sources(),
            quoted(&imported.prefix.0),
            moved.describe()
        ));
    }
    out.note(format!("Use it: envfs activate {name}"));
    Ok(())
}

/// Fails if an option is given that has no effect on images that exist already.
pub(super) fn refuse_options(args: &Args) -> Result<()> {
    let pack = &args.options.pack;
    let given = [
        ("--compression", pack.compression.is_some()),
        ("--compress-level", pack.compress_level.is_some()),
        ("--block-size", pack.block_size.is_some()),
        ("--message", !args.options.message.is_empty()),
        ("--exclude", !args.exclude.exclude.is_empty()),
        ("--offset", args.offset.is_some()),
        ("--profile", args.profile.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((option, _)) => {
            let message = format!("{option} has no effect on the archive of a history");
            Err(CommandError::usage(message).hint("its images and messages are kept as they are"))
        }
    }
}

fn create(
    context: &Context,
    args: &Args,
    archive: &HistoryArchive,
    name: &EnvName,
) -> Result<Option<Imported>> {
    let options = args.options.to_new_options();
    let options = creation::NewOptions {
        relocate: relocation::force(args.no_relocate, args.force),
        ..options
    };
    let (out, progress) = (&context.output, context.output.progress());
    let store = context.store()?;
    let (done, prefix) = creation::import_history(&store, name, archive, &options, out, &progress)?;
    progress.finish();
    let moved = done.relocated.as_ref().map(|done| Moved::of(done, &prefix));
    let current = moved.as_ref().and_then(|moved| moved.revision);
    Ok(Some(Imported {
        name: name.to_string(),
        prefix: prefix.into(),
        origin: archive.origin().to_owned(),
        revisions: archive.revisions(),
        current: current.unwrap_or(archive.current()),
        other_tags: Vec::new(),
        relocated: moved,
    }))
}

/// Adds new revisions to an environment. Returns `None` if there are none.
fn forward(
    context: &Context,
    args: &Args,
    archive: &HistoryArchive,
    env: &Env,
    file: &str,
) -> Result<Option<Imported>> {
    let name = env.name();
    if args.options.prefix.is_some() || args.no_relocate || args.force {
        let message = format!("{name} exists, so its prefix does not change");
        return Err(CommandError::usage(message)
            .hint("to make another environment of the archive, give another name"));
    }
    refuse_unless_idle(env)?;
    let local = relocation::open(env)?;
    let progress = context.output.progress();
    let relation = commit::relation(local.workspace(), archive, &progress);
    let again = |other: &str| format!("envfs import {} {other}", word(archive.path()));
    let other = format!("{name}-2");
    match relation.map_err(Failure::from)? {
        Relation::Newer(_) => {}
        Relation::Contained => {
            progress.finish();
            context
                .output
                .note(format!("{name}: already has all revisions of {file}"));
            return Ok(None);
        }
        Relation::Unrelated => {
            let message = format!("{name} exists, and {file} has another history");
            return Err(CommandError::new(Kind::Conflict, message).hint(format!(
                "to import it under another name: {}",
                again(&other)
            )));
        }
        Relation::Diverged(number) => {
            let message =
                format!("the histories of {name} and {file} differ from revision {number} on");
            return Err(CommandError::new(Kind::Conflict, message).hint(format!(
                "to import it beside {name} and compare: {}; envfs diff {name}@{number} \
                 {other}@{number}",
                again(&other)
            )));
        }
    }
    if relocation::has_changes(local.workspace())? {
        let message = format!("{name} has uncommitted changes");
        return Err(CommandError::new(Kind::Conflict, message).hint(format!(
            "envfs commit {name}, or drop them: envfs discard {name}"
        )));
    }
    let done = commit::forward(local.workspace(), archive, &command_line(), &progress);
    let done = done.map_err(Failure::from)?;
    progress.finish();
    drop(local);
    let prefix = &env.target.prefix;
    if archive.prefix() != prefix {
        context.output.warn(format!(
            "files of the new revisions may contain the prefix {}, which is not that of {name}: \
             envfs doctor {name}",
            quoted(archive.prefix())
        ));
    }
    launchers::renew_all(&context.environment(Some(name))?, &context.output);
    Ok(Some(Imported {
        name: name.to_owned(),
        prefix: PathBuf::from(prefix).into(),
        origin: archive.origin().to_owned(),
        revisions: done.revisions,
        current: done.current,
        other_tags: done.other_tags,
        relocated: None,
    }))
}
