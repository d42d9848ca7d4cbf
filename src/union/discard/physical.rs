//! What is done to the files of discarded changes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::super::difference::Entry;
use super::super::{Error, Result, State};
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, InodeRow};

/// A physical directory, and a name in it.
type Lying = (Arc<OwnedFd>, Box<[u8]>);

/// What is done to files after the rows have changed. Everything is found before, while the rows
/// still say where it is.
#[derive(Default)]
pub(super) struct Physical {
    /// Content that goes, with the directory in which it lies; in `work` if there is none. Of
    /// regular files it is kept aside.
    files: Vec<(Ino, Kind, Option<Lying>)>,
    /// Content that keeps no name here.
    detached: Vec<(Ino, Lying)>,
    /// Directories to remove, by their depth.
    dirs: BTreeMap<(std::cmp::Reverse<usize>, Ino), Lying>,
    /// Directories to move, and where to.
    moved: Vec<(Ino, Lying, Entry)>,
}

impl Physical {
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

    pub(super) fn detach(&mut self, state: &State, ino: Ino, row: &InodeRow) -> Result<()> {
        if row.data == DataPlace::Upper
            && let Some((dir, name)) = &row.place
            && let Some(above) = state.find_dir(*dir)?
        {
            self.detached.push((ino, (above, name.clone())));
        }
        Ok(())
    }

    pub(super) fn move_back(
        &mut self,
        state: &State,
        ino: Ino,
        from: &Entry,
        to: &Entry,
    ) -> Result<()> {
        if let Some(above) = state.find_dir(from.0)? {
            let lying = (above, from.1.clone());
            self.moved.push((ino, lying, to.clone()));
        }
        Ok(())
    }

    /// Does all of it that can be done; `failed` hears of the rest.
    pub(super) fn carry_out(self, state: &State, failed: impl Fn(Error)) {
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
        // By way of `work`: they may be inside each other, now or then.
        let mut moved = Vec::new();
        for (ino, (above, name), to) in self.moved {
            let aside = format!("dir-{ino}").into_bytes();
            let done = upper
                .rename((above.as_fd(), &name), (upper.work(), &aside))
                .map_err(Error::from)
                .and_then(|is_there| Ok((is_there, state.chain(ino)?.len())));
            match done {
                Ok((true, depth)) => moved.push((depth, aside, to)),
                Ok((false, _)) => {}
                Err(e) => failed(e),
            }
        }
        for ((_, ino), (above, name)) in self.dirs {
            note(
                upper
                    .remove_dir(above.as_fd(), &name, ino)
                    .map_err(Error::from),
            );
        }
        // Outermost first, so that each finds the directory it goes into.
        moved.sort();
        for (_, aside, (dir, name)) in moved {
            let done = state.create_dir(dir).and_then(|above| {
                upper.rename((upper.work(), &aside), (above.as_fd(), &name))?;
                Ok(())
            });
            note(done);
        }
    }
}
