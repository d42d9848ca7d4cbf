//! Content of regular files: reading, writing, and bringing it up when it is first changed.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};

use super::attributes::CAPABILITY;
use super::namespace::S_ISGID;
use super::{Bytes, Error, Presence, Result, SeekTarget, SetAttr, Union, Xattr};
use crate::object::{Ino, Kind, Timestamp};
use crate::state::{DataPlace, InodeRow, RowChange};
use crate::sys::durable;

/// How much content is in memory at once while it is copied up.
const COPY_CHUNK: usize = 1 << 20;

/// From this size on, in bytes, bringing a file up takes so long that nobody else should wait.
const MUCH: u64 = 1 << 20;

const S_ISUID: u16 = 0o4000;

/// What a change of content does to the set-id bits of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetIdBits {
    /// They stay: the caller has `CAP_FSETID`.
    #[default]
    Keep,
    /// They are cleared.
    Clear,
}

impl SetIdBits {
    /// Returns [`SetIdBits::Clear`] if they are to be cleared.
    pub fn clear_if(is_cleared: bool) -> SetIdBits {
        match is_cleared {
            true => SetIdBits::Clear,
            false => SetIdBits::Keep,
        }
    }
}

/// What `fallocate` is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocateMode {
    /// Reserve space, and grow the file over it unless `keep_size`.
    Reserve {
        /// Leave the size as it is.
        keep_size: bool,
    },
    /// Make a hole.
    PunchHole,
    /// Turn a range into zeroes.
    ZeroRange {
        /// Leave the size as it is.
        keep_size: bool,
    },
}

/// Where the content of an object is now.
enum Content {
    File(Arc<File>),
    Lower(Arc<super::LowerStack>),
}

/// The content of a file as it was found: for one read, since it may move.
#[derive(Debug)]
pub enum Reader {
    /// A file of the writable upper layer.
    Upper(Arc<File>),
    /// An object of a read-only layer; and the stack, which keeps what the layer has on the disk
    /// there.
    Lower(Ino, super::ContentLayer, Arc<super::LowerStack>),
}

impl Reader {
    /// Returns true if a read is answered from memory, or as fast as from a plain file: if it need
    /// not wait for a block to be expanded.
    pub fn is_ready(&self, offset: u64, len: usize) -> bool {
        match self {
            Reader::Upper(_) => true,
            Reader::Lower(ino, layer, _) => layer.is_ready(*ino, offset, len),
        }
    }

    /// Reads up to `len` bytes at `offset`; fewer only before the end of the file.
    pub fn read(&self, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        match self {
            Reader::Upper(file) => {
                let mut buffer = vec![0; len];
                let got = read_full(file, &mut buffer, offset)?;
                buffer.truncate(got);
                Ok(Box::new(buffer))
            }
            Reader::Lower(ino, layer, _) => {
                let first = layer.read(*ino, offset, len)?;
                let got = (*first).as_ref().len();
                if got == 0 || got >= len {
                    return Ok(first);
                }
                // The answer ends with a block, not with the file: put the rest behind it.
                let mut whole = Vec::with_capacity(len);
                whole.extend_from_slice((*first).as_ref());
                while whole.len() < len {
                    let more = layer.read(*ino, offset + whole.len() as u64, len - whole.len())?;
                    if (*more).as_ref().is_empty() {
                        break;
                    }
                    whole.extend_from_slice((*more).as_ref());
                }
                Ok(Box::new(whole))
            }
        }
    }
}

impl Union {
    fn content(&self, ino: Ino) -> Result<Content> {
        let state = self.read();
        let (row, lower) = match state.presence(ino)? {
            Presence::Orphan(orphan) => match &orphan.file {
                Some(file) => return Ok(Content::File(file.clone())),
                None => (Some(&orphan.row), orphan.lower.clone()),
            },
            Presence::Row(row) => {
                if row.data == DataPlace::Upper && row.kind == Kind::File {
                    return Ok(Content::File(state.file(ino, row)?));
                }
                (Some(row), state.lower.clone())
            }
            Presence::Lower => (None, state.lower.clone()),
        };
        match row.map(|row| row.kind) {
            Some(Kind::File) | None => Ok(Content::Lower(lower)),
            Some(Kind::Directory) => Err(Errno::EISDIR.into()),
            Some(_) => Err(Errno::EINVAL.into()),
        }
    }

