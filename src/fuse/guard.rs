//! Wraps the file system: a panic fails one request instead of the mount, and a gate that can be
//! closed refuses further requests.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::polling::Polling;
use crate::environment::Hold;
use crate::fault;

/// Runs `work` and catches a panic. The request fails with `EIO`, since fuser sends that for a
/// reply that is dropped. The panic hook has logged the location; this adds what failed.
pub(super) fn contain(what: &str, work: impl FnOnce()) {
    // Poisoned locks are taken nevertheless; see `Union` for the data that they guard.
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("internal error: one {what} failed; the mount continues");
    }
}

/// A part of a request, for another thread.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Counts the requests in progress, and refuses further ones once it is closed, and changes once
/// another host may have taken over the environment.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_closed: AtomicBool,
    inside: AtomicUsize,
    /// The lock of the environment.
    hold: OnceLock<Hold>,
    has_refused: AtomicBool,
}

/// The requests that change something.
const CHANGES: [&str; 14] = [
    "setattr",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "write",
    "setxattr",
    "removexattr",
    "create",
    "fallocate",
    "copy_file_range",
];

impl Gate {
    /// Admits a request, or returns `None` once the gate is closed.
    fn enter(self: &Arc<Gate>) -> Option<Pass> {
        let pass = self.hand_over();
        (!self.is_closed.load(Ordering::SeqCst)).then_some(pass)
    }

    /// From now on refuses changes unless this process certainly has the lock.
    pub(crate) fn refuse_changes_without(&self, hold: Hold) {
        drop(self.hold.set(hold));
    }

    /// Returns whether a request must not be handled because it is a change, and another host may
    /// have taken over the environment.
    fn refuses(&self, what: &str) -> bool {
        let hold = self.hold.get();
        let is_refused = hold.is_some_and(|hold| CHANGES.contains(&what) && !hold.is_certain());
        if is_refused && !self.has_refused.swap(true, Ordering::SeqCst) {
            tracing::error!(
                "the lock of the environment was not renewed in time, so another host may use it: \
                 changes fail with EIO"
            );
        }
        is_refused
    }

    /// Counts a part of an admitted request that another thread will handle.
    pub(super) fn hand_over(self: &Arc<Gate>) -> Pass {
        self.inside.fetch_add(1, Ordering::SeqCst);
        Pass(self.clone())
    }

    /// Sends a part of an admitted request to another thread, or runs it on this one if there is no
    /// other any more.
    pub(super) fn send(self: &Arc<Gate>, jobs: &Sender<Job>, job: impl FnOnce() + Send + 'static) {
        let pass = self.hand_over();
        let job = move || {
            let _pass = pass;
            job();
        };
        if let Err(unsent) = jobs.send(Box::new(job)) {
            unsent.into_inner()();
        }
    }

    /// Returns whether requests are in progress.
    fn is_busy(&self) -> bool {
        self.inside.load(Ordering::SeqCst) > 0
    }

    /// Refuses requests from now on and waits for those in progress. Returns false if that takes
    /// longer than `timeout`.
    pub(crate) fn close(&self, timeout: Duration) -> bool {
        self.is_closed.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + timeout;
        while self.inside.load(Ordering::SeqCst) > 0 {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// Held while a request is in progress.
#[derive(Debug)]
pub(super) struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A file system with a gate for its requests, so that its own threads can be waited for too.
pub(crate) trait Guarded: Filesystem {
    /// Returns the gate.
    fn gate(&self) -> Arc<Gate> {
        Arc::default()
    }

    /// Returns the means to poll for requests, if this pays.
    fn polling(&self) -> Option<Polling> {
        None
    }
}

/// A file system behind its gate.
#[derive(Debug)]
pub(super) struct Guard<F> {
    inner: F,
    gate: Arc<Gate>,
    /// With the device to poll.
    polling: Option<(Polling, OwnedFd)>,
}

impl<F: Guarded> Guard<F> {
    /// Puts a file system that is served through `device` behind its gate.
    pub(super) fn new(inner: F, device: &OwnedFd) -> Guard<F> {
        let polling = inner.polling().and_then(|polling| {
            let device = device.try_clone();
            let warn = |e| tracing::warn!("cannot poll for requests: {e}");
            Some((polling, device.map_err(warn).ok()?))
        });
        Guard {
            gate: inner.gate(),
            inner,
            polling,
        }
    }

    /// Handles one request, then polls for the next. The caller receives `EIO` if the handler does
    /// not reply.
    fn serve(&self, request: &Request, what: &str, handler: impl FnOnce(&F)) {
        let Some((polling, device)) = &self.polling else {
            return self.handle(what, handler);
        };
        // Several objects that are forgotten at once are several calls for one request.
        let is_first = polling.arrived(request.unique().0, request.pid());
        self.handle(what, handler);
        if is_first && !self.gate.is_busy() {
            contain("poll", || polling.wait(device));
        }
    }

    fn handle(&self, what: &str, handler: impl FnOnce(&F)) {
        let Some(_pass) = self.gate.enter() else {
            return;
        };
        if self.gate.refuses(what) {
            return;
        }
        contain(what, || {
            match what {
                "getxattr" => fault::panic_once("panic.request"),
                "forget" => fault::panic_once("panic.forget"),
                "statfs" => fault::hang("hang.statfs"),
                _ => {}
            }
            handler(&self.inner);
        });
    }
}

/// Forwards requests through [`Guard::serve`] to the method of the same name.
macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
        fn $name(&self, request: &Request, $($argument: $kind),*) {
            self.serve(request, stringify!($name), |inner| inner.$name(request, $($argument),*));
        }
    )*};
}

