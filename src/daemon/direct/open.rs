//! Opens the images of a mount without a store, and pairs them with the directory for changes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::doing;
use crate::commit;
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::repairs::log_reconciled;
use crate::daemon::spec::DirectMount;
use crate::daemon::trial::View;
use crate::environment::{EnvLock, Layout, MOUNTED};
use crate::fuse::session::{Session, SessionError};
use crate::fuse::{EnvFs, Owners};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{InitEnvironment, RevisionKind, StackPart, StateDb};
use crate::sys::mount::Rights;
use crate::sys::process::new_uuid;
use crate::sys::{private, regular, text::Text};
use crate::union::{self, OpenOptions, Paths, SpaceLimit, Union, identify};
/// The time limit for the end of the previous daemon, which outlives its mount for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Open images with their changes, under the lock of the directory for changes.
pub(in crate::daemon) struct Open {
    id: String,
    union: Arc<Union>,
    owners: Owners,
    /// The number of changed files whose content was found to be lost on opening.
    pub(in crate::daemon) lost: usize,
    _lock: Option<EnvLock>,
}

impl Open {
    pub(in crate::daemon) fn new(what: &DirectMount) -> Result<Open, Failure> {
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
        let lock = EnvLock::lock(&layout, MOUNTED, LOCK_TIMEOUT)?;
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
            reader: what.reader(),
            limit: what.limit().map(|bytes| SpaceLimit {
                bytes,
                dir: layout.home().to_path_buf(),
            }),
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

    pub(super) fn mount(&self, what: &DirectMount) -> Result<Session, Failure> {
        self.serve(what, |filesystem| {
            Session::start(filesystem, &what.request(&self.id))
        })
    }

    /// Serves the file system with a function that starts the session.
    pub(in crate::daemon) fn serve(
        &self,
        what: &DirectMount,
        start: impl FnOnce(EnvFs) -> Result<Session, SessionError>,
    ) -> Result<Session, Failure> {
        let mut filesystem = EnvFs::new(self.union.clone(), self.owners.clone())?;
        if let Some(spec) = &what.session {
            filesystem.set_poll(spec.poll);
        }
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

    pub(in crate::daemon) fn close(&self) -> Result<(), Failure> {
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
        origin: None,
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

fn damaged(path: &Path) -> impl Fn(crate::squashfs::Error) -> Failure {
    let path: PathBuf = path.to_path_buf();
    move |error| match &error {
        crate::squashfs::Error::Io { error, .. } => {
            Failure::io(format!("cannot read {}", path.display()), error)
        }
        _ => Failure::new(Kind::Damaged, format!("{}: {error}", path.display())),
    }
}
