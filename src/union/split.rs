//! Splitting frozen uppers in two, so that a commit takes only a part of the changes.
//!
//! Frozen uppers F become two layers that show the same: the *selected* changes S, and the *rest* R
//! on top of them. A commit then replaces S and the image, and R stays, as any upper above.
//!
//! Which rows belong to S is decided as if all other changes were discarded (`discard/part.rs`); R
//! is the difference of the view from that. Content is not copied: both layers get hard links to
//! the files of F, which is removed once the rows have changed. Both layers are complete and
//! durable before one transaction puts them into the stack, in place of F.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;

use super::content::copy_content;
use super::delta::{Delta, has_file, row_from};
use super::difference::{Edits, Entry};
use super::discard::{Part, part_of};
use super::frozen::with_place;
use super::layer::chain;
use super::stack::LowerStack;
use super::{ContentLayer, Error, FrozenLayer, ImageLayer, Result, State, Union, dir_check};
use super::{Xattr, time_spec};
use crate::fault;
use crate::object::{Attr, Ino, Kind};
use crate::state::{DataPlace, InodeRow, LayerId, LayerRows};
use crate::sys::durable;
use crate::upper::UpperDir;

/// The result of a split.
#[derive(Debug)]
pub(crate) enum Split {
    /// No change belongs to the part.
    Nothing,
    /// All changes belong to it: the stack does not change.
    All,
    /// The layers were replaced by two: these changes over the image, and the rest above them.
    Done(Arc<LowerStack>),
}

impl Union {
    /// Returns the stack in which images are below the topmost frozen uppers, as after a commit of
    /// what was below them.
    pub(crate) fn rest_over(
        &self,
        rest: usize,
        images: Vec<Arc<ImageLayer>>,
    ) -> Result<LowerStack> {
        let mut lower = LowerStack::new(images);
        for old in self.lower().frozen().iter().take(rest).rev() {
            let below = Arc::new(lower);
            let delta = Delta::from_rows(old.delta().to_rows()?);
            let layer = FrozenLayer::new(old.id, delta, old.upper().clone(), below.clone());
            lower = LowerStack::over(Arc::new(layer), below);
        }
        Ok(lower)
    }

    /// Splits the frozen uppers. Changes above them, which may be made meanwhile, stay.
    ///
    /// [`Error::NotSeparable`] if the part cannot be recorded alone. Nothing changes then, nor
    /// after any other error before the transaction.
    pub(crate) fn split(&self, part: Part<'_>) -> Result<Split> {
        let view = self.lower();
        let base = view.committed();
        let Some(top) = view.frozen().first() else {
            return Ok(Split::Nothing);
        };
        let state = State {
            layer: LayerId(0),
            delta: Delta::default(),
            upper: top.upper().clone(),
            lower: view.clone(),
            orphans: HashMap::new(),
            epoch: 0,
            old_orders: Default::default(),
        };
        let own = self.merged(&view, &base)?;
        let mut selected = Delta::from_rows(own.rows());
        let Some(changes) = part_of(&state, &selected, &base, part)? else {
            return Ok(Split::All);
        };
        selected.change(&changes, || Ok(()))?;
        if selected.is_empty() {
            return Ok(Split::Nothing);
        }
        let ids = [self.db.reserve_layer()?, self.db.reserve_layer()?];
        // From here on, the next open removes what is left of the layers after a crash.
        self.db.add_retired(&ids)?;
        self.make(&view, &base, selected, &own, ids)
    }

    /// Makes both layers, and puts them into the stack.
    fn make(
        &self,
        view: &Arc<LowerStack>,
        base: &Arc<LowerStack>,
        selected: Delta,
        own: &Merged,
        [bottom, top]: [LayerId; 2],
    ) -> Result<Split> {
        let selected = self.build(view, base.clone(), bottom, selected)?;
        let below = Arc::new(LowerStack::over(selected, base.clone()));
        let rest = rest_of(view, &below, own)?;
        if rest.is_empty() {
            // Nothing but rows of directories was outside of the part. The next sweep removes the
            // layer.
            return Ok(Split::All);
        }
        let rest = self.build(view, below.clone(), top, Delta::from_rows(rest))?;
        let lower = Arc::new(LowerStack::over(rest, below.clone()));
        same_view(view, &lower, own)?;
        fault::point("split.linked");
        let old: Vec<LayerId> = view.frozen().iter().map(|layer| layer.id).collect();
        let mut rows = Vec::new();
        for layer in lower.frozen() {
            rows.push((layer.id, layer.delta().to_rows()?));
        }
        // What the kernel must forget, it must forget as well when this is committed.
        self.replace_lower(lower, || Ok(self.db.split(&old, &rows)?))?;
        fault::point("split.swapped");
        Ok(Split::Done(below))
    }

