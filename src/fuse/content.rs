//! Requests for file content. Those that may be slow are answered by other threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::{Errno, OpenFlags, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite, WriteFlags};

use super::EnvFs;
use super::counters::{Counters, Op, Timed};
use super::errno::errno;
use crate::object::Ino;
use crate::sys::durable;
use crate::union::{self, AllocateMode, SeekTarget, SetIdBits, Soon, SyncMode, Union};

impl EnvFs {
    /// Answers `READ`.
    pub(super) fn serve_read(&self, ino: Ino, offset: u64, size: u32, reply: ReplyData) {
        let timed = self.timed_elsewhere(Op::Read);
        let size = size as usize;
        let reader = match self.union.reader(ino) {
            Ok(reader) => reader,
            Err(e) => return reply.error(errno("read", ino.0, &e)),
        };
        let is_ready = reader.is_ready(offset, size);
        let soon = match self.pool.has_several() {
            true => reader.soon_after(offset, size),
            false => Vec::new(),
        };
        let counters = self.counters.clone();
        let answer = move || {
            match reader.read(offset, size) {
                Ok(bytes) => {
                    let bytes = (*bytes).as_ref();
                    counters
                        .read_bytes
                        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    reply.data(bytes);
                }
                Err(e) => reply.error(errno("read", ino.0, &e)),
            }
            timed.end();
        };
        // Blocks ahead of the reader are decompressed while it gets this one.
        if is_ready {
            self.run_ahead(soon);
            answer();
        } else {
            self.pool.run(answer);
            self.run_ahead(soon);
        }
    }

    fn run_ahead(&self, soon: Vec<Soon>) {
        for block in soon {
            self.pool.run_later(|| block.decompress());
        }
    }

    /// Answers `WRITE`.
    pub(super) fn serve_write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        reply: ReplyWrite,
    ) {
        let timed = self.timed_elsewhere(Op::Write);
        let set_id = SetIdBits::clear_if(write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID));
        let is_cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        // The parts of one large direct write may arrive in any order.
        let is_append =
            flags.0 & nix::libc::O_APPEND != 0 && flags.0 & nix::libc::O_DIRECT == 0 && !is_cached;
        let (union, counters) = (self.union.clone(), self.counters.clone());
        let notices = self.notices.clone();
        let write = move |data: &[u8]| {
            let mut at = offset;
            let mut done = match is_append {
                true => union.append(ino, offset, data, set_id).map(|(end, done)| {
                    at = end;
                    done
                }),
                false => union.write_at(ino, offset, data, set_id),
            };
            // The kernel ignores the count when it writes back pages, so a short write must be
            // completed or fail.
            while is_cached
                && let Ok(written) = done
                && let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty())
            {
                let more = union.write_at(ino, offset + written as u64, rest, set_id);
                done = more.map(|more| written + more);
            }
            match done {
                Ok(written) => {
                    counters
                        .written_bytes
                        .fetch_add(written as u64, Ordering::Relaxed);
                    reply.written(written as u32);
                }
                Err(e) => reply.error(errno("write", ino.0, &e)),
            }
            timed.end();
            if at != offset {
                // The kernel has cached the data at the offset that it took for the end.
                let sender = notices.clone();
                notices.run(move || sender.invalidate_range(ino, 0, None));
            }
        };
        if self.union.needs_large_copy_up(ino) {
            let data = data.to_vec();
            self.pool.run(move || write(&data));
        } else {
            write(data);
            if durable::completes_writeback_chunk(offset, data.len()) {
                self.start_writeback(ino);
            }
        }
    }

    /// Starts writing a file's dirty pages to the disk. Occupies at most one thread of the pool:
    /// what is skipped meanwhile is included in the next call.
    fn start_writeback(&self, ino: Ino) {
        if self.is_writeback_running.swap(true, Ordering::Relaxed) {
            return;
        }
        let (union, is_busy) = (self.union.clone(), self.is_writeback_running.clone());
        self.pool.run(move || {
            let _reset = WritebackFlag(is_busy);
            union.start_writeback(ino);
        });
    }

    /// Answers `FALLOCATE`.
    pub(super) fn serve_fallocate(
        &self,
        ino: Ino,
        offset: u64,
        length: u64,
        mode: i32,
        set_id: SetIdBits,
        reply: ReplyEmpty,
    ) {
        const KEEP: i32 = nix::libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = nix::libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = nix::libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        let mode = match mode {
            0 => AllocateMode::Reserve { keep_size: false },
            KEEP => AllocateMode::Reserve { keep_size: true },
            PUNCH => AllocateMode::PunchHole,
            ZERO => AllocateMode::ZeroRange { keep_size: false },
            ZERO_KEEP => AllocateMode::ZeroRange { keep_size: true },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let union = self.union.clone();
        let timed = self.timed_elsewhere(Op::Space);
        let allocate = move || {
            match union.allocate(ino, offset, length, mode, set_id) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno("fallocate", ino.0, &e)),
            }
            timed.end();
        };
        self.run(Some(ino), allocate);
    }

    /// Answers `LSEEK`.
    pub(super) fn serve_lseek(&self, ino: Ino, offset: i64, whence: i32, reply: ReplyLseek) {
        let timed = self.timed_elsewhere(Op::Space);
        let target = match whence {
            nix::libc::SEEK_DATA => SeekTarget::Data,
            nix::libc::SEEK_HOLE => SeekTarget::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let answer = move |found: union::Result<u64>| {
            match found {
                Ok(at) => reply.offset(at as i64),
                Err(e) => reply.error(errno("lseek", ino.0, &e)),
            }
            timed.end();
        };
        let found = self.union.seek(ino, offset, target);
        if hole_at(&self.union, ino, offset, target, &found).is_none() {
            return answer(found);
        }
        // What looks like a hole here may have been written through a mapping: the kernel writes
        // back its pages, then the search is repeated.
        let (union, notices) = (self.union.clone(), self.notices.clone());
        self.notices.run(move || {
            let mut found = found;
            while let Some(start) = hole_at(&union, ino, offset, target, &found) {
                notices.invalidate_range(ino, start, union.seek(ino, start, SeekTarget::Data).ok());
                let before = found.ok();
                found = union.seek(ino, offset, target);
                if target == SeekTarget::Data || found.as_ref().ok() == before.as_ref() {
                    break;
                }
            }
            answer(found);
        });
    }

    /// Answers `COPY_FILE_RANGE`.
    pub(super) fn serve_copy(
        &self,
        from: (Ino, u64),
        to: (Ino, u64),
        len: u64,
        set_id: SetIdBits,
        reply: ReplyWrite,
    ) {
        // The reply has a 32-bit count; the caller copies the rest with further calls.
        let len = len.min(1 << 30);
        let union = self.union.clone();
        // Always handed over: however short the range, reading it may be slow.
        let timed = self.timed_elsewhere(Op::Space);
        self.pool.run(move || {
            match union.copy_range(from.0, from.1, to.0, to.1, len, set_id) {
                Ok(copied) => reply.written(copied as u32),
                Err(e) => reply.error(errno("copy_file_range", from.0.0, &e)),
            }
            timed.end();
        });
    }

    /// Answers `FSYNC`.
    pub(super) fn serve_fsync(&self, ino: Ino, mode: SyncMode, reply: ReplyEmpty) {
        let timed = self.timed_elsewhere(Op::Sync);
        let steps = match self.union.sync_steps(ino, mode) {
            Ok(steps) if !steps.is_empty() => steps,
            Ok(_) => return reply.ok(),
            Err(e) => return reply.error(errno("fsync", ino.0, &e)),
        };
        let together = Arc::new(Together {
            left: AtomicUsize::new(steps.len()),
            reply: Mutex::new(Some((reply, timed))),
        });
        for step in steps {
            let (union, together) = (self.union.clone(), together.clone());
            self.pool.run(move || {
                let done = union.run_sync(step);
                together.end(done.map_err(|e| errno("fsync", ino.0, &e)));
            });
        }
    }
}

