//! `envfs discard`

use std::ffi::OsString;

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::output::{changes, size};
use crate::daemon::protocol::{DiscardOptions, Discarded};
use crate::union::Summary;

/// Discard uncommitted changes, all or those below some paths.
///
/// Restores the committed state, even while the environment is mounted. Asks for confirmation.
/// envfs undo restores the changes. They are kept until envfs gc, those of single paths also until
/// a later commit.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs discard\n  envfs discard -y science lib/python3.12/site-packages/numpy"
)]
pub struct Args {
    /// Environment [default: the active one], and paths in it.
    #[arg(value_name = "[NAME] [PATH]")]
    words: Vec<OsString>,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, selection) = context.environment_and_paths(&self.words)?;
        let service = env.service()?;
        if !self.yes {
            let found = Summary::of(&service.changes(&selection)?);
            if found.is_empty() {
                if self.json {
                    return context.output.json(&Discarded::default());
                }
                context
                    .output
                    .note(format!("{}: nothing to discard", env.name()));
                return Ok(());
            }
            let question = format!("{}: discard {}?", env.name(), describe(&found));
            context.output.confirm(&question)?;
        }
        let options = DiscardOptions {
            selection,
            command: crate::commit::command_line(),
        };
        let progress = context.output.progress();
        let discarded = service.discard(&options, &progress)?;
        progress.finish();
        if self.json {
            return context.output.json(&discarded);
        }
        let what = if discarded.changes.is_empty() {
            String::from("nothing to discard")
        } else {
            format!("discarded {}", describe(&discarded.changes))
        };
        context.output.note(format!("{}: {what}", env.name()));
        if !discarded.changes.is_empty() {
            context.output.note("To restore them: envfs undo");
        }
        Ok(())
    }
}

fn describe(summary: &Summary) -> String {
    let bytes = summary.added.bytes + summary.modified.bytes;
    format!("{} ({})", changes(summary), size(bytes))
}
