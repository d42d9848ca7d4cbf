//! `envfs import`

mod history;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::creation::{self, Imported, NewOptions};
use crate::cli::error::{CommandError, Result};
use crate::cli::in_place::{self, IfChanged, IfUsed};
use crate::cli::output::{self, size};
use crate::cli::relocation;
use crate::cli::stream::{self, Received};
use crate::commit;
use crate::daemon::failure::Kind;
use crate::environment::{EnvName, InPlace};
use crate::shell::render::word;
use crate::squashfs::Compression;
use crate::squashfs::format::{MAX_BLOCK_SIZE, MIN_BLOCK_SIZE};
use crate::sys::text::{Text, quoted};

/// Pack a directory, an archive or an image into a new environment.
///
/// A directory is packed into one compressed image, which is then compared with the directory. The
/// directory is not changed. A .tar archive (plain, .gz, .xz or .zst, as from conda-pack) is
/// converted to an image. A SquashFS image (of mksquashfs, conda-pack or envfs) is copied
/// unchanged, also from inside an AppImage or a SIF container.
///
/// Conda and Python environments contain their own path in their files, which is replaced by the
/// path where the new environment will be mounted, as conda does when it installs packages (also in
/// archives of conda-pack, which then need no conda-unpack). If a file has no space for that path,
/// the import fails; --force leaves such files as they are, and --no-relocate all.
///
/// An archive of `envfs export --history` becomes an environment with all its revisions and tags,
/// by default of the same name. If that environment exists and has the same origin, only the new
/// revisions are added to it.
///
/// If the source is -, standard input is read, and stored in a file without a name in the store
/// until the import is complete. The same holds for a FIFO, as in <(ssh HOST envfs export NAME -).
///
/// With --in-place the new environment takes the place of the directory, which is renamed to
/// DIR.envfs-backup, so nothing in it has to be rewritten. Shells, package managers and IDEs find
/// everything at the same path.
/// When all works, --finish deletes the backup; --undo puts it back and removes the environment.
/// NAME is then optional: it is the name of the directory, or of the project that a .venv, a
/// node_modules or a pixi environment belongs to.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs import ~/tree tree\n  envfs import --in-place ~/miniforge3/envs/science\n  envfs import --in-place .venv && envfs import --finish .venv\n  envfs import science.tar.gz science\n  envfs import science.sqfs science --prefix ~/envs/science\n  envfs import ~/tree tree2 --profile tree\n  envfs import science.history\n  ssh HOST envfs export science --history - | envfs import -"
)]
pub struct Args {
    /// Directory, archive or image; - for standard input.
    #[arg(required_unless_present_any = ["finish", "undo"])]
    source: Option<PathBuf>,
    /// Name of the new environment.
    ///
    /// May be omitted with --in-place and for the archive of a history.
    name: Option<String>,
    #[command(flatten)]
    options: ImportOptions,
    #[command(flatten)]
    exclude: Exclude,
    /// Offset of the SquashFS image in the source. Detected for AppImages and SIF containers.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Order the data of a directory's files by this profile: the files that programs read first
    /// come first. FILE contains their paths, one a line; NAME is an environment with a profile of
    /// its own.
    #[arg(long, value_name = "FILE|NAME")]
    profile: Option<PathBuf>,
    /// Mount the environment in the place of the directory, which is kept as a backup.
    #[arg(long, conflicts_with_all = ["prefix", "exclude", "offset"])]
    in_place: bool,
    /// Delete the backup of an environment that was imported in place.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["source", "in_place", "undo"])]
    finish: Option<String>,
    /// Put the backup back and remove the environment. Fails if the environment was changed.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["source", "in_place", "lazy"])]
    undo: Option<String>,
    /// Do not rewrite files that contain the path of the source. See envfs relocate.
    #[arg(long, conflicts_with_all = ["in_place", "finish", "undo"])]
    no_relocate: bool,
    /// Import although some files have no space for the new path. With --undo, drop the changes of
    /// the environment; with --finish, those of the backup.
    #[arg(long, conflicts_with_all = ["in_place", "no_relocate"])]
    force: bool,
    /// With --in-place or --finish, go on although processes use the directory. They keep using it
    /// instead of the environment.
    #[arg(long)]
    lazy: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The options of a new environment; shared with `create`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ImportOptions {
    /// Path where the environment will be mounted [default: ~/.local/share/envfs/envs/NAME].
    #[arg(long, value_name = "PATH")]
    pub prefix: Option<PathBuf>,
    /// The options of its image.
    #[command(flatten)]
    pub pack: PackOptions,
    /// Message to record in the history.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub message: String,
}

/// The options of an image; shared with `image pack`.
#[derive(Debug, ClapArgs)]
pub(crate) struct PackOptions {
    /// Codec and level of the image: zstd:3, xz, gzip, lz4, none [default: zstd].
    #[arg(long, value_name = "CODEC[:LEVEL]")]
    pub compression: Option<Compression>,
    /// Compression level as in conda-pack: 0 stores, 1 to 8 use zstd, 9 uses xz.
    #[arg(
        long,
        value_name = "0-9",
        conflicts_with = "compression",
        value_parser = clap::value_parser!(u8).range(0..=9)
    )]
    pub compress_level: Option<u8>,
    /// Block size of the image in bytes, a power of two from 4096 to 1048576 [default: 131072].
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    pub block_size: Option<u32>,
    /// Number of compressor threads [default: one per processor].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// The patterns to exclude; shared with `image pack`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Exclude {
    /// Exclude matching paths: *.pyc or __pycache__ anywhere, pkgs/cache below the source. Can be
    /// repeated.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<PathBuf>,
}

