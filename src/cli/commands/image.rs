//! `envfs image`: creates and inspects SquashFS files.

mod pack;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::output::{Format, count, size};
use crate::daemon::failure::{Failure, Kind};
use crate::progress::{Progress, Report};
use crate::squashfs::format::{Flags, Inode, InodeBody, InodeKind};
use crate::squashfs::reader::{VerifyProgress, verify};
use crate::squashfs::{self, Image, ReaderOptions};
use crate::sys::text::quoted;

/// Create or inspect SquashFS files, of envfs or any other program.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs image pack ~/tree tree.sqfs\n  envfs image info science.sqfs\n  envfs image ls science.sqfs lib/python3.12\n  envfs image cat science.sqfs etc/config.toml\n  envfs image verify science.sqfs"
)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

/// The action to perform.
#[derive(Debug, Subcommand)]
enum Action {
    /// Pack a directory into an image without creating an environment.
    Pack(pack::Args),
    /// Show the superblock.
    Info {
        #[command(flatten)]
        image: ImageFile,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List a directory in the image.
    Ls {
        #[command(flatten)]
        image: ImageFile,
        /// Path in the image [default: its root].
        path: Option<PathBuf>,
        /// List all directories below it too, with full paths.
        #[arg(short = 'R', long)]
        recursive: bool,
        /// Print only the paths, exactly, each terminated by NUL.
        #[arg(short = 'z', long)]
        null: bool,
    },
    /// Write a file in the image to standard output.
    Cat {
        #[command(flatten)]
        image: ImageFile,
        /// Path in the image.
        path: PathBuf,
    },
    /// Read the whole tree and decompress every block.
    Verify {
        #[command(flatten)]
        image: ImageFile,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// The image file and the position of the image in it.
#[derive(Debug, ClapArgs)]
struct ImageFile {
    /// The image file, or an AppImage or SIF container that contains an image.
    file: PathBuf,
    /// Offset of the image in the file. Detected for AppImages and SIF containers.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Info {
    compression: String,
    block_size: u32,
    inodes: u32,
    fragments: u32,
    bytes: u64,
    data_bytes: u64,
    created: u32,
    has_export_table: bool,
    has_xattrs: bool,
    owners: u16,
    /// Parts that are stored uncompressed: any of `inodes`, `data`, `fragments`, `xattrs`, `ids`.
    uncompressed: Vec<&'static str>,
    /// The stored options of the compressor, in hexadecimal.
    compressor_options: Option<String>,
    /// Sizes of the tables in bytes.
    inode_table_bytes: u64,
    directory_table_bytes: u64,
    /// Size of the file. Bytes beyond `bytes` are padding or other data.
    file_bytes: u64,
    /// Offset of the image in the file.
    offset: u64,
}

/// The result of `verify`, as JSON.
#[derive(Debug, Serialize)]
struct Verified {
    inodes: u64,
    unreached: u64,
    directories: u64,
    files: u64,
    bytes: u64,
    blocks: u64,
    fragments: u64,
    stored_bytes: u64,
    link_mismatches: u64,
    directory_link_mismatches: u64,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        match &self.action {
            Action::Pack(args) => args.run(context),
            Action::Info { image, json } => info(context, image, Format::of(*json)),
            Action::Ls {
                image,
                path,
                recursive,
                null,
            } => {
                let path = path.as_deref().unwrap_or(Path::new(""));
                let options = ListOptions {
                    recursive: *recursive,
                    null: *null,
                };
                list(context, image, path, options)
            }
            Action::Cat { image, path } => cat(context, image, path),
            Action::Verify { image, json } => verify_image(context, image, Format::of(*json)),
        }
    }
}

fn failed(file: &Path) -> impl Fn(squashfs::Error) -> CommandError + '_ {
    move |error| {
        let kind = match error {
            squashfs::Error::Io { ref error, .. } if error.kind() == ErrorKind::NotFound => {
                Kind::NotFound
            }
            squashfs::Error::Io { .. } => Kind::System,
            squashfs::Error::Cancelled => Kind::Cancelled,
            _ => Kind::Damaged,
        };
        let mut failure = Failure::of(kind, &error);
        failure.message = format!("{}: {}", quoted(file), failure.message);
        failure.into()
    }
}

fn open(file: &ImageFile) -> Result<Image> {
    let options = ReaderOptions::default();
    let opened = match file.offset {
        Some(offset) => Image::open_at(&file.file, offset, options),
        None => Image::open(&file.file, options),
    };
    opened.map_err(failed(&file.file))
}

fn info(context: &Context, file: &ImageFile, format: Format) -> Result<()> {
    let image = open(file)?;
    let superblock = image.superblock();
    let data = image.data_area();
    let flags = [
        (Flags::UNCOMPRESSED_INODES, "inodes"),
        (Flags::UNCOMPRESSED_DATA, "data"),
        (Flags::UNCOMPRESSED_FRAGMENTS, "fragments"),
        (Flags::UNCOMPRESSED_XATTRS, "xattrs"),
        (Flags::UNCOMPRESSED_IDS, "ids"),
    ];
    let file_bytes = image.as_file().metadata().map(|meta| meta.len());
    let info = Info {
        compression: superblock.compressor.to_string(),
        block_size: superblock.block_size,
        inodes: superblock.inodes,
        fragments: superblock.fragments,
        bytes: superblock.bytes_used,
        data_bytes: data.end - data.start,
        created: superblock.mkfs_time,
        has_export_table: superblock.export_at().is_some(),
        has_xattrs: superblock.xattrs_at().is_some(),
        owners: superblock.ids,
        uncompressed: flags
            .into_iter()
            .filter(|(flag, _)| superblock.flags.has(*flag))
            .map(|(_, what)| what)
            .collect(),
        compressor_options: image
            .options_bytes()
            .map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        inode_table_bytes: superblock.directory_table - superblock.inode_table,
        directory_table_bytes: superblock.directory_end() - superblock.directory_table,
        file_bytes: file_bytes.map_err(|error| {
            let doing = format!("cannot determine the size of {}", quoted(&file.file));
            CommandError::io(doing, &error)
        })?,
        offset: image.offset(),
    };
    if format == Format::Json {
        return context.output.json(&info);
    }
    let out = &context.output;
    if info.offset > 0 {
        out.line(format!("offset       {}", info.offset))?;
    }
    out.line(format!("compression  {}", info.compression))?;
    out.line(format!("block size   {}", size(u64::from(info.block_size))))?;
    out.line(format!("inodes       {}", info.inodes))?;
    out.line(format!("fragments    {}", info.fragments))?;
    out.line(format!(
        "size         {} (data {})",
        size(info.bytes),
        size(info.data_bytes)
    ))?;
    out.line(format!(
        "created      {}",
        crate::cli::output::time(i64::from(info.created))
    ))?;
    let yes_or_no = |is: bool| if is { "yes" } else { "no" };
    out.line(format!("owners       {}", info.owners))?;
    out.line(format!("attributes   {}", yes_or_no(info.has_xattrs)))?;
    if !info.uncompressed.is_empty() {
        out.line(format!("uncompressed {}", info.uncompressed.join(", ")))?;
    }
    if let Some(options) = &info.compressor_options {
        out.line(format!("options      {options}"))?;
    }
    out.line(format!(
        "tables       inodes {}, directories {}",
        size(info.inode_table_bytes),
        size(info.directory_table_bytes)
    ))?;
    out.line(format!("export table {}", yes_or_no(info.has_export_table)))
}

fn find(image: &Image, file: &Path, path: &Path) -> Result<Inode> {
    let mut inode = image.inode(image.root()).map_err(failed(file))?;
    let path = path.strip_prefix("/").unwrap_or(path);
    for name in path.components() {
        let missing = || {
            let message = format!("{} does not contain {}", quoted(file), quoted(path));
            CommandError::new(Kind::NotFound, message)
        };
        if inode.kind() != InodeKind::Directory {
            return Err(missing());
        }
        let entry = image
            .lookup(&inode, name.as_os_str().as_bytes())
            .map_err(failed(file))?;
        inode = image
            .entry_inode(&entry.ok_or_else(missing)?)
            .map_err(failed(file))?;
    }
    Ok(inode)
}

/// How a directory is listed.
#[derive(Clone, Copy)]
struct ListOptions {
    /// With all directories below it.
    recursive: bool,
    /// Only paths, each followed by a NUL byte.
    null: bool,
}

fn list(context: &Context, file: &ImageFile, path: &Path, options: ListOptions) -> Result<()> {
    let image = open(file)?;
    let file = file.file.as_path();
    let dir = find(&image, file, path)?;
    if dir.kind() != InodeKind::Directory {
        return match options.null {
            true => context.output.fields([path.as_os_str().as_bytes()]),
            false => context.output.line(quoted(path)),
        };
    }
    // A damaged image may contain a directory twice, even in itself: visit each inode number once.
    let mut seen = HashSet::from([dir.number]);
    let mut pending = vec![(Vec::new(), dir)];
    while let Some((above, dir)) = pending.pop() {
        let below = list_one(context, &image, file, &above, &dir, options)?;
        if options.recursive {
            for (path, dir) in below.into_iter().rev() {
                if !seen.insert(dir.number) {
                    let message = format!(
                        "{}: damaged image: directory {} occurs twice",
                        quoted(file),
                        quoted(OsStr::from_bytes(&path))
                    );
                    return Err(CommandError::new(Kind::Damaged, message));
                }
                pending.push((path, dir));
            }
        }
    }
    Ok(())
}

/// Lists one directory, with `above` before each name. Returns its subdirectories.
fn list_one(
    context: &Context,
    image: &Image,
    file: &Path,
    above: &[u8],
    dir: &Inode,
    options: ListOptions,
) -> Result<Vec<(Vec<u8>, Inode)>> {
    let mut below = Vec::new();
    for (name, entry) in image.read_dir(dir).map_err(failed(file))?.iter() {
        let inode = image.entry_inode(&entry).map_err(failed(file))?;
        let (letter, bytes, target) = match &inode.body {
            InodeBody::Directory(_) => ('d', 0, None),
            InodeBody::File(body) => ('-', body.size, None),
            InodeBody::Symlink(target) => ('l', 0, Some(target)),
            InodeBody::BlockDevice(_) => ('b', 0, None),
            InodeBody::CharDevice(_) => ('c', 0, None),
            InodeBody::Fifo => ('p', 0, None),
            InodeBody::Socket => ('s', 0, None),
        };
        let (uid, gid) = (
            image.uid(&inode).map_err(failed(file))?,
            image.gid(&inode).map_err(failed(file))?,
        );
        let path = [above, name].concat();
        if options.null {
            context.output.fields([&path])?;
        } else {
            let mut line = format!(
                "{letter}{:04o} {uid:>5} {gid:>5} {bytes:>12} {}",
                inode.mode,
                quoted(OsStr::from_bytes(&path))
            );
            if let Some(target) = target {
                line.push_str(" -> ");
                line.push_str(&quoted(OsStr::from_bytes(target)));
            }
            context.output.line(line)?;
        }
        if inode.kind() == InodeKind::Directory {
            below.push(([&path, &b"/"[..]].concat(), inode));
        }
    }
    Ok(below)
}

fn cat(context: &Context, file: &ImageFile, path: &Path) -> Result<()> {
    let image = open(file)?;
    let file = file.file.as_path();
    let inode = find(&image, file, path)?;
    if inode.kind() != InodeKind::File {
        let shown = quoted(path);
        return Err(CommandError::usage(format!(
            "{shown} is not a regular file"
        )));
    }
    let layout = image.file_layout(&inode).map_err(failed(file))?;
    for index in 0..layout.block_count() {
        let block = image.block(&layout, index).map_err(failed(file))?;
        context.output.raw(&block)?;
    }
    Ok(())
}

fn verify_image(context: &Context, file: &ImageFile, format: Format) -> Result<()> {
    let image = open(file)?;
    let file = file.file.as_path();
    let bar = context.output.progress();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let report = verify(&image, threads, |so_far: VerifyProgress| {
        bar.report(&Report {
            phase: "verifying".to_owned(),
            files_done: so_far.inodes,
            files_total: u64::from(image.superblock().inodes),
            bytes_done: so_far.stored_bytes,
            bytes_total: so_far.total_bytes,
        });
        !bar.is_cancelled()
    });
    bar.finish();
    let report = report.map_err(failed(file))?;
    if format == Format::Json {
        return context.output.json(&Verified {
            inodes: report.inodes,
            unreached: report.unreached,
            directories: report.directories,
            files: report.files,
            bytes: report.bytes,
            blocks: report.blocks,
            fragments: report.fragments,
            stored_bytes: report.stored_bytes,
            link_mismatches: report.wrong_links.len() as u64,
            directory_link_mismatches: report.wrong_directory_links.len() as u64,
        });
    }
    context.output.note(format!(
        "{}: verified {}, {} of file content and {}",
        quoted(file),
        count(report.inodes, "inode"),
        size(report.bytes),
        count(report.blocks + report.fragments, "block")
    ));
    Ok(())
}
