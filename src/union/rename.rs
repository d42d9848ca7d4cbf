//! Renaming: an object takes a new name, or two objects exchange their names.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::namespace::{check_name, touch};
use super::remove::Cleanup;
use super::{Orphan, Result, State, Union};
use crate::object::{Ino, Kind, Timestamp};
use crate::state::{DataPlace, InodeRow, RowChange};
use crate::sys::durable;
use crate::upper::UpperDir;

/// The flags of `renameat2(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace the object that has the new name.
    Replace,
    /// Fail with `EEXIST` if the new name exists.
    NoReplace,
    /// Exchange the two names.
    Exchange,
}

/// An object with one of its names.
#[derive(Clone, Copy)]
struct Named<'a> {
    ino: Ino,
    is_dir: bool,
    dir: Ino,
    name: &'a [u8],
}

/// An object that a rename replaces, after [`Union::drop_name`].
struct Replaced {
    ino: Ino,
    cleanup: Cleanup,
    orphan: Option<Orphan>,
}

/// The move of a physical file or directory.
struct Move<'a> {
    from: (Arc<OwnedFd>, &'a [u8]),
    to: (Arc<OwnedFd>, &'a [u8]),
}

impl Move<'_> {
    /// Returns false if the file does not exist.
    fn run(&self, upper: &UpperDir) -> io::Result<bool> {
        let (from, to) = (&self.from, &self.to);
        upper.rename((from.0.as_fd(), from.1), (to.0.as_fd(), to.1))
    }

    fn undo(&self, upper: &UpperDir) -> io::Result<bool> {
        let (from, to) = (&self.from, &self.to);
        upper.rename((to.0.as_fd(), to.1), (from.0.as_fd(), from.1))
    }
}

