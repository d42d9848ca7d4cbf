//! Creating objects, and adding names to them.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::delta::row_attr;
use super::privileges::S_ISGID;
use super::{Error, Lookup, Presence, Result, State, Union, created_into};
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::state::{DataPlace, InodeRow, RowChange};

/// The credentials of the process that creates an object.
#[derive(Debug, Clone, Copy)]
pub struct Creator {
    /// The owner of the object.
    pub uid: u32,
    /// Its group, unless the directory has the set-group-id bit.
    pub gid: u32,
}

/// What to create, as in `mknod(2)`, `mkdir(2)` and `symlink(2)`.
#[derive(Debug, Clone, Copy)]
pub struct NewObject<'a> {
    /// The kind of the object.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// The number of a device, else 0.
    pub rdev: u64,
    /// The target of a symbolic link, else `None`.
    pub target: Option<&'a [u8]>,
    /// The owner of the object.
    pub creator: Creator,
}

impl NewObject<'_> {
    /// Returns an object that is neither a device nor a symbolic link.
    pub fn new(kind: Kind, mode: u16, creator: Creator) -> NewObject<'static> {
        NewObject {
            kind,
            mode,
            rdev: 0,
            target: None,
            creator,
        }
    }
}

impl Union {
    /// Creates an object and returns its identity and attributes. `EEXIST` if the name exists.
    pub fn create(&self, dir: Ino, name: &[u8], new: &NewObject<'_>) -> Result<(Ino, Attr)> {
        self.with_space(|| self.try_create(dir, name, new))
    }

    fn try_create(&self, dir: Ino, name: &[u8], new: &NewObject<'_>) -> Result<(Ino, Attr)> {
        let NewObject {
            kind,
            mode,
            rdev,
            target,
            creator,
        } = *new;
        check_name(name)?;
        self.charge_object()?;
        let _gate = self.gate_shared();
        self.preload_name(dir, name)?;
        let ino = self.new_ino()?;
        let mut state = self.write();
        let state = &mut *state;
        state.check_missing(dir, name)?;
        let mut parent = state.live_dir_row(dir)?;
        // A file begins with the times of its backing file.
        let mut created = None;
        if kind == Kind::File {
            let physical = state.create_dir(dir)?;
            created = Some(state.upper.create_file(physical.as_fd(), name, ino, mode)?);
        }
        let now = match &created {
            Some(created) => Timestamp::at_creation(&created.metadata, parent.ctime),
            None => Timestamp::now(),
        };
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
        if let Some(created) = &created {
            row.data = DataPlace::Upper;
            row.backing_ino = created.identity;
        } else if let Some(target) = target {
            let physical = state.create_dir(dir)?;
            row.data = DataPlace::Upper;
            match state.upper.create_symlink(physical.as_fd(), name, target) {
                Ok(()) => {
                    row.backing_ino = state.upper.backing_ino(physical.as_fd(), name)?;
                }
                // XFS allows 1023 bytes. The link is only a copy of the row, for people who
                // inspect the upper directory.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENAMETOOLONG) => {
                    row.data = DataPlace::Lower;
                }
                Err(e) => return Err(e.into()),
            }
        }
        if created.is_some() || target.is_some() {
            state.note_unsynced(dir);
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
        let mut attr = row_attr(&row);
        if let Some(created) = created {
            if state.lower.lookup(dir, name)?.is_none() {
                self.removals.note_new(ino);
            }
            created_into(&mut attr, &created.metadata);
        }
        Ok((ino, attr))
    }

