//! Mounts a file system and serves its requests.
//!
//! [`crate::sys::mount`] mounts; fuser receives a descriptor and implements the protocol.
//! fuser 0.18 must not mount by itself (it may unmount a later mount of another process), must not
//! check users (it refuses the kernel's own writeback), and does not unmount a descriptor that was
//! passed to it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, INodeNo, SessionACL};
use thiserror::Error;

use super::guard::{Gate, Guard, Guarded};
use crate::object::Ino;
use crate::sys::mount::{self, MountError, MountRequest, UnmountMode};

/// Why a session could not start.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    /// The file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel and the daemon could not agree on a protocol.
    #[error("the FUSE handshake for {} failed: {error}", .path.display())]
    Handshake {
        /// The mount point, unmounted again.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for the mount: {0}")]
    Threads(io::Error),
}

/// What ends a session.
enum Event {
    /// The event loop has ended: nothing refers to the mount any more, or the loop failed.
    Ended(io::Result<()>),
    /// Our mount was unmounted; a copy in another mount namespace may keep the loop running.
    Unmounted,
    /// The session is to end now, even if the mount is in use.
    Abandon,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The file system was unmounted and is not in use any more.
    Unmounted,
    /// The mount is still in use, detached or in another mount namespace. Requests are refused; the
    /// kernel closes the connection when this process ends.
    Abandoned,
}

/// How long the loop may take to end after our mount was unmounted; after that, another mount
/// namespace must have a copy.
const COPIES_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the requests in progress may take when a session is abandoned.
const LAST_REQUESTS_TIMEOUT: Duration = Duration::from_secs(5);

/// A mounted file system whose event loop runs on a thread of its own.
#[derive(Debug)]
pub(crate) struct Session {
    mount_point: PathBuf,
    invalidator: Invalidator,
    gate: Arc<Gate>,
    events: Receiver<Event>,
    stop_handle: StopHandle,
    thread: JoinHandle<()>,
}

/// A handle that ends a session that the kernel does not end by itself.
#[derive(Debug, Clone)]
pub(crate) struct StopHandle(Sender<Event>);

impl StopHandle {
    /// Reports that our mount was unmounted and that no process is known to use a copy: the session
    /// ends soon, even if another mount namespace has a copy.
    pub(crate) fn unmounted(&self) {
        // Without a receiver the session has ended already.
        drop(self.0.send(Event::Unmounted));
    }

    /// Ends the session now; processes that use the mount get `ENOTCONN` from then on.
    pub(crate) fn abandon(&self) {
        drop(self.0.send(Event::Abandon));
    }
}

impl Session {
    /// Mounts `filesystem` and starts serving it. When this returns, the handshake with the kernel
    /// is done and the mount can be used. On failure nothing stays mounted.
    pub(crate) fn start<F: Guarded>(
        filesystem: F,
        request: &MountRequest,
    ) -> Result<Session, SessionError> {
        let device = mount::mount(request)?;
        Session::serve(filesystem, device, &request.mount_point).inspect_err(|_| {
            // The first error is the one to report; the next command detaches a dead mount that
            // stays behind.
            if let Err(error) = mount::unmount(&request.mount_point, UnmountMode::Lazy) {
                tracing::warn!(%error, "cannot unmount after a failed mount");
            }
        })
    }

