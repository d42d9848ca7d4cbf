//! Removing names, and the objects that lose their last name.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::namespace::touch;
use super::{ContentLayer, Orphan, Presence, Result, State, Union};
use crate::object::{Ino, Kind, Timestamp};
use crate::state::{DataPlace, InodeRow, RowChange};
use crate::upper::Removed;

/// What to do with the physical file when a name is removed.
pub(super) enum Cleanup {
    Nothing,
    /// Remove the content under the name at once: the object has no other name, and is not durable
    /// or only a copy of its row.
    Remove,
    /// Take the content under the name out, before the rows change, and remove it when they are
    /// durable: the object has no other name.
    RemoveLater,
    /// The same for content that is in `work` already, after the rows have changed.
    RemoveDetached,
    /// Remove the file that was taken out, when the rows are durable.
    Removed(Removed),
    /// Move the content under the name to `work`, before the rows change: the object has other
    /// names.
    Detach,
    /// Remove the physical directory.
    RemoveDir,
}

/// The kind of object that a call removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Directory,
    NotDirectory,
}

impl Union {
    /// Removes a name of an object. `EISDIR` if it is a directory.
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Result<()> {
        self.remove(dir, name, Expected::NotDirectory)
    }

    /// Removes an empty directory. `ENOTEMPTY`, or `ENOTDIR` if it is not a directory.
    pub fn rmdir(&self, dir: Ino, name: &[u8]) -> Result<()> {
        self.remove(dir, name, Expected::Directory)
    }

    fn remove(&self, dir: Ino, name: &[u8], expected: Expected) -> Result<()> {
        let _gate = self.gate_shared();
        if let Some(ino) = self.preload_name(dir, name)?
            && expected == Expected::Directory
        {
            self.preload_listing(ino)?;
        }
        let mut state = self.write();
        let state = &mut *state;
        let ino = state.lookup(dir, name)?.ok_or(Errno::ENOENT)?;
        let mut parent = state.live_dir_row(dir)?;
        let now = Timestamp::now();
        match (state.kind(ino)?, expected) {
            (Kind::Directory, Expected::NotDirectory) => return Err(Errno::EISDIR.into()),
            (Kind::Directory, Expected::Directory) => {
                self.check_empty(state, ino)?;
                parent.nlink = parent.nlink.saturating_sub(1);
            }
            (_, Expected::Directory) => return Err(Errno::ENOTDIR.into()),
            (_, Expected::NotDirectory) => {}
        }
        let mut changes = Vec::with_capacity(4);
        changes.push(state.unlink_change(dir, name)?);
        let (remains, orphan) = self.drop_name(state, ino, dir, name, now, &mut changes)?;
        touch(&mut parent, now);
        changes.push(RowChange::put_inode(dir, parent));
        let (detached, remains) = state.detach(ino, dir, name, remains)?;
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

    /// Adds the changes of rows for an object that loses the name `(dir, name)`. Returns what to do
    /// with its file, and the orphan that it becomes if this was its last name and the kernel holds
    /// it.
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
        let orphan = self.orphan_of(state, ino, &row)?;
        if had_row {
            changes.push(RowChange::DropInode(ino));
            if row.owns_xattrs && state.delta.xattrs(ino)?.is_some() {
                changes.push(RowChange::DropXattrs(ino));
            }
        }
        if row.kind == Kind::Directory {
            if state.delta.dir(ino)?.is_some() {
                // Whiteouts in it have no effect: this identity can no longer be reached.
                changes.push(RowChange::DropEntriesOf(ino));
            }
            return Ok((Cleanup::RemoveDir, orphan));
        }
        let remains = match (row.data, row.place.is_some()) {
            (DataPlace::Upper, true) if lies_here && row.kind == Kind::File => {
                match self.removals.is_new(ino) {
                    true => Cleanup::Remove,
                    false => Cleanup::RemoveLater,
                }
            }
            (DataPlace::Upper, true) if lies_here => Cleanup::Remove,
            // A hard link whose other names were removed before.
            (DataPlace::Upper, false) => Cleanup::RemoveDetached,
            _ => Cleanup::Nothing,
        };
        Ok((remains, orphan))
    }

