//! Mounts without a store: one or more stacked images, and a directory for changes.
//!
//! They are meant for programs that mount file systems themselves (`mount(8)`, fstab, test suites).
//! The directory has the layout of an environment's home, with symbolic links to the images. There
//! are no commits and no history.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::failure::{Failure, Kind};
use super::host::{Startup, end_on_signal, report_start, start_up};
use super::launch::{Launched, launch};
use super::log;
use super::protocol::{StartReport, Started};
use super::service::log_reconciled;
use super::session::{Notes, SessionSpec};
use super::trial::{TrialSpec, View};
use crate::commit;
use crate::environment::{EnvLock, Layout};
use crate::fuse::session::{Session, SessionError};
use crate::fuse::{EnvFs, Owners};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{InitEnvironment, RevisionKind, StackPart, StateDb};
use crate::sys::mount::{self, MountFlags, MountOptions, MountRequest, Rights, UnmountMode};
use crate::sys::process::{self, new_uuid};
use crate::sys::{mountinfo, private, regular, text::Text};
use crate::union::{self, OpenOptions, Paths, Union, identify};

/// The time limit for the end of the previous daemon, which outlives its mount for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The description of a mount without a store. All paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DirectMount {
    /// The SquashFS images, top first; at least one.
    pub images: Vec<Text>,
    /// The offset of the image in its file, unless it is detected; for a single image.
    #[serde(default)]
    pub offset: Option<u64>,
    /// The directory for changes, created if it does not exist; `None` for a read-only mount.
    pub upper: Option<Text>,
    /// The database, if not in the directory for changes.
    pub state: Option<Text>,
    /// An existing directory.
    pub mount_point: Text,
    /// The source in the mount table.
    pub source: String,
    /// The part of the file system type after `fuse.`.
    pub subtype: String,
    /// The flags for the kernel.
    pub flags: MountFlags,
    /// Whether other users may access the mount.
    pub allow_other: bool,
    /// Whether the user who mounts has root's rights there; excludes `allow_other`.
    pub fakeroot: bool,
    /// The session, if an image of an environment is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionSpec>,
    /// The trial, if the state of an environment is mounted with further changes. Then there are no
    /// images, and the directory for changes has only the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialSpec>,
}

/// Starts the daemon of a mount and waits until the mount can be used.
pub(crate) fn start(what: &DirectMount, slow: &dyn Fn()) -> Result<StartReport, Failure> {
    detach_dead(what.mount_point.as_path(), &what.source)?;
    start_daemon(what, &[], Stdio::null(), slow)
}

/// Starts a daemon for a mount with these options of its command line and this standard input.
pub(super) fn start_daemon(
    what: &DirectMount,
    options: &[&OsStr],
    input: Stdio,
    slow: &dyn Fn(),
) -> Result<StartReport, Failure> {
    let mut output = Stdio::null();
    let (mut log_path, mut log_warning) = (None, None);
    if let Some(upper) = &what.upper {
        let dir = upper.as_path();
        create_private_dir(dir)?;
        refuse_shared(dir)?;
        let layout = Layout::new(upper.as_path());
        let path = layout.daemon_log();
        let (file, warning) =
            log::open_or_discard(&layout).map_err(doing("write the log", &path))?;
        (output, log_warning) = (file.into(), warning);
        log_path = Some(path);
    }
    let spec = serde_json::to_string(what).map_err(|e| Failure::of(Kind::Internal, &e))?;
    let mut words = vec![OsStr::new("__serve")];
    words.extend(options);
    words.push(OsStr::new(&spec));
    let status = match launch(&words, input, output, slow)? {
        Launched::Ready(mut report) => {
            report.warnings.extend(log_warning);
            return Ok(report);
        }
        Launched::Ended(status) => status,
    };
    let failure = Failure::new(
        Kind::Daemon,
        format!("the daemon ended before it was ready ({status})"),
    );
    Err(match log_path {
        Some(path) => failure.hint(format!("see its log: {}", path.display())),
        None => failure,
    })
}

