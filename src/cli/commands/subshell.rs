//! `envfs shell`

use std::ffi::OsString;

use clap::Args as ClapArgs;

use super::run;
use crate::cli::access::Access;
use crate::cli::context::{Context, active_name};
use crate::cli::error::{CommandError, Result};
use crate::cli::session::DefaultSessionArgs;

/// The shell of users without `SHELL`.
const DEFAULT: &str = "/bin/sh";

/// Start a shell in an environment.
///
/// Starts $SHELL with the variables of an activated shell, as `envfs run NAME "$SHELL"` does, and
/// needs no hook. Leave it with `exit`. With --private, only this shell and its children see the
/// mount.
#[derive(Debug, Clone, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs shell science\n  envfs shell --private science\n  envfs shell --private --ephemeral science@3"
)]
pub struct Args {
    /// Mount the environment so that only the shell and its children see it.
    #[arg(long)]
    private: bool,
    #[command(flatten)]
    session: DefaultSessionArgs,
    /// Environment, or a revision of it as NAME@REV [default: the active environment].
    name: Option<String>,
}

impl Args {
    /// Returns how the command accesses the store.
    pub(in crate::cli) fn access(&self) -> Access {
        Access::of_session(self.session.kind(self.name.as_deref()))
    }

    /// Executes the shell; returns only on failure.
    pub fn run(&self, context: &Context) -> Result<()> {
        let name = self.name.clone().or_else(active_name).ok_or_else(|| {
            CommandError::usage("no environment given and none is active")
                .hint("give its name (envfs list shows them): envfs shell NAME")
        })?;
        let shell = user_shell();
        let mut args = run::Args::of(name, self.session.clone(), shell);
        args.private = self.private;
        args.run(context)
    }
}

/// Returns the shell of the user.
pub(super) fn user_shell() -> OsString {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    shell.unwrap_or_else(|| OsString::from(DEFAULT))
}
