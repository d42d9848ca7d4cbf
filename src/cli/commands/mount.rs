//! `envfs mount`, and the helper that `mount(8)` calls.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::mount_options::{self, Options};
use crate::daemon::direct::{self, DirectMount};
use crate::environment::Layout;
use crate::sys::process;
use crate::sys::text::{Text, quoted};

/// Mount an environment at its prefix, or any image anywhere.
///
/// Starts a daemon in the background, unless the environment is mounted already; a mount whose
/// daemon was killed is replaced. Prints where it is mounted.
///
/// With --image no environment and no store are needed: the image is mounted at the directory that
/// is named, changes are kept in the directory that --upper names and are there again at the next
/// mount. Several images are laid one over another, the first on top, with whiteouts and opaque
/// directories as overlayfs has them. umount or fusermount3 -u ends it. As `mount.fuse.envfs IMAGE DIR -o upper=DIR` the program
/// is a helper of mount(8).
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs mount science\n  cd \"$(envfs mount science)\"\n  envfs mount --fakeroot science\n  envfs mount --image science.sqfs --upper ~/changes /mnt\n  envfs mount --image science.sqfs -o ro /mnt\n  envfs mount --image site.sqfs --image base.sqfs --upper ~/changes /mnt"
)]
pub struct Args {
    /// Environment [default: the active one]; with --image the directory to mount at.
    name: Option<OsString>,
    /// Mount this image, which belongs to no environment; again for one below it.
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Byte of the file at which the image begins, if it is inside another file and not found. An AppImage or a
    /// SIF container needs none.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Keep the changes in this directory, which envfs makes and has for itself.
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Keep the state of the changes in this file [default: state.db in the directory of changes].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Let whoever mounts do in the mount what root may, and nobody else enter: change owners, which are
    /// kept and shown, and read and write whatever the permissions say.
    #[arg(long)]
    fakeroot: bool,
    /// Mount options: ro, noexec, nosymfollow, sync, dirsync, suid, dev, allow_other (always so for root),
    /// fakeroot, fsname=NAME, subtype=NAME, image=, offset=, upper=, state=, lowerdir=IMAGE:IMAGE. With remount,
    /// what of the first is to be changed of the mount at a directory, by root: ro, rw, exec and the like. Those
    /// that mount(8) knows besides are taken as well, and change nothing.
    #[arg(short, value_name = "OPTION,…")]
    options: Vec<OsString>,
}

impl Args {
    /// Returns whether a store is used: not for images, nor to change a mount that is there.
    pub fn uses_store(&self) -> bool {
        let is_of_images = || {
            self.options()
                .is_ok_and(|options| !options.images.is_empty())
        };
        !mount_options::is_remount(&self.options) && !is_of_images()
    }

