//! Finding objects by identity, for file handles (`name_to_handle_at(2)`).
//!
//! Identities never change, so a handle is valid across remounts and commits until the last name of
//! its object is removed. Lower layers still contain objects that are hidden by whiteouts, and
//! images do not store the names of files. So for an unchanged file its names are searched for. All
//! names of the lower layers are collected when the first such handle is used.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::errno::Errno;

use super::{LowerStack, Presence, Result, Union};
use crate::object::{Attr, Ino, Kind};

/// Pairs of a file and a directory in which it has a name, in ascending order.
type Names = Arc<[(Ino, Ino)]>;

/// A cache of the names of one lower stack.
#[derive(Debug, Default)]
pub(super) struct LowerNames(Mutex<Option<(Weak<LowerStack>, Names)>>);

impl LowerNames {
    fn of(&self, lower: &Arc<LowerStack>) -> Result<Names> {
        // Held while they are collected, so that concurrent callers do not collect them too.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, names)) = &*kept
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(lower))
        {
            return Ok(names.clone());
        }
        let mut names = Vec::new();
        let mut dirs = VecDeque::from([Ino::ROOT]);
        while let Some(dir) = dirs.pop_front() {
            for (_, ino, kind) in lower.list(dir)?.iter() {
                match kind {
                    Kind::Directory => dirs.push_back(ino),
                    _ => names.push((ino, dir)),
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        let names = Names::from(names);
        *kept = Some((Arc::downgrade(lower), names.clone()));
        Ok(names)
    }
}

/// An object that was found by its identity.
#[derive(Debug)]
pub(crate) struct FoundObject {
    /// The object.
    pub(crate) ino: Ino,
    /// A directory in which it has a name, if one is known.
    pub(crate) parent: Option<Ino>,
    /// Its attributes.
    pub(crate) attr: Attr,
}

impl Union {
    /// Finds an object by its identity alone. `ESTALE` if it does not exist or has lost its last
    /// name.
    pub(crate) fn find(&self, ino: Ino) -> Result<FoundObject> {
        let attr = self.attr(ino)?;
        if attr.kind == Kind::Directory {
            let lower = self.lower();
            match lower.chain(ino) {
                Ok(_) | Err(super::Error::Posix(Errno::ESTALE)) => {}
                Err(e) => return Err(e),
            }
            let state = self.read();
            let is_there = state.orphans.contains_key(&ino) || state.is_reachable(ino)?;
            let parent = state.parent(ino)?.map(|(parent, _)| parent);
            return match is_there {
                true => Ok(FoundObject { ino, parent, attr }),
                false => Err(Errno::ESTALE.into()),
            };
        }
        let lower = {
            let state = self.read();
            match state.presence(ino)? {
                Presence::Row(row) => {
                    let parent = row.place.as_ref().map(|(dir, _)| *dir);
                    return Ok(FoundObject { ino, parent, attr });
                }
                Presence::Orphan(_) => {
                    let parent = None;
                    return Ok(FoundObject { ino, parent, attr });
                }
                Presence::Lower => state.lower.clone(),
            }
        };
        let names = self.lower_names.of(&lower)?;
        let first = names.partition_point(|(of, _)| *of < ino);
        let of_it = names.get(first..).unwrap_or_default();
        for (_, dir) in of_it.iter().take_while(|(of, _)| *of == ino) {
            self.preload_listing(*dir)?;
            if self.read().name_in(*dir, ino)?.is_some() {
                let parent = Some(*dir);
                return Ok(FoundObject { ino, parent, attr });
            }
        }
        Err(Errno::ESTALE.into())
    }

    /// Finds the parent of a directory, with the errors of [`find`](Self::find).
    pub(crate) fn find_parent(&self, dir: Ino) -> Result<FoundObject> {
        self.lower().parent(dir)?;
        let parent = match dir {
            Ino::ROOT => Ino::ROOT,
            _ => {
                let parent = self.read().parent(dir)?;
                parent.ok_or(Errno::ESTALE)?.0
            }
        };
        self.find(parent)
    }
}
