//! The changes of rows when changes are discarded.
//!
//! The uppers with the changes are frozen, so names and objects get rows in the empty writable
//! layer that say again what was committed. Content is not copied: a row can refer to that of the
//! images ([`DataPlace::Committed`]).

use std::collections::{BTreeMap, HashMap};

use super::super::delta::row_attr;
use super::super::difference::{Entry, is_committed_dir};
use super::super::stack::{ContentLayer, LowerStack};
use super::super::{Result, State, Xattr};
use super::objects::Objects;
use super::plan::Plan;
use super::{Known, flat_row};
use crate::object::{Attr, Ino, Kind};
use crate::state::{DataPlace, InodeRow, RowChange};

/// Returns the changes of rows that a plan requires. The writable layer has none yet.
pub(super) fn changes_of(
    plan: &Plan,
    state: &State,
    base: &LowerStack,
) -> Result<Vec<RowChange<'static>>> {
    let mut changes = Changes {
        objects: Objects::new(plan, state, base),
        entries: BTreeMap::new(),
        named: HashMap::new(),
        rows: Vec::new(),
    };
    for entry in &plan.removed {
        if !plan.deleted.contains(&entry.0) {
            let committed = match plan.relinked.get(entry) {
                Some(ino) => Some(*ino),
                None if is_committed_dir(base, entry.0)? => base.lookup(entry.0, &entry.1)?,
                None => None,
            };
            changes.name(entry.clone(), committed)?;
        }
    }
    for dir in plan.restored_names.keys() {
        if is_committed_dir(base, *dir)? && !plan.edits.is_reachable(*dir) {
            changes.refill(*dir)?;
        }
    }
    let mut objects = plan.touched();
    objects.extend(changes.named.keys());
    for ino in objects {
        if !plan.deleted.contains(&ino) {
            changes.object(ino)?;
        }
    }
    let names = changes.entries.into_iter();
    let names = names.map(|((dir, name), target)| RowChange::put_entry(dir, name.to_vec(), target));
    let mut all: Vec<RowChange<'static>> = names.collect();
    all.extend(changes.rows);
    Ok(all)
}

struct Changes<'a> {
    objects: Objects<'a>,
    /// Names that get a row.
    entries: BTreeMap<Entry, Option<Ino>>,
    /// Objects to which one of these leads, and the name. They need a row, because it has their
    /// kind.
    named: HashMap<Ino, Entry>,
    rows: Vec<RowChange<'static>>,
}

impl Changes<'_> {
    /// Makes a name lead to an object, or to none.
    fn name(&mut self, entry: Entry, target: Option<Ino>) -> Result<()> {
        if self.objects.state.lower.lookup(entry.0, &entry.1)? == target {
            return Ok(());
        }
        if let Some(ino) = target {
            self.named.entry(ino).or_insert_with(|| entry.clone());
        }
        self.entries.insert(entry, target);
        Ok(())
    }

    /// Gives a directory that was removed its committed names. What frozen layers say of them shows
    /// again with the directory.
    fn refill(&mut self, dir: Ino) -> Result<()> {
        let committed = self.objects.base.list(dir)?;
        for (name, ino, _) in committed.iter() {
            self.name((dir, Box::from(name)), Some(ino))?;
        }
        for (name, ..) in self.objects.state.lower.list(dir)?.iter() {
            if committed.find(name).is_none() {
                self.name((dir, Box::from(name)), None)?;
            }
        }
        Ok(())
    }

    fn object(&mut self, ino: Ino) -> Result<()> {
        let before = self.objects.base.attr(ino)?;
        let row = match flat_row(
            self.objects.state,
            self.objects.base,
            &self.objects.plan.edits,
            ino,
        )? {
            Known::Row(row) => Some(row),
            Known::Nameless | Known::Committed => None,
        };
        match (row, before) {
            (Some(row), before) if row.kind == Kind::Directory => {
                let new = self.objects.directory(ino, row, before)?;
                self.put(ino, new)
            }
            (None, None) => Ok(()),
            (None, Some(before)) if before.kind == Kind::Directory => self.put(ino, None),
            (None, Some(before)) => self.reset(ino, None, &before),
            (Some(row), Some(before)) if self.objects.plan.reset.contains(&ino) => {
                self.reset(ino, Some(&row), &before)
            }
            (Some(mut row), _) => {
                row.nlink = self.objects.nlink(ino, Some(&row));
                self.put(ino, Some(row))
            }
        }
    }

    /// Resets the attributes and content of a committed object that is not a directory.
    fn reset(&mut self, ino: Ino, row: Option<&InodeRow>, before: &Attr) -> Result<()> {
        let nlink = self.objects.nlink(ino, row);
        if nlink == before.nlink {
            return self.put(ino, None);
        }
        let mut new = self.objects.committed_row(ino, before)?;
        new.nlink = nlink;
        self.put(ino, Some(new))
    }

    /// Gives an object a row, or the committed state without one, unless it has that already.
    /// `new` says where the content is as if there were one upper.
    fn put(&mut self, ino: Ino, new: Option<InodeRow>) -> Result<()> {
        let is_named = self.named.contains_key(&ino);
        let is_mentioned = !self.objects.state.rows_of(ino)?.is_empty();
        let mut row = match new {
            Some(new) => new,
            None if !is_named && !is_mentioned => return Ok(()),
            None => {
                let before = self.objects.base.attr(ino)?;
                self.objects
                    .committed_row(ino, &before.ok_or(nix::errno::Errno::ESTALE)?)?
            }
        };
        let current: Vec<Xattr> = sorted(self.objects.state.lower.xattrs(ino)?);
        let wanted = match row.owns_xattrs {
            true => current.clone(),
            false => sorted(self.objects.base.xattrs(ino)?),
        };
        row.owns_xattrs = wanted != current;
        row.backing_ino = 0;
        if row.kind == Kind::File {
            let is_frozen = || -> Result<bool> {
                let layer = self.objects.state.lower.content(ino)?;
                Ok(matches!(layer, ContentLayer::Frozen(_)))
            };
            row.data = match row.data {
                DataPlace::Upper => DataPlace::Lower,
                DataPlace::Lower | DataPlace::Committed if is_frozen()? => DataPlace::Committed,
                DataPlace::Lower | DataPlace::Committed => DataPlace::Lower,
            };
        } else {
            row.data = DataPlace::Lower;
        }
        if row.kind != Kind::Directory {
            let is_removed = |place: &Entry| self.objects.plan.removed.contains(place);
            row.place = row.place.filter(|place| !is_removed(place));
            if row.place.is_none() {
                row.place = self.named.get(&ino).cloned();
            }
        }
        if !is_named && !row.owns_xattrs && row.data == DataPlace::Lower {
            let now = self.objects.state.lower.attr(ino)?;
            let place = self
                .objects
                .state
                .rows_of(ino)?
                .first()
                .map(|top| top.place.clone());
            let is_placed = row.kind != Kind::Directory || place == Some(row.place.clone());
            if is_placed && now.is_some_and(|now| row_attr(&row).with_content_of(&now) == now) {
                return Ok(());
            }
        }
        self.rows.push(RowChange::put_inode(ino, row.clone()));
        if row.owns_xattrs {
            for (name, value) in wanted {
                self.rows.push(RowChange::PutXattr {
                    ino,
                    name: name.into_vec().into(),
                    value: value.into_vec().into(),
                });
            }
        }
        Ok(())
    }
}

fn sorted(mut all: Vec<Xattr>) -> Vec<Xattr> {
    all.sort_unstable();
    all
}
