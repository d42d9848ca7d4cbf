//! The difference of two revisions, or of a revision and the current view.
//!
//! Objects keep their identities from one image to the next, so the engine for uncommitted changes
//! serves here as well: this module only finds the names and objects that may differ.
//!
//! # Cost
//!
//! Both trees are walked from the root. Where the tables of one image are the first part of those
//! of the other ([`Shared`]), an inode at the same position in both ends the walk there: everything
//! below it is equal. So the cost follows the difference. Without this, the inodes of both trees
//! are read and compared, but no content: data at the same position is equal. Content is read where
//! it was written anew and has the same size.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::compare::Draft;
use super::view::{Content, Mentioned, View};
use super::{Change, Entry};
use crate::object::{Attr, Ino};
use crate::squashfs::format::{Inode, InodeBody, InodeKind, InodeRef};
use crate::squashfs::reader::{DirEntry, Directory, Shared};
use crate::union::delta::Delta;
use crate::union::{Bytes, Error, ImageLayer, LowerStack, Result, Union, Xattr};

/// The difference of two states of one environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// The changes from the old to the new one, ordered by path.
    pub changes: Vec<Change>,
    /// The number of inodes that were read to find what may differ.
    pub inodes_read: u64,
}

/// Compares two images of one environment.
pub(crate) fn between(
    old: &Arc<ImageLayer>,
    new: &Arc<ImageLayer>,
    shared: Shared,
) -> Result<Difference> {
    let walk = Walk::run(old, new, shared)?;
    let lower = LowerStack::new(vec![new.clone()]);
    let revised = Revised::new(&lower, (old, new, shared), &walk);
    let base = revised.base();
    Ok(Difference {
        changes: Draft::of(&revised, &base)?.resolve(&lower, &base)?,
        inodes_read: walk.inodes_read,
    })
}

impl Union {
    /// Compares the current view, with its uncommitted changes, with an image of the history.
    /// `shared` finds what that image and the current one have in common.
    pub(crate) fn changes_since<E: From<Error>>(
        &self,
        old: &Arc<ImageLayer>,
        shared: impl Fn(&ImageLayer) -> std::result::Result<Shared, E>,
    ) -> std::result::Result<Difference, E> {
        loop {
            let current = self.lower().images().first().cloned();
            let new = current.ok_or_else(no_image)?;
            let shared = shared(&new)?;
            let walk = Walk::run(old, &new, shared).map_err(E::from)?;
            let state = self.read();
            if !state
                .lower
                .images()
                .first()
                .is_some_and(|now| Arc::ptr_eq(now, &new))
            {
                // A commit or a rollback came in between.
                continue;
            }
            let revised = Revised::new(&*state, (old, &new, shared), &walk);
            let base = revised.base();
            let draft = Draft::of(&revised, &base).map_err(E::from)?;
            drop(state);
            return Ok(Difference {
                changes: draft.resolve(self, &base).map_err(E::from)?,
                inodes_read: walk.inodes_read,
            });
        }
    }
}

fn no_image() -> Error {
    Error::Inconsistent("the stack has no image".to_owned())
}

/// A directory of the new image, and the same one in the old image.
struct Pair {
    ino: Ino,
    old: Option<InodeRef>,
    new: InodeRef,
}

/// Finds the names and objects that may differ.
struct Walk<'a> {
    old: &'a ImageLayer,
    new: &'a ImageLayer,
    shared: Shared,
    mentioned: Mentioned,
    /// The names in directories that only the old image has. The view may have such a directory in
    /// its rows, as after an undo of the commit that wrote the old image.
    old_only: HashMap<Ino, BTreeSet<Box<[u8]>>>,
    pending: Vec<Pair>,
    /// Directories that were met. An invalid image may contain one in itself.
    seen: HashSet<Ino>,
    inodes_read: u64,
}