    fn options(&self) -> Result<Options> {
        let mut options = Options {
            images: self.images.clone(),
            offset: self.offset,
            upper: self.upper.clone(),
            state: self.state.clone(),
            fakeroot: self.fakeroot,
            ..Options::default()
        };
        options.take_all(&self.options)?;
        Ok(options)
    }

    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        if mount_options::is_remount(&self.options) {
            return self.remount();
        }
        let options = self.options()?;
        if options.fakeroot && process::user_id() == 0 {
            return Err(CommandError::usage("root needs no --fakeroot")
                .hint("leave it out: root may do everything in a mount"));
        }
        if !options.images.is_empty() {
            return self.mount_images(&options);
        }
        let is_for_images = self.upper.is_some() || self.state.is_some() || self.offset.is_some();
        if is_for_images || !self.options.is_empty() {
            return Err(CommandError::usage(
                "--upper, --state, --offset and -o are for mounting an image",
            )
            .hint("name the image: --image FILE"));
        }
        let name = match &self.name {
            Some(name) => Some(name.to_str().ok_or_else(|| {
                CommandError::usage(format!("{} names no environment", quoted(name)))
            })?),
            None => None,
        };
        let env = context.environment(name)?;
        if env.ensure_mounted_with(self.fakeroot)?.is_none() && !env.is_read_only() {
            context.output.warn(format!(
                "it can be used, but its daemon cannot be spoken with: its socket is gone; to have \
                 it anew: envfs unmount {0} && envfs mount {0}",
                env.name()
            ));
        }
        // For cd "$(envfs mount NAME)": exact.
        context
            .output
            .exact(env.target.prefix.as_os_str().as_bytes())
    }

    /// Changes what the kernel refuses in a mount that is there, as for `mount -o remount`.
    fn remount(&self) -> Result<()> {
        let Some(mount_point) = &self.name else {
            return Err(CommandError::usage("which mount is to be changed?")
                .hint("envfs mount -o remount,OPTION… MOUNTPOINT"));
        };
        let place = absolute(Path::new(mount_point))?;
        let before = direct::flags_at(place.as_path())?;
        let mut options = Options {
            flags: before,
            ..Options::default()
        };
        options.take_all(&self.options)?;
        Ok(direct::remount(place.as_path(), before, options.flags)?)
    }

    fn mount_images(&self, options: &Options) -> Result<()> {
        let Some(mount_point) = &self.name else {
            return Err(CommandError::usage("where is the image to be mounted?")
                .hint("envfs mount --image FILE --upper DIR MOUNTPOINT"));
        };
        if options.upper.is_none() && !options.flags.read_only {
            return Err(
                CommandError::usage("a directory is needed that takes the changes")
                    .hint("--upper DIR, or read only: -o ro"),
            );
        }
        if options.fakeroot && options.allow_other {
            return Err(CommandError::usage(
                "fakeroot and allow_other exclude each other: nobody would be checked",
            ));
        }
        if options.upper.is_none() && options.state.is_some() {
            return Err(CommandError::usage("--state is of no use without --upper"));
        }
        if options.offset.is_some() && options.images.len() != 1 {
            return Err(CommandError::usage("--offset is for one image"));
        }
        let mut images = Vec::with_capacity(options.images.len());
        for image in &options.images {
            images.push(std::fs::canonicalize(image).map_err(|error| {
                CommandError::of_named(format!("cannot mount {}", quoted(image)), &error)
            })?);
        }
        let source = match (&options.source, images.first()) {
            (Some(source), _) => source.clone(),
            (None, Some(top)) => DirectMount::usual_source(top),
            (None, None) => return Err(CommandError::usage("there is no image to mount")),
        };
        let what = DirectMount {
            images: images.into_iter().map(Text::from).collect(),
            offset: options.offset,
            upper: options.upper.as_deref().map(absolute).transpose()?,
            state: options.state.as_deref().map(absolute).transpose()?,
            mount_point: absolute(Path::new(mount_point))?,
            source,
            subtype: options.subtype.clone(),
            flags: options.flags,
            // What root mounts is as visible as a plain directory; permissions decide, as there.
            allow_other: options.allow_other || process::user_id() == 0,
            fakeroot: options.fakeroot,
        };
        if !what.has_mount_point() {
            return Err(CommandError::usage(format!(
                "{} is no directory",
                quoted(mount_point)
            )));
        }
        let served = direct::start(&what, &backend::slow_start)?;
        let log = match &what.upper {
            Some(upper) => Layout::new(upper.as_path()).daemon_log(),
            None => PathBuf::new(),
        };
        backend::warn_of_served(&quoted(mount_point), &served, &log);
        Ok(())
    }
}

/// The path from the root, with the links before its last name resolved where they can be: that is
/// how the mount table has it.
fn absolute(path: &Path) -> Result<Text> {
    let failed = |error| CommandError::io(format!("cannot find {}", quoted(path)), &error);
    if let Ok(found) = std::fs::canonicalize(path) {
        return Ok(found.into());
    }
    let path = std::path::absolute(path).map_err(failed)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => match std::fs::canonicalize(parent) {
            Ok(parent) => Ok(parent.join(name).into()),
            Err(_) => Ok(path.into()),
        },
        _ => Ok(path.into()),
    }
}
