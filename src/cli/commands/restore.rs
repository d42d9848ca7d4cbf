//! `envfs restore`

use std::ffi::OsString;

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::output::size;
use crate::cli::revisions;
use crate::daemon::protocol::Since;
use crate::union::{Restored, Tally};

/// Restore single paths as they were in a revision.
///
/// The restored files are ordinary uncommitted changes: look at them with `envfs diff`, then commit
/// or discard them. Restores directories with everything below them, and removes paths that did not
/// exist in the revision. All paths change at once, even while the environment is used. envfs undo
/// takes it back.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs restore science lib/python3.12/site-packages/numpy --from 3\n  envfs restore etc/app.ini bin/tool --from before-upgrade\n\nenvfs rollback restores a whole revision."
)]
pub struct Args {
    /// Environment [default: the active one], and the paths to restore.
    #[arg(value_name = "[NAME] PATH", required = true)]
    words: Vec<OsString>,
    /// Revision, by number or tag.
    #[arg(long, value_name = "REV")]
    from: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, paths) = context.environment_and_rest(&self.words)?;
        if paths.is_empty() {
            return Err(CommandError::usage("no path given").hint(format!(
                "envfs rollback {} {} restores the whole revision",
                env.name(),
                self.from
            )));
        }
        let selection = env.select(paths)?;
        if selection.paths.is_empty() {
            let hint = format!("envfs rollback {} {}", env.name(), self.from);
            return Err(
                CommandError::usage("the prefix itself is restored by rollback").hint(hint),
            );
        }
        let revision = revisions::number(&env, &self.from)?;
        let service = env.service()?;
        let progress = context.output.progress();
        let from = Since {
            command: crate::commit::command_line(),
            revision,
            selection,
        };
        let restored = service.restore(&from, &progress)?;
        progress.finish();
        if self.json {
            return context.output.json(&restored);
        }
        context
            .output
            .note(format!("{}: {}", env.name(), describe(&restored)));
        Ok(())
    }
}

fn describe(restored: &Restored) -> String {
    let part = |tally: Tally, what: &str| {
        (tally.entries > 0).then(|| format!("{} {what} ({})", tally.entries, size(tally.bytes)))
    };
    let parts: Vec<String> = [
        part(restored.added, "added"),
        part(restored.changed, "changed"),
        part(restored.removed, "removed"),
    ]
    .into_iter()
    .flatten()
    .collect();
    match parts.is_empty() {
        true => String::from("nothing differs"),
        false => format!("restored: {}", parts.join(", ")),
    }
}