/// Forwards every method that does not itself call others of the trait: a method missing here would
/// be answered by its default instead of the file system.
impl<F: Guarded> Filesystem for Guard<F> {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.inner.init(request, config)
    }

    fn destroy(&mut self) {
        self.inner.destroy();
    }

    forward! {
        lookup(parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        forget(ino: INodeNo, nlookup: u64);
        getattr(ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr);
        setattr(
            ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
            atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, ctime: Option<SystemTime>,
            fh: Option<FileHandle>, crtime: Option<SystemTime>, chgtime: Option<SystemTime>,
            bkuptime: Option<SystemTime>, flags: Option<BsdFileFlags>, reply: ReplyAttr
        );
        readlink(ino: INodeNo, reply: ReplyData);
        mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry);
        mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
        unlink(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        rmdir(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        symlink(parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
        rename(
            parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr, flags: RenameFlags,
            reply: ReplyEmpty
        );
        link(ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry);
        open(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        read(
            ino: INodeNo, fh: FileHandle, offset: u64, size: u32, flags: OpenFlags,
            lock_owner: Option<LockOwner>, reply: ReplyData
        );
        write(
            ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8], write_flags: WriteFlags,
            flags: OpenFlags, lock_owner: Option<LockOwner>, reply: ReplyWrite
        );
        flush(ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty);
        release(
            ino: INodeNo, fh: FileHandle, flags: OpenFlags, lock_owner: Option<LockOwner>,
            flush: bool, reply: ReplyEmpty
        );
        fsync(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        opendir(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        readdir(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory);
        readdirplus(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
        releasedir(ino: INodeNo, fh: FileHandle, flags: OpenFlags, reply: ReplyEmpty);
        fsyncdir(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        statfs(ino: INodeNo, reply: ReplyStatfs);
        setxattr(
            ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty
        );
        getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
        listxattr(ino: INodeNo, size: u32, reply: ReplyXattr);
        removexattr(ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
        access(ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty);
        create(
            parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate
        );
        getlk(
            ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, start: u64, end: u64, typ: i32,
            pid: u32, reply: ReplyLock
        );
        setlk(
            ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, start: u64, end: u64, typ: i32,
            pid: u32, sleep: bool, reply: ReplyEmpty
        );
        bmap(ino: INodeNo, blocksize: u32, idx: u64, reply: ReplyBmap);
        ioctl(
            ino: INodeNo, fh: FileHandle, flags: IoctlFlags, cmd: u32, in_data: &[u8],
            out_size: u32, reply: ReplyIoctl
        );
        poll(
            ino: INodeNo, fh: FileHandle, notifier: PollNotifier, events: PollEvents,
            flags: PollFlags, reply: ReplyPoll
        );
        fallocate(
            ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty
        );
        lseek(ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek);
        copy_file_range(
            ino_in: INodeNo, fh_in: FileHandle, offset_in: u64, ino_out: INodeNo,
            fh_out: FileHandle, offset_out: u64, len: u64, flags: CopyFileRangeFlags,
            reply: ReplyWrite
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_closed_gate_refuses_requests_and_waits_for_those_in_progress() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter().unwrap();
        let part = pass.0.hand_over();
        assert!(!gate.close(Duration::from_millis(5)));
        assert!(gate.enter().is_none());
        drop(pass);
        assert!(!gate.close(Duration::from_millis(5)));
        drop(part);
        assert!(gate.close(Duration::ZERO));
    }
}
