//! `envfs undo`

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::conda_list;
use crate::cli::context::{Context, Env};
use crate::cli::creation::refuse_overlap;
use crate::cli::error::{CommandError, Result};
use crate::cli::launchers;
use crate::cli::output::changes;
use crate::commit::{UndoOptions, Undone};
use crate::daemon::failure::Kind;
use crate::daemon::prefix::try_prefix;
use crate::progress::Progress;
use crate::state::{Operation, OperationKind};
use crate::sys::text::quoted;

/// Take back the last operation, such as a commit or a discard.
///
/// Restores the state before it, even while the environment is mounted, except for a relocation,
/// which also restores the prefix. After the undo of a commit
/// its changes are uncommitted again, and newer changes stay. In all other cases uncommitted
/// changes made since go to the trash; undo again to restore them. The undo of an undo is a redo.
///
/// envfs log --all lists the operations. The trash is emptied by envfs gc; a newer commit removes
/// what the undo of an older one needs.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs undo                 takes back the last operation\n  envfs undo -n science      shows what that would do\n  envfs undo --operation 4   returns to the state before operation 4"
)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Return to the state before this operation of envfs log --all [default: the last].
    #[arg(long, value_name = "ID")]
    operation: Option<i64>,
    /// Only show what would be done.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        let options = UndoOptions {
            operation: self.operation,
            dry_run: self.dry_run,
            command: crate::commit::command_line(),
        };
        let progress = context.output.progress();
        let (operations, _) = backend::operations(&env.environment)?;
        if operations.is_empty() {
            let name = env.name();
            let message = format!(
                "there is nothing to undo: no operation has changed {name} since it was created"
            );
            return Err(CommandError::new(Kind::NotFound, message)
                .hint(format!("to drop uncommitted changes: envfs discard {name}"))
                .hint(format!("to remove the environment: envfs remove {name}")));
        }
        self.refuse_unusable_prefix(&env, &options, &operations, &progress)?;
        let done = env.service()?.undo(&options, &progress)?;
        progress.finish();
        if !self.dry_run {
            if done.prefix.is_some() {
                super::remove::remove_prefix(&env.target.prefix);
                conda_list::remove(&env.target.prefix);
            }
            // With the new prefix and revision.
            launchers::renew_all(&context.environment(Some(env.name()))?, &context.output);
        }
        if self.json {
            return context.output.json(&done);
        }
        for line in self.describe(env.name(), &done) {
            context.output.note(line);
        }
        if !done.lost.is_empty() {
            let lost: Vec<_> = done
                .lost
                .iter()
                .take(10)
                .map(|path| quoted(&path.0))
                .collect();
            context.output.warn(format!(
                "content was removed from the trash, so the committed version of these is visible: {}",
                lost.join(", ")
            ));
        }
        Ok(())
    }

    /// Fails if the undo moves the environment to a path where it cannot be mounted.
    fn refuse_unusable_prefix(
        &self,
        env: &Env,
        options: &UndoOptions,
        operations: &[Operation],
        progress: &dyn Progress,
    ) -> Result<()> {
        if self.dry_run || operations.iter().all(|one| one.prefix.is_none()) {
            return Ok(());
        }
        let planned = UndoOptions {
            dry_run: true,
            ..options.clone()
        };
        let planned = env.service()?.undo(&planned, progress)?;
        let Some(prefix) = planned.prefix else {
            return Ok(());
        };
        if !env.state()?.is_mounted() {
            refuse_overlap(&env.store, prefix.as_path())?;
            try_prefix(prefix.as_path())?;
        }
        Ok(())
    }

    fn describe(&self, name: &str, done: &Undone) -> Vec<String> {
        let kind = done.kind.as_str();
        let (verb, what) = match (done.redone, done.kind) {
            (Some(again), _) => ("redid", format!("operation {again}")),
            (None, OperationKind::Checkpoint) => {
                ("returned to", format!("checkpoint {}", done.undone))
            }
            (None, _) => ("undid", format!("operation {} ({kind})", done.undone)),
        };
        let verb = match (self.dry_run, verb) {
            (false, verb) => verb,
            (true, "redid") => "would redo",
            (true, "undid") => "would undo",
            (true, _) => "would return to",
        };
        let mut lines = vec![format!(
            "{name}: {verb} {what}; revision {} {} current",
            done.revision,
            if self.dry_run { "would be" } else { "is" },
        )];
        if let Some(prefix) = &done.prefix {
            let moves = if self.dry_run { "would be" } else { "is now" };
            lines.push(format!("The prefix {moves} {}", quoted(&prefix.0)));
        }
        if done.kind == OperationKind::Relocate && done.prefix.is_none() && !self.dry_run {
            lines.push(format!(
                "Its files contain another path again; to rewrite them: envfs relocate {name}"
            ));
        }
        if !done.restored.is_empty() {
            let text = changes(&done.restored);
            lines.push(format!("Uncommitted changes at that time: {text}"));
        }
        if !done.set_aside.is_empty() {
            let text = changes(&done.set_aside);
            lines.push(match self.dry_run {
                true => format!("Would move to the trash: {text}"),
                false => format!("Moved to the trash: {text}; to restore them: envfs undo"),
            });
        }
        lines
    }
}
