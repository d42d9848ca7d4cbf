//! Attributes: mode, owner, times and size.

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use super::delta::has_file;
use super::privileges::{CAPABILITY, S_ISGID, S_ISUID, SetIdBits, without_privileges};
use super::{Presence, Result, Union, time_spec};
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

/// The attributes to set. `None` leaves one unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission, set-id and sticky bits.
    pub mode: Option<u16>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The size of a regular file, in bytes.
    pub size: Option<u64>,
    /// The access time.
    pub atime: Option<SetTime>,
    /// The modification time.
    pub mtime: Option<SetTime>,
    /// What a change of size does to set-id bits.
    pub set_id: SetIdBits,
}

impl Union {
    /// Sets attributes and returns the new ones. Only a change of size copies content up.
    pub fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.with_space(|| self.try_set_attr(ino, set))
    }

    fn try_set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
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
                // The mode of the file is only for people who inspect it; the row decides.
                tracing::debug!(%ino, "cannot set the mode of a backing file: {e}");
            }
        }
        changes.push(RowChange::put_inode(ino, row.clone()));
        self.change(state, &changes)?;
        state.row_attr(ino, &row)
    }

    /// Clears the set-id bits that a change of content or owner clears if the caller has no
    /// `CAP_FSETID`: set-user-id, and set-group-id unless the group has no execute permission and
    /// the caller is a member of it, which `is_member` decides. Returns true if a bit was cleared.
    pub(crate) fn drop_set_id(
        &self,
        ino: Ino,
        is_member: impl FnOnce(u32) -> bool,
    ) -> Result<bool> {
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