impl<'a> Walk<'a> {
    fn run(old: &'a ImageLayer, new: &'a ImageLayer, shared: Shared) -> Result<Walk<'a>> {
        let mut walk = Walk {
            old,
            new,
            shared,
            mentioned: Mentioned::default(),
            old_only: HashMap::new(),
            pending: Vec::new(),
            seen: HashSet::new(),
            inodes_read: 0,
        };
        walk.descend(Ino::ROOT, Some(old.image().root()), new.image().root());
        while let Some(pair) = walk.pending.pop() {
            walk.directory(&pair)?;
        }
        Ok(walk)
    }

    /// Adds a directory unless it is known to be equal.
    fn descend(&mut self, ino: Ino, old: Option<InodeRef>, new: InodeRef) {
        let is_same = old.is_some_and(|old| self.shared.is_same(old, new));
        if !is_same && self.seen.insert(ino) {
            self.pending.push(Pair { ino, old, new });
        }
    }

    fn inode(&mut self, layer: &ImageLayer, at: InodeRef) -> Result<Inode> {
        self.inodes_read += 1;
        Ok(layer.image().inode(at)?)
    }

    fn directory(&mut self, pair: &Pair) -> Result<()> {
        let (old, new) = (self.old, self.new);
        let now = self.inode(new, pair.new)?;
        let listing = new.image().read_dir(&now)?;
        let Some(place) = pair.old else {
            return self.new_directory(pair.ino, &listing);
        };
        let before = self.inode(old, place)?;
        if self.may_differ(&before, &now)? {
            self.mentioned.objects.insert(pair.ino);
        }
        let earlier = old.image().read_dir(&before)?;
        for (name, entry) in listing.iter() {
            match earlier.find(name) {
                Some(was) => self.entry(pair.ino, name, &was, &entry)?,
                None => self.new_name(pair.ino, name, &entry)?,
            }
        }
        for (name, was) in earlier.iter() {
            if listing.find(name).is_none() {
                self.mention(pair.ino, name);
                self.old_name(&was)?;
            }
        }
        Ok(())
    }

    /// A name in a directory of both images.
    fn entry(&mut self, dir: Ino, name: &[u8], was: &DirEntry, is: &DirEntry) -> Result<()> {
        let ino = self.new.ino_of(is.number)?;
        if self.old.ino_of(was.number)? != ino {
            self.old_name(was)?;
            return self.new_name(dir, name, is);
        }
        if is.kind == InodeKind::Directory {
            self.descend(ino, Some(was.inode), is.inode);
            return Ok(());
        }
        if self.shared.is_same(was.inode, is.inode) {
            return Ok(());
        }
        let (old, new) = (self.old, self.new);
        let (before, now) = (self.inode(old, was.inode)?, self.inode(new, is.inode)?);
        if self.may_differ(&before, &now)? {
            self.mentioned.objects.insert(ino);
            // The name by which the object is found.
            self.mention(dir, name);
        }
        Ok(())
    }

    /// A name that leads to an object which was not there.
    fn new_name(&mut self, dir: Ino, name: &[u8], is: &DirEntry) -> Result<()> {
        self.mention(dir, name);
        if is.kind != InodeKind::Directory {
            return Ok(());
        }
        let ino = self.new.ino_of(is.number)?;
        let old = match self.old.inode_ref(ino)? {
            Some(place) => {
                let old = self.old;
                let was_dir = self.inode(old, place)?.kind() == InodeKind::Directory;
                was_dir.then_some(place)
            }
            None => None,
        };
        self.descend(ino, old, is.inode);
        Ok(())
    }

    /// An object of the old image, at a name at which the new image does not have it. If it is a
    /// directory that the new image has nowhere, notes the names in it and below it.
    fn old_name(&mut self, was: &DirEntry) -> Result<()> {
        let mut pending = vec![*was];
        while let Some(entry) = pending.pop() {
            if entry.kind != InodeKind::Directory {
                continue;
            }
            let ino = self.old.ino_of(entry.number)?;
            if self.new.inode_ref(ino)?.is_some() || self.old_only.contains_key(&ino) {
                continue;
            }
            let inode = self.inode(self.old, entry.inode)?;
            let listing = self.old.image().read_dir(&inode)?;
            let names = listing.iter().map(|(name, _)| Box::from(name)).collect();
            self.old_only.insert(ino, names);
            pending.extend(listing.iter().map(|(_, entry)| entry));
        }
        Ok(())
    }

    /// A directory that the old image does not have.
    fn new_directory(&mut self, ino: Ino, listing: &Directory) -> Result<()> {
        self.mentioned.names.entry(ino).or_default();
        for (name, entry) in listing.iter() {
            self.new_name(ino, name, &entry)?;
        }
        Ok(())
    }

    fn mention(&mut self, dir: Ino, name: &[u8]) {
        let names = self.mentioned.names.entry(dir).or_default();
        names.insert(Box::from(name));
    }

    /// Returns false if an object is certainly unchanged.
    fn may_differ(&self, before: &Inode, now: &Inode) -> Result<bool> {
        let (old, new) = (self.old.image(), self.new.image());
        let is_dir = now.kind() == InodeKind::Directory;
        let attributes = before.kind() != now.kind()
            || before.mode != now.mode
            || before.mtime != now.mtime && !is_dir
            || old.uid(before)? != new.uid(now)?
            || old.gid(before)? != new.gid(now)?
            || (before.xattr.is_some() || now.xattr.is_some())
                && old.xattrs(before)? != new.xattrs(now)?;
        if attributes {
            return Ok(true);
        }
        match (&before.body, &now.body) {
            (InodeBody::File(_), InodeBody::File(_)) => {
                let (before, now) = (old.file_layout(before)?, new.file_layout(now)?);
                Ok(!self.shared.has_same_data((old, &before), (new, &now))?)
            }
            (InodeBody::Directory(_), InodeBody::Directory(_)) => Ok(false),
            (before, now) => Ok(before != now),
        }
    }
}

