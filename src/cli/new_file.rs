//! Writes a file that appears under its name only when it is complete and durable.

use std::fs;
use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

use super::error::{CommandError, Result};
use crate::daemon::failure::Kind;
use crate::sys::durable::{sync_dir, sync_file};
use crate::sys::text::quoted;

/// Fails if the target exists.
pub(super) fn refuse_existing(target: &Path) -> Result<()> {
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(
        CommandError::new(Kind::Conflict, format!("{} already exists", quoted(target)))
            .hint("choose another name, or replace it with --force"),
    )
}

/// Fails if the target is something else than a file, which must not be replaced.
pub(super) fn refuse_special(target: &Path) -> Result<()> {
    match fs::metadata(target) {
        Ok(meta) if !meta.is_file() => {
            let message = format!("{} is not a regular file", quoted(target));
            Err(CommandError::new(Kind::Conflict, message).hint("choose another name"))
        }
        _ => Ok(()),
    }
}

/// Creates a temporary file beside `target`, lets `fill` write it, and renames it. Removes it on
/// failure.
pub(super) fn write(
    target: &Path,
    fill: impl FnOnce(&mut NamedTempFile) -> Result<()>,
) -> Result<()> {
    refuse_special(target)?;
    let doing = format!("cannot write {}", quoted(target));
    let failed = |error: io::Error| CommandError::io(&doing, &error);
    // The file that a link leads to is replaced, and not the link.
    let real = fs::canonicalize(target);
    let target = real.as_deref().unwrap_or(target);
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut output = tempfile::Builder::new()
        .prefix(".envfs-new-")
        // The umask applies, and an error does not name the temporary file.
        .make_in(directory, |path| {
            fs::File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path)
        })
        .map_err(|error| CommandError::of_named(&doing, &error))?;
    fill(&mut output)?;
    sync_file(output.as_file()).map_err(failed)?;
    output
        .persist(target)
        .map_err(|error| failed(error.error))?;
    sync_dir(directory).map_err(failed)
}
