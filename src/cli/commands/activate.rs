//! `envfs activate`, `envfs deactivate`, `envfs reactivate`
//!
//! A program cannot change the shell that started it, so these print text for the shell to
//! evaluate. The shell hook does that. Without the hook, on a terminal, they explain how to
//! evaluate it.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::Path;

use clap::Args as ClapArgs;
use clap::ValueEnum;
use nix::errno::Errno;
use nix::unistd::AccessFlags;

use crate::cli::access::Access;
use crate::cli::context::{Context, active_name};
use crate::cli::error::{CommandError, Result};
use crate::cli::place;
use crate::cli::session::{self, DefaultSessionArgs, Entered, SessionArgs};
use crate::daemon::idle::{self, ShellChange};
use crate::daemon::runtime::RuntimeDir;
use crate::environment::Prompt;
use crate::shell::facts::PrefixFacts;
use crate::shell::plan::{self, Nesting, Settings, Variables};
use crate::shell::render::{render, word};
use crate::shell::{Shell, condarc};
use crate::sys::process;
use crate::sys::text::quoted;

/// A shell that envfs can print text for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShellName {
    /// GNU bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
    /// dash, ksh and other POSIX shells.
    Posix,
}

impl From<ShellName> for Shell {
    fn from(name: ShellName) -> Shell {
        match name {
            ShellName::Bash => Shell::Bash,
            ShellName::Zsh => Shell::Zsh,
            ShellName::Fish => Shell::Fish,
            ShellName::Posix => Shell::Posix,
        }
    }
}

/// Activate an environment in this shell.
///
/// Mounts the environment unless it is mounted. Sets PATH, ENVFS_ENV, ENVFS_PREFIX and the prompt.
/// For conda and Python environments, also sets the variables that conda and venv set, and sources
/// conda's activate.d scripts. Deactivates the active environment first, unless --stack is given.
/// Activating the active environment again repairs its variables.
///
/// With NAME@REV, --read-only or --ephemeral, a committed revision is mounted at the prefix
/// instead, without a lock. It stays mounted until envfs unmount, which drops the changes of an
/// ephemeral session.
///
/// Requires the hook in your shell's start file. Scripts do not need it; see the examples.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs activate science\n  envfs activate --read-only science\n  envfs activate science@paper\n  eval \"$(envfs activate --shell bash science)\"    in a script, without the hook"
)]
pub struct ActivateArgs {
    /// Environment, or a revision of it as NAME@REV [default: the active environment].
    name: Option<String>,
    #[command(flatten)]
    session: DefaultSessionArgs,
    /// Keep the active environment, below this one.
    #[arg(long)]
    stack: bool,
    /// Print text for this shell to evaluate.
    #[arg(long, value_enum)]
    shell: Option<ShellName>,
}

/// Deactivate the environment and restore the shell.
///
/// Keeps all changes, committed or not, and leaves the environment mounted. Also works if it is no
/// longer mounted.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs deactivate\n  eval \"$(envfs deactivate --shell bash)\"    in a script, without the hook"
)]
pub struct DeactivateArgs {
    /// Print text for this shell to evaluate.
    #[arg(long, value_enum)]
    shell: Option<ShellName>,
}

/// Activate the active environment again.
///
/// Mounts it, puts it first in PATH and sources its scripts. Use this in shells whose start files
/// reset PATH (tmux, login shells), and after installing a package that has activation scripts.
#[derive(Debug, ClapArgs)]
pub struct ReactivateArgs {
    /// Print text for this shell to evaluate.
    #[arg(long, value_enum)]
    shell: Option<ShellName>,
}

impl ActivateArgs {
    /// Returns how the command accesses the store.
    pub(in crate::cli) fn access(&self) -> Access {
        Access::of_session(self.session.kind(self.name.as_deref()))
    }

    /// Prints the script, or explains what is missing.
    pub fn run(&self, context: &Context) -> Result<()> {
        let shell = choose(self.shell, "activate", self.name.as_deref())?;
        context.output.raw(&self.script(context, shell, None)?)
    }

    /// Mounts the environment and returns the text for the shell to evaluate.
    pub fn script(&self, context: &Context, shell: Shell, pid: Option<u32>) -> Result<Vec<u8>> {
        let nesting = if self.stack {
            Nesting::Stack
        } else {
            Nesting::Replace
        };
        let word = self.name.as_deref();
        let args = self.session.resolve(context, word)?;
        let entered = session::enter(context, word, &args, None)?;
        let script = prepare(&entered, nesting, &variables(), PromptChange::Configured)?;
        note_shell(&entered, pid, nesting)?;
        Ok(render(&script, shell))
    }
}

