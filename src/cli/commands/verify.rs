//! `envfs verify`

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::output::{Tone, count, size};
use crate::commit::VerifyOutcome;

/// Check the database, the images and the changes of an environment.
///
/// Reads all images and compares the recorded changes with the files on disk. Exits with status 1
/// if there are problems. Without --repair, changes nothing, except that an environment is
/// reconciled after an unclean shutdown. With --repair, asks for confirmation, then drops changes
/// whose content is missing, so that the committed files are visible again, and moves unexpected
/// files in the store aside. Images cannot be repaired.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Repair what can be repaired.
    #[arg(long)]
    repair: bool,
    /// Do not ask for confirmation.
    #[arg(short, long, requires = "repair")]
    yes: bool,
    /// Print JSON.
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
            self.print(context, name, &verified)?;
            Ok(verified)
        };
        let mut verified = verify()?;
        if self.repair && !verified.problems.is_empty() {
            let question =
                format!("{name}: repair this and drop changes whose content is missing?");
            if !self.yes {
                context.output.confirm(&question)?;
            }
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

    fn print(&self, context: &Context, name: &str, verified: &VerifyOutcome) -> Result<()> {
        if self.json {
            return Ok(());
        }
        if verified.problems.is_empty() {
            context.output.note(format!(
                "{name}: {}, {} on disk, no problems",
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