    /// Finds where the content of a file is now, for one read of it.
    pub fn reader(&self, ino: Ino) -> Result<Reader> {
        Ok(match self.content(ino)? {
            Content::File(file) => Reader::Upper(file),
            Content::Lower(lower) => Reader::Lower(ino, lower.content(ino)?, lower),
        })
    }

    /// Reads up to `len` bytes at `offset`; fewer only before the end of the file.
    pub fn read_at(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        self.reader(ino)?.read(offset, len)
    }

    /// Returns true if the next change of a file's content copies much of it up first, so that who
    /// serves others should have it done elsewhere.
    pub fn needs_large_copy_up(&self, ino: Ino) -> bool {
        let is_below = {
            let state = self.read();
            match state.presence(ino) {
                Ok(Presence::Row(row)) => row.kind == Kind::File && row.data == DataPlace::Lower,
                Ok(Presence::Orphan(orphan)) => orphan.file.is_none(),
                Ok(Presence::Lower) => true,
                // The change itself reports it.
                Err(_) => false,
            }
        };
        is_below
            && self
                .attr(ino)
                .is_ok_and(|attr| attr.kind == Kind::File && attr.size > MUCH)
    }

    /// Writes `data` at `offset`; returns the number of bytes written, fewer than all if no more
    /// fit.
    pub fn write_at(&self, ino: Ino, offset: u64, data: &[u8], set_id: SetIdBits) -> Result<usize> {
        let _gate = self.gate_shared();
        let file = self.writable(ino, None)?;
        self.kill_privileges(ino, set_id)?;
        write_what_fits(&file, data, offset)
    }

    /// The same at the end of the file, which who writes takes to be `end`. Returns where it is as
    /// well: after changes were thrown away it may be elsewhere.
    pub fn append(
        &self,
        ino: Ino,
        end: u64,
        data: &[u8],
        set_id: SetIdBits,
    ) -> Result<(u64, usize)> {
        let _gate = self.gate_shared();
        let file = self.writable(ino, None)?;
        self.kill_privileges(ino, set_id)?;
        let end = match self.was_discarded.load(Ordering::Relaxed) {
            true => file.metadata()?.len(),
            false => end,
        };
        Ok((end, write_what_fits(&file, data, end)?))
    }

    /// Begins to write a file's content to the disk.
    pub fn start_writeback(&self, ino: Ino) {
        if let Ok(Content::File(file)) = self.content(ino) {
            durable::start_writeback(&file);
        }
    }

    /// Sets the size of a file; `set_id` as for [`write_at`](Self::write_at).
    pub(super) fn truncate(&self, ino: Ino, size: u64, set_id: SetIdBits) -> Result<()> {
        let file = self.writable(ino, Some(size))?;
        self.kill_privileges(ino, set_id)?;
        Ok(file.set_len(size)?)
    }

    /// Reserves, punches or zeroes a range; `set_id` as for [`write_at`](Self::write_at).
    pub fn allocate(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: AllocateMode,
        set_id: SetIdBits,
    ) -> Result<()> {
        let _gate = self.gate_shared();
        let file = self.writable(ino, None)?;
        let flags = match mode {
            AllocateMode::Reserve { keep_size: false } => FallocateFlags::empty(),
            AllocateMode::Reserve { keep_size: true } => FallocateFlags::FALLOC_FL_KEEP_SIZE,
            AllocateMode::PunchHole => {
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
            }
            AllocateMode::ZeroRange { keep_size: false } => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            AllocateMode::ZeroRange { keep_size: true } => {
                FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE
            }
        };
        let (offset, len) = (to_i64(offset)?, to_i64(len)?);
        self.kill_privileges(ino, set_id)?;
        Ok(nix::fcntl::fallocate(&*file, flags, offset, len)?)
    }

