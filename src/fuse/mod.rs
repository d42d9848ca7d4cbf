//! The kernel's side: a thin adapter from FUSE requests to [`Union`].
//!
//! Stateless: `OPEN`, `OPENDIR`, `FLUSH` and `CREATE` are answered `ENOSYS` once, after which the
//! kernel opens, closes and lists what it has cached without asking. Everything under the mount is
//! changed by the kernel's own requests, or by us followed by an exact invalidation, so whatever it
//! caches may be kept for ever. Permissions are the kernel's business (`default_permissions`), or
//! nobody's in a mount with `fakeroot`: the user of a request says nothing about a request, since
//! writes arrive late and under uid 0.

mod attr;
mod content;
mod counters;
mod errno;
mod guard;
mod notices;
mod owners;
mod pool;
pub mod session;

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::object::{Attr, Ino, Kind};
use crate::sys::process;
use crate::union::{self, Creator, Invalidation, RenameMode, SetAttr, Union, XattrMode};
use attr::{ABSENT, file_attr, file_type, set_time};
use counters::Timed;
pub use counters::{Counters, Latency, Op};
use errno::errno;
pub use guard::{Gate, Guarded};
pub use notices::Notices;
pub use owners::Owners;
use pool::Pool;
use session::{Invalidator, SessionError};

/// How long the kernel may keep what it was told: until told otherwise.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Most bytes of one write request.
const MAX_WRITE: u32 = 1 << 20;
/// Entries looked at for one answer to a directory listing; the answer is 32 KiB at most.
const LISTING_BATCH: usize = 512;
/// More threads than this seldom wait for different blocks.
const MAX_WORKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);
/// The generation of what is no directory: identities are never used twice.
const GENERATION: Generation = Generation(0);

/// A union, served to the kernel.
#[derive(Debug)]
pub struct EnvFs {
    union: Arc<Union>,
    owners: Arc<Owners>,
    counters: Arc<Counters>,
    gate: Arc<Gate>,
    pool: Pool,
    notices: Arc<Notices>,
    /// Whether some file is just begun to be written to the disk.
    is_writing_behind: Arc<AtomicBool>,
    /// Whether changes of names and attributes are made durable before they are answered.
    syncs_each_change: bool,
}

