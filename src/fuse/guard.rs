//! What stands between the kernel's requests and the file system: a panic is the end of one request, not of
//! the mount, and there is a moment after which no request is served any more.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fault;

/// Runs `work`; a panic in it goes no further. What it would have answered is answered `EIO`, since a reply
/// of fuser that is dropped says so. The panic hook has logged where it was; this adds what it ended.
pub(super) fn contain(what: &str, work: impl FnOnce()) {
    // Locks are taken whether or not they are poisoned; see `Union` for what they guard.
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("a fault of envfs ended one {what}; the mount goes on");
    }
}

/// Counts the requests that are being served, and refuses further ones once it is closed.
#[derive(Debug, Default)]
pub struct Gate {
    is_closed: AtomicBool,
    inside: AtomicUsize,
}

impl Gate {
    /// Lets a request in, or returns `None` once the gate is closed.
    fn enter(self: &Arc<Gate>) -> Option<Pass> {
        let pass = self.hand_over();
        (!self.is_closed.load(Ordering::SeqCst)).then_some(pass)
    }

    /// Counts a part of a request that is inside already, to be done by another thread.
    pub(super) fn hand_over(self: &Arc<Gate>) -> Pass {
        self.inside.fetch_add(1, Ordering::SeqCst);
        Pass(self.clone())
    }

    /// Refuses requests from now on, and waits until those inside have been served. Returns false where
    /// that takes longer than `patience`.
    pub fn close(&self, patience: Duration) -> bool {
        self.is_closed.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        while self.inside.load(Ordering::SeqCst) > 0 {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// Held while a request is being served.
#[derive(Debug)]
pub(super) struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A file system that tells which gate its requests pass, so that its own threads can be waited for too.
pub trait Guarded: Filesystem {
    /// Returns the gate.
    fn gate(&self) -> Arc<Gate> {
        Arc::default()
    }
}

/// A file system behind its gate.
#[derive(Debug)]
pub(super) struct Guard<F> {
    inner: F,
    gate: Arc<Gate>,
}

impl<F: Guarded> Guard<F> {
    pub(super) fn new(inner: F, gate: Arc<Gate>) -> Guard<F> {
        Guard { inner, gate }
    }

    /// Serves one request. Without an answer the caller gets `EIO`.
    fn serve(&self, what: &str, handler: impl FnOnce(&F)) {
        let Some(_pass) = self.gate.enter() else {
            return;
        };
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

/// Each request goes through [`Guard::serve`] to the method of the same name.
macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
        fn $name(&self, request: &Request, $($argument: $kind),*) {
            self.serve(stringify!($name), |inner| inner.$name(request, $($argument),*));
        }
    )*};
}

/// All of them, except what calls others of these: a method that were missing here would be answered by its default and not by the file
/// system.
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
    fn a_closed_gate_lets_nothing_in_and_waits_for_what_is_inside() {
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
