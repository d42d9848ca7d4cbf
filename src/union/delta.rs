//! The rows of one upper layer in memory: the differences to the layers below it.

use super::Result;
use super::layer::{HeldIn, LayerInode, LayerListing, Lookup};
use super::loaded::{DirDelta, Dirs, Objects, Xattrs, dirs_of};
use super::stack::LowerStack;
use super::stored::Stored;
use crate::object::{Attr, Ino, Kind};
use crate::state::{DataPlace, InodeRow, LayerRows, RowChange};

/// The rows of one upper layer.
///
/// Some rows of a large layer may be in the database only (`Stored`). They are read when they are
/// needed, which may fail.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    objects: Objects,
    dirs: Dirs,
    stored: Option<Stored>,
    /// Checks all rows when they have been read from the database.
    check: Option<Check>,
}

/// A check of all rows of a layer, over the layers below it.
type Check = fn(&Delta, &LowerStack) -> Result<()>;

impl Delta {
    /// Builds the delta from rows that were loaded from the database.
    pub(crate) fn from_rows(mut rows: LayerRows) -> Delta {
        let entries = std::mem::take(&mut rows.entries);
        Delta {
            objects: Objects::of(rows),
            dirs: dirs_of(entries),
            stored: None,
            check: None,
        }
    }

    /// Returns a delta whose rows are read from the database when they are needed. As soon as all
    /// have been read, `check` is called.
    pub(super) fn from_stored(stored: Stored, check: Check) -> Delta {
        Delta {
            stored: Some(stored),
            check: Some(check),
            ..Delta::default()
        }
    }

    /// Reads all rows that are in the database only.
    pub(crate) fn load(&self) -> Result<()> {
        match &self.stored {
            Some(stored) => stored.load_all(|below| {
                let check = self.check;
                check.map_or(Ok(()), |check| check(self, below))
            }),
            None => Ok(()),
        }
    }

    /// Returns true if all rows have been read.
    pub(super) fn is_loaded(&self) -> bool {
        self.stored.as_ref().is_none_or(Stored::is_complete)
    }

    fn objects(&self, ino: Ino) -> Result<&Objects> {
        match &self.stored {
            Some(stored) => Ok(stored.objects(ino)?.unwrap_or(&self.objects)),
            None => Ok(&self.objects),
        }
    }

    /// Returns the row of an object.
    pub(crate) fn inode(&self, ino: Ino) -> Result<Option<&InodeRow>> {
        Ok(self.objects(ino)?.inodes.get(&ino))
    }

    /// Returns the extended attributes of an object whose row owns them.
    pub(super) fn xattrs(&self, ino: Ino) -> Result<Option<&Xattrs>> {
        Ok(self.objects(ino)?.xattrs.get(&ino))
    }

    /// Returns the names of a directory that differ.
    pub(crate) fn dir(&self, dir: Ino) -> Result<Option<&DirDelta>> {
        let dirs = match &self.stored {
            Some(stored) => stored.dirs(dir)?.unwrap_or(&self.dirs),
            None => &self.dirs,
        };
        Ok(dirs.get(&dir))
    }

    /// Returns all objects with rows.
    pub(crate) fn inodes(&self) -> Result<impl Iterator<Item = (Ino, &InodeRow)>> {
        self.load()?;
        Ok(self.loaded_inodes())
    }

    /// Returns all directories with names that differ.
    pub(crate) fn dirs(&self) -> Result<impl Iterator<Item = (Ino, &DirDelta)>> {
        self.load()?;
        Ok(self.loaded_dirs())
    }

    /// Returns the objects whose rows have been read, which includes all that were changed since
    /// the layer was opened.
    pub(super) fn loaded_inodes(&self) -> impl Iterator<Item = (Ino, &InodeRow)> {
        let stored = self.stored.iter().flat_map(Stored::loaded_objects);
        std::iter::once(&self.objects)
            .chain(stored)
            .flat_map(|objects| objects.inodes.iter().map(|(ino, row)| (*ino, row)))
    }

    /// Returns the directories whose rows have been read, like
    /// [`loaded_inodes`](Self::loaded_inodes).
    pub(super) fn loaded_dirs(&self) -> impl Iterator<Item = (Ino, &DirDelta)> {
        let stored = self.stored.iter().flat_map(Stored::loaded_dirs);
        std::iter::once(&self.dirs)
            .chain(stored)
            .flat_map(|dirs| dirs.iter().map(|(dir, delta)| (*dir, delta)))
    }