/// Returns the codec and level, given by name or as conda-pack's level.
pub(crate) fn compression(named: Option<Compression>, level: Option<u8>) -> Option<Compression> {
    named.or_else(|| level.and_then(Compression::from_conda_pack_level))
}

/// Parses a block size in bytes.
pub(crate) fn block_size(text: &str) -> Result<u32, String> {
    let size = text
        .parse()
        .ok()
        .filter(|size: &u32| size.is_power_of_two());
    size.filter(|size| (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(size))
        .ok_or_else(|| format!("must be a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"))
}

impl ImportOptions {
    /// Converts the options for [`creation`].
    pub(crate) fn to_new_options(&self) -> NewOptions {
        NewOptions {
            prefix: self.prefix.clone(),
            message: self.message.clone(),
            ..NewOptions::from(&self.pack)
        }
    }
}

impl From<&PackOptions> for NewOptions {
    fn from(pack: &PackOptions) -> NewOptions {
        NewOptions {
            compression: compression(pack.compression, pack.compress_level),
            block_size: pack.block_size,
            threads: pack.threads,
            ..NewOptions::default()
        }
    }
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        if let Some(name) = &self.finish {
            return self.finish(context, name);
        }
        if let Some(name) = &self.undo {
            return self.undo(context, name);
        }
        let source = self.source.as_deref().unwrap_or(Path::new(""));
        if stream::is_stream(source) {
            return self.import_stream(context, source);
        }
        match fs::symlink_metadata(source) {
            Err(error) => {
                let doing = format!("cannot import {}", quoted(source));
                let mut failed = CommandError::of_named(doing, &error);
                if failed.kind == Kind::NotFound {
                    failed = failed.hint("give a directory, a .tar archive or a SquashFS image");
                }
                Err(failed)
            }
            Ok(_) if self.in_place => self.import_in_place(context, source),
            Ok(_) if self.lazy => Err(CommandError::usage(
                "--lazy requires --in-place or --finish",
            )),
            Ok(_) if commit::is_history_archive(source) => {
                history::import(context, self, source, &quoted(source))
            }
            Ok(_) => match &self.name {
                Some(name) => self.import(context, source, name),
                None => Err(no_name(source)),
            },
        }
    }

    /// Imports what is read from standard input, a FIFO or a device.
    fn import_stream(&self, context: &Context, source: &Path) -> Result<()> {
        if self.in_place || self.lazy {
            return Err(CommandError::usage(
                "--in-place and --lazy are for directories",
            ));
        }
        let received = Received::of(context, source, self.offset, |history| {
            let name = match (history, &self.name) {
                (Some(of_archive), name) => EnvName::new(name.as_deref().unwrap_or(of_archive))?,
                (None, Some(name)) => EnvName::new(name)?,
                (None, None) => return Err(no_name(source)),
            };
            match history {
                Some(_) => history::refuse_options(self),
                None => creation::refuse_existing(&context.store()?, &name),
            }
        })?;
        let path = received.path();
        let done = match (&self.name, commit::is_history_archive(path)) {
            (_, true) => history::import(context, self, path, received.shown()),
            (Some(name), false) => self.import(context, path, name),
            (None, false) => Err(no_name(source)),
        };
        done.map_err(|error| received.name(error))
    }

    fn import(&self, context: &Context, source: &Path, name: &str) -> Result<()> {
        let name = EnvName::new(name)?;
        if let Some(prefix) = &self.options.prefix
            && source.is_dir()
            && let Ok(real) = fs::canonicalize(source)
            && fs::canonicalize(prefix).is_ok_and(|prefix| prefix == real)
        {
            let message = format!("{} is the source and the prefix", quoted(source));
            return Err(CommandError::usage(message).hint(format!(
                "to mount the environment in the place of the directory: envfs import --in-place {} \
                 {name}",
                word(source)
            )));
        }
        let store = context.store()?;
        let foreign = foreign_scripts(source);
        let progress = context.output.progress();
        let options = NewOptions {
            exclude: self.exclude.exclude.clone(),
            offset: self.offset,
            first: self.used_first(context)?,
            relocate: relocation::force(self.no_relocate, self.force),
            ..self.options.to_new_options()
        };
        let output = &context.output;
        let imported = creation::import(&store, &name, source, &options, output, &progress)?;
        progress.finish();
        for note in &imported.notes {
            context.output.warn(note);
        }
        if let Some(moved) = &imported.relocated {
            moved.warn(output);
        }
        if self.json {
            return context.output.json(&imported);
        }
        print_packed(context, &imported);
        if let Some(moved) = &imported.relocated {
            output.note(format!(
                "  relocated from {} to {}: {}",
                moved.sources(),
                quoted(&imported.prefix.0),
                moved.describe()
            ));
        } else if let Some((count, path)) = foreign
            && path != imported.prefix.as_path()
        {
            let is_there = fs::canonicalize(source).is_ok_and(|source| source == path);
            context.output.warn(format!(
                "{} in bin will run programs in {}, not in this environment",
                output::count(count as u64, "script"),
                quoted(&path)
            ));
            let (source, path) = (word(source), word(&path));
            let again = match is_there {
                true => format!("envfs import --in-place {source} {name}"),
                false => format!("envfs import {source} {name} --prefix {path}"),
            };
            context
                .output
                .note(format!("  To keep its path: envfs remove {name}; {again}"));
        }
        context
            .output
            .note(format!("Use it: envfs activate {name}"));
        Ok(())
    }

    /// Returns the files of the profile, in order.
    fn used_first(&self, context: &Context) -> Result<Vec<PathBuf>> {
        let Some(profile) = &self.profile else {
            return Ok(Vec::new());
        };
        if let Some(name) = profile.to_str()
            && context.is_name(name)
        {
            let files = backend::used_first(&context.files_of(Some(name))?)?;
            if files.is_empty() {
                let message = format!("{name} has no profile");
                return Err(CommandError::new(Kind::NotFound, message)
                    .hint("a profile is written when an environment is unmounted after use"));
            }
            return Ok(files);
        }
        read_profile(profile).map_err(|error| {
            let doing = format!("cannot read the profile {}", quoted(profile));
            CommandError::of_named(doing, &error)
                .hint("give a file with one path a line, or the name of an environment")
        })
    }

    fn import_in_place(&self, context: &Context, source: &Path) -> Result<()> {
        if !source.is_dir() {
            let message = format!("{} is not a directory", quoted(source));
            return Err(CommandError::usage(message).hint("--in-place is for directories"));
        }
        let request = in_place::Request {
            dir: source,
            name: self.name.as_deref(),
            options: NewOptions {
                first: self.used_first(context)?,
                ..self.options.to_new_options()
            },
            if_used: self.if_used(),
        };
        let progress = context.output.progress();
        let mut imported = in_place::import(context, &request, &progress)?;
        progress.finish();
        let backup = InPlace::backup_of(imported.prefix.as_path());
        imported.backup = Some(backup.as_path().into());
        if self.json {
            return context.output.json(&imported);
        }
        print_packed(context, &imported);
        let (name, output) = (&imported.name, &context.output);
        output.note(format!(
            "{name}: mounted at {}; the original is kept as {}",
            quoted(&imported.prefix.0),
            quoted(&backup)
        ));
        output.note(format!(
            "When all works, delete the original: envfs import --finish {name}"
        ));
        output.note(format!("To put it back: envfs import --undo {name}"));
        Ok(())
    }

    fn if_used(&self) -> IfUsed {
        match self.lazy {
            true => IfUsed::Proceed,
            false => IfUsed::Refuse,
        }
    }

    fn if_changed(&self) -> IfChanged {
        match self.force {
            true => IfChanged::Proceed,
            false => IfChanged::Refuse,
        }
    }

    fn finish(&self, context: &Context, name: &str) -> Result<()> {
        let env = context.environment(Some(name))?;
        let backup = in_place::finish(context, &env, self.if_changed(), self.if_used())?;
        if self.json {
            return context.output.json(&backup);
        }
        context.output.note(format!(
            "{}: deleted {} ({}, {})",
            env.name(),
            quoted(&backup.path.0),
            output::objects(backup.files),
            size(backup.bytes)
        ));
        Ok(())
    }

    fn undo(&self, context: &Context, name: &str) -> Result<()> {
        let env = context.environment(Some(name))?;
        let name = env.name().to_owned();
        let dir = in_place::undo(env, self.if_changed())?;
        if self.json {
            return context
                .output
                .json(&serde_json::json!({ "directory": Text::from(dir) }));
        }
        context.output.note(format!(
            "the original is back at {}; removed {name}",
            quoted(&dir)
        ));
        Ok(())
    }
}

