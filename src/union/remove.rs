//! Names that go away, and what becomes of the objects that had them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::namespace::touch;
use super::{ContentLayer, Orphan, Presence, Result, State, Union};
use crate::object::{Ino, Kind, Timestamp};
use crate::state::{DataPlace, RowChange};

/// What a name that goes away leaves to be done to physical files, after the rows have changed.
pub(super) enum Cleanup {
    Nothing,
    /// The content lies under the name and has no other: remove it.
    Remove,
    /// The content lies in `work` under its identity: remove it.
    RemoveDetached,
    /// The content lies under the name, but the object lives on: it is moved to `work` before the
    /// rows change.
    Detach,
    RemoveDir,
}

impl Union {
    /// Removes a name of an object that is not a directory.
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Result<()> {
        self.remove(dir, name, false)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: Ino, name: &[u8]) -> Result<()> {
        self.remove(dir, name, true)
    }

    fn remove(&self, dir: Ino, name: &[u8], want_dir: bool) -> Result<()> {
        let _gate = self.gate_shared();
        if let Some(ino) = self.preload_name(dir, name)?
            && want_dir
        {
            self.preload_listing(ino)?;
        }
        let mut state = self.write();
        let state = &mut *state;
        let ino = state.lookup(dir, name)?.ok_or(Errno::ENOENT)?;
        let mut parent = state.live_dir_row(dir)?;
        let now = Timestamp::now();
        match (state.kind(ino)? == Kind::Directory, want_dir) {
            (true, false) => return Err(Errno::EISDIR.into()),
            (false, true) => return Err(Errno::ENOTDIR.into()),
            (true, true) => {
                self.must_be_empty(state, ino)?;
                parent.nlink = parent.nlink.saturating_sub(1);
            }
            (false, false) => {}
        }
        let mut changes = Vec::with_capacity(4);
        changes.push(state.hide(dir, name)?);
        let (remains, orphan) = self.drop_name(state, ino, dir, name, now, &mut changes)?;
        touch(&mut parent, now);
        changes.push(RowChange::put_inode(dir, parent));
        let detached = state.detach(ino, dir, name, &remains)?;
        if let Err(e) = self.change(state, &changes) {
            self.undo_detach(state, detached);
            return Err(e);
        }
        if let Some(orphan) = orphan {
            state.orphans.insert(ino, orphan);
        }
        self.finish_removal(state, ino, dir, name, remains);
        Ok(())
    }

    /// Adds to `changes` what the object's row becomes when it loses the name `(dir, name)`.
    pub(super) fn drop_name(
        &self,
        state: &State,
        ino: Ino,
        dir: Ino,
        name: &[u8],
        now: Timestamp,
        changes: &mut Vec<RowChange<'_>>,
    ) -> Result<(Cleanup, Option<Orphan>)> {
        let mut row = state.row(ino, || None)?;
        let is_placed_here = row.is_placed_at(dir, name);
        let lies_here = is_placed_here && row.data == DataPlace::Upper;
        row.ctime = now;
        if row.kind != Kind::Directory && row.nlink > 1 {
            row.nlink -= 1;
            let remains = if lies_here {
                Cleanup::Detach
            } else {
                Cleanup::Nothing
            };
            if is_placed_here {
                row.place = None;
            }
            changes.push(RowChange::put_inode(ino, row));
            return Ok((remains, None));
        }
        row.nlink = 0;
        let had_row = matches!(state.presence(ino)?, Presence::Row(_));
        let orphan = if self.nodes.is_held(ino) {
            let file = match row.data {
                // Opened while it still has its name.
                DataPlace::Upper if row.kind == Kind::File => Some(state.file(ino, &row)?),
                DataPlace::Lower if row.kind == Kind::File => {
                    if let ContentLayer::Frozen(frozen) = state.lower.content(ino)? {
                        // A commit may remove the layer's files while this is still being read.
                        frozen.pin(ino)?;
                    }
                    None
                }
                _ => None,
            };
            let xattrs = if row.owns_xattrs {
                state.delta.xattrs(ino)?.cloned().unwrap_or_default()
            } else {
                state.lower.xattrs(ino)?.into_iter().collect()
            };
            Some(Orphan {
                row: row.clone(),
                file,
                lower: state.lower.clone(),
                xattrs,
            })
        } else {
            None
        };
        if had_row {
            changes.push(RowChange::DropInode(ino));
            if row.owns_xattrs && state.delta.xattrs(ino)?.is_some() {
                changes.push(RowChange::DropXattrs(ino));
            }
        }
        if row.kind == Kind::Directory {
            if state.delta.dir(ino)?.is_some() {
                // Whiteouts in it hide nothing any more: nobody reaches this identity again.
                changes.push(RowChange::DropEntriesOf(ino));
            }
            return Ok((Cleanup::RemoveDir, orphan));
        }
        let remains = match (row.data, row.place.is_some()) {
            (DataPlace::Upper, true) if lies_here => Cleanup::Remove,
            // Of a hard link whose other names went before.
            (DataPlace::Upper, false) => Cleanup::RemoveDetached,
            _ => Cleanup::Nothing,
        };
        Ok((remains, orphan))
    }