impl EnvFs {
    /// Serves a union, with threads for what takes long.
    pub fn new(union: Arc<Union>, owners: Owners) -> Result<EnvFs, SessionError> {
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
            is_writing_behind: Arc::default(),
            syncs_each_change: false,
        })
    }

    /// Makes each change of names and attributes durable before it is answered, as for a mount with `sync`;
    /// the kernel sees to what is written.
    pub fn sync_each_change(&mut self) {
        self.syncs_each_change = true;
    }

    /// Passes on what a change of these objects came to, durable where that is wanted.
    fn settled<T>(&self, done: union::Result<T>, changed: &[Ino]) -> union::Result<T> {
        let done = done?;
        if self.syncs_each_change {
            changed
                .iter()
                .try_for_each(|ino| self.union.sync(*ino, false))?;
        }
        Ok(done)
    }

    /// The way to the kernel, to be opened when it is mounted.
    pub fn notices(&self) -> Arc<Notices> {
        self.notices.clone()
    }

    /// The counts of requests, which go on counting.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Begins to measure a request that is answered before its handler returns.
    fn timed(&self, op: Op) -> Timed<&Counters> {
        Timed::begin(&self.counters, op)
    }

    /// Begins to measure a request that may be answered elsewhere.
    fn timed_there(&self, op: Op) -> Timed<Arc<Counters>> {
        Timed::begin(self.counters.clone(), op)
    }

    fn entry(&self, parent: Ino, ino: Ino, attr: &Attr, reply: ReplyEntry) {
        self.union.nodes().remember(ino, parent);
        reply.entry(&FOREVER, &self.shown(ino, attr), self.generation(ino, attr));
    }

    fn shown(&self, ino: Ino, attr: &Attr) -> FileAttr {
        file_attr(&self.owners, ino, attr)
    }

    fn generation(&self, ino: Ino, attr: &Attr) -> Generation {
        match attr.kind {
            Kind::Directory => Generation(self.union.nodes().generation(ino)),
            _ => GENERATION,
        }
    }

    /// The directory that has a name, if it is one.
    fn directory(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        let found = self.union.lookup(dir, name).ok().flatten();
        found
            .filter(|(_, attr)| attr.kind == Kind::Directory)
            .map(|(ino, _)| ino)
    }

    /// Takes away the set-id bits that a change of content or owner takes, by a caller without
    /// `CAP_FSETID`, before the change. The kernel expects the bits to go, and is told that they did: it
    /// decides by the mode that it knows what a program may do, and most answers carry none.
    fn drop_set_id(&self, req: &Request, ino: Ino) -> union::Result<()> {
        let is_member = |gid| {
            let (_, gid) = self.owners.shown((0, gid));
            // A process of another container has no number here, and is taken for no member.
            gid == req.gid() || process::is_in_group(req.pid(), gid)
        };
        if self.union.drop_set_id(ino, is_member)? {
            self.notices.attributes(ino);
        }
        Ok(())
    }

    /// Answers a lookup of `.`, or of `..`: the kernel has a file handle of an object that it has forgotten.
    fn find(&self, ino: Ino, wants_parent: bool, reply: ReplyEntry) {
        let (union, owners) = (self.union.clone(), self.owners.clone());
        // What is below may have to be searched for its name.
        self.pool.run(move || {
            let found = match wants_parent {
                false => union.find(ino),
                true => union.find_parent(ino),
            };
            match found {
                Ok((ino, parent, attr)) => {
                    union.nodes().remember(ino, parent);
                    let generation = match attr.kind {
                        Kind::Directory => Generation(union.nodes().generation(ino)),
                        _ => GENERATION,
                    };
                    reply.entry(&FOREVER, &file_attr(&owners, ino, &attr), generation);
                }
                Err(e) => reply.error(errno("lookup", ino.0, &e)),
            }
        });
    }

    /// Does it here and now, or has it done where nobody waits for it.
    fn run(&self, is_long: bool, job: impl FnOnce() + Send + 'static) {
        if is_long {
            self.pool.run(job);
        } else {
            job();
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the arguments of mknod(2)")]
    fn make(
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
        let _timed = self.timed(Op::Make);
        let dir = Ino(parent.0);
        let (uid, gid) = self.owners.kept((req.uid(), req.gid()));
        let creator = Creator { uid, gid };
        let made = self.union.make(
            dir,
            name.as_bytes(),
            kind,
            (mode & 0o7777) as u16,
            rdev,
            target,
            creator,
        );
        match self.settled(made, &[dir]) {
            Ok((ino, attr)) => self.entry(dir, ino, &attr, reply),
            Err(e) => reply.error(errno("make", parent.0, &e)),
        }
    }
}

/// Tells the kernel what to forget. Never called from a request handler: the kernel may hold locks
/// that it waits for the handler with.
pub fn invalidate(invalidator: &Invalidator, stale: &[Invalidation]) {
    for what in stale {
        let told = match what {
            Invalidation::Entry { dir, name } => invalidator.entry(*dir, OsStr::from_bytes(name)),
            Invalidation::Attributes(ino) => invalidator.attributes(*ino),
            Invalidation::Object(ino) => invalidator.object(*ino),
        };
        if let Err(e) = told
            && e.raw_os_error() != Some(nix::libc::ENOENT)
        {
            // ENOENT: the kernel does not hold it, so there is nothing to forget.
            tracing::warn!("invalidating {what:?}: {e}");
        }
    }
}

impl Guarded for EnvFs {
    fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }
}