    /// Makes the directory of a layer with these rows, durably, and returns the layer.
    fn build(
        &self,
        view: &LowerStack,
        below: Arc<LowerStack>,
        id: LayerId,
        delta: Delta,
    ) -> Result<Arc<FrozenLayer>> {
        dir_check::check(&delta, &below)?;
        let upper = UpperDir::create(&self.paths.layer(id), &self.paths.strays)?;
        let mut rows = delta.to_rows()?;
        let mut dirs = BTreeSet::new();
        for (ino, row) in &mut rows.inodes {
            if row.data == DataPlace::Upper {
                let at = |dir| chain(dir, |dir| dir_check::parent(&delta, &below, dir));
                place_content(view, &upper, *ino, row, &at)?;
                if let Some((dir, _)) = &row.place {
                    dirs.insert(*dir);
                }
            }
        }
        let mut synced = HashSet::new();
        for dir in dirs {
            let at = chain(dir, |dir| dir_check::parent(&delta, &below, dir))?;
            for end in 0..=at.len() {
                let above = at.get(..end).unwrap_or_default();
                let ino = above.last().map_or(Ino::ROOT, |(ino, _)| *ino);
                if synced.insert(ino)
                    && let Some(fd) = upper.find_dir(above)?
                {
                    upper.sync_dir(fd.as_fd())?;
                }
            }
        }
        upper.sync_dir(upper.work())?;
        upper.unsynced().note_everything();
        let delta = Delta::from_rows(rows);
        let layer = FrozenLayer::new(id, delta, Arc::new(upper), below);
        Ok(Arc::new(layer))
    }

    /// Merges the rows of the frozen uppers.
    fn merged(&self, view: &LowerStack, base: &LowerStack) -> Result<Merged> {
        let mut merged = Merged::default();
        for layer in view.frozen().iter().rev() {
            merged.add(self.db.load_layer(layer.id)?);
        }
        merged.drop_nameless(view, base)?;
        // Times of content count where it is, and attributes in a layer above hide them.
        let files = merged.inodes.iter_mut().filter(|(_, row)| has_file(row));
        for (ino, row) in files {
            let attr = view.attr(*ino)?.ok_or(nix::errno::Errno::ESTALE)?;
            (row.atime, row.mtime) = (attr.atime, attr.mtime);
            // Its place may be one that it had.
            if let Some((dir, name)) = &row.place
                && view.lookup(*dir, name)? != Some(*ino)
            {
                row.place = None;
            }
        }
        Ok(merged)
    }
}

/// The rows of several layers as those of one.
#[derive(Debug, Default)]
struct Merged {
    inodes: BTreeMap<Ino, InodeRow>,
    entries: BTreeMap<Entry, Option<Ino>>,
    xattrs: OwnXattrs,
}

impl Merged {
    /// Adds the rows of a layer on top.
    fn add(&mut self, rows: LayerRows) {
        let mut own: HashMap<Ino, Vec<_>> = HashMap::new();
        for (ino, name, value) in rows.xattrs {
            own.entry(ino).or_default().push((name, value));
        }
        for (ino, mut row) in rows.inodes {
            if let Some(below) = self.inodes.get(&ino) {
                if row.data == DataPlace::Lower && row.kind == Kind::File {
                    row.data = below.data;
                    row.backing_ino = below.backing_ino;
                }
                if row.owns_xattrs {
                    self.xattrs.remove(&ino);
                }
                row.owns_xattrs |= below.owns_xattrs;
            }
            if row.data == DataPlace::Committed {
                row.data = DataPlace::Lower;
            }
            if let Some(own) = own.remove(&ino) {
                self.xattrs.insert(ino, own);
            }
            self.inodes.insert(ino, row);
        }
        let entries = rows.entries.into_iter();
        self.entries
            .extend(entries.map(|(dir, name, target)| ((dir, name), target)));
    }

    /// Drops what rows of lower layers say of objects that have lost their names above, and names
    /// that are as committed.
    fn drop_nameless(&mut self, view: &LowerStack, base: &LowerStack) -> Result<()> {
        let edits = Edits::of(view, base)?;
        let mut nameless = BTreeSet::new();
        for (ino, row) in &self.inodes {
            let is_nameless = match row.kind {
                Kind::Directory => !edits.is_reachable(*ino),
                _ => {
                    let committed = base.attr(*ino)?.map_or(0, |attr| attr.nlink as usize);
                    edits.links_of(*ino).is_empty() && edits.missing_of(*ino).len() >= committed
                }
            };
            if is_nameless {
                nameless.insert(*ino);
            }
        }
        self.inodes.retain(|ino, _| !nameless.contains(ino));
        self.xattrs.retain(|ino, _| !nameless.contains(ino));
        let mut kept = BTreeMap::new();
        for ((dir, name), target) in std::mem::take(&mut self.entries) {
            if edits.is_reachable(dir) && base.lookup(dir, &name)? != target {
                kept.insert((dir, name), target);
            }
        }
        self.entries = kept;
        Ok(())
    }

