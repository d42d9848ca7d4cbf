//! A thin adapter from the kernel's FUSE requests to [`Union`].
//!
//! The mount is stateless: `OPEN`, `OPENDIR`, `FLUSH` and `CREATE` are answered `ENOSYS` once,
//! after which the kernel opens and closes files and lists cached directories without a request.
//! Everything under the mount is changed either by requests of the kernel, or by envfs followed by
//! an exact invalidation, so the kernel may cache indefinitely.
//!
//! The kernel checks permissions (`default_permissions`), except in a mount with `fakeroot`, where
//! nothing does. Handlers cannot check them: writes arrive late and under uid 0.

mod attr;
mod content;
mod counters;
mod errno;
mod guard;
mod notices;
mod owners;
mod polling;
mod pool;
mod requests;
pub(crate) mod session;
mod xattr;

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fuser::{FileAttr, Generation, INodeNo, ReplyEntry, Request};

use crate::environment::{Hold, Poll};
use crate::object::{Attr, Ino, Kind};
use crate::sys::process;
use crate::union::{self, Creator, FoundObject, Invalidation, NewObject, SyncMode, Union};
use attr::file_attr;
use counters::Timed;
pub(crate) use counters::{Counters, Latency, Op};
use errno::errno;
pub(crate) use guard::{Gate, Guarded};
pub(crate) use notices::Notices;
pub(crate) use owners::Owners;
pub(crate) use polling::Polling;
use pool::Pool;
use session::{Invalidator, SessionError};

/// How long the kernel may cache names and attributes: in effect until they are invalidated.
const CACHE_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);
/// Maximum number of worker threads: more seldom wait for different blocks.
const MAX_WORKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);
/// The generation of all objects but directories: an identity is never reused.
const GENERATION: Generation = Generation(0);

/// What a lookup by file handle returns.
#[derive(Debug, Clone, Copy)]
enum HandleTarget {
    /// The object of the handle.
    Object,
    /// The directory that contains it.
    Parent,
}

/// A FUSE file system that serves a union.
#[derive(Debug)]
pub(crate) struct EnvFs {
    union: Arc<Union>,
    owners: Arc<Owners>,
    counters: Arc<Counters>,
    gate: Arc<Gate>,
    pool: Pool,
    notices: Arc<Notices>,
    /// Whether a thread is starting the writeback of a file.
    is_writeback_running: Arc<AtomicBool>,
    /// Whether changes of names and attributes are made durable before the reply.
    syncs_each_change: bool,
    poll: Poll,
    /// What happens before names change.
    before_change: Option<Arc<dyn BeforeChange>>,
}

/// What happens before a request of the kernel changes a name.
pub(crate) trait BeforeChange: std::fmt::Debug + Send + Sync {
    /// Called by the thread that receives requests before it changes a name in a directory for a
    /// process or thread. Must not wait for other requests.
    fn before(&self, pid: u32, dir: Ino, name: &[u8]);

    /// Called after an object got another name.
    fn renamed(&self);
}

impl EnvFs {
    /// Creates the file system and starts its threads.
    pub(crate) fn new(union: Arc<Union>, owners: Owners) -> Result<EnvFs, SessionError> {
        let processors = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let gate = Arc::new(Gate::default());
        let pool = Pool::start(processors.min(MAX_WORKERS), gate.clone());
        let notices = Notices::start(gate.clone());
        Ok(EnvFs {
            union,
            owners: Arc::new(owners),
            counters: Arc::default(),
            pool: pool.map_err(SessionError::Threads)?,
            notices: Arc::new(notices.map_err(SessionError::Threads)?),
            gate,
            is_writeback_running: Arc::default(),
            syncs_each_change: false,
            poll: Poll::default(),
            before_change: None,
        })
    }

    /// Sets what happens before names change.
    pub(crate) fn set_before_change(&mut self, before: Arc<dyn BeforeChange>) {
        self.before_change = Some(before);
    }

    fn before_change(&self, req: &Request, dir: INodeNo, name: &OsStr) {
        if let Some(watch) = &self.before_change {
            watch.before(req.pid(), Ino(dir.0), name.as_bytes());
        }
    }

    /// Makes each change of names and attributes durable before the reply, as for a mount with
    /// `sync`; the kernel does so for content.
    pub(crate) fn sync_each_change(&mut self) {
        self.syncs_each_change = true;
    }

    /// Sets how the thread that receives requests waits for the next one.
    pub(crate) fn set_poll(&mut self, poll: Poll) {
        self.poll = poll;
    }

    /// Syncs the changed objects after a successful operation if the mount is synchronous.
    fn synced<T>(&self, done: union::Result<T>, changed: &[Ino]) -> union::Result<T> {
        let done = done?;
        if self.syncs_each_change {
            changed
                .iter()
                .try_for_each(|ino| self.union.sync(*ino, SyncMode::Full))?;
        }
        Ok(done)
    }

    /// Returns the sender of notifications, to be connected once the file system is mounted.
    pub(crate) fn notices(&self) -> Arc<Notices> {
        self.notices.clone()
    }

    /// Returns the live statistics of requests.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Starts measuring a request that is answered before its handler returns.
    fn timed(&self, op: Op) -> Timed<&Counters> {
        Timed::begin(&self.counters, op)
    }

