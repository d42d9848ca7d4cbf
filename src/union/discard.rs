//! Throwing away the changes of some paths, and looking whether rows and files agree.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::AsFd;

use super::changes::{Comparison, join};
use super::stack::LowerStack;
use super::swap::base_of;
use super::{Change, Error, Invalidation, Result, State, Union, frozen};
use crate::object::{Ino, Kind};
use crate::state::{DataPlace, RowChange};

impl Union {
    /// Throws away the changes at and below some paths (without a leading slash). A path that was
    /// renamed goes back where it was, whichever of its two paths is named. Returns what was thrown
    /// away, and what the kernel must forget.
    pub fn discard_paths(&self, paths: &[Vec<u8>]) -> Result<(Vec<Change>, Vec<Invalidation>)> {
        let _gate = self.gate_exclusive();
        let mut guard = self.write();
        let state = &mut *guard;
        if state
            .lower
            .layers()
            .iter()
            .any(|layer| layer.as_any().is::<super::FrozenLayer>())
        {
            return Err(Error::CommitUnfinished);
        }
        let base = base_of(&state.lower);
        let before = Comparison::new(state, &base).run()?;
        let chosen = Choice::of(state, &base, paths)?;
        let (changes, touched) = chosen.changes(state, &base)?;
        let mut stale = Vec::new();
        for (dir, name) in &chosen.entries {
            stale.push(Invalidation::Entry {
                dir: *dir,
                name: name.clone(),
            });
        }
        stale.extend(
            chosen
                .objects
                .iter()
                .chain(&touched)
                .map(|ino| Invalidation::Object(*ino)),
        );
        // Where things lie, asked for while the rows still say so.
        let mut files = Vec::new();
        let mut dirs = Vec::new();
        for ino in &chosen.objects {
            let Some(row) = state.delta.inodes.get(ino) else {
                continue;
            };
            match (row.kind, &row.place) {
                (Kind::Directory, Some((dir, name))) => {
                    if let Some(above) = state.find_dir(*dir)? {
                        dirs.push((*ino, above, name.clone()));
                    }
                }
                (_, place) if row.data == DataPlace::Upper => {
                    let above = match place {
                        Some((dir, name)) => {
                            state.find_dir(*dir)?.map(|above| (above, name.clone()))
                        }
                        None => None,
                    };
                    files.push((*ino, above));
                }
                _ => {}
            }
        }
        self.change(state, &changes)?;
        for (ino, above) in files {
            state.upper.forget_file(ino);
            state.upper.unstage(ino)?;
            if let Some((above, name)) = above {
                state.upper.remove(above.as_fd(), &name)?;
            }
        }
        for (ino, above, name) in dirs.into_iter().rev() {
            match base.parent(ino)? {
                // Back where the images have it, with what was changed inside it and is kept.
                Some((old_dir, old_name)) => {
                    let target = state.make_dir(old_dir)?;
                    state
                        .upper
                        .rename((above.as_fd(), &name), (target.as_fd(), &old_name))?;
                }
                None => state.upper.remove_dir(above.as_fd(), &name, ino)?,
            }
        }
        let after: HashSet<Vec<u8>> = Comparison::new(state, &base)
            .run()?
            .into_iter()
            .map(|c| c.path)
            .collect();
        let gone = before
            .into_iter()
            .filter(|change| !after.contains(&change.path))
            .collect();
        Ok((gone, stale))
    }

    /// Looks whether every row has its file; returns what is wrong, in words.
    pub fn verify_upper(&self) -> Result<Vec<String>> {
        let state = self.read();
        let mut problems = Vec::new();
        for (ino, row) in &state.delta.inodes {
            if row.data == DataPlace::Upper {
                let found = frozen::with_place(
                    &state.upper,
                    row,
                    |d| state.chain(d),
                    |place| state.upper.stat(*ino, place),
                );
                if let Err(e) = found {
                    let name = row
                        .place
                        .as_ref()
                        .map_or_else(String::new, |p| String::from_utf8_lossy(&p.1).into_owned());
                    problems.push(format!(
                        "the content of changed file {name:?} (object {ino}) is missing: {e}"
                    ));
                }
            }
        }
        problems.sort();
        Ok(problems)
    }
}

/// The rows that some paths stand for.
#[derive(Default)]
struct Choice {
    entries: BTreeSet<(Ino, Box<[u8]>)>,
    objects: BTreeSet<Ino>,
}