/// Returns the flags of the mount at a path.
pub(crate) fn flags_at(mount_point: &Path) -> Result<MountFlags, Failure> {
    let found = mountinfo::at(mount_point)
        .map_err(|e| Failure::io("cannot read the mount table", &e))?
        .filter(|mount| mount.fs_type.starts_with("fuse"));
    let found = found.ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            format!("{} is not a mount of envfs", mount_point.display()),
        )
    })?;
    let mut flags = MountFlags {
        suid: true,
        dev: true,
        ..MountFlags::default()
    };
    for word in &found.options {
        flags.apply(word.as_bytes());
    }
    Ok(flags)
}

/// Changes the flags of the mount at a path. Only root can do this.
pub(crate) fn remount(
    mount_point: &Path,
    before: MountFlags,
    after: MountFlags,
) -> Result<(), Failure> {
    let shown = mount_point.display();
    if before.synchronous != after.synchronous {
        return Err(Failure::new(
            Kind::Usage,
            format!("cannot change sync or dirsync of {shown}: they can be set only when mounting"),
        )
        .hint("unmount it, and mount it with the option"));
    }
    if before.read_only && !after.read_only && has_no_upper(mount_point) {
        return Err(Failure::new(
            Kind::Usage,
            format!("cannot make {shown} writable: it was mounted without a directory for changes"),
        )
        .hint("unmount it, and mount it with -o upper=DIR"));
    }
    Ok(mount::remount(mount_point, after)?)
}

/// Returns whether the mount at a path has no directory for changes. Its daemon has no control
/// socket, so this is read from its command line.
fn has_no_upper(mount_point: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut specs = pids.filter_map(|pid| {
        let words = process::command_line(pid);
        let at = words.iter().position(|word| word == "__serve")?;
        serde_json::from_slice::<DirectMount>(words.get(at + 1)?.as_bytes()).ok()
    });
    specs.any(|what| what.mount_point.as_path() == mount_point && what.upper.is_none())
}

/// Runs the daemon until it is unmounted. The requirements are those of [`super::host::run`].
pub(crate) fn run(what: &DirectMount) -> Result<(), Failure> {
    let Startup {
        signals,
        warnings,
        opened: (session, open, notes),
    } = start_up(|| {
        // Before the image is opened, so that `gc` does not remove it in between.
        let notes = what
            .session
            .as_ref()
            .map(|spec| Notes::write(spec, what))
            .transpose()?;
        let open = Open::new(what)?;
        Ok((open.mount(what)?, open, notes))
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
            report_start(&Started::Ready {
                pid: std::process::id(),
                mount_point: mount_point.clone().into(),
                lost: open.lost,
                warnings,
            })
        });
    if let Err(failure) = served {
        if let Err(error) = mount::unmount(&mount_point, UnmountMode::Lazy) {
            tracing::warn!(%error, "cannot undo the mount");
        }
        return Err(failure);
    }
    let watched = what
        .session
        .as_ref()
        .map(|spec| spec.watch(&mount_point, &what.source, &session.stop_handle()));
    let result = session.wait();
    let closed = open.close();
    drop(open);
    if let Some(spec) = &what.session {
        spec.remove_upper(what);
    }
    drop((watched, notes));
    closed?;
    result
        .map(drop)
        .map_err(|e| Failure::io("cannot serve requests of the kernel", &e))
}

/// Open images with their changes, under the lock of the directory for changes.
pub(super) struct Open {
    id: String,
    union: Arc<Union>,
    owners: Owners,
    /// The number of changed files whose content was found to be lost on opening.
    pub(super) lost: usize,
    _lock: Option<EnvLock>,
}

