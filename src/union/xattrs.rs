//! Extended attributes.
//!
//! An object has those of the lower layers until one of them is changed. Then all become rows of
//! the writable layer (`owns_xattrs`).

use nix::errno::Errno;

use super::loaded::Xattrs;
use super::{Presence, Result, Union, Xattr};
use crate::object::{Ino, Timestamp};
use crate::state::{InodeRow, RowChange};

/// The maximum size of the names and values of one object together, in bytes. They are kept in
/// memory, and a commit writes those of an object at once.
const XATTRS_LIMIT: usize = 1 << 20;

/// The flags of `setxattr(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace the attribute.
    Either,
    /// Create it; `EEXIST` if it exists.
    Create,
    /// Replace it; `ENODATA` if it does not exist.
    Replace,
}

impl Union {
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

    /// Returns the value of an extended attribute. `ENODATA` if it does not exist.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Box<[u8]>> {
        check_namespace(name)?;
        self.with_xattrs(ino, |all| {
            all.get(name).cloned().ok_or_else(|| Errno::ENODATA.into())
        })
    }

    /// Returns the names of all extended attributes, each followed by a NUL, as `listxattr(2)`.
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
        self.with_space(|| {
            self.change_xattr(ino, name, Some(value), |exists| match (mode, exists) {
                (XattrMode::Create, true) => Err(Errno::EEXIST),
                (XattrMode::Replace, false) => Err(Errno::ENODATA),
                _ => Ok(()),
            })
        })
    }

    /// Removes an extended attribute. `ENODATA` if it does not exist.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.with_space(|| {
            self.change_xattr(ino, name, None, |exists| match exists {
                true => Ok(()),
                false => Err(Errno::ENODATA),
            })
        })
    }

    /// Returns the extended attributes of an object in the lower layers, or `None` if those of its
    /// row are valid. They do not change while the caller holds the gate.
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

    /// Sets or removes one attribute, if `check` permits it; `check` receives whether it exists.
    /// All attributes of the object become rows if they were in a lower layer.
    fn change_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        check: impl FnOnce(bool) -> Result<(), Errno>,
    ) -> Result<()> {
        check_namespace(name)?;
        let _gate = self.gate_shared();
        self.preload_object(ino)?;
        let below = self.xattrs_below(ino)?;
        let mut state = self.write();
        let state = &mut *state;
        if let Some(orphan) = state.orphans.get_mut(&ino) {
            check(orphan.xattrs.contains_key(name))?;
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
            check(own.is_some_and(|all| all.contains_key(name)))?;
            check_size(own.into_iter().flatten(), name, value)?;
        } else {
            check(below.iter().flatten().any(|(known, _)| **known == *name))?;
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

/// Adds rows for the attributes that an object has in the lower layers, unless its row has its own.
pub(super) fn take_xattrs(
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

/// Refuses namespaces that SquashFS cannot store, since a commit would lose the attribute.
fn check_namespace(name: &[u8]) -> Result<()> {
    let known = [&b"user."[..], b"trusted.", b"security."];
    match known.iter().find(|prefix| name.starts_with(prefix)) {
        Some(prefix) if name.len() > prefix.len() => Ok(()),
        Some(_) => Err(Errno::EINVAL.into()),
        None => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// Refuses an attribute with which all would exceed the limit, unless it makes them smaller.
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
