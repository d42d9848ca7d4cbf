//! `envfs hook`

use clap::Args as ClapArgs;
use clap::ValueEnum;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::shell::Shell;

/// Print the shell hook, which activate requires.
///
/// Add the line for your shell to its start file. The hook defines one function, envfs, and in an
/// interactive shell its completion. It does not mount or activate anything. In a shell that
/// inherits an active environment, it shows the prompt marker again, or says that PATH was reset.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  echo 'eval \"$(envfs hook bash)\"' >> ~/.bashrc\n  echo 'eval \"$(envfs hook zsh)\"' >> ~/.zshrc\n  echo 'envfs hook fish | source' >> ~/.config/fish/config.fish\n  envfs hook direnv > ~/.config/direnv/lib/envfs.sh    then in an .envrc: use envfs NAME"
)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: HookShell,
}

/// A shell that has a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HookShell {
    /// GNU bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
    /// direnv: the function `use envfs NAME` for .envrc files.
    Direnv,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let text = match self.shell {
            HookShell::Bash => Shell::Bash.hook(),
            HookShell::Zsh => Shell::Zsh.hook(),
            HookShell::Fish => Shell::Fish.hook(),
            HookShell::Direnv => Some(include_str!("../../../shell/envfs.direnv.sh")),
        };
        let text = text.unwrap_or_default();
        context.output.raw(text.as_bytes())
    }
}
