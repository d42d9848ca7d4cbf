//! `envfs mount`, and the helper that `mount(8)` calls.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
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
    /// Mount options: ro, allow_other, fakeroot, fsname=NAME, subtype=NAME, suid, dev, image=, upper=, state=,
    /// lowerdir=IMAGE:IMAGE.
    #[arg(short, value_name = "OPTION,…")]
    options: Vec<OsString>,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let options = Options::parse(self)?;
        if options.fakeroot && process::user_id() == 0 {
            return Err(CommandError::usage("root needs no --fakeroot")
                .hint("leave it out: root may do everything in a mount"));
        }
        if !options.images.is_empty() {
            return self.mount_images(&options);
        }
        if self.upper.is_some() || self.state.is_some() || !self.options.is_empty() {
            return Err(
                CommandError::usage("--upper, --state and -o are for mounting an image")
                    .hint("name the image: --image FILE"),
            );
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

    fn mount_images(&self, options: &Options) -> Result<()> {
        let Some(mount_point) = &self.name else {
            return Err(CommandError::usage("where is the image to be mounted?")
                .hint("envfs mount --image FILE --upper DIR MOUNTPOINT"));
        };
        if options.upper.is_none() && !options.read_only {
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
            upper: options.upper.as_deref().map(absolute).transpose()?,
            state: options.state.as_deref().map(absolute).transpose()?,
            mount_point: absolute(Path::new(mount_point))?,
            source,
            subtype: options.subtype.clone(),
            read_only: options.read_only,
            allow_other: options.allow_other,
            trust_content: options.trust_content,
            fakeroot: options.fakeroot,
        };
        if !what.has_mount_point() {
            return Err(CommandError::usage(format!(
                "{} is no directory",
                quoted(mount_point)
            )));
        }
        let served = direct::start(&what)?;
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

/// What the options say, those after -o and the others.
#[derive(Debug)]
struct Options {
    images: Vec<PathBuf>,
    upper: Option<PathBuf>,
    state: Option<PathBuf>,
    source: Option<String>,
    subtype: String,
    read_only: bool,
    allow_other: bool,
    trust_content: bool,
    fakeroot: bool,
}

impl Options {
    fn parse(args: &Args) -> Result<Options> {
        let mut all = Options {
            images: args.images.clone(),
            upper: args.upper.clone(),
            state: args.state.clone(),
            source: None,
            subtype: String::from("envfs"),
            read_only: false,
            allow_other: false,
            trust_content: false,
            fakeroot: args.fakeroot,
        };
        for word in args
            .options
            .iter()
            .flat_map(|list| list.as_bytes().split(|b| *b == b','))
        {
            all.take(word)?;
        }
        Ok(all)
    }

    fn take(&mut self, word: &[u8]) -> Result<()> {
        let (key, value) = match word.iter().position(|b| *b == b'=') {
            Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..)),
            None => (word, None),
        };
        let path = |value: &[u8]| PathBuf::from(OsStr::from_bytes(value));
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        match (key, value) {
            (b"image", Some(value)) => self.images = vec![path(value)],
            (b"lowerdir", Some(value)) => {
                self.images = split_list(value).iter().map(|one| path(one)).collect();
            }
            (b"upper", Some(value)) => self.upper = Some(path(value)),
            (b"state", Some(value)) => self.state = Some(path(value)),
            (b"fsname", Some(value)) => self.source = Some(text(value)),
            (b"subtype", Some(value)) => self.subtype = text(value),
            (b"ro", None) => self.read_only = true,
            (b"rw", None) => self.read_only = false,
            (b"allow_other", None) => self.allow_other = true,
            (b"fakeroot", None) => self.fakeroot = true,
            (b"suid" | b"dev", None) => self.trust_content = true,
            (b"nosuid" | b"nodev", None) => self.trust_content = false,
            // Always so, or said to mount(8) and of no concern here.
            (
                b""
                | b"default_permissions"
                | b"defaults"
                | b"noatime"
                | b"relatime"
                | b"exec"
                | b"async"
                | b"auto"
                | b"noauto"
                | b"nofail"
                | b"_netdev"
                | b"user"
                | b"nouser"
                | b"users",
                None,
            ) => {}
            (key, _) if key.starts_with(b"x-") => {}
            _ => {
                return Err(CommandError::usage(format!(
                    "unknown mount option {}",
                    String::from_utf8_lossy(word)
                )));
            }
        }
        Ok(())
    }
}

/// Splits a list as overlayfs writes it: by colons, but for those behind a backslash.
fn split_list(list: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    let mut bytes = list.iter();
    while let Some(&byte) = bytes.next() {
        let escaped = if byte == b'\\' { bytes.next() } else { None };
        match (byte, all.last_mut()) {
            (b':', _) => all.push(Vec::new()),
            (_, Some(last)) => last.push(*escaped.unwrap_or(&byte)),
            (_, None) => {}
        }
    }
    all
}

/// Turns the words of a call as `mount.envfs SOURCE DIR [-sfnv] [-t TYPE] [-o OPTIONS]`, which is how
/// mount(8) calls helpers, into those of `envfs mount`. Other calls stay as they are.
pub fn translate_helper(words: Vec<OsString>) -> Vec<OsString> {
    let called = words.first().map(|word| Path::new(word).to_path_buf());
    let called = called.as_deref().and_then(Path::file_name);
    if !called.is_some_and(|name| name == "mount.envfs" || name == "mount.fuse.envfs") {
        return words;
    }
    let mut out: Vec<OsString> = vec!["envfs".into(), "mount".into()];
    let mut places = Vec::new();
    let mut rest = words.into_iter().skip(1);
    while let Some(word) = rest.next() {
        match word.as_bytes() {
            b"-o" => {
                out.push(word);
                out.extend(rest.next());
            }
            // A type or a namespace: said to mount(8).
            b"-t" | b"-N" => drop(rest.next()),
            b"-r" => out.extend(["-o".into(), "ro".into()]),
            b"-s" | b"-f" | b"-n" | b"-v" | b"-w" => {}
            _ => places.push(word),
        }
    }
    let mut places = places.into_iter();
    if let (Some(source), Some(dir)) = (places.next(), places.next()) {
        // Before the options: an image= among them counts more.
        let at = 2;
        if source != "none" && source != "envfs" {
            let mut first = b"image=".to_vec();
            first.extend_from_slice(source.as_bytes());
            out.splice(at..at, ["-o".into(), OsString::from_vec(first)]);
        }
        out.push("--".into());
        out.push(dir);
    }
    out.extend(places);
    out
}
