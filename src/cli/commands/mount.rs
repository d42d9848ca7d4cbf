//! `envfs mount`, also as a helper of `mount(8)`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::access::Access;
use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::mount_options::{self, Options};
use crate::cli::place;
use crate::cli::session::{self, DefaultSessionArgs, Request, SessionArgs};
use crate::daemon::direct;
use crate::daemon::spec::DirectMount;
use crate::environment::{Layout, SessionKind};
use crate::shell::render::word;
use crate::sys::mount::Rights;
use crate::sys::process;
use crate::sys::text::{Text, quoted};

/// Mount an environment at its prefix, or a revision or any image anywhere.
///
/// Starts a daemon in the background, unless the environment is mounted already. Replaces a mount
/// whose daemon was killed. Prints the mount point.
///
/// NAME@REV mounts a revision, by number or tag, read-only. --read-only and --ephemeral mount a
/// committed revision, by default the current one. They take no lock and write nothing to the
/// store, so they work while the environment is in use on another host, and from a store that you
/// can only read. Uncommitted changes are not visible in them. They are mounted at the prefix, or
/// at PATH; files that contain the prefix work only at the prefix.
///
/// With --image, mounts an image at a directory, without an environment or a store. Changes are
/// kept in the directory given by --upper and are visible again at the next mount. Several images
/// are stacked, the first on top, with whiteouts and opaque directories as in overlayfs. Unmount
/// with umount or fusermount3 -u. Called as `mount.fuse.envfs IMAGE DIR -o upper=DIR`, the program
/// is a helper of mount(8).
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs mount science\n  cd \"$(envfs mount science)\"\n  envfs mount --fakeroot science\n  envfs mount --read-only science\n  envfs mount science@3 /tmp/science-3\n  envfs mount --ephemeral science@paper /tmp/try\n  envfs mount --image science.sqfs --upper ~/changes /mnt\n  envfs mount --image science.sqfs -o ro /mnt\n  envfs mount --image site.sqfs --image base.sqfs --upper ~/changes /mnt"
)]
pub struct Args {
    /// Environment, or a revision of it as NAME@REV [default: the active environment]; with
    /// --image, the directory to mount at.
    name: Option<OsString>,
    /// Directory to mount a revision at, created if it does not exist [default: the prefix].
    path: Option<PathBuf>,
    #[command(flatten)]
    session: DefaultSessionArgs,
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
            if self.path.is_some() || self.session.kind(None).is_some() {
                let message = "PATH, --read-only and --ephemeral are for environments";
                return Err(CommandError::usage(message)
                    .hint("mount an image read-only: envfs mount --image FILE -o ro DIR"));
            }
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
        let rights = match self.fakeroot {
            true => Rights::Root,
            false => Rights::Own,
        };
        let args = self.session.resolve(context, name)?;
        let kind = match (args.kind(name), &self.path) {
            (Some(_), None) => args.kind_at_prefix(&context.committed(name)?.0, name)?,
            (kind, _) => kind,
        };
        if let Some(kind) = kind {
            return self.mount_session(context, name, kind, rights, &args);
        }
        if let Some(path) = &self.path {
            let name = word(name.unwrap_or("NAME"));
            let message = "an environment is mounted writable only at its prefix";
            return Err(CommandError::usage(message).hint(format!(
                "at {}: envfs mount --read-only {name} PATH, or --ephemeral",
                quoted(path)
            )));
        }
        let env = context.environment(name)?;
        let mounted = match env.ensure_mounted_with(rights) {
            Err(error) => {
                let kind = session::instead(&env, error)?;
                return self.mount_session(context, name, kind, rights, &args);
            }
            Ok(mounted) => mounted,
        };
        if mounted.is_none() && !env.is_read_only() {
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

    fn mount_session(
        &self,
        context: &Context,
        name: Option<&str>,
        kind: SessionKind,
        rights: Rights,
        args: &SessionArgs,
    ) -> Result<()> {
        let (env, revision) = context.committed(name)?;
        let request = Request {
            kind,
            revision,
            path: self.path.as_deref(),
            rights,
            ends_with: None,
        };
        let mount_point = session::begin(&env, args, &request)?;
        context.output.exact(mount_point.as_os_str().as_bytes())
    }

    /// Returns how the command accesses the store.
    pub(in crate::cli) fn access(&self) -> Access {
        let name = self.name.as_deref().and_then(OsStr::to_str);
        if !self.uses_store() {
            return Access::None;
        }
        Access::of_session(self.session.kind(name))
    }

    /// Changes the flags of an existing mount, as `mount -o remount` does.
    fn remount(&self) -> Result<()> {
        let Some(mount_point) = &self.name else {
            return Err(CommandError::usage("no mount point given")
                .hint("envfs mount -o remount,OPTION… MOUNTPOINT"));
        };
        let mount_point = place::resolve(Path::new(mount_point))?;
        let before = direct::flags_at(&mount_point)?;
        let mut options = Options {
            flags: before,
            ..Options::default()
        };
        options.apply_all(&self.options)?;
        Ok(direct::remount(&mount_point, before, options.flags)?)
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
            upper: resolved(options.upper.as_deref())?,
            state: resolved(options.state.as_deref())?,
            mount_point: place::resolve(Path::new(mount_point))?.into(),
            source,
            subtype: options.subtype.clone(),
            flags: options.flags,
            // Mounts by root are accessible to all users, subject to permissions, as directories
            // are.
            allow_other: options.allow_other || process::user_id() == 0,
            fakeroot: options.fakeroot,
            session: None,
            trial: None,
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

fn resolved(path: Option<&Path>) -> Result<Option<Text>> {
    let resolved = path.map(place::resolve).transpose()?;
    Ok(resolved.map(Text::from))
}