    fn rows(&self) -> LayerRows {
        let mut rows = LayerRows {
            inodes: self
                .inodes
                .iter()
                .map(|(ino, row)| (*ino, row.clone()))
                .collect(),
            entries: self
                .entries
                .iter()
                .map(|((dir, name), target)| (*dir, name.clone(), *target))
                .collect(),
            xattrs: Vec::new(),
        };
        put_xattrs(&mut rows, &self.xattrs);
        rows
    }
}

/// The extended attributes of objects.
type OwnXattrs = BTreeMap<Ino, Vec<Xattr>>;

fn put_xattrs(rows: &mut LayerRows, all: &OwnXattrs) {
    for (ino, own) in all {
        let own = own.iter();
        rows.xattrs
            .extend(own.map(|(name, value)| (*ino, name.clone(), value.clone())));
    }
}

/// Puts the content of an object at its place in a new layer: a link to the file that has it now.
fn place_content(
    view: &LowerStack,
    upper: &UpperDir,
    ino: Ino,
    row: &mut InodeRow,
    chain_of: &dyn Fn(Ino) -> Result<Vec<Entry>>,
) -> Result<()> {
    let dir = match &row.place {
        Some((dir, name)) => Some((upper.create_dir(&chain_of(*dir)?)?, name.clone())),
        None => None,
    };
    let to = dir.as_ref().map(|(fd, name)| (fd.as_fd(), &**name));
    if row.kind == Kind::Symlink {
        // A copy of the row, for people who inspect the directory.
        match (to, &row.target) {
            (Some((fd, name)), Some(target)) => {
                upper.create_symlink(fd, name, target)?;
                row.backing_ino = upper.backing_ino(fd, name)?;
            }
            _ => (row.data, row.backing_ino) = (DataPlace::Lower, 0),
        }
        return Ok(());
    }
    let ContentLayer::Frozen(layer) = view.content(ino)? else {
        return Err(Error::Inconsistent(format!(
            "the content of {ino} is not in a frozen layer"
        )));
    };
    let there = layer.delta().inode(ino)?.ok_or(nix::errno::Errno::ESTALE)?;
    let linked = with_place(
        layer.upper(),
        there,
        |dir| layer.chain(dir),
        |from| upper.link_content(layer.upper(), ino, from, to),
    )?;
    let attr = view.attr(ino)?.ok_or(nix::errno::Errno::ESTALE)?;
    let host = upper.stat(ino, to)?;
    let is_same_time =
        (host.st_mtime, host.st_mtime_nsec) == (attr.mtime.secs, i64::from(attr.mtime.nanos));
    if linked && is_same_time {
        row.backing_ino = there.backing_ino;
        return Ok(());
    }
    // The file system has no hard links, or the time was set above the content.
    if linked {
        upper.unlink_content(ino, to)?;
    }
    let file = upper.stage(ino)?;
    copy_content(view, ino, &file, attr.size)?;
    nix::sys::stat::futimens(&*file, &time_spec(attr.atime), &time_spec(attr.mtime))?;
    durable::sync_data(&*file)?;
    row.backing_ino = upper.backing_ino_of(&file)?;
    if let Some((fd, name)) = to {
        upper.place(ino, fd, name)?;
    }
    Ok(())
}