fn no_name(source: &Path) -> CommandError {
    CommandError::usage("no name for the environment given")
        .hint(format!("envfs import {} NAME", word(source)))
}

/// The size limit of a profile, in bytes.
const MAX_PROFILE: u64 = 64 << 20;

/// Reads a list of paths, one a line.
fn read_profile(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_PROFILE).read_to_end(&mut text)?;
    let lines = text.split(|&byte| byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    Ok(lines
        .map(|line| PathBuf::from(OsStr::from_bytes(line)))
        .collect())
}

/// Prints what was packed.
fn print_packed(context: &Context, imported: &Imported) {
    context.output.note(format!(
        "{}: packed {}, {} into an image of {}, verified",
        imported.name,
        output::objects(imported.files),
        size(imported.content_bytes),
        size(imported.image_bytes),
    ));
}

/// Finds scripts in the `bin` of a directory whose interpreter is in the `bin` of a prefix other
/// than the system's. Returns their number and the most frequent prefix.
fn foreign_scripts(source: &Path) -> Option<(usize, PathBuf)> {
    let mut named: HashMap<PathBuf, usize> = HashMap::new();
    for entry in fs::read_dir(source.join("bin")).ok()?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let mut head = Vec::new();
        let read = File::open(entry.path()).and_then(|file| file.take(256).read_to_end(&mut head));
        if read.is_ok()
            && let Some(prefix) = interpreter_prefix(&head)
        {
            *named.entry(prefix).or_default() += 1;
        }
    }
    let (path, count) = named.into_iter().max_by_key(|(_, count)| *count)?;
    Some((count, path))
}

