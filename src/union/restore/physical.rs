//! The changes of files of the writable layer when paths are restored.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::super::{Error, Result, State};
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, InodeRow};

/// A physical directory, and a name in it.
type HostName = (Arc<OwnedFd>, Box<[u8]>);

/// Changes of files, applied after the rows have changed. The files are found before that, because
/// their paths depend on the old rows.
#[derive(Default)]
pub(super) struct Physical {
    /// Content to remove, with its name, or `None` if it is in `work`. Regular files are moved to
    /// the strays directory.
    files: Vec<(Ino, Kind, Option<HostName>)>,
    /// Content to move to `work`, because its object has no place any more.
    detached: Vec<(Ino, HostName)>,
    /// Directories to remove, deepest first.
    dirs: BTreeMap<(std::cmp::Reverse<usize>, Ino), HostName>,
}

impl Physical {
    /// Removes the content of an object.
    pub(super) fn remove(&mut self, state: &State, ino: Ino, row: &InodeRow) -> Result<()> {
        let above = match &row.place {
            Some((dir, name)) => state.find_dir(*dir)?.map(|fd| (fd, name.clone())),
            None => None,
        };
        if row.kind == Kind::Directory {
            if let Some(above) = above {
                let depth = state.chain(ino)?.len();
                self.dirs.insert((std::cmp::Reverse(depth), ino), above);
            }
        } else if row.data == DataPlace::Upper {
            self.files.push((ino, row.kind, above));
        }
        Ok(())
    }

    /// Moves the content of an object to `work`.
    pub(super) fn detach(&mut self, state: &State, ino: Ino, row: &InodeRow) -> Result<()> {
        if row.data == DataPlace::Upper
            && let Some((dir, name)) = &row.place
            && let Some(above) = state.find_dir(*dir)?
        {
            self.detached.push((ino, (above, name.clone())));
        }
        Ok(())
    }

    /// Applies all changes. Calls `failed` with each error and continues.
    pub(super) fn apply(self, state: &State, failed: impl Fn(Error)) {
        let upper = &state.upper;
        let note = |done: Result<()>| done.unwrap_or_else(&failed);
        for (ino, kind, above) in self.files {
            upper.forget_file(ino);
            let done = match above {
                Some((above, name)) if kind == Kind::File => upper.keep_aside(above.as_fd(), &name),
                Some((above, name)) => upper.remove(above.as_fd(), &name),
                None => upper.keep_detached_aside(ino),
            };
            note(done.map_err(Error::from));
        }
        for (ino, (above, name)) in self.detached {
            note(upper.detach(above.as_fd(), &name, ino).map_err(Error::from));
        }
        for ((_, ino), (above, name)) in self.dirs {
            note(
                upper
                    .remove_dir(above.as_fd(), &name, ino)
                    .map_err(Error::from),
            );
        }
    }
}