/// The exchange of two physical names, of which one may not exist.
struct Exchange<'a> {
    a: (Arc<OwnedFd>, &'a [u8]),
    b: (Arc<OwnedFd>, &'a [u8]),
    exists_a: bool,
    exists_b: bool,
}

impl Exchange<'_> {
    /// Running it twice restores both names.
    fn run(&mut self, upper: &UpperDir) -> io::Result<()> {
        let (a, b) = ((self.a.0.as_fd(), self.a.1), (self.b.0.as_fd(), self.b.1));
        match (self.exists_a, self.exists_b) {
            (true, true) => upper.exchange(a, b)?,
            (true, false) => drop(upper.rename(a, b)?),
            (false, _) => drop(upper.rename(b, a)?),
        }
        std::mem::swap(&mut self.exists_a, &mut self.exists_b);
        Ok(())
    }
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
        self.with_space(|| {
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
            let other = state.lookup(new_dir, new_name)?;
            state.live_dir_row(new_dir)?;
            match (mode, other) {
                (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
                (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
                (_, Some(same)) if same == ino => return Ok(()),
                _ => {}
            }
            let object = state.named(ino, dir, name)?;
            if object.is_dir && state.is_at_or_below(new_dir, ino)? {
                return Err(Errno::EINVAL.into());
            }
            let Some(other) = other else {
                return self.move_name(state, object, new_dir, new_name, None);
            };
            let other = state.named(other, new_dir, new_name)?;
            if mode == RenameMode::Exchange {
                if other.is_dir && state.is_at_or_below(dir, other.ino)? {
                    return Err(Errno::EINVAL.into());
                }
                return self.exchange(state, object, other);
            }
            match (object.is_dir, other.is_dir) {
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, true) => self.check_empty(state, other.ino)?,
                (false, false) => {}
            }
            self.move_name(state, object, new_dir, new_name, Some(other.ino))
        })
    }

    /// Gives an object a new name, in place of the object `replaced`.
    fn move_name(
        &self,
        state: &mut State,
        object: Named<'_>,
        new_dir: Ino,
        new_name: &[u8],
        replaced: Option<Ino>,
    ) -> Result<()> {
        let Named {
            ino,
            is_dir,
            dir,
            name,
        } = object;
        let now = Timestamp::now();
        let old_row = state.row(ino, || Some((dir, Box::from(name))))?;
        let mut row = old_row.clone();
        let content_moves = is_dir || row.place.is_none() || row.is_placed_at(dir, name);
        if content_moves && (is_dir || row.data != DataPlace::Upper || row.place.is_some()) {
            row.place = Some((new_dir, Box::from(new_name)));
        }
        row.ctime = now;

        let mut changes = Vec::with_capacity(8);
        changes.push(state.unlink_change(dir, name)?);
        changes.push(state.link_change(new_dir, new_name, ino)?);
        let mut replaced = match replaced {
            Some(ino) => {
                let (cleanup, orphan) =
                    self.drop_name(state, ino, new_dir, new_name, now, &mut changes)?;
                Some(Replaced {
                    ino,
                    cleanup,
                    orphan,
                })
            }
            None => None,
        };
        changes.push(RowChange::put_inode(ino, row.clone()));
        changes.extend(state.moved_parents(&object, new_dir, replaced.as_ref(), now)?);

        // Step 1. The physical path is that of the old rows, which are still valid. Neither
        // directory is inside the moved one, so their paths stay valid.
        let has_physical = if is_dir {
            state.has_physical(dir, name)?
        } else {
            row.data == DataPlace::Upper && content_moves && old_row.place.is_some()
        };
        let content = if has_physical {
            let from = state.find_dir(dir)?;
            let to = state.create_dir(new_dir)?;
            from.map(|from| Move {
                from: (from, name),
                to: (to, new_name),
            })
        } else {
            None
        };
        let (detached, destroys) = match &mut replaced {
            Some(Replaced { ino, cleanup, .. }) => {
                let remains = std::mem::replace(cleanup, Cleanup::Nothing);
                let (detached, remains) = state.detach(*ino, new_dir, new_name, remains)?;
                let destroys = matches!(remains, Cleanup::Remove | Cleanup::RemoveDir);
                *cleanup = remains;
                (detached, destroys)
            }
            None => (None, false),
        };
        // Content moves before the rows change if that destroys nothing, since it may fail.
        let early = content.as_ref().filter(|_| !destroys);
        if let Some(early) = early
            && let Err(e) = early.run(&state.upper)
        {
            self.undo_detach(state, detached);
            return Err(e.into());
        }
        // Step 2.
        if let Err(e) = self.change(state, &changes) {
            if let Some(early) = early
                && let Err(e) = early.undo(&state.upper)
            {
                self.repair_later("cannot move content back to its name", &e);
            }
            self.undo_detach(state, detached);
            return Err(e);
        }
        self.nodes.moved(ino, new_dir);
        self.removals.forget_new(ino);
        // Step 3.
        let is_replacing = replaced.is_some();
        let late = content.as_ref().filter(|_| destroys);
        self.finish_rename(state, new_dir, new_name, replaced, late);
        if is_replacing
            && row.data == DataPlace::Upper
            && let Some(file) = state.upper.cached_file(ino)
        {
            // As ext4 does, for programs that write a new version of a file and rename it over the
            // old one without a sync. The host does not know of names in lower layers.
            durable::start_writeback(&file);
        }
        if content.is_some() {
            state.note_unsynced(dir);
            state.note_unsynced(new_dir);
        }
        Ok(())
    }

    /// Step 3 of a rename: removes the content of the replaced object, by the move `late` if there
    /// is one. The rows have changed, so the call has succeeded even if this fails.
    fn finish_rename(
        &self,
        state: &mut State,
        new_dir: Ino,
        new_name: &[u8],
        replaced: Option<Replaced>,
        late: Option<&Move<'_>>,
    ) {
        if let Some(Replaced {
            ino,
            cleanup,
            orphan,
        }) = replaced
        {
            if let Some(orphan) = orphan {
                state.orphans.insert(ino, orphan);
            }
            match cleanup {
                Cleanup::Remove if late.is_some() => state.upper.forget_file(ino),
                cleanup => self.finish_removal(state, ino, new_dir, new_name, cleanup),
            }
        }
        match late.map(|late| late.run(&state.upper)) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => {
                self.repair_later("the content of a renamed file is missing", &Errno::ENOENT);
            }
            Some(Err(e)) => self.repair_later("cannot rename content", &e),
        }
    }

    /// Exchanges the names of two objects.
    fn exchange(&self, state: &mut State, a: Named<'_>, b: Named<'_>) -> Result<()> {
        let now = Timestamp::now();
        let (row_a, exists_a) = state.exchanged_row(a, b, now)?;
        let (row_b, exists_b) = state.exchanged_row(b, a, now)?;
        let mut changes = vec![
            state.link_change(a.dir, a.name, b.ino)?,
            state.link_change(b.dir, b.name, a.ino)?,
            RowChange::put_inode(a.ino, row_a),
            RowChange::put_inode(b.ino, row_b),
        ];
        let mut parent_a = state.dir_row(a.dir)?;
        touch(&mut parent_a, now);
        if a.dir != b.dir {
            let mut parent_b = state.dir_row(b.dir)?;
            touch(&mut parent_b, now);
            if a.is_dir != b.is_dir {
                let (loses, gains) = if a.is_dir {
                    (&mut parent_a, &mut parent_b)
                } else {
                    (&mut parent_b, &mut parent_a)
                };
                loses.nlink = loses.nlink.saturating_sub(1);
                gains.nlink += 1;
            }
            changes.push(RowChange::put_inode(b.dir, parent_b));
        }
        changes.push(RowChange::put_inode(a.dir, parent_a));
        let mut content = if exists_a || exists_b {
            Some(Exchange {
                a: (state.create_dir(a.dir)?, a.name),
                b: (state.create_dir(b.dir)?, b.name),
                exists_a,
                exists_b,
            })
        } else {
            None
        };
        // The content moves first: that may fail, and can be undone.
        if let Some(content) = &mut content {
            content.run(&state.upper)?;
        }
        if let Err(e) = self.change(state, &changes) {
            if let Some(content) = &mut content
                && let Err(e) = content.run(&state.upper)
            {
                self.repair_later("cannot move content back to its name", &e);
            }
            return Err(e);
        }
        self.removals.forget_new(a.ino);
        self.removals.forget_new(b.ino);
        self.nodes.moved(a.ino, b.dir);
        self.nodes.moved(b.ino, a.dir);
        if content.is_some() {
            state.note_unsynced(a.dir);
            state.note_unsynced(b.dir);
        }
        Ok(())
    }
}

