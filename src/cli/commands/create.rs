//! `envfs create`

mod installer;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;

use super::import::ImportOptions;
use crate::cli::conda_list;
use crate::cli::context::{Context, Env};
use crate::cli::creation;
use crate::cli::error::{CommandError, Result};
use crate::cli::program;
use crate::commit::{CommitOptions, CommitPlace};
use crate::daemon::client::Client;
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle;
use crate::daemon::protocol::Service;
use crate::daemon::service::LOCK_TIMEOUT;
use crate::environment::EnvName;
use crate::shell::plan::SYSTEM_PATH;
use crate::shell::render::word;
use crate::sys::mount::UnmountMode;
use crate::sys::signals;
use crate::sys::text::quoted;
use installer::{Installer, Step};

/// What stands for the mount point in the command.
const PREFIX: &str = "{prefix}";

/// Create an empty environment, or fill one with an installer.
///
/// Without an installer the environment is empty: activate it and install into it. With --conda,
/// --venv, --uv or --npm all words that follow are passed to the installer as they are, so options
/// of envfs come before. --file chooses the installer by the name of a file. With any other command
/// {prefix} is replaced by the mount point.
///
/// envfs mounts the environment, runs the installer, and commits the result as revision 1, with the
/// commands as its message. If the installer fails or is interrupted, the environment is removed
/// again. If only the commit fails, the environment is kept and can be committed later.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs create tools\n  envfs create sci --conda python=3.11 numpy -c conda-forge\n  envfs create web --venv flask 'gunicorn>=22'\n  envfs create fast --uv -r requirements.txt\n  envfs create site --file package-lock.json\n  envfs create own -- ./configure-and-install --prefix {prefix}"
)]
pub struct Args {
    /// Name of the new environment.
    name: String,
    #[command(flatten)]
    options: ImportOptions,
    /// Keep the environment even if the command fails.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    installer: Installer,
    /// Any other installer and its arguments.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let name = EnvName::new(&self.name)?;
        let steps = match self.command.as_slice() {
            [] => self.installer.steps()?,
            command => vec![command.to_vec()],
        };
        let store = context.store()?;
        let options = self.options.to_new_options();
        let environment = creation::create(&store, &name, &options, &context.output)?;
        let env = Env::new(store, environment)?;
        let prefix = quoted(&env.target.prefix);
        if steps.is_empty() {
            context
                .output
                .note(format!("created {name}, an empty environment, at {prefix}"));
            context
                .output
                .note(format!("Use it: envfs activate {name}"));
            return Ok(());
        }
        // Ctrl-C is for the command; this process then removes the environment.
        if let Err(error) = signals::survive_interrupts() {
            tracing::debug!(%error, "cannot ignore Ctrl-C; it will end the process at once");
        }
        match install(&env, &steps) {
            Ok(client) => self.commit(context, &env, client, &steps).map_err(|error| {
                error.hint(format!(
                    "the command succeeded and its files are kept: envfs commit {name}"
                ))
            }),
            Err(error) => {
                // Report the first failure; further ones are warnings.
                if !self.keep {
                    unmount_with_retries(&env);
                    if let Err(second) = super::remove::remove_environment(env) {
                        context
                            .output
                            .warn(format!("cannot remove {name}: {}", second.message));
                    }
                }
                Err(error)
            }
        }
    }

    fn commit(
        &self,
        context: &Context,
        env: &Env,
        client: Option<Client>,
        steps: &[Step],
    ) -> Result<()> {
        let Some(client) = client else {
            return Err(CommandError::new(Kind::Daemon, "cannot reach the daemon"));
        };
        let progress = context.output.progress();
        let message = match self.options.message.as_str() {
            "" => command_lines(env, steps),
            message => message.to_owned(),
        };
        let options = CommitOptions {
            message,
            command: crate::commit::command_line(),
            compression: super::import::compression(
                self.options.pack.compression,
                self.options.pack.compress_level,
            ),
            block_size: self.options.pack.block_size,
            threads: self.options.pack.threads,
            place: CommitPlace::First,
            ..CommitOptions::default()
        };
        let committed = client.commit(&options, &progress)?;
        progress.finish();
        if committed.is_none() {
            context.output.warn(self.nothing_written(env));
            return Ok(());
        }
        super::commit::print_result(context, env.name(), committed.as_ref());
        Ok(())
    }
}

