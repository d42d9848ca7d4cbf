//! The physical side of one upper layer: a directory of plain files in the shape of the merged
//! tree, so that a person can inspect it and rescue files by hand.
//!
//! ```text
//! layers/<id>/upper/…       content of new and copied-up files, at their merged paths
//! layers/<id>/work/<ino>    content without a name there: being copied up, or detached because its
//!                           name was removed while other names remain
//! layers/<id>/work/removed-<n>  content that no row refers to, until that is durable
//! ```
//!
//! Names and attributes are rows, not files; only content is here. Every path is resolved from a
//! directory descriptor, one component at a time and never through a symbolic link, so that depth
//! is not limited by `PATH_MAX` and no path leads outside.
//!
//! Physical directories are created when the first content needs them. Invariant: the physical
//! directory of a directory object, if any, is at the object's path in this layer.
//!
//! A file in `upper` without a row is never deleted, but moved to the strays directory
//! (`strays.rs`). The caches of descriptors have locks, which are taken last and not held during
//! I/O.

mod files;
mod marks;
mod removed;
mod scan;
mod strays;
mod unsynced;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::object::Ino;
use crate::sys::durable::{sync_dir, sync_file, sync_name};
use crate::sys::private::create_dir;
use crate::sys::regular;
pub(crate) use files::backing_mode;
pub(crate) use marks::Marks;
pub(crate) use removed::Removed;
pub(crate) use scan::{Found, FoundKind, LayerPath, Part};
pub(crate) use unsynced::Unsynced;

/// The maximum number of cached open content files, and of open directories.
const OPEN_LIMIT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// A path from the root of the layer: each directory's identity with its name, outermost first.
pub(crate) type Chain = [(Ino, Box<[u8]>)];

/// What [`UpperDir::walk`] does if a directory of the path is missing, or another object has its
/// name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Fail,
    Create,
}