    /// Starts serving a mount that exists, and does the handshake with the kernel.
    pub(crate) fn serve<F: Guarded>(
        filesystem: F,
        device: OwnedFd,
        mount_point: &Path,
    ) -> Result<Session, SessionError> {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        // One thread receives requests, since those that may take long are answered by others;
        // `docs/benchmarks.md` has the figures.
        config.n_threads = Some(1);
        let gate = filesystem.gate();
        let guard = Guard::new(filesystem, &device);
        let session =
            fuser::Session::from_fd(guard, device, SessionACL::All, config).map_err(|error| {
                SessionError::Handshake {
                    path: mount_point.to_path_buf(),
                    error,
                }
            })?;

        let invalidator = Invalidator {
            notifier: session.notifier(),
        };
        let (sender, events) = channel();
        let stop_handle = StopHandle(sender.clone());
        let thread = std::thread::Builder::new()
            .name(String::from("session"))
            .spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| session.run()))
                    .unwrap_or_else(|_| Err(io::Error::other("the event loop panicked")));
                // Without a receiver the session was abandoned.
                if sender.send(Event::Ended(result)).is_err() {
                    tracing::debug!("the session ended after it was abandoned");
                }
            })
            .map_err(SessionError::Threads)?;
        Ok(Session {
            mount_point: mount_point.to_path_buf(),
            invalidator,
            gate,
            events,
            stop_handle,
            thread,
        })
    }

    /// Returns the mount point.
    pub(crate) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Returns the handle that invalidates what the kernel has cached.
    pub(crate) fn invalidator(&self) -> Invalidator {
        self.invalidator.clone()
    }

    /// Returns a handle that ends the session when unmounting does not.
    pub(crate) fn stop_handle(&self) -> StopHandle {
        self.stop_handle.clone()
    }

    /// Waits until the session has ended. After [`End::Unmounted`] the file system's `destroy` has
    /// run and it has been dropped; after [`End::Abandoned`] requests are refused, and the process
    /// must end soon.
    pub(crate) fn wait(self) -> io::Result<End> {
        let mut deadline = None;
        loop {
            let event = match deadline {
                None => self
                    .events
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self
                    .events
                    .recv_timeout(Instant::saturating_duration_since(&at, Instant::now())),
            };
            match event {
                Ok(Event::Ended(result)) => {
                    if self.thread.join().is_err() {
                        return Err(io::Error::other("the event loop panicked"));
                    }
                    return result.map(|()| End::Unmounted);
                }
                Ok(Event::Unmounted) => {
                    deadline = deadline.or_else(|| Some(Instant::now() + COPIES_TIMEOUT));
                }
                Ok(Event::Abandon) => deadline = Some(Instant::now()),
                // The session holds a sender itself, so this is a timeout.
                Err(_) => break,
            }
        }
        if !self.gate.close(LAST_REQUESTS_TIMEOUT) {
            tracing::warn!("a request is still in progress");
        }
        Ok(End::Abandoned)
    }
}

/// Invalidates what the kernel has cached, after a change that no request of the kernel made.
///
/// Request handlers must not use it: the kernel may hold the lock that an invalidation takes.
#[derive(Debug, Clone)]
pub(crate) struct Invalidator {
    notifier: fuser::Notifier,
}

impl Invalidator {
    /// Invalidates one name, or a negative entry.
    pub(crate) fn entry(&self, dir: Ino, name: &OsStr) -> io::Result<()> {
        self.notifier.inval_entry(INodeNo(dir.0), name)
    }

    /// Invalidates the attributes and content of one object.
    pub(crate) fn object(&self, ino: Ino) -> io::Result<()> {
        self.notifier.inval_inode(INodeNo(ino.0), 0, 0)
    }

    /// Writes back and invalidates the kernel's pages of a range of a file; without an `end`, up to
    /// the end of the file.
    pub(crate) fn range(&self, ino: Ino, start: u64, end: Option<u64>) -> io::Result<()> {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        // A length of zero means up to the end of the file.
        let length = end.map_or(0, |end| signed(end.saturating_sub(start).max(1)));
        self.notifier
            .inval_inode(INodeNo(ino.0), signed(start), length)
    }

