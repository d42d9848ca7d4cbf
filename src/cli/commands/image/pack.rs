//! `envfs image pack`

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::commands::import::{Exclude, PackOptions};
use crate::cli::context::Context;
use crate::cli::creation::{self, NewOptions};
use crate::cli::error::{CommandError, Result};
use crate::cli::new_file;
use crate::cli::output::{objects, size};
use crate::squashfs::writer::DataStats;
use crate::sys::text::quoted;

/// The arguments of `envfs image pack`.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Directory to pack.
    directory: PathBuf,
    /// The image file to write, which must not exist.
    file: PathBuf,
    #[command(flatten)]
    options: PackOptions,
    #[command(flatten)]
    exclude: Exclude,
    /// Replace the file if it exists.
    #[arg(short, long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The result, as JSON.
#[derive(Debug, Serialize)]
struct Packed {
    entries: u64,
    content_bytes: u64,
    image_bytes: u64,
    blocks_compressed: u64,
    blocks_stored: u64,
    fragments: u64,
    duplicates: u64,
}

impl Args {
    /// Runs the command.
    pub(super) fn run(&self, context: &Context) -> Result<()> {
        if self.directory.exists() && !self.directory.is_dir() {
            let message = format!("{} is not a directory", quoted(&self.directory));
            return Err(CommandError::usage(message));
        }
        if !self.force {
            new_file::refuse_existing(&self.file)?;
        }
        let options = NewOptions {
            exclude: self.exclude.exclude.clone(),
            ..NewOptions::from(&self.options)
        };
        let progress = context.output.progress();
        let mut done = None;
        new_file::write(&self.file, |output| {
            let config = context.store()?.config()?;
            done = Some(creation::pack(
                &config,
                &self.directory,
                &options,
                output.path(),
                &progress,
            )?);
            Ok(())
        })?;
        progress.finish();
        let Some(done) = done else { return Ok(()) };
        let DataStats {
            blocks_compressed,
            blocks_stored_raw,
            fragments,
            duplicates,
            ..
        } = done.stats.data;
        if self.json {
            return context.output.json(&Packed {
                entries: done.entries,
                content_bytes: done.content_bytes,
                image_bytes: done.stats.image_size,
                blocks_compressed,
                blocks_stored: blocks_stored_raw,
                fragments,
                duplicates,
            });
        }
        context.output.note(format!(
            "{}: packed {}, {} into {}",
            quoted(&self.file),
            objects(done.entries),
            size(done.content_bytes),
            size(done.stats.image_size)
        ));
        Ok(())
    }
}
