//! `envfs completions`

use clap::Args as ClapArgs;
use clap_complete::Shell;

use crate::cli::context::Context;
use crate::cli::error::Result;

/// Print a completion script for a shell.
///
/// For packages and for shells without the hook. The hook (envfs hook) also completes the names of
/// environments.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut crate::cli::command(), "envfs", &mut text);
        context.output.raw(&text)
    }
}
