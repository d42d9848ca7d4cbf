//! A mount without a store: an image, or several one over another, and a directory that takes the
//! changes.
//!
//! For programs that mount file systems by themselves (`mount(8)`, fstab, test suites). The
//! directory has the shape of an environment's home; images stay where they are, behind symbolic
//! links there. Commits and history are for environments.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::failure::{Failure, Kind};
use super::host::{Begun, begin, end_on_signal, tell};
use super::lifecycle::{Launched, Served, launch};
use super::log;
use super::protocol::Started;
use super::service::note;
use crate::commit;
use crate::environment::{EnvLock, Layout};
use crate::fuse::session::Session;
use crate::fuse::{EnvFs, Owners};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{InitEnvironment, RevisionKind, StackPart, StateDb};
use crate::sys::mount::{self, MountFlags, MountOptions, MountRequest, UnmountMode};
use crate::sys::process::{self, new_uuid};
use crate::sys::{mountinfo, private, regular, text::Text};
use crate::union::{self, OpenOptions, Paths, Union, identify};

/// How long the end of the daemon before is waited for: a mount is gone before its daemon is.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to mount where. All paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DirectMount {
    /// The SquashFS images, top first; at least one.
    pub images: Vec<Text>,
    /// Where the image begins in its file, where it cannot be found; for one image.
    #[serde(default)]
    pub offset: Option<u64>,
    /// Takes the changes; made if it is missing. None only where nothing can be changed.
    pub upper: Option<Text>,
    /// The database, if not in the directory of the changes.
    pub state: Option<Text>,
    /// An existing directory.
    pub mount_point: Text,
    /// The source in the mount table.
    pub source: String,
    /// What stands behind `fuse.` as the type.
    pub subtype: String,
    /// What the kernel is to refuse or to do.
    pub flags: MountFlags,
    /// Whether other users may enter.
    pub allow_other: bool,
    /// Whether whoever mounts is root there; excludes `allow_other`.
    pub fakeroot: bool,
}

/// Starts the daemon of a mount; returns when the mount can be used, and what is to be said about it.
pub fn start(what: &DirectMount, slow: &dyn Fn()) -> Result<Served, Failure> {
    detach_dead(what.mount_point.as_path(), &what.source)?;
    let mut output = Stdio::null();
    let (mut log_path, mut no_log) = (None, None);
    if let Some(upper) = &what.upper {
        let place = upper.as_path();
        make_private(place)?;
        refuse_shared(place)?;
        let layout = Layout::new(upper.as_path());
        let path = layout.daemon_log();
        let (file, why) = log::open_or_discard(&layout).map_err(doing("write the log", &path))?;
        (output, no_log) = (file.into(), why);
        log_path = Some(path);
    }
    let spec = serde_json::to_string(what).map_err(|e| Failure::of(Kind::Internal, &e))?;
    let words = [OsStr::new("__serve"), OsStr::new(&spec)];
    let status = match launch(&words, output, slow)? {
        Launched::Ready(mut served) => {
            served.warnings.extend(no_log);
            return Ok(served);
        }
        Launched::Ended(status) => status,
    };
    let failure = Failure::new(
        Kind::Daemon,
        format!("the daemon ended before it was ready ({status})"),
    );
    Err(match log_path {
        Some(path) => failure.hint(format!("its log: {}", path.display())),
        None => failure,
    })
}

/// Returns the flags of the mount at a path.
pub fn flags_at(mount_point: &Path) -> Result<MountFlags, Failure> {
    let there = mountinfo::at(mount_point)
        .map_err(|e| Failure::io("cannot read the mount table", &e))?
        .filter(|mount| mount.fs_type.starts_with("fuse"));
    let there = there.ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            format!("{} is no mount of envfs", mount_point.display()),
        )
    })?;
    let mut flags = MountFlags {
        suid: true,
        dev: true,
        ..MountFlags::default()
    };
    for word in &there.options {
        flags.apply(word.as_bytes());
    }
    Ok(flags)
}

