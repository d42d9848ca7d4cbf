//! Content of regular files: reading, writing, and copy-up before the first change.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;

use super::frozen::seek_file;
use super::privileges::SetIdBits;
use super::{Bytes, Error, Presence, Result, SeekTarget, Union, Xattr, time_spec};
use crate::object::{Ino, Kind};
use crate::squashfs::reader::BlockUse;
use crate::state::{DataPlace, RowChange};
use crate::sys::durable;

/// The size of the parts, in bytes, in which content is copied up.
const COPY_CHUNK: usize = 1 << 20;

/// The size in bytes above which a copy-up is slow, so that other requests should not wait for it.
const LARGE: u64 = 1 << 20;

/// The modes of `fallocate(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocateMode {
    /// Reserves space. The file grows if the range is beyond its end, unless `keep_size`.
    Reserve {
        /// Do not change the size.
        keep_size: bool,
    },
    /// Makes a hole.
    PunchHole,
    /// Replaces a range by zeros.
    ZeroRange {
        /// Do not change the size.
        keep_size: bool,
    },
}

/// The current location of a file's content.
enum Content {
    File(Arc<File>),
    Lower(Arc<super::LowerStack>),
}

/// The content of a file, for one read. A later read must get a new reader, because a change may
/// copy the file up.
#[derive(Debug)]
pub(crate) enum Reader {
    /// A file of the writable layer.
    Upper(Arc<File>),
    /// An object of a read-only layer. The stack is held so that the files of the layer are not
    /// removed.
    Lower {
        ino: Ino,
        layer: super::ContentLayer,
        #[expect(dead_code, reason = "keeps the files of the layer on disk")]
        stack: Arc<super::LowerStack>,
    },
}

/// A block that a reader will need soon.
#[derive(Debug)]
pub(crate) struct Soon {
    /// Keeps the image open.
    layer: Arc<super::ImageLayer>,
    block: BlockUse,
}

impl Soon {
    /// Decompresses the block, so that it is ready when it is needed.
    pub(crate) fn decompress(self) {
        self.layer.image().decompress(self.block);
    }
}

impl Reader {
    /// Returns false if a read has to decompress a block.
    pub(crate) fn is_ready(&self, offset: u64, len: usize) -> bool {
        match self {
            Reader::Upper(_) => true,
            Reader::Lower { ino, layer, .. } => layer.is_ready(*ino, offset, len),
        }
    }

    /// Returns what should be decompressed now because the file is read sequentially. To be called
    /// for every read.
    pub(crate) fn soon_after(&self, offset: u64, len: usize) -> Vec<Soon> {
        let Reader::Lower { ino, layer, .. } = self else {
            return Vec::new();
        };
        let super::ContentLayer::Image(layer) = layer else {
            return Vec::new();
        };
        // An error is for the read.
        let Ok(layout) = layer.layout(*ino) else {
            return Vec::new();
        };
        let blocks = layer.image().soon_after(&layout, offset, len);
        let soon = |block| Soon {
            layer: layer.clone(),
            block,
        };
        blocks.into_iter().map(soon).collect()
    }

