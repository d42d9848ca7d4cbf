//! Where sockets and start locks lie: on this host, for this user alone, never in the store
//! (which may be on a file system shared between hosts).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::failure::{Failure, Kind};
use super::start_lock;
use crate::sys::{process, regular};

/// The longest path that fits into a Unix socket's address, without the final zero.
const MAX_SOCKET_PATH: usize = 107;
/// A UUID in text, the longest id, with `.sock` behind it.
const NAME_LENGTH: usize = 36 + 5 + 1;
/// Where directories are made that have no better place.
const TEMPORARY: &str = "/tmp";

/// The directory of this user's sockets on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeDir {
    /// One that every command of this user finds by itself. It need not exist yet.
    Usual(PathBuf),
    /// None: somebody else has made what would be used. Each daemon makes a directory of its own, which
    /// the note of the environment's lock names.
    Private,
}

impl RuntimeDir {
    /// Returns `$XDG_RUNTIME_DIR/envfs`, or `/tmp/envfs-UID` where that is not set, too long or not ours.
    /// Creates nothing.
    ///
    /// In a user namespace the number is that of the user outside: both find the same daemons.
    pub fn open() -> RuntimeDir {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let of_session = base
            .filter(|base| {
                base.is_absolute()
                    && base.as_os_str().len() + "/envfs/".len() + NAME_LENGTH <= MAX_SOCKET_PATH
                    && fs::metadata(base).is_ok_and(|meta| meta.uid() == process::user_id())
            })
            .map(|base| base.join("envfs"));
        let number = process::outer_user_id();
        let of_host = Path::new(TEMPORARY).join(format!("envfs-{number}"));
        let mut places = of_session.into_iter().chain([of_host]);
        places
            .find(|path| check(path).is_ok())
            .map_or(RuntimeDir::Private, RuntimeDir::Usual)
    }

    /// Takes a directory for this purpose, and makes it.
    pub fn at(path: &Path) -> Result<RuntimeDir, Failure> {
        make(path)?;
        Ok(RuntimeDir::Usual(path.to_path_buf()))
    }

    /// Makes the directory in which a daemon is to listen.
    pub fn make(&self) -> Result<Listening, Failure> {
        if let RuntimeDir::Usual(path) = self
            && make(path).is_ok()
        {
            return Ok(Listening {
                path: path.clone(),
                is_private: false,
            });
        }
        let prefix = format!("envfs-{}-", process::outer_user_id());
        let made = tempfile::Builder::new()
            .prefix(&prefix)
            // A daemon has no umask.
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(TEMPORARY)
            .map_err(|error| {
                Failure::io(format!("cannot make a directory in {TEMPORARY}"), &error)
                    .hint("set XDG_RUNTIME_DIR to a directory of yours with mode 0700")
            })?;
        Ok(Listening {
            path: made.keep(),
            is_private: true,
        })
    }

    /// Returns where the daemon of an environment listens, if that is where everybody looks.
    pub fn socket(&self, id: &str) -> Option<PathBuf> {
        match self {
            RuntimeDir::Usual(path) => Some(socket(path, id)),
            RuntimeDir::Private => None,
        }
    }

    /// Waits until no other command starts or stops the daemon of this environment, and keeps
    /// others waiting until the lock is dropped. Where there is no directory for locks, the `home` of
    /// the environment itself is locked.
    pub fn lock(&self, id: &str, home: &Path) -> Result<StartLock, Failure> {
        let (path, file) = match self {
            RuntimeDir::Usual(dir) => {
                make(dir)?;
                let path = dir.join(format!("{id}.lock"));
                let options = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .mode(0o600)
                    .clone();
                let file = regular::open_with(&path, &options);
                (path, file)
            }
            RuntimeDir::Private => (home.to_path_buf(), File::open(home)),
        };
        let doing = || format!("cannot lock {}", path.display());
        let file = file.map_err(|error| Failure::io(doing(), &error))?;
        match (start_lock::wait(&file, &path, start_lock::PATIENCE), self) {
            (Ok(()), _) => {}
            // Some network file systems lock no directories. Two daemons that start at once meet at the
            // environment's lock.
            (Err(failure), RuntimeDir::Private) if failure.kind != Kind::Busy => {
                tracing::debug!(%failure, "no start lock");
            }
            (Err(failure), _) => return Err(failure),
        }
        Ok(StartLock { _file: file })
    }
}

impl std::fmt::Display for RuntimeDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RuntimeDir::Usual(path) => path.display().fmt(f),
            RuntimeDir::Private => write!(
                f,
                "a directory of its own for each daemon (somebody else has made {TEMPORARY}/envfs-{})",
                process::outer_user_id()
            ),
        }
    }
}

/// A directory in which a daemon listens. One that no other daemon uses goes with this.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    is_private: bool,
}

impl Listening {
    /// Returns where the daemon of an environment is to listen.
    pub fn socket(&self, id: &str) -> PathBuf {
        socket(&self.path, id)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.is_private
            && let Err(error) = fs::remove_dir(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "the directory of the socket stays");
        }
    }
}

fn socket(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.sock"))
}

/// Makes a directory for sockets where there is none, and checks it.
fn make(path: &Path) -> Result<(), Failure> {
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
    check(path)
}

/// Checks that a directory is the caller's alone, or is not there.
///
/// A link, or a directory that another user made first, would give that user our sockets.
fn check(path: &Path) -> Result<(), Failure> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let doing = format!("cannot look at {}", path.display());
            return Err(Failure::io(doing, &error));
        }
    };
    if meta.is_dir() && meta.uid() == process::user_id() && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Conflict,
        format!("{} is not a directory of yours alone", path.display()),
    )
    .hint("set XDG_RUNTIME_DIR to a directory of yours with mode 0700"))
}

/// Held while a daemon is started or stopped.
#[derive(Debug)]
pub struct StartLock {
    _file: File,
}
