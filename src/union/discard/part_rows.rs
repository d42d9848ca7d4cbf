//! The rows of a layer in which only a part of the changes stays.

use std::collections::{HashMap, HashSet};

use super::super::delta::{Delta, row_attr, row_from};
use super::super::difference::{Entry, is_committed_dir};
use super::super::stack::LowerStack;
use super::super::{Result, State};
use super::plan::Plan;
use crate::object::{Attr, Ino, Kind};
use crate::state::{DataPlace, InodeRow, RowChange};

/// Returns the changes of rows that a plan requires. The rows are those of one layer over `base`.
pub(super) fn changes_of(
    plan: &Plan,
    own: &Delta,
    state: &State,
    base: &LowerStack,
) -> Result<Vec<RowChange<'static>>> {
    let is_written = |(dir, name): &Entry| {
        // All rows were read to make the plan.
        let entries = own.dir(*dir).ok().flatten();
        entries.is_some_and(|entries| entries.get(name).is_some())
    };
    let kept = plan
        .edits
        .rows()
        .filter(|(entry, _)| !plan.removed.contains(*entry) && is_written(entry));
    let kept = kept.filter_map(|(_, row)| row.target);
    let mut changes = Changes {
        plan,
        state,
        base,
        named: kept.chain(plan.relinked.values().copied()).collect(),
        relinked: plan
            .relinked
            .iter()
            .map(|(entry, ino)| (*ino, entry))
            .collect(),
        rows: Vec::new(),
    };
    for entry in &plan.removed {
        let (dir, name) = (entry.0, entry.1.to_vec());
        if let Some(ino) = plan.relinked.get(entry) {
            changes
                .rows
                .push(RowChange::put_entry(dir, name, Some(*ino)));
        } else if is_written(entry) {
            changes.rows.push(RowChange::drop_entry(dir, name));
        }
    }
    for ino in plan.touched() {
        let row = own.inode(ino)?;
        if plan.deleted.contains(&ino) {
            if let Some(row) = row {
                changes.delete(ino, row);
            }
            continue;
        }
        match (row, base.attr(ino)?) {
            (Some(row), before) if row.kind == Kind::Directory => {
                changes.update_directory(ino, row, before)?;
            }
            // Restored with all its content.
            (None, Some(before)) if before.kind == Kind::Directory => {
                if let Some(place) = changes.relinked.get(&ino) {
                    let row = row_from(&before, None, Some((*place).clone()));
                    changes.rows.push(RowChange::put_inode(ino, row));
                }
            }
            (row, Some(before)) if plan.reset.contains(&ino) => {
                changes.reset(ino, row, &before)?;
            }
            (Some(row), before) => changes.update_names(ino, row, before.as_ref())?,
            (None, Some(before)) => changes.reset(ino, None, &before)?,
            (None, None) => {}
        }
    }
    Ok(changes.rows)
}

struct Changes<'a> {
    plan: &'a Plan,
    state: &'a State,
    base: &'a LowerStack,
    /// Objects with names in the writable layer afterwards. They need a row, because it has their
    /// kind.
    named: HashSet<Ino>,
    /// The places of committed objects in new directories.
    relinked: HashMap<Ino, &'a Entry>,
    rows: Vec<RowChange<'static>>,
}

impl Changes<'_> {
    /// Removes the rows of a new object that loses its last name.
    fn delete(&mut self, ino: Ino, row: &InodeRow) {
        self.rows.push(RowChange::DropInode(ino));
        self.rows.push(RowChange::DropXattrs(ino));
        if row.kind == Kind::Directory {
            self.rows.push(RowChange::DropEntriesOf(ino));
        }
    }

    /// Updates the row of a directory that stays, new or committed.
    fn update_directory(&mut self, ino: Ino, row: &InodeRow, before: Option<Attr>) -> Result<()> {
        let (plan, edits) = (self.plan, &self.plan.edits);
        let mut new = row.clone();
        for (_, name) in edits
            .within(ino)
            .filter(|(at, _)| plan.removed.contains(*at))
        {
            if let Some(target) = name.target
                && self.state.kind(target)? == Kind::Directory
            {
                new.nlink = new.nlink.saturating_sub(1);
            }
            if let Some(below) = name.below
                && is_committed_dir(self.base, below)?
            {
                new.nlink += 1;
            }
        }
        let Some(before) = before else {
            self.rows.push(RowChange::put_inode(ino, new));
            return Ok(());
        };
        let committed = self.base.parent(ino)?;
        let place = match self.relinked.get(&ino) {
            Some(place) => Some((*place).clone()),
            None => committed.clone(),
        };
        if plan.lost_names.contains_key(&ino) {
            new.place = place;
        }
        let has_edits = edits.within(ino).any(|(at, _)| !plan.removed.contains(at));
        if plan.reset.contains(&ino) {
            (new.mode, new.uid, new.gid) = (before.mode, before.uid, before.gid);
            new.owns_xattrs = false;
            self.rows.push(RowChange::DropXattrs(ino));
            if !has_edits {
                (new.atime, new.mtime, new.ctime) = (before.atime, before.mtime, before.ctime);
            }
        }
        let is_same = (new.mode, new.uid, new.gid) == (before.mode, before.uid, before.gid);
        let is_at_committed_place = new.place == committed || ino == Ino::ROOT;
        self.rows.push(
            if !has_edits && is_same && !new.owns_xattrs && is_at_committed_place {
                RowChange::DropInode(ino)
            } else {
                RowChange::put_inode(ino, new)
            },
        );
        Ok(())
    }

    /// Returns the link count of an object that is not a directory. An object without a row that
    /// changes has lost all its names.
    fn nlink(&self, ino: Ino, row: Option<&InodeRow>) -> u32 {
        let count = |names: &HashMap<Ino, u32>| names.get(&ino).copied().unwrap_or(0);
        (row.map_or(0, |row| row.nlink) + count(&self.plan.restored_names))
            .saturating_sub(count(&self.plan.lost_names))
    }

    /// Resets the attributes and content of a committed object that is not a directory.
    fn reset(&mut self, ino: Ino, row: Option<&InodeRow>, before: &Attr) -> Result<()> {
        if row.is_some() {
            self.rows.push(RowChange::DropXattrs(ino));
            self.rows.push(RowChange::DropInode(ino));
        }
        let nlink = self.nlink(ino, row);
        if nlink != before.nlink || self.named.contains(&ino) {
            let target = match before.kind {
                Kind::Symlink => Some(self.base.read_link(ino)?),
                _ => None,
            };
            let mut new = row_from(before, target, None);
            new.nlink = nlink;
            self.rows.push(RowChange::put_inode(ino, new));
        }
        Ok(())
    }

    /// Updates the row of an object that is not a directory, of which only names change.
    fn update_names(&mut self, ino: Ino, row: &InodeRow, before: Option<&Attr>) -> Result<()> {
        let mut new = row.clone();
        new.nlink = self.nlink(ino, Some(row));
        if let Some(place) = &row.place
            && self.plan.removed.contains(place)
        {
            new.place = None;
        }
        let is_pristine = before.is_some_and(|before| {
            let now = row_attr(row);
            row.data == DataPlace::Lower
                && !row.owns_xattrs
                && new.nlink == before.nlink
                && (now.mode, now.uid, now.gid, now.mtime)
                    == (before.mode, before.uid, before.gid, before.mtime)
        });
        self.rows
            .push(if is_pristine && !self.named.contains(&ino) {
                RowChange::DropInode(ino)
            } else {
                RowChange::put_inode(ino, new)
            });
        Ok(())
    }
}