    /// Invalidates only the attributes of one object.
    pub(crate) fn attributes(&self, ino: Ino) -> io::Result<()> {
        self.notifier.inval_inode(INodeNo(ino.0), -1, 0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::CommandExt;
    use std::time::SystemTime;

    use fuser::{
        Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, LockOwner, OpenFlags,
        ReplyAttr, ReplyData, ReplyEntry, ReplyStatfs, Request,
    };

    use super::*;
    use crate::sys::{mountinfo, process};

    /// A root directory with one file, `hello`.
    #[derive(Debug, Default)]
    pub(crate) struct Hello;

    const TTL: Duration = Duration::from_secs(1000);
    const TEXT: &[u8] = b"hello\n";

    fn attr(ino: u64) -> FileAttr {
        let is_dir = ino == 1;
        FileAttr {
            ino: INodeNo(ino),
            size: if is_dir { 0 } else { TEXT.len() as u64 },
            blocks: 1,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_dir {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if is_dir { 0o755 } else { 0o644 },
            nlink: 1,
            uid: process::user_id(),
            gid: process::group_id(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    impl Guarded for Hello {}

    impl Filesystem for Hello {
        fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
            if parent.0 == 1 && name == "hello" {
                reply.entry(&TTL, &attr(2), Generation(0));
            } else {
                reply.error(Errno::ENOENT);
            }
        }

        fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
            reply.attr(&TTL, &attr(ino.0));
        }

        fn read(
            &self,
            _: &Request,
            _: INodeNo,
            _: FileHandle,
            offset: u64,
            _: u32,
            _: OpenFlags,
            _: Option<LockOwner>,
            reply: ReplyData,
        ) {
            reply.data(TEXT.get(offset as usize..).unwrap_or_default());
        }

        fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
            reply.statfs(0, 0, 0, 1, 0, 4096, 255, 4096);
        }
    }

    fn request(dir: &Path, id: &str) -> MountRequest {
        MountRequest {
            mount_point: dir.to_path_buf(),
            id: id.to_owned(),
            allow_other: false,
            rights: mount::Rights::Own,
            options: Default::default(),
        }
    }

    fn serve_and_use(dir: &Path, id: &str) {
        let session = Session::start(Hello, &request(dir, id)).unwrap();
        assert_eq!(std::fs::read(dir.join("hello")).unwrap(), TEXT);
        let ours = mountinfo::of_environment(id).unwrap();
        assert_eq!(ours.len(), 1);
        assert_eq!(ours[0].fs_type, "fuse.envfs");
        assert!(!ours[0].is_dead());
        session
            .invalidator()
            .entry(Ino::ROOT, OsStr::new("hello"))
            .unwrap();
        session.invalidator().object(Ino(2)).unwrap();

        let held = std::fs::File::open(dir.join("hello")).unwrap();
        let error = mount::unmount(session.mount_point(), UnmountMode::Plain).unwrap_err();
        assert!(matches!(error, MountError::Busy { .. }), "{error}");
        drop(held);
        mount::unmount(session.mount_point(), UnmountMode::Plain).unwrap();
        assert_eq!(session.wait().unwrap(), End::Unmounted);
        assert!(mountinfo::of_environment(id).unwrap().is_empty());
    }

    fn skip(why: &str) {
        eprintln!("skipped: {why}");
    }

    #[test]
    fn mount_by_root_serves_and_ends() {
        if process::user_id() != 0 || mount::device_is_usable().is_err() {
            return skip("needs root and /dev/fuse");
        }
        let dir = tempfile::tempdir().unwrap();
        serve_and_use(dir.path(), &format!("root-{}", std::process::id()));
    }

    /// Runs one ignored test of this binary as an ordinary user, in a directory of that user.
    fn as_user(test: &str) {
        let user = ["tester", "nobody"]
            .iter()
            .find_map(|name| nix::unistd::User::from_name(name).ok().flatten());
        let (Some(user), 0, true) = (
            user,
            process::user_id(),
            mount::helper().is_ok_and(|path| mount::helper_is_setuid(&path)),
        ) else {
            return skip("needs root, an ordinary user and a setuid fusermount3");
        };
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .unwrap();
        // Other users may have no access to the build directory.
        let place = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(place.path(), open).unwrap();
        let program = place.path().join("tests");
        std::fs::copy(process::own_program(), &program).unwrap();
        let output = std::process::Command::new(&program)
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("ENVFS_TEST_DIR", dir.path())
            .current_dir("/")
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{output:?}"
        );
    }

    #[test]
    fn mount_by_an_ordinary_user_serves_and_ends() {
        as_user("fuse::session::tests::as_ordinary_user");
    }

    #[test]
    #[ignore = "run by mount_by_an_ordinary_user_serves_and_ends"]
    fn as_ordinary_user() {
        let dir = std::path::PathBuf::from(std::env::var_os("ENVFS_TEST_DIR").unwrap());
        serve_and_use(&dir, &format!("user-{}", std::process::id()));

        // Where the user may not write, the helper refuses, and the error has its message.
        let error = Session::start(Hello, &request(Path::new("/usr"), "no"));
        match error.unwrap_err() {
            SessionError::Mount(MountError::Refused { message, .. }) => {
                assert!(message.contains("/usr"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_dead_mount_is_recognized_and_detached() {
        if process::user_id() != 0 || mount::device_is_usable().is_err() {
            return skip("needs root and /dev/fuse");
        }
        let dir = tempfile::tempdir().unwrap();
        let id = format!("dead-{}", std::process::id());
        let device = mount::mount(&request(dir.path(), &id)).unwrap();
        drop(device);
        let ours = mountinfo::of_environment(&id).unwrap();
        assert!(ours[0].is_dead());
        mount::unmount(dir.path(), UnmountMode::Lazy).unwrap();
        assert!(mountinfo::of_environment(&id).unwrap().is_empty());
    }
}
