//! Set-id bits and file capabilities, which a change of content or owner clears.

use super::xattrs::take_xattrs;
use super::{Presence, Result, State, Union, Xattr};
use crate::object::{Ino, Timestamp};
use crate::state::{InodeRow, RowChange};

pub(super) const S_ISUID: u16 = 0o4000;
pub(super) const S_ISGID: u16 = 0o2000;

/// The attribute with file capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// What a change of content does to the set-id bits of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetIdBits {
    /// Keeps them: the caller has `CAP_FSETID`.
    #[default]
    Keep,
    /// Clears them.
    Clear,
}

impl SetIdBits {
    /// Returns [`SetIdBits::Clear`] if `is_cleared`, as in FUSE's flag `FUSE_WRITE_KILL_SUIDGID`.
    pub fn clear_if(is_cleared: bool) -> SetIdBits {
        match is_cleared {
            true => SetIdBits::Clear,
            false => SetIdBits::Keep,
        }
    }
}

impl Union {
    /// Clears the file capability, and the set-id bits according to `set_id`. Must be called before
    /// the content changes, so that new content never has the privileges of the old. The file must
    /// have been copied up, which has cleared a capability from the lower layers.
    pub(super) fn kill_privileges(&self, ino: Ino, set_id: SetIdBits) -> Result<()> {
        let mode_after = |mode| match set_id {
            SetIdBits::Clear => without_privileges(mode),
            SetIdBits::Keep => mode,
        };
        {
            let state = self.read();
            let (row, xattrs) = match state.presence(ino)? {
                Presence::Row(row) => (row, state.delta.xattrs(ino)?),
                Presence::Orphan(orphan) => (&orphan.row, Some(&orphan.xattrs)),
                Presence::Lower => return Ok(()),
            };
            let has_capability = xattrs.is_some_and(|all| all.contains_key(CAPABILITY));
            if mode_after(row.mode) == row.mode && !has_capability {
                return Ok(());
            }
        }
        let mut state = self.write();
        let state = &mut *state;
        if let Some(orphan) = state.orphans.get_mut(&ino) {
            orphan.row.mode = mode_after(orphan.row.mode);
            orphan.xattrs.remove(CAPABILITY);
            return Ok(());
        }
        let mut row = state.row(ino, || None)?;
        let mut changes = Vec::new();
        state.drop_capability(ino, &mut row, None, &mut changes)?;
        row.mode = mode_after(row.mode);
        row.ctime = Timestamp::now();
        changes.push(RowChange::put_inode(ino, row));
        self.change(state, &changes)
    }
}

impl State {
    /// Adds the changes that clear the capability of an object whose row the caller is about to
    /// write. `below` is the result of [`Union::xattrs_below`].
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

/// Clears the set-id bits of a mode like the kernel: set-group-id only with group execute
/// permission.
pub(super) fn without_privileges(mode: u16) -> u16 {
    let mut mode = mode & !S_ISUID;
    if mode & 0o010 != 0 {
        mode &= !S_ISGID;
    }
    mode
}
