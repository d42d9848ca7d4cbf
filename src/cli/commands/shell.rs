//! `envfs __shell`: prints the text that the hook of a shell evaluates.

use std::ffi::OsString;

use clap::{Args as ClapArgs, Parser};

use super::Command;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::{Cli, without_controls};
use crate::shell::Shell;

/// Print text for a shell to evaluate (used by the hook).
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: super::activate::ShellName,
    /// Its process id.
    pid: u32,
    /// The words after `envfs`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

impl Args {
    /// Runs the command. Prints nothing on standard output unless it succeeded.
    pub fn run(&self, context: &Context) -> Result<()> {
        tracing::debug!(pid = self.pid, "called by the hook of a shell");
        let shell = Shell::from(self.shell);
        let line = std::iter::once(OsString::from("envfs")).chain(self.words.iter().cloned());
        let cli = Cli::try_parse_from(line).map_err(|error| {
            // Standard output is evaluated by the shell, so even help goes to standard error.
            let text = without_controls(error).to_string();
            let mut lines = text.lines();
            let first = lines.next().unwrap_or_default();
            let message = first.strip_prefix("error: ").unwrap_or(first);
            let rest = lines.map(str::trim).filter(|line| !line.is_empty());
            CommandError {
                details: rest.map(str::to_owned).collect(),
                ..CommandError::usage(message)
            }
        })?;
        let text = match &cli.command {
            Command::Activate(args) => args.script(context, shell, Some(self.pid))?,
            Command::Deactivate(args) => args.script(context, shell, Some(self.pid))?,
            Command::Reactivate(args) => args.script(context, shell)?,
            _ => {
                return Err(CommandError::usage(
                    "the hook evaluates only activate, deactivate and reactivate",
                ));
            }
        };
        context.output.raw(&text)
    }
}
