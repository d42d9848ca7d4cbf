//! `envfs clone`

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::creation::{self, CloneOf};
use crate::cli::error::Result;
use crate::cli::output::{changes, size};
use crate::cli::relocation::{self, Moved};
use crate::commit::Sharing;
use crate::environment::EnvName;
use crate::sys::text::{Text, quoted};

/// Create an environment from a revision of another one.
///
/// Both share the image, so no data is copied. The new environment has its own changes and its own
/// history, which begins with that revision. Uncommitted changes are not included: commit them
/// first.
///
/// If files contain the prefix of the first environment, a second revision has the new one in its
/// place, unless --no-relocate is given. See also: envfs relocate
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs clone science experiment\n  envfs clone science old --rev 3\n  envfs clone .venv copy --prefix ~/copy"
)]
pub struct Args {
    /// Environment to clone.
    name: String,
    /// Name of the new environment.
    new: String,
    /// Path where the new environment will be mounted [default: ~/.local/share/envfs/envs/NEW].
    #[arg(long, value_name = "PATH")]
    prefix: Option<PathBuf>,
    /// Revision, by number or tag [default: the current one].
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Do not rewrite files that contain the prefix of the first environment.
    #[arg(long)]
    no_relocate: bool,
    /// Clone although some files have no space for the new prefix.
    #[arg(long, conflicts_with = "no_relocate")]
    force: bool,
    /// Message to record in the history [default: clone of NAME, revision REV].
    #[arg(short, long)]
    message: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Cloned {
    name: String,
    prefix: Text,
    /// Name of the environment that was cloned, and its revision.
    source: String,
    source_revision: i64,
    image_bytes: u64,
    /// `hard-link`, `blocks` or `copy`.
    sharing: Sharing,
    /// How files were rewritten, if they contained another prefix.
    relocated: Option<Moved>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(Some(&self.name))?;
        let new = EnvName::new(&self.new)?;
        let uncommitted = env.service()?.status()?.changes;
        let wanted = CloneOf {
            prefix: self.prefix.as_deref(),
            revision: self.rev.as_deref(),
            message: self.message.as_deref(),
            relocate: relocation::force(self.no_relocate, self.force),
        };
        let (output, progress) = (&context.output, context.output.progress());
        let (cloned, revision, prefix) = creation::clone(&env, &new, &wanted, output, &progress)?;
        progress.finish();
        let relocated = cloned.relocated.as_ref();
        let relocated = relocated.map(|done| Moved::of(done, &prefix));
        let cloned = Cloned {
            name: new.to_string(),
            prefix: prefix.into(),
            source: env.name().to_owned(),
            source_revision: revision,
            image_bytes: cloned.image_bytes,
            sharing: cloned.sharing,
            relocated,
        };
        if !uncommitted.is_empty() {
            context.output.warn(format!(
                "uncommitted changes of {} are not in {new}: {}",
                env.name(),
                changes(&uncommitted)
            ));
        }
        if let Some(moved) = &cloned.relocated {
            moved.warn(&context.output);
        }
        if self.json {
            return context.output.json(&cloned);
        }
        let how = match cloned.sharing {
            Sharing::HardLink | Sharing::Blocks => "shared",
            Sharing::Copy => "copied, because this file system cannot share it",
        };
        context.output.note(format!(
            "{new}: cloned revision {revision} of {}; image {}, {how}",
            env.name(),
            size(cloned.image_bytes)
        ));
        if let Some(moved) = &cloned.relocated {
            context.output.note(format!(
                "  relocated from {} to {}: {}",
                moved.sources(),
                quoted(&cloned.prefix.0),
                moved.describe()
            ));
        }
        context.output.note(format!("Use it: envfs activate {new}"));
        Ok(())
    }
}
