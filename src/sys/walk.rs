//! Walks of directory trees of any depth.
//!
//! A walk does not recurse, keeps two descriptors open, and uses names relative to a descriptor, so
//! the depth of a tree is not limited by the stack, the number of open files or `PATH_MAX`.
//! Symbolic links below the root are not followed.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Maximum length of the part of a path that is resolved at once; below `PATH_MAX` by more than a
/// name.
const MAX_PART: usize = 3000;

/// A walk could not enter a directory, or return to it.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {error}")]
pub struct WalkError {
    /// The directory.
    pub path: PathBuf,
    /// The cause.
    pub error: io::Error,
}

impl From<WalkError> for io::Error {
    fn from(failed: WalkError) -> io::Error {
        failed.error
    }
}

/// Names of directories to enter, with the visitor's data for each.
pub type Subdirs<T> = Vec<(Vec<u8>, T)>;

/// Handles the directories of a tree.
pub trait Visitor {
    /// Data for a directory that the walk has not entered yet.
    type Tag;
    /// The error that ends the walk.
    type Error: From<WalkError>;

    /// Handles a directory. Returns the directories in it to enter, in order.
    fn enter(
        &mut self,
        here: &CurrentDir<'_>,
        tag: Self::Tag,
    ) -> Result<Subdirs<Self::Tag>, Self::Error>;

    /// Called in the parent of a directory after everything below the directory has been visited.
    fn leave(&mut self, _parent: &CurrentDir<'_>, _name: &[u8]) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Decides whether the walk continues without a directory that has been renamed, removed or
    /// made unreadable meanwhile.
    fn on_error(&mut self, failed: WalkError) -> Result<(), Self::Error> {
        Err(failed.into())
    }
}

/// The current directory of a walk.
#[derive(Debug)]
pub struct CurrentDir<'a> {
    fd: &'a OwnedFd,
    root: &'a Path,
    names: &'a [Vec<u8>],
}

impl CurrentDir<'_> {
    /// Returns a short path of the directory, valid until the visitor returns.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Returns the directory, opened with `O_PATH`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the names from the root of the walk to the directory.
    pub fn names(&self) -> &[Vec<u8>] {
        self.names
    }

    /// Returns the path of a name in the directory, relative to the root of the walk.
    pub fn below(&self, name: &[u8]) -> PathBuf {
        let mut path = PathBuf::new();
        path.extend(self.names.iter().map(|name| OsStr::from_bytes(name)));
        path.join(OsStr::from_bytes(name))
    }

    /// Returns the whole path of the directory, for messages.
    pub fn full_path(&self) -> PathBuf {
        let mut path = self.root.to_owned();
        path.extend(self.names.iter().map(|name| OsStr::from_bytes(name)));
        path
    }
}

/// A directory on the path from the root to the current directory.
struct Level<T> {
    id: (u64, u64),
    /// Directories still to be entered, the next one last.
    below: Subdirs<T>,
}

/// Walks a tree, each directory before those in it. A symbolic link as the root is followed.
pub fn walk<V: Visitor>(root: &Path, tag: V::Tag, visitor: &mut V) -> Result<(), V::Error> {
    let opened = open_dir(nix::fcntl::AT_FDCWD, root.as_os_str(), OFlag::empty());
    walk_from(opened.map_err(failed(root))?, root, tag, visitor)
}