impl Open {
    pub(super) fn new(what: &DirectMount) -> Result<Open, Failure> {
        if let Some(trial) = &what.trial {
            let View {
                union,
                owners,
                lost,
                lock,
            } = trial.open()?;
            return Ok(Open {
                id: String::new(),
                union: Arc::new(union),
                owners,
                lost,
                _lock: Some(lock),
            });
        }
        let Some(upper) = &what.upper else {
            // Nothing will be written. The directory is needed only until all files are open.
            let scratch = tempfile::Builder::new()
                .prefix("envfs-ro-")
                .tempdir()
                .map_err(|e| Failure::io("cannot create a temporary directory", &e))?;
            let db = StateDb::in_memory()?;
            return Open::with(what, &Layout::new(scratch.path()), db, None);
        };
        let layout = Layout::new(upper.as_path());
        let lock = EnvLock::lock(&layout, "mounted", LOCK_TIMEOUT)?;
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
            return Err(Failure::new(Kind::Usage, "no image to mount"));
        }
        pair(layout, &db)?;
        if db.stack()?.is_empty() {
            db.set_image_fingerprint(&fingerprint)?;
            initialize(what, layout, &db, &images)?;
        } else if db.image_fingerprint()?.as_deref() != Some(&fingerprint[..]) {
            return Err(Failure::new(
                Kind::Conflict,
                format!(
                    "the changes in {} belong to another image than {}",
                    layout.home().display(),
                    list(&what.images)
                ),
            )
            .hint("give the same images in the same order, or another directory for changes"));
        }
        for dir in [layout.images(), layout.layers()] {
            private::create_dir(&dir).map_err(doing("create", &dir))?;
        }
        let parts = db.stack()?.into_iter().map(|layer| layer.part);
        let parts = parts.filter(|part| matches!(part, StackPart::Image(_)));
        for (part, path) in parts.zip(&what.images) {
            if let StackPart::Image(id) = part {
                let name = layout.image(&Layout::image_file_name(id));
                link_image(path.as_path(), &name)?;
                union::set_offset(&db, id, what.offset)
                    .map_err(|e| Failure::from(commit::CommitError::from(e)))?;
            }
        }
        let id = db
            .uuid()?
            .ok_or_else(|| Failure::new(Kind::Damaged, "the database lacks its identity"))?;
        let owners = match what.rights() {
            Rights::Root => Owners::default(),
            Rights::Own => {
                let owners = images.iter().map(owner_of).collect::<Result<Vec<_>, _>>();
                Owners::of_images(&owners.map_err(|e| Failure::of(Kind::Damaged, &e))?)
            }
        };
        let options = OpenOptions {
            reader: ReaderOptions {
                data_cache_limit: Some(commit::data_cache_limit),
                ..ReaderOptions::default()
            },
        };
        let paths = Paths {
            images_are_links: true,
            ..commit::paths(layout)
        };
        let opened = Union::open(Arc::new(db), paths, &options);
        let (union, reconciled) =
            opened.map_err(|e| Failure::from(commit::CommitError::from(e)))?;
        log_reconciled(&reconciled);
        Ok(Open {
            id,
            union: Arc::new(union),
            owners,
            lost: reconciled.lost.len(),
            _lock: lock,
        })
    }

    fn mount(&self, what: &DirectMount) -> Result<Session, Failure> {
        self.serve(what, |filesystem| {
            Session::start(filesystem, &what.request(&self.id))
        })
    }

    /// Serves the file system with a function that starts the session.
    pub(super) fn serve(
        &self,
        what: &DirectMount,
        start: impl FnOnce(EnvFs) -> Result<Session, SessionError>,
    ) -> Result<Session, Failure> {
        let mut filesystem = EnvFs::new(self.union.clone(), self.owners.clone())?;
        if what.flags.synchronous {
            filesystem.sync_each_change();
        }
        let notices = filesystem.notices();
        let counters = filesystem.counters();
        let session = start(filesystem)?;
        notices.connect(session.invalidator());
        if let Some(spec) = &what.session {
            spec.end_when_idle(what, &session, counters);
        }
        Ok(session)
    }

    pub(super) fn close(&self) -> Result<(), Failure> {
        let closed = self.union.close();
        closed.map_err(|e| Failure::from(commit::CommitError::from(e)))
    }
}

/// Returns the user and the group that own the root of an image.
fn owner_of(image: &Image) -> Result<(u32, u32), crate::squashfs::Error> {
    let root = image.inode(image.root())?;
    Ok((image.uid(&root)?, image.gid(&root)?))
}

