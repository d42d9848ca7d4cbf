//! `envfs mount`

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::Result;

/// Mount an environment at its prefix.
///
/// Starts a daemon in the background, unless the environment is mounted already; a mount whose
/// daemon was killed is replaced. Prints where it is mounted.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs mount science\n  cd \"$(envfs mount science)\"")]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let env = context.environment(self.name.as_deref())?;
        env.ensure_mounted()?;
        context
            .output
            .line(env.target.prefix.as_os_str().as_bytes())
    }
}