impl State {
    fn named<'a>(&self, ino: Ino, dir: Ino, name: &'a [u8]) -> Result<Named<'a>> {
        Ok(Named {
            ino,
            is_dir: self.kind(ino)? == Kind::Directory,
            dir,
            name,
        })
    }

    /// Returns true if `dir` is the directory `above` or inside it.
    fn is_at_or_below(&self, dir: Ino, above: Ino) -> Result<bool> {
        Ok(self.chain(dir)?.iter().any(|(at, _)| *at == above))
    }

    fn has_physical(&self, dir: Ino, name: &[u8]) -> Result<bool> {
        let Some(parent) = self.find_dir(dir)? else {
            return Ok(false);
        };
        Ok(self.upper.has(parent.as_fd(), name))
    }

    /// Returns the changes of the directories when an object moves from one to the other.
    fn moved_parents(
        &self,
        object: &Named<'_>,
        new_dir: Ino,
        replaced: Option<&Replaced>,
        now: Timestamp,
    ) -> Result<Vec<RowChange<'static>>> {
        let mut changes = Vec::with_capacity(2);
        let mut parent = self.dir_row(object.dir)?;
        touch(&mut parent, now);
        if object.dir == new_dir {
            if object.is_dir && replaced.is_some() {
                parent.nlink = parent.nlink.saturating_sub(1);
            }
        } else {
            let mut new_parent = self.dir_row(new_dir)?;
            touch(&mut new_parent, now);
            if object.is_dir {
                parent.nlink = parent.nlink.saturating_sub(1);
                if replaced.is_none() {
                    new_parent.nlink += 1;
                }
            }
            changes.push(RowChange::put_inode(new_dir, new_parent));
        }
        changes.push(RowChange::put_inode(object.dir, parent));
        Ok(changes)
    }

    /// Returns the row of an object that gets the name of another, and whether it has a physical
    /// file or directory that moves with it.
    fn exchanged_row(
        &self,
        from: Named<'_>,
        to: Named<'_>,
        now: Timestamp,
    ) -> Result<(InodeRow, bool)> {
        let mut row = self.row(from.ino, || Some((from.dir, Box::from(from.name))))?;
        let is_placed = row.place.is_some();
        let content_moves = !is_placed || row.is_placed_at(from.dir, from.name);
        if content_moves && (is_placed || row.data != DataPlace::Upper) {
            row.place = Some((to.dir, Box::from(to.name)));
        }
        row.ctime = now;
        let has_physical = if from.is_dir {
            self.has_physical(from.dir, from.name)?
        } else {
            row.data == DataPlace::Upper && content_moves && is_placed
        };
        Ok((row, has_physical))
    }
}
