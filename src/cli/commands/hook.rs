//! `envfs hook`

use clap::Args as ClapArgs;
use clap::ValueEnum;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::shell::Shell;

/// Print the shell hook, which activate requires.
///
/// Add the line for your shell to its start file. The hook defines one function, envfs, and in an
/// interactive shell its completion. It does not mount or activate anything.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  echo 'eval \"$(envfs hook bash)\"' >> ~/.bashrc\n  echo 'eval \"$(envfs hook zsh)\"' >> ~/.zshrc\n  echo 'envfs hook fish | source' >> ~/.config/fish/config.fish"
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
    /// fish.
    Fish,
}

impl From<HookShell> for Shell {
    fn from(shell: HookShell) -> Shell {
        match shell {
            HookShell::Bash => Shell::Bash,
            HookShell::Zsh => Shell::Zsh,
            HookShell::Fish => Shell::Fish,
        }
    }
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let text = Shell::from(self.shell).hook().unwrap_or_default();
        context.output.raw(text.as_bytes())
    }
}
