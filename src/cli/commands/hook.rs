//! `envfs hook`

use clap::Args as ClapArgs;
use clap::ValueEnum;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::shell::Shell;

/// Print what makes activate work in a shell.
///
/// Put the line for your shell into its start file. It defines one function, envfs, and where
/// the shell is interactive its completion; nothing is mounted or activated by it.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  echo 'eval \"$(envfs hook bash)\"' >> ~/.bashrc\n  echo 'eval \"$(envfs hook zsh)\"' >> ~/.zshrc"
)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: HookShell,
}

/// A shell that has a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HookShell {
    /// GNU bash.
    Bash,
    /// zsh.
    Zsh,
}

impl From<HookShell> for Shell {
    fn from(shell: HookShell) -> Shell {
        match shell {
            HookShell::Bash => Shell::Bash,
            HookShell::Zsh => Shell::Zsh,
        }
    }
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let text = Shell::from(self.shell).hook().unwrap_or_default();
        context.output.raw(text.as_bytes())
    }
}
