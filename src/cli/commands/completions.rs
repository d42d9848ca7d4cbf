//! `envfs completions`

use clap::{Args as ClapArgs, CommandFactory};
use clap_complete::Shell;

use crate::cli::context::Context;
use crate::cli::error::Result;

/// Print completions for a shell, for packages and shells without the hook.
///
/// The hook (envfs hook) completes too, and also knows the names of environments.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut crate::cli::Cli::command(),
            "envfs",
            &mut text,
        );
        context.output.raw(&text)
    }
}