    /// Returns the orphan that an object becomes when it loses its last name. `None` if the kernel
    /// does not hold it.
    pub(super) fn orphan_of(
        &self,
        state: &State,
        ino: Ino,
        row: &InodeRow,
    ) -> Result<Option<Orphan>> {
        if !self.nodes.is_held(ino) {
            return Ok(None);
        }
        let file = match row.data {
            // Opened now, while the file still has its name.
            DataPlace::Upper if row.kind == Kind::File => Some(state.file(ino, row)?),
            DataPlace::Lower if row.kind == Kind::File => {
                if let ContentLayer::Frozen(frozen) = state.lower.content(ino)? {
                    // A commit may remove the files of the layer while the object is open.
                    frozen.pin(ino)?;
                }
                None
            }
            DataPlace::Upper | DataPlace::Lower | DataPlace::Committed => None,
        };
        let xattrs = if row.owns_xattrs {
            state.delta.xattrs(ino)?.cloned().unwrap_or_default()
        } else {
            state.lower.xattrs(ino)?.into_iter().collect()
        };
        Ok(Some(Orphan {
            row: row.clone(),
            file,
            lower: state.below(row),
            xattrs,
        }))
    }

    /// Undoes [`State::detach`] after the rows could not be changed.
    pub(super) fn undo_detach(&self, state: &State, detached: Option<Detached<'_>>) {
        let Some(Detached {
            ino,
            as_removed,
            dir,
            name,
        }) = detached
        else {
            return;
        };
        let undone = match as_removed {
            Some(removed) => state.upper.bring_back(removed, dir.as_fd(), name),
            None => state.upper.place(ino, dir.as_fd(), name),
        };
        if let Err(e) = undone {
            self.repair_later("cannot move content back to its name", &e);
        }
    }

    /// Step 3 of a removal. The rows have changed, so the call has succeeded even if this fails.
    pub(super) fn finish_removal(
        &self,
        state: &mut State,
        ino: Ino,
        dir: Ino,
        name: &[u8],
        remains: Cleanup,
    ) {
        match state.remove_physical(ino, dir, name, remains) {
            Ok(None) => {}
            Ok(Some(removed)) => self.removals.add(&state.upper, removed),
            Err(e) => self.repair_later("cannot remove the content of a removed name", &e),
        }
        self.removals.forget_new(ino);
    }

    /// `ENOTEMPTY` if a directory has names.
    pub(super) fn check_empty(&self, state: &State, dir: Ino) -> Result<()> {
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

/// Content that was moved to `work`, and its former name.
pub(super) struct Detached<'a> {
    ino: Ino,
    /// Whether it was taken out to be removed.
    as_removed: Option<Removed>,
    dir: Arc<OwnedFd>,
    name: &'a [u8],
}

impl State {
    /// Moves the content of an object that loses this name to `work`, and returns what is then to
    /// be done with it. Done before the rows change: it may fail on a full disk, and can be undone.
    pub(super) fn detach<'a>(
        &self,
        ino: Ino,
        dir: Ino,
        name: &'a [u8],
        remains: Cleanup,
    ) -> Result<(Option<Detached<'a>>, Cleanup)> {
        if !matches!(remains, Cleanup::Detach | Cleanup::RemoveLater) {
            return Ok((None, remains));
        }
        let Some(physical) = self.find_dir(dir)? else {
            return Ok((None, remains));
        };
        let moved = match remains {
            Cleanup::Detach => self
                .upper
                .detach(physical.as_fd(), name, ino)
                .map(|()| None),
            _ => self.upper.take_out(physical.as_fd(), name).map(Some),
        };
        let (as_removed, remains) = match moved {
            Ok(None) => (None, remains),
            Ok(Some(removed)) => (Some(removed), Cleanup::Removed(removed)),
            // A name whose content is missing must be removable.
            Err(Errno::ENOENT) if matches!(remains, Cleanup::Detach) => return Ok((None, remains)),
            // Or `work` cannot grow: programs must be able to free space on a full disk.
            Err(Errno::ENOENT | Errno::ENOSPC | Errno::EDQUOT)
                if matches!(remains, Cleanup::RemoveLater) =>
            {
                return Ok((None, Cleanup::Remove));
            }
            Err(e) => return Err(std::io::Error::from(e).into()),
        };
        let dir = physical;
        let detached = Detached {
            ino,
            as_removed,
            dir,
            name,
        };
        Ok((Some(detached), remains))
    }

    /// Removes what is left of an object or of its name. Returns a file that is to be removed when
    /// the rows are durable.
    fn remove_physical(
        &mut self,
        ino: Ino,
        dir: Ino,
        name: &[u8],
        remains: Cleanup,
    ) -> Result<Option<Removed>> {
        match remains {
            // What was in the way was moved before the rows changed.
            Cleanup::Nothing | Cleanup::Detach | Cleanup::RemoveLater => {}
            Cleanup::Removed(removed) => {
                self.upper.forget_file(ino);
                return Ok(Some(removed));
            }
            Cleanup::RemoveDetached => {
                self.upper.forget_file(ino);
                return match self.upper.take_out_detached(ino) {
                    Ok(removed) => Ok(Some(removed)),
                    Err(Errno::ENOENT) => Ok(None),
                    Err(e) => Err(std::io::Error::from(e).into()),
                };
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
        Ok(None)
    }
}
