//! The handlers of kernel requests.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::sys::statvfs::Statvfs;

use super::attr::{NEGATIVE_ENTRY, file_attr, file_type, set_time};
use super::counters::Op;
use super::errno::errno;
use super::xattr::{answer_sized, without_trusted};
use super::{CACHE_TIMEOUT, EnvFs, GENERATION, HandleTarget};
use crate::object::{Ino, Kind};
use crate::union::{self, RenameMode, SetAttr, SetIdBits, SyncMode, XattrMode};

/// Maximum size of a write request in bytes.
const MAX_WRITE: u32 = 1 << 20;

/// Number of entries read for one reply to a directory listing; the reply has at most 32 KiB.
const LISTING_BATCH: usize = 512;

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
                tracing::info!(?missing, "the kernel does not support a FUSE feature");
            }
        }
        // On failure fuser returns the nearest supported value, which will do.
        config
            .set_max_write(MAX_WRITE)
            .unwrap_or_else(|nearest| nearest);
        config
            .set_max_background(64)
            .unwrap_or_else(|nearest| nearest);
        config
            .set_congestion_threshold(48)
            .unwrap_or_else(|nearest| nearest);
        // The kernel holds the root from the start.
        self.union.nodes().remember(Ino::ROOT, Ino::ROOT);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _timed = self.timed(Op::Lookup);
        let dir = Ino(parent.0);
        match name.as_bytes() {
            b"." => return self.lookup_handle(dir, HandleTarget::Object, reply),
            b".." => return self.lookup_handle(dir, HandleTarget::Parent, reply),
            _ => {}
        }
        match self.union.lookup(dir, name.as_bytes()) {
            Ok(Some((ino, attr))) => self.entry(dir, ino, &attr, reply),
            Ok(None) => reply.entry(&CACHE_TIMEOUT, &NEGATIVE_ENTRY, GENERATION),
            Err(e) => reply.error(errno("lookup", parent.0, &e)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        if let Some(released) = self.union.forget(Ino(ino.0), nlookup) {
            // Freeing the space of a removed file need not delay further requests.
            self.pool.close_later(released);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _timed = self.timed(Op::GetAttr);
        match self.union.attr(Ino(ino.0)) {
            Ok(attr) => reply.attr(&CACHE_TIMEOUT, &self.file_attr(Ino(ino.0), &attr)),
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
        let (uid, gid) = match self.owners.stored_for_chown(uid, gid) {
            Ok(owner) => owner,
            Err(e) => return reply.error(errno("setattr", ino.0, &e.into())),
        };
        // A chown that names neither owner nor group arrives as an empty request. The kernel sends
        // the same before a write that drops privileges. From the file's owner, both drop them.
        // From other users it cannot be a chown, which only the owner may do; root may be writing,
        // which keeps the set-id bits.
        let is_empty = mode.is_none()
            && uid.is_none()
            && gid.is_none()
            && size.is_none()
            && atime.is_none()
            && mtime.is_none();
        let uid = match is_empty && req.uid() != 0 {
            true => match self.union.attr(Ino(ino.0)) {
                Ok(attr) => {
                    let (visible, _) = self.owners.visible((attr.uid, attr.gid));
                    (visible == req.uid()).then_some(attr.uid)
                }
                Err(e) => return reply.error(errno("setattr", ino.0, &e)),
            },
            false => uid,
        };
        let loses_set_id = (uid.is_some() || gid.is_some() || size.is_some())
            && set_id_bits(req) == SetIdBits::Clear;
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
            set_id: set_id_bits(req),
        };
        let timed = self.timed_elsewhere(Op::SetAttr);
        let changed = size.filter(|size| *size > 0).map(|_| Ino(ino.0));
        let (union, owners) = (self.union.clone(), self.owners.clone());
        let syncs = self.syncs_each_change;
        self.run(changed, move || {
            let done = union.set_attr(Ino(ino.0), &set).and_then(|attr| {
                if syncs {
                    union.sync(Ino(ino.0), SyncMode::Full)?;
                }
                Ok(attr)
            });
            match done {
                Ok(attr) => reply.attr(&CACHE_TIMEOUT, &file_attr(&owners, Ino(ino.0), &attr)),
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
            Some(kind) => {
                self.create_object(req, parent, name, kind, mode, u64::from(rdev), None, reply)
            }
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
        self.create_object(req, parent, name, Kind::Directory, mode, 0, None, reply);
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
        self.create_object(
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

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.before_change(req, parent, name);
        let _timed = self.timed(Op::Remove);
        let done = self.union.unlink(Ino(parent.0), name.as_bytes());
        self.pool.finish_removals_later(&self.union);
        self.answer("unlink", Ino(parent.0), done, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.before_change(req, parent, name);
        let _timed = self.timed(Op::Remove);
        let done = self.union.rmdir(Ino(parent.0), name.as_bytes());
        self.answer("rmdir", Ino(parent.0), done, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.before_change(req, parent, name);
        self.before_change(req, newparent, newname);
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
        self.pool.finish_removals_later(&self.union);
        if let Some(watch) = &self.before_change {
            watch.renamed();
        }
        match self.synced(done, &[from, to]) {
            Ok(()) if moved.is_empty() => reply.ok(),
            Ok(()) => {
                // The listings of moved directories, which the kernel caches, contain `..`.
                let notices = self.notices.clone();
                self.notices.run(move || {
                    moved
                        .iter()
                        .for_each(|dir| notices.invalidate_range(*dir, 0, None));
                    reply.ok();
                });
            }
            Err(e) => reply.error(errno("rename", parent.0, &e)),
        }
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.before_change(req, newparent, newname);
        let _timed = self.timed(Op::Link);
        let dir = Ino(newparent.0);
        let done = self.union.link(Ino(ino.0), dir, newname.as_bytes());
        match self.synced(done, &[dir]) {
            Ok(attr) => self.entry(dir, Ino(ino.0), &attr, reply),
            Err(e) => reply.error(errno("link", ino.0, &e)),
        }
    }

    /// Checks access as for root: the kernel sends this request only in a mount with `fakeroot`.
    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        match self.union.attr(Ino(ino.0)) {
            // Not even root may execute a file without any execute permission.
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
        // From now on the kernel creates files with MKNOD and opens them without a request.
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
        let mode = match datasync {
            true => SyncMode::DataOnly,
            false => SyncMode::Full,
        };
        self.serve_fsync(Ino(ino.0), mode, reply);
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
                // The entries before it have been counted, so they are returned; the next request
                // starts here.
                Err(_) if n > 0 => break,
                Err(e) => return reply.error(errno("readdirplus", ino.0, &e)),
            };
            let is_dot = matches!(&*item.name, b"." | b"..");
            // Counted before the reply, so that a FORGET cannot overtake the count.
            if !is_dot {
                self.union.nodes().remember(item.ino, dir);
            }
            let name = OsStr::from_bytes(&item.name);
            let number = INodeNo(item.ino.0);
            if reply.add(
                number,
                item.next,
                name,
                &CACHE_TIMEOUT,
                &self.file_attr(item.ino, &attr),
                self.generation(item.ino, &attr),
            ) {
                if !is_dot {
                    // The object still has a name, so dropping the released is not slow.
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
        let left = self.union.space_left();
        match self.union.statvfs() {
            Ok(s) => reply.statfs(
                limited(s.blocks(), left.map(|left| left.0), &s),
                limited(s.blocks_free(), left.map(|left| left.1), &s),
                limited(s.blocks_available(), left.map(|left| left.1), &s),
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
        self.answer("setxattr", Ino(ino.0), done, reply);
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
            // Whether the caller has CAP_SYS_ADMIN is not known, only the user.
            Ok(names) if req.uid() == 0 => answer_sized(&names, size, reply),
            Ok(names) => answer_sized(&without_trusted(&names), size, reply),
            Err(e) => reply.error(errno("listxattr", ino.0, &e)),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = self.timed(Op::Xattr);
        let done = self.union.remove_xattr(Ino(ino.0), name.as_bytes());
        self.answer("removexattr", Ino(ino.0), done, reply);
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
        let set_id = set_id_bits(req);
        if set_id == SetIdBits::Clear
            && let Err(e) = self.drop_set_id(req, Ino(ino.0))
        {
            return reply.error(errno("fallocate", ino.0, &e));
        }
        self.serve_fallocate(Ino(ino.0), offset, length, mode, set_id, reply);
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
        // As a file system without ioctls; isatty() and chattr use them.
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
        let set_id = set_id_bits(req);
        if set_id == SetIdBits::Clear
            && let Err(e) = self.drop_set_id(req, to.0)
        {
            return reply.error(errno("copy_file_range", ino_out.0, &e));
        }
        self.serve_copy(from, to, len, set_id, reply);
    }
}

/// Returns a number of blocks of a file system, of which no more than this many bytes may be used.
fn limited(blocks: u64, bytes: Option<u64>, of: &Statvfs) -> u64 {
    let in_blocks = |bytes: u64| bytes / of.fragment_size().max(1);
    bytes.map_or(blocks, |bytes| blocks.min(in_blocks(bytes)))
}

/// Returns what a change of content by this caller does to set-id bits. Write requests carry a flag
/// for it; for other requests only the user is known, and root has `CAP_FSETID`.
fn set_id_bits(req: &Request) -> SetIdBits {
    SetIdBits::clear_if(req.uid() != 0)
}

impl EnvFs {
    /// Replies to a change of one object that has no result, and syncs it if the mount is
    /// synchronous.
    fn answer(&self, op: &'static str, ino: Ino, done: union::Result<()>, reply: ReplyEmpty) {
        match self.synced(done, &[ino]) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(op, ino.0, &e)),
        }
    }
}