/// Walks a tree whose root is open. `root` is its path in messages.
pub fn walk_from<V: Visitor>(
    root_fd: OwnedFd,
    root: &Path,
    tag: V::Tag,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut fd = root_fd.try_clone().map_err(|error| WalkError {
        path: root.to_owned(),
        error,
    })?;
    let mut next = Some(tag);
    let mut levels: Vec<Level<V::Tag>> = Vec::new();
    loop {
        if let Some(tag) = next.take() {
            let here = CurrentDir {
                fd: &fd,
                root,
                names: &names,
            };
            let id = identity(&fd).map_err(|e| failed(&here.full_path())(e))?;
            let mut below = visitor.enter(&here, tag)?;
            below.reverse();
            levels.push(Level { id, below });
        }
        let Some(level) = levels.last_mut() else {
            return Ok(());
        };
        if let Some((name, tag)) = level.below.pop() {
            match open_dir(&fd, OsStr::from_bytes(&name), OFlag::O_NOFOLLOW) {
                Ok(opened) => {
                    fd = opened;
                    names.push(name);
                    next = Some(tag);
                }
                Err(e) => {
                    let here = CurrentDir {
                        fd: &fd,
                        root,
                        names: &names,
                    };
                    let path = here.full_path().join(OsStr::from_bytes(&name));
                    visitor.on_error(failed(&path)(e))?;
                }
            }
            continue;
        }
        levels.pop();
        // Return to the parent, skipping directories that cannot be found again.
        while let Some(level) = levels.last() {
            let name = names.pop().unwrap_or_default();
            match parent(&root_fd, &fd, &names, level.id) {
                Ok(up) => {
                    fd = up;
                    let here = CurrentDir {
                        fd: &fd,
                        root,
                        names: &names,
                    };
                    visitor.leave(&here, &name)?;
                    break;
                }
                Err(e) => {
                    let here = CurrentDir {
                        fd: &fd,
                        root,
                        names: &names,
                    };
                    visitor.on_error(failed(&here.full_path())(e))?;
                    levels.pop();
                }
            }
        }
    }
}

/// Opens the directory from which the walk entered `fd`. If `fd` was moved meanwhile, `..` is
/// another directory, and the parent is opened by its names from the root.
fn parent(
    root: &OwnedFd,
    fd: &OwnedFd,
    names: &[Vec<u8>],
    id: (u64, u64),
) -> Result<OwnedFd, Errno> {
    if let Ok(up) = open_dir(fd, OsStr::new(".."), OFlag::O_NOFOLLOW)
        && identity(&up)? == id
    {
        return Ok(up);
    }
    let up = descend(root, names.iter().map(Vec::as_slice))?;
    match identity(&up)? == id {
        true => Ok(up),
        false => Err(Errno::ESTALE),
    }
}

fn identity(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn open_dir(dir: impl AsFd, name: &OsStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn failed(path: &Path) -> impl Fn(Errno) -> WalkError {
    move |errno| WalkError {
        path: path.to_owned(),
        error: errno.into(),
    }
}

/// Opens the directory at `names` below `root` with `O_PATH`, without following symbolic links.
pub fn descend<'a>(
    root: impl AsFd,
    names: impl Iterator<Item = &'a [u8]>,
) -> Result<OwnedFd, Errno> {
    let mut fd = open_dir(root, OsStr::new("."), OFlag::empty())?;
    for name in names {
        fd = open_dir(&fd, OsStr::from_bytes(name), OFlag::O_NOFOLLOW)?;
    }
    Ok(fd)
}

/// Opens a file for reading by a path of any length.
pub fn open_long(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(e) if e.raw_os_error() == Some(Errno::ENAMETOOLONG as i32) => {}
        other => return other,
    }
    let mut dir: Option<OwnedFd> = None;
    let mut part = PathBuf::new();
    let step = |dir: &Option<OwnedFd>, part: &Path, flags: OFlag| match dir {
        Some(dir) => openat(dir, part, flags | OFlag::O_CLOEXEC, Mode::empty()),
        None => openat(
            nix::fcntl::AT_FDCWD,
            part,
            flags | OFlag::O_CLOEXEC,
            Mode::empty(),
        ),
    };
    for name in path {
        if part.as_os_str().len() + name.len() > MAX_PART {
            dir = Some(step(&dir, &part, OFlag::O_PATH | OFlag::O_DIRECTORY)?);
            part = PathBuf::new();
        }
        part.push(name);
    }
    Ok(File::from(step(&dir, &part, OFlag::O_RDONLY)?))
}

