//! `envfs verify`

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::output::{Tone, count, size};
use crate::commit::VerifyOutcome;

/// Read through the database and all images of an environment, compare its changes with its files, and say
/// what is wrong.
///
/// Ends with status 1 if something is. Changes nothing without --repair, but for what every command does
/// after an unclean end. With --repair it first lists what is wrong, and asks: content that is not there is given
/// up, so that what was committed shows again, and what lies in the place of a file of the store is moved aside.
/// Images cannot be repaired.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Repair what can be repaired.
    #[arg(long)]
    repair: bool,
    /// Do not ask.
    #[arg(short, long, requires = "repair")]
    yes: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let environment = context.files_of(self.name.as_deref())?;
        let name = environment.name().as_str();
        let verify = || -> Result<VerifyOutcome> {
            let progress = context.output.progress();
            let verified = backend::verify(&environment, &progress)?;
            progress.finish();
            self.tell(context, name, &verified)?;
            Ok(verified)
        };
        let mut verified = verify()?;
        if self.repair && !verified.problems.is_empty() {
            let question = format!("{name}: repair this, and give up what is lost?");
            context.output.confirm(&question, self.yes)?;
            for line in backend::repair(&environment)? {
                context.output.note(line);
            }
            verified = verify()?;
        }
        if self.json {
            context.output.json(&verified)?;
        }
        match verified.problems.is_empty() {
            true => Ok(()),
            false => Err(CommandError::silent(ExitCode::Failure)),
        }
    }

    fn tell(&self, context: &Context, name: &str, verified: &VerifyOutcome) -> Result<()> {
        if self.json {
            return Ok(());
        }
        if verified.problems.is_empty() {
            context.output.note(format!(
                "{name}: {}, {} on the disk: all as it should be",
                count(verified.images, "image"),
                size(verified.bytes)
            ));
        }
        for problem in &verified.problems {
            let line = context.output.tone(problem, Tone::Bad);
            context.output.line(line)?;
        }
        Ok(())
    }
}