    /// Reads up to `len` bytes at `offset`; fewer only before the end of the file.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        match self {
            Reader::Upper(file) => {
                let mut buffer = vec![0; len];
                let got = read_full(file, &mut buffer, offset)?;
                buffer.truncate(got);
                Ok(Box::new(buffer))
            }
            Reader::Lower { ino, layer, .. } => {
                let first = layer.read(*ino, offset, len)?;
                let got = (*first).as_ref().len();
                if got == 0 || got >= len {
                    return Ok(first);
                }
                // The end of a block, not of the file.
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
                (Some(row), state.below(row))
            }
            Presence::Lower => (None, state.lower.clone()),
        };
        match row.map(|row| row.kind) {
            Some(Kind::File) | None => Ok(Content::Lower(lower)),
            Some(Kind::Directory) => Err(Errno::EISDIR.into()),
            Some(_) => Err(Errno::EINVAL.into()),
        }
    }

    /// Returns the content of a file for one read.
    pub(crate) fn reader(&self, ino: Ino) -> Result<Reader> {
        Ok(match self.content(ino)? {
            Content::File(file) => Reader::Upper(file),
            Content::Lower(stack) => Reader::Lower {
                ino,
                layer: stack.content(ino)?,
                stack,
            },
        })
    }

    /// Reads up to `len` bytes at `offset`; fewer only before the end of the file.
    pub fn read_at(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        self.reader(ino)?.read(offset, len)
    }

    /// Returns true if the next change of a file's content has to copy up a large file, so that the
    /// caller should run it on another thread.
    pub(crate) fn needs_large_copy_up(&self, ino: Ino) -> bool {
        let is_below = {
            let state = self.read();
            match state.presence(ino) {
                Ok(Presence::Row(row)) => row.kind == Kind::File && row.data != DataPlace::Upper,
                Ok(Presence::Orphan(orphan)) => orphan.file.is_none(),
                Ok(Presence::Lower) => true,
                // The change itself reports it.
                Err(_) => false,
            }
        };
        is_below
            && self
                .attr(ino)
                .is_ok_and(|attr| attr.kind == Kind::File && attr.size > LARGE)
    }

    /// Writes `data` at `offset`. Returns the number of bytes written, which is less than all if
    /// the disk is full.
    pub fn write_at(&self, ino: Ino, offset: u64, data: &[u8], set_id: SetIdBits) -> Result<usize> {
        self.with_space(|| {
            let data = self.chargeable(data)?;
            let _gate = self.gate_shared();
            let file = self.writable(ino, None)?;
            self.kill_privileges(ino, set_id)?;
            write_what_fits(&file, data, offset)
        })
    }

    /// Writes `data` at the end of the file, which is `end` according to the kernel. Returns the
    /// offset and the number of bytes written. The offset differs from `end` if changes were
    /// discarded since.
    pub fn append(
        &self,
        ino: Ino,
        end: u64,
        data: &[u8],
        set_id: SetIdBits,
    ) -> Result<(u64, usize)> {
        self.with_space(|| {
            let data = self.chargeable(data)?;
            let _gate = self.gate_shared();
            let file = self.writable(ino, None)?;
            self.kill_privileges(ino, set_id)?;
            let end = match self.was_discarded.load(Ordering::Relaxed) {
                true => file.metadata()?.len(),
                false => end,
            };
            Ok((end, write_what_fits(&file, data, end)?))
        })
    }

    /// Starts writing the content of a file to disk, without waiting for it.
    pub(crate) fn start_writeback(&self, ino: Ino) {
        if let Ok(Content::File(file)) = self.content(ino) {
            durable::start_writeback(&file);
        }
    }

    /// Sets the size of a file.
    pub(super) fn truncate(&self, ino: Ino, size: u64, set_id: SetIdBits) -> Result<()> {
        let file = self.writable(ino, Some(size))?;
        self.kill_privileges(ino, set_id)?;
        Ok(file.set_len(size)?)
    }

    /// Reserves, punches or zeroes a range.
    pub fn allocate(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: AllocateMode,
        set_id: SetIdBits,
    ) -> Result<()> {
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
        let needed = match mode {
            AllocateMode::PunchHole => 0,
            AllocateMode::Reserve { .. } | AllocateMode::ZeroRange { .. } => len,
        };
        let (offset, len) = (to_i64(offset)?, to_i64(len)?);
        self.with_space(|| {
            self.charge(needed)?;
            let _gate = self.gate_shared();
            let file = self.writable(ino, None)?;
            self.kill_privileges(ino, set_id)?;
            Ok(nix::fcntl::fallocate(&*file, flags, offset, len)?)
        })
    }

    /// Returns the start of the next data or hole at or after `offset`. `ENXIO` if that is past the
    /// end.
    pub fn seek(&self, ino: Ino, offset: u64, target: SeekTarget) -> Result<u64> {
        let found = match self.content(ino)? {
            Content::File(file) => seek_file(&file, offset, target)?,
            Content::Lower(lower) => lower.seek(ino, offset, target)?,
        };
        found.ok_or(Error::Posix(Errno::ENXIO))
    }

    /// Copies a range between files. Returns the number of bytes copied, which is less than `len`
    /// at the end of the source or if the disk is full.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        set_id: SetIdBits,
    ) -> Result<u64> {
        self.with_space(|| self.try_copy_range(from, from_offset, to, to_offset, len, set_id))
    }

    fn try_copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        set_id: SetIdBits,
    ) -> Result<u64> {
        let _gate = self.gate_shared();
        // The end of the source before the copy: within one file, the copy may move it.
        let size = self.attr(from)?.size;
        let len = len.min(size.saturating_sub(from_offset));
        if len == 0 {
            return Ok(0);
        }
        self.charge(len)?;
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
                // The caller copies the rest, and gets the error then.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Returns the content of an object for writing, after copying it up if it is in a lower layer.
    /// With `keep`, only that many leading bytes are copied.
    fn writable(&self, ino: Ino, keep: Option<u64>) -> Result<Arc<File>> {
        if self.syncs_singly {
            self.read().upper.unsynced().note_file(ino);
        }
        if let Content::File(file) = self.content(ino)? {
            return Ok(file);
        }
        let _copying = self.copy_up_lock(ino);
        // Another thread may have copied it up meanwhile.
        let lower = match self.content(ino)? {
            Content::File(file) => return Ok(file),
            Content::Lower(lower) => lower,
        };
        let attr = self.attr(ino)?;
        if attr.kind != Kind::File {
            return Err(Errno::EINVAL.into());
        }
        self.charge(keep.unwrap_or(attr.size).min(attr.size))?;
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
            // A copy-up is not a modification.
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
                // Unlinked meanwhile: copy it up as an orphan.
                upper.unstage(ino)?;
                drop(_copying);
                self.writable(ino, keep)
            }
            Err(e) => {
                if let Err(left) = upper.unstage(ino) {
                    tracing::warn!(%ino, "cannot remove an incomplete copy from work: {left}");
                }
                Err(e)
            }
        }
    }

    /// Makes a copied-up file the content of the object. Returns false if the object has lost its
    /// last name.
    ///
    /// Also clears the file capability, since the content is about to change: `below` is the result
    /// of [`Union::xattrs_below`].
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
            tracing::debug!(%ino, "cannot set the mode of a backing file: {e}");
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
            // No name is known, since the object was found by its identity: the content stays in
            // `work`.
            changes.push(RowChange::put_inode(ino, row));
            self.change(state, &changes)?;
        }
        state.upper.cache_file(ino, file.clone());
        Ok(true)
    }
}

/// Copies the first `len` bytes of a lower file, keeping holes.
pub(super) fn copy_content(
    lower: &super::LowerStack,
    ino: Ino,
    file: &File,
    len: u64,
) -> Result<()> {
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

/// Writes as much as fits on the disk. Fails only if nothing was written.
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