/// Changes the flags of the mount at a path from those that it has. Root only.
pub fn remount(mount_point: &Path, before: MountFlags, after: MountFlags) -> Result<(), Failure> {
    let shown = mount_point.display();
    if before.synchronous != after.synchronous {
        return Err(Failure::new(
            Kind::Usage,
            format!(
                "{shown} is mounted already: sync and dirsync can be chosen when mounting only"
            ),
        )
        .hint("unmount it, and mount it with the option"));
    }
    if before.read_only && !after.read_only && takes_no_changes(mount_point) {
        return Err(Failure::new(
            Kind::Usage,
            format!("{shown} was mounted without a directory that takes the changes"),
        )
        .hint("unmount it, and mount it with -o upper=DIR"));
    }
    Ok(mount::remount(mount_point, after)?)
}

/// Returns true if the mount at a path is that of an image alone: by the command line of its daemon, which
/// has no other way to be asked.
fn takes_no_changes(mount_point: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut specs = pids.filter_map(|pid| {
        let words = process::command_line(pid);
        let at = words.iter().position(|word| word == "__serve")?;
        serde_json::from_slice::<DirectMount>(words.get(at + 1)?.as_bytes()).ok()
    });
    specs.any(|what| what.mount_point.as_path() == mount_point && what.upper.is_none())
}

/// Is the daemon: serves until it is unmounted. To be called as [`super::host::run`] is.
pub fn run(what: &DirectMount) -> Result<(), Failure> {
    let Begun {
        signals,
        warnings,
        opened: (session, open),
    } = begin(|| {
        let open = Open::new(what)?;
        Ok((open.mount(what)?, open))
    })?;
    let mount_point = what.mount_point.as_path().to_path_buf();
    let (at, source, stop_handle) = (
        mount_point.clone(),
        what.source.clone(),
        session.stop_handle(),
    );
    let served = std::thread::Builder::new()
        .name(String::from("signals"))
        .spawn(move || end_on_signal(signals, &at, &source, &stop_handle))
        .map_err(|e| Failure::io("cannot start a thread", &e))
        .and_then(|_| {
            tell(&Started::Ready {
                pid: std::process::id(),
                mount_point: mount_point.clone().into(),
                lost: open.lost,
                warnings,
            })
        });
    if let Err(failure) = served {
        if let Err(error) = mount::unmount(&mount_point, UnmountMode::Lazy) {
            tracing::warn!(%error, "could not undo the mount");
        }
        return Err(failure);
    }
    let result = session.wait();
    open.close()?;
    result
        .map(drop)
        .map_err(|e| Failure::io("the event loops ended badly", &e))
}

/// An image with its changes, open under the lock of their directory.
struct Open {
    id: String,
    union: Arc<Union>,
    owners: Owners,
    /// Changed files that were found to have lost their content when it was opened.
    lost: usize,
    _lock: Option<EnvLock>,
}

impl Open {
    fn new(what: &DirectMount) -> Result<Open, Failure> {
        let Some(upper) = &what.upper else {
            // Nothing will be written: names are needed only until everything is open.
            let scratch = tempfile::Builder::new()
                .prefix("envfs-ro-")
                .tempdir()
                .map_err(|e| Failure::io("cannot make a temporary directory", &e))?;
            let db = StateDb::in_memory()?;
            return Open::with(what, &Layout::new(scratch.path()), db, None);
        };
        let layout = Layout::new(upper.as_path());
        let lock = EnvLock::lock(&layout, "mounted", PATIENCE)?;
        let path = match &what.state {
            Some(path) => path.as_path().to_path_buf(),
            None => layout.state_db(),
        };
        let db = if path.exists() {
            StateDb::open(&path)?
        } else if layout.layers().exists() {
            return Err(unpaired(&layout, &path));
        } else {
            StateDb::create(&path)?
        };
        Open::with(what, &layout, db, Some(lock))
    }