/// Returns `/p` for a script that starts with `#!/p/bin/…`, unless that is a prefix of the system.
fn interpreter_prefix(head: &[u8]) -> Option<PathBuf> {
    let line = head
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let line = line.trim_ascii_start();
    let program = line.split(|byte| byte.is_ascii_whitespace()).next()?;
    let program = Path::new(OsStr::from_bytes(program));
    let bin = program.parent().filter(|dir| dir.ends_with("bin"))?;
    let prefix = bin.parent().filter(|dir| dir.is_absolute())?;
    let is_system = ["/", "/usr", "/usr/local"]
        .iter()
        .any(|dir| prefix == Path::new(dir));
    (!is_system).then(|| prefix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_with_an_interpreter_in_another_prefix_are_found() {
        let prefix = |head: &[u8]| interpreter_prefix(head);
        let made = Some(PathBuf::from("/home/u/envs/x"));
        assert_eq!(prefix(b"#!/home/u/envs/x/bin/python3 -s\nimport x\n"), made);
        assert_eq!(prefix(b"#! /home/u/envs/x/bin/python"), made);
        for other in [
            &b"#!/bin/sh\n"[..],
            b"#!/usr/bin/env python",
            b"#!/usr/local/bin/python",
            b"#!python",
            b"\x7fELF/x/bin/y",
            b"#!",
            b"",
        ] {
            assert_eq!(prefix(other), None);
        }
    }
}