    /// Returns the start of the next data or hole at or after `offset`. `ENXIO` past the end.
    pub fn seek(&self, ino: Ino, offset: u64, target: SeekTarget) -> Result<u64> {
        let found = match self.content(ino)? {
            Content::File(file) => seek_file(&file, offset, target)?,
            Content::Lower(lower) => lower.seek(ino, offset, target)?,
        };
        found.ok_or(Error::Posix(Errno::ENXIO))
    }

    /// Copies a range between files; returns the bytes copied, fewer than `len` at the end of the
    /// source or where no more fits. `set_id` as for [`write_at`](Self::write_at).
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        set_id: SetIdBits,
    ) -> Result<u64> {
        let _gate = self.gate_shared();
        // The end of the source as it is now: within one file, copying may move it.
        let size = self.attr(from)?.size;
        let len = len.min(size.saturating_sub(from_offset));
        if len == 0 {
            return Ok(0);
        }
        let target = self.writable(to, None)?;
        let source = self.content(from)?;
        self.kill_privileges(to, set_id)?;
        let copy = |done: u64| -> Result<u64> {
            let want = usize::try_from(len - done).unwrap_or(usize::MAX);
            let (read_at, write_at) = (from_offset + done, to_offset + done);
            match &source {
                Content::File(source) => Ok(nix::fcntl::copy_file_range(
                    &**source,
                    Some(&mut to_i64(read_at)?),
                    &*target,
                    Some(&mut to_i64(write_at)?),
                    want,
                )? as u64),
                Content::Lower(lower) => {
                    let bytes = lower.read(from, read_at, want.min(COPY_CHUNK))?;
                    Ok(write_what_fits(&target, (*bytes).as_ref(), write_at)? as u64)
                }
            }
        };
        let mut done = 0;
        while done < len {
            match copy(done) {
                Ok(0) => break,
                Ok(more) => done += more,
                // Who asked comes back for the rest, and is told then.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Returns the content of an object for writing, copied up if it is not in the upper yet.
    /// With `keep`, only that many leading bytes will be needed.
    fn writable(&self, ino: Ino, keep: Option<u64>) -> Result<Arc<File>> {
        if self.syncs_singly {
            self.read().upper.unsynced().note_file(ino);
        }
        if let Content::File(file) = self.content(ino)? {
            return Ok(file);
        }
        let _copying = self.copy_up_lock(ino);
        // Somebody else may have brought it up while we waited.
        let lower = match self.content(ino)? {
            Content::File(file) => return Ok(file),
            Content::Lower(lower) => lower,
        };
        let attr = self.attr(ino)?;
        if attr.kind != Kind::File {
            return Err(Errno::EINVAL.into());
        }
        let (upper, nameless) = {
            let state = self.read();
            (
                state.upper.clone(),
                matches!(state.presence(ino)?, Presence::Orphan(_)),
            )
        };
        if nameless {
            let file = upper.anonymous(ino)?;
            copy_content(&lower, ino, &file, keep.unwrap_or(attr.size).min(attr.size))?;
            // Coming up is no change by itself.
            nix::sys::stat::futimens(&*file, &time_spec(attr.atime), &time_spec(attr.mtime))?;
            if let Some(orphan) = self.write().orphans.get_mut(&ino) {
                orphan.file = Some(file.clone());
                orphan.row.data = DataPlace::Upper;
            }
            return Ok(file);
        }
        self.preload_object(ino)?;
        let below = self.xattrs_below(ino)?;
        let file = upper.stage(ino)?;
        let published = copy_content(&lower, ino, &file, keep.unwrap_or(attr.size).min(attr.size))
            .and_then(|()| {
                Ok(nix::sys::stat::futimens(
                    &*file,
                    &time_spec(attr.atime),
                    &time_spec(attr.mtime),
                )?)
            })
            // The row must never be durable before the content is.
            .and_then(|()| Ok(durable::sync_data(&*file)?))
            .and_then(|()| self.publish_copy_up(ino, &file, below));
        match published {
            Ok(true) => Ok(file),
            Ok(false) => {
                // Unlinked meanwhile: go the way of objects without a name.
                upper.unstage(ino)?;
                drop(_copying);
                self.writable(ino, keep)
            }
            Err(e) => {
                if let Err(left) = upper.unstage(ino) {
                    tracing::warn!(%ino, "a half-copied file is left in work: {left}");
                }
                Err(e)
            }
        }
    }

    /// Makes a copied-up file the object's content. Returns false if the object has no name any
    /// more.
    ///
    /// Content comes up to be changed, and a change of content takes a capability away: `below` are
    /// the attributes that the object has by the layers below.
    fn publish_copy_up(
        &self,
        ino: Ino,
        file: &Arc<File>,
        below: Option<Vec<Xattr>>,
    ) -> Result<bool> {
        let mut state = self.write();
        let state = &mut *state;
        if matches!(state.presence(ino)?, Presence::Orphan(_)) {
            return Ok(false);
        }
        let mut row = self.row_to_change(state, ino)?;
        let mut changes = Vec::new();
        state.drop_capability(ino, &mut row, below, &mut changes)?;
        row.data = DataPlace::Upper;
        row.backing_ino = state.upper.backing_ino_of(file)?;
        if let Err(e) = nix::sys::stat::fchmod(&**file, crate::upper::backing_mode(row.mode)) {
            tracing::debug!(%ino, "mode of a backing file: {e}");
        }
        if let Some((dir, name)) = row.place.clone() {
            let physical = state.create_dir(dir)?;
            state.upper.place(ino, physical.as_fd(), &name)?;
            state.note_unsynced(dir);
            changes.push(RowChange::put_inode(ino, row));
            if let Err(e) = self.change(state, &changes) {
                state.upper.remove(physical.as_fd(), &name)?;
                return Err(e);
            }
        } else {
            // No name is known (an object found by identity alone): the content stays in `work`.
            changes.push(RowChange::put_inode(ino, row));
            self.change(state, &changes)?;
        }
        state.upper.cache_file(ino, file.clone());
        Ok(true)
    }

    /// Takes away the set-id bits that a change of content or owner by a caller without
    /// `CAP_FSETID` takes: set-user-id, and set-group-id unless the group may not execute the file
    /// and the caller is in it, as `is_member` says. Returns true if there were any.
    pub fn drop_set_id(&self, ino: Ino, is_member: impl FnOnce(u32) -> bool) -> Result<bool> {
        let attr = {
            let state = self.read();
            match state.presence(ino)? {
                Presence::Row(row) => Some((row.kind, row.mode, row.gid)),
                Presence::Orphan(orphan) => {
                    Some((orphan.row.kind, orphan.row.mode, orphan.row.gid))
                }
                Presence::Lower => None,
            }
        };
        let (kind, mode, gid) = match attr {
            Some(attr) => attr,
            None => {
                let attr = self.attr(ino)?;
                (attr.kind, attr.mode, attr.gid)
            }
        };
        if kind == Kind::Directory || mode & (S_ISUID | S_ISGID) == 0 {
            return Ok(false);
        }
        let mut left = without_privileges(mode);
        if left & S_ISGID != 0 && !is_member(gid) {
            left &= !S_ISGID;
        }
        if left == mode {
            return Ok(false);
        }
        let set = SetAttr {
            mode: Some(left),
            ..SetAttr::default()
        };
        self.set_attr(ino, &set)?;
        Ok(true)
    }

    /// Takes away what a change of content takes away: a capability, and with `set_id` the set-id
    /// bits. To be called before the change, so that nobody's content has privileges of another's.
    /// The file is up by then, so a capability of the layers below is gone already.
    pub(super) fn kill_privileges(&self, ino: Ino, set_id: SetIdBits) -> Result<()> {
        let mode_after = |mode| match set_id {
            SetIdBits::Clear => without_privileges(mode),
            SetIdBits::Keep => mode,
        };
        {
            let state = self.read();
            let (row, xattrs) = match state.presence(ino)? {
                Presence::Row(row) => (row, state.delta.xattrs(ino)?),
                Presence::Orphan(orphan) => (&orphan.row, Some(&orphan.xattrs)),
                Presence::Lower => return Ok(()),
            };
            let has_capability = xattrs.is_some_and(|all| all.contains_key(CAPABILITY));
            if mode_after(row.mode) == row.mode && !has_capability {
                return Ok(());
            }
        }
        let mut state = self.write();
        let state = &mut *state;
        if let Some(orphan) = state.orphans.get_mut(&ino) {
            orphan.row.mode = mode_after(orphan.row.mode);
            orphan.xattrs.remove(CAPABILITY);
            return Ok(());
        }
        let mut row = state.row(ino, || None)?;
        let mut changes = Vec::new();
        state.drop_capability(ino, &mut row, None, &mut changes)?;
        row.mode = mode_after(row.mode);
        row.ctime = Timestamp::now();
        changes.push(RowChange::put_inode(ino, row));
        self.change(state, &changes)
    }
}

/// The mode after set-id bits are cleared as the kernel does: set-gid only where the group may
/// execute.
pub(super) fn without_privileges(mode: u16) -> u16 {
    let mut mode = mode & !S_ISUID;
    if mode & 0o010 != 0 {
        mode &= !S_ISGID;
    }
    mode
}

/// Copies the first `len` bytes of a lower file, leaving its holes as holes.
fn copy_content(lower: &super::LowerStack, ino: Ino, file: &File, len: u64) -> Result<()> {
    let mut at = 0;
    while at < len {
        let Some(data) = lower.seek(ino, at, SeekTarget::Data)? else {
            break;
        };
        if data >= len {
            break;
        }
        let end = lower
            .seek(ino, data, SeekTarget::Hole)?
            .unwrap_or(len)
            .min(len);
        at = data;
        while at < end {
            let want = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(COPY_CHUNK);
            let bytes = lower.read(ino, at, want)?;
            let bytes = (*bytes).as_ref();
            if bytes.is_empty() {
                return Err(Error::Inconsistent(format!(
                    "object {ino} ends at {at}, before its size {len}"
                )));
            }
            file.write_all_at(bytes, at)?;
            if durable::completes_writeback_chunk(at, bytes.len()) {
                durable::start_writeback(file);
            }
            at += bytes.len() as u64;
        }
    }
    Ok(file.set_len(len)?)
}

/// Finds data or a hole in a real file; `None` past the end.
pub(super) fn seek_file(file: &File, offset: u64, target: SeekTarget) -> Result<Option<u64>> {
    let whence = match target {
        SeekTarget::Data => Whence::SeekData,
        SeekTarget::Hole => Whence::SeekHole,
    };
    match lseek(file, to_i64(offset)?, whence) {
        Ok(at) => Ok(Some(at as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Writes as much as there is room for. An error only where that is nothing: what was written is
/// told.
fn write_what_fits(file: &File, data: &[u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = data.get(done..)
        && !rest.is_empty()
    {
        match file.write_at(rest, offset + done as u64) {
            Ok(n) if n > 0 => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) if done > 0 => break,
            Ok(_) => return Err(Errno::EIO.into()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..)
        && !rest.is_empty()
    {
        match file.read_at(rest, offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(got)
}

fn to_i64(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Errno::EFBIG.into())
}

pub(super) fn time_spec(time: Timestamp) -> TimeSpec {
    TimeSpec::new(time.secs, i64::from(time.nanos))
}

/// A row whose content is in the upper layer.
pub(super) fn has_file(row: &InodeRow) -> bool {
    row.data == DataPlace::Upper && row.kind == Kind::File
}