impl DeactivateArgs {
    /// Prints the script, or explains what is missing.
    pub fn run(&self, context: &Context) -> Result<()> {
        let shell = choose(self.shell, "deactivate", None)?;
        context.output.raw(&self.script(context, shell, None)?)
    }

    /// Returns the text for the shell to evaluate. Needs neither the mount nor the store.
    pub fn script(&self, context: &Context, shell: Shell, pid: Option<u32>) -> Result<Vec<u8>> {
        let variables = variables();
        if plan::active(&variables).is_none() {
            context.output.note("no environment is active");
        }
        leave_shell(pid);
        Ok(render(&plan::deactivate(&variables), shell))
    }
}

impl ReactivateArgs {
    /// Prints the script, or explains what is missing.
    pub fn run(&self, context: &Context) -> Result<()> {
        let shell = choose(self.shell, "reactivate", None)?;
        context.output.raw(&self.script(context, shell)?)
    }

    /// Mounts the active environment and returns the text for the shell to evaluate.
    pub fn script(&self, context: &Context, shell: Shell) -> Result<Vec<u8>> {
        if active_name().is_none() {
            return Err(CommandError::usage("no environment is active")
                .hint("envfs activate NAME (envfs list shows them)"));
        }
        let entered = session::enter(context, None, &SessionArgs::default(), None)?;
        let script = prepare(
            &entered,
            Nesting::Replace,
            &variables(),
            PromptChange::Configured,
        )?;
        Ok(render(&script, shell))
    }
}

/// Whether activation changes the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PromptChange {
    /// As configured.
    Configured,
    /// No: there is no interactive shell.
    None,
}

/// Plans the activation of an environment that is mounted.
pub(in crate::cli) fn prepare(
    entered: &Entered,
    nesting: Nesting,
    variables: &Variables,
    prompt: PromptChange,
) -> Result<plan::Script> {
    let env = &entered.env;
    let prompt = match env.store.config()?.prompt {
        _ if prompt == PromptChange::None => None,
        Prompt::Show(false) => None,
        Prompt::Show(true) => Settings::with_default_prompt().prompt,
        Prompt::Template(template) => Some(template),
    };
    enter(&env.target.prefix)?;
    let facts = PrefixFacts::read(env.name(), &env.target.prefix, entered.revision);
    let prompt = prompt.filter(|_| is_prompt_wanted(&facts, variables));
    let conda_below = plan::conda_below(variables)
        .filter(|prefix| *prefix != facts.prefix)
        .map(|prefix| PrefixFacts::read("", &prefix, None));
    Ok(plan::activate(
        &facts,
        variables,
        &Settings {
            nesting,
            prompt,
            conda_below,
        },
    ))
}

/// Returns whether the settings of venv and conda allow to change the prompt for environments of
/// their kind.
fn is_prompt_wanted(facts: &PrefixFacts, variables: &Variables) -> bool {
    let disabled = variables.get(OsStr::new("VIRTUAL_ENV_DISABLE_PROMPT"));
    let venv = facts.venv_prompt.is_none() || disabled.is_none_or(|value| value.is_empty());
    let conda =
        !facts.is_conda || condarc::setting("changeps1", variables, &facts.prefix).unwrap_or(true);
    venv && conda
}

/// Checks that this user can enter the prefix. Otherwise the shell would silently run the system's
/// programs instead of the environment's.
fn enter(prefix: &Path) -> Result<()> {
    nix::unistd::access(prefix, AccessFlags::X_OK).map_err(|error| {
        let failed = CommandError::io(format!("cannot enter {}", quoted(prefix)), &error.into());
        match error {
            Errno::EACCES => failed.hint(
                "only the user who mounted it can enter it, and only if its permissions allow that",
            ),
            _ => failed,
        }
    })
}

/// Notes that the environment is active in the calling shell, if mounts end when they are idle.
/// Without a number, the shell is the parent of this process.
fn note_shell(entered: &Entered, pid: Option<u32>, nesting: Nesting) -> Result<()> {
    let env = &entered.env;
    let Some(pid) = pid.or_else(process::parent_id) else {
        return Ok(());
    };
    if env.store.config()?.session.idle.is_none() {
        return Ok(());
    }
    let prefix = place::resolve(&env.target.prefix)?;
    let change = match nesting {
        Nesting::Replace => ShellChange::Replace(&prefix),
        Nesting::Stack => ShellChange::Stack(&prefix),
    };
    if let Err(error) = idle::note_shell(&env.runtime, pid, change) {
        tracing::warn!(%error, "cannot note that the environment is active in this shell");
    }
    Ok(())
}

