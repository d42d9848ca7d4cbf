//! `envfs verify`

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::output::{Tone, count, size};

/// Read through the database and all images of an environment and say what is wrong.
///
/// Ends with status 1 if something is. Changes nothing.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        let progress = context.output.progress();
        let verified = backend::verify(&env.environment, &progress)?;
        progress.finish();
        if self.json {
            context.output.json(&verified)?;
        } else if verified.problems.is_empty() {
            context.output.note(format!(
                "{}: {}, {} on the disk: all as it should be",
                env.name(),
                count(verified.images, "image"),
                size(verified.bytes)
            ));
        } else {
            for problem in &verified.problems {
                context
                    .output
                    .line(context.output.tone(problem, Tone::Bad))?;
            }
        }
        if verified.problems.is_empty() {
            Ok(())
        } else {
            Err(CommandError::silent(ExitCode::Failure))
        }
    }
}
