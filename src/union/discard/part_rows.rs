//! The rows of a layer in which only a part of the changes stays.

use std::collections::HashSet;

use super::super::delta::{Delta, row_attr};
use super::super::difference::Entry;
use super::super::stack::LowerStack;
use super::super::{Result, State};
use super::objects::Objects;
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
        objects: Objects::new(plan, state, base),
        named: kept.chain(plan.relinked.values().copied()).collect(),
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
                if changes.objects.is_relinked(ino) {
                    let row = changes.objects.committed_row(ino, &before)?;
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
    objects: Objects<'a>,
    /// Objects with names in the writable layer afterwards. They need a row, because it has their
    /// kind.
    named: HashSet<Ino>,
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
        if before.is_some() && self.objects.plan.reset.contains(&ino) {
            self.rows.push(RowChange::DropXattrs(ino));
        }
        let new = self.objects.directory(ino, row.clone(), before)?;
        self.rows.push(match new {
            Some(new) => RowChange::put_inode(ino, new),
            None => RowChange::DropInode(ino),
        });
        Ok(())
    }

    /// Resets the attributes and content of a committed object that is not a directory.
    fn reset(&mut self, ino: Ino, row: Option<&InodeRow>, before: &Attr) -> Result<()> {
        if row.is_some() {
            self.rows.push(RowChange::DropXattrs(ino));
            self.rows.push(RowChange::DropInode(ino));
        }
        let nlink = self.objects.nlink(ino, row);
        if nlink != before.nlink || self.named.contains(&ino) {
            let mut new = self.objects.committed_row(ino, before)?;
            new.nlink = nlink;
            self.rows.push(RowChange::put_inode(ino, new));
        }
        Ok(())
    }

    /// Updates the row of an object that is not a directory, of which only names change.
    fn update_names(&mut self, ino: Ino, row: &InodeRow, before: Option<&Attr>) -> Result<()> {
        let mut new = row.clone();
        new.nlink = self.objects.nlink(ino, Some(row));
        if let Some(place) = &row.place
            && self.objects.plan.removed.contains(place)
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
