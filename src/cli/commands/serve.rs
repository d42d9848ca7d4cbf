//! `envfs __serve`: serves a mount without a store until it is unmounted. Started by `envfs mount`.

use clap::Args as ClapArgs;

use crate::cli::error::{CommandError, Result};
use crate::daemon::direct;

/// Serve an image (for internal use).
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The description of the mount, as JSON.
    what: String,
}

impl Args {
    /// Runs the daemon. Failures are sent through the pipe to the process that started it, and
    /// logged.
    pub fn run(&self) -> Result<()> {
        let what = serde_json::from_str(&self.what)
            .map_err(|error| CommandError::usage(error.to_string()))?;
        direct::run(&what).map_err(CommandError::from)
    }
}
