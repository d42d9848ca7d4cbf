//! The physical side of one upper layer: a directory of plain files in the shape of the merged
//! tree, so that a person can inspect it and rescue files by hand.
//!
//! ```text
//! layers/<id>/upper/…       content of new and copied-up files, at their merged paths
//! layers/<id>/work/<ino>    content without a name there: being copied up, or detached because its
//!                           name was removed while other names remain
//! ```
//!
//! Names and attributes are rows, not files; only content is here. Every path is resolved from a
//! directory descriptor, one component at a time and never through a symbolic link, so that depth
//! is not limited by `PATH_MAX` and no path leads outside.
//!
//! Physical directories are created when the first content needs them. Invariant: the physical
//! directory of a directory object, if any, is at the object's path in this layer.

mod marks;
mod scan;
mod unsynced;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lru::LruCache;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, RenameFlags, fcntl, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::object::{Ino, Timestamp};
use crate::sys::durable::{sync_dir, sync_file, sync_name};
use crate::sys::private::create_dir;
use crate::sys::regular;
pub use marks::Marks;
pub use scan::{Found, FoundKind, Names};
pub use unsynced::Unsynced;

/// The maximum number of cached open content files, and of open directories.
const OPEN_LIMIT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// A path from the root of the layer: each directory's identity with its name, outermost first.
pub type Chain = [(Ino, Box<[u8]>)];