impl Args {
    /// Explains that the command left the environment empty.
    fn nothing_written(&self, env: &Env) -> String {
        let (name, prefix) = (env.name(), quoted(&env.target.prefix));
        let placeholder = PREFIX.as_bytes();
        let has_it = |word: &OsString| {
            let mut parts = word.as_bytes().windows(placeholder.len());
            parts.any(|part| part == placeholder)
        };
        // The installers that envfs knows are told the path.
        let why = match self.command.is_empty() || self.command.iter().any(has_it) {
            true => String::new(),
            false => format!(". Write {PREFIX} in the command where it takes this path"),
        };
        format!("{name} is empty: the command wrote nothing into {prefix}{why}")
    }
}

/// Mounts the environment and runs the commands in it, one after the other.
fn install(env: &Env, steps: &[Step]) -> Result<Option<Client>> {
    let client = env.ensure_mounted()?;
    for step in steps {
        if let Some((program, arguments)) = step.split_first() {
            run(env, program, arguments)?;
        }
    }
    // It was not a conda environment before.
    conda_list::add(&env.target.prefix);
    Ok(client)
}

/// Returns the commands as they would be typed.
fn command_lines(env: &Env, steps: &[Step]) -> String {
    let line = |step: &Step| {
        let words = step.iter().map(|one| word(expand_prefix(env, one)));
        words.collect::<Vec<_>>().join(" ")
    };
    steps.iter().map(line).collect::<Vec<_>>().join(" && ")
}

fn run(env: &Env, program: &OsStr, arguments: &[OsString]) -> Result<()> {
    let program = expand_prefix(env, program);
    let shown = quoted(&program);
    let path = std::env::var_os("PATH").unwrap_or_else(|| SYSTEM_PATH.into());
    let file = program::find(&program, &path, &env.target.prefix).map_err(|error| {
        error.hint("pass the path of the installer, or add its directory to PATH")
    })?;
    let status = Command::new(&file)
        .arg0(&program)
        .args(arguments.iter().map(|word| expand_prefix(env, word)))
        .env("ENVFS_PREFIX", &env.target.prefix)
        .env("ENVFS_ENV", env.name())
        .status()
        .map_err(|error| program::failure(&file, &error))?;
    let keep = "with --keep, the environment is kept as the command left it";
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (None, Some(nix::libc::SIGINT)) => {
            Err(CommandError::new(Kind::Cancelled, format!("{shown} was interrupted")).hint(keep))
        }
        (code, signal) => {
            let how = match (code, signal) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => String::from("unknown"),
            };
            let message = format!("{shown} failed ({how})");
            Err(CommandError::new(Kind::System, message).hint(keep))
        }
    }
}

/// Unmounts the environment, waiting for processes that the command started and that outlive it.
/// Gives up after a time limit; removing the environment then fails and names the cause.
fn unmount_with_retries(env: &Env) {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while let Err(failure) =
        lifecycle::ensure_unmounted(&env.target, &env.runtime, UnmountMode::Plain, &|| {})
        && failure.kind == Kind::Busy
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn expand_prefix(env: &Env, word: &OsStr) -> OsString {
    replace(word, PREFIX.as_bytes(), env.target.prefix.as_os_str())
}

/// Replaces every occurrence of a placeholder in a word.
fn replace(word: &OsStr, placeholder: &[u8], by: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some(at) = rest
        .windows(placeholder.len())
        .position(|window| window == placeholder)
    {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        out.extend_from_slice(by.as_bytes());
        rest = after.get(placeholder.len()..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_replaced() {
        let filled = replace(
            OsStr::new("--p={prefix}/x:{prefix}"),
            b"{prefix}",
            OsStr::new("/e"),
        );
        assert_eq!(filled, "--p=/e/x:/e");
        assert_eq!(
            replace(OsStr::new("{pre"), b"{prefix}", OsStr::new("/e")),
            "{pre"
        );
    }
}
