//! `envfs clone`

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::output::{changes, count, size};
use crate::commit::{Embedded, Sharing};
use crate::environment::EnvName;
use crate::sys::text::{Text, quoted};

/// Create an environment from a revision of another one.
///
/// Both share the image, so no data is copied. The new environment has its own changes and its own
/// history, which begins with that revision. Uncommitted changes are not included: commit them
/// first.
///
/// Files that contain the prefix of the first environment are not rewritten; a warning tells which
/// kinds there are.
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
    /// Revision, by number or name [default: the current one].
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
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
    /// Files that contain the prefix of the source.
    embedded: Embedded,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(Some(&self.name))?;
        let new = EnvName::new(&self.new)?;
        let uncommitted = env.service()?.status()?.changes;
        let wanted = self.rev.as_deref();
        let (cloned, revision, embedded, prefix) = backend::clone(
            &env,
            &new,
            self.prefix.as_deref(),
            wanted,
            self.message.as_deref(),
            &context.output,
        )?;
        let cloned = Cloned {
            name: new.to_string(),
            prefix: prefix.into(),
            source: env.name().to_owned(),
            source_revision: revision,
            image_bytes: cloned.image_bytes,
            sharing: cloned.sharing,
            embedded,
        };
        if !uncommitted.is_empty() {
            context.output.warn(format!(
                "uncommitted changes of {} are not in {new}: {}",
                env.name(),
                changes(&uncommitted)
            ));
        }
        if cloned.prefix.as_path() != env.target.prefix && !embedded.is_empty() {
            warn_of_embedded(context, &new, &env.target.prefix, &embedded);
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
        context.output.note(format!("Use it: envfs activate {new}"));
        Ok(())
    }
}

/// Warns of files that still contain the prefix of the environment that was cloned.
fn warn_of_embedded(context: &Context, new: &EnvName, prefix: &Path, embedded: &Embedded) {
    let mut kinds = Vec::new();
    if embedded.scripts > 0 {
        kinds.push(format!("{} in bin", count(embedded.scripts, "script")));
    }
    if embedded.texts > 0 {
        kinds.push(format!(
            "{} in bin",
            count(embedded.texts, "other text file")
        ));
    }
    if embedded.pyvenv {
        kinds.push("pyvenv.cfg".to_owned());
    }
    if embedded.conda_packages > 0 {
        kinds.push(format!(
            "files of {}",
            count(embedded.conda_packages, "conda package")
        ));
    }
    context.output.warn(format!(
        "{new} contains the prefix {} in: {}",
        quoted(prefix),
        kinds.join(", ")
    ));
    let advice = match embedded.conda_packages {
        0 => "start Python programs as python -m NAME, or reinstall their packages",
        _ => "programs that need their own path use that environment",
    };
    context.output.note(format!(
        "  These are not rewritten: {advice}. For a copy without them, install anew: envfs create \
         NAME -- INSTALLER {{prefix}}"
    ));
}