/// Removes a tree, including directories without permissions. Succeeds if nothing exists at the
/// path; removes a symbolic link itself.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove(path, Contents::All)
}

/// Removes a tree of directories. Fails at the first entry that is not a directory.
pub fn remove_directories(path: &Path) -> io::Result<()> {
    remove(path, Contents::Directories)
}

/// What a removal may remove.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    All,
    Directories,
}

fn remove(path: &Path, contents: Contents) -> io::Result<()> {
    let flags = OFlag::O_NOFOLLOW;
    let root = match open_dir(nix::fcntl::AT_FDCWD, path.as_os_str(), flags) {
        Ok(root) => root,
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) if contents == Contents::All => {
            return allow_missing(fs::remove_file(path));
        }
        Err(e) => return Err(e.into()),
    };
    walk_from(root, path, (), &mut Remover { contents })?;
    allow_missing(fs::remove_dir(path))
}

struct Remover {
    contents: Contents,
}

impl Visitor for Remover {
    type Tag = ();
    type Error = io::Error;

    fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> io::Result<Subdirs<()>> {
        let path = here.path();
        if fstat(here.fd())?.st_mode & 0o700 != 0o700 {
            fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        }
        let mut below = Vec::new();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() {
                below.push((name.as_bytes().to_vec(), ()));
            } else if self.contents == Contents::All {
                let removed = unlinkat(here.fd(), name.as_os_str(), UnlinkatFlags::NoRemoveDir);
                allow_missing(removed.map_err(io::Error::from))?;
            } else {
                return Err(Errno::ENOTEMPTY.into());
            }
        }
        Ok(below)
    }

    fn leave(&mut self, parent: &CurrentDir<'_>, name: &[u8]) -> io::Result<()> {
        let name = OsStr::from_bytes(name);
        let removed = unlinkat(parent.fd(), name, UnlinkatFlags::RemoveDir);
        allow_missing(removed.map_err(io::Error::from))
    }

    fn on_error(&mut self, failed: WalkError) -> io::Result<()> {
        allow_missing(Err(failed.error))
    }
}

/// Treats a missing file as removed.
fn allow_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns the number of objects in a tree except directories, and their disk space in bytes.
pub fn disk_use(path: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    for_each_file(path, &mut |meta| {
        files += 1;
        bytes += meta.blocks() * 512;
        true
    });
    (files, bytes)
}

/// Returns the bytes of content of the regular files in a tree.
pub fn content_size(path: &Path) -> u64 {
    let mut bytes: u64 = 0;
    for_each_file(path, &mut |meta| {
        bytes = bytes.saturating_add(if meta.is_file() { meta.len() } else { 0 });
        true
    });
    bytes
}

/// What an object takes besides its content, roughly: a file system in memory needs that much.
pub const OBJECT_SPACE: u64 = 1 << 10;

/// Returns the space that everything below a directory takes, in bytes.
pub fn space_used(path: &Path) -> u64 {
    let mut bytes: u64 = 0;
    for_each_file(path, &mut |meta| {
        // A file with several names counts once.
        let content = meta.blocks().saturating_mul(512) / meta.nlink().max(1);
        bytes = bytes.saturating_add(content + OBJECT_SPACE);
        true
    });
    bytes
}

