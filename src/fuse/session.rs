//! Mounts a file system and runs its event loops.
//!
//! Mounting is ours ([`crate::sys::mount`]); fuser gets a descriptor and speaks the protocol.
//! fuser 0.18 must not mount by itself (it may unmount somebody else's later mount), must not
//! check users (it refuses the kernel's own writeback), and never unmounts a descriptor that it
//! was given.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, INodeNo, SessionACL};
use thiserror::Error;

use super::guard::{Gate, Guard, Guarded};
use crate::object::Ino;
use crate::sys::mount::{self, MountError, MountRequest, UnmountMode};

/// Why a session could not begin.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Kernel and daemon could not agree.
    #[error("the FUSE handshake for {} failed: {source}", .path.display())]
    Handshake {
        /// The mount point, unmounted again.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The event loops could not be started.
    #[error("cannot start the event loops: {0}")]
    Threads(#[source] io::Error),
}

/// What a session waits for.
enum Event {
    /// The event loops have ended: the mount is gone everywhere, or they failed.
    Ended(io::Result<()>),
    /// Our mount is gone; copies in other mount namespaces may keep the loops running.
    Unmounted,
    /// It is to end now, whoever uses the mount.
    Abandon,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The mount is gone, and nobody used it any more.
    Gone,
    /// Somebody still has the mount, detached or in another mount namespace. No request is served any
    /// more; the kernel ends the connection when this process does.
    Abandoned,
}

/// How long the loops may take to end after the mount is gone here, before it is taken for certain that
/// another mount namespace has a copy.
const COPIES_PATIENCE: Duration = Duration::from_secs(1);
/// How long requests that are being served may take when a session is abandoned.
const LAST_REQUESTS_PATIENCE: Duration = Duration::from_secs(5);

/// A mounted file system whose event loops run in the background.
#[derive(Debug)]
pub struct Session {
    mount_point: PathBuf,
    invalidator: Invalidator,
    gate: Arc<Gate>,
    events: Receiver<Event>,
    ender: Ender,
    thread: JoinHandle<()>,
}

/// Ends a session that the kernel does not end by itself.
#[derive(Debug, Clone)]
pub struct Ender(Sender<Event>);

impl Ender {
    /// Says that the mount was taken away here and that nobody is known to use a copy: the session ends,
    /// soon, even if another mount namespace has one.
    pub fn unmounted(&self) {
        // Without a receiver the session has ended.
        drop(self.0.send(Event::Unmounted));
    }

    /// Ends the session now; whoever uses the mount gets `ENOTCONN` from then on.
    pub fn abandon(&self) {
        drop(self.0.send(Event::Abandon));
    }
}

impl Session {
    /// Mounts `filesystem` and starts its loops. When this returns, the kernel's handshake is
    /// done and the mount can be used. On failure nothing stays mounted.
    pub fn start<F: Guarded>(
        filesystem: F,
        request: &MountRequest,
    ) -> Result<Session, SessionError> {
        let device = mount::mount(request)?;
        let mount_point = request.mount_point.clone();
        let undo = |error| {
            // The first failure is the one to tell of; a mount that stays behind dead is
            // detached by the next command.
            if let Err(second) = mount::unmount(&mount_point, UnmountMode::Lazy) {
                tracing::warn!(%second, "could not undo a failed mount");
            }
            error
        };

        let mut config = Config::default();
        config.acl = SessionACL::All;
        // One thread receives requests, since those that may take long are answered by others;
        // `docs/benchmarks.md` has the figures.
        config.n_threads = Some(1);
        let gate = filesystem.gate();
        let guard = Guard::new(filesystem, gate.clone());
        let session =
            fuser::Session::from_fd(guard, device, SessionACL::All, config).map_err(|source| {
                undo(SessionError::Handshake {
                    path: mount_point.clone(),
                    source,
                })
            })?;

        let invalidator = Invalidator {
            notifier: session.notifier(),
        };
        let (sender, events) = channel();
        let ender = Ender(sender.clone());
        let thread = std::thread::Builder::new()
            .name(String::from("session"))
            .spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| session.run()))
                    .unwrap_or_else(|_| Err(io::Error::other("the session ended in a panic")));
                // Nobody listens any more: then nobody needs to know.
                if sender.send(Event::Ended(result)).is_err() {
                    tracing::debug!("the session ended unobserved");
                }
            })
            .map_err(|error| undo(SessionError::Threads(error)))?;
        Ok(Session {
            mount_point,
            invalidator,
            gate,
            events,
            ender,
            thread,
        })
    }

    /// Returns where it is mounted.
    pub fn mount_point(&self) -> &std::path::Path {
        &self.mount_point
    }

    /// Returns the handle by which the kernel is told what changed behind its back.
    pub fn invalidator(&self) -> Invalidator {
        self.invalidator.clone()
    }

    /// Asks for the end of the session: unmounts. It has ended only when [`Session::wait`]
    /// returns; after a lazy unmount that may take as long as somebody uses it.
    pub fn unmount(&self, mode: UnmountMode) -> Result<(), MountError> {
        mount::unmount(&self.mount_point, mode)
    }

    /// Returns what ends the session where unmounting does not.
    pub fn ender(&self) -> Ender {
        self.ender.clone()
    }

    /// Waits for the end. After [`End::Gone`] the file system's `destroy` has run and the file system has
    /// been dropped; after [`End::Abandoned`] requests are refused, and the process must end soon.
    pub fn wait(self) -> io::Result<End> {
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
                        return Err(io::Error::other("the session ended in a panic"));
                    }
                    return result.map(|()| End::Gone);
                }
                Ok(Event::Unmounted) => {
                    deadline = deadline.or_else(|| Some(Instant::now() + COPIES_PATIENCE));
                }
                Ok(Event::Abandon) => deadline = Some(Instant::now()),
                // The session holds a sender itself, so this is the deadline.
                Err(_) => break,
            }
        }
        if !self.gate.close(LAST_REQUESTS_PATIENCE) {
            tracing::warn!("a request is still being served");
        }
        Ok(End::Abandoned)
    }
}

