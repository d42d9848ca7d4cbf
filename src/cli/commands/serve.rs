//! `envfs __serve`: serves a mount without a store until it is unmounted. Started by `envfs mount`.

use clap::Args as ClapArgs;

use crate::cli::error::{CommandError, Result};
use crate::daemon::direct;

/// Serve an image (started by envfs itself).
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// What to mount where, as JSON.
    what: String,
}

impl Args {
    /// Does it. Its failure was told on the pipe; the log has it as well.
    pub fn run(&self) -> Result<()> {
        let what = serde_json::from_str(&self.what)
            .map_err(|error| CommandError::usage(error.to_string()))?;
        direct::run(&what).map_err(CommandError::from)
    }
}