/// Calls `file` with the metadata of each object in a tree except directories. Skips objects that
/// cannot be read or have been removed meanwhile. Stops when `file` returns false.
pub fn for_each_file(path: &Path, file: &mut dyn FnMut(&fs::Metadata) -> bool) {
    struct Files<'a>(&'a mut dyn FnMut(&fs::Metadata) -> bool);
    /// Ends the walk early.
    struct Stop;
    impl From<WalkError> for Stop {
        fn from(_: WalkError) -> Stop {
            Stop
        }
    }
    impl Visitor for Files<'_> {
        type Tag = ();
        type Error = Stop;

        fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> Result<Subdirs<()>, Stop> {
            let mut below = Vec::new();
            for entry in fs::read_dir(here.path()).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => {
                        below.push((entry.file_name().as_bytes().to_vec(), ()));
                    }
                    Ok(meta) if !(self.0)(&meta) => return Err(Stop),
                    _ => {}
                }
            }
            Ok(below)
        }

        fn on_error(&mut self, _: WalkError) -> Result<(), Stop> {
            Ok(())
        }
    }
    // Stopping early is not an error.
    drop(walk(path, (), &mut Files(file)));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use nix::sys::stat::mkdirat;

    use super::*;

    /// Creates a chain of directories deeper than `PATH_MAX`, with a file in each `every`th.
    fn create_deep(root: &Path, depth: usize, every: usize) {
        fs::create_dir_all(root).unwrap();
        let mut fd = open_dir(nix::fcntl::AT_FDCWD, root.as_os_str(), OFlag::empty()).unwrap();
        for level in 0..depth {
            mkdirat(&fd, "d", Mode::S_IRWXU).unwrap();
            fd = open_dir(&fd, OsStr::new("d"), OFlag::O_NOFOLLOW).unwrap();
            if level % every == 0 {
                fs::write(format!("/proc/self/fd/{}/file", fd.as_raw_fd()), "12345").unwrap();
            }
        }
    }

    #[test]
    fn a_tree_deeper_than_paths_stack_and_descriptors_is_walked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep");
        let depth = 5000;
        create_deep(&root, depth, 250);
        let (mut files, mut bytes) = (0, 0);
        // On a thread with a small stack.
        std::thread::scope(|scope| {
            let small = std::thread::Builder::new().stack_size(128 << 10);
            let walk = || {
                for_each_file(&root, &mut |meta| {
                    files += 1;
                    bytes += meta.size();
                    true
                });
                remove_tree(&root).unwrap();
            };
            small.spawn_scoped(scope, walk).unwrap().join().unwrap();
        });
        assert_eq!((files, bytes), (20, 100));
        assert!(!root.exists());
        remove_tree(&root).unwrap();
    }

    #[test]
    fn removal_does_not_follow_links_and_enters_directories_without_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("root")).unwrap();
        for path in ["tree/a/b", "tree/a"] {
            let mode = Permissions::from_mode(0o000);
            fs::set_permissions(dir.path().join(path), mode).unwrap();
        }
        remove_tree(&tree).unwrap();
        remove_tree(&dir.path().join("root")).unwrap();
        assert!(!tree.exists());
        assert!(dir.path().join("root").symlink_metadata().is_err());
        assert!(outside.join("kept").exists());
        assert!(remove_directories(&outside).is_err());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn a_walk_continues_when_directories_are_moved_meanwhile() {
        struct Moving {
            root: PathBuf,
            seen: Vec<Vec<u8>>,
        }
        impl Visitor for Moving {
            type Tag = ();
            type Error = io::Error;
            fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> io::Result<Subdirs<()>> {
                self.seen
                    .push(here.names().last().cloned().unwrap_or_default());
                if here.names() == [b"a".to_vec(), b"b".to_vec()] {
                    fs::rename(self.root.join("a/b"), self.root.join("moved"))?;
                }
                let mut below: Vec<_> = fs::read_dir(here.path())?
                    .map(|entry| (entry.unwrap().file_name().as_bytes().to_vec(), ()))
                    .collect();
                below.sort_unstable();
                Ok(below)
            }
            fn on_error(&mut self, _: WalkError) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b/c", "a/d", "z"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let root = dir.path().to_owned();
        let mut moving = Moving {
            root: root.clone(),
            seen: Vec::new(),
        };
        walk(&root, (), &mut moving).unwrap();
        let seen: Vec<_> = moving
            .seen
            .iter()
            .map(|name| String::from_utf8_lossy(name))
            .collect();
        assert_eq!(seen, ["", "a", "b", "c", "d", "z"]);
    }
}