/// Tells the kernel what changed without a request of its own.
///
/// Never to be used from inside a request's handler: the kernel may hold the very lock it needs.
#[derive(Debug, Clone)]
pub struct Invalidator {
    notifier: fuser::Notifier,
}

impl Invalidator {
    /// Makes the kernel forget one name (also that there is none).
    pub fn entry(&self, dir: Ino, name: &OsStr) -> io::Result<()> {
        self.notifier.inval_entry(INodeNo(dir.0), name)
    }

    /// Makes the kernel forget one object's attributes and content.
    pub fn object(&self, ino: Ino) -> io::Result<()> {
        self.notifier.inval_inode(INodeNo(ino.0), 0, 0)
    }

    /// Makes the kernel write back what it holds of a part of a file's content, and forget it; without
    /// an `end`, of all that follows.
    pub fn range(&self, ino: Ino, start: u64, end: Option<u64>) -> io::Result<()> {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        // A length of zero means all.
        let length = end.map_or(0, |end| signed(end.saturating_sub(start).max(1)));
        self.notifier
            .inval_inode(INodeNo(ino.0), signed(start), length)
    }

    /// Makes the kernel forget one object's attributes only.
    pub fn attributes(&self, ino: Ino) -> io::Result<()> {
        self.notifier.inval_inode(INodeNo(ino.0), -1, 0)
    }

    /// Makes the kernel forget a name and tells those who watch the directory that it was removed.
    pub fn removal(&self, dir: Ino, ino: Ino, name: &OsStr) -> io::Result<()> {
        self.notifier.delete(INodeNo(dir.0), INodeNo(ino.0), name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::CommandExt;
    use std::path::Path;
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
            fakeroot: false,
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
        let error = session.unmount(UnmountMode::Plain).unwrap_err();
        assert!(matches!(error, MountError::Busy { .. }), "{error}");
        drop(held);
        session.unmount(UnmountMode::Plain).unwrap();
        assert_eq!(session.wait().unwrap(), End::Gone);
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

    /// Runs one ignored test of this binary as an ordinary user, in a directory of his.
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
        // The build directory need not be open to others.
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

        // Where the user may not write, the helper refuses and its words are told.
        let error = Session::start(Hello, &request(Path::new("/usr"), "no"));
        match error.unwrap_err() {
            SessionError::Mount(MountError::Refused { message, .. }) => {
                assert!(message.contains("/usr"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_dead_mount_is_recognised_and_detached() {
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