    /// Starts measuring a request that another thread may answer.
    fn timed_elsewhere(&self, op: Op) -> Timed<Arc<Counters>> {
        Timed::begin(self.counters.clone(), op)
    }

    /// Replies with an entry, which the kernel counts as one lookup.
    fn entry(&self, parent: Ino, ino: Ino, attr: &Attr, reply: ReplyEntry) {
        self.union.nodes().remember(ino, parent);
        reply.entry(
            &CACHE_TIMEOUT,
            &self.file_attr(ino, attr),
            self.generation(ino, attr),
        );
    }

    fn file_attr(&self, ino: Ino, attr: &Attr) -> FileAttr {
        file_attr(&self.owners, ino, attr)
    }

    fn generation(&self, ino: Ino, attr: &Attr) -> Generation {
        match attr.kind {
            Kind::Directory => Generation(self.union.nodes().generation(ino)),
            _ => GENERATION,
        }
    }

    /// Returns the object with this name if it is a directory.
    fn directory(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        let found = self.union.lookup(dir, name).ok().flatten();
        found
            .filter(|(_, attr)| attr.kind == Kind::Directory)
            .map(|(ino, _)| ino)
    }

    /// Clears the set-id bits before a change of content or owner by a caller without `CAP_FSETID`.
    /// Also invalidates the attributes in the kernel: it executes files by the mode that it has
    /// cached, and most replies carry none.
    fn drop_set_id(&self, req: &Request, ino: Ino) -> union::Result<()> {
        let is_member = |gid| {
            let (_, gid) = self.owners.visible((0, gid));
            // A process in another PID namespace cannot be found, and does not count as a member.
            gid == req.gid() || process::is_in_group(req.pid(), gid)
        };
        if self.union.drop_set_id(ino, is_member)? {
            self.notices.invalidate_attributes(ino);
        }
        Ok(())
    }

    /// Answers a lookup of `.` or `..`, which the kernel sends for a file handle (see
    /// `open_by_handle_at(2)`) of an object that it has not cached.
    fn lookup_handle(&self, ino: Ino, target: HandleTarget, reply: ReplyEntry) {
        let (union, owners) = (self.union.clone(), self.owners.clone());
        // The image may have to be searched for the name of the object.
        self.pool.run(move || {
            let found = match target {
                HandleTarget::Object => union.find(ino),
                HandleTarget::Parent => union.find_parent(ino),
            };
            match found {
                Ok(FoundObject { ino, parent, attr }) => {
                    union.nodes().remember(ino, parent);
                    let generation = match attr.kind {
                        Kind::Directory => Generation(union.nodes().generation(ino)),
                        _ => GENERATION,
                    };
                    reply.entry(&CACHE_TIMEOUT, &file_attr(&owners, ino, &attr), generation);
                }
                Err(e) => reply.error(errno("lookup", ino.0, &e)),
            }
        });
    }

    /// Runs `job` at once, or in the pool if it copies up a large file. `changed` is the object
    /// whose content it changes, if any.
    fn run(&self, changed: Option<Ino>, job: impl FnOnce() + Send + 'static) {
        match changed {
            Some(ino) if self.union.needs_large_copy_up(ino) => self.pool.run(job),
            _ => job(),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the arguments of mknod(2)")]
    fn create_object(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        rdev: u64,
        target: Option<&[u8]>,
        reply: ReplyEntry,
    ) {
        self.before_change(req, parent, name);
        let _timed = self.timed(Op::Make);
        let dir = Ino(parent.0);
        let (uid, gid) = self.owners.stored((req.uid(), req.gid()));
        let creator = Creator { uid, gid };
        let new = NewObject {
            kind,
            mode: (mode & 0o7777) as u16,
            rdev,
            target,
            creator,
        };
        let created = self.union.create(dir, name.as_bytes(), &new);
        match self.synced(created, &[dir]) {
            Ok((ino, attr)) => self.entry(dir, ino, &attr, reply),
            Err(e) => reply.error(errno("create", parent.0, &e)),
        }
    }
}

/// Invalidates stale entries in the kernel. Must not be called from a request handler: the kernel
/// may hold a lock that the invalidation takes while it waits for the handler.
pub(crate) fn invalidate(invalidator: &Invalidator, stale: &[Invalidation]) {
    for what in stale {
        let done = match what {
            Invalidation::Entry { dir, name } => invalidator.entry(*dir, OsStr::from_bytes(name)),
            Invalidation::Attributes(ino) => invalidator.attributes(*ino),
            Invalidation::Object(ino) => invalidator.object(*ino),
        };
        if let Err(e) = done
            && e.raw_os_error() != Some(nix::libc::ENOENT)
        {
            // ENOENT: the kernel has not cached it.
            tracing::warn!("cannot invalidate {what:?} in the kernel: {e}");
        }
    }
}

impl EnvFs {
    /// From now on refuses changes unless this process certainly has the lock of the environment.
    pub(crate) fn refuse_changes_without(&self, hold: Hold) {
        self.gate.refuse_changes_without(hold);
    }
}

impl Guarded for EnvFs {
    fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    fn polling(&self) -> Option<Polling> {
        Polling::new(self.poll, self.counters.clone())
    }
}
