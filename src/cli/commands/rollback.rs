//! `envfs rollback`

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::{Context, Env, active_name};
use crate::cli::error::Result;
use crate::cli::launchers;
use crate::cli::output;
use crate::cli::revisions;
use crate::daemon::protocol::{RollbackOptions, Selection};
use crate::union::Summary;

/// Restore an earlier revision exactly.
///
/// Adds a revision to the history; the current one stays in it and can be restored as well. If
/// there are uncommitted changes, asks before dropping them.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs rollback            to the previous revision\n  envfs rollback 3\n  envfs rollback science 3\n  envfs rollback science before-upgrade    to a tagged revision"
)]
pub struct Args {
    /// Environment [default: the active one], and revision by number or tag [default: the one
    /// before].
    #[arg(value_name = "[NAME] [REV]", num_args = 0..=2)]
    words: Vec<String>,
    /// Drop uncommitted changes without asking.
    #[arg(short, long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, revision) = self.target(context)?;
        let service = env.service()?;
        let changes = Summary::of(&service.changes(&Selection::default())?);
        if !changes.is_empty() {
            let question = format!(
                "{} has uncommitted changes ({}). Drop them?",
                env.name(),
                output::changes(&changes)
            );
            if !self.yes {
                context.output.confirm(&question)?;
            }
        }
        let options = RollbackOptions {
            revision,
            discard_changes: !changes.is_empty(),
            command: crate::commit::command_line(),
        };
        let progress = context.output.progress();
        let done = service.rollback(&options, &progress)?;
        progress.finish();
        launchers::renew_all(&env, &context.output);
        if self.json {
            return context.output.json(&done);
        }
        context.output.note(format!(
            "{}: revision {} is current, with the content of revision {}",
            env.name(),
            done.revision.0,
            done.of.0
        ));
        Ok(())
    }

    /// A single word is a revision of the active environment, by number or tag, unless an
    /// environment has that name or none is active.
    fn target(&self, context: &Context) -> Result<(Env, Option<i64>)> {
        let of = |env: Env, revision: &str| {
            // A question about changes would be in vain if it does not exist.
            let revision = revisions::number(&env, revision)?;
            Ok((env, Some(revision)))
        };
        match self.words.as_slice() {
            [] => Ok((context.environment(None)?, None)),
            [word] if context.is_name(word) => Ok((context.environment(Some(word))?, None)),
            [word] if active_name().is_some() || backend::number(word).is_some() => {
                of(context.environment(None)?, word)
            }
            [word] => Ok((context.environment(Some(word))?, None)),
            [name, revision, ..] => of(context.environment(Some(name))?, revision),
        }
    }
}
