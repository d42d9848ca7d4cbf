//! `envfs import`

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::cli::backend::{self, NewOptions};
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::output::size;
use crate::daemon::failure::Kind;
use crate::environment::EnvName;
use crate::squashfs::Compression;

/// Pack a directory, an archive or an image into a new environment.
///
/// A directory is packed into one compressed image, which is then compared with the directory
/// before anything is said to be done; the directory stays as it is. A .tar archive (plain, .gz,
/// .xz, .zst; as conda-pack makes) is unpacked into an image. A SquashFS image (of mksquashfs,
/// conda-pack or envfs) is taken as it is.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs import ~/miniforge3/envs/science science\n  envfs import science.tar.gz science\n  envfs import science.sqfs science --prefix ~/envs/science"
)]
pub struct Args {
    /// Directory, archive or image.
    source: PathBuf,
    /// Name of the new environment.
    name: String,
    #[command(flatten)]
    options: ImportOptions,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// How a new environment is made; shared with `create`.
#[derive(Debug, ClapArgs)]
pub struct ImportOptions {
    /// Where to mount it [default: ~/.local/share/envfs/envs/NAME].
    #[arg(long, value_name = "PATH")]
    pub prefix: Option<PathBuf>,
    /// Codec and level of the image: zstd:3, xz, gzip, lz4, none [default: zstd].
    #[arg(long, value_name = "CODEC[:LEVEL]")]
    pub compression: Option<String>,
    /// Level of compression as conda-pack counts: 0 stores, 1 to 8 are zstd, 9 is xz.
    #[arg(
        long,
        value_name = "0-9",
        conflicts_with = "compression",
        value_parser = clap::value_parser!(u8).range(0..=9)
    )]
    pub compress_level: Option<u8>,
    /// Block size of the image in bytes, a power of two from 4096 to 1048576 [default: 131072].
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u32>,
    /// What to say about it in the history.
    #[arg(short, long, default_value = "")]
    pub message: String,
    /// Threads that compress [default: one for each processor].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Leave out what this matches: *.pyc or __pycache__ anywhere, pkgs/cache below the source; may
    /// be repeated.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<PathBuf>,
}

/// Codec and level, from either way to say it.
pub fn compression(named: Option<&str>, level: Option<u8>) -> Option<String> {
    let by_level = level.and_then(Compression::from_conda_pack_level);
    named
        .map(str::to_owned)
        .or(by_level.map(|compression| compression.to_string()))
}

impl ImportOptions {
    /// Returns them for the rooms below.
    pub fn to_new_options(&self) -> NewOptions {
        NewOptions {
            prefix: self.prefix.clone(),
            compression: compression(self.compression.as_deref(), self.compress_level),
            block_size: self.block_size,
            threads: self.threads,
            message: self.message.clone(),
            exclude: self.exclude.clone(),
        }
    }
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let name = EnvName::new(&self.name)?;
        if let Err(error) = std::fs::symlink_metadata(&self.source) {
            let doing = format!("cannot import {}", self.source.display());
            let mut failed = CommandError::io(doing, &error);
            if failed.kind == Kind::NotFound {
                failed = failed.hint("a directory, a .tar archive or a SquashFS image is wanted");
            }
            return Err(failed);
        }
        let store = context.store()?;
        let progress = context.output.progress();
        let imported = backend::import(
            &store,
            &name,
            &self.source,
            &self.options.to_new_options(),
            &progress,
        )?;
        progress.finish();
        if self.json {
            return context.output.json(&imported);
        }
        context.output.note(format!(
            "{name}: {} files, {} packed into one image of {}, verified",
            imported.files,
            size(imported.content_bytes),
            size(imported.image_bytes),
        ));
        context
            .output
            .note(format!("Use it: envfs activate {name}"));
        Ok(())
    }
}
