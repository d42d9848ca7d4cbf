//! `envfs relocate`

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::conda_list;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::launchers;
use crate::cli::relocation::{self, Moved};
use crate::commit::{Force, command_line};
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle::State;
use crate::daemon::prefix;
use crate::environment::InPlace;
use crate::relocate::{Action, EditKind, Plan};
use crate::sys::text::{Text, quoted};

/// Move an environment to another path.
///
/// Conda and Python environments contain their own path in their files: in the first lines of
/// scripts, in activation scripts, in compiled programs. They are rewritten, as conda does when it
/// installs packages, and committed as a new revision together with the new prefix. Nothing is
/// downloaded. Unmount the environment and commit your changes first.
///
/// If a file has no space for the new path, nothing is changed. With --force such files stay as
/// they are. Without PREFIX, files that contain another path of the environment get the current
/// one, for example after a rollback to a revision from before a move.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs relocate science ~/envs/science\n  envfs relocate --dry-run science /scratch/me/science\n  envfs relocate science"
)]
pub struct Args {
    /// Environment.
    name: String,
    /// Path where it will be mounted [default: where it is mounted now].
    prefix: Option<PathBuf>,
    /// Another path that the files may contain. Can be repeated.
    #[arg(long, value_name = "PATH")]
    from: Vec<PathBuf>,
    /// Skip files that have no space for the new path instead of failing.
    #[arg(long)]
    force: bool,
    /// List the files that would be rewritten, and change nothing.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Message to record in the history [default: relocate from OLD to NEW].
    #[arg(short, long)]
    message: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(Some(&self.name))?;
        refuse_unless_idle(&env)?;
        let old = env.target.prefix.clone();
        let new = self.new_prefix(context, &env)?;
        let mut known = relocation::spellings(&old);
        known.extend(self.from.iter().map(|path| absolute(path)));
        known.retain(|path| *path != new);
        let progress = context.output.progress();
        let local = relocation::open(&env)?;
        if !self.dry_run && relocation::has_changes(local.workspace())? {
            let name = env.name();
            let message = format!("{name} has uncommitted changes");
            return Err(CommandError::new(Kind::Conflict, message).hint(format!(
                "envfs commit {name}, or drop them: envfs discard {name}"
            )));
        }
        let plan = relocation::plan(local.workspace(), &known, &new, &progress)?;
        if self.dry_run {
            progress.finish();
            return self.show_plan(context, &env, &new, &plan);
        }
        if new != old {
            prefix::try_prefix(&new)?;
        }
        let force = match self.force {
            true => Force::Yes,
            false => Force::No,
        };
        let message = self.message.clone().unwrap_or_else(|| {
            let from = match new == old {
                true => "other prefixes".to_owned(),
                false => quoted(&old),
            };
            format!("relocate from {from} to {}", quoted(&new))
        });
        let how = relocation::how(&new, force, &message, &command_line());
        let done = relocation::relocate(local.workspace(), &plan, &how, &progress)?;
        progress.finish();
        drop(local);
        if new != old {
            super::remove::remove_prefix(&old);
            conda_list::remove(&old);
        }
        // With the new prefix and revision.
        launchers::renew_all(&context.environment(Some(env.name()))?, &context.output);
        let moved = Moved::of(&done, &new);
        moved.warn(&context.output);
        if self.json {
            return context.output.json(&moved);
        }
        let name = env.name();
        let what = moved.describe();
        context.output.note(match (moved.revision, new == old) {
            (None, true) => format!("{name}: no file contains another prefix"),
            (None, false) => format!(
                "{name}: the prefix is now {}; no file contained the old one",
                quoted(&new)
            ),
            (Some(revision), _) => format!(
                "{name}: revision {revision}, relocated to {}; {what}",
                quoted(&new)
            ),
        });
        Ok(())
    }

    fn new_prefix(&self, context: &Context, env: &Env) -> Result<PathBuf> {
        let old = &env.target.prefix;
        match &self.prefix {
            Some(wanted) if absolute(wanted) != *old => {
                let name = env.environment.name();
                let prefix =
                    crate::cli::creation::choose_prefix(&env.store, name, Some(wanted.as_path()))?;
                for warning in &prefix.warnings {
                    context.output.warn(warning);
                }
                Ok(prefix.path)
            }
            _ => Ok(old.clone()),
        }
    }

    fn show_plan(&self, context: &Context, env: &Env, new: &Path, plan: &Plan) -> Result<()> {
        let moved = Moved::planned(plan, new);
        if self.json {
            return context.output.json(&moved);
        }
        for edit in &plan.edits {
            let what = match &edit.action {
                Action::Rewrite { kind, .. } => match kind {
                    EditKind::Script => "script",
                    EditKind::Text => "text",
                    EditKind::Binary => "binary",
                    EditKind::Digests => "digests",
                },
                Action::Retarget(_) => "link",
                Action::Remove => "remove",
            };
            let path = quoted(relocation::path_of(&edit.node.path));
            context.output.line(format!("{what:<8} {path}"))?;
        }
        for file in &plan.impossible {
            context.output.line(format!("{:<8} {file}", "no space"))?;
        }
        for path in &plan.left {
            let path = quoted(relocation::path_of(path));
            context.output.line(format!("{:<8} {path}", "unknown"))?;
        }
        let what = moved.describe();
        context
            .output
            .note(format!("{}: would rewrite {what}", env.name()));
        Ok(())
    }
}

/// Returns a path as prefixes are stored.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.components().collect()
}

/// Fails if the environment is mounted, or in the place of a directory that is still there.
pub(super) fn refuse_unless_idle(env: &Env) -> Result<()> {
    let name = env.name();
    if !matches!(
        env.state()?,
        State::Unmounted | State::Dead(_) | State::Copy(_)
    ) {
        return Err(CommandError::new(Kind::Busy, format!("{name} is mounted"))
            .hint(format!("envfs unmount {name}")));
    }
    if InPlace::read(env.environment.layout())?.is_some() {
        let message = format!(
            "{name} is in the place of a directory, which is kept as {}",
            quoted(Text::from(InPlace::backup_of(&env.target.prefix)).0)
        );
        return Err(CommandError::new(Kind::Conflict, message).hint(format!(
            "delete that directory first: envfs import --finish {name}"
        )));
    }
    Ok(())
}
