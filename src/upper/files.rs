//! The content files of an upper directory, and the cache of their descriptors.
//!
//! A content file is under its name in `upper`, or in `work` under the identity of its object.
//! Descriptors are cached by identity, so a file that is renamed or detached stays open.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, RenameFlags, fcntl, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::{UpperDir, lock, name, rename};
use crate::object::{Ino, Timestamp};

/// A content file that was created.
#[derive(Debug)]
pub(crate) struct Created {
    /// See [`UpperDir::backing_ino_of`].
    pub(crate) identity: u64,
    /// Its attributes, as they were then.
    pub(crate) metadata: Metadata,
}

impl UpperDir {
    /// Creates an empty content file for `ino` under `component`, open for reading and writing.
    /// An existing file there has no row, so it is set aside first.
    ///
    /// The file has the permission bits of `mode` for people who inspect it, and is always readable
    /// and writable by its owner: rows hold the mode in the merged view.
    pub(crate) fn create_file(
        &self,
        dir: BorrowedFd<'_>,
        component: &[u8],
        ino: Ino,
        mode: u16,
    ) -> io::Result<Created> {
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
        let file = File::from(fd);
        // One call for all that is to be known about it.
        let metadata = file.metadata()?;
        lock(&self.files).put(ino, Arc::new(file));
        Ok(Created {
            identity: identity(&metadata),
            metadata,
        })
    }

    /// Creates a symbolic link under `component`, as a copy of the row for people who inspect it.
    pub(crate) fn create_symlink(
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
    pub(crate) fn stage(&self, ino: Ino) -> io::Result<Arc<File>> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let fd = self.open_at(self.work(), work_name(ino).as_bytes(), flags, mode)?;
        keep_access_time(&fd);
        Ok(Arc::new(File::from(fd)))
    }

    /// Creates a file without a name, for an object that lost its last name while open.
    pub(crate) fn anonymous(&self, ino: Ino) -> io::Result<Arc<File>> {
        let file = self.stage(ino)?;
        self.unstage(ino)?;
        Ok(file)
    }

    /// Links the content of `ino` in another layer to a name here, or to `work`. Returns false if
    /// the file system cannot.
    pub(crate) fn link_content(
        &self,
        other: &UpperDir,
        ino: Ino,
        from: Option<(BorrowedFd<'_>, &[u8])>,
        to: Option<(BorrowedFd<'_>, &[u8])>,
    ) -> io::Result<bool> {
        let in_work = work_name(ino);
        let from = from.unwrap_or((other.work(), in_work.as_bytes()));
        let to = to.unwrap_or((self.work(), in_work.as_bytes()));
        let linked = linkat(from.0, name(from.1), to.0, name(to.1), AtFlags::empty());
        match linked {
            Ok(()) => Ok(true),
            Err(
                Errno::EPERM | Errno::EXDEV | Errno::EMLINK | Errno::EOPNOTSUPP | Errno::ENOSYS,
            ) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the name of content that was linked.
    pub(crate) fn unlink_content(
        &self,
        ino: Ino,
        at: Option<(BorrowedFd<'_>, &[u8])>,
    ) -> io::Result<()> {
        match at {
            Some((dir, component)) => self.remove(dir, component),
            None => self.unstage(ino),
        }
    }

    /// Removes a staged or detached file, if it exists.
    pub(crate) fn unstage(&self, ino: Ino) -> io::Result<()> {
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
    pub(crate) fn place(&self, ino: Ino, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<()> {
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
    pub(crate) fn detach(
        &self,
        dir: BorrowedFd<'_>,
        component: &[u8],
        ino: Ino,
    ) -> Result<(), Errno> {
        rename(dir, component, self.work.as_fd(), work_name(ino).as_bytes())
    }

    /// Returns the content file of `ino`, open for reading and writing.
    pub(crate) fn open_file(
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
    pub(crate) fn cached_file(&self, ino: Ino) -> Option<Arc<File>> {
        if let Some(file) = lock(&self.files).get(&ino) {
            return Some(file.clone());
        }
        lock(&self.pinned).get(&ino).cloned()
    }

    /// Keeps a content file open as long as this layer is open.
    pub(crate) fn pin_file(&self, ino: Ino, file: Arc<File>) {
        lock(&self.pinned).insert(ino, file);
    }

    /// Caches an open content file.
    pub(crate) fn cache_file(&self, ino: Ino, file: Arc<File>) {
        lock(&self.files).put(ino, file);
    }

    /// Drops the descriptor of a content file that was removed.
    pub(crate) fn forget_file(&self, ino: Ino) {
        lock(&self.files).pop(&ino);
        lock(&self.pinned).remove(&ino);
    }

    /// Returns the attributes of content without opening it, or an error if it is not a regular
    /// file.
    pub(crate) fn stat(
        &self,
        ino: Ino,
        place: Option<(BorrowedFd<'_>, &[u8])>,
    ) -> io::Result<FileStat> {
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
    pub(crate) fn backing_ino(&self, dir: BorrowedFd<'_>, component: &[u8]) -> io::Result<u64> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let there = File::from(self.open_at(dir, component, flags, Mode::empty())?);
        Ok(identity(&there.metadata()?))
    }

    /// Returns the identity of an open host file.
    pub(crate) fn backing_ino_of(&self, file: &File) -> io::Result<u64> {
        Ok(identity(&file.metadata()?))
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

/// Returns a number that identifies a file on the host and that no other file had before. Inode
/// numbers are reused, some at once, so the time of birth is included where the file system keeps
/// it.
pub(super) fn identity(meta: &Metadata) -> u64 {
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

/// Returns the mode of a backing file: the given permission bits, plus access for the owner.
pub(crate) fn backing_mode(mode: u16) -> Mode {
    Mode::from_bits_truncate(u32::from(mode) & 0o777 | 0o600)
}

pub(super) fn work_name(ino: Ino) -> String {
    ino.0.to_string()
}