    fn with(
        what: &DirectMount,
        layout: &Layout,
        db: StateDb,
        lock: Option<EnvLock>,
    ) -> Result<Open, Failure> {
        let mut images = Vec::with_capacity(what.images.len());
        let mut fingerprint = Vec::new();
        for path in &what.images {
            let path = path.as_path();
            let opened = match what.offset {
                Some(offset) => Image::open_at(path, offset, ReaderOptions::default()),
                None => Image::open(path, ReaderOptions::default()),
            };
            let image = opened.map_err(damaged(path))?;
            fingerprint.extend(superblock_of(&image, path)?);
            images.push(image);
        }
        if images.is_empty() {
            return Err(Failure::new(Kind::Usage, "there is no image to mount"));
        }
        pair(layout, &db)?;
        if db.stack()?.is_empty() {
            db.set_image_fingerprint(&fingerprint)?;
            initialise(what, layout, &db, &images)?;
        } else if db.image_fingerprint()?.as_deref() != Some(&fingerprint[..]) {
            return Err(Failure::new(
                Kind::Conflict,
                format!(
                    "the changes in {} were made on another image than {}",
                    layout.home().display(),
                    list(&what.images)
                ),
            )
            .hint(
                "name what they were made on, several images in their order, or another directory",
            ));
        }
        for dir in [layout.images(), layout.layers()] {
            private::create_dir(&dir).map_err(doing("make", &dir))?;
        }
        let parts = db.stack()?.into_iter().map(|layer| layer.part);
        let parts = parts.filter(|part| matches!(part, StackPart::Image(_)));
        for (part, path) in parts.zip(&what.images) {
            if let StackPart::Image(id) = part {
                let name = layout.image(&Layout::image_file_name(id));
                place_image(path.as_path(), &name)?;
                union::set_offset(&db, id, what.offset)
                    .map_err(|e| Failure::from(commit::CommitError::from(e)))?;
            }
        }
        let id = db
            .uuid()?
            .ok_or_else(|| Failure::new(Kind::Damaged, "the database does not say who it is"))?;
        let owners = match what.fakeroot {
            true => Owners::default(),
            false => {
                let owners = images.iter().map(owner_of).collect::<Result<Vec<_>, _>>();
                Owners::of_images(&owners.map_err(|e| Failure::of(Kind::Damaged, &e))?)
            }
        };
        let options = OpenOptions::default();
        let paths = Paths {
            images_are_links: true,
            ..commit::paths(layout)
        };
        let opened = Union::open(Arc::new(db), paths, &options);
        let (union, mended) = opened.map_err(|e| Failure::from(commit::CommitError::from(e)))?;
        note(&mended);
        Ok(Open {
            id,
            union: Arc::new(union),
            owners,
            lost: mended.lost.len(),
            _lock: lock,
        })
    }

    fn mount(&self, what: &DirectMount) -> Result<Session, Failure> {
        let request = MountRequest {
            mount_point: what.mount_point.as_path().to_path_buf(),
            id: self.id.clone(),
            allow_other: what.allow_other,
            fakeroot: what.fakeroot,
            options: MountOptions {
                source: Some(what.source.clone()),
                subtype: what.subtype.clone(),
                flags: what.flags,
            },
        };
        let mut filesystem = EnvFs::new(self.union.clone(), self.owners.clone())?;
        if what.flags.synchronous {
            filesystem.sync_each_change();
        }
        let notices = filesystem.notices();
        let session = Session::start(filesystem, &request)?;
        notices.connect(session.invalidator());
        Ok(session)
    }

    fn close(&self) -> Result<(), Failure> {
        let closed = self.union.close();
        closed.map_err(|e| Failure::from(commit::CommitError::from(e)))
    }
}

/// User and group that own the root of an image.
fn owner_of(image: &Image) -> Result<(u32, u32), crate::squashfs::Error> {
    let root = image.inode(image.root())?;
    Ok((image.uid(&root)?, image.gid(&root)?))
}

/// Makes sure that a database and a directory of changes belong together: each is worthless, and
/// harmful, with another.
fn pair(layout: &Layout, db: &StateDb) -> Result<(), Failure> {
    let known = match regular::read(&layout.id(), 4096) {
        Ok(id) => Some(String::from_utf8_lossy(&id).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(doing("read", &layout.id())(e)),
    };
    if db.uuid()?.as_deref() == known.as_deref() {
        return Ok(());
    }
    // A first mount that was interrupted has named the directory, and nothing more.
    if db.uuid()?.is_none() && !layout.layers().exists() {
        return Ok(());
    }
    Err(unpaired(layout, db.path()))
}

fn unpaired(layout: &Layout, state: &Path) -> Failure {
    Failure::new(
        Kind::Conflict,
        format!(
            "the changes in {} do not belong to the state in {}",
            layout.home().display(),
            state.display()
        ),
    )
    .hint("name the state that was used with this directory, or a new directory")
}

fn initialise(
    what: &DirectMount,
    layout: &Layout,
    db: &StateDb,
    images: &[Image],
) -> Result<(), Failure> {
    let uuid = new_uuid().map_err(|e| Failure::io("cannot make an id", &e))?;
    let id_file = layout.id();
    let options = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .clone();
    regular::open_with(&id_file, &options)
        .and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(uuid.as_bytes())
        })
        .map_err(doing("write", &id_file))?;
    let maps = identify(db, images).map_err(|error| {
        let failure = Failure::new(
            Kind::Damaged,
            format!(
                "{}: {}",
                list(&what.images),
                super::failure::with_causes(&error)
            ),
        );
        match error {
            union::Error::Redirected(_) => failure
                .hint("make the image of what overlayfs shows, or of an upper directory without redirect_dir"),
            _ => failure,
        }
    })?;
    let mut rows = Vec::with_capacity(images.len());
    for (image, map) in images.iter().zip(maps) {
        let size = image.superblock().bytes_used;
        rows.push(commit::adopted(db.reserve_image()?, image, map, size, None));
    }
    db.init_environment(&InitEnvironment {
        uuid,
        prefix: what.mount_point.as_path().to_path_buf(),
        images: rows,
        kind: RevisionKind::Import,
        revision: commit::new_revision(&list(&what.images), ""),
    })?;
    Ok(())
}

