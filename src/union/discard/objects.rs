//! What becomes of the objects of a plan, whichever layer gets the rows.

use std::collections::HashMap;

use super::super::delta::row_from;
use super::super::difference::{Entry, is_committed_dir};
use super::super::stack::LowerStack;
use super::super::{Result, State};
use super::plan::Plan;
use crate::object::{Attr, Ino, Kind};
use crate::state::InodeRow;

/// The objects after a plan.
pub(super) struct Objects<'a> {
    pub(super) plan: &'a Plan,
    pub(super) state: &'a State,
    pub(super) base: &'a LowerStack,
    /// The places of committed objects in new directories.
    relinked: HashMap<Ino, &'a Entry>,
}

impl<'a> Objects<'a> {
    pub(super) fn new(plan: &'a Plan, state: &'a State, base: &'a LowerStack) -> Objects<'a> {
        let relinked = plan.relinked.iter();
        Objects {
            plan,
            state,
            base,
            relinked: relinked.map(|(entry, ino)| (*ino, entry)).collect(),
        }
    }

    /// Returns whether a committed object is in a new directory.
    pub(super) fn is_relinked(&self, ino: Ino) -> bool {
        self.relinked.contains_key(&ino)
    }

    /// Returns the row of a directory that stays, new or committed; `None` if it is as committed.
    pub(super) fn directory(
        &self,
        ino: Ino,
        mut row: InodeRow,
        before: Option<Attr>,
    ) -> Result<Option<InodeRow>> {
        let (plan, edits) = (self.plan, &self.plan.edits);
        for (_, name) in edits
            .within(ino)
            .filter(|(at, _)| plan.removed.contains(*at))
        {
            if let Some(target) = name.target
                && self.state.kind(target)? == Kind::Directory
            {
                row.nlink = row.nlink.saturating_sub(1);
            }
            if let Some(below) = name.below
                && is_committed_dir(self.base, below)?
            {
                row.nlink += 1;
            }
        }
        let Some(before) = before else {
            return Ok(Some(row));
        };
        if plan.lost_names.contains_key(&ino) {
            row.place = self.directory_place(ino)?;
        }
        let has_edits = edits.within(ino).any(|(at, _)| !plan.removed.contains(at));
        if plan.reset.contains(&ino) {
            (row.mode, row.uid, row.gid) = (before.mode, before.uid, before.gid);
            row.owns_xattrs = false;
            if !has_edits {
                (row.atime, row.mtime, row.ctime) = (before.atime, before.mtime, before.ctime);
            }
        }
        let is_same = (row.mode, row.uid, row.gid) == (before.mode, before.uid, before.gid);
        let is_at_committed_place = ino == Ino::ROOT || row.place == self.base.parent(ino)?;
        let is_committed = !has_edits && is_same && !row.owns_xattrs && is_at_committed_place;
        Ok((!is_committed).then_some(row))
    }

    /// Returns the link count of an object that is not a directory. An object without a row that
    /// changes has lost all its names.
    pub(super) fn nlink(&self, ino: Ino, row: Option<&InodeRow>) -> u32 {
        let count = |names: &HashMap<Ino, u32>| names.get(&ino).copied().unwrap_or(0);
        (row.map_or(0, |row| row.nlink) + count(&self.plan.restored_names))
            .saturating_sub(count(&self.plan.lost_names))
    }

    /// Returns the row of an object as it was committed.
    pub(super) fn committed_row(&self, ino: Ino, before: &Attr) -> Result<InodeRow> {
        let target = match before.kind {
            Kind::Symlink => Some(self.base.read_link(ino)?),
            _ => None,
        };
        let place = match before.kind {
            Kind::Directory => self.directory_place(ino)?,
            _ => None,
        };
        Ok(row_from(before, target, place))
    }

    /// Returns where a committed directory is that has its committed name.
    fn directory_place(&self, ino: Ino) -> Result<Option<Entry>> {
        match self.relinked.get(&ino) {
            Some(place) => Ok(Some((*place).clone())),
            None => self.base.parent(ino),
        }
    }
}
