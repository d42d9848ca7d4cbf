//! Where sockets and start locks lie: on this host, for this user alone, never in the store
//! (which may be on a file system shared between hosts).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use fs2::FileExt;

use super::failure::{Failure, Kind};
use crate::sys::process;

/// The longest path that fits into a Unix socket's address, without the final zero.
const MAX_SOCKET_PATH: usize = 107;
/// A UUID in text, the longest id, with `.sock` behind it.
const NAME_LENGTH: usize = 36 + 5 + 1;

/// The directory of this user's sockets on this host.
#[derive(Debug, Clone)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// Returns `$XDG_RUNTIME_DIR/envfs`, or `/tmp/envfs-UID` where that is not set, too long or
    /// not ours. Creates it (mode 0700), and refuses one that belongs to somebody else.
    pub fn open() -> Result<RuntimeDir, Failure> {
        if let Some(base) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
            && base.is_absolute()
            && base.as_os_str().len() + "/envfs/".len() + NAME_LENGTH <= MAX_SOCKET_PATH
            && fs::metadata(&base).is_ok_and(|meta| meta.uid() == process::user_id())
        {
            return RuntimeDir::at(&base.join("envfs"));
        }
        RuntimeDir::at(&Path::new("/tmp").join(format!("envfs-{}", process::user_id())))
    }

    /// Takes a directory for this purpose.
    pub fn at(path: &Path) -> Result<RuntimeDir, Failure> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Failure::io(
                    format!("cannot create {}", path.display()),
                    &error,
                ));
            }
        }
        // A link, or a directory that another user made first, would give him our sockets.
        let meta = fs::symlink_metadata(path)
            .map_err(|error| Failure::io(format!("cannot look at {}", path.display()), &error))?;
        if !meta.is_dir() || meta.uid() != process::user_id() || meta.mode() & 0o077 != 0 {
            return Err(Failure::new(
                Kind::Conflict,
                format!("{} is not a directory of yours alone", path.display()),
            )
            .hint(format!("remove it: rm -r {}", path.display()))
            .hint("or set XDG_RUNTIME_DIR to a directory of yours with mode 0700"));
        }
        Ok(RuntimeDir(path.to_path_buf()))
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns where the daemon of an environment listens.
    pub fn socket(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.sock"))
    }

    /// Waits until no other command starts or stops the daemon of this environment, and keeps
    /// others waiting until the lock is dropped.
    pub fn lock(&self, id: &str) -> Result<StartLock, Failure> {
        let path = self.0.join(format!("{id}.lock"));
        let doing = || format!("cannot lock {}", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| Failure::io(doing(), &error))?;
        file.lock_exclusive()
            .map_err(|error| Failure::io(doing(), &error))?;
        Ok(StartLock { _file: file })
    }
}

/// Held while a daemon is started or stopped.
#[derive(Debug)]
pub struct StartLock {
    _file: File,
}