/// Lets the name of an image in the directory lead to where the image is now.
fn place_image(image: &Path, name: &Path) -> Result<(), Failure> {
    if fs::read_link(name).is_ok_and(|target| target == image) {
        return Ok(());
    }
    match fs::remove_file(name) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(doing("replace", name)(e));
        }
        _ => {}
    }
    symlink(image, name).map_err(doing("make", name))
}

/// The paths of images, for messages.
fn list(images: &[Text]) -> String {
    let paths = images
        .iter()
        .map(|path| path.as_path().display().to_string());
    paths.collect::<Vec<_>>().join(" over ")
}

/// What tells one image from another: its superblock (time, counts, places of all tables).
fn superblock_of(image: &Image, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut superblock = [0; 96];
    image.read_raw(0, &mut superblock).map_err(damaged(path))?;
    Ok(superblock.to_vec())
}

/// Takes away what a killed daemon of ours left at the mount point.
fn detach_dead(mount_point: &Path, source: &str) -> Result<(), Failure> {
    let at = mountinfo::at(mount_point)
        .map_err(|e| Failure::io("cannot read the mount table", &e))?
        .filter(|mount| {
            mount.fs_type.starts_with("fuse") && mount.source == source && mount.is_dead()
        });
    if at.is_some() {
        mount::unmount(mount_point, UnmountMode::Lazy)?;
    }
    Ok(())
}

fn make_private(path: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(doing("make", path))
}

/// Refuses a directory that others could write to: what they put there would be in the mount.
fn refuse_shared(path: &Path) -> Result<(), Failure> {
    let meta = fs::metadata(path).map_err(doing("look at", path))?;
    let shown = path.display();
    let refused = |why: String| Failure::new(Kind::Conflict, format!("{shown} {why}"));
    if meta.uid() != process::user_id() {
        let owner = process::user_name(meta.uid());
        return Err(refused(format!("belongs to {owner}"))
            .hint("changes are kept in a directory of your own: name another, or chown it"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(refused(String::from("can be written to by others"))
            .hint(format!("chmod go-w {shown}")));
    }
    Ok(())
}

fn doing(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let doing = format!("cannot {what} {}", path.display());
    move |error| Failure::io(doing, &error)
}

fn damaged(path: &Path) -> impl Fn(crate::squashfs::Error) -> Failure {
    let path: PathBuf = path.to_path_buf();
    move |error| match &error {
        crate::squashfs::Error::Io { source, .. } => {
            Failure::io(format!("cannot read {}", path.display()), source)
        }
        _ => Failure::new(
            Kind::Damaged,
            format!(
                "{}: {}",
                path.display(),
                super::failure::with_causes(&error)
            ),
        ),
    }
}

impl DirectMount {
    /// The source that a mount gets if none is chosen: the image, where the mount table can say it.
    pub fn usual_source(image: &Path) -> String {
        match image.to_str() {
            Some(text) if !text.contains([',', '\\']) => text.to_owned(),
            _ => String::from("envfs"),
        }
    }

    /// Returns whether the mount point is a directory, also where a dead mount covers it.
    pub fn has_mount_point(&self) -> bool {
        let path = self.mount_point.as_path();
        path.as_os_str().as_bytes().starts_with(b"/") && (path.is_dir() || mountinfo::is_dead(path))
    }
}