/// Removes the note of [`note_shell`].
fn leave_shell(pid: Option<u32>) {
    let Some(pid) = pid.or_else(process::parent_id) else {
        return;
    };
    if let Err(error) = idle::note_shell(&RuntimeDir::open(), pid, ShellChange::Leave) {
        tracing::warn!(%error, "cannot remove the note of this shell");
    }
}

/// Returns the variables of this process, which are those exported by the shell.
pub(crate) fn variables() -> Variables {
    std::env::vars_os().collect()
}

/// Returns the shell to print for. Fails for shells that envfs does not support, and on a terminal
/// without the hook, where nothing would evaluate the text.
fn choose(wanted: Option<ShellName>, verb: &str, name: Option<&str>) -> Result<Shell> {
    if let Some(name) = wanted {
        return Ok(name.into());
    }
    let is_terminal = std::io::stdout().is_terminal();
    let shell = match detect() {
        Detected::Supported(shell) => shell,
        // A script that evaluates the output without saying for which shell.
        Detected::Nothing if !is_terminal => Shell::Posix,
        detected => {
            let unknown = match detected {
                Detected::Unsupported(name) => {
                    format!("envfs does not support the shell {}", quoted(name))
                }
                _ => String::from("envfs cannot tell which shell this is"),
            };
            return Err(CommandError::usage(unknown)
                .hint("supported shells: bash, zsh, fish, and POSIX shells (dash, ksh)")
                .hint(format!(
                    "run one command in it: envfs run {} CMD",
                    name.unwrap_or("NAME")
                ))
                .hint(format!(
                    "print the text for a shell: envfs {verb} --shell posix"
                )));
        }
    };
    if !is_terminal {
        return Ok(shell);
    }
    let words = match name {
        Some(name) => format!("{verb} {}", word(name)),
        None => verb.to_owned(),
    };
    let error = CommandError::usage(format!(
        "'envfs {verb}' needs the shell hook: a program cannot change its parent shell"
    ));
    let Some(file) = shell.start_file() else {
        return Err(error.hint(shell.evaluating(&format!("envfs {words} --shell posix"))));
    };
    let hook = shell.evaluating(&format!("envfs hook {}", shell.name()));
    let script = shell.evaluating(&format!("envfs {words} --shell {}", shell.name()));
    Err(error
        .hint(format!("now:         {hook} && envfs {words}"))
        .hint(format!("permanently: echo '{hook}' >> {file}"))
        .hint(format!("in scripts:  {script}")))
}

/// The shell that started envfs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Detected {
    /// One that envfs supports.
    Supported(Shell),
    /// Another one.
    Unsupported(String),
    /// There is no sign of a shell.
    Nothing,
}

/// Shells that cannot evaluate text for another one.
const UNSUPPORTED: [&str; 9] = [
    "csh", "tcsh", "nu", "xonsh", "elvish", "pwsh", "ion", "rc", "es",
];

/// Returns the shell that started envfs. If the parent is no shell, the user's login shell counts.
fn detect() -> Detected {
    let parent = process::parent_id().and_then(process::command_name);
    let login = std::env::var("SHELL").ok().filter(|name| !name.is_empty());
    recognize(parent.as_deref(), login.as_deref())
}

fn recognize(parent: Option<&str>, login: Option<&str>) -> Detected {
    let base = |name: &str| {
        let base = name.rsplit('/').next().unwrap_or(name);
        base.trim_start_matches('-').to_owned()
    };
    let parent = parent.map(base).unwrap_or_default();
    match (Shell::from_name(&parent), login) {
        (Some(shell), _) => Detected::Supported(shell),
        (None, _) if UNSUPPORTED.contains(&parent.as_str()) => Detected::Unsupported(parent),
        (None, Some(login)) => match Shell::from_name(login) {
            Some(shell) => Detected::Supported(shell),
            None => Detected::Unsupported(base(login)),
        },
        (None, None) => Detected::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_recognized_by_the_parent_or_the_login_shell() {
        let supported = |parent, login, shell| {
            assert_eq!(recognize(parent, login), Detected::Supported(shell));
        };
        supported(Some("fish"), Some("/bin/bash"), Shell::Fish);
        supported(Some("-zsh"), Some("/bin/bash"), Shell::Zsh);
        supported(Some("make"), Some("/usr/bin/fish"), Shell::Fish);
        supported(Some("mksh"), None, Shell::Posix);
        for (parent, login, name) in [
            (Some("tcsh"), Some("/bin/bash"), "tcsh"),
            (Some("make"), Some("/opt/murex"), "murex"),
            (None, Some("/usr/bin/nu"), "nu"),
        ] {
            let unsupported = Detected::Unsupported(name.to_owned());
            assert_eq!(recognize(parent, login), unsupported);
        }
        assert_eq!(recognize(Some("make"), None), Detected::Nothing);
    }
}