/// An open upper directory. All methods can be called from many threads; the caller serializes
/// operations on one name.
#[derive(Debug)]
pub struct UpperDir {
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
    pub fn create(path: &Path, strays: &Path) -> io::Result<UpperDir> {
        for dir in [path, &path.join("upper"), &path.join("work")] {
            if fs::symlink_metadata(dir).is_ok_and(|meta| !meta.is_dir()) {
                set_path_aside(dir, strays)?;
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
    pub fn open(path: &Path, strays: &Path) -> io::Result<UpperDir> {
        // A missing directory is not created: its content may only be elsewhere for now.
        for dir in [path, &path.join("upper")] {
            regular::open_dir(dir)?;
            create_dir(dir)?;
        }
        let work = path.join("work");
        if fs::symlink_metadata(&work).is_ok_and(|meta| !meta.is_dir()) {
            // Not created by envfs. Missing content is reported later.
            set_path_aside(&work, strays)?;
        }
        create_dir(&work)?;
        if strays.exists() {
            refuse_link(strays)?;
            create_dir(strays)?;
        }
        UpperDir::open_read_only(path, strays)
    }

    /// Opens the layer directory `path` without changing anything.
    pub fn open_read_only(path: &Path, strays: &Path) -> io::Result<UpperDir> {
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

    /// Returns the directory of the layer (the parent of `upper` and `work`).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the physical directory at the end of `chain`, or `None` if there is none.
    pub fn find_dir(&self, chain: &Chain) -> io::Result<Option<Arc<OwnedFd>>> {
        match self.walk(chain, false) {
            Ok(fd) => Ok(Some(fd)),
            // Another object in its place is not the directory.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the physical directory at the end of `chain`, after creating it and its missing
    /// parents.
    pub fn create_dir(&self, chain: &Chain) -> io::Result<Arc<OwnedFd>> {
        Ok(self.walk(chain, true)?)
    }

    fn walk(&self, chain: &Chain, make: bool) -> Result<Arc<OwnedFd>, Errno> {
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
                Err(Errno::ENOENT) if make => {
                    match mkdirat(&*fd, name(component), Mode::S_IRWXU) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(e) => return Err(e),
                    }
                    self.open_at(fd.as_fd(), component, flags, Mode::empty())?
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) if make => {
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
    pub fn forget_dir(&self, dir: Ino) {
        lock(&self.dirs).pop(&dir);
    }

    /// Creates an empty content file for `ino` under `component`, open for reading and writing.
    /// An existing file there has no row, so it is set aside first.
    ///
    /// The file has the permission bits of `mode` for people who inspect it, and is always readable
    /// and writable by its owner: rows hold the mode in the merged view.
    pub fn create_file(
        &self,
        dir: BorrowedFd<'_>,
        component: &[u8],
        ino: Ino,
        mode: u16,
    ) -> io::Result<Arc<File>> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = backing_mode(mode);
        let fd = match self.open_at(dir, component, flags, mode) {
            Err(Errno::EEXIST) => {
                self.set_aside(dir, component)?;
                self.open_at(dir, component, flags, mode)?
            }
            other => other?,
        };
        keep_access_time(&fd);
        let file = Arc::new(File::from(fd));
        lock(&self.files).put(ino, file.clone());
        Ok(file)
    }

    /// Creates a symbolic link under `component`, as a copy of the row for people who inspect it.
    pub fn create_symlink(
        &self,
        dir: BorrowedFd<'_>,
        component: &[u8],
        target: &[u8],
    ) -> io::Result<()> {
        match symlinkat(name(target), dir, name(component)) {
            Err(Errno::EEXIST) => {
                self.set_aside(dir, component)?;
                Ok(symlinkat(name(target), dir, name(component))?)
            }
            other => Ok(other?),
        }
    }

    /// Creates an empty file in `work`, for content that is being copied up.
    pub fn stage(&self, ino: Ino) -> io::Result<Arc<File>> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let fd = self.open_at(self.work(), work_name(ino).as_bytes(), flags, mode)?;
        keep_access_time(&fd);
        Ok(Arc::new(File::from(fd)))
    }

    /// Creates a file without a name, for an object that lost its last name while open.
    pub fn anonymous(&self, ino: Ino) -> io::Result<Arc<File>> {
        let file = self.stage(ino)?;
        self.unstage(ino)?;
        Ok(file)
    }

    /// Removes a staged or detached file, if it exists.
    pub fn unstage(&self, ino: Ino) -> io::Result<()> {
        match unlinkat(
            &self.work,
            work_name(ino).as_str(),
            UnlinkatFlags::NoRemoveDir,
        ) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Moves a staged or detached file to a name. An existing file there is set aside.
    pub fn place(&self, ino: Ino, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<()> {
        let from = work_name(ino);
        match renameat2(
            &self.work,
            from.as_str(),
            dir,
            name(component),
            RenameFlags::RENAME_NOREPLACE,
        ) {
            Err(Errno::EEXIST) => {
                self.set_aside(dir, component)?;
                Ok(rename(self.work.as_fd(), from.as_bytes(), dir, component)?)
            }
            Err(Errno::EINVAL) => Ok(rename(self.work.as_fd(), from.as_bytes(), dir, component)?),
            other => Ok(other?),
        }
    }

    /// Moves a placed file to `work`, where content without a name is kept.
    pub fn detach(&self, dir: BorrowedFd<'_>, component: &[u8], ino: Ino) -> io::Result<()> {
        Ok(rename(
            dir,
            component,
            self.work.as_fd(),
            work_name(ino).as_bytes(),
        )?)
    }

    /// Renames within the layer, replacing the target. Returns false if the source does not exist.
    pub fn rename(
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
    pub fn exchange(
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
    pub fn remove(&self, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<()> {
        match unlinkat(dir, name(component), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a physical directory, if it exists; content without rows is set aside.
    pub fn remove_dir(&self, dir: BorrowedFd<'_>, component: &[u8], ino: Ino) -> io::Result<()> {
        self.forget_dir(ino);
        match unlinkat(dir, name(component), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {
                Ok(self.set_aside(dir, component)?)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the content file of `ino`, open for reading and writing.
    pub fn open_file(
        &self,
        ino: Ino,
        place: Option<(BorrowedFd<'_>, &[u8])>,
    ) -> io::Result<Arc<File>> {
        if let Some(file) = self.cached_file(ino) {
            return Ok(file);
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let open = |flags: OFlag| match place {
            Some((dir, component)) => self.open_at(dir, component, flags, Mode::empty()),
            None => self.open_at(self.work(), work_name(ino).as_bytes(), flags, Mode::empty()),
        };
        // Checked first: another object in its place may be a device, and opening it could have
        // effects.
        self.stat(ino, place)?;
        // O_NOATIME: reads through the mount must not change the access time of the backing file.
        // Only the owner may use it.
        let fd = match open(flags | OFlag::O_NOATIME) {
            Err(Errno::EPERM) => open(flags)?,
            other => other?,
        };
        let file = Arc::new(File::from(fd));
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(
                "the content of the file is not a regular file",
            ));
        }
        lock(&self.files).put(ino, file.clone());
        Ok(file)
    }

    /// Returns the content file of `ino` if it is already open.
    pub fn cached_file(&self, ino: Ino) -> Option<Arc<File>> {
        if let Some(file) = lock(&self.files).get(&ino) {
            return Some(file.clone());
        }
        lock(&self.pinned).get(&ino).cloned()
    }

    /// Keeps a content file open as long as this layer is open.
    pub fn pin_file(&self, ino: Ino, file: Arc<File>) {
        lock(&self.pinned).insert(ino, file);
    }

    /// Caches an open content file.
    pub fn cache_file(&self, ino: Ino, file: Arc<File>) {
        lock(&self.files).put(ino, file);
    }

    /// Drops the descriptor of a content file that was removed.
    pub fn forget_file(&self, ino: Ino) {
        lock(&self.files).pop(&ino);
        lock(&self.pinned).remove(&ino);
    }

    /// Returns the attributes of content without opening it, or an error if it is not a regular
    /// file.
    pub fn stat(&self, ino: Ino, place: Option<(BorrowedFd<'_>, &[u8])>) -> io::Result<FileStat> {
        if let Some(file) = self.cached_file(ino) {
            return Ok(fstat(&*file)?);
        }
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let stat = match place {
            Some((dir, component)) => fstatat(dir, name(component), flags)?,
            None => fstatat(&self.work, work_name(ino).as_str(), flags)?,
        };
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Ok(stat),
            _ => Err(not_regular(ino)),
        }
    }

    /// Returns the identity of the host file under a name.
    pub fn backing_ino(&self, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<u64> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let there = File::from(self.open_at(dir, component, flags, Mode::empty())?);
        Ok(identity(&there.metadata()?))
    }

    /// Returns the identity of an open host file.
    pub fn backing_ino_of(&self, file: &File) -> io::Result<u64> {
        Ok(identity(&file.metadata()?))
    }

    /// Returns true if a name exists.
    pub fn has(&self, dir: BorrowedFd<'_>, component: &[u8]) -> bool {
        fstatat(dir, name(component), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Returns the directories and files that may not be on disk yet, which the caller maintains.
    pub fn unsynced(&self) -> &Unsynced {
        &self.unsynced
    }

    /// Makes the names in a physical directory durable.
    pub fn sync_dir(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        sync_file(dir)
    }

    /// Returns the upper root, for `statvfs`.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns the directory beside the upper root, for files that are being moved.
    pub fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// Moves discarded content below the strays directory, where the user can remove it.
    pub fn keep_aside(&self, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<()> {
        self.move_aside(dir, component)?;
        Ok(())
    }

    /// Moves discarded content from `work` below the strays directory.
    pub fn keep_detached_aside(&self, ino: Ino) -> io::Result<()> {
        self.keep_aside(self.work(), work_name(ino).as_bytes())
    }

    /// Moves a file without a row out of the way.
    fn set_aside(&self, dir: BorrowedFd<'_>, component: &[u8]) -> Result<(), Errno> {
        if let Some(to) = self.move_aside(dir, component)? {
            tracing::warn!(moved_to = %to.display(), "content without a row was in the way");
        }
        Ok(())
    }

    /// Moves a file below the strays directory, under a name made of the time and its old name.
    /// Returns the new path, or `None` if the file does not exist.
    fn move_aside(&self, dir: BorrowedFd<'_>, component: &[u8]) -> Result<Option<PathBuf>, Errno> {
        create_dir(&self.strays).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(5)))?;
        // The time is prepended, and the result must fit into a name.
        let shown: String = String::from_utf8_lossy(component)
            .chars()
            .take(50)
            .collect();
        // The clock is fine enough that two calls rarely get the same time, so one attempt is
        // usually enough, however many strays there are.
        for _ in 0..100 {
            let now = Timestamp::from(SystemTime::now());
            let to = format!("{}.{:09}-{shown}", now.secs, now.nanos);
            let to = self.strays.join(to);
            match renameat2(
                dir,
                name(component),
                nix::fcntl::AT_FDCWD,
                &to,
                RenameFlags::RENAME_NOREPLACE,
            ) {
                Ok(()) => return Ok(Some(to)),
                Err(Errno::EEXIST) => {}
                Err(Errno::ENOENT) => return Ok(None),
                // File systems without RENAME_NOREPLACE. No other process creates names there.
                Err(Errno::EINVAL) if to.symlink_metadata().is_err() => {
                    let strays = nix::fcntl::AT_FDCWD;
                    return match nix::fcntl::renameat(dir, name(component), strays, &to) {
                        Ok(()) => Ok(Some(to)),
                        Err(Errno::ENOENT) => Ok(None),
                        Err(e) => Err(e),
                    };
                }
                Err(Errno::EINVAL) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::EEXIST)
    }
}

/// Prevents reads through a descriptor from changing the access time of its file, which is the
/// access time of the object.
///
/// Not by opening with `O_NOATIME`: only the owner may use it, and if the file server assigns
/// another owner, the call would create the file and fail.
fn keep_access_time(fd: &OwnedFd) {
    if let Err(e) = fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NOATIME)) {
        tracing::debug!("reading will change an access time: {e}");
    }
}

fn not_regular(ino: Ino) -> io::Error {
    io::Error::other(format!("the content of object {ino} is not a regular file"))
}

/// Moves an object below the strays directory.
fn set_path_aside(path: &Path, strays: &Path) -> io::Result<()> {
    create_dir(strays)?;
    let now = Timestamp::from(SystemTime::now());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let to = strays.join(format!("{}.{:09}-{name}", now.secs, now.nanos));
    fs::rename(path, &to)?;
    tracing::warn!(moved_to = %to.display(), "{} was not a directory", path.display());
    Ok(())
}

/// Returns a number that identifies a file on the host and that no other file had before. Inode
/// numbers are reused, some at once, so the time of birth is included where the file system keeps
/// it.
fn identity(meta: &Metadata) -> u64 {
    let Ok(born) = meta.created().map(Timestamp::from) else {
        return meta.ino();
    };
    let mut hash = blake3::Hasher::new();
    hash.update(&meta.ino().to_le_bytes());
    hash.update(&born.secs.to_le_bytes());
    hash.update(&born.nanos.to_le_bytes());
    let mut short = [0; 8];
    hash.finalize_xof().fill(&mut short);
    u64::from_le_bytes(short)
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

/// Returns the mode of a backing file: the given permission bits, plus access for the owner.
pub fn backing_mode(mode: u16) -> Mode {
    Mode::from_bits_truncate(u32::from(mode) & 0o777 | 0o600)
}

fn work_name(ino: Ino) -> String {
    ino.0.to_string()
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
            "without the one above"
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
        let told = names().filter(|name| name.as_bytes().ends_with(b"-found"));
        assert_eq!(told.count(), 10_001);
    }
}
