//! `envfs stats`

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::daemon::failure::Kind;

/// Show what the kernel has asked of a mounted environment since it was mounted.
///
/// Requests by kind, bytes read and written, and how many objects the kernel holds. What the kernel
/// answers from its own caches is not in here: that is the point of them.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs stats science\n  envfs stats --json | jq .reads")]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        let stats = env.service()?.stats()?;
        let empty = stats.as_object().is_none_or(serde_json::Map::is_empty);
        if empty {
            let message = format!("{} is not mounted, so nothing is counted", env.name());
            return Err(CommandError::new(Kind::NotFound, message)
                .hint(format!("envfs mount {}", env.name())));
        }
        if self.json {
            return context.output.json(&stats);
        }
        for (what, value) in stats.as_object().into_iter().flatten() {
            context
                .output
                .line(format!("{:18} {value}", what.replace('_', " ")))?;
        }
        Ok(())
    }
}
