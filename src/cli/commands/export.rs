//! `envfs export`

use std::io;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::{Context, active_name};
use crate::cli::error::{CommandError, Result};
use crate::cli::new_file;
use crate::cli::output::size;
use crate::commit;
use crate::daemon::failure::Failure;
use crate::progress::Progress;
use crate::sys::regular;
use crate::sys::text::quoted;

/// Copy the image of a revision to a file.
///
/// The file is plain SquashFS 4.0, which mount, unsquashfs, squashfuse and Apptainer read.
/// Uncommitted changes are not included.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs export science science.sqfs\n  envfs export science old.sqfs --rev 3\n  unsquashfs -l science.sqfs"
)]
pub struct Args {
    /// Environment [default: the active one], and the file to write, which must not exist.
    #[arg(value_name = "[NAME] FILE", num_args = 1..=2, required = true)]
    words: Vec<PathBuf>,
    /// Revision, by number or tag [default: the current one].
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Replace the file if it exists.
    #[arg(short, long)]
    force: bool,
    /// Exclude matching paths: *.pyc or __pycache__ anywhere, pkgs/cache below the root. Can be
    /// repeated. The rest is copied without recompressing it.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<PathBuf>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (name, file) = match self.words.as_slice() {
            [name, file, ..] => (Some(name.to_string_lossy()), file),
            [file] => (None, file),
            [] => return Err(CommandError::usage("no file given")),
        };
        if name.is_none() && active_name().is_none() {
            return Err(CommandError::usage("expected an environment and a file")
                .hint("envfs export NAME FILE"));
        }
        let env = context.environment(name.as_deref())?;
        let revision = match &self.rev {
            Some(rev) => Some(backend::revision(&env.environment, rev)?),
            None => None,
        };
        let source = backend::image_file(&env.environment, revision)?;
        if !self.force {
            new_file::refuse_existing(file)?;
        }
        let progress = context.output.progress();
        let bytes = copy(&source, file, &self.exclude, &progress)?;
        progress.finish();
        context
            .output
            .note(format!("{}: {}", quoted(file), size(bytes)));
        Ok(())
    }
}

/// Copies an image to a temporary file beside the target and renames it once it is complete and
/// synced.
fn copy(source: &Path, target: &Path, exclude: &[PathBuf], progress: &dyn Progress) -> Result<u64> {
    let failed = |path: &Path| {
        let doing = format!("cannot write {}", quoted(path));
        move |error: io::Error| CommandError::io(&doing, &error)
    };
    let input = regular::open(source)
        .map_err(|error| CommandError::io(format!("cannot read {}", quoted(source)), &error))?;
    let mut total = input.metadata().map_err(failed(source))?.len();
    new_file::write(target, |output| {
        if !exclude.is_empty() {
            backend::export_without(source, exclude, output.path(), progress)?;
            total = output.path().metadata().map_err(failed(target))?.len();
        } else {
            let (from, to) = ((&input, source), (output.as_file(), target));
            commit::copy_file(from, to, progress).map_err(Failure::from)?;
        }
        Ok(())
    })?;
    Ok(total)
}
