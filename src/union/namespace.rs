//! Names: making, removing, linking and renaming objects.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::{Error, FrozenLayer, Orphan, Result, Standing, State, Union};
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::state::{DataPlace, InodeRow, RowChange};

const S_ISGID: u16 = 0o2000;

/// Who makes an object.
#[derive(Debug, Clone, Copy)]
pub struct Creator {
    /// User that will own it.
    pub uid: u32,
    /// Group that will own it, unless the directory passes on its own.
    pub gid: u32,
}

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

/// What a name that goes away leaves to be done to physical files, after the rows have changed.
enum Remains {
    Nothing,
    /// The content lies under the name and has no other: remove it.
    Remove,
    /// The content lies under the name, but the object lives on: move it to `work`.
    Detach,
    RemoveDir,
}

impl Union {
    /// Makes a file, directory or special file, and returns its identity and attributes.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of mknod(2) and its caller"
    )]
    pub fn make(
        &self,
        dir: Ino,
        name: &[u8],
        kind: Kind,
        mode: u16,
        rdev: u64,
        target: Option<&[u8]>,
        creator: Creator,
    ) -> Result<(Ino, Attr)> {
        check_name(name)?;
        let _gate = self.gate_shared();
        let ino = self.new_ino()?;
        let mut state = self.write();
        let state = &mut *state;
        state.must_be_missing(dir, name)?;
        let mut parent = state.live_dir_row(dir)?;
        let now = Timestamp::now();
        let passes_group = parent.mode & S_ISGID != 0;
        let mut row = InodeRow {
            kind,
            mode: if passes_group && kind == Kind::Directory {
                mode | S_ISGID
            } else {
                mode
            },
            uid: creator.uid,
            gid: if passes_group {
                parent.gid
            } else {
                creator.gid
            },
            rdev,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            atime: now,
            mtime: now,
            ctime: now,
            data: DataPlace::Lower,
            target: target.map(Box::from),
            place: Some((dir, Box::from(name))),
            backing_ino: 0,
            owns_xattrs: true,
        };
        if matches!(kind, Kind::File | Kind::Symlink) {
            let physical = state.make_dir(dir)?;
            row.data = DataPlace::Upper;
            if let Some(target) = target {
                state.upper.create_symlink(physical.as_fd(), name, target)?;
                row.backing_ino = state.upper.backing_ino(physical.as_fd(), name)?;
            } else {
                let file = state
                    .upper
                    .create_file(physical.as_fd(), name, ino, row.mode)?;
                row.backing_ino = nix::sys::stat::fstat(&*file)?.st_ino;
            }
            self.note_unsynced(dir);
        }
        if kind == Kind::Directory {
            parent.nlink += 1;
        }
        touch(&mut parent, now);
        let changes = [
            RowChange::put_inode(ino, row.clone()),
            RowChange::put_entry(dir, name, Some(ino)),
            RowChange::put_inode(dir, parent),
        ];
        if let Err(e) = self.change(state, &changes) {
            if row.data == DataPlace::Upper
                && let Some(physical) = state.find_dir(dir)?
            {
                state.upper.forget_file(ino);
                state.upper.remove(physical.as_fd(), name)?;
            }
            return Err(e);
        }
        let attr = state.row_attr(ino, &row)?;
        Ok((ino, attr))
    }

    /// Adds a name to an object that is not a directory.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let _gate = self.gate_shared();
        let mut state = self.write();
        let state = &mut *state;
        state.must_be_missing(dir, name)?;
        let mut parent = state.live_dir_row(dir)?;
        if matches!(state.standing(ino), Standing::Orphan(_)) {
            // linkat(AT_EMPTY_PATH) of a file that was unlinked: Linux says it is not there.
            return Err(Errno::ENOENT.into());
        }
        let mut row = state.row(ino, || {
            self.known_name(state, ino).or(Some((dir, Box::from(name))))
        })?;
        if row.kind == Kind::Directory {
            return Err(Errno::EPERM.into());
        }
        row.nlink = row.nlink.checked_add(1).ok_or(Errno::EMLINK)?;
        let now = Timestamp::now();
        row.ctime = now;
        touch(&mut parent, now);
        self.change(
            state,
            &[
                RowChange::put_inode(ino, row.clone()),
                RowChange::put_entry(dir, name, Some(ino)),
                RowChange::put_inode(dir, parent),
            ],
        )?;
        state.row_attr(ino, &row)
    }

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
        self.change(state, &changes)?;
        if let Some(orphan) = orphan {
            state.orphans.insert(ino, orphan);
        }
        self.finish_removal(state, ino, dir, name, remains)
    }

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
        let content_moves = is_dir
            || row
                .place
                .as_ref()
                .is_none_or(|p| p.0 == dir && *p.1 == *name);
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

        // Step 1: the directory that content will move to. Asked for by the old rows, which are still
        // true; it stays true because neither end is inside the other.
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
            Some(state.make_dir(new_dir)?)
        } else {
            state.find_dir(new_dir)?
        };
        // Step 2.
        self.change(state, &changes)?;
        // Step 3. The replaced object's content first, then the renamed one's.
        if let Some((other, (what, orphan))) = remains {
            if let Some(orphan) = orphan {
                state.orphans.insert(other, orphan);
            }
            self.finish_removal(state, other, new_dir, new_name, what)?;
        }
        if let (Some(from), Some(to)) = (&from, &to) {
            state
                .upper
                .rename((from.as_fd(), name), (to.as_fd(), new_name))?;
            self.note_unsynced(dir);
            self.note_unsynced(new_dir);
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
            let here = row
                .place
                .as_ref()
                .is_none_or(|p| p.0 == from.2 && *p.1 == *from.3);
            let placed = row.place.is_some();
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
            Some((state.make_dir(a.2)?, state.make_dir(b.2)?))
        } else {
            None
        };
        self.change(state, &changes)?;
        if let Some((dir_a, dir_b)) = dirs {
            match (physical_a, physical_b) {
                (true, true) => state
                    .upper
                    .exchange((dir_a.as_fd(), a.3), (dir_b.as_fd(), b.3))?,
                (true, false) => drop(
                    state
                        .upper
                        .rename((dir_a.as_fd(), a.3), (dir_b.as_fd(), b.3))?,
                ),
                (false, _) => drop(
                    state
                        .upper
                        .rename((dir_b.as_fd(), b.3), (dir_a.as_fd(), a.3))?,
                ),
            }
            self.note_unsynced(a.2);
            self.note_unsynced(b.2);
        }
        Ok(())
    }

    /// Adds to `changes` what the object's row becomes when it loses the name `(dir, name)`.
    fn drop_name(
        &self,
        state: &State,
        ino: Ino,
        dir: Ino,
        name: &[u8],
        now: Timestamp,
        changes: &mut Vec<RowChange<'_>>,
    ) -> Result<(Remains, Option<Orphan>)> {
        let mut row = state.row(ino, || None)?;
        let lies_here = row.data == DataPlace::Upper
            && row
                .place
                .as_ref()
                .is_some_and(|p| p.0 == dir && *p.1 == *name);
        row.ctime = now;
        if row.kind != Kind::Directory && row.nlink > 1 {
            row.nlink -= 1;
            let remains = if lies_here {
                Remains::Detach
            } else {
                Remains::Nothing
            };
            if row
                .place
                .as_ref()
                .is_some_and(|p| p.0 == dir && *p.1 == *name)
            {
                row.place = None;
            }
            changes.push(RowChange::put_inode(ino, row));
            return Ok((remains, None));
        }
        row.nlink = 0;
        let had_row = matches!(state.standing(ino), Standing::Row(_));
        let orphan = if self.nodes.is_held(ino) {
            let file = match row.data {
                // Opened while it still has its name.
                DataPlace::Upper if row.kind == Kind::File => Some(state.file(ino, &row)?),
                DataPlace::Lower if row.kind == Kind::File => {
                    let layer = state.lower.content(ino)?;
                    if let Some(frozen) = layer.as_any().downcast_ref::<FrozenLayer>() {
                        // A commit may remove the layer's files while this is still being read.
                        frozen.pin(ino)?;
                    }
                    None
                }
                _ => None,
            };
            let xattrs = if row.owns_xattrs {
                state.delta.xattrs.get(&ino).cloned().unwrap_or_default()
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
            if row.owns_xattrs && state.delta.xattrs.contains_key(&ino) {
                changes.push(RowChange::DropXattrs(ino));
            }
        }
        if row.kind == Kind::Directory {
            if state.delta.dirs.contains_key(&ino) {
                // Whiteouts in it hide nothing any more: nobody reaches this identity again.
                changes.push(RowChange::DropEntriesOf(ino));
            }
            return Ok((Remains::RemoveDir, orphan));
        }
        let remains = match (row.data, row.place.is_some()) {
            (DataPlace::Upper, true) if lies_here => Remains::Remove,
            (DataPlace::Upper, false) => {
                // Detached content of a hard link: it lies in `work` under its identity.
                Remains::Remove
            }
            _ => Remains::Nothing,
        };
        Ok((remains, orphan))
    }

    /// Step 3 of a removal. The rows are changed: failing here loses nothing, and is not the caller's
    /// failure either; what is left over is set aside at the next unclean start.
    fn finish_removal(
        &self,
        state: &mut State,
        ino: Ino,
        dir: Ino,
        name: &[u8],
        remains: Remains,
    ) -> Result<()> {
        let done = (|| -> Result<()> {
            match remains {
                Remains::Nothing => {}
                Remains::Remove | Remains::Detach | Remains::RemoveDir => {
                    let physical = state.find_dir(dir)?;
                    match (remains, physical) {
                        (Remains::Remove, physical) => {
                            state.upper.unstage(ino)?;
                            if let Some(physical) = physical {
                                state.upper.remove(physical.as_fd(), name)?;
                            }
                            state.upper.forget_file(ino);
                        }
                        (Remains::Detach, Some(physical)) => {
                            state.upper.detach(physical.as_fd(), name, ino)?
                        }
                        (Remains::RemoveDir, Some(physical)) => {
                            state.upper.remove_dir(physical.as_fd(), name, ino)?
                        }
                        _ => {}
                    }
                }
            }
            Ok(())
        })();
        if let Err(e) = done {
            tracing::warn!(%ino, "content of a removed name is left in the upper directory: {e}");
        }
        Ok(())
    }

    fn must_be_empty(&self, state: &State, dir: Ino) -> Result<()> {
        let edits = state.delta.dirs.get(&dir);
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

    /// Finds a name of a lower object that is not a directory: the kernel found it somewhere.
    pub(super) fn known_name(&self, state: &State, ino: Ino) -> Option<(Ino, Box<[u8]>)> {
        let dir = self.nodes.parent(ino)?;
        if let Some(edits) = state.delta.dirs.get(&dir)
            && let Some((name, _)) = edits.iter().find(|(_, target)| *target == Some(ino))
        {
            return Some((dir, Box::from(name)));
        }
        let listing = state.lower.list(dir).ok()?;
        let (name, _, _) = listing.iter().find(|(name, at, _)| {
            *at == ino
                && state
                    .delta
                    .dirs
                    .get(&dir)
                    .and_then(|edits| edits.get(name))
                    .is_none()
        })?;
        Some((dir, Box::from(name)))
    }
}

impl State {
    /// The row of a directory that still has a name, in which therefore names may be made.
    fn live_dir_row(&self, dir: Ino) -> Result<InodeRow> {
        if self.orphans.contains_key(&dir) {
            return Err(Errno::ENOENT.into());
        }
        self.dir_row(dir)
    }

    fn must_be_missing(&self, dir: Ino, name: &[u8]) -> Result<()> {
        match self.lookup(dir, name)? {
            Some(_) => Err(Errno::EEXIST.into()),
            None => Ok(()),
        }
    }

    /// The change that makes a name go away.
    pub(super) fn hide<'n>(&self, dir: Ino, name: &'n [u8]) -> Result<RowChange<'n>> {
        Ok(match self.lower.lookup(dir, name)? {
            Some(_) => RowChange::put_entry(dir, name, None),
            None => RowChange::drop_entry(dir, name),
        })
    }

    /// The change that makes a name show an object.
    fn show<'n>(&self, dir: Ino, name: &'n [u8], ino: Ino) -> Result<RowChange<'n>> {
        Ok(match self.lower.lookup(dir, name)? {
            // Back where it is from.
            Some(below) if below == ino => RowChange::drop_entry(dir, name),
            _ => RowChange::put_entry(dir, name, Some(ino)),
        })
    }

    fn has_physical(&self, dir: Ino, name: &[u8]) -> Result<bool> {
        let Some(parent) = self.find_dir(dir)? else {
            return Ok(false);
        };
        Ok(self.upper.backing_ino(parent.as_fd(), name).is_ok())
    }
}

fn touch(dir: &mut InodeRow, now: Timestamp) {
    dir.mtime = now;
    dir.ctime = now;
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0)
    {
        return Err(Error::Posix(Errno::EINVAL));
    }
    Ok(())
}
