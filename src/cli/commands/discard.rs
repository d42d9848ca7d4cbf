//! `envfs discard`

use std::ffi::OsString;
use std::path::Path;

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::output::{changes, size};
use crate::daemon::protocol::{DiscardOptions, Discarded};
use crate::sys::text::quoted;
use crate::sys::walk;
use crate::union::Summary;

/// Discard uncommitted changes, all or those below some paths.
///
/// Restores the committed state, even while the environment is mounted. Asks for confirmation. The
/// changed files are kept until envfs gc: in the trash if everything is discarded, from which envfs
/// undo restores them, and in strays/ for single paths (envfs paths shows it).
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs discard\n  envfs discard -y science lib/python3.12/site-packages/numpy"
)]
pub struct Args {
    /// Environment [default: the active one], and paths in it.
    #[arg(value_name = "[NAME] [PATH]")]
    words: Vec<OsString>,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, selection) = context.environment_and_paths(&self.words)?;
        let service = env.service()?;
        if !self.yes {
            let found = Summary::of(&service.changes(&selection)?);
            if found.is_empty() {
                if self.json {
                    return context.output.json(&Discarded::default());
                }
                context
                    .output
                    .note(format!("{}: nothing to discard", env.name()));
                return Ok(());
            }
            let question = format!("{}: discard {}?", env.name(), describe(&found));
            context.output.confirm(&question)?;
        }
        let options = DiscardOptions {
            selection: selection.clone(),
            command: crate::commit::command_line(),
        };
        let progress = context.output.progress();
        let discarded = service.discard(&options, &progress)?;
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
        if selection.paths.is_empty() {
            if !discarded.changes.is_empty() {
                context.output.note("To restore them: envfs undo");
            }
            return Ok(());
        }
        let strays = env.environment.layout().strays();
        let found = &discarded.changes;
        if found.added.entries + found.modified.entries + found.touched.entries > 0
            && has_files(&strays)
        {
            context.output.note(format!(
                "Their files are kept in {} until envfs gc",
                quoted(&strays)
            ));
        }
        Ok(())
    }
}

/// Returns whether the directory contains any file. Removals and changes of attributes leave none.
fn has_files(dir: &Path) -> bool {
    let mut found = false;
    walk::for_each_file(dir, &mut |meta| {
        found = meta.is_file();
        !found
    });
    found
}

fn describe(summary: &Summary) -> String {
    let bytes = summary.added.bytes + summary.modified.bytes;
    format!("{} ({})", changes(summary), size(bytes))
}