    /// Takes back a [`State::detach`], since the rows did not change.
    pub(super) fn undo_detach(&self, state: &State, detached: Option<Detached<'_>>) {
        if let Some(Detached { ino, dir, name }) = detached
            && let Err(e) = state.upper.place(ino, dir.as_fd(), name)
        {
            self.repair_later("content did not go back to its name", &e);
        }
    }

    /// Step 3 of a removal. The rows are changed: failing here loses nothing, and is not the
    /// caller's failure either.
    pub(super) fn finish_removal(
        &self,
        state: &mut State,
        ino: Ino,
        dir: Ino,
        name: &[u8],
        remains: Cleanup,
    ) {
        if let Err(e) = state.remove_physical(ino, dir, name, remains) {
            self.repair_later("content of a removed name is left", &e);
        }
    }

    pub(super) fn must_be_empty(&self, state: &State, dir: Ino) -> Result<()> {
        let edits = state.delta.dir(dir)?;
        if edits.is_some_and(|edits| edits.iter().any(|(_, target)| target.is_some())) {
            return Err(Errno::ENOTEMPTY.into());
        }
        for (name, _, _) in state.lower.list(dir)?.iter() {
            if edits.and_then(|edits| edits.get(name)).is_none() {
                return Err(Errno::ENOTEMPTY.into());
            }
        }
        Ok(())
    }
}

/// Content that was moved to `work`, and where it lay.
pub(super) struct Detached<'a> {
    ino: Ino,
    dir: Arc<OwnedFd>,
    name: &'a [u8],
}

impl State {
    /// Moves content to `work` that loses the name it lies under, before the rows say so: this may
    /// fail for want of room, and can be taken back.
    pub(super) fn detach<'a>(
        &self,
        ino: Ino,
        dir: Ino,
        name: &'a [u8],
        remains: &Cleanup,
    ) -> Result<Option<Detached<'a>>> {
        if !matches!(remains, Cleanup::Detach) {
            return Ok(None);
        }
        let Some(physical) = self.find_dir(dir)? else {
            return Ok(None);
        };
        match self.upper.detach(physical.as_fd(), name, ino) {
            Ok(()) => Ok(Some(Detached {
                ino,
                dir: physical,
                name,
            })),
            // What is missing cannot be kept, and must be removable.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn remove_physical(&mut self, ino: Ino, dir: Ino, name: &[u8], remains: Cleanup) -> Result<()> {
        match remains {
            // Detached before the rows were changed.
            Cleanup::Nothing | Cleanup::Detach => {}
            Cleanup::RemoveDetached => {
                self.upper.unstage(ino)?;
                self.upper.forget_file(ino);
            }
            Cleanup::Remove => {
                if let Some(physical) = self.find_dir(dir)? {
                    self.upper.remove(physical.as_fd(), name)?;
                }
                self.upper.forget_file(ino);
            }
            Cleanup::RemoveDir => {
                if let Some(physical) = self.find_dir(dir)? {
                    self.upper.remove_dir(physical.as_fd(), name, ino)?;
                }
            }
        }
        Ok(())
    }
}
