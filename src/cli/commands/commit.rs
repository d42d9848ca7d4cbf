//! `envfs commit`

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::output::{changes, size};
use crate::daemon::protocol::{CommitOptions, Committed};

/// Make a new revision of what the environment holds now.
///
/// Writes a new image: what did not change is carried over as it is, what changed is compressed.
/// It works while the environment is used. Ctrl-C leaves everything as it was. Where nothing
/// changed there is no new revision.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs commit -m 'add polars'\n  envfs commit science --rebuild --compression xz"
)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// What to say about it in the history.
    #[arg(short, long, default_value = "")]
    message: String,
    /// Build the image from nothing instead of on the old one.
    #[arg(long, alias = "full")]
    rebuild: bool,
    /// Leave out what belongs to nothing any more, however little it is.
    #[arg(long)]
    compact: bool,
    /// Say what was carried over, compressed and left dead.
    #[arg(long)]
    stats: bool,
    /// Codec and level of the image: zstd:3, xz, gzip, lz4, none. Means --rebuild.
    #[arg(long, value_name = "CODEC[:LEVEL]")]
    compression: Option<String>,
    /// Block size of the image in bytes. Means --rebuild.
    #[arg(long, value_name = "BYTES")]
    block_size: Option<u32>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        let options = CommitOptions {
            message: self.message.clone(),
            command: crate::commit::command_line(),
            rebuild: self.rebuild || self.compression.is_some() || self.block_size.is_some(),
            compact: self.compact,
            compression: self.compression.clone(),
            block_size: self.block_size,
        };
        let service = env.service()?;
        let progress = context.output.progress();
        let committed = service.commit(&options, &progress)?;
        progress.finish();
        if self.json {
            return context.output.json(&committed);
        }
        tell(context, env.name(), &committed);
        if self.stats && committed.revision.is_some() {
            for (what, value) in [
                ("carried over", size(committed.carried_bytes)),
                ("written", size(committed.written_bytes)),
                ("dead", size(committed.dead_bytes)),
                ("blocks carried", committed.blocks_carried.to_string()),
                ("blocks compressed", committed.blocks_compressed.to_string()),
            ] {
                context.output.line(format!("{what:18} {value}"))?;
            }
        }
        Ok(())
    }
}

/// Says what a commit did.
pub fn tell(context: &Context, name: &str, committed: &Committed) {
    let Some(revision) = committed.revision else {
        context.output.note(format!("{name}: nothing changed"));
        return;
    };
    context.output.note(format!(
        "{name}: revision {revision}, image {} ({} carried over); {}",
        size(committed.image_bytes),
        size(committed.carried_bytes),
        changes(&committed.changes),
    ));
}
