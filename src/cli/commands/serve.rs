//! `envfs __serve`: serves a mount without a store until it is unmounted. Started by `envfs mount`.

use clap::Args as ClapArgs;

use crate::cli::error::{CommandError, Result};
use crate::daemon::direct;
use crate::daemon::private;

/// Serve an image (for internal use).
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The description of a private session, as JSON.
    #[arg(long)]
    private: Option<String>,
    /// The description of the mount, as JSON.
    what: String,
}

impl Args {
    /// Runs the daemon. Failures are sent through the pipe to the process that started it, and
    /// logged.
    pub fn run(&self) -> Result<()> {
        let malformed = |error: serde_json::Error| CommandError::usage(error.to_string());
        let what = serde_json::from_str(&self.what).map_err(malformed)?;
        let served = match &self.private {
            Some(spec) => private::run(&what, &serde_json::from_str(spec).map_err(malformed)?),
            None => direct::run(&what),
        };
        served.map_err(CommandError::from)
    }
}
