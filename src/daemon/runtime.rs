//! The directory of sockets and start locks. It is local to the host and private to the user, and
//! never in the store, which may be on a file system shared between hosts.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::failure::{Failure, Kind};
use super::start_lock;
use crate::sys::{process, regular};

/// The longest path in the address of a Unix socket, without the final zero.
const MAX_SOCKET_PATH: usize = 107;
/// The length of the longest file name: a UUID as text and `.sock`.
const NAME_LENGTH: usize = 36 + 5 + 1;
/// The parent of the directory if there is no usable `XDG_RUNTIME_DIR`.
const TEMPORARY: &str = "/tmp";

/// The directory of this user's sockets on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeDir {
    /// The directory that all commands of this user share. It need not exist yet.
    Shared(PathBuf),
    /// There is none, because another user has created a file of that name. Each daemon creates a
    /// directory of its own; the note of the environment's lock has the path of the socket.
    Private,
}

impl RuntimeDir {
    /// Returns `$XDG_RUNTIME_DIR/envfs`, or `/tmp/envfs-UID` if that variable is unset, too long or
    /// names a directory of another user. Creates nothing.
    ///
    /// In a user namespace, UID is the user's number outside, so that both sides find the same
    /// daemons.
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
        let mut candidates = of_session.into_iter().chain([of_host]);
        candidates
            .find(|path| check(path).is_ok())
            .map_or(RuntimeDir::Private, RuntimeDir::Shared)
    }

    /// Uses the given directory, which is created if it does not exist.
    #[cfg(test)]
    pub fn at(path: &Path) -> Result<RuntimeDir, Failure> {
        create(path)?;
        Ok(RuntimeDir::Shared(path.to_path_buf()))
    }

    /// Creates the directory for the socket of a daemon.
    pub fn create(&self) -> Result<SocketDir, Failure> {
        if let RuntimeDir::Shared(path) = self
            && create(path).is_ok()
        {
            return Ok(SocketDir {
                path: path.clone(),
                is_private: false,
            });
        }
        let prefix = format!("envfs-{}-", process::outer_user_id());
        let created = tempfile::Builder::new()
            .prefix(&prefix)
            // A daemon has no umask.
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(TEMPORARY)
            .map_err(|error| {
                Failure::io(format!("cannot create a directory in {TEMPORARY}"), &error)
                    .hint("set XDG_RUNTIME_DIR to a directory of your own with mode 0700")
            })?;
        Ok(SocketDir {
            path: created.keep(),
            is_private: true,
        })
    }

    /// Returns the path of the socket of an environment's daemon in the shared directory.
    pub fn socket(&self, id: &str) -> Option<PathBuf> {
        match self {
            RuntimeDir::Shared(path) => Some(socket(path, id)),
            RuntimeDir::Private => None,
        }
    }

    /// Returns the directory of the notes of this user's sessions on this host.
    pub fn sessions(&self) -> Option<PathBuf> {
        match self {
            RuntimeDir::Shared(path) => Some(path.join("sessions")),
            RuntimeDir::Private => None,
        }
    }

    /// Returns the directory of the notes of shells in which an environment is active.
    pub fn shells(&self) -> Option<PathBuf> {
        match self {
            RuntimeDir::Shared(path) => Some(path.join("shells")),
            RuntimeDir::Private => None,
        }
    }

    /// Takes the lock under which commands start or stop the daemon of this environment, waiting
    /// for other commands. If there is no shared directory, locks the `home` of the environment.
    pub fn lock(&self, id: &str, home: &Path) -> Result<StartLock, Failure> {
        let (path, file) = match self {
            RuntimeDir::Shared(dir) => {
                create(dir)?;
                let path = dir.join(format!("{id}.lock"));
                let file = regular::open_or_create(&path);
                (path, file)
            }
            RuntimeDir::Private => (home.to_path_buf(), File::open(home)),
        };
        let doing = || format!("cannot lock {}", path.display());
        let file = file.map_err(|error| Failure::io(doing(), &error))?;
        match (start_lock::wait(&file, &path, start_lock::TIMEOUT), self) {
            (Ok(()), _) => {}
            // Some network file systems cannot lock directories. Of two daemons that start at once,
            // only one gets the environment's lock.
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
            RuntimeDir::Shared(path) => path.display().fmt(f),
            RuntimeDir::Private => write!(
                f,
                "a directory of its own for each daemon (another user has created {TEMPORARY}/envfs-{})",
                process::outer_user_id()
            ),
        }
    }
}

/// The directory of a daemon's socket. Removed when dropped if no other daemon uses it.
#[derive(Debug)]
pub struct SocketDir {
    path: PathBuf,
    is_private: bool,
}

impl SocketDir {
    /// Returns the path of the socket of an environment's daemon.
    pub fn socket(&self, id: &str) -> PathBuf {
        socket(&self.path, id)
    }

    /// Returns the path, and whether the directory is for one daemon alone. The caller removes it
    /// then.
    pub fn into_path(mut self) -> (PathBuf, bool) {
        let is_private = std::mem::take(&mut self.is_private);
        (std::mem::take(&mut self.path), is_private)
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.is_private
            && let Err(error) = fs::remove_dir(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the directory of the socket");
        }
    }
}

fn socket(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.sock"))
}

/// Creates a directory for sockets if it does not exist, and checks it.
fn create(path: &Path) -> Result<(), Failure> {
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

/// Checks that a directory is private to the caller, or does not exist.
///
/// A symbolic link, or a directory created by another user, would expose the sockets to that user.
fn check(path: &Path) -> Result<(), Failure> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let doing = format!("cannot stat {}", path.display());
            return Err(Failure::io(doing, &error));
        }
    };
    if meta.is_dir() && meta.uid() == process::user_id() && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Conflict,
        format!("{} is not a private directory of this user", path.display()),
    )
    .hint("set XDG_RUNTIME_DIR to a directory of your own with mode 0700"))
}

/// The lock held while a daemon is started or stopped.
#[derive(Debug)]
pub struct StartLock {
    _file: File,
}