impl Choice {
    fn of(state: &State, base: &LowerStack, paths: &[Vec<u8>]) -> Result<Choice> {
        let within = |path: &[u8]| {
            paths.iter().any(|p| {
                p.is_empty()
                    || path == &p[..]
                    || (path.starts_with(p) && path.get(p.len()) == Some(&b'/'))
            })
        };
        let mut comparison = Comparison::new(state, base);
        let mut choice = Choice::default();
        for (dir, edits) in &state.delta.dirs {
            let Some(above) = comparison.path_of(*dir)? else {
                continue;
            };
            for (name, target) in edits.iter() {
                let was = base
                    .attr(*dir)?
                    .is_some()
                    .then(|| comparison.base_path(*dir, name))
                    .transpose()?;
                if within(&join(&above, name))
                    || was.is_some_and(|was| target.is_none() && within(&was))
                {
                    choice.entries.insert((*dir, Box::from(name)));
                }
            }
        }
        for (ino, row) in &state.delta.inodes {
            let path = match &row.place {
                _ if *ino == Ino::ROOT => Some(Vec::new()),
                Some((dir, name)) => comparison.path_of(*dir)?.map(|above| join(&above, name)),
                None => None,
            };
            if path.is_some_and(|path| within(&path)) {
                choice.objects.insert(*ino);
            }
        }
        // A rename is one change with two ends: choosing one end chooses the other.
        loop {
            let known = choice.entries.len();
            let mut moved: HashSet<Ino> = HashSet::new();
            for (dir, name) in &choice.entries {
                moved.extend(base.lookup(*dir, name)?);
                moved.extend(
                    state
                        .delta
                        .dirs
                        .get(dir)
                        .and_then(|edits| edits.get(name))
                        .flatten(),
                );
            }
            for (dir, edits) in &state.delta.dirs {
                for (name, target) in edits.iter() {
                    let here = target.is_some_and(|ino| {
                        moved.contains(&ino) && base.attr(ino).is_ok_and(|a| a.is_some())
                    });
                    let from_here = base
                        .lookup(*dir, name)?
                        .is_some_and(|ino| moved.contains(&ino));
                    if here || from_here {
                        choice.entries.insert((*dir, Box::from(name)));
                    }
                }
            }
            if choice.entries.len() == known {
                for ino in moved {
                    if state.delta.inodes.contains_key(&ino) {
                        choice.objects.insert(ino);
                    }
                }
                return Ok(choice);
            }
        }
    }

    /// The changes that undo the chosen rows, and the directories that change with them.
    fn changes(
        &self,
        state: &State,
        base: &LowerStack,
    ) -> Result<(Vec<RowChange<'static>>, BTreeSet<Ino>)> {
        let mut changes = Vec::new();
        for (dir, name) in &self.entries {
            changes.push(RowChange::drop_entry(*dir, name.to_vec()));
        }
        for ino in &self.objects {
            let is_dir = state
                .delta
                .inodes
                .get(ino)
                .is_some_and(|row| row.kind == Kind::Directory);
            if is_dir && base.attr(*ino)?.is_some() {
                continue; // Below, with all directories that stay.
            }
            changes.push(RowChange::DropInode(*ino));
            changes.push(RowChange::DropXattrs(*ino));
            if is_dir {
                changes.push(RowChange::DropEntriesOf(*ino));
            }
        }
        let mut dirs: BTreeSet<Ino> = self.entries.iter().map(|(dir, _)| *dir).collect();
        dirs.extend(self.objects.iter().copied());
        let mut touched = BTreeSet::new();
        for dir in dirs {
            let (Some(row), Some(attr)) = (state.delta.inodes.get(&dir), base.attr(dir)?) else {
                continue;
            };
            if row.kind != Kind::Directory {
                continue;
            }
            touched.insert(dir);
            let kept = self.kept_row(state, base, dir)?;
            let chosen = self.objects.contains(&dir);
            let own = !chosen
                && ((row.mode, row.uid, row.gid) != (attr.mode, attr.uid, attr.gid)
                    || row.owns_xattrs);
            let moved = !chosen && row.place != base.parent(dir)? && row.place.is_some();
            match kept {
                None if !own && !moved => {
                    changes.push(RowChange::DropInode(dir));
                    changes.push(RowChange::DropXattrs(dir));
                }
                kept => {
                    let mut new = row.clone();
                    if chosen {
                        (new.mode, new.uid, new.gid, new.owns_xattrs) =
                            (attr.mode, attr.uid, attr.gid, false);
                        new.place = base.parent(dir)?;
                        changes.push(RowChange::DropXattrs(dir));
                    }
                    new.nlink = kept.unwrap_or(attr.nlink);
                    changes.push(RowChange::put_inode(dir, new));
                }
            }
        }
        Ok((changes, touched))
    }

    /// The link count of a directory in which other changes remain; `None` if none do.
    fn kept_row(&self, state: &State, base: &LowerStack, dir: Ino) -> Result<Option<u32>> {
        let mut nlink = base.attr(dir)?.map_or(2, |attr| attr.nlink);
        let mut any = false;
        if let Some(edits) = state.delta.dirs.get(&dir) {
            for (name, target) in edits.iter() {
                if self.entries.contains(&(dir, Box::from(name))) {
                    continue;
                }
                any = true;
                if let Some(old) = base.lookup(dir, name)?
                    && base
                        .attr(old)?
                        .is_some_and(|attr| attr.kind == Kind::Directory)
                {
                    nlink = nlink.saturating_sub(1);
                }
                if let Some(new) = target
                    && state.kind(new)? == Kind::Directory
                {
                    nlink += 1;
                }
            }
        }
        Ok(any.then_some(nlink))
    }
}
