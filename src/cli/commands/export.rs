//! `envfs export`

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::{Context, Env, active_name};
use crate::cli::error::{CommandError, Result};
use crate::cli::new_file;
use crate::cli::output::{count, size};
use crate::cli::stream;
use crate::commit::{self, ExportedHistory};
use crate::daemon::failure::Failure;
use crate::daemon::lifecycle::State;
use crate::progress::Progress;
use crate::shell::render::word;
use crate::sys::regular;
use crate::sys::text::quoted;

/// Copy the image of a revision to a file.
///
/// The file is plain SquashFS 4.0, which mount, unsquashfs, squashfuse and Apptainer read.
///
/// With --history, the file is an archive of all revisions and tags, or of REV and the revisions
/// before it, which `envfs import` reads. What revisions have in common is stored once.
///
/// If FILE is -, a FIFO or a device as /dev/stdout, it is written to from the beginning to the end,
/// and has a part of the result if the command fails.
///
/// Uncommitted changes are not included.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs export science science.sqfs\n  envfs export science old.sqfs --rev 3\n  envfs export science --history science.history\n  envfs export science --history - | ssh HOST envfs import - science\n  unsquashfs -l science.sqfs"
)]
pub struct Args {
    /// Environment, or NAME@REV [default: the active one], and the file to write, which must not
    /// exist; - for standard output.
    #[arg(value_name = "[NAME] FILE", num_args = 1..=2, required = true)]
    words: Vec<PathBuf>,
    /// Revision, by number or tag [default: the current one].
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Write an archive of the whole history.
    #[arg(long, conflicts_with = "exclude")]
    history: bool,
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
        let (env, named) = context.environment_at(name.as_deref())?;
        let revision = match (&self.rev, named) {
            (Some(_), Some(_)) => {
                return Err(CommandError::usage("the revision is given twice"));
            }
            (Some(rev), None) => Some(backend::revision(&env.environment, rev)?),
            (None, named) => named,
        };
        let source = backend::image_file(&env.environment, revision)?;
        if stream::is_stream(file) {
            return self.stream(context, &env, revision, &source, file);
        }
        match self.force {
            true => new_file::refuse_special(file)?,
            false => new_file::refuse_existing(file)?,
        }
        let progress = context.output.progress();
        if self.history {
            let history = backend::prepare_history(&env.environment, revision, &progress)?;
            let mut done = None;
            new_file::write(file, |output| {
                let written = history.write(output.as_file_mut(), file, &progress);
                done = Some(written.map_err(Failure::from)?);
                Ok(())
            })?;
            progress.finish();
            if let Some(done) = done {
                describe_history(context, &env, &quoted(file), &done);
            }
            return Ok(());
        }
        let bytes = copy(&source, file, &self.exclude, &progress)?;
        progress.finish();
        context
            .output
            .note(format!("{}: {}", quoted(file), size(bytes)));
        Ok(())
    }

    /// Writes to standard output, a FIFO or a device.
    fn stream(
        &self,
        context: &Context,
        env: &Env,
        revision: Option<i64>,
        source: &Path,
        target: &Path,
    ) -> Result<()> {
        let name = word(env.name());
        let history = if self.history { " --history" } else { "" };
        let mut target = stream::Target::open(
            target,
            &format!("envfs export{history} {name} - | ssh HOST envfs import - {name}"),
        )?;
        // Ctrl-C ends the process, which leaves nothing but what was written.
        let bar = context.output.bar();
        if self.history {
            let history = backend::prepare_history(&env.environment, revision, &bar)?;
            let done = history.write(&mut target.file, &target.shown, &bar);
            let done = done.map_err(stream::failed)?;
            bar.finish();
            describe_history(context, env, &target.shown(), &done);
            return Ok(());
        }
        let (mut input, mut path) = (open(source)?, source);
        if !self.exclude.is_empty() {
            // An image is not written from its beginning to its end.
            let doing = format!("cannot create a file in {}", quoted(std::env::temp_dir()));
            input = tempfile::tempfile().map_err(|error| CommandError::io(&doing, &error))?;
            let at = PathBuf::from(format!("/proc/self/fd/{}", input.as_raw_fd()));
            backend::export_without(source, &self.exclude, &at, &bar)?;
            path = Path::new("the new image");
        }
        let (from, to) = ((&input, path), (&mut target.file as _, &*target.shown));
        let bytes = commit::copy_stream(from, to, &bar).map_err(stream::failed)?;
        bar.finish();
        let text = format!("{}: {}", target.shown(), size(bytes));
        context.output.note(text);
        Ok(())
    }
}

/// Says what was exported.
fn describe_history(context: &Context, env: &Env, to: &str, done: &ExportedHistory) {
    if has_changes(env) {
        let name = env.name();
        context.output.warn(format!(
            "uncommitted changes of {name} are not included: envfs status {name}"
        ));
    }
    let of = match done.revisions {
        1 => String::new(),
        _ => format!("; alone, its images have {}", size(done.image_bytes)),
    };
    context.output.note(format!(
        "{to}: {}, {}{of}",
        count(done.revisions, "revision"),
        size(done.bytes)
    ));
}

/// Returns whether an environment has uncommitted changes, as far as that is known.
fn has_changes(env: &Env) -> bool {
    let in_mount = match env.state() {
        Ok(State::Unmounted) | Err(_) => None,
        Ok(_) => env.service().and_then(|service| Ok(service.status()?)).ok(),
    };
    match in_mount {
        Some(status) => !status.changes.is_empty(),
        None => backend::has_changes(&env.environment).unwrap_or(false),
    }
}

/// Copies an image to a temporary file beside the target and renames it once it is complete and
/// synced.
fn copy(source: &Path, target: &Path, exclude: &[PathBuf], progress: &dyn Progress) -> Result<u64> {
    let failed = |path: &Path| {
        let doing = format!("cannot write {}", quoted(path));
        move |error: io::Error| CommandError::io(&doing, &error)
    };
    let input = open(source)?;
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

fn open(image: &Path) -> Result<File> {
    regular::open(image)
        .map_err(|error| CommandError::io(format!("cannot read {}", quoted(image)), &error))
}