/// A view that is compared with an earlier image than the one on which it is built.
struct Revised<'a> {
    view: &'a dyn View,
    old: &'a Arc<ImageLayer>,
    /// The image of the view.
    new: &'a ImageLayer,
    shared: Shared,
    /// In what the two images may differ.
    walk: &'a Walk<'a>,
}

impl<'a> Revised<'a> {
    fn new(
        view: &'a dyn View,
        (old, new, shared): (&'a Arc<ImageLayer>, &'a ImageLayer, Shared),
        walk: &'a Walk<'a>,
    ) -> Revised<'a> {
        Revised {
            view,
            old,
            new,
            shared,
            walk,
        }
    }

    /// What it is compared with.
    fn base(&self) -> LowerStack {
        LowerStack::new(vec![self.old.clone()])
    }
}

impl Content for Revised<'_> {
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Box<dyn Bytes>> {
        self.view.read(ino, offset, len)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        self.view.next_data(ino, offset)
    }
}

impl View for Revised<'_> {
    fn deltas(&self) -> Vec<&Delta> {
        self.view.deltas()
    }

    fn mentioned(&self) -> Result<Mentioned> {
        let mut all = self.view.mentioned()?;
        for (dir, names) in &self.walk.old_only {
            // Other directories are gone, with everything in them.
            if let Some(known) = all.names.get_mut(dir) {
                known.extend(names.iter().cloned());
            }
        }
        for (dir, names) in &self.walk.mentioned.names {
            let known = all.names.entry(*dir).or_default();
            known.extend(names.iter().cloned());
        }
        all.objects.extend(&self.walk.mentioned.objects);
        Ok(all)
    }

    fn lower(&self) -> &LowerStack {
        self.view.lower()
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        self.view.lookup(dir, name)
    }

    fn parent(&self, dir: Ino) -> Result<Option<Entry>> {
        self.view.parent(dir)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        self.view.attr(ino)
    }

    fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        self.view.read_link(ino)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        self.view.xattrs(ino)
    }

    fn may_have_other_content(&self, ino: Ino, committed: Ino) -> Result<bool> {
        // Compared with itself, an object has other content if upper layers have it.
        if self.view.may_have_other_content(ino, ino)? {
            return Ok(true);
        }
        let (before, now) = (self.old.layout(committed)?, self.new.layout(ino)?);
        let (old, new) = (self.old.image(), self.new.image());
        Ok(!self.shared.has_same_data((old, &before), (new, &now))?)
    }

    fn may_have_other_xattrs(&self, _ino: Ino, _committed: Ino) -> Result<bool> {
        Ok(true)
    }
}