/// A request in several parts, which is answered after the last of them, or the first that fails.
/// If a part panics, the reply is dropped, which answers `EIO`.
struct Together {
    left: AtomicUsize,
    reply: Mutex<Option<(ReplyEmpty, Timed<Arc<Counters>>)>>,
}

impl Together {
    fn end(&self, part: Result<(), Errno>) {
        let was_last = self.left.fetch_sub(1, Ordering::AcqRel) == 1;
        if !was_last && part.is_ok() {
            return;
        }
        let mut kept = self.reply.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((reply, _timed)) = kept.take() else {
            return;
        };
        match part {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}

/// Clears the flag when dropped, also by a panic.
struct WritebackFlag(Arc<AtomicBool>);

impl Drop for WritebackFlag {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Returns the start of the hole on which the result of an `lseek` depends: the hole that was
/// searched, or the one before the data that was searched.
fn hole_at(
    union: &Union,
    ino: Ino,
    offset: u64,
    target: SeekTarget,
    found: &union::Result<u64>,
) -> Option<u64> {
    match (target, found) {
        (SeekTarget::Hole, Ok(at)) => {
            Some(*at).filter(|at| union.attr(ino).is_ok_and(|attr| *at < attr.size))
        }
        (SeekTarget::Hole, Err(_)) => None,
        (SeekTarget::Data, Ok(at)) => Some(offset).filter(|offset| offset < at),
        // There is no data after `offset`.
        (SeekTarget::Data, Err(union::Error::Posix(nix::errno::Errno::ENXIO))) => {
            Some(offset).filter(|offset| union.attr(ino).is_ok_and(|attr| *offset < attr.size))
        }
        (SeekTarget::Data, Err(_)) => None,
    }
}
