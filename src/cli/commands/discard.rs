//! `envfs discard`

use std::ffi::OsString;

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::output::{changes, size};
use crate::daemon::protocol::Summary;

/// Drop changes: all of them, or those under some paths.
///
/// The environment is again as it was committed, also while it is mounted. No command brings the
/// changes back, so it asks first. Where everything is discarded, the changed files themselves are
/// kept below layers/ (envfs paths says where) until envfs gc; those of single paths are gone.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs discard\n  envfs discard -y science lib/python3.12/site-packages/numpy"
)]
pub struct Args {
    /// Environment [default: the active one], and paths in it.
    #[arg(value_name = "[NAME] [PATH]")]
    words: Vec<OsString>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, selection) = context.environment_and_paths(&self.words)?;
        let service = env.service()?;
        if !self.yes {
            let found = Summary::of(&service.changes(&selection)?);
            if found.is_empty() {
                context
                    .output
                    .note(format!("{}: nothing to discard", env.name()));
                return Ok(());
            }
            let question = format!("{}: discard {}?", env.name(), describe(&found));
            context.output.confirm(&question, false)?;
        }
        let progress = context.output.progress();
        let discarded = service.discard(&selection, &progress)?;
        progress.finish();
        if self.json {
            return context.output.json(&discarded);
        }
        let what = if discarded.changes.is_empty() {
            String::from("nothing to discard")
        } else {
            format!("discarded {}", describe(&discarded.changes))
        };
        context.output.note(format!("{}: {what}", env.name()));
        if selection.paths.is_empty() && discarded.changes != Summary::default() {
            let layers = env.environment.layout().layers();
            context.output.note(format!(
                "The files themselves stay below {} until envfs gc",
                layers.display()
            ));
        }
        Ok(())
    }
}

fn describe(summary: &Summary) -> String {
    let bytes = summary.added.bytes + summary.modified.bytes;
    format!("{} ({})", changes(summary), size(bytes))
}