impl Filesystem for EnvFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_EXPORT_SUPPORT,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::info!(?missing, "the kernel has no such FUSE feature");
            }
        }
        // The nearest possible value is as good.
        config
            .set_max_write(MAX_WRITE)
            .unwrap_or_else(|nearest| nearest);
        config
            .set_max_background(64)
            .unwrap_or_else(|nearest| nearest);
        config
            .set_congestion_threshold(48)
            .unwrap_or_else(|nearest| nearest);
        // The root is known to the kernel from the start.
        self.union.nodes().remember(Ino::ROOT, Ino::ROOT);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _timed = self.timed(Op::Lookup);
        let dir = Ino(parent.0);
        match name.as_bytes() {
            b"." => return self.find(dir, false, reply),
            b".." => return self.find(dir, true, reply),
            _ => {}
        }
        match self.union.lookup(dir, name.as_bytes()) {
            Ok(Some((ino, attr))) => self.entry(dir, ino, &attr, reply),
            Ok(None) => reply.entry(&FOREVER, &ABSENT, GENERATION),
            Err(e) => reply.error(errno("lookup", parent.0, &e)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        if let Some(left) = self.union.forget(Ino(ino.0), nlookup) {
            // Nobody waits for the space of a removed file, but others for this thread.
            self.pool.let_go(left);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _timed = self.timed(Op::GetAttr);
        match self.union.attr(Ino(ino.0)) {
            Ok(attr) => reply.attr(&FOREVER, &self.shown(Ino(ino.0), &attr)),
            Err(e) => reply.error(errno("getattr", ino.0, &e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (uid, gid) = match self.owners.chosen(uid, gid) {
            Ok(owner) => owner,
            Err(e) => return reply.error(errno("setattr", ino.0, &e.into())),
        };
        // Of a chown that names no owner nothing is left but the request. The same is sent before a write
        // that takes privileges away, by whoever may write. From the owner both mean that they go; from
        // others it is no chown, which is the owner's; and root may be writing, which keeps set-id bits.
        let is_nothing = mode.is_none()
            && uid.is_none()
            && gid.is_none()
            && size.is_none()
            && atime.is_none()
            && mtime.is_none();
        let uid = match is_nothing && req.uid() != 0 {
            true => match self.union.attr(Ino(ino.0)) {
                Ok(attr) => {
                    let (shown, _) = self.owners.shown((attr.uid, attr.gid));
                    (shown == req.uid()).then_some(attr.uid)
                }
                Err(e) => return reply.error(errno("setattr", ino.0, &e)),
            },
            false => uid,
        };
        let loses_set_id =
            (uid.is_some() || gid.is_some() || size.is_some()) && !keeps_privileges(req);
        if loses_set_id && let Err(e) = self.drop_set_id(req, Ino(ino.0)) {
            return reply.error(errno("setattr", ino.0, &e));
        }
        let set = SetAttr {
            mode: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill_privileges: size.is_some() && !keeps_privileges(req),
        };
        let timed = self.timed_there(Op::SetAttr);
        let is_long =
            size.is_some_and(|size| size > 0) && self.union.needs_large_copy_up(Ino(ino.0));
        let (union, owners) = (self.union.clone(), self.owners.clone());
        let syncs = self.syncs_each_change;
        self.run(is_long, move || {
            let done = union.set_attr(Ino(ino.0), &set).and_then(|attr| {
                if syncs {
                    union.sync(Ino(ino.0), false)?;
                }
                Ok(attr)
            });
            match done {
                Ok(attr) => reply.attr(&FOREVER, &file_attr(&owners, Ino(ino.0), &attr)),
                Err(e) => reply.error(errno("setattr", ino.0, &e)),
            }
            timed.end();
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _timed = self.timed(Op::ReadLink);
        match self.union.read_link(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno("readlink", ino.0, &e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match Kind::from_mode(mode) {
            None | Some(Kind::Directory | Kind::Symlink) => reply.error(Errno::EINVAL),
            Some(kind) => self.make(req, parent, name, kind, mode, u64::from(rdev), None, reply),
        }
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(req, parent, name, Kind::Directory, mode, 0, None, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        self.make(
            req,
            parent,
            name,
            Kind::Symlink,
            0o777,
            0,
            Some(target),
            reply,
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = self.timed(Op::Remove);
        let done = self.union.unlink(Ino(parent.0), name.as_bytes());
        match self.settled(done, &[Ino(parent.0)]) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno("unlink", parent.0, &e)),
        }
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = self.timed(Op::Remove);
        let done = self.union.rmdir(Ino(parent.0), name.as_bytes());
        match self.settled(done, &[Ino(parent.0)]) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno("rmdir", parent.0, &e)),
        }
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _timed = self.timed(Op::Rename);
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (from, to) = (Ino(parent.0), Ino(newparent.0));
        let (name, newname) = (name.as_bytes(), newname.as_bytes());
        let mut moved = Vec::new();
        if from != to {
            moved.extend(self.directory(from, name));
            if mode == RenameMode::Exchange {
                moved.extend(self.directory(to, newname));
            }
        }
        let done = self.union.rename(from, name, to, newname, mode);
        match self.settled(done, &[from, to]) {
            Ok(()) if moved.is_empty() => reply.ok(),
            Ok(()) => {
                // Their listings, which the kernel keeps, say who is above.
                let notices = self.notices.clone();
                self.notices.run(move || {
                    moved.iter().for_each(|dir| notices.settle(*dir, 0, None));
                    reply.ok();
                });
            }
            Err(e) => reply.error(errno("rename", parent.0, &e)),
        }
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let _timed = self.timed(Op::Link);
        let dir = Ino(newparent.0);
        let done = self.union.link(Ino(ino.0), dir, newname.as_bytes());
        match self.settled(done, &[dir]) {
            Ok(attr) => self.entry(dir, Ino(ino.0), &attr, reply),
            Err(e) => reply.error(errno("link", ino.0, &e)),
        }
    }

    /// Asked only where the kernel checks nothing: whoever comes in is the mount's own root.
    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        match self.union.attr(Ino(ino.0)) {
            // What nobody may execute root may not either.
            Ok(attr)
                if mask.contains(AccessFlags::X_OK)
                    && attr.kind == Kind::File
                    && attr.mode & 0o111 == 0 =>
            {
                reply.error(Errno::EACCES);
            }
            Ok(_) => reply.ok(),
            Err(e) => reply.error(errno("access", ino.0, &e)),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        // From now on the kernel makes files with MKNOD and opens them without asking.
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve_read(Ino(ino.0), offset, size, reply);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        if kill && let Err(e) = self.drop_set_id(req, Ino(ino.0)) {
            return reply.error(errno("write", ino.0, &e));
        }
        self.serve_write(Ino(ino.0), offset, data, write_flags, flags, reply);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve_fsync(Ino(ino.0), datasync, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _timed = self.timed(Op::List);
        match self.union.read_dir(Ino(ino.0), offset, LISTING_BATCH) {
            Ok(items) => {
                for item in items {
                    let name = OsStr::from_bytes(&item.name);
                    if reply.add(INodeNo(item.ino.0), item.next, file_type(item.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(errno("readdir", ino.0, &e)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _timed = self.timed(Op::List);
        let dir = Ino(ino.0);
        let items = match self.union.read_dir(dir, offset, LISTING_BATCH) {
            Ok(items) => items,
            Err(e) => return reply.error(errno("readdirplus", ino.0, &e)),
        };
        for (n, item) in items.into_iter().enumerate() {
            let attr = match self.union.attr(item.ino) {
                Ok(attr) => attr,
                // Removed since it was listed.
                Err(union::Error::Posix(nix::errno::Errno::ESTALE)) => continue,
                // Those before it have been counted: they are told, and the next request begins here.
                Err(_) if n > 0 => break,
                Err(e) => return reply.error(errno("readdirplus", ino.0, &e)),
            };
            let is_dot = matches!(&*item.name, b"." | b"..");
            // Counted before it is handed over, so that a FORGET cannot overtake the count.
            if !is_dot {
                self.union.nodes().remember(item.ino, dir);
            }
            let name = OsStr::from_bytes(&item.name);
            let number = INodeNo(item.ino.0);
            if reply.add(
                number,
                item.next,
                name,
                &FOREVER,
                &self.shown(item.ino, &attr),
                self.generation(item.ino, &attr),
            ) {
                if !is_dot {
                    // Listed a moment ago, so nothing that takes long is left of it.
                    drop(self.union.forget(item.ino, 1));
                }
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _timed = self.timed(Op::StatFs);
        match self.union.statvfs() {
            Ok(s) => reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                s.block_size() as u32,
                255,
                s.fragment_size() as u32,
            ),
            Err(e) => reply.error(errno("statfs", 1, &e)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _timed = self.timed(Op::Xattr);
        let mode = match flags {
            0 => XattrMode::Either,
            nix::libc::XATTR_CREATE => XattrMode::Create,
            nix::libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let done = self
            .union
            .set_xattr(Ino(ino.0), name.as_bytes(), value, mode);
        match self.settled(done, &[Ino(ino.0)]) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno("setxattr", ino.0, &e)),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _timed = self.timed(Op::Xattr);
        match self.union.xattr(Ino(ino.0), name.as_bytes()) {
            Ok(value) => answer_sized(&value, size, reply),
            Err(e) => reply.error(errno("getxattr", ino.0, &e)),
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _timed = self.timed(Op::Xattr);
        match self.union.xattr_names(Ino(ino.0)) {
            // Of CAP_SYS_ADMIN nothing is known but the user.
            Ok(names) if req.uid() == 0 => answer_sized(&names, size, reply),
            Ok(names) => answer_sized(&without_trusted(&names), size, reply),
            Err(e) => reply.error(errno("listxattr", ino.0, &e)),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = self.timed(Op::Xattr);
        let done = self.union.remove_xattr(Ino(ino.0), name.as_bytes());
        match self.settled(done, &[Ino(ino.0)]) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno("removexattr", ino.0, &e)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let kill = !keeps_privileges(req);
        if kill && let Err(e) = self.drop_set_id(req, Ino(ino.0)) {
            return reply.error(errno("fallocate", ino.0, &e));
        }
        self.serve_fallocate(Ino(ino.0), offset, length, mode, kill, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve_lseek(Ino(ino.0), offset, whence, reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // As a file system without commands of its own: isatty() and inode flags ask.
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((Ino(ino_in.0), offset_in), (Ino(ino_out.0), offset_out));
        let kill = !keeps_privileges(req);
        if kill && let Err(e) = self.drop_set_id(req, to.0) {
            return reply.error(errno("copy_file_range", ino_out.0, &e));
        }
        self.serve_copy(from, to, len, kill, reply);
    }
}

/// Whether a change of content by this caller leaves set-id bits where they are. Of a write the kernel says
/// so; of the others nothing is known but the user, and it is root who has `CAP_FSETID`.
fn keeps_privileges(req: &Request) -> bool {
    req.uid() == 0
}

/// The names of extended attributes, each ended by a NUL, that are shown to everybody.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let shown = names
        .split_inclusive(|&byte| byte == 0)
        .filter(|name| !name.starts_with(b"trusted."));
    shown.flatten().copied().collect()
}

/// Answers a request that asks for the size first.
fn answer_sized(bytes: &[u8], size: u32, reply: ReplyXattr) {
    if size == 0 {
        reply.size(bytes.len() as u32);
    } else if bytes.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(bytes);
    }
}
