//! Renaming: one object takes a name, or two change places.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::namespace::{check_name, touch};
use super::remove::Cleanup;
use super::{Result, State, Union};
use crate::object::{Ino, Kind, Timestamp};
use crate::state::{DataPlace, RowChange};
use crate::sys::durable;

/// How a rename treats what has the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with `EEXIST`.
    NoReplace,
    /// Let both change places.
    Exchange,
}

impl Union {
    /// Renames an object.
    pub fn rename(
        &self,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        check_name(new_name)?;
        let _gate = self.gate_shared();
        self.preload_name(dir, name)?;
        if let Some(other) = self.preload_name(new_dir, new_name)?
            && mode == RenameMode::Replace
        {
            self.preload_listing(other)?;
        }
        let mut state = self.write();
        let state = &mut *state;
        let ino = state.lookup(dir, name)?.ok_or(Errno::ENOENT)?;
        let replaced = state.lookup(new_dir, new_name)?;
        state.live_dir_row(new_dir)?;
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
            (_, Some(same)) if same == ino => return Ok(()),
            _ => {}
        }
        let is_dir = state.kind(ino)? == Kind::Directory;
        let replaced = match replaced {
            Some(other) => Some((other, state.kind(other)? == Kind::Directory)),
            None => None,
        };
        if is_dir && state.chain(new_dir)?.iter().any(|(at, _)| *at == ino) {
            return Err(Errno::EINVAL.into());
        }
        if mode == RenameMode::Exchange {
            if let Some((other, other_is_dir)) = replaced {
                if other_is_dir && state.chain(dir)?.iter().any(|(at, _)| *at == other) {
                    return Err(Errno::EINVAL.into());
                }
                return self.exchange(
                    state,
                    (ino, is_dir, dir, name),
                    (other, other_is_dir, new_dir, new_name),
                );
            }
            return Err(Errno::ENOENT.into());
        }
        match replaced {
            Some((_, false)) if is_dir => return Err(Errno::ENOTDIR.into()),
            Some((_, true)) if !is_dir => return Err(Errno::EISDIR.into()),
            Some((other, true)) => self.must_be_empty(state, other)?,
            _ => {}
        }
        let now = Timestamp::now();
        let old_row = state.row(ino, || Some((dir, Box::from(name))))?;
        let mut row = old_row.clone();
        let content_moves = is_dir || row.place.is_none() || row.is_placed_at(dir, name);
        if content_moves && (is_dir || row.data == DataPlace::Lower || row.place.is_some()) {
            row.place = Some((new_dir, Box::from(new_name)));
        }
        row.ctime = now;

        let mut changes = Vec::with_capacity(8);
        changes.push(state.hide(dir, name)?);
        changes.push(state.show(new_dir, new_name, ino)?);
        let remains = match replaced {
            Some((other, _)) => Some((
                other,
                self.drop_name(state, other, new_dir, new_name, now, &mut changes)?,
            )),
            None => None,
        };
        changes.push(RowChange::put_inode(ino, row.clone()));
        let mut parent = state.dir_row(dir)?;
        touch(&mut parent, now);
        if dir == new_dir {
            if is_dir && replaced.is_some() {
                parent.nlink = parent.nlink.saturating_sub(1);
            }
        } else {
            let mut new_parent = state.dir_row(new_dir)?;
            touch(&mut new_parent, now);
            if is_dir {
                parent.nlink = parent.nlink.saturating_sub(1);
                if replaced.is_none() {
                    new_parent.nlink += 1;
                }
            }
            changes.push(RowChange::put_inode(new_dir, new_parent));
        }
        changes.push(RowChange::put_inode(dir, parent));

