//! Attributes: mode, owner, times, size, and extended attributes.

use nix::errno::Errno;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use super::content::{has_file, time_spec, without_privileges};
use super::delta::Xattrs;
use super::{Result, Standing, Union};
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::state::{InodeRow, RowChange};

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
    /// Whether a change of size takes set-id bits away (the caller has no `CAP_FSETID`).
    pub kill_privileges: bool,
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
            self.truncate(ino, size)?;
            if set.kill_privileges {
                self.kill_privileges(ino)?;
            }
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
        let now = Timestamp::now();
        let mut state = self.write();
        let state = &mut *state;
        if let Some(orphan) = state.orphans.get_mut(&ino) {
            if let Some(file) = &orphan.file {
                set_file_times(file, set)?;
            }
            set_row(&mut orphan.row, set, now);
            return orphan.attr(ino);
        }
        let place = match state.kind(ino)? {
            Kind::Directory => state.parent(ino)?,
            _ => self.known_name(state, ino),
        };
        let mut row = state.row(ino, || place)?;
        set_row(&mut row, set, now);
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
        self.change(state, &[RowChange::put_inode(ino, row.clone())])?;
        state.row_attr(ino, &row)
    }

    fn with_xattrs<T>(&self, ino: Ino, f: impl FnOnce(&Xattrs) -> Result<T>) -> Result<T> {
        let state = self.read();
        let lower = match state.standing(ino) {
            Standing::Row(row) if row.owns_xattrs => {
                return match state.delta.xattrs.get(&ino) {
                    Some(own) => f(own),
                    None => f(&Xattrs::new()),
                };
            }
            Standing::Orphan(orphan) => return f(&orphan.xattrs),
            Standing::Row(_) | Standing::Lower => state.lower.clone(),
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

    /// Returns the names of all extended attributes, each ended by a NUL, as `listxattr` wants them.
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
        check_namespace(name)?;
        let exists = match self.xattr(ino, name) {
            Ok(_) => true,
            Err(super::Error::Posix(Errno::ENODATA)) => false,
            Err(e) => return Err(e),
        };
        match (mode, exists) {
            (XattrMode::Create, true) => return Err(Errno::EEXIST.into()),
            (XattrMode::Replace, false) => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        let put = RowChange::put_xattr(ino, name, value);
        self.change_xattrs(ino, put, |own| {
            own.insert(Box::from(name), Box::from(value));
        })
    }

    /// Removes an extended attribute, `ENODATA` if there is none.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.xattr(ino, name)?;
        let drop = RowChange::drop_xattr(ino, name);
        self.change_xattrs(ino, drop, |own| {
            own.remove(name);
        })
    }

    /// Applies one change to an object's attributes, which become its own if they were a lower layer's.
    fn change_xattrs(
        &self,
        ino: Ino,
        last: RowChange<'_>,
        in_memory: impl FnOnce(&mut Xattrs),
    ) -> Result<()> {
        let _gate = self.gate_shared();
        let mut state = self.write();
        let state = &mut *state;
        if let Some(orphan) = state.orphans.get_mut(&ino) {
            in_memory(&mut orphan.xattrs);
            return Ok(());
        }
        let place = match state.kind(ino)? {
            Kind::Directory => state.parent(ino)?,
            _ => self.known_name(state, ino),
        };
        let mut row = state.row(ino, || place)?;
        let mut changes = Vec::new();
        if !row.owns_xattrs {
            for (name, value) in state.lower.xattrs(ino)? {
                changes.push(RowChange::put_xattr(ino, name.into_vec(), value.into_vec()));
            }
            row.owns_xattrs = true;
        }
        row.ctime = Timestamp::now();
        changes.push(RowChange::put_inode(ino, row));
        changes.push(last);
        self.change(state, &changes)
    }
}

/// Only namespaces that an image can keep exist: what could not be committed is refused at once.
fn check_namespace(name: &[u8]) -> Result<()> {
    let known = [&b"user."[..], b"trusted.", b"security."];
    if known
        .iter()
        .any(|prefix| name.starts_with(prefix) && name.len() > prefix.len())
    {
        Ok(())
    } else {
        Err(Errno::EOPNOTSUPP.into())
    }
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