/// An open upper directory. All methods can be called from many threads; the caller serializes
/// operations on one name.
#[derive(Debug)]
pub(crate) struct UpperDir {
    path: PathBuf,
    root: Arc<OwnedFd>,
    work: OwnedFd,
    strays: PathBuf,
    dirs: Mutex<LruCache<Ino, Arc<OwnedFd>>>,
    files: Mutex<LruCache<Ino, Arc<File>>>,
    /// Content that can be read after its name, or the whole layer, was removed.
    pinned: Mutex<HashMap<Ino, Arc<File>>>,
    unsynced: Unsynced,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The caches hold no invariant that a panicking thread could have left broken.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(bytes: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(bytes)
}

impl UpperDir {
    /// Creates the missing parts of the layer directory `path`, durably, and opens it. The parent
    /// directory must exist.
    ///
    /// Only for a layer without content in its rows: the created directories are empty.
    pub(crate) fn create(path: &Path, strays: &Path) -> io::Result<UpperDir> {
        for dir in [path, &path.join("upper"), &path.join("work")] {
            if fs::symlink_metadata(dir).is_ok_and(|meta| !meta.is_dir()) {
                strays::set_path_aside(dir, strays)?;
            }
        }
        for dir in [path, &path.join("upper"), &path.join("work")] {
            match DirBuilder::new().mode(0o700).create(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        sync_dir(path)?;
        sync_name(path)?;
        UpperDir::open(path, strays)
    }

    /// Opens the existing layer directory `path`, which must contain `upper`.
    /// Files that are in the way are moved below `strays`, never deleted.
    ///
    /// Only the owner gets access: another writer could change the merged view.
    pub(crate) fn open(path: &Path, strays: &Path) -> io::Result<UpperDir> {
        // A missing directory is not created: its content may only be elsewhere for now.
        for dir in [path, &path.join("upper")] {
            regular::open_dir(dir)?;
            create_dir(dir)?;
        }
        let work = path.join("work");
        if fs::symlink_metadata(&work).is_ok_and(|meta| !meta.is_dir()) {
            // Not created by envfs. Missing content is reported later.
            strays::set_path_aside(&work, strays)?;
        }
        create_dir(&work)?;
        if strays.exists() {
            refuse_link(strays)?;
            create_dir(strays)?;
        }
        UpperDir::open_read_only(path, strays)
    }

    /// Opens the layer directory `path` without changing anything.
    pub(crate) fn open_read_only(path: &Path, strays: &Path) -> io::Result<UpperDir> {
        let open = |sub: &str| -> io::Result<OwnedFd> {
            Ok(OwnedFd::from(regular::open_dir(&path.join(sub))?))
        };
        Ok(UpperDir {
            root: Arc::new(open("upper")?),
            work: open("work")?,
            path: path.to_owned(),
            strays: strays.to_owned(),
            dirs: Mutex::new(LruCache::new(OPEN_LIMIT)),
            files: Mutex::new(LruCache::new(OPEN_LIMIT)),
            pinned: Mutex::new(HashMap::new()),
            unsynced: Unsynced::default(),
        })
    }

    /// Returns the physical directory at the end of `chain`, or `None` if there is none.
    pub(crate) fn find_dir(&self, chain: &Chain) -> io::Result<Option<Arc<OwnedFd>>> {
        match self.walk(chain, Missing::Fail) {
            Ok(fd) => Ok(Some(fd)),
            // Another object in its place is not the directory.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the physical directory at the end of `chain`, after creating it and its missing
    /// parents.
    pub(crate) fn create_dir(&self, chain: &Chain) -> io::Result<Arc<OwnedFd>> {
        Ok(self.walk(chain, Missing::Create)?)
    }

    fn walk(&self, chain: &Chain, missing: Missing) -> Result<Arc<OwnedFd>, Errno> {
        let (mut start, mut fd) = (0, self.root.clone());
        {
            let mut dirs = lock(&self.dirs);
            for (depth, (ino, _)) in chain.iter().enumerate().rev() {
                if let Some(known) = dirs.get(ino) {
                    (start, fd) = (depth + 1, known.clone());
                    break;
                }
            }
        }
        for (ino, component) in chain.get(start..).unwrap_or_default() {
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
            let opened = match self.open_at(fd.as_fd(), component, flags, Mode::empty()) {
                Err(Errno::ENOENT) if missing == Missing::Create => {
                    match mkdirat(&*fd, name(component), Mode::S_IRWXU) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(e) => return Err(e),
                    }
                    self.open_at(fd.as_fd(), component, flags, Mode::empty())?
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) if missing == Missing::Create => {
                    self.set_aside(fd.as_fd(), component)?;
                    mkdirat(&*fd, name(component), Mode::S_IRWXU)?;
                    self.open_at(fd.as_fd(), component, flags, Mode::empty())?
                }
                other => other?,
            };
            fd = Arc::new(opened);
            lock(&self.dirs).put(*ino, fd.clone());
        }
        Ok(fd)
    }

    /// Opens an entry of a directory. If the process has no descriptor left, closes the cached ones
    /// and retries.
    fn open_at(
        &self,
        dir: BorrowedFd<'_>,
        component: &[u8],
        flags: OFlag,
        mode: Mode,
    ) -> Result<OwnedFd, Errno> {
        match openat(dir, name(component), flags, mode) {
            Err(Errno::EMFILE | Errno::ENFILE) => {
                lock(&self.dirs).clear();
                lock(&self.files).clear();
                openat(dir, name(component), flags, mode)
            }
            other => other,
        }
    }

    /// Drops the cached descriptor of a physical directory that was removed.
    pub(crate) fn forget_dir(&self, dir: Ino) {
        lock(&self.dirs).pop(&dir);
    }

    /// Renames within the layer, replacing the target. Returns false if the source does not exist.
    pub(crate) fn rename(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        to: (BorrowedFd<'_>, &[u8]),
    ) -> io::Result<bool> {
        match rename(from.0, from.1, to.0, to.1) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EISDIR | Errno::ENOTDIR) => {
                // The target has no row any more: an interrupted call left it.
                self.set_aside(to.0, to.1)?;
                rename(from.0, from.1, to.0, to.1)?;
                Ok(true)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Exchanges two names, either of which may not exist.
    pub(crate) fn exchange(
        &self,
        a: (BorrowedFd<'_>, &[u8]),
        b: (BorrowedFd<'_>, &[u8]),
    ) -> io::Result<()> {
        match renameat2(a.0, name(a.1), b.0, name(b.1), RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => {
                if !self.rename(a, b)? {
                    self.rename(b, a)?;
                }
                Ok(())
            }
            Err(Errno::EINVAL) => {
                // File systems without RENAME_EXCHANGE; reconcile() finishes an interrupted
                // exchange.
                let aside = b".envfs-exchange";
                rename(a.0, a.1, self.work.as_fd(), aside)?;
                rename(b.0, b.1, a.0, a.1)?;
                Ok(rename(self.work.as_fd(), aside, b.0, b.1)?)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a placed file or link, if it exists.
    pub(crate) fn remove(&self, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<()> {
        match unlinkat(dir, name(component), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a physical directory, if it exists; content without rows is set aside.
    pub(crate) fn remove_dir(
        &self,
        dir: BorrowedFd<'_>,
        component: &[u8],
        ino: Ino,
    ) -> io::Result<()> {
        self.forget_dir(ino);
        match unlinkat(dir, name(component), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {
                Ok(self.set_aside(dir, component)?)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Returns true if a name exists.
    pub(crate) fn has(&self, dir: BorrowedFd<'_>, component: &[u8]) -> bool {
        fstatat(dir, name(component), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Returns the directories and files that may not be on disk yet, which the caller maintains.
    pub(crate) fn unsynced(&self) -> &Unsynced {
        &self.unsynced
    }

    /// Makes the names in a physical directory durable.
    pub(crate) fn sync_dir(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        sync_file(dir)
    }

    /// Returns the upper root, for `statvfs`.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns the directory beside the upper root, for files that are being moved.
    pub(crate) fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }
}

/// Refuses a link, a file or anything else in the place of a directory.
fn refuse_link(dir: &Path) -> io::Result<()> {
    match regular::open_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn rename(from: BorrowedFd<'_>, old: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<(), Errno> {
    nix::fcntl::renameat(from, name(old), to, name(new))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn only_the_owner_can_access_the_files_of_a_layer() {
        let dir = tempfile::tempdir().unwrap();
        let (path, strays) = (dir.path().join("layers/1"), dir.path().join("strays"));
        let all = ["layers/1", "layers/1/upper", "layers/1/work", "strays"];
        create_dir(&dir.path().join("layers")).unwrap();
        let upper = UpperDir::create(&path, &strays).unwrap();
        fs::write(path.join("upper/found"), "x").unwrap();
        upper.keep_aside(upper.root(), b"found").unwrap();
        for place in all.map(|place| dir.path().join(place)) {
            assert_eq!(mode_of(&place), 0o700, "{}", place.display());
            // With too many permissions.
            fs::set_permissions(&place, Permissions::from_mode(0o777)).unwrap();
        }
        UpperDir::open(&path, &strays).unwrap();
        for place in all.map(|place| dir.path().join(place)) {
            assert_eq!(mode_of(&place), 0o700, "{}", place.display());
        }
    }

    #[test]
    fn a_missing_layer_is_not_created_by_open() {
        let dir = tempfile::tempdir().unwrap();
        let (path, strays) = (dir.path().join("layers/1"), dir.path().join("strays"));
        assert!(
            UpperDir::create(&path, &strays).is_err(),
            "without its parent directory"
        );
        fs::create_dir(dir.path().join("layers")).unwrap();
        assert!(UpperDir::open(&path, &strays).is_err());
        assert!(!path.exists());
        UpperDir::create(&path, &strays).unwrap();
        // Some copying tools leave empty directories out.
        fs::remove_dir(path.join("work")).unwrap();
        UpperDir::open(&path, &strays).unwrap();
        fs::remove_dir(path.join("upper")).unwrap();
        assert!(UpperDir::open(&path, &strays).is_err());
        UpperDir::create(&path, &strays).unwrap();
    }

    #[test]
    fn many_strays_can_have_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let strays = dir.path().join("strays");
        let upper = UpperDir::create(&dir.path().join("1"), &strays).unwrap();
        let long = vec![0xff; 255];
        for _ in 0..10_001 {
            fs::write(dir.path().join("1/upper/found"), "").unwrap();
            upper.keep_aside(upper.root(), b"found").unwrap();
        }
        fs::write(dir.path().join("1/upper").join(name(&long)), "").unwrap();
        upper.keep_aside(upper.root(), &long).unwrap();
        upper.keep_aside(upper.root(), b"nothing").unwrap();
        let names = || {
            fs::read_dir(&strays)
                .unwrap()
                .map(|e| e.unwrap().file_name())
        };
        assert_eq!(names().count(), 10_002);
        let found = names().filter(|name| name.as_bytes().ends_with(b"-found"));
        assert_eq!(found.count(), 10_001);
    }
}