        // Step 1: the directory that content will move to. Asked for by the old rows, which are
        // still true; it stays true because neither end is inside the other.
        let has_physical = if is_dir {
            state.has_physical(dir, name)?
        } else {
            row.data == DataPlace::Upper && content_moves && old_row.place.is_some()
        };
        let from = if has_physical {
            state.find_dir(dir)?
        } else {
            None
        };
        let to = if has_physical {
            Some(state.create_dir(new_dir)?)
        } else {
            state.find_dir(new_dir)?
        };
        let content = from.as_ref().zip(to.as_ref());
        let content = content.map(|(from, to)| ((from.as_fd(), name), (to.as_fd(), new_name)));
        // It moves now if that destroys nothing: it may fail, and can be taken back.
        let (detached, destroys) = match &remains {
            Some((other, (what, _))) => (
                state.detach(*other, new_dir, new_name, what)?,
                matches!(what, Cleanup::Remove | Cleanup::RemoveDir),
            ),
            None => (None, false),
        };
        let early = content.filter(|_| !destroys);
        if let Some((from, to)) = early
            && let Err(e) = state.upper.rename(from, to)
        {
            self.undo_detach(state, detached);
            return Err(e.into());
        }
        // Step 2.
        if let Err(e) = self.change(state, &changes) {
            if let Some((from, to)) = early
                && let Err(e) = state.upper.rename(to, from)
            {
                self.repair_later("content did not go back to its name", &e);
            }
            self.undo_detach(state, detached);
            return Err(e);
        }
        self.nodes.moved(ino, new_dir);
        // Step 3, what cannot be taken back: the content of what is replaced goes, by the renaming
        // itself where it can.
        let late = content.filter(|_| destroys);
        if let Some((other, (what, orphan))) = remains {
            if let Some(orphan) = orphan {
                state.orphans.insert(other, orphan);
            }
            match what {
                Cleanup::Remove if late.is_some() => state.upper.forget_file(other),
                what => self.finish_removal(state, other, new_dir, new_name, what),
            }
        }
        if let Some((from, to)) = late {
            match state.upper.rename(from, to) {
                Ok(true) => {}
                Ok(false) => {
                    self.repair_later("content of a renamed file is missing", &Errno::ENOENT)
                }
                Err(e) => self.repair_later("content is under its old name", &e),
            }
        }
        if replaced.is_some()
            && row.data == DataPlace::Upper
            && let Some(file) = state.upper.cached_file(ino)
        {
            // As ext4 and others do it where one file replaces another, for programs that write a
            // new version and rename it over the old one without a sync. Of names in layers below
            // the host knows nothing.
            durable::start_writeback(&file);
        }
        if content.is_some() {
            state.note_unsynced(dir);
            state.note_unsynced(new_dir);
        }
        Ok(())
    }

    fn exchange(
        &self,
        state: &mut State,
        a: (Ino, bool, Ino, &[u8]),
        b: (Ino, bool, Ino, &[u8]),
    ) -> Result<()> {
        let now = Timestamp::now();
        let mut changes = Vec::with_capacity(8);
        let moved = |state: &State,
                     from: (Ino, bool, Ino, &[u8]),
                     to: (Ino, bool, Ino, &[u8])|
         -> Result<_> {
            let mut row = state.row(from.0, || Some((from.2, Box::from(from.3))))?;
            let placed = row.place.is_some();
            let here = !placed || row.is_placed_at(from.2, from.3);
            if here && (placed || row.data == DataPlace::Lower) {
                row.place = Some((to.2, Box::from(to.3)));
            }
            row.ctime = now;
            let physical = if from.1 {
                state.has_physical(from.2, from.3)?
            } else {
                row.data == DataPlace::Upper && here && placed
            };
            Ok((row, physical))
        };
        let (row_a, physical_a) = moved(state, a, b)?;
        let (row_b, physical_b) = moved(state, b, a)?;
        changes.push(state.show(a.2, a.3, b.0)?);
        changes.push(state.show(b.2, b.3, a.0)?);
        changes.push(RowChange::put_inode(a.0, row_a));
        changes.push(RowChange::put_inode(b.0, row_b));
        let mut parent_a = state.dir_row(a.2)?;
        touch(&mut parent_a, now);
        if a.2 != b.2 {
            let mut parent_b = state.dir_row(b.2)?;
            touch(&mut parent_b, now);
            if a.1 != b.1 {
                let (loses, gains) = if a.1 {
                    (&mut parent_a, &mut parent_b)
                } else {
                    (&mut parent_b, &mut parent_a)
                };
                loses.nlink = loses.nlink.saturating_sub(1);
                gains.nlink += 1;
            }
            changes.push(RowChange::put_inode(b.2, parent_b));
        }
        changes.push(RowChange::put_inode(a.2, parent_a));
        let dirs = if physical_a || physical_b {
            Some((state.create_dir(a.2)?, state.create_dir(b.2)?))
        } else {
            None
        };
        // The content first: that may fail, and can be taken back.
        let swap = |state: &State, back: bool| -> Result<()> {
            let Some((dir_a, dir_b)) = &dirs else {
                return Ok(());
            };
            let (a, b) = ((dir_a.as_fd(), a.3), (dir_b.as_fd(), b.3));
            if physical_a && physical_b {
                state.upper.exchange(a, b)?;
            } else if physical_a != back {
                state.upper.rename(a, b)?;
            } else {
                state.upper.rename(b, a)?;
            }
            Ok(())
        };
        swap(state, false)?;
        if let Err(e) = self.change(state, &changes) {
            if let Err(e) = swap(state, true) {
                self.repair_later("content did not go back to its name", &e);
            }
            return Err(e);
        }
        self.nodes.moved(a.0, b.2);
        self.nodes.moved(b.0, a.2);
        if dirs.is_some() {
            state.note_unsynced(a.2);
            state.note_unsynced(b.2);
        }
        Ok(())
    }
}

impl State {
    fn has_physical(&self, dir: Ino, name: &[u8]) -> Result<bool> {
        let Some(parent) = self.find_dir(dir)? else {
            return Ok(false);
        };
        Ok(self.upper.has(parent.as_fd(), name))
    }
}