    /// Adds a name to an object and returns its attributes. `EPERM` if it is a directory.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Attr> {
        self.with_space(|| self.try_link(ino, dir, name))
    }

    fn try_link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let _gate = self.gate_shared();
        self.preload_name(dir, name)?;
        self.preload_object(ino)?;
        let mut state = self.write();
        let state = &mut *state;
        state.check_missing(dir, name)?;
        let mut parent = state.live_dir_row(dir)?;
        if matches!(state.presence(ino)?, Presence::Orphan(_)) {
            // linkat(AT_EMPTY_PATH) of an unlinked file is ENOENT on Linux.
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
        self.removals.forget_new(ino);
        state.row_attr(ino, &row)
    }

    /// Reads a name and its object from the lower layers before the `state` lock is taken, so that
    /// reading them again under the lock finds them in the caches. The caller holds the gate, so
    /// the lower layers do not change. Returns the object.
    pub(super) fn preload_name(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let (lower, in_rows) = {
            let state = self.read();
            (state.lower.clone(), state.delta.lookup(dir, name)?)
        };
        if lower.attr(dir)?.is_some() {
            match lower.chain(dir) {
                Ok(_) | Err(Error::Posix(Errno::ESTALE)) => {}
                Err(e) => return Err(e),
            }
        }
        let below = lower.lookup(dir, name)?;
        let found = match in_rows {
            Lookup::Found(ino) => Some(ino),
            Lookup::Whiteout => None,
            Lookup::Unknown => below,
        };
        if let Some(ino) = found
            && let Some(attr) = lower.attr(ino)?
        {
            if attr.kind == Kind::Symlink {
                lower.read_link(ino)?;
            }
            if self.nodes.is_held(ino) {
                lower.xattrs(ino)?;
            }
        }
        Ok(found)
    }

    /// Like [`preload_name`](Self::preload_name), for an object that is about to be changed.
    pub(super) fn preload_object(&self, ino: Ino) -> Result<()> {
        let (lower, has_row) = {
            let state = self.read();
            match state.presence(ino)? {
                Presence::Lower => (state.lower.clone(), false),
                // Its size is in a lower layer.
                Presence::Row(row) if row.data != DataPlace::Upper => (state.below(row), true),
                Presence::Row(_) | Presence::Orphan(_) => return Ok(()),
            }
        };
        let attr = lower.attr(ino)?;
        let Some(attr) = attr.filter(|_| !has_row) else {
            return Ok(());
        };
        match attr.kind {
            Kind::Directory => drop(lower.parent(ino)?),
            Kind::Symlink => drop(lower.read_link(ino)?),
            _ => {}
        }
        match self.nodes.parent(ino) {
            Some(dir) if attr.kind != Kind::Directory => {
                let mut above = Ino::ROOT;
                // Fails if the directory was removed meanwhile.
                for (ino, name) in lower.chain(dir).unwrap_or_default() {
                    lower.lookup(above, &name)?;
                    above = ino;
                }
                self.preload_listing(dir)
            }
            _ => Ok(()),
        }
    }

    /// Like [`preload_name`](Self::preload_name), for the listing of a directory.
    pub(super) fn preload_listing(&self, dir: Ino) -> Result<()> {
        let lower = self.lower();
        let attr = lower.attr(dir)?;
        if attr.is_some_and(|attr| attr.kind == Kind::Directory) {
            lower.list(dir)?;
        }
        Ok(())
    }

    /// Returns the row of an object that is about to be changed. A new row gets the place of the
    /// object.
    pub(super) fn row_to_change(&self, state: &State, ino: Ino) -> Result<InodeRow> {
        let place = match state.presence(ino)? {
            Presence::Lower if state.kind(ino)? == Kind::Directory => state.parent(ino)?,
            Presence::Lower => self.known_name(state, ino),
            _ => None,
        };
        state.row(ino, || place)
    }

    /// Returns a name of a lower object that is not a directory, in the directory in which the
    /// kernel looked it up.
    pub(super) fn known_name(&self, state: &State, ino: Ino) -> Option<(Ino, Box<[u8]>)> {
        let dir = self.nodes.parent(ino)?;
        state.name_in(dir, ino).ok().flatten()
    }
}

impl State {
    /// Returns the row of a directory. `ENOENT` if it was removed, so that no names can be created
    /// in it.
    pub(super) fn live_dir_row(&self, dir: Ino) -> Result<InodeRow> {
        if self.orphans.contains_key(&dir) {
            return Err(Errno::ENOENT.into());
        }
        self.dir_row(dir)
    }

    /// Returns a name that an object without a row has in a directory.
    pub(super) fn name_in(&self, dir: Ino, ino: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        // The directory may have been removed; layers below a frozen one still list it.
        if !self.is_reachable(dir)? {
            return Ok(None);
        }
        let edits = self.delta.dir(dir)?;
        let own = edits.and_then(|edits| edits.iter().find(|(_, target)| *target == Some(ino)));
        if let Some((name, _)) = own {
            return Ok(Some((dir, Box::from(name))));
        }
        let listing = self.lower.list(dir)?;
        let is_shown = |name| edits.and_then(|edits| edits.get(name)).is_none();
        let below = listing
            .iter()
            .find(|(name, at, _)| *at == ino && is_shown(name));
        Ok(below.map(|(name, _, _)| (dir, Box::from(name))))
    }

    /// `EEXIST` if the name exists.
    fn check_missing(&self, dir: Ino, name: &[u8]) -> Result<()> {
        match self.lookup(dir, name)? {
            Some(_) => Err(Errno::EEXIST.into()),
            None => Ok(()),
        }
    }

    /// Returns the change that removes a name.
    pub(super) fn unlink_change<'n>(&self, dir: Ino, name: &'n [u8]) -> Result<RowChange<'n>> {
        Ok(match self.lower.lookup(dir, name)? {
            Some(_) => RowChange::put_entry(dir, name, None),
            None => RowChange::drop_entry(dir, name),
        })
    }

    /// Returns the change that links a name to an object.
    pub(super) fn link_change<'n>(
        &self,
        dir: Ino,
        name: &'n [u8],
        ino: Ino,
    ) -> Result<RowChange<'n>> {
        Ok(match self.lower.lookup(dir, name)? {
            // The link is in the lower layers.
            Some(below) if below == ino => RowChange::drop_entry(dir, name),
            _ => RowChange::put_entry(dir, name, Some(ino)),
        })
    }
}

/// Sets the times of a directory in which a name has changed.
pub(super) fn touch(dir: &mut InodeRow, now: Timestamp) {
    dir.mtime = now;
    dir.ctime = now;
}

/// Refuses names that a directory cannot have.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0)
    {
        return Err(Error::Posix(Errno::EINVAL));
    }
    Ok(())
}
