//! Attributes: mode, owner, times, size, and extended attributes.

use nix::errno::Errno;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use super::content::{has_file, time_spec, without_privileges};
use super::delta::Xattrs;
use super::{Presence, Result, SetIdBits, State, Union, Xattr};
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::state::{InodeRow, RowChange};

/// The attribute with file capabilities, which a change of content or owner takes away.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// The names and values of one object together take no more bytes than this. They live in memory,
/// and a commit writes each object's as one piece.
const XATTRS_LIMIT: usize = 1 << 20;

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This time.
    To(Timestamp),
}

/// What to set; `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission, set-id and sticky bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a regular file.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<SetTime>,
    /// Time of last change of content.
    pub mtime: Option<SetTime>,
    /// What a change of size does to set-id bits.
    pub set_id: SetIdBits,
}

/// How `setxattr` treats an attribute that exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Make or replace.
    Either,
    /// Make only: `EEXIST`.
    Create,
    /// Replace only: `ENODATA`.
    Replace,
}

impl Union {
    /// Sets attributes. Only a change of size moves content.
    pub fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let _gate = self.gate_shared();
        if let Some(size) = set.size {
            self.truncate(ino, size, set.set_id)?;
        }
        let other = set.mode.is_some()
            || set.uid.is_some()
            || set.gid.is_some()
            || set.atime.is_some()
            || set.mtime.is_some();
        if !other {
            drop(_gate);
            return self.attr(ino);
        }
        self.preload_object(ino)?;
        let owner_changes = set.uid.is_some() || set.gid.is_some();
        let below = if owner_changes {
            self.xattrs_below(ino)?
        } else {
            None
        };
        let now = Timestamp::now();
        let mut state = self.write();
        let state = &mut *state;
        if let Some(orphan) = state.orphans.get_mut(&ino) {
            if let Some(file) = &orphan.file {
                set_file_times(file, set)?;
            }
            set_row(&mut orphan.row, set, now);
            if owner_changes && orphan.row.kind != Kind::Directory {
                orphan.xattrs.remove(CAPABILITY);
            }
            return orphan.attr(ino);
        }
        let mut row = self.row_to_change(state, ino)?;
        set_row(&mut row, set, now);
        let mut changes = Vec::new();
        if owner_changes && row.kind != Kind::Directory {
            state.drop_capability(ino, &mut row, below, &mut changes)?;
        }
        if has_file(&row) {
            let file = state.file(ino, &row)?;
            set_file_times(&file, set)?;
            if set.mode.is_some()
                && let Err(e) = nix::sys::stat::fchmod(&*file, crate::upper::backing_mode(row.mode))
            {
                // For people who look; the row is what counts.
                tracing::debug!(%ino, "mode of a backing file: {e}");
            }
        }
        changes.push(RowChange::put_inode(ino, row.clone()));
        self.change(state, &changes)?;
        state.row_attr(ino, &row)
    }

    fn with_xattrs<T>(&self, ino: Ino, f: impl FnOnce(&Xattrs) -> Result<T>) -> Result<T> {
        let state = self.read();
        let lower = match state.presence(ino)? {
            Presence::Row(row) if row.owns_xattrs => {
                return match state.delta.xattrs(ino)? {
                    Some(own) => f(own),
                    None => f(&Xattrs::new()),
                };
            }
            Presence::Orphan(orphan) => return f(&orphan.xattrs),
            Presence::Row(_) | Presence::Lower => state.lower.clone(),
        };
        drop(state);
        f(&lower.xattrs(ino)?.into_iter().collect())
    }

    /// Returns the value of an extended attribute, `ENODATA` if there is none.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Box<[u8]>> {
        check_namespace(name)?;
        self.with_xattrs(ino, |all| {
            all.get(name).cloned().ok_or_else(|| Errno::ENODATA.into())
        })
    }

    /// Returns the names of all extended attributes, each ended by a NUL, as `listxattr` wants
    /// them.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>> {
        self.with_xattrs(ino, |all| {
            let mut names = Vec::new();
            for name in all.keys() {
                names.extend_from_slice(name);
                names.push(0);
            }
            Ok(names)
        })
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.change_xattr(ino, name, Some(value), |exists| match (mode, exists) {
            (XattrMode::Create, true) => Err(Errno::EEXIST),
            (XattrMode::Replace, false) => Err(Errno::ENODATA),
            _ => Ok(()),
        })
    }

    /// Removes an extended attribute, `ENODATA` if there is none.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.change_xattr(ino, name, None, |exists| match exists {
            true => Ok(()),
            false => Err(Errno::ENODATA),
        })
    }

    /// The extended attributes that an object has by the layers below; `None` where it has its own.
    /// The caller holds the gate: so long they stay the same.
    pub(super) fn xattrs_below(&self, ino: Ino) -> Result<Option<Vec<Xattr>>> {
        let lower = {
            let state = self.read();
            match state.presence(ino)? {
                Presence::Row(row) if row.owns_xattrs => return Ok(None),
                Presence::Orphan(_) => return Ok(None),
                Presence::Row(_) | Presence::Lower => state.lower.clone(),
            }
        };
        Ok(Some(lower.xattrs(ino)?))
    }

    /// Sets or removes one attribute, if `may` agrees, which is told whether it exists. The
    /// object's attributes become its own if they were a lower layer's.
    fn change_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        may: impl FnOnce(bool) -> Result<(), Errno>,
    ) -> Result<()> {
        check_namespace(name)?;
        let _gate = self.gate_shared();
        self.preload_object(ino)?;
        let below = self.xattrs_below(ino)?;
        let mut state = self.write();
        let state = &mut *state;
        if let Some(orphan) = state.orphans.get_mut(&ino) {
            may(orphan.xattrs.contains_key(name))?;
            check_size(&orphan.xattrs, name, value)?;
            match value {
                Some(value) => drop(orphan.xattrs.insert(Box::from(name), Box::from(value))),
                None => drop(orphan.xattrs.remove(name)),
            }
            orphan.row.ctime = Timestamp::now();
            return Ok(());
        }
        let mut row = self.row_to_change(state, ino)?;
        if row.owns_xattrs {
            let own = state.delta.xattrs(ino)?;
            may(own.is_some_and(|all| all.contains_key(name)))?;
            check_size(own.into_iter().flatten(), name, value)?;
        } else {
            may(below.iter().flatten().any(|(known, _)| **known == *name))?;
            let below = below.iter().flatten();
            check_size(below.map(|(name, value)| (name, value)), name, value)?;
        }
        let mut changes = Vec::new();
        take_xattrs(ino, &mut row, below, &mut changes);
        row.ctime = Timestamp::now();
        changes.push(RowChange::put_inode(ino, row));
        changes.push(match value {
            Some(value) => RowChange::put_xattr(ino, name, value),
            None => RowChange::drop_xattr(ino, name),
        });
        self.change(state, &changes)
    }
}

