//! `envfs remove`

use std::fs;
use std::io;
use std::path::Path;

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::conda_list;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::in_place;
use crate::cli::launchers;
use crate::cli::output::{count, size};
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle;
use crate::daemon::service::LOCK_TIMEOUT;
use crate::environment::{EnvLock, SessionNotes};
use crate::shell::render::word;
use crate::sys::mount::UnmountMode;
use crate::sys::text::quoted;

/// Remove an environment with its images, changes and history.
///
/// Asks for confirmation, as this cannot be undone. Exported images are copies and are kept, and so
/// is the original directory of an environment that was imported in place.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Environment.
    name: String,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(Some(&self.name))?;
        let (revisions, images) = backend::history(&env.environment)?;
        let (_, upper_bytes) = backend::upper_use(&env.environment)?;
        let bytes: u64 = images.iter().map(|image| image.size).sum::<u64>() + upper_bytes;
        let question = format!(
            "Permanently remove {} with {} ({})?",
            env.name(),
            count(revisions.len() as u64, "revision"),
            size(bytes)
        );
        let backup = in_place::backup(&env)?.filter(|backup| backup.exists);
        refuse_used(&env)?;
        if !self.yes {
            if backup.is_some() {
                context.output.note(format!(
                    "{0} was imported in place: envfs import --undo {0} puts the original directory back",
                    env.name()
                ));
            }
            context.output.confirm(&question)?;
        }
        let (name, prefix) = (env.name().to_owned(), env.target.prefix.clone());
        remove_environment(env)?;
        context.output.note(format!("removed {name}"));
        if let Some(backup) = backup {
            context.output.note(format!(
                "its original directory is still there; to put it back: mv {} {}",
                word(backup.path.as_path()),
                word(&prefix)
            ));
        }
        Ok(())
    }
}

/// Fails if sessions use the environment: another host could not read its image any more.
fn refuse_used(env: &Env) -> Result<()> {
    let notes = SessionNotes::new(env.environment.layout().sessions());
    let noted = notes.read().unwrap_or_default();
    let used: Vec<_> = noted.iter().filter(|noted| noted.is_live).collect();
    let Some(first) = used.first() else {
        return Ok(());
    };
    let mut error = CommandError::new(Kind::Busy, format!("{} is in use", env.name()));
    for noted in used.iter().take(10) {
        let note = &noted.note;
        error.details.push(format!(
            "{} session of {}@{} at {}, {}",
            note.kind.word(),
            note.name,
            note.revision,
            quoted(&note.mount_point.0),
            note.process
        ));
    }
    let note = &first.note;
    Err(error.hint(format!(
        "end it on {}: envfs unmount {}@{}",
        note.process.host,
        env.name(),
        note.revision
    )))
}

/// Unmounts an environment and removes it with all its files and its mount point.
pub(crate) fn remove_environment(env: Env) -> Result<()> {
    lifecycle::ensure_unmounted(&env.target, &env.runtime, UnmountMode::Plain, &|| {})?;
    let lock = EnvLock::lock(env.environment.layout(), "remove", LOCK_TIMEOUT)?;
    let exposures = launchers::recorded(env.environment.layout());
    env.environment.remove_files(lock)?;
    launchers::remove_all(&exposures, &env.target.id);
    remove_prefix(&env.target.prefix);
    conda_list::remove(&env.target.prefix);
    Ok(())
}

/// Removes the empty directory where an environment was mounted.
pub(crate) fn remove_prefix(prefix: &Path) {
    match fs::remove_dir(prefix) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // It may not be empty, or its parent may not be writable.
        Err(error) => {
            tracing::info!(%error, path = %prefix.display(), "cannot remove the prefix")
        }
    }
}
