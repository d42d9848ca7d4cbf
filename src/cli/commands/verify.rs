//! `envfs verify`

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::output::{Tone, count, size};
use crate::cli::{place, verification};
use crate::commit::VerifyOutcome;
use crate::daemon::failure::Kind;
use crate::environment::Environment;

/// Check the database, the images and the changes of an environment.
///
/// Reads all images and compares the recorded changes with the files on disk. With NAME@REV, reads
/// only the image of that revision. Exits with status 1 if there are problems. Without --repair,
/// changes nothing, except that an environment is reconciled after an unclean shutdown. With
/// --repair, asks for confirmation, then drops changes whose content is missing, so that the
/// committed files are visible again, and moves unexpected files in the store aside. A repair is
/// listed by `envfs log --all`. Images cannot be repaired.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs verify science\n  envfs verify science@3\n  envfs verify --all"
)]
pub struct Args {
    /// Environment [default: the active one], or one of its revisions.
    #[arg(value_name = "NAME[@REV]")]
    name: Option<String>,
    /// Verify all environments of the store.
    #[arg(long, conflicts_with_all = ["name", "repair"])]
    all: bool,
    /// Repair the problems, as far as possible.
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
        if self.all {
            return self.run_all(context);
        }
        let (name, revision) = match self.name.as_deref() {
            Some(word) if place::split_revision(word).1.is_some() => {
                let (env, revision) = context.committed(Some(word))?;
                (Some(env.name().to_owned()), revision)
            }
            name => (name.map(str::to_owned), None),
        };
        let environment = context.files_of(name.as_deref())?;
        if let Some(number) = revision {
            if self.repair {
                return Err(CommandError::usage(
                    "an image of the history cannot be repaired",
                ));
            }
            let progress = context.output.progress();
            let verified = verification::verify_revision(&environment, number, &progress)?;
            progress.finish();
            self.print(
                context,
                &format!("{}@{number}", environment.name()),
                &verified,
            )?;
            return self.end(context, &verified);
        }
        let mut verified = self.verify(context, &environment)?;
        if self.repair && !verified.problems.is_empty() {
            let question = format!(
                "{}: repair this and drop changes whose content is missing?",
                environment.name()
            );
            if !self.yes {
                context.output.confirm(&question)?;
            }
            for line in verification::repair(&environment)? {
                context.output.note(line);
            }
            verified = self.verify(context, &environment)?;
        }
        self.end(context, &verified)
    }

    /// Verifies all environments. One that cannot be verified does not stop the others.
    fn run_all(&self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let mut report = serde_json::Map::new();
        let mut failed: Option<CommandError> = None;
        for name in store.list()? {
            let verified = store
                .open(&name)
                .map_err(CommandError::from)
                .and_then(|environment| self.verify(context, &environment));
            let error = match verified {
                // Removed by another command since the store was listed.
                Err(_) if !store.exists(&name) => continue,
                Err(error) if error.kind == Kind::Cancelled => return Err(error),
                Err(error) => error,
                Ok(verified) => {
                    let value = serde_json::to_value(&verified)
                        .map_err(|error| CommandError::new(Kind::Internal, error.to_string()))?;
                    report.insert(name.to_string(), value);
                    match verified.problems.is_empty() {
                        true => continue,
                        false => CommandError::silent(ExitCode::Failure),
                    }
                }
            };
            if let Some(earlier) = failed.replace(error) {
                context.output.error(&earlier);
            }
        }
        if self.json {
            context.output.json(&report)?;
        }
        failed.map_or(Ok(()), Err)
    }

    fn verify(&self, context: &Context, environment: &Environment) -> Result<VerifyOutcome> {
        let progress = context.output.progress();
        let verified = verification::verify(environment, &progress)?;
        progress.finish();
        self.print(context, environment.name().as_str(), &verified)?;
        Ok(verified)
    }

    fn end(&self, context: &Context, verified: &VerifyOutcome) -> Result<()> {
        if self.json {
            context.output.json(verified)?;
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
