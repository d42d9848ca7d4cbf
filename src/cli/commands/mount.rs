//! `envfs mount`, also as a helper of `mount(8)`.

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
use crate::sys::mount::Rights;
use crate::sys::process;
use crate::sys::text::{Text, quoted};

/// Mount an environment at its prefix, or any image anywhere.
///
/// Starts a daemon in the background, unless the environment is mounted already. Replaces a mount
/// whose daemon was killed. Prints the mount point.
///
/// With --image, mounts an image at a directory, without an environment or a store. Changes are
/// kept in the directory given by --upper and are visible again at the next mount. Several images
/// are stacked, the first on top, with whiteouts and opaque directories as in overlayfs. Unmount
/// with umount or fusermount3 -u. Called as `mount.fuse.envfs IMAGE DIR -o upper=DIR`, the program
/// is a helper of mount(8).
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs mount science\n  cd \"$(envfs mount science)\"\n  envfs mount --fakeroot science\n  envfs mount --image science.sqfs --upper ~/changes /mnt\n  envfs mount --image science.sqfs -o ro /mnt\n  envfs mount --image site.sqfs --image base.sqfs --upper ~/changes /mnt"
)]
pub struct Args {
    /// Environment [default: the active one]; with --image, the directory to mount at.
    name: Option<OsString>,
    /// Mount this image instead of an environment. Repeat to stack it on further images.
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Offset of the image in the file. Detected for AppImages and SIF containers.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Keep the changes in this directory. envfs creates it and uses it exclusively.
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Keep the state of the changes in this file [default: state.db in the upper directory].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Give you root's rights in the mount, which no other user can access: permissions are not
    /// checked, and you can change owners.
    #[arg(long)]
    fakeroot: bool,
    /// Mount options: ro, noexec, nosymfollow, sync, dirsync, suid, dev, allow_other (always set
    /// for root), fakeroot, fsname=NAME, subtype=NAME, image=, offset=, upper=, state=,
    /// lowerdir=IMAGE:IMAGE. With remount, as root, change flags of an existing mount: ro, rw, exec
    /// etc. Other options of mount(8) are accepted and ignored.
    #[arg(short, value_name = "OPTION,…")]
    options: Vec<OsString>,
}

impl Args {
    /// Returns whether the command uses a store. It does not for images and for remounting.
    pub fn uses_store(&self) -> bool {
        let mounts_images = || {
            self.options()
                .is_ok_and(|options| !options.images.is_empty())
        };
        !mount_options::is_remount(&self.options) && !mounts_images()
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
        options.apply_all(&self.options)?;
        Ok(options)
    }

    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        if mount_options::is_remount(&self.options) {
            return self.remount();
        }
        let options = self.options()?;
        if options.fakeroot && process::user_id() == 0 {
            return Err(CommandError::usage("--fakeroot is not for root")
                .hint("omit it: root has all rights in a mount"));
        }
        if !options.images.is_empty() {
            return self.mount_images(&options);
        }
        let is_for_images = self.upper.is_some() || self.state.is_some() || self.offset.is_some();
        if is_for_images || !self.options.is_empty() {
            return Err(
                CommandError::usage("--upper, --state, --offset and -o require --image")
                    .hint("give the image: --image FILE"),
            );
        }
        let name = match &self.name {
            Some(name) => Some(name.to_str().ok_or_else(|| {
                CommandError::usage(format!("invalid environment name {}", quoted(name)))
            })?),
            None => None,
        };
        let env = context.environment(name)?;
        let rights = match self.fakeroot {
            true => Rights::Root,
            false => Rights::Own,
        };
        if env.ensure_mounted_with(rights)?.is_none() && !env.is_read_only() {
            context.output.warn(format!(
                "{0} is mounted, but its daemon is unreachable: its socket no longer exists; to restore \
                 it: envfs unmount {0} && envfs mount {0}",
                env.name()
            ));
        }
        // Exact, for cd "$(envfs mount NAME)".
        context
            .output
            .exact(env.target.prefix.as_os_str().as_bytes())
    }

    /// Changes the flags of an existing mount, as `mount -o remount` does.
    fn remount(&self) -> Result<()> {
        let Some(mount_point) = &self.name else {
            return Err(CommandError::usage("no mount point given")
                .hint("envfs mount -o remount,OPTION… MOUNTPOINT"));
        };
        let mount_point = absolute(Path::new(mount_point))?;
        let before = direct::flags_at(mount_point.as_path())?;
        let mut options = Options {
            flags: before,
            ..Options::default()
        };
        options.apply_all(&self.options)?;
        Ok(direct::remount(
            mount_point.as_path(),
            before,
            options.flags,
        )?)
    }

    fn mount_images(&self, options: &Options) -> Result<()> {
        let Some(mount_point) = &self.name else {
            return Err(CommandError::usage("no mount point given")
                .hint("envfs mount --image FILE --upper DIR MOUNTPOINT"));
        };
        if options.upper.is_none() && !options.flags.read_only {
            return Err(CommandError::usage("no directory given for the changes")
                .hint("--upper DIR, or to mount read-only: -o ro"));
        }
        if options.fakeroot && options.allow_other {
            return Err(CommandError::usage(
                "fakeroot and allow_other cannot be combined: no user's permissions would be checked",
            ));
        }
        if options.upper.is_none() && options.state.is_some() {
            return Err(CommandError::usage("--state requires --upper"));
        }
        if options.offset.is_some() && options.images.len() != 1 {
            return Err(CommandError::usage("--offset requires exactly one image"));
        }
        let mut images = Vec::with_capacity(options.images.len());
        for image in &options.images {
            images.push(std::fs::canonicalize(image).map_err(|error| {
                CommandError::of_named(format!("cannot mount {}", quoted(image)), &error)
            })?);
        }
        let source = match (&options.source, images.first()) {
            (Some(source), _) => source.clone(),
            (None, Some(top)) => DirectMount::default_source(top),
            (None, None) => return Err(CommandError::usage("no image given")),
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
            // Mounts by root are accessible to all users, subject to permissions, as directories
            // are.
            allow_other: options.allow_other || process::user_id() == 0,
            fakeroot: options.fakeroot,
        };
        if !what.has_mount_point() {
            return Err(CommandError::usage(format!(
                "{} is not a directory",
                quoted(mount_point)
            )));
        }
        let served = direct::start(&what, &backend::slow_start)?;
        let log = match &what.upper {
            Some(upper) => Layout::new(upper.as_path()).daemon_log(),
            None => PathBuf::new(),
        };
        backend::print_start_warnings(&quoted(mount_point), &served, &log);
        Ok(())
    }
}

/// Returns the absolute path with symbolic links resolved where possible, as in the mount table.
/// The last component need not exist.
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
