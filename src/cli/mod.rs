//! The command line: parses arguments, calls the modules below, and prints results.
//!
//! Each file in `commands` is one command: `Args`, whose doc comment is the help text, and `run`.
//! `context` finds environments. `backend` has the calls that several commands share,
//! `creation` and `verification` those that make environments and check them.

mod access;
mod backend;
mod commands;
mod conda_list;
mod context;
mod creation;
mod env;
mod error;
mod follow;
mod help;
mod in_place;
mod launchers;
mod mount_options;
mod new_file;
mod opening;
mod output;
mod packages;
mod place;
mod private;
mod program;
mod read_only;
mod recovery;
mod relocation;
mod revisions;
mod session;
mod stream;
mod trial;
mod verification;

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{FromArgMatches, Parser};

use commands::Command;
use context::Context;
use error::{CommandError, ExitCode};
pub use help::command;
use output::{ColorChoice, Output, Verbosity};

use crate::sys::daemonize;
use crate::sys::text::printable;

/// The heading of the options that every command accepts.
const EVERYWHERE: &str = "Global options";

/// An environment as one compressed SquashFS file, used as an ordinary writable directory.
///
/// Import a directory (conda, venv, Node or any other), activate it, install and change files, then
/// commit the changes to a new image or discard them. Does not need root.
///
/// NAME defaults to the active environment where a command does not require it. Names with unusual
/// characters are printed as git prints them: "a\033b\n". With -z they are exact, each ended by
/// NUL; in JSON a name that is not UTF-8 is an array of its bytes.
#[derive(Debug, Parser)]
#[command(
    name = "envfs",
    version,
    max_term_width = 100,
    after_help = "Start here: eval \"$(envfs hook bash)\" (or zsh), envfs create NAME,\nenvfs activate NAME. 'envfs help COMMAND' explains a command.\nExit status: 0 success, 1 failure, 2 usage, 3 not found, 4 conflict, 5 in use,\n6 damaged, 7 no FUSE, 8 no space, 9 daemon, 70 internal error, 130 cancelled;\nrun, try: the command's own, or 125 to 127."
)]
pub struct Cli {
    /// The store [default: $ENVFS_HOME or ~/.local/share/envfs].
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub home: Option<PathBuf>,
    /// Print only results, warnings and errors.
    #[arg(short, long, global = true, help_heading = EVERYWHERE)]
    pub quiet: bool,
    /// When to use colours: auto, always or never.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "WHEN",
        help_heading = EVERYWHERE
    )]
    pub color: ColorChoice,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Runs the program and returns its exit status.
pub fn main() -> i32 {
    let role = Role::of_process();
    // This must precede opening any file.
    let closed = (role == Role::Daemon).then(daemonize::close_inherited_descriptors);
    start_logging(role);
    if let Some(Err(error)) = closed {
        tracing::warn!(%error, "cannot close inherited descriptors");
    }
    if role == Role::Daemon {
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        match daemonize::continue_in_child() {
            Ok(None) => {}
            Ok(Some(status)) => return status,
            Err(error) => tracing::warn!(%error, "cannot leave the parent process"),
        }
    }
    let words = mount_options::translate_helper(std::env::args_os().collect());
    let mut matches = match command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return clap_error(error),
    };
    let cli = match Cli::from_arg_matches_mut(&mut matches) {
        Ok(cli) => cli,
        Err(error) => return clap_error(error),
    };
    let verbosity = match cli.quiet {
        true => Verbosity::Quiet,
        false => Verbosity::Normal,
    };
    let output = Output::new(cli.color, verbosity);
    let context = Context::new(output, cli.home);
    let checked = access::check(&context, &cli.command);
    finish(&output, checked.and_then(|()| cli.command.run(&context)))
}

/// Reports a failure and returns the exit status.
fn finish(output: &Output, result: Result<(), CommandError>) -> i32 {
    match result {
        Ok(()) => ExitCode::Success as i32,
        Err(error) => {
            output.error(&error);
            error.status.map_or(error.code as i32, i32::from)
        }
    }
}

fn clap_error(error: clap::Error) -> i32 {
    let error = with_own_tips(without_controls(error));
    // If printing fails, there is nowhere to report it.
    drop(error.print());
    if !error.use_stderr() {
        return ExitCode::Success as i32;
    }
    let command = std::env::args_os().nth(1);
    let is_run = command.is_some_and(|word| word == "run" || word == "try");
    if is_run {
        ExitCode::RunFailed as i32
    } else {
        ExitCode::Usage as i32
    }
}

/// Escapes control characters in the arguments that a message quotes: they may come from untrusted
/// input of a script.
pub fn without_controls(mut error: clap::Error) -> clap::Error {
    let quoted: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| {
            let value = match value {
                ContextValue::String(text) => ContextValue::String(printable(text)),
                ContextValue::Strings(texts) => {
                    ContextValue::Strings(texts.iter().map(printable).collect())
                }
                _ => return None,
            };
            Some((kind, value))
        })
        .collect();
    for (kind, value) in quoted {
        error.insert(kind, value);
    }
    error
}

/// Removes suggestions of commands that are not for users, and says what to use instead of verbs of
/// other tools.
fn with_own_tips(mut error: clap::Error) -> clap::Error {
    let strings = |value: Option<&ContextValue>| match value {
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(ContextValue::String(text)) => vec![text.clone()],
        _ => Vec::new(),
    };
    if let Some(word) = strings(error.get(ContextKind::InvalidSubcommand)).first()
        && let Some(hint) = help::instead_of(word)
    {
        error.remove(ContextKind::SuggestedSubcommand);
        let hint = ContextValue::StyledStrs(vec![hint.into()]);
        error.insert(ContextKind::Suggested, hint);
        return error;
    }
    let suggested = strings(error.get(ContextKind::SuggestedSubcommand));
    let kept: Vec<String> = suggested
        .iter()
        .filter(|name| !name.starts_with("__"))
        .cloned()
        .collect();
    if kept.len() < suggested.len() {
        error.remove(ContextKind::SuggestedSubcommand);
        if !kept.is_empty() {
            error.insert(
                ContextKind::SuggestedSubcommand,
                ContextValue::Strings(kept),
            );
        }
    }
    error
}

/// What a process is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Runs a command of the user.
    Command,
    /// Serves a mount.
    Daemon,
}

impl Role {
    /// Returns the role of this process.
    fn of_process() -> Role {
        let command = std::env::args_os().nth(1);
        match command.is_some_and(|word| word == "__daemon" || word == "__serve") {
            true => Role::Daemon,
            false => Role::Command,
        }
    }
}

/// Starts logging to standard error as `ENVFS_LOG` specifies. A daemon's standard error is its log.
fn start_logging(role: Role) {
    let default = match role {
        Role::Daemon => "info",
        Role::Command => "off",
    };
    let filter = std::env::var("ENVFS_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(&filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| crate::daemon::log::Writer)
        .with_ansi(false)
        // A logging error would be printed to standard error, which is the log itself.
        .log_internal_errors(false)
        .with_target(role == Role::Daemon)
        .try_init();
    // This fails only if a logger is installed already, as in tests.
    drop(started);
}
