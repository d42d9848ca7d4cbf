//! `envfs create`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;

use super::import::ImportOptions;
use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::program;
use crate::daemon::client::Client;
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle;
use crate::daemon::protocol::{CommitOptions, Service};
use crate::daemon::service::BRIEF;
use crate::environment::EnvName;
use crate::shell::plan::SYSTEM_PATH;
use crate::sys::process;
use crate::sys::text::quoted;

/// Make an empty environment, or one that an installer fills.
///
/// Without a command the environment is empty: mount or activate it and install what you like,
/// at the path where it will be used. With a command, the environment is mounted, the command is
/// run with {prefix} replaced by that path, and what it made is committed. If the command fails or
/// is interrupted, the environment is removed again; if only the commit fails, it stays, to be
/// committed later.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs create tools\n  envfs create web -- python3 -m venv {prefix}\n  envfs create sci -- conda create -y -p {prefix} numpy pandas"
)]
pub struct Args {
    /// Name of the new environment.
    name: String,
    #[command(flatten)]
    options: ImportOptions,
    /// Keep the environment also if the command fails.
    #[arg(long)]
    keep: bool,
    /// The installer and its arguments.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let name = EnvName::new(&self.name)?;
        let store = context.store()?;
        let options = self.options.to_new_options();
        let environment = backend::create(&store, &name, &options, &context.output)?;
        let env = Env::new(store, environment)?;
        let prefix = quoted(&env.target.prefix);
        let Some((program, arguments)) = self.command.split_first() else {
            context
                .output
                .note(format!("{name} is made, empty, for {prefix}"));
            context
                .output
                .note(format!("Use it: envfs activate {name}"));
            return Ok(());
        };
        // Ctrl-C is for the command; what it leaves is ours to remove.
        if let Err(error) = process::outlive_interrupts() {
            tracing::debug!(%error, "Ctrl-C will end us at once");
        }
        match install(&env, program, arguments) {
            Ok(client) => self
                .commit(context, &env, client, program)
                .map_err(|error| {
                    error.hint(format!(
                        "the command is done, and what it made is kept: envfs commit {name}"
                    ))
                }),
            Err(error) => {
                // The first failure is the one to tell of.
                if !self.keep {
                    unmount_patiently(&env);
                    if let Err(second) = super::remove::remove_environment(env) {
                        context
                            .output
                            .warn(format!("{name} stays behind: {}", second.message));
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
        program: &OsStr,
    ) -> Result<()> {
        let program = fill(env, program);
        let shown = quoted(&program);
        let Some(client) = client else {
            return Err(CommandError::new(
                Kind::Daemon,
                "the daemon cannot be spoken with",
            ));
        };
        let progress = context.output.progress();
        let message = match self.options.message.as_str() {
            "" => format!("create with {shown}"),
            message => message.to_owned(),
        };
        let options = CommitOptions {
            message,
            command: crate::commit::command_line(),
            compression: super::import::compression(
                self.options.pack.compression.as_deref(),
                self.options.pack.compress_level,
            ),
            block_size: self.options.pack.block_size,
            threads: self.options.pack.threads,
            ..CommitOptions::default()
        };
        let committed = client.commit(&options, &progress)?;
        progress.finish();
        super::commit::tell(context, env.name(), &committed);
        Ok(())
    }
}

/// Mounts the environment and lets the command fill it.
fn install(env: &Env, program: &OsStr, arguments: &[OsString]) -> Result<Option<Client>> {
    let client = env.ensure_mounted()?;
    let program = fill(env, program);
    let shown = quoted(&program);
    let path = std::env::var_os("PATH").unwrap_or_else(|| SYSTEM_PATH.into());
    let file = program::find(&program, &path, &env.target.prefix)
        .map_err(|error| error.hint("give the path of the installer, or put it in PATH"))?;
    let status = Command::new(&file)
        .arg0(&program)
        .args(arguments.iter().map(|word| fill(env, word)))
        .env("ENVFS_PREFIX", &env.target.prefix)
        .env("ENVFS_ENV", env.name())
        .status()
        .map_err(|error| program::failure(&file, &error))?;
    let stays = "with --keep the environment stays as the command left it";
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(client),
        (None, Some(nix::libc::SIGINT)) => {
            Err(CommandError::new(Kind::Cancelled, format!("{shown} was interrupted")).hint(stays))
        }
        (code, signal) => {
            let how = match (code, signal) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => String::from("unknown"),
            };
            let message = format!("{shown} failed ({how})");
            Err(CommandError::new(Kind::System, message).hint(stays))
        }
    }
}

/// Unmounts as soon as what the command had started has ended, which may come after its own end. Whoever
/// removes the environment next hears of what is in the way then.
fn unmount_patiently(env: &Env) {
    let deadline = Instant::now() + BRIEF;
    while let Err(failure) = lifecycle::ensure_unmounted(&env.target, &env.runtime, false, &|| {})
        && failure.kind == Kind::Busy
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn fill(env: &Env, word: &OsStr) -> OsString {
    replace(word, b"{prefix}", env.target.prefix.as_os_str())
}

/// Replaces every occurrence of a mark in a word.
fn replace(word: &OsStr, mark: &[u8], by: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some(place) = rest.windows(mark.len()).position(|window| window == mark) {
        let (before, after) = rest.split_at(place);
        out.extend_from_slice(before);
        out.extend_from_slice(by.as_bytes());
        rest = after.get(mark.len()..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_replaced() {
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