/// Fails unless the database and the directory for changes belong together. Using one with another
/// would destroy both.
fn pair(layout: &Layout, db: &StateDb) -> Result<(), Failure> {
    let known = match regular::read(&layout.id(), 4096) {
        Ok(id) => Some(String::from_utf8_lossy(&id).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(doing("read", &layout.id())(e)),
    };
    if db.uuid()?.as_deref() == known.as_deref() {
        return Ok(());
    }
    // An interrupted first mount may have written the identity to the directory, and nothing else.
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
    .hint("give the state that was used with this directory, or a new directory")
}

/// Initializes the database of a new directory for changes.
fn initialize(
    what: &DirectMount,
    layout: &Layout,
    db: &StateDb,
    images: &[Image],
) -> Result<(), Failure> {
    let uuid = new_uuid().map_err(|e| Failure::io("cannot create an identity", &e))?;
    let id_file = layout.id();
    regular::open_or_create(&id_file)
        .and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(uuid.as_bytes())
        })
        .map_err(doing("write", &id_file))?;
    let maps = identify(db, images).map_err(|error| {
        let failure = Failure::new(
            Kind::Damaged,
            format!("{}: {error}", list(&what.images)),
        );
        match error {
            union::Error::Redirected(_) => failure
                .hint("create the image from the mounted overlayfs, or from an upper directory without redirect_dir"),
            _ => failure,
        }
    })?;
    let mut rows = Vec::with_capacity(images.len());
    for (image, map) in images.iter().zip(maps) {
        let size = image.superblock().bytes_used;
        rows.push(commit::describe_image(
            db.reserve_image()?,
            image,
            map,
            size,
            None,
        ));
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

/// Creates or updates the symbolic link to an image in the directory.
fn link_image(image: &Path, name: &Path) -> Result<(), Failure> {
    if fs::read_link(name).is_ok_and(|target| target == image) {
        return Ok(());
    }
    match fs::remove_file(name) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(doing("replace", name)(e));
        }
        _ => {}
    }
    symlink(image, name).map_err(doing("create", name))
}

/// Formats the paths of images for messages.
fn list(images: &[Text]) -> String {
    let paths = images
        .iter()
        .map(|path| path.as_path().display().to_string());
    paths.collect::<Vec<_>>().join(" over ")
}

/// Returns the superblock of an image, which identifies it: it has the time of creation, counts,
/// and the positions of all tables.
fn superblock_of(image: &Image, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut superblock = [0; 96];
    image.read_raw(0, &mut superblock).map_err(damaged(path))?;
    Ok(superblock.to_vec())
}

/// Detaches a dead mount with this source at the mount point.
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

fn create_private_dir(path: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(doing("create", path))
}

/// Fails if other users can write to the directory: their files would appear in the mount.
fn refuse_shared(path: &Path) -> Result<(), Failure> {
    let meta = fs::metadata(path).map_err(doing("stat", path))?;
    let shown = path.display();
    let refused = |why: String| Failure::new(Kind::Conflict, format!("{shown} {why}"));
    if meta.uid() != process::user_id() {
        let owner = process::user_name(meta.uid());
        return Err(refused(format!("belongs to {owner}"))
            .hint("give a directory of your own for changes, or chown it"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(
            refused(String::from("is writable for others")).hint(format!("chmod go-w {shown}"))
        );
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
        crate::squashfs::Error::Io { error, .. } => {
            Failure::io(format!("cannot read {}", path.display()), error)
        }
        _ => Failure::new(Kind::Damaged, format!("{}: {error}", path.display())),
    }
}

impl DirectMount {
    /// Returns the mount to create; `id` names it unless it has a source.
    pub(super) fn request(&self, id: &str) -> MountRequest {
        MountRequest {
            mount_point: self.mount_point.as_path().to_path_buf(),
            id: id.to_owned(),
            allow_other: self.allow_other,
            rights: self.rights(),
            options: MountOptions {
                source: Some(self.source.clone()),
                subtype: self.subtype.clone(),
                flags: self.flags,
            },
        }
    }

    /// Returns the directory of its changes.
    pub(super) fn changes(&self) -> Option<Text> {
        match &self.trial {
            Some(trial) => Some(trial.changes().into()),
            None => self.upper.clone(),
        }
    }

    fn rights(&self) -> Rights {
        match self.fakeroot {
            true => Rights::Root,
            false => Rights::Own,
        }
    }

    /// Returns the default source of a mount: the image, if the mount table can represent its path.
    pub(crate) fn default_source(image: &Path) -> String {
        match image.to_str() {
            Some(text) if !text.contains([',', '\\']) => text.to_owned(),
            _ => String::from("envfs"),
        }
    }

    /// Returns whether the mount point is a directory, even if a dead mount covers it.
    pub(crate) fn has_mount_point(&self) -> bool {
        let path = self.mount_point.as_path();
        path.as_os_str().as_bytes().starts_with(b"/") && (path.is_dir() || mountinfo::is_dead(path))
    }
}
