//! `envfs rollback`

use clap::Args as ClapArgs;

use crate::cli::context::{Context, Env};
use crate::cli::error::Result;
use crate::daemon::protocol::{RollbackOptions, Selection, Summary};
use crate::environment::EnvName;

/// Bring back an earlier revision, byte for byte.
///
/// The history grows by one: what is current now stays in it and can be brought back as well.
/// Uncommitted changes would be lost; asks first where there are some.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs rollback            to the revision before\n  envfs rollback 3\n  envfs rollback science 3"
)]
pub struct Args {
    /// Environment [default: the active one], and revision [default: the one before].
    #[arg(value_name = "[NAME] [REV]", num_args = 0..=2)]
    words: Vec<String>,
    /// Do not ask; drop uncommitted changes.
    #[arg(short, long)]
    yes: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, revision) = self.target(context)?;
        let service = env.service()?;
        let changes = Summary::of(&service.changes(&Selection::default())?);
        if !changes.is_empty() {
            let question = format!(
                "{} has uncommitted changes ({} added, {} modified, {} removed, {} renamed). \
                 Drop them?",
                env.name(),
                changes.added.entries,
                changes.modified.entries,
                changes.removed.entries,
                changes.renamed.entries
            );
            context.output.confirm(&question, self.yes)?;
        }
        let options = RollbackOptions {
            revision,
            discard_changes: !changes.is_empty(),
            command: crate::commit::command_line(),
        };
        let progress = context.output.progress();
        let done = service.rollback(&options, &progress)?;
        progress.finish();
        if self.json {
            return context.output.json(&done);
        }
        context.output.note(format!(
            "{}: revision {} is current, with the content of revision {}",
            env.name(),
            done.revision,
            done.of
        ));
        Ok(())
    }

    /// A single number is a revision of the active environment, unless an environment is called
    /// so and none is active.
    fn target(&self, context: &Context) -> Result<(Env, Option<i64>)> {
        let number = |text: &str| text.trim_start_matches('@').parse::<i64>().ok();
        match self.words.as_slice() {
            [] => Ok((context.environment(None)?, None)),
            [word] => {
                let is_name = EnvName::new(word)
                    .ok()
                    .is_some_and(|name| context.store().is_ok_and(|store| store.exists(&name)));
                match number(word) {
                    Some(revision) if !is_name => Ok((context.environment(None)?, Some(revision))),
                    _ => Ok((context.environment(Some(word))?, None)),
                }
            }
            [name, revision, ..] => {
                let Some(revision) = number(revision) else {
                    return Err(crate::cli::error::CommandError::usage(format!(
                        "'{revision}' is no revision: a number is wanted"
                    ))
                    .hint(format!("envfs log {name} shows them")));
                };
                Ok((context.environment(Some(name))?, Some(revision)))
            }
        }
    }
}