impl State {
    /// Takes a capability away from an object whose row is about to be written. `below` is what
    /// [`Union::xattrs_below`] said of it.
    pub(super) fn drop_capability(
        &self,
        ino: Ino,
        row: &mut InodeRow,
        below: Option<Vec<Xattr>>,
        changes: &mut Vec<RowChange<'_>>,
    ) -> Result<()> {
        let has = if row.owns_xattrs {
            let own = self.delta.xattrs(ino)?;
            own.is_some_and(|all| all.contains_key(CAPABILITY))
        } else {
            let mut below = below.iter().flatten();
            below.any(|(name, _)| **name == *CAPABILITY)
        };
        if has {
            take_xattrs(ino, row, below, changes);
            changes.push(RowChange::drop_xattr(ino, CAPABILITY));
        }
        Ok(())
    }
}

/// Makes the attributes that an object has by the layers below its own.
fn take_xattrs(
    ino: Ino,
    row: &mut InodeRow,
    below: Option<Vec<Xattr>>,
    changes: &mut Vec<RowChange<'_>>,
) {
    if !row.owns_xattrs {
        for (name, value) in below.into_iter().flatten() {
            changes.push(RowChange::put_xattr(ino, name.into_vec(), value.into_vec()));
        }
        row.owns_xattrs = true;
    }
}

/// Only namespaces that an image can keep exist: what could not be committed is refused at once.
fn check_namespace(name: &[u8]) -> Result<()> {
    let known = [&b"user."[..], b"trusted.", b"security."];
    match known.iter().find(|prefix| name.starts_with(prefix)) {
        Some(prefix) if name.len() > prefix.len() => Ok(()),
        Some(_) => Err(Errno::EINVAL.into()),
        None => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// Refuses what would make the attributes of an object larger, and larger than they may be.
fn check_size<'a>(
    all: impl IntoIterator<Item = (&'a Box<[u8]>, &'a Box<[u8]>)>,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let (mut others, mut before) = (0, 0);
    for (known, value) in all {
        let size = known.len() + value.len();
        match **known == *name {
            true => before = size,
            false => others += size,
        }
    }
    let after = name.len() + value.len();
    if after > before && others + after > XATTRS_LIMIT {
        return Err(Errno::ENOSPC.into());
    }
    Ok(())
}

fn set_row(row: &mut InodeRow, set: &SetAttr, now: Timestamp) {
    let owner_changes = set.uid.is_some() || set.gid.is_some();
    if owner_changes && row.kind != Kind::Directory {
        row.mode = without_privileges(row.mode);
    }
    if let Some(mode) = set.mode {
        row.mode = mode & 0o7777;
    }
    row.uid = set.uid.unwrap_or(row.uid);
    row.gid = set.gid.unwrap_or(row.gid);
    let resolve = |time: SetTime| match time {
        SetTime::Now => now,
        SetTime::To(time) => time,
    };
    row.atime = set.atime.map_or(row.atime, resolve);
    row.mtime = set.mtime.map_or(row.mtime, resolve);
    row.ctime = now;
}

fn set_file_times(file: &std::fs::File, set: &SetAttr) -> Result<()> {
    if set.atime.is_none() && set.mtime.is_none() {
        return Ok(());
    }
    let spec = |time: Option<SetTime>| match time {
        None => TimeSpec::UTIME_OMIT,
        Some(SetTime::Now) => TimeSpec::UTIME_NOW,
        Some(SetTime::To(time)) => time_spec(time),
    };
    Ok(futimens(file, &spec(set.atime), &spec(set.mtime))?)
}
