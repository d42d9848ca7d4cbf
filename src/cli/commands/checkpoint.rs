//! `envfs checkpoint`

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::commit::CheckpointOptions;

/// Mark the uncommitted changes, so that undo returns to them.
///
/// Takes milliseconds, since it writes no image: the changes made so far are frozen where they are,
/// and newer ones go to a new layer. envfs undo moves the newer ones to the trash. The next commit
/// includes all.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs checkpoint science -m \"before the upgrade\"\n  envfs run science pip install --upgrade numpy\n  envfs undo science"
)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Message for envfs log --all.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        let options = CheckpointOptions {
            message: self.message.clone(),
            command: crate::commit::command_line(),
        };
        let progress = context.output.progress();
        let done = env.service()?.checkpoint(&options, &progress)?;
        progress.finish();
        if self.json {
            return context.output.json(&done);
        }
        context
            .output
            .note(format!("{}: checkpoint {}", env.name(), done.operation));
        Ok(())
    }
}