/// Returns the rows that turn `below` into `view`. `own` are the rows of the view over the
/// image.
fn rest_of(view: &LowerStack, below: &Arc<LowerStack>, own: &Merged) -> Result<LayerRows> {
    let selected = below.frozen().first().map(|layer| layer.delta());
    let mut names: BTreeSet<Entry> = own.entries.keys().cloned().collect();
    let mut objects: BTreeSet<Ino> = own.inodes.keys().copied().collect();
    if let Some(selected) = selected {
        for (dir, entries) in selected.dirs()? {
            names.extend(entries.iter().map(|(name, _)| (dir, Box::from(name))));
        }
    }
    let mut reachable = HashMap::new();
    let mut entries = Vec::new();
    // Objects that need a row: those that names lead to, and the directories of the names.
    let mut needed: HashSet<Ino> = HashSet::new();
    for (dir, name) in names {
        if !is_reachable(view, dir, &mut reachable)? {
            continue;
        }
        let now = view.lookup(dir, &name)?;
        if now != below.lookup(dir, &name)? {
            needed.insert(dir);
            needed.extend(now);
            entries.push((dir, name, now));
        }
    }
    objects.extend(&needed);
    let (mut inodes, mut xattrs) = (Vec::new(), BTreeMap::new());
    for ino in objects {
        let Some(attr) = view.attr(ino)? else {
            continue;
        };
        let before = below.attr(ino)?;
        let has_content = has_content_above(below, own, ino)?;
        let all = sorted(view.xattrs(ino)?);
        let other_xattrs = match before {
            Some(_) => all != sorted(below.xattrs(ino)?),
            None => true,
        };
        let place = own.inodes.get(&ino).and_then(|row| row.place.clone());
        let other_place = attr.kind == Kind::Directory
            && ino != Ino::ROOT
            && view.parent(ino)? != below.parent(ino)?;
        let is_same = before.is_some_and(|before| same(&before, &attr));
        if is_same && !has_content && !other_xattrs && !other_place && !needed.contains(&ino) {
            continue;
        }
        let target = match attr.kind {
            Kind::Symlink => Some(view.read_link(ino)?),
            _ => None,
        };
        let place = match attr.kind {
            Kind::Directory if ino != Ino::ROOT => view.parent(ino)?,
            _ => place,
        };
        let mut row = row_from(&attr, target, place);
        row.owns_xattrs = other_xattrs;
        let is_placed_link = attr.kind == Kind::Symlink
            && own
                .inodes
                .get(&ino)
                .is_some_and(|row| row.data == DataPlace::Upper);
        if has_content || is_placed_link {
            row.data = DataPlace::Upper;
        }
        inodes.push((ino, row));
        if other_xattrs {
            xattrs.insert(ino, all);
        }
    }
    let mut rows = LayerRows {
        inodes,
        entries,
        xattrs: Vec::new(),
    };
    put_xattrs(&mut rows, &xattrs);
    Ok(rows)
}

/// Returns true if names lead from the root to a directory.
fn is_reachable(view: &LowerStack, dir: Ino, known: &mut HashMap<Ino, bool>) -> Result<bool> {
    let (mut climbed, mut at) = (Vec::new(), dir);
    let found = loop {
        if at == Ino::ROOT {
            break true;
        }
        if let Some(known) = known.get(&at) {
            break *known;
        }
        // Damaged rows may form a loop.
        known.insert(at, false);
        climbed.push(at);
        match view.parent(at)? {
            Some((above, name)) if view.lookup(above, &name)? == Some(at) => at = above,
            _ => break false,
        }
    };
    known.extend(climbed.into_iter().map(|ino| (ino, found)));
    Ok(found)
}

/// Returns true if the content of a file has to be in the rest: it is in no image, and not among
/// the selected changes.
fn has_content_above(below: &LowerStack, own: &Merged, ino: Ino) -> Result<bool> {
    if !own.inodes.get(&ino).is_some_and(has_file) {
        return Ok(false);
    }
    for layer in below.frozen() {
        if layer.delta().inode(ino)?.is_some_and(has_file) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sorted(mut all: Vec<Xattr>) -> Vec<Xattr> {
    all.sort_unstable();
    all
}

/// Compares attributes, without the change time, which a link to a file sets.
fn same(one: &Attr, other: &Attr) -> bool {
    let key = |attr: &Attr| {
        let owner = (attr.uid, attr.gid);
        (
            attr.kind, attr.mode, owner, attr.rdev, attr.nlink, attr.size, attr.mtime,
        )
    };
    key(one) == key(other)
}

/// Fails unless a stack shows what another does, in everything that has rows.
fn same_view(view: &LowerStack, new: &LowerStack, own: &Merged) -> Result<()> {
    let differs = |ino: Ino, what: &str| {
        let what = format!("a split would change the {what} of object {ino}");
        Err(Error::Inconsistent(what))
    };
    let mut reachable = HashMap::new();
    for (dir, name) in own.entries.keys() {
        if !is_reachable(view, *dir, &mut reachable)? {
            continue;
        }
        if view.lookup(*dir, name)? != new.lookup(*dir, name)? {
            return differs(*dir, "names");
        }
    }
    for (ino, row) in &own.inodes {
        let (before, after) = (view.attr(*ino)?, new.attr(*ino)?);
        let is_same = match (&before, &after) {
            (Some(before), Some(after)) => same(before, after),
            (before, after) => before.is_none() && after.is_none(),
        };
        if !is_same {
            tracing::debug!(?before, ?after, "attributes");
            return differs(*ino, "attributes");
        }
        if row.kind == Kind::Directory
            && *ino != Ino::ROOT
            && view.parent(*ino)? != new.parent(*ino)?
        {
            return differs(*ino, "place");
        }
        if sorted(view.xattrs(*ino)?) != sorted(new.xattrs(*ino)?) {
            return differs(*ino, "extended attributes");
        }
    }
    Ok(())
}