    /// Returns true if the layer has no changes. Returns false if it has rows that were not read.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_loaded()
            && self.loaded_inodes().next().is_none()
            && self.loaded_dirs().all(|(_, dir)| dir.entries.is_empty())
    }

    /// Counts the rows, without those of extended attributes.
    pub(crate) fn rows(&self) -> Result<usize> {
        let names: usize = self.dirs()?.map(|(_, dir)| dir.entries.len()).sum();
        Ok(self.loaded_inodes().count() + names)
    }

    /// Returns all rows.
    pub(super) fn to_rows(&self) -> Result<LayerRows> {
        let mut rows = LayerRows::default();
        for (ino, row) in self.inodes()? {
            rows.inodes.push((ino, row.clone()));
            for (name, value) in self.xattrs(ino)?.into_iter().flatten() {
                rows.xattrs.push((ino, name.clone(), value.clone()));
            }
        }
        for (dir, entries) in self.dirs()? {
            let entries = entries.iter();
            rows.entries
                .extend(entries.map(|(name, target)| (dir, Box::from(name), target)));
        }
        Ok(rows)
    }

    /// Applies changes after `store` has written them to the database. After an error nothing has
    /// changed.
    pub(super) fn change(
        &mut self,
        changes: &[RowChange<'_>],
        store: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        // The rows in the database are about to change, so those in memory must be read first.
        for change in changes {
            match change {
                RowChange::PutInode(ino, _)
                | RowChange::DropInode(ino)
                | RowChange::PutXattr { ino, .. }
                | RowChange::DropXattr { ino, .. }
                | RowChange::DropXattrs(ino) => drop(self.inode(*ino)?),
                RowChange::PutEntry { dir, .. }
                | RowChange::DropEntry { dir, .. }
                | RowChange::DropEntriesOf(dir) => drop(self.dir(*dir)?),
            }
        }
        store()?;
        for change in changes {
            self.apply(change);
        }
        Ok(())
    }

    fn objects_mut(&mut self, ino: Ino) -> &mut Objects {
        let stored = self.stored.as_mut();
        let block = stored.and_then(|stored| stored.objects_mut(ino));
        block.unwrap_or(&mut self.objects)
    }

    fn dirs_mut(&mut self, dir: Ino) -> &mut Dirs {
        let stored = self.stored.as_mut();
        let block = stored.and_then(|stored| stored.dirs_mut(dir));
        block.unwrap_or(&mut self.dirs)
    }

    /// Applies a change that the database contains already.
    fn apply(&mut self, change: &RowChange<'_>) {
        match change {
            RowChange::PutInode(ino, row) => {
                let row = row.as_ref().clone();
                self.objects_mut(*ino).inodes.insert(*ino, row);
            }
            RowChange::DropInode(ino) => {
                self.objects_mut(*ino).inodes.remove(ino);
            }
            RowChange::PutEntry { dir, name, target } => {
                let dirs = self.dirs_mut(*dir);
                let entries = dirs.entry(*dir).or_default();
                entries.put(Box::from(&**name), *target);
            }
            RowChange::DropEntry { dir, name } => {
                if let Some(entries) = self.dirs_mut(*dir).get_mut(dir) {
                    entries.drop_name(name);
                }
            }
            RowChange::DropEntriesOf(dir) => {
                self.dirs_mut(*dir).remove(dir);
            }
            RowChange::PutXattr { ino, name, value } => {
                let own = self.objects_mut(*ino).xattrs.entry(*ino).or_default();
                own.insert(Box::from(&**name), Box::from(&**value));
            }
            RowChange::DropXattr { ino, name } => {
                if let Some(own) = self.objects_mut(*ino).xattrs.get_mut(ino) {
                    own.remove(&**name);
                }
            }
            RowChange::DropXattrs(ino) => {
                self.objects_mut(*ino).xattrs.remove(ino);
            }
        }
    }

    /// Returns the place of an object in this layer: the directory and the name of its content.
    pub(crate) fn place(&self, ino: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        Ok(self.inode(ino)?.and_then(|row| row.place.clone()))
    }

    /// Looks up a name in this layer.
    pub(crate) fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Lookup> {
        Ok(match self.dir(dir)?.and_then(|d| d.get(name)) {
            None => Lookup::Unknown,
            Some(None) => Lookup::Whiteout,
            Some(Some(ino)) => Lookup::Found(ino),
        })
    }

    /// Returns the links and whiteouts of a directory. The kind is [`Kind::File`] if the object has
    /// no row.
    pub(crate) fn list(&self, dir: Ino) -> Result<Option<LayerListing>> {
        let Some(entries) = self.dir(dir)? else {
            return Ok(None);
        };
        let mut listing = LayerListing::new();
        for (name, target) in entries.iter() {
            let target = match target {
                Some(ino) => Some((ino, self.inode(ino)?.map_or(Kind::File, |row| row.kind))),
                None => None,
            };
            listing.push((Box::from(name), target));
        }
        Ok(Some(listing))
    }
}

/// Returns the attributes that a row holds. Those of content are in the backing file or a lower
/// layer.
pub(super) fn row_attr(row: &InodeRow) -> Attr {
    Attr {
        kind: row.kind,
        mode: row.mode,
        uid: row.uid,
        gid: row.gid,
        rdev: row.rdev,
        nlink: row.nlink,
        size: match row.kind {
            Kind::Symlink => row.target.as_ref().map_or(0, |t| t.len() as u64),
            Kind::Directory => 4096,
            _ => 0,
        },
        blocks: 0,
        atime: row.atime,
        mtime: row.mtime,
        ctime: row.ctime,
    }
}

/// Returns an object by its row, without the attributes of its content.
pub(super) fn row_inode(row: &InodeRow) -> LayerInode {
    LayerInode {
        attr: row_attr(row),
        content: match row.data {
            DataPlace::Upper => HeldIn::ThisLayer,
            DataPlace::Lower if row.kind == Kind::File => HeldIn::LowerLayer,
            DataPlace::Committed if row.kind == Kind::File => HeldIn::Images,
            DataPlace::Lower | DataPlace::Committed => HeldIn::ThisLayer,
        },
        xattrs: if row.owns_xattrs {
            HeldIn::ThisLayer
        } else {
            HeldIn::LowerLayer
        },
    }
}

/// Returns a row with these attributes, for content that stays in a lower layer.
pub(super) fn row_from(
    attr: &Attr,
    target: Option<Box<[u8]>>,
    place: Option<(Ino, Box<[u8]>)>,
) -> InodeRow {
    InodeRow {
        kind: attr.kind,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        nlink: attr.nlink,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        data: DataPlace::Lower,
        target,
        place,
        backing_ino: 0,
        owns_xattrs: false,
    }
}

/// Returns true if the object is a regular file with its content in the layer of the row.
pub(super) fn has_file(row: &InodeRow) -> bool {
    row.data == DataPlace::Upper && row.kind == Kind::File
}
